//! Who a request is from: a connection that speaks HTTP/1, or a stream of one that speaks HTTP/2. What
//! the pipeline wants of either.

use std::{
    rc::Rc,
    task::{Context, Poll},
};

use super::{
    connection::{BrokenBody, Connection},
    fields::{Known, KnownSet},
    forwarded::Peer,
    headers,
    http2::stream::Stream,
    message::{Frame, ResponseHead},
    notes::Notes,
    watch::Watch,
    worker::Worker,
};

/// The client of one request. Cheap to clone.
#[derive(Clone)]
pub enum Client {
    /// One request at a time.
    Http1(Rc<Connection>),
    /// One request.
    Http2(Rc<Stream>),
}

impl Client {
    /// The worker that serves it.
    pub fn worker(&self) -> &Rc<Worker> {
        match self {
            Client::Http1(connection) => &connection.worker,
            Client::Http2(stream) => &stream.worker,
        }
    }

    /// What it waits for.
    pub fn watch(&self) -> &Watch {
        match self {
            Client::Http1(connection) => &connection.watch,
            Client::Http2(stream) => &stream.watch,
        }
    }

    /// What is to be told of it.
    pub fn notes(&self) -> &Notes {
        match self {
            Client::Http1(connection) => &connection.notes,
            Client::Http2(stream) => &stream.notes,
        }
    }

    /// Who is at the other end of its connection.
    pub fn peer(&self) -> &Peer {
        match self {
            Client::Http1(connection) => &connection.peer,
            Client::Http2(stream) => &stream.peer,
        }
    }

    /// The response to the current request is to set this cookie, whoever gives it.
    pub fn set_cookie(&self, cookie: Option<Box<[u8]>>) {
        match self {
            Client::Http1(connection) => connection.cookie.set(cookie),
            Client::Http2(stream) => stream.cookie.set(cookie),
        }
    }

    /// The next piece of the request body. A client that waits to be told to send it is told.
    pub fn poll_body(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BrokenBody>>> {
        let polled = match self {
            Client::Http1(connection) => connection.poll_body(cx),
            Client::Http2(stream) => stream.poll_body(cx),
        };
        if let Poll::Ready(Some(Ok(Frame::Data(data)))) = &polled {
            let length = data.len() as u64;
            self.notes().add(|entry| entry.request_bytes += length);
        }
        polled
    }

    /// Whether the request was read to its end.
    pub fn is_body_over(&self) -> bool {
        match self {
            Client::Http1(connection) => connection.is_body_over(),
            Client::Http2(stream) => stream.is_body_over(),
        }
    }

    /// How much of the request body is still to be read, where that is known.
    pub fn body_length(&self) -> Option<u64> {
        match self {
            Client::Http1(connection) => connection.body_length(),
            Client::Http2(stream) => stream.body_length(),
        }
    }

    /// Whoever gets the request body does not keep up. HTTP/2 need not be told: its client may send
    /// more only when we have taken what there is.
    pub fn slow_down(&self) {
        match self {
            Client::Http1(connection) => connection.slow_down(),
            Client::Http2(_) => {}
        }
    }

    /// Passes an informational response on (RFC 9110 section 15.2).
    pub fn inform(&self, mut head: ResponseHead, cx: &mut Context<'_>) {
        headers::strip_hop_by_hop(&mut head.headers);
        // RFC 9110 section 8.6.
        head.headers.remove(KnownSet::of(&[Known::ContentLength]));
        match self {
            Client::Http1(connection) => {
                connection.put_informational(&head);
                // What cannot be sent now is sent before the final response.
                let _later = connection.poll_flush(cx);
            }
            Client::Http2(stream) => stream.inform(&head),
        }
    }
}
