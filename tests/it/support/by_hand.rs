//! An upstream that the test plays itself, byte by byte, where the order of events matters.

use std::{net::SocketAddr, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
};

use super::{
    Client, Received, Router,
    message::{Framing, framing, read_body, read_head},
    router::merge,
    soon,
};

/// A listener whose connections the test answers.
pub struct ByHand {
    pub address: SocketAddr,
    listener: TcpListener,
}

impl ByHand {
    pub async fn start() -> ByHand {
        ByHand::on(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    pub fn on(listener: TcpListener) -> ByHand {
        ByHand {
            address: listener.local_addr().unwrap(),
            listener,
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The upstream's end of the next connection.
    pub async fn accept(&self) -> Client {
        let (stream, _) = soon(self.listener.accept()).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Client(BufReader::new(stream))
    }
}

impl Client {
    /// The next message head.
    pub async fn head(&mut self) -> String {
        soon(read_head(&mut self.0))
            .await
            .unwrap()
            .expect("a head, not the end of the connection")
    }

    /// The next message head, as bytes.
    pub async fn raw_head(&mut self) -> Vec<u8> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(soon(self.0.read_u8()).await.unwrap());
        }
        head
    }

    /// The next request, whole.
    pub async fn request(&mut self) -> Received {
        let mut message = Received {
            head: self.head().await,
            ..Received::default()
        };
        let framing = framing(&message.head, Framing::None);
        assert!(soon(read_body(&mut self.0, framing, &mut message)).await);
        message
    }

    /// Reads what must come next, and no further.
    #[track_caller]
    pub fn expect(&mut self, bytes: impl AsRef<[u8]>) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        soon(async move {
            let bytes = bytes.as_ref();
            let mut read = vec![0; bytes.len()];
            for i in 0..read.len() {
                match self.0.read(&mut read[i..=i]).await {
                    Ok(1) if read[i] == bytes[i] => {}
                    other => panic!(
                        "{other:?} after {:?} instead of {:?} at {caller}",
                        String::from_utf8_lossy(&read[..=i]),
                        String::from_utf8_lossy(bytes)
                    ),
                }
            }
        })
    }

    /// Says that nothing more will be sent; reading goes on.
    pub async fn finish(&mut self) {
        self.0.shutdown().await.unwrap();
    }

    /// Breaks the connection.
    pub fn reset(self) {
        let stream = self.0.into_inner();
        socket2::SockRef::from(&stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    }
}

/// A router with one worker, hence one pool, whose targets are both `target`.
pub fn router_to(target: &str) -> Router {
    router_with(target, json!({}))
}

/// The same, with more of a config file.
pub fn router_with(target: &str, config: Value) -> Router {
    let mut file = json!({
        "main-target": target,
        "canary-target": target,
        "router-server": {"workers": 1}
    });
    merge(&mut file, config);
    Router::start(file)
}
