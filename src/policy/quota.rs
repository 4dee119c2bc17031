//! The two budgets of the canary, as values with pure transitions.
//!
//! [`crate::state::admission`] makes the transitions atomic. The invariant that both keep together:
//! of the requests that the router chose to send, no more than the limit can ever end as an error,
//! because each holds a reservation for the error that it may become.

use super::Outcome;

/// Errors that the canary has given, and errors that requests in flight may still become.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ErrorQuota {
    /// Charged errors. Saturates.
    pub errors: u32,
    /// Requests in flight that hold a reservation.
    pub reserved: u32,
}

impl ErrorQuota {
    /// Reserves one error for a request that is about to go out, or refuses it: it is admitted only
    /// while `errors + reserved < limit`.
    #[must_use]
    pub fn reserve(self, limit: u32) -> Option<ErrorQuota> {
        if self.claimed() >= u64::from(limit) {
            return None;
        }
        Some(ErrorQuota {
            reserved: self.reserved + 1,
            ..self
        })
    }

    /// Ends a request that [`reserve`](ErrorQuota::reserve)d: a failure turns the reservation into
    /// an error, anything else gives it back.
    #[must_use]
    pub fn settle(self, outcome: Outcome) -> ErrorQuota {
        let released = ErrorQuota {
            reserved: self.reserved.saturating_sub(1),
            ..self
        };
        released.charge(outcome)
    }

    /// Ends a request that reserved nothing (`X-Canary: true`): its failure is charged all the same.
    #[must_use]
    pub fn charge(self, outcome: Outcome) -> ErrorQuota {
        match outcome {
            Outcome::Failure => ErrorQuota {
                errors: self.errors.saturating_add(1),
                ..self
            },
            Outcome::Success | Outcome::Ignored => self,
        }
    }

    /// Whether the limit is used up for good: no end of a request in flight can free any of it.
    pub fn spent(self, limit: u32) -> bool {
        self.errors >= limit
    }

    /// How many more requests could be admitted now.
    pub fn remaining(self, limit: u32) -> u32 {
        u64::from(limit)
            .saturating_sub(self.claimed())
            .try_into()
            .unwrap_or(u32::MAX)
    }

    /// Errors, and reservations that may become some.
    pub fn claimed(self) -> u64 {
        u64::from(self.errors) + u64::from(self.reserved)
    }
}

/// Takes one request token from `taken` of `limit`; tokens are never given back.
#[must_use]
pub fn take_token(taken: u64, limit: u64) -> Option<u64> {
    (taken < limit).then(|| taken + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every sequence of twelve operations (admit, end one with each outcome, fail a forced one), for
    /// every small limit: router-chosen errors never exceed the limit, and no reservation is lost.
    #[test]
    fn enumerated_no_sequence_of_operations_breaks_the_promise() {
        #[derive(Clone, Copy)]
        struct World {
            quota: ErrorQuota,
            in_flight: u32,
            chosen_errors: u32,
            forced_errors: u32,
        }
        fn explore(world: World, limit: u32, depth: u32, visited: &mut u64) {
            *visited += 1;
            assert!(world.chosen_errors <= limit);
            assert_eq!(world.quota.reserved, world.in_flight);
            assert_eq!(
                world.quota.errors,
                world.chosen_errors + world.forced_errors
            );
            if depth == 0 {
                return;
            }
            match world.quota.reserve(limit) {
                Some(quota) => explore(
                    World {
                        quota,
                        in_flight: world.in_flight + 1,
                        ..world
                    },
                    limit,
                    depth - 1,
                    visited,
                ),
                None => assert!(world.quota.errors + world.quota.reserved >= limit),
            }
            if world.in_flight > 0 {
                for outcome in Outcome::ALL {
                    let next = World {
                        quota: world.quota.settle(outcome),
                        in_flight: world.in_flight - 1,
                        chosen_errors: world.chosen_errors + u32::from(outcome == Outcome::Failure),
                        ..world
                    };
                    explore(next, limit, depth - 1, visited);
                }
            }
            let forced = World {
                quota: world.quota.charge(Outcome::Failure),
                forced_errors: world.forced_errors + 1,
                ..world
            };
            explore(forced, limit, depth - 1, visited);
        }
        let mut visited = 0;
        for limit in 1..=3 {
            let start = World {
                quota: ErrorQuota::default(),
                in_flight: 0,
                chosen_errors: 0,
                forced_errors: 0,
            };
            explore(start, limit, 12, &mut visited);
        }
        assert!(visited > 100_000, "the enumeration did not run: {visited}");
    }

    #[test]
    fn spent_counts_errors_only_and_remaining_counts_reservations_too() {
        let quota = ErrorQuota {
            errors: 1,
            reserved: 2,
        };
        assert!(!quota.spent(2));
        assert!(quota.spent(1));
        assert_eq!(quota.remaining(5), 2);
        assert_eq!(quota.remaining(3), 0);
        assert_eq!(quota.remaining(1), 0);
        assert_eq!(quota.reserve(3), None);
    }

    #[test]
    fn the_largest_numbers_do_not_wrap() {
        let full = ErrorQuota {
            errors: u32::MAX,
            reserved: 0,
        };
        assert_eq!(full.charge(Outcome::Failure), full);
        assert_eq!(full.reserve(u32::MAX), None);
        let nearly = ErrorQuota {
            errors: u32::MAX - 1,
            reserved: 0,
        };
        assert_eq!(
            nearly.reserve(u32::MAX).map(|q| q.remaining(u32::MAX)),
            Some(0)
        );
    }

    #[test]
    fn exactly_the_limit_of_tokens_can_be_taken() {
        let mut taken = 0;
        let mut granted = 0;
        for _ in 0..10 {
            if let Some(next) = take_token(taken, 4) {
                taken = next;
                granted += 1;
            }
        }
        assert_eq!(granted, 4);
        assert_eq!(take_token(0, 0), None);
    }
}
