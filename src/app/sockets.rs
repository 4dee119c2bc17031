//! Where the listening sockets come from: bound here, passed by the service manager (socket activation,
//! sd_listen_fds(3)), or handed over by the process that this one comes after.
//!
//! A socket that somebody else has too is not closed with care when this process ends, but let go of: what waits in
//! its queue is for who comes next.

use std::{
    collections::VecDeque,
    io,
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    time::Duration,
};

use super::StartError;
use crate::{
    config::{Config, Listen},
    proxy::listener,
};

/// How the service manager calls the sockets (`FileDescriptorName=`, systemd.socket(5)).
const PROXY: &str = "proxy";
const INSTRUMENTATION: &str = "instrumentation";

/// Sockets that this process has begun with.
#[derive(Debug, Default)]
pub struct Inherited {
    /// Of the proxy port.
    pub proxy: Vec<TcpListener>,
    /// Of the instrumentation port.
    pub instrumentation: Option<TcpListener>,
    /// The service manager keeps them.
    pub managed: bool,
}

/// The sockets of this process.
#[derive(Debug)]
pub struct Sockets {
    /// Of the proxy port, by worker; each has one at least.
    pub proxy: Vec<Vec<TcpListener>>,
    /// Of the instrumentation port, if there is one.
    pub instrumentation: Option<TcpListener>,
    /// The service manager keeps them.
    pub managed: bool,
    /// Which of the two ports the process before this one has, too.
    pub shared: Shared,
}

/// Of each port, whether somebody else has its sockets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shared {
    /// The proxy port's.
    pub proxy: bool,
    /// The instrumentation port's.
    pub instrumentation: bool,
}

impl Inherited {
    /// The same sockets once more.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn try_clone(&self) -> io::Result<Inherited> {
        let proxy = self.proxy.iter().map(TcpListener::try_clone);
        Ok(Inherited {
            proxy: proxy.collect::<io::Result<_>>()?,
            instrumentation: self
                .instrumentation
                .as_ref()
                .map(TcpListener::try_clone)
                .transpose()?,
            managed: self.managed,
        })
    }

    /// What the service manager has passed, if it has.
    ///
    /// # Errors
    /// It has passed something that is no socket of ours.
    pub fn from_manager(config: &Config) -> Result<Inherited, StartError> {
        let passed = sd_notify::listen_fds_with_names().map_err(StartError::Passed)?;
        let mut inherited = Inherited::default();
        for (number, name) in passed {
            let listener = listener_of(uapi::OwnedFd::new(number).into());
            let listener = listener.map_err(StartError::Passed)?;
            let address = listener.local_addr().map_err(StartError::Passed)?;
            inherited.managed = true;
            match place(&name, address, config)? {
                Place::Proxy => inherited.proxy.push(listener),
                Place::Instrumentation => inherited.instrumentation = Some(listener),
            }
        }
        Ok(inherited)
    }
}

/// A descriptor that is to be a socket which listens.
///
/// # Errors
/// It is none.
pub fn listener_of(descriptor: OwnedFd) -> io::Result<TcpListener> {
    let socket = socket2::Socket::from(descriptor);
    match socket.is_listener()? {
        true => Ok(socket.into()),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it does not listen",
        )),
    }
}

enum Place {
    Proxy,
    Instrumentation,
}

/// By its name where that says anything, and otherwise by its port.
fn place(name: &str, address: SocketAddr, config: &Config) -> Result<Place, StartError> {
    let proxy = config.server.listen.port;
    let instrumentation = config.instrumentation.as_ref().map(|it| it.listen.port);
    let foreign = |why: String| {
        Err(StartError::Foreign {
            name: name.to_owned(),
            address,
            why,
        })
    };
    match name {
        PROXY if address.port() != proxy => {
            foreign(format!("/router-server/port is {proxy}: make them the same"))
        }
        INSTRUMENTATION if instrumentation.is_none() => foreign(
            "there is no instrumentation section: write one, or take the socket away".into(),
        ),
        INSTRUMENTATION if Some(address.port()) != instrumentation => foreign(
            "/instrumentation/port is another one: make them the same".into(),
        ),
        PROXY => Ok(Place::Proxy),
        INSTRUMENTATION => Ok(Place::Instrumentation),
        _ if address.port() == proxy => Ok(Place::Proxy),
        _ if Some(address.port()) == instrumentation => Ok(Place::Instrumentation),
        _ => foreign(
            "neither /router-server/port nor /instrumentation/port is that: make one of them the same, or take \
             the socket away"
                .into(),
        ),
    }
}

impl Sockets {
    /// Those of the configuration: what of it was inherited, and the rest bound now. What was inherited and is not
    /// configured any more, at this address and port, is closed.
    ///
    /// # Errors
    /// An address cannot be had.
    pub fn new(
        config: &Config,
        workers: usize,
        inherited: Inherited,
    ) -> Result<Sockets, StartError> {
        let Inherited {
            proxy,
            instrumentation,
            managed,
        } = inherited;
        let patience = config.server.write_timeout;
        // Who passes sockets has said where they listen.
        let fits = |listener: &TcpListener, listen: &Listen| {
            is_at_port(listener, listen) && (managed || is_at_host(listener, listen))
        };
        // Those of the process before this one are there until it lets go of them.
        let bind = |beside: bool, listen: &Listen, count: usize| match beside {
            true => listener::bind_beside(listen, count, patience),
            false => listener::bind(listen, count, patience),
        };
        let listen = &config.server.listen;
        let beside = !managed && proxy.iter().any(|it| is_at_port(it, listen));
        let proxy: Vec<_> = proxy.into_iter().filter(|it| fits(it, listen)).collect();
        let section = config
            .instrumentation
            .as_ref()
            .map(|section| &section.listen);
        let instrumentation = instrumentation.zip(section);
        let (near, instrumentation) = match instrumentation {
            Some((listener, listen)) => (
                !managed && is_at_port(&listener, listen),
                fits(&listener, listen).then_some(listener),
            ),
            None => (false, None),
        };
        let shared = Shared {
            proxy: !proxy.is_empty(),
            instrumentation: instrumentation.is_some(),
        };
        let proxy = match proxy.is_empty() {
            true => bind(beside, listen, workers)
                .map(|bound| bound.into_iter().map(|listener| vec![listener]).collect()),
            false => deal(proxy, workers, patience, managed),
        };
        Ok(Sockets {
            proxy: proxy.map_err(|error| cannot("/router-server", listen, error))?,
            instrumentation: match (section, instrumentation) {
                (None, _) => None,
                (Some(listen), Some(listener)) => {
                    let adopted = listener::adopt(&listener, patience);
                    adopted.map_err(|error| cannot("/instrumentation", listen, error))?;
                    Some(listener)
                }
                (Some(listen), None) => {
                    let bound = bind(near, listen, 1);
                    bound
                        .map_err(|error| cannot("/instrumentation", listen, error))?
                        .pop()
                }
            },
            managed,
            shared,
        })
    }

    /// The same sockets once more, for who comes after us.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn to_leave(&self) -> io::Result<Inherited> {
        let proxy = self.proxy.iter().flatten();
        Ok(Inherited {
            proxy: proxy
                .map(TcpListener::try_clone)
                .collect::<io::Result<_>>()?,
            instrumentation: self
                .instrumentation
                .as_ref()
                .map(TcpListener::try_clone)
                .transpose()?,
            managed: self.managed,
        })
    }
}

fn cannot(key: &'static str, listen: &Listen, error: io::Error) -> StartError {
    StartError::Listen {
        key,
        host: listen.host.clone(),
        port: listen.port,
        error,
    }
}

/// Whether a listener has the configured port.
fn is_at_port(listener: &TcpListener, listen: &Listen) -> bool {
    let address = listener.local_addr();
    address.is_ok_and(|address| address.port() == listen.port)
}

/// Whether it has the configured address, too: who has configured a narrower one relies on it. A name that nobody
/// knows at this moment is the one of before.
fn is_at_host(listener: &TcpListener, listen: &Listen) -> bool {
    let (Ok(own), Ok(addresses)) = (listener.local_addr(), listener::addresses(listen)) else {
        return true;
    };
    addresses.iter().any(|address| address.ip() == own.ip())
}

/// Shares sockets out. All are served: each has a queue of its own. Where there are too few of them more are bound, if
/// they are ours; those of somebody else are shared.
fn deal(
    sockets: Vec<TcpListener>,
    workers: usize,
    patience: Duration,
    managed: bool,
) -> io::Result<Vec<Vec<TcpListener>>> {
    sockets
        .iter()
        .try_for_each(|socket| listener::adopt(socket, patience))?;
    let address = sockets.first().map(TcpListener::local_addr).transpose()?;
    let missing = workers.saturating_sub(sockets.len());
    let more = match (address, managed) {
        (Some(address), false) => listener::join(address, missing, patience).unwrap_or_default(),
        _ => Vec::new(),
    };
    let mut sockets: VecDeque<_> = sockets.into_iter().chain(more).collect();
    for i in 0..workers.saturating_sub(sockets.len()) {
        let shared = sockets[i].try_clone()?;
        sockets.push_back(shared);
    }
    let mut dealt: Vec<Vec<TcpListener>> = (0..workers).map(|_| Vec::new()).collect();
    for (i, socket) in sockets.into_iter().enumerate() {
        dealt[i % workers].push(socket);
    }
    Ok(dealt)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(15);

    fn bound(count: usize) -> Vec<TcpListener> {
        let listen = Listen {
            host: "127.0.0.1".into(),
            port: 0,
        };
        listener::bind(&listen, count, PATIENCE).unwrap()
    }

    #[test]
    fn each_worker_gets_a_socket_and_each_socket_a_worker() {
        for (sockets, workers) in [(1, 1), (1, 3), (3, 1), (2, 5), (5, 2), (4, 4)] {
            for managed in [false, true] {
                let dealt = deal(bound(sockets), workers, PATIENCE, managed).unwrap();
                assert_eq!(dealt.len(), workers);
                assert!(dealt.iter().all(|of_one| !of_one.is_empty()));
                let all = dealt.iter().map(Vec::len).sum::<usize>();
                assert_eq!(all, sockets.max(workers));
                let port = dealt[0][0].local_addr().unwrap().port();
                let ports = dealt.iter().flatten();
                assert!(
                    ports
                        .map(|it| it.local_addr().unwrap().port())
                        .all(|it| it == port)
                );
            }
        }
    }

    #[test]
    fn a_socket_is_placed_by_its_name_or_its_port_and_refused_where_they_disagree() {
        let config = |instrumentation: bool| {
            let mut file = serde_json::json!({
                "main-target": "http://m", "canary-target": "http://c",
                "router-server": {"host": "h", "port": 1},
                "instrumentation": {"host": "h", "port": 2}
            });
            if !instrumentation {
                file.as_object_mut().unwrap().remove("instrumentation");
            }
            Config::parse("test.json", &file.to_string()).unwrap()
        };
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let placed = |name, port, config: &Config| {
            place(name, at(port), config).map(|place| matches!(place, Place::Proxy))
        };
        let both = config(true);
        assert!(matches!(placed("proxy", 1, &both), Ok(true)));
        assert!(matches!(placed("canary-router.socket", 1, &both), Ok(true)));
        assert!(matches!(placed("instrumentation", 2, &both), Ok(false)));
        assert!(matches!(placed("unknown", 2, &both), Ok(false)));
        for (name, port) in [("proxy", 2), ("instrumentation", 1), ("unknown", 3)] {
            let refused = placed(name, port, &both).unwrap_err().to_string();
            assert!(refused.contains(&at(port).to_string()), "{refused}");
        }
        assert!(placed("instrumentation", 2, &config(false)).is_err());
        assert!(placed("unknown", 2, &config(false)).is_err());
    }
}
