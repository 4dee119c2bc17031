//! What a dashboard is told as it happens, as Server-Sent Events (HTML Living Standard, section 9.2): first all
//! that there is, then each second what is new.
//!
//! Nobody who watches holds anybody up: who does not keep up is let go, and a page connects again by itself.

use std::{cell::RefCell, convert::Infallible};

use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::broadcast::{self, error::RecvError};

use super::history::{COLUMNS, History, Row};

/// How many may watch at a time: the others of the port's places are for who scrapes, probes and commands.
const MOST_VIEWERS: usize = 32;
/// How many seconds who watches may be behind.
const BEHIND: usize = 8;

/// Those who watch, and what they have to know.
pub struct Events {
    /// Differs from process to process.
    instance: String,
    history: RefCell<History>,
    viewers: RefCell<broadcast::Sender<Bytes>>,
}

/// What everybody is told.
pub struct Now {
    /// Unix milliseconds.
    pub wall: u64,
    /// In seconds.
    pub uptime: f64,
    /// As `/status`, without figures.
    pub status: Value,
}

impl Default for Events {
    /// Nothing has happened yet.
    fn default() -> Events {
        Events {
            instance: format!("{:016x}", fastrand::u64(..)),
            history: RefCell::default(),
            viewers: RefCell::new(broadcast::channel(BEHIND).0),
        }
    }
}

impl Events {
    /// A second is over. `now` is asked for where somebody wants to know.
    pub fn second(&self, row: Row, now: impl FnOnce() -> Now) {
        self.history.borrow_mut().push(row);
        let viewers = self.viewers.borrow();
        if viewers.receiver_count() == 0 {
            return;
        }
        let Now {
            wall,
            uptime,
            status,
        } = now();
        let tick = json!({"now": wall, "uptime": uptime, "row": row.to_json(), "status": status});
        // They may have left meanwhile.
        let _viewers = viewers.send(event("tick", &tick));
    }

    /// Lets all go who watch.
    pub fn end(&self) {
        self.viewers.replace(broadcast::channel(BEHIND).0);
    }

    /// What somebody is told who begins to watch; `None` where too many do. `changes` says who may change
    /// anything.
    pub fn watch(
        &self,
        changes: &str,
        now: Now,
    ) -> Option<impl Stream<Item = Result<Frame<Bytes>, Infallible>> + use<>> {
        let viewers = self.viewers.borrow();
        if viewers.receiver_count() >= MOST_VIEWERS {
            return None;
        }
        let seconds = viewers.subscribe();
        let hello = json!({
            "instance": self.instance,
            "now": now.wall,
            "uptime": now.uptime,
            "changes": changes,
            "columns": COLUMNS,
            "rows": self.history.borrow().to_json(),
            "status": now.status,
        });
        let first = [
            Bytes::from_static(b"retry: 1000\n\n"),
            event("hello", &hello),
        ];
        let then = stream::unfold(seconds, |mut seconds| async {
            match seconds.recv().await {
                Ok(tick) => Some((tick, seconds)),
                Err(RecvError::Closed | RecvError::Lagged(_)) => None,
            }
        });
        let all = stream::iter(first).chain(then);
        Some(all.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// JSON has no line break in it, so it is one line.
fn event(name: &str, data: &Value) -> Bytes {
    format!("event: {name}\ndata: {data}\n\n").into()
}
