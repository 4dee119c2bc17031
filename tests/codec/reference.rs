//! What hyper makes of the same bytes, without sockets or a runtime: it is polled until it has done
//! all that it can.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    convert::Infallible,
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    rc::Rc,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Version};
use http_body_util::Empty;
use hyper::{
    Request, Response,
    body::{Body, Incoming},
    client, ext,
    rt::{Read, ReadBufCursor, Write},
    server,
    service::service_fn,
};

use super::ours::{Arriving, Lines};

/// More polls than any case needs.
const ENDLESS: usize = 20_000;

/// How a body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Whole,
    Broken,
}

/// A response, or a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read1<Start> {
    pub start: Start,
    pub version: Version,
    pub fields: Lines,
    pub body: Vec<u8>,
    pub trailers: Lines,
    pub end: End,
}

/// The start of a response, what came before it, and whether the connection can be used again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub informational: Vec<StatusCode>,
    pub status: StatusCode,
    pub reusable: bool,
}

/// The start of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub method: Method,
    pub target: Vec<u8>,
}

/// One end of a connection, whose other end says what is given.
#[derive(Clone)]
struct Wire(Rc<State>);

struct State {
    pieces: RefCell<VecDeque<Vec<u8>>>,
    /// Whether something was written; nobody answers before.
    open: Cell<bool>,
    /// Whether the end follows the last piece, or silence.
    ends: Cell<bool>,
    reads: Cell<usize>,
}

impl Wire {
    fn new(mut arriving: Arriving, open: bool, ends: bool) -> Wire {
        let pieces = std::iter::from_fn(|| arriving.next()).map(<[u8]>::to_vec);
        Wire(Rc::new(State {
            pieces: RefCell::new(pieces.collect()),
            open: Cell::new(open),
            ends: Cell::new(ends),
            reads: Cell::new(0),
        }))
    }
}

impl Read for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let State {
            pieces,
            open,
            ends,
            reads,
        } = &*self.0;
        let mut pieces = pieces.borrow_mut();
        match pieces.front_mut() {
            _ if !open.get() => return Poll::Pending,
            None if !ends.get() => return Poll::Pending,
            None => {}
            Some(piece) => {
                let rest = piece.split_off(piece.len().min(buf.remaining()));
                buf.put_slice(piece);
                match rest.is_empty() {
                    true => drop(pieces.pop_front()),
                    false => *piece = rest,
                }
                reads.set(reads.get() + 1);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Write for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.open.set(true);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Reads the response to a request with `method`; `None` where hyper refuses it.
pub fn response(method: &Method, arriving: Arriving) -> Option<Read1<Answer>> {
    let cx = &mut Context::from_waker(Waker::noop());
    let wire = Wire::new(arriving, false, false);
    let mut builder = client::conn::http1::Builder::new();
    builder.max_headers(1000);
    let shaken = pin!(builder.handshake::<_, Empty<Bytes>>(wire.clone())).poll(cx);
    let Poll::Ready(Ok((mut sender, mut connection))) = shaken else {
        panic!("a handshake of HTTP/1 waits for nothing");
    };
    let informational = Arc::new(Mutex::new(Vec::new()));
    let mut request = Request::new(Empty::new());
    *request.method_mut() = method.clone();
    let seen = informational.clone();
    ext::on_informational(&mut request, move |early| {
        seen.lock().unwrap().push(early.status());
    });
    let mut answer = pin!(sender.send_request(request));
    let mut running = true;
    // Polls until `work` is ready; ends the connection where nothing else happens.
    let mut drive = |work: &mut dyn FnMut(&mut Context<'_>) -> Poll<()>, may_end: bool| {
        let mut idle = 0;
        for _ in 0..ENDLESS {
            let reads = wire.0.reads.get();
            if running && Pin::new(&mut connection).poll(cx).is_ready() {
                running = false;
            }
            if work(cx).is_ready() {
                return true;
            }
            idle = match wire.0.reads.get() == reads {
                true => idle + 1,
                false => 0,
            };
            match (idle > 3, may_end) {
                (true, true) => wire.0.ends.set(true),
                (true, false) => return false,
                _ => {}
            }
        }
        panic!("hyper never ends");
    };
    let mut answered = None;
    drive(
        &mut |cx| answer.as_mut().poll(cx).map(|got| answered = got.ok()),
        true,
    );
    let (head, mut body) = answered?.into_parts();
    let mut read = Read1 {
        start: Answer {
            informational: Vec::new(),
            status: head.status,
            reusable: false,
        },
        version: head.version,
        fields: lines(&head.headers),
        body: Vec::new(),
        trailers: Vec::new(),
        end: End::Whole,
    };
    drive(&mut |cx| poll_body(&mut body, &mut read, cx), true);
    // What is behind it makes the connection useless, too.
    drive(&mut |_| Poll::Pending, false);
    read.start.informational = informational.lock().unwrap().clone();
    read.start.reusable =
        read.end == End::Whole && !wire.0.ends.get() && running && sender.is_ready();
    Some(read)
}

/// Reads the requests of a connection, as far as hyper does.
pub fn requests(arriving: Arriving) -> Vec<Read1<Asked>> {
    let cx = &mut Context::from_waker(Waker::noop());
    let read = Rc::new(RefCell::new(Vec::new()));
    let mut connection = pin!(
        server::conn::http1::Builder::new()
            .half_close(true)
            .header_read_timeout(None)
            .max_headers(1000)
            .serve_connection(
                Wire::new(arriving, true, true),
                service_fn(|request: Request<Incoming>| {
                    let read = read.clone();
                    async move {
                        let request = whole(request).await;
                        read.borrow_mut().push(request);
                        Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
                    }
                }),
            )
    );
    for _ in 0..ENDLESS {
        if connection.as_mut().poll(cx).is_ready() {
            return read.take();
        }
    }
    panic!("hyper never ends");
}

async fn whole(request: Request<Incoming>) -> Read1<Asked> {
    let (head, mut body) = request.into_parts();
    let target = match head.uri.query() {
        Some(query) => format!("{}?{query}", head.uri.path()),
        None => head.uri.path().to_owned(),
    };
    let mut read = Read1 {
        start: Asked {
            method: head.method,
            target: target.into_bytes(),
        },
        version: head.version,
        fields: lines(&head.headers),
        body: Vec::new(),
        trailers: Vec::new(),
        end: End::Whole,
    };
    poll_fn(|cx| poll_body(&mut body, &mut read, cx)).await;
    read
}

fn poll_body<S>(body: &mut Incoming, read: &mut Read1<S>, cx: &mut Context<'_>) -> Poll<()> {
    loop {
        match Pin::new(&mut *body).poll_frame(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(None) => return Poll::Ready(()),
            Poll::Ready(Some(Err(_))) => {
                read.end = End::Broken;
                return Poll::Ready(());
            }
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => read.body.extend_from_slice(&data),
                Err(frame) => {
                    read.trailers = frame.trailers_ref().map(lines).unwrap_or_default();
                }
            },
        }
    }
}

fn lines(fields: &HeaderMap) -> Lines {
    fields
        .iter()
        .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
        .collect()
}
