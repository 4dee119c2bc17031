//! Informational responses (1xx, RFC 9110 section 15.2), past hyper: its server cannot send them.
//!
//! They are written only while hyper has nothing buffered: when it flushes, and before the final
//! response is handed to it.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use bytes::{BufMut, BytesMut};
use http::{Request, StatusCode};
use tokio::{io::AsyncWrite, net::TcpStream};

use super::{body::RequestBody, headers};

/// The most informational responses that are passed on for one request.
const MAX_PER_REQUEST: usize = 16;

/// Those on their way from an upstream's task to the client's connection. Both sides run on one
/// thread; the lock and the atomics are what the type of hyper's callback demands, and the flag tells
/// at no cost that there is nothing to write.
#[derive(Default)]
pub struct Informational {
    waiting: AtomicBool,
    bytes: Mutex<BytesMut>,
    /// The task of the client's connection, which has to run to write.
    task: OnceLock<Waker>,
}

impl Informational {
    /// Has the informational responses to `request` passed on by the connection that `task` serves.
    pub fn pass(self: &Arc<Self>, request: &mut Request<RequestBody>, task: Option<Waker>) {
        if let (None, Some(task)) = (self.task.get(), task) {
            let _first = self.task.set(task);
        }
        let this = Arc::clone(self);
        let passed = AtomicUsize::new(0);
        hyper::ext::on_informational(request, move |response| {
            // 100 is hyper's to send: it does when the body is first asked for.
            if response.status() != StatusCode::CONTINUE
                && passed.fetch_add(1, Ordering::Relaxed) < MAX_PER_REQUEST
            {
                this.push(response.status(), response.headers());
            }
        });
    }

    /// Whether some are still to be written.
    pub fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Waits until all that came are on their way. hyper must not be given the final response before.
    pub async fn passed(&self) {
        poll_fn(|_| match self.is_waiting() {
            true => Poll::Pending,
            false => Poll::Ready(()),
        })
        .await;
    }

    fn push(&self, status: StatusCode, headers: &http::HeaderMap) {
        let mut headers = headers.clone();
        headers::strip_hop_by_hop(&mut headers);
        let mut bytes = self.bytes();
        bytes.put_slice(b"HTTP/1.1 ");
        bytes.put_slice(status.as_str().as_bytes());
        bytes.put_slice(b" ");
        bytes.put_slice(
            status
                .canonical_reason()
                .unwrap_or("Informational")
                .as_bytes(),
        );
        bytes.put_slice(b"\r\n");
        for (name, value) in &headers {
            bytes.put_slice(name.as_str().as_bytes());
            bytes.put_slice(b": ");
            bytes.put_slice(value.as_bytes());
            bytes.put_slice(b"\r\n");
        }
        bytes.put_slice(b"\r\n");
        self.waiting.store(true, Ordering::Relaxed);
        self.wake();
    }

    /// Writes them. To be called while hyper has nothing buffered.
    ///
    /// # Errors
    /// The connection's.
    pub fn poll_write(&self, stream: &mut TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut bytes = self.bytes();
        while !bytes.is_empty() {
            match ready!(Pin::new(&mut *stream).poll_write(cx, &bytes))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => drop(bytes.split_to(written)),
            }
        }
        self.waiting.store(false, Ordering::Relaxed);
        // Whoever waits in `passed` was polled before this.
        self.wake();
        Poll::Ready(Ok(()))
    }

    fn wake(&self) {
        if let Some(task) = self.task.get() {
            task.wake_by_ref();
        }
    }

    fn bytes(&self) -> std::sync::MutexGuard<'_, BytesMut> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
