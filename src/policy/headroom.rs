//! How far a count that is on disk may run ahead of what it counts.
//!
//! A count that must survive a crash is written before it is reached: up to the *ceiling* everything
//! counts as used by a process that finds the file. Low ceilings lose little when that happens, high ones
//! hold nobody up meanwhile. So the ceiling follows what happens: it leaves room for as much as was used in
//! the last second, twice as much each time that it was hit, and comes down when it is calm.

use std::time::Duration;

/// How far back it looks, in slots of a tenth of a second.
const SLOTS: usize = 10;
const SLOT: Duration = Duration::from_millis(100);

/// Decides on the ceiling of one count.
#[derive(Debug, Clone)]
pub struct Headroom {
    limit: u64,
    floor: u64,
    /// Grows when the ceiling was hit.
    burst: u64,
    /// The most that was used, in each of the last slots.
    peaks: [u64; SLOTS],
    newest: u64,
    ceiling: u64,
}

impl Headroom {
    /// For a count that may not exceed `limit`, and is at `used` now.
    pub fn new(limit: u64, used: u64) -> Headroom {
        // Where the limit is small, little is given away by a crash.
        let floor = (limit / 64).clamp(1, 64);
        Headroom {
            limit,
            floor,
            burst: floor,
            peaks: [used; SLOTS],
            newest: 0,
            ceiling: used.saturating_add(floor).min(limit),
        }
    }

    /// The ceiling as it was decided last.
    pub fn ceiling(&self) -> u64 {
        self.ceiling
    }

    /// The count was set back to `used`: what it was before says nothing any more.
    pub fn restart(&mut self, used: u64) {
        *self = Headroom {
            newest: self.newest,
            ..Headroom::new(self.limit, used)
        };
    }

    /// From now on the count may not exceed `limit`; it is at `used` now.
    pub fn set_limit(&mut self, limit: u64, used: u64) {
        if limit != self.limit {
            self.limit = limit;
            self.restart(used);
        }
    }

    /// Decides anew: `used` is the count at `now`, `hit` says whether somebody was refused because of the
    /// ceiling since it was asked last. To be asked several times a second.
    pub fn next(&mut self, used: u64, hit: bool, now: Duration) -> u64 {
        self.advance(used, now);
        if hit {
            self.burst = self.burst.saturating_mul(2);
        }
        let peak = self.peaks.iter().copied().max().unwrap_or(used).max(used);
        let oldest = self.peaks[((self.newest + 1) % SLOTS as u64) as usize];
        let ahead = self.burst.max(used.saturating_sub(oldest));
        let wanted = peak.saturating_add(ahead);
        // What is near enough stays: each change is a file that is written.
        let near =
            peak.saturating_add(ahead.div_ceil(2))..=peak.saturating_add(ahead.saturating_mul(2));
        if hit || !near.contains(&self.ceiling) {
            self.ceiling = wanted.min(self.limit).max(used);
        }
        self.ceiling
    }

    fn advance(&mut self, used: u64, now: Duration) {
        let number = (now.as_nanos() / SLOT.as_nanos()) as u64;
        let passed = number.saturating_sub(self.newest);
        for step in 1..=passed.min(SLOTS as u64) {
            let slot = ((self.newest + step) % SLOTS as u64) as usize;
            self.peaks[slot] = used;
            if slot == 0 {
                // About once a second.
                self.burst = (self.burst / 2).max(self.floor);
            }
        }
        self.newest = self.newest.max(number);
        let slot = &mut self.peaks[(self.newest % SLOTS as u64) as usize];
        *slot = used.max(*slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A count that each tick of 20 ms wants to rise by `demand`, for so many ticks; what it could not.
    fn run(headroom: &mut Headroom, used: &mut u64, start_ms: u64, demand: &[u64]) -> u64 {
        let mut refused = 0;
        for (tick, demand) in demand.iter().enumerate() {
            let given = (*demand).min(headroom.ceiling() - *used);
            *used += given;
            refused += demand - given;
            let now = Duration::from_millis(start_ms + 20 * (tick as u64 + 1));
            let ceiling = headroom.next(*used, given < *demand, now);
            assert!(ceiling >= *used && ceiling <= headroom.limit.max(*used));
        }
        refused
    }

    #[test]
    fn steady_demand_is_held_up_at_first_only() {
        for demand in [1, 10, 1_000] {
            let mut headroom = Headroom::new(u64::MAX / 4, 0);
            let mut used = 0;
            run(&mut headroom, &mut used, 0, &[demand; 50]);
            let refused = run(&mut headroom, &mut used, 1_000, &[demand; 500]);
            assert_eq!(refused, 0, "{demand}");
            let lost = headroom.ceiling() - used;
            assert!(lost <= 2 * 50 * demand + 128, "a second of it: {lost}");
        }
    }

    #[test]
    fn seldom_demand_is_never_held_up_and_a_crash_costs_little() {
        let mut headroom = Headroom::new(15, 0);
        let mut used = 0;
        for second in 0..10 {
            let mut demand = [0; 50];
            demand[7] = 1;
            assert_eq!(run(&mut headroom, &mut used, second * 1_000, &demand), 0);
            assert!(
                headroom.ceiling() - used <= 2,
                "{}",
                headroom.ceiling() - used
            );
        }
    }

    #[test]
    fn after_a_burst_it_comes_down() {
        let mut headroom = Headroom::new(1_000_000, 0);
        let mut used = 0;
        run(&mut headroom, &mut used, 0, &[5_000; 20]);
        assert!(headroom.ceiling() - used > 5_000);
        run(&mut headroom, &mut used, 400, &[0; 1_000]);
        assert!(
            headroom.ceiling() - used <= 128,
            "{}",
            headroom.ceiling() - used
        );
    }

    #[test]
    fn all_of_the_limit_can_be_used_and_no_more() {
        for limit in [1, 15, 1_000] {
            let mut headroom = Headroom::new(limit, 0);
            let mut used = 0;
            run(&mut headroom, &mut used, 0, &[100; 100]);
            assert_eq!(used, limit);
            assert_eq!(headroom.ceiling(), limit);
        }
    }

    #[test]
    fn a_count_beyond_its_limit_is_left_where_it_is() {
        let mut headroom = Headroom::new(5, 9);
        assert_eq!(headroom.next(9, false, Duration::from_secs(1)), 9);
    }
}
