//! The last quarter of an hour, second by second, for who looks at it as a picture.
//!
//! Bounded: [`SECONDS`] rows of some hundred bytes, whatever the traffic.

use std::{collections::VecDeque, time::Duration};

use serde_json::{Value, json};

use super::{decisions::percent, minute::Second};
use crate::policy::{Target, Weight};

/// How far back it goes.
pub const SECONDS: usize = 15 * 60;

/// What the columns of a row are.
pub const COLUMNS: [&str; 11] = [
    "uptime",
    "weight",
    "evidence",
    "main.requests",
    "main.failures",
    "main.p50",
    "main.p99",
    "canary.requests",
    "canary.failures",
    "canary.p50",
    "canary.p99",
];

/// One second.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Its end.
    pub uptime: Duration,
    /// The canary's share at its end.
    pub weight: Weight,
    /// How much speaks against the canary at its end, where anything was counted: a natural logarithm.
    pub evidence: Option<f64>,
    /// What the targets did in it, by [`Target::index`].
    pub targets: [Second; Target::ALL.len()],
}

impl Row {
    /// Its values in the order of [`COLUMNS`].
    pub fn to_json(&self) -> Value {
        let mut values = vec![
            rounded(self.uptime.as_secs_f64()),
            percent(self.weight),
            self.evidence.map_or(Value::Null, rounded),
        ];
        for second in &self.targets {
            values.push(second.requests.into());
            values.push(second.failures.into());
            let quantiles = [second.p50, second.p99];
            values.extend(quantiles.map(|quantile| quantile.map_or(Value::Null, rounded)));
        }
        Value::Array(values)
    }
}

/// Ten thousandths are more than anybody sees, and 900 rows are sent at once.
fn rounded(value: f64) -> Value {
    json!((value * 1e4).round() / 1e4)
}

/// The rows, oldest first.
#[derive(Debug, Default)]
pub struct History(VecDeque<Row>);

impl History {
    /// Another second is over.
    pub fn push(&mut self, row: Row) {
        while self.0.len() >= SECONDS {
            self.0.pop_front();
        }
        self.0.push_back(row);
    }

    /// All of it, as [`Row::to_json`].
    pub fn to_json(&self) -> Value {
        self.0.iter().map(Row::to_json).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(second: u64) -> Row {
        Row {
            uptime: Duration::from_millis(1000 * second + 123),
            weight: Weight::new(525).unwrap(),
            evidence: None,
            targets: [
                Second {
                    requests: 95,
                    failures: 1,
                    p50: Some(0.012_345_67),
                    p99: None,
                },
                Second::default(),
            ],
        }
    }

    #[test]
    fn it_keeps_fifteen_minutes_and_no_more() {
        let mut history = History::default();
        for second in 0..5_000 {
            history.push(row(second));
        }
        let rows = history.to_json();
        let rows = rows.as_array().unwrap();
        assert_eq!(rows.len(), SECONDS);
        assert_eq!(rows[0][0], 4_100.123);
        assert_eq!(rows[SECONDS - 1][0], 4_999.123);
    }

    #[test]
    fn a_row_has_a_value_for_each_column() {
        let row = row(1).to_json();
        assert_eq!(
            row,
            json!([1.123, 5.25, null, 95, 1, 0.0123, null, 0, 0, null, null])
        );
        assert_eq!(row.as_array().unwrap().len(), COLUMNS.len());
    }
}
