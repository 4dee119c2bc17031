//! A page of metrics.

use std::collections::BTreeMap;

/// Its series, by name and labels.
#[derive(Debug, Default)]
pub struct Figures(Vec<Series>);

#[derive(Debug)]
struct Series {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Figures {
    pub fn parse(page: &str) -> Figures {
        let lines = page.lines().filter(|line| !line.starts_with('#'));
        Figures(lines.filter_map(Series::parse).collect())
    }

    /// The sum of all series of this name with these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |series: &&Series| {
            let is = |(label, value): &(&str, &str)| {
                series.labels.get(*label).is_some_and(|said| said == value)
            };
            series.name == name && labels.iter().all(is)
        };
        self.0.iter().filter(has).map(|series| series.value).sum()
    }

    /// The only series of this name, if there is one.
    pub fn value(&self, name: &str) -> Option<f64> {
        let mut those = self.0.iter().filter(|series| series.name == name);
        those.next().map(|series| series.value)
    }

    /// All series of this name that are not 0, by these labels.
    pub fn by<const N: usize>(&self, name: &str, labels: [&str; N]) -> BTreeMap<[String; N], u64> {
        let mut found = BTreeMap::new();
        for series in self.0.iter().filter(|series| series.name == name) {
            let key = labels.map(|label| series.labels.get(label).cloned().unwrap_or_default());
            if series.value != 0.0 {
                *found.entry(key).or_insert(0) += series.value as u64;
            }
        }
        found
    }
}

impl Series {
    fn parse(line: &str) -> Option<Series> {
        let (series, value) = line.rsplit_once(' ')?;
        let (name, rest) = series.split_once('{').unwrap_or((series, "}"));
        let mut labels = BTreeMap::new();
        // No value here has a quotation mark in it.
        for label in rest.trim_end_matches('}').split("\",") {
            if let Some((label, value)) = label.split_once("=\"") {
                labels.insert(label.to_owned(), value.trim_end_matches('"').to_owned());
            }
        }
        Some(Series {
            name: name.to_owned(),
            labels,
            value: value.parse().ok()?,
        })
    }
}
