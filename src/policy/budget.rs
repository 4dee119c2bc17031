//! How many requests may be sent a second time: a share of those that were sent at all, so that an
//! upstream that fails does not double the load of the other one (Google, *Site Reliability
//! Engineering*, chapter 21, "retry budgets").

use std::time::Duration;

use super::{breaker::Rate, window::Window};

/// How far back it looks.
const LENGTH: Duration = Duration::from_secs(10);
/// So many are always allowed: a share of little is nothing.
const ALWAYS: u64 = 3;

/// The requests of the last while, and how many of them were sent again.
#[derive(Debug, Clone)]
pub struct Budget {
    share: Rate,
    window: Window,
}

impl Budget {
    /// For a share in hundredths of a percent; 0 allows only what is always allowed.
    pub fn new(share: Rate) -> Budget {
        Budget {
            share,
            window: Window::new(LENGTH),
        }
    }

    /// Goes on with another share.
    pub fn set_share(&mut self, share: Rate) {
        self.share = share;
    }

    /// A request was answered, or will not be, and `again` says whether it is to be sent again. Whether it
    /// may be. Requests count when they end, so with a share of everything none is ever refused, however
    /// long they took.
    pub fn ask(&mut self, again: bool, now: Duration) -> bool {
        let counts = self.window.counts(now);
        let (requests, spent) = (counts.calls + 1, counts.failures);
        let allowed = spent < ALWAYS || self.share.has_room(spent + 1, requests);
        self.window.record(now, again && allowed, false);
        again && allowed
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn with_a_share_of_everything_none_is_refused() {
        let mut budget = Budget::new(Rate(10_000));
        for i in 0..10_000 {
            assert!(budget.ask(true, Duration::from_millis(i * 7)));
        }
    }

    #[test]
    fn with_no_share_three_in_ten_seconds_are_allowed() {
        let mut budget = Budget::new(Rate(0));
        let allowed = |budget: &mut Budget, second| {
            (0..100)
                .filter(|_| budget.ask(true, Duration::from_secs(second)))
                .count()
        };
        assert_eq!(allowed(&mut budget, 0), 3);
        assert_eq!(allowed(&mut budget, 8), 0);
        assert_eq!(allowed(&mut budget, 10), 3);
    }

    proptest! {
        /// Whatever fails and when: in each window of it the share is kept.
        #[test]
        fn the_share_is_never_exceeded(
            share in 0u32..=10_000,
            requests in proptest::collection::vec((0u64..500, any::<bool>()), 1..400),
        ) {
            let mut budget = Budget::new(Rate(share));
            let mut log = Vec::new();
            let mut now = 0;
            for (pause, fails) in requests {
                now += pause;
                let again = budget.ask(fails, Duration::from_millis(now));
                prop_assert!(!again || fails);
                log.push((now / 1_000, again));
                let lately = log.iter().filter(|(at, _)| at + 10 > now / 1_000);
                let (all, spent) = lately.fold((0u64, 0u64), |(all, spent), (_, again)| {
                    (all + 1, spent + u64::from(*again))
                });
                // What has left the window may have been what the later ones were a share of.
                if again {
                    prop_assert!(spent <= 3 || spent * 10_000 <= u64::from(share) * all);
                }
            }
        }
    }
}
