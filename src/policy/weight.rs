//! The share of eligible requests that goes to the canary.
//!
//! Chance comes in as a *point*, one of 2^64 equally likely ones: a random number, or the hash of what a
//! client is known by. A point that a weight takes is taken by every greater one too, so raising the
//! weight moves clients only into the canary, and lowering it only out of it.

use std::fmt;

/// A share in hundredths of a percent, 0 to 10,000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Weight(u32);

/// What [`Weight::ALL`] is in hundredths of a percent.
const ALL: u32 = 10_000;

impl Weight {
    /// Nothing goes to the canary.
    pub const NONE: Weight = Weight(0);
    /// Everything does.
    pub const ALL: Weight = Weight(ALL);

    /// So many hundredths of a percent; `None` above 100 %.
    pub const fn new(hundredths: u32) -> Option<Weight> {
        match hundredths {
            0..=ALL => Some(Weight(hundredths)),
            _ => None,
        }
    }

    /// In hundredths of a percent.
    pub const fn hundredths(self) -> u32 {
        self.0
    }

    /// In percent.
    pub fn percent(self) -> f64 {
        f64::from(self.0) / 100.0
    }

    /// From 0 to 1.
    pub fn ratio(self) -> f64 {
        f64::from(self.0) / f64::from(ALL)
    }

    /// Whether chance has no say.
    pub const fn is_certain(self) -> bool {
        matches!(self.0, 0 | ALL)
    }

    /// Whether the request with this point goes to the canary. Of the 2^64 points a weight takes exactly
    /// its share, to less than one point.
    pub const fn takes(self, point: u64) -> bool {
        ((point as u128 * ALL as u128) >> 64) < self.0 as u128
    }
}

impl fmt::Display for Weight {
    /// `5 %`, `0.25 %`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", self.percent())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_and_everything_are_exact() {
        for point in [0, 1, u64::MAX / 2, u64::MAX - 1, u64::MAX] {
            assert!(!Weight::NONE.takes(point));
            assert!(Weight::ALL.takes(point));
        }
    }

    #[test]
    fn every_weight_takes_its_share_of_the_points_and_keeps_those_of_smaller_ones() {
        // The smallest point that a weight does not take any more.
        let end = |weight: Weight| {
            let (mut low, mut high) = (0u128, 1u128 << 64);
            while low < high {
                let middle = (low + high) / 2;
                match weight.takes(middle as u64) {
                    true => low = middle + 1,
                    false => high = middle,
                }
            }
            low
        };
        let mut before = 0;
        for hundredths in 0..ALL {
            let weight = Weight::new(hundredths).unwrap();
            let end = end(weight);
            assert_eq!(end, (u128::from(hundredths) << 64).div_ceil(10_000));
            assert!(end >= before);
            before = end;
        }
        assert_eq!(Weight::new(10_001), None);
    }

    #[test]
    fn people_read_percent() {
        let shown = |hundredths| Weight::new(hundredths).unwrap().to_string();
        assert_eq!(
            [shown(0), shown(1), shown(25), shown(500), shown(10_000)],
            ["0 %", "0.01 %", "0.25 %", "5 %", "100 %"]
        );
    }
}
