//! Connections that are being made, for more requests than the one that makes them.
//!
//! Requests that come together at the beginning, or when a connection has ended, share what the first of them
//! makes. No more wait for one than it is expected to take; those beyond make another, at the same time.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Instant,
};

use tokio::{sync::Notify, time::timeout_at};

use crate::{policy::FailureKind, proxy::error::UpstreamError};

/// The connections of one pool that are being made.
#[derive(Default)]
pub struct Openings(RefCell<Vec<Rc<State>>>);

struct State {
    /// How many more may wait for it.
    seats: Cell<usize>,
    over: Cell<bool>,
    ended: Notify,
}

/// A connection is being made as long as this lives.
pub struct Opening(Rc<State>);

/// A seat among those who wait for one.
pub struct Seat(Rc<State>);

impl Openings {
    /// Begins to make one that is expected to take so many requests at a time, 1 or more.
    pub fn begin(&self, capacity: usize) -> Opening {
        let state = Rc::new(State {
            seats: Cell::new(capacity.saturating_sub(1)),
            over: Cell::new(false),
            ended: Notify::new(),
        });
        let mut all = self.0.borrow_mut();
        all.retain(|state| !state.over.get());
        all.push(Rc::clone(&state));
        Opening(state)
    }

    /// A seat, if there is one.
    pub fn join(&self) -> Option<Seat> {
        let all = self.0.borrow();
        let open = |state: &&Rc<State>| !state.over.get() && state.seats.get() > 0;
        let state = all.iter().find(open)?;
        state.seats.set(state.seats.get() - 1);
        Some(Seat(Rc::clone(state)))
    }
}

impl Seat {
    /// Waits until the connection is there, or has failed.
    ///
    /// # Errors
    /// It was not by `deadline`.
    pub async fn ended(self, deadline: Instant) -> Result<(), UpstreamError> {
        let ended = self.0.ended.notified();
        if self.0.over.get() {
            return Ok(());
        }
        let in_time = timeout_at(deadline.into(), ended).await;
        in_time.map_err(|_elapsed| UpstreamError::new(FailureKind::ConnectTimeout))
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.over.set(true);
        self.0.ended.notify_waiters();
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.seats.set(self.0.seats.get() + 1);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future,
        pin::pin,
        task::{Context, Poll, Waker},
        time::Duration,
    };

    use super::*;
    use crate::clock;

    #[tokio::test]
    async fn no_more_wait_than_it_takes_and_all_go_on_when_it_is_there() {
        let openings = Openings::default();
        assert!(openings.join().is_none());
        let opening = openings.begin(3);
        let (first, second) = (openings.join().unwrap(), openings.join().unwrap());
        assert!(openings.join().is_none());
        drop(first);
        let first = openings.join().unwrap();
        let deadline = clock::now() + Duration::from_secs(60);
        let mut waiting = pin!(first.ended(deadline));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(waiting.as_mut().poll(&mut cx).is_pending());
        drop(opening);
        assert!(matches!(waiting.poll(&mut cx), Poll::Ready(Ok(()))));
        assert!(second.ended(deadline).await.is_ok());
        // What is over takes nobody.
        assert!(openings.join().is_none());
        assert!(openings.begin(1).0.seats.get() == 0);
    }

    #[tokio::test]
    async fn nobody_waits_beyond_his_time() {
        let openings = Openings::default();
        let _opening = openings.begin(2);
        let late = openings.join().unwrap().ended(clock::now()).await;
        assert_eq!(late.unwrap_err().kind, FailureKind::ConnectTimeout);
    }
}
