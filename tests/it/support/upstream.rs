//! Services that do as they are told, and remember what they were sent.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncWriteExt, BufReader},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
};

use super::{
    Port,
    message::{Framing, Received, framing, read_body, read_head},
};

/// What an upstream does next on a connection.
#[derive(Debug, Clone)]
pub enum Step {
    /// Writes these bytes.
    Write(Vec<u8>),
    /// Lets some time go by.
    Pause(Duration),
    /// Closes the connection properly.
    Close,
    /// Resets the connection.
    Reset,
    /// Does nothing more, but stays.
    Hang,
    /// Sends back whatever comes, until the other side closes: the other end of a tunnel.
    Echo,
    /// Waits until the gate is open.
    Wait(Gate),
}

/// Keeps upstreams waiting until a test opens it.
#[derive(Debug, Clone)]
pub struct Gate(Arc<Semaphore>);

impl Gate {
    pub fn shut() -> Gate {
        Gate(Arc::new(Semaphore::new(0)))
    }

    /// Lets everyone through, for good.
    pub fn open(&self) {
        self.0.close();
    }

    pub async fn passed(&self) {
        let _closed_is_open = self.0.acquire().await;
    }
}

/// A complete response with these extra header lines (each with its `\r\n`).
pub fn answer(status: u16, headers: &str, body: &str) -> Vec<Step> {
    let head = match status {
        100..=199 | 204 | 304 => format!("HTTP/1.1 {status} X\r\n{headers}\r\n"),
        _ => format!(
            "HTTP/1.1 {status} X\r\n{headers}content-length: {}\r\n\r\n{body}",
            body.len()
        ),
    };
    vec![Step::Write(head.into_bytes())]
}

type Script = dyn Fn(&Received) -> Vec<Step> + Send + Sync;

/// A scripted service.
pub struct Upstream {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Received>>>,
    connections: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    server: JoinHandle<()>,
}

impl Upstream {
    /// For each request, does what `script` says.
    pub async fn start(
        script: impl Fn(&Received) -> Vec<Step> + Send + Sync + 'static,
    ) -> Upstream {
        let listener = listen();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(AtomicUsize::new(0));
        let open = Arc::new(AtomicUsize::new(0));
        let script: Arc<Script> = Arc::new(script);
        let server = {
            let (seen, connections, open) = (seen.clone(), connections.clone(), open.clone());
            tokio::spawn(async move {
                let mut clients = JoinSet::new();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    connections.fetch_add(1, Ordering::SeqCst);
                    let guard = Open::new(open.clone());
                    let (script, seen) = (script.clone(), seen.clone());
                    clients.spawn(async move {
                        let _guard = guard;
                        let _broken = serve(stream, script, seen).await;
                    });
                }
            })
        };
        Upstream {
            address,
            seen,
            connections,
            open,
            server,
        }
    }

    /// Answers every request with this status, and with `name` as its body.
    pub async fn named(name: &'static str, status: u16) -> Upstream {
        Upstream::start(move |_| answer(status, "", name)).await
    }

    /// An address where nobody listens, nor will: the port stays reserved.
    pub async fn nobody() -> SocketAddr {
        let port = Port::reserve();
        let address = port.address;
        std::mem::forget(port);
        address
    }

    /// Ends it: it closes its connections and takes no more.
    pub fn stop(&self) {
        self.server.abort();
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Every request so far whose head and body came in whole.
    pub fn seen(&self) -> Vec<Received> {
        self.seen.lock().unwrap().clone()
    }

    pub fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    /// The only request so far.
    #[track_caller]
    pub fn only(&self) -> Received {
        let seen = self.seen();
        assert_eq!(seen.len(), 1, "{seen:#?}");
        seen.into_iter().next().unwrap()
    }

    /// How many connections were made, and how many are open.
    pub fn connections(&self) -> (usize, usize) {
        (
            self.connections.load(Ordering::SeqCst),
            self.open.load(Ordering::SeqCst),
        )
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// A service whose queue of connections is full, and stays so: connecting to it takes for ever.
pub struct Deaf {
    pub address: SocketAddr,
    _queue: Vec<Socket>,
}

impl Deaf {
    pub fn start() -> Deaf {
        let any: SocketAddr = ([127, 0, 0, 1], 0).into();
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&any.into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        // A queue of 0 has room for one.
        let waiting = (0..4).map(|_| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            let _in_progress = socket.connect(&address.into());
            socket
        });
        let mut queue: Vec<Socket> = waiting.collect();
        queue.push(listener);
        Deaf {
            address,
            _queue: queue,
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// A listener on a free port with a queue that no test fills.
pub fn listen() -> TcpListener {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    socket.listen(4096).unwrap()
}

/// The same; of what is sent on its connections, the kernel takes next to nothing before it is read.
pub fn listen_narrowly() -> TcpListener {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(32 << 10).unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    socket.listen(4096).unwrap()
}

struct Open(Arc<AtomicUsize>);

impl Open {
    fn new(open: Arc<AtomicUsize>) -> Open {
        open.fetch_add(1, Ordering::SeqCst);
        Open(open)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn serve(
    stream: TcpStream,
    script: Arc<Script>,
    seen: Arc<Mutex<Vec<Received>>>,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    while let Some(head) = read_head(&mut stream).await? {
        let mut request = Received {
            head,
            ..Received::default()
        };
        let framing = framing(&request.head, Framing::None);
        if !read_body(&mut stream, framing, &mut request).await {
            return Ok(());
        }
        seen.lock().unwrap().push(request.clone());
        for step in script(&request) {
            match step {
                Step::Write(bytes) => stream.write_all(&bytes).await?,
                Step::Pause(time) => tokio::time::sleep(time).await,
                Step::Wait(gate) => gate.passed().await,
                Step::Close => return stream.shutdown().await,
                Step::Reset => {
                    socket2::SockRef::from(stream.get_ref()).set_linger(Some(Duration::ZERO))?;
                    return Ok(());
                }
                Step::Hang => {
                    // Until the other side closes.
                    let mut sink = tokio::io::sink();
                    tokio::io::copy(&mut stream, &mut sink).await?;
                    return Ok(());
                }
                Step::Echo => {
                    let (mut read, mut write) = tokio::io::split(stream);
                    tokio::io::copy(&mut read, &mut write).await?;
                    return write.shutdown().await;
                }
            }
        }
    }
    Ok(())
}
