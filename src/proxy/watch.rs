//! What a client connection waits for, and since when.
//!
//! Instead of a timer for each wait, the places where waiting begins and ends leave a note here, and
//! the worker looks at all notes a few times a second ([`Watch::check`]). A request thus pays a few
//! stores for all of its timeouts together; a timeout comes late by a tick at most.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::pin,
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use crate::clock;

/// Where a connection stands in its cycle of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Accepted, nothing received yet.
    Fresh,
    /// Between two requests.
    Idle,
    /// Part of a request head has arrived.
    Head,
    /// A request is being worked on; no response has begun.
    Request,
    /// A response has begun.
    Response,
    /// The response was written, but some of the request is still to be read.
    Finishing,
}

/// What the connection's task is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Wait for no further request.
    Drain,
    /// The client let us wait for too long: close.
    Expire,
    /// The process ends: close whatever is going on.
    Cut,
    /// See whether the client has left: then nothing that is going on is of use to anybody.
    Look,
}

/// The limits on waiting for a client.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For a request head to arrive, and for a request body to make progress.
    pub read: Duration,
    /// For a client to take some of what is sent to it, where that is ours to notice.
    pub write: Duration,
    /// For the next request.
    pub idle: Duration,
    /// How long before the moment that is noted it may really have been: see [`clock::recent`].
    pub blur: Duration,
}

/// How long a drain leaves a connection open on which a request may be on its way to us.
const DRAIN_GRACE: Duration = Duration::from_millis(100);

/// How often it is looked whether a client that waits is still there.
const LOOK: Duration = Duration::from_millis(500);

/// The notes of one connection.
#[derive(Debug)]
pub struct Watch {
    stage: Cell<Stage>,
    since: Cell<Instant>,
    body_blocked: Cell<Option<Instant>>,
    write_blocked: Cell<Option<Instant>>,
    uploaded: Cell<Option<Instant>>,
    connected: Cell<Option<Instant>>,
    deadline: Cell<Option<Instant>>,
    /// What it, or the last one, was put off to.
    renewed: Cell<Option<Instant>>,
    deadline_paused: Cell<bool>,
    deadline_passed: Cell<bool>,
    looked: Cell<Instant>,
    order: Cell<Option<Order>>,
    drain_ordered: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// A [`Watch::within`] that took too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elapsed;

impl Watch {
    /// For a connection that was just accepted.
    pub fn new() -> Watch {
        Watch {
            stage: Cell::new(Stage::Fresh),
            since: Cell::new(clock::now()),
            body_blocked: Cell::new(None),
            write_blocked: Cell::new(None),
            uploaded: Cell::new(None),
            connected: Cell::new(None),
            deadline: Cell::new(None),
            renewed: Cell::new(None),
            deadline_paused: Cell::new(false),
            deadline_passed: Cell::new(false),
            looked: Cell::new(clock::now()),
            order: Cell::new(None),
            drain_ordered: Cell::new(false),
            waker: RefCell::new(None),
        }
    }

    /// The stage at this moment.
    pub fn stage(&self) -> Stage {
        self.stage.get()
    }

    /// Notes a new stage.
    pub fn enter(&self, stage: Stage, now: Instant) {
        self.stage.set(stage);
        self.since.set(now);
    }

    /// Bytes of a request came in.
    pub fn received(&self) {
        if matches!(self.stage.get(), Stage::Fresh | Stage::Idle) {
            self.enter(Stage::Head, clock::recent());
        }
    }

    /// The client sent some of a request body, or (`blocked`) we wait for it.
    pub fn reading_body(&self, blocked: bool) {
        note(&self.body_blocked, blocked);
    }

    /// Some of a body came at `then`, though not enough to be read yet.
    pub fn body_came(&self, then: Instant) {
        if let Some(since) = self.body_blocked.get() {
            self.body_blocked.set(Some(since.max(then)));
        }
    }

    /// The client took some of a response, or (`blocked`) lets us wait with the rest. Of a TCP connection
    /// that is the kernel's to notice; a stream can be silent where its connection is not.
    pub fn writing(&self, blocked: bool) {
        note(&self.write_blocked, blocked);
    }

    /// A request body on its way to an upstream moved on, and its response has `timeout` from here
    /// on; or (`blocked`) the client has nothing for us, and no upstream can be blamed for waiting.
    pub fn uploading(&self, blocked: bool, timeout: Duration) {
        self.reading_body(blocked);
        self.deadline_paused.set(blocked);
        if !blocked {
            self.upload_moved(timeout);
        }
    }

    /// A request body on its way to an upstream moved on: its response has `timeout` from here on.
    pub fn upload_moved(&self, timeout: Duration) {
        if self.deadline.get().is_some() {
            let renewed = Some(clock::recent() + timeout);
            self.deadline.set(renewed);
            self.renewed.set(renewed);
        }
    }

    /// Until when a request has time that is sent once more: as long as it had, which was up to `deadline` if
    /// its body has not moved on meanwhile. While its client pauses, no upstream is late.
    pub fn renewed(&self, deadline: Instant, timeout: Duration) -> Instant {
        let renewed = match self.deadline_paused.get() {
            true => Some(clock::recent() + timeout),
            false => self.renewed.get(),
        };
        renewed.map_or(deadline, |renewed| renewed.max(deadline))
    }

    /// The request body is over, one way or another.
    pub fn upload_over(&self) {
        self.reading_body(false);
        self.deadline_paused.set(false);
        self.uploaded.set(Some(clock::now()));
    }

    /// A new connection to an upstream has been made.
    pub fn connected_now(&self) {
        self.connected.set(Some(clock::now()));
    }

    /// When the last one was.
    pub fn connected(&self) -> Option<Instant> {
        self.connected.get()
    }

    /// When the last request body that was streamed was over.
    pub fn uploaded(&self) -> Option<Instant> {
        self.uploaded.get()
    }

    /// Awaits `future` until `deadline`; a future that is ready wins. One at a time per connection.
    ///
    /// # Errors
    /// [`Elapsed`], at most a tick after the deadline.
    pub async fn within<F: Future>(
        &self,
        deadline: Instant,
        future: F,
    ) -> Result<F::Output, Elapsed> {
        let mut future = pin!(future);
        self.deadline_passed.set(false);
        self.deadline_paused.set(false);
        self.renewed.set(None);
        self.deadline.set(Some(deadline));
        let _clear = ClearOnDrop(&self.deadline);
        poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(output));
            }
            match self.deadline_passed.get() {
                true => Poll::Ready(Err(Elapsed)),
                false => Poll::Pending,
            }
        })
        .await
    }

    /// Called by the connection's task whenever it runs.
    pub fn orders(&self, waker: &Waker) -> Option<Order> {
        let mut slot = self.waker.borrow_mut();
        if !slot.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
        self.order.take()
    }

    /// Tells the connection's task what to do, whatever is going on.
    pub fn give(&self, order: Order) {
        self.order.set(Some(order));
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    /// Called by the worker a few times a second: wakes the connection's task where something is
    /// overdue. `draining` says since when the worker drains.
    pub fn check(&self, now: Instant, patience: &Patience, draining: Option<Instant>) {
        let late = |since: Instant, limit: Duration| {
            now.saturating_duration_since(since) >= limit + patience.blur
        };
        let since = self.since.get();
        let stage = self.stage.get();
        let stalled = || {
            let blocked = self.body_blocked.get();
            blocked.is_some_and(|blocked| late(blocked.max(since), patience.read))
        };
        let expired = match stage {
            Stage::Fresh | Stage::Head => late(since, patience.read),
            Stage::Idle => late(since, patience.idle),
            Stage::Request | Stage::Finishing => stalled(),
            // A body that is late once the response has begun keeps nobody waiting.
            Stage::Response => {
                let blocked = self.write_blocked.get();
                blocked.is_some_and(|blocked| late(blocked, patience.write))
            }
        };

        let drained = draining.is_some_and(|started| match stage {
            // Their responses say that the connection closes, as far as they have not begun.
            Stage::Request | Stage::Response | Stage::Finishing | Stage::Head => false,
            Stage::Fresh | Stage::Idle => late(started.max(since), DRAIN_GRACE),
        });
        let overdue = !self.deadline_paused.get()
            && self
                .deadline
                .get()
                .is_some_and(|deadline| deadline + patience.blur <= now);
        if overdue {
            self.deadline_passed.set(true);
        }
        if expired {
            self.order.set(Some(Order::Expire));
        } else if drained && !self.drain_ordered.replace(true) {
            self.order.set(Some(Order::Drain));
        } else if matches!(stage, Stage::Request | Stage::Response)
            && late(self.looked.get().max(since), LOOK)
        {
            self.looked.set(now);
            self.order.set(Some(Order::Look));
        } else if !overdue {
            return;
        }
        self.wake();
    }
}

impl Default for Watch {
    fn default() -> Self {
        Watch::new()
    }
}

/// Keeps the moment at which a wait began.
fn note(since: &Cell<Option<Instant>>, blocked: bool) {
    match (blocked, since.get()) {
        (true, None) => since.set(Some(clock::recent())),
        (false, Some(_)) => since.set(None),
        _ => {}
    }
}

struct ClearOnDrop<'a>(&'a Cell<Option<Instant>>);

impl Drop for ClearOnDrop<'_> {
    fn drop(&mut self) {
        self.0.set(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience {
        read: Duration::from_secs(5),
        write: Duration::from_secs(15),
        idle: Duration::from_secs(120),
        blur: Duration::ZERO,
    };

    fn after(watch: &Watch, seconds: u64, draining: Option<Instant>) -> Option<Order> {
        let now = clock::now() + Duration::from_secs(seconds);
        watch.check(now, &PATIENCE, draining);
        // That the client is looked for has a test of its own.
        watch
            .orders(Waker::noop())
            .filter(|order| *order != Order::Look)
    }

    #[test]
    fn a_client_that_waits_is_looked_for_now_and_then() {
        for (stage, looked_for) in [
            (Stage::Fresh, false),
            (Stage::Idle, false),
            (Stage::Head, false),
            (Stage::Request, true),
            (Stage::Response, true),
            (Stage::Finishing, false),
        ] {
            let watch = Watch::new();
            let start = clock::now();
            watch.enter(stage, start);
            let look = |after: Duration| {
                watch.check(start + after, &PATIENCE, None);
                watch.orders(Waker::noop()) == Some(Order::Look)
            };
            assert!(!look(LOOK / 2), "{stage:?}");
            assert_eq!(look(LOOK * 2), looked_for, "{stage:?}");
            assert!(!look(LOOK * 2 + LOOK / 2), "{stage:?}");
            assert_eq!(look(LOOK * 3), looked_for, "{stage:?}");
        }
    }

    #[test]
    fn each_stage_has_its_own_limit() {
        for (stage, in_time, late) in [
            (Stage::Fresh, 4, 6),
            (Stage::Head, 4, 6),
            (Stage::Idle, 119, 121),
        ] {
            let watch = Watch::new();
            watch.enter(stage, clock::now());
            assert_eq!(after(&watch, in_time, None), None, "{stage:?}");
            assert_eq!(after(&watch, late, None), Some(Order::Expire), "{stage:?}");
        }
        for stage in [Stage::Request, Stage::Response] {
            let watch = Watch::new();
            watch.enter(stage, clock::now());
            assert_eq!(after(&watch, 100_000, None), None, "{stage:?}");
        }
    }

    #[test]
    fn a_stalled_upload_expires_before_a_response_only() {
        let watch = Watch::new();
        watch.enter(Stage::Request, clock::now());
        watch.reading_body(true);
        assert_eq!(after(&watch, 4, None), None);
        assert_eq!(after(&watch, 6, None), Some(Order::Expire));
        watch.reading_body(false);
        assert_eq!(after(&watch, 6, None), None);
        watch.reading_body(true);
        watch.enter(Stage::Response, clock::now());
        assert_eq!(after(&watch, 6, None), None);
    }

    #[tokio::test]
    async fn while_the_client_pauses_its_upload_no_upstream_is_late() {
        let watch = Watch::new();
        let second = Duration::from_secs(1);
        let waiting = watch.within(clock::now() + second, std::future::pending::<()>());
        let mut waiting = pin!(waiting);
        let late = |watch: &Watch| {
            watch.check(clock::now() + 2 * second, &PATIENCE, None);
        };
        let mut cx = std::task::Context::from_waker(Waker::noop());
        assert!(waiting.as_mut().poll(&mut cx).is_pending());
        watch.uploading(true, second);
        late(&watch);
        assert!(waiting.as_mut().poll(&mut cx).is_pending());
        watch.uploading(false, second);
        late(&watch);
        assert_eq!(waiting.as_mut().poll(&mut cx), Poll::Ready(Err(Elapsed)));
    }

    #[test]
    fn what_is_left_of_an_upload_expires_when_the_response_is_written() {
        let watch = Watch::new();
        watch.enter(Stage::Finishing, clock::now());
        watch.reading_body(true);
        assert_eq!(after(&watch, 4, None), None);
        assert_eq!(after(&watch, 6, None), Some(Order::Expire));
    }

    #[test]
    fn a_drain_is_ordered_once_and_waits_for_a_head_on_its_way() {
        let draining = Some(clock::now());
        let watch = Watch::new();
        watch.enter(Stage::Head, clock::now());
        assert_eq!(after(&watch, 1, draining), None);
        for stage in [Stage::Request, Stage::Response, Stage::Finishing] {
            watch.enter(stage, clock::now());
            assert_eq!(after(&watch, 1, draining), None, "{stage:?}");
        }
        watch.enter(Stage::Idle, clock::now() + Duration::from_secs(1));
        assert_eq!(after(&watch, 1, draining), None);
        assert_eq!(after(&watch, 2, draining), Some(Order::Drain));
        assert_eq!(after(&watch, 3, draining), None);

        let idle = Watch::new();
        idle.enter(Stage::Idle, clock::now());
        assert_eq!(after(&idle, 0, draining), None);
        assert_eq!(after(&idle, 1, draining), Some(Order::Drain));
    }
}
