//! What Prometheus scrapes: the workers' tallies, summed when asked.
//!
//! The names, labels and buckets of the two legacy families are the original's, to the letter. Every
//! series exists from the first scrape on, so that `rate()` sees the first event.

use std::sync::Arc;

use prometheus::{
    Encoder, Registry, TextEncoder,
    core::{Collector, Desc},
    process_collector::ProcessCollector,
    proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType},
};

use super::Control;
use crate::{
    VERSION,
    policy::{FailureKind, FallbackOutcome, Reason, SidecarStatuses, Target},
    state::{
        Admission, Published, Tally,
        tally::{LATENCY_BOUNDS_MS, LatencyTotals, Totals},
    },
};

/// Renders the metrics.
pub struct Exposition(Registry);

impl Exposition {
    /// # Errors
    /// Two families have the same name.
    pub fn new(control: Control) -> Result<Exposition, prometheus::Error> {
        let registry = Registry::new();
        registry.register(Box::new(Families {
            published: control.published,
            admission: control.admission,
            tallies: control.tallies,
            desc: Desc::new(
                "canary_router".into(),
                "All metrics of the router".into(),
                Vec::new(),
                std::collections::HashMap::new(),
            )?,
        }))?;
        registry.register(Box::new(ProcessCollector::for_self()))?;
        Ok(Exposition(registry))
    }

    /// The text exposition format, version 0.0.4.
    ///
    /// # Errors
    /// A family has no series, which would be a bug of ours.
    pub fn text(&self) -> Result<String, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.0.gather(), &mut text)?;
        String::from_utf8(text).map_err(|error| prometheus::Error::Msg(error.to_string()))
    }
}

/// Collects all families of ours in one go, from one sum.
struct Families {
    published: Arc<Published>,
    admission: Arc<Admission>,
    tallies: Vec<Arc<Tally>>,
    desc: Desc,
}

impl Collector for Families {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut totals = Totals::default();
        for tally in &self.tallies {
            tally.add_to(&mut totals);
        }
        let statuses = self.published.load().config.sidecar_statuses;
        let mut families = vec![
            request_count(&totals, statuses),
            request_latency(&totals),
            upstream_failures(&totals),
            fallbacks(&totals),
            family(
                "canary_router_build_info",
                "What is running; the value is always 1",
                MetricType::GAUGE,
                vec![gauge(&[("version", VERSION)], 1.0)],
            ),
        ];
        let remaining = self.admission.remaining();
        for (name, help, left) in [
            (
                "canary_router_request_budget_remaining",
                "Requests that may still go to the canary, where request-limit-canary is set",
                remaining.requests,
            ),
            (
                "canary_router_error_budget_remaining",
                "Requests that could be sent to the canary now, where error-limit-canary is set: \
                 the limit less the errors so far and less the requests in flight",
                remaining.errors,
            ),
        ] {
            if let Some(left) = left {
                families.push(family(
                    name,
                    help,
                    MetricType::GAUGE,
                    vec![gauge(&[], left as f64)],
                ));
            }
        }
        families
    }
}

fn request_count(totals: &Totals, statuses: SidecarStatuses) -> MetricFamily {
    let series = Reason::ALL.iter().map(|reason| {
        let labels = [
            ("reason", &*reason.label(statuses)),
            ("target", reason.target().label()),
            ("version", VERSION),
        ];
        counter(&labels, totals.requests[reason.index()])
    });
    family(
        "canary_router_request_count",
        "The count of requests per target and reason",
        MetricType::COUNTER,
        series.collect(),
    )
}

fn request_latency(totals: &Totals) -> MetricFamily {
    let series = Target::ALL.iter().map(|target| {
        let labels = [("target", target.label()), ("version", VERSION)];
        let mut metric = labelled(&labels);
        metric.set_histogram(histogram(&totals.latency[target.index()]));
        metric
    });
    family(
        "canary_router_request_latency",
        "The latency distribution per request target",
        MetricType::HISTOGRAM,
        series.collect(),
    )
}

fn histogram(latency: &LatencyTotals) -> Histogram {
    let mut cumulative = 0;
    let buckets = LATENCY_BOUNDS_MS
        .iter()
        .map(|bound| Some(f64::from(*bound)))
        .chain([None])
        .zip(&latency.buckets)
        .filter_map(|(bound, count)| {
            cumulative += count;
            // The encoder adds +Inf from the count.
            bound.map(|bound| {
                let mut bucket = Bucket::default();
                bucket.set_upper_bound(bound);
                bucket.set_cumulative_count(cumulative);
                bucket
            })
        })
        .collect();
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets);
    histogram.set_sample_count(cumulative);
    histogram.set_sample_sum(latency.sum_us as f64 / 1000.0);
    histogram
}

fn upstream_failures(totals: &Totals) -> MetricFamily {
    let series = Target::ALL.iter().flat_map(|target| {
        FailureKind::ALL.iter().map(|kind| {
            let labels = [("kind", kind.label()), ("target", target.label())];
            counter(&labels, totals.failures[target.index()][kind.index()])
        })
    });
    family(
        "canary_router_upstream_failures_total",
        "Requests that an upstream did not answer, or not to the end",
        MetricType::COUNTER,
        series.collect(),
    )
}

fn fallbacks(totals: &Totals) -> MetricFamily {
    let series = FallbackOutcome::ALL.iter().map(|outcome| {
        let labels = [
            ("from", "canary"),
            ("outcome", outcome.label()),
            ("to", "main"),
        ];
        counter(&labels, totals.fallbacks[outcome.index()])
    });
    family(
        "canary_router_fallbacks_total",
        "Requests for one upstream that were sent to the other one instead",
        MetricType::COUNTER,
        series.collect(),
    )
}

fn family(name: &str, help: &str, kind: MetricType, series: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.into());
    family.set_help(help.into());
    family.set_field_type(kind);
    family.set_metric(series);
    family
}

fn counter(labels: &[(&str, &str)], value: u64) -> Metric {
    let mut counter = Counter::default();
    counter.set_value(value as f64);
    let mut metric = labelled(labels);
    metric.set_counter(counter);
    metric
}

fn gauge(labels: &[(&str, &str)], value: f64) -> Metric {
    let mut gauge = Gauge::default();
    gauge.set_value(value);
    let mut metric = labelled(labels);
    metric.set_gauge(gauge);
    metric
}

fn labelled(labels: &[(&str, &str)]) -> Metric {
    let labels = labels
        .iter()
        .map(|(name, value)| {
            let mut label = LabelPair::default();
            label.set_name((*name).into());
            label.set_value((*value).into());
            label
        })
        .collect();
    let mut metric = Metric::default();
    metric.set_label(labels);
    metric
}
