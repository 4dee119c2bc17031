//! Asks the sidecar whether a request is for main or for the canary.
//!
//! The sidecar gets what the upstream will get: method, headers, query, and the body, up to
//! `sidecar.max-body`. Whatever it does (refuses, hangs, drips, dies, answers without end), the
//! request is none the worse: the answer is main within the sidecar's timeout, the upstream gets the
//! request whole, and no more than `max-body` of it is held in memory.

use std::{
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};
use tokio::task::spawn_local;
use tracing::{debug, warn};

use super::{
    body::RequestBody,
    call::Call,
    connection::Connection,
    error::{Chain, RequestError},
    fields::Fields,
    forward,
    message::{Frame, RequestHead},
    upload::Message,
};
use crate::{clock, config::Sidecar, policy::SidecarAnswer};

/// How much of a sidecar's response body is read so that its connection can be used again.
const DRAINED_BYTES: usize = 64 << 10;
/// The first allocation for a body whose length is not known, or is too large to be believed.
const FIRST_ALLOCATION: usize = 16 << 10;

/// The request body as far as it was read for the sidecar.
struct Collected {
    read: Bytes,
    trailers: Option<Fields>,
    /// Whether that is all of it.
    whole: bool,
}

/// Asks. Gives back the answer, and the request body for the upstream.
///
/// # Errors
/// The request body broke off: nobody gets any of it.
pub async fn ask(
    connection: &Rc<Connection>,
    sidecar: &Sidecar,
    head: &RequestHead,
    takes_trailers: bool,
    response_timeout: std::time::Duration,
) -> Result<(SidecarAnswer, RequestBody), RequestError> {
    let Collected {
        read,
        trailers,
        whole,
    } = collect(connection, sidecar).await?;
    let given = read.slice(..read.len().min(sidecar.max_body));
    let partial = !whole || given.len() < read.len();
    let body = match whole {
        true => RequestBody::whole(read, trailers),
        false => RequestBody::streaming(read, connection, response_timeout),
    };
    let message = Message {
        head,
        client: &connection.forwarded_for,
        takes_trailers,
        upgrade: None,
        partial: Some(partial),
    };
    let pool = &connection.worker.pools.sidecar;
    let given = RequestBody::whole(given, None);
    let asked = forward::ask(connection, pool, &sidecar.upstream, &message, given).await;
    let answer = match asked {
        Ok((status, call)) => {
            drain(call, sidecar);
            SidecarAnswer::Status(status.as_u16())
        }
        Err(error) => {
            if let Some(suppressed) = connection.worker.warnings.sidecar.allow() {
                let kind = error.kind.label();
                warn!(kind, error = %Chain(&error), suppressed, "sidecar failed, the request goes to main");
            }
            SidecarAnswer::Failed
        }
    };
    Ok((answer, body))
}

/// Reads the body, up to `max-body`. A client that pauses for longer than the sidecar's timeout is
/// not waited for either: it may be waiting for a response to what it has sent.
async fn collect(connection: &Connection, sidecar: &Sidecar) -> Result<Collected, RequestError> {
    let mut read = BytesMut::new();
    let mut only: Option<Bytes> = None;
    let mut trailers = None;
    let whole = loop {
        let length = read.len() + only.as_ref().map_or(0, Bytes::len);
        if connection.is_body_over() {
            break true;
        }
        if length > sidecar.max_body {
            break false;
        }
        let deadline = clock::now() + sidecar.upstream.client.timeout;
        connection.watch.reading_body(true);
        let frame = poll_fn(|cx| connection.poll_body(cx));
        let frame = connection.watch.within(deadline, frame).await;
        connection.watch.reading_body(false);
        let data = match frame {
            Err(_elapsed) => break false,
            Ok(None) => break true,
            Ok(Some(Err(error))) => {
                debug!(%error, "the request body broke off");
                return Err(error.into());
            }
            Ok(Some(Ok(Frame::Trailers(fields)))) => {
                trailers = Some(fields);
                break true;
            }
            Ok(Some(Ok(Frame::Data(data)))) => data,
        };
        // Most bodies are one piece, which is not copied. Of many small pieces each one would keep the
        // whole buffer alive that it was read into; copied they take what they are.
        if length == 0 {
            only = Some(data);
            continue;
        }
        if let Some(first) = only.take() {
            let expected = connection.body_length().unwrap_or(0) as usize;
            read.reserve(first.len() + data.len() + expected.min(FIRST_ALLOCATION));
            read.extend_from_slice(&first);
        }
        read.extend_from_slice(&data);
    };
    Ok(Collected {
        read: only.unwrap_or_else(|| read.freeze()),
        trailers,
        whole,
    })
}

/// Reads what the sidecar says beyond its status, so that the connection can be used again; not for
/// ever, and nobody waits for it.
fn drain(mut call: Box<Call>, sidecar: &Sidecar) {
    // Most have said it already.
    let mut cx = Context::from_waker(Waker::noop());
    while let Poll::Ready(frame) = call.poll_frame(&mut cx) {
        if !matches!(frame, Some(Ok(Frame::Data(_)))) || call.is_over() {
            return;
        }
    }
    let timeout = sidecar.upstream.client.timeout;
    spawn_local(async move {
        let mut drained = 0;
        let read_all = async {
            while let Some(Ok(Frame::Data(data))) = poll_fn(|cx| call.poll_frame(cx)).await {
                drained += data.len();
                if drained > DRAINED_BYTES {
                    break;
                }
            }
        };
        let _dropped_when_late = tokio::time::timeout(timeout, read_all).await;
    });
}
