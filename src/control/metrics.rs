//! What Prometheus scrapes: the workers' tallies, summed when asked.
//!
//! The names, labels and buckets of the two legacy families are the original's, to the letter. Every
//! series exists from the first scrape on, so that `rate()` sees the first event.

use std::{sync::Arc, time::UNIX_EPOCH};

use prometheus::{
    Encoder, Registry, TextEncoder,
    core::{Collector, Desc},
    process_collector::ProcessCollector,
    proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType},
};

use super::{Control, analyst::Analyst, decisions};
use crate::{
    COMMIT, VERSION,
    policy::{
        CacheResult, CodeClass, FailureKind, Fallback, Reason, SidecarResult, SidecarStatuses,
        Target,
        analysis::Strength,
        breaker::{State, Transitions},
        rollout::{Phase, Verdict},
    },
    state::{
        Admission, Durability, Gate, Published, Reloads, SpanCounts, Tally,
        tally::{LATENCY_BOUNDS_US, SIDECAR_BOUNDS_US, Totals},
    },
};

/// The original's buckets: 0 to 6000 milliseconds.
const LEGACY_BOUNDS_US: [u64; 13] = [
    0, 25_000, 50_000, 75_000, 100_000, 200_000, 400_000, 600_000, 800_000, 1_000_000, 2_000_000,
    4_000_000, 6_000_000,
];

/// Those of the second family: Prometheus' own, and some for what is faster or slower. All among those that are counted.
const DURATION_BOUNDS_US: [u64; 15] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 30_000_000, 60_000_000,
];

/// Renders the metrics.
pub struct Exposition(Registry);

impl Exposition {
    /// # Errors
    /// Two families have the same name.
    pub fn new(control: &Control) -> Result<Exposition, prometheus::Error> {
        let registry = Registry::new();
        registry.register(Box::new(Families {
            published: Arc::clone(&control.published),
            tallies: control.tallies.clone(),
            durability: control.durability.clone(),
            reloads: Arc::clone(&control.reloads),
            spans: control.spans.clone(),
            dropped_lines: control.dropped_lines,
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
    pub fn text(&self, analyst: &Analyst) -> Result<String, prometheus::Error> {
        let mut text = Vec::new();
        let mut families = self.0.gather();
        families.extend(rollout(analyst));
        TextEncoder::new().encode(&families, &mut text)?;
        String::from_utf8(text).map_err(|error| prometheus::Error::Msg(error.to_string()))
    }
}

/// Collects all families of ours in one go, from one sum.
struct Families {
    published: Arc<Published>,
    tallies: Vec<Arc<Tally>>,
    durability: Option<Arc<Durability>>,
    reloads: Arc<Reloads>,
    spans: Option<Arc<SpanCounts>>,
    dropped_lines: fn() -> u64,
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
        let snapshot = self.published.load();
        let (admission, statuses) = (&snapshot.admission, snapshot.config.sidecar_statuses);
        let mut families = vec![
            request_count(&totals, statuses),
            request_latency(&totals),
            requests(&totals, statuses),
            request_duration(&totals),
            inflight(&totals),
            family(
                "canary_router_connections",
                "Client connections at this moment",
                MetricType::GAUGE,
                vec![gauge(&[], totals.connections as f64)],
            ),
            upstream_failures(&totals),
            fallbacks(&totals),
            sidecar_results(&totals),
            sidecar_duration(&totals),
            sidecar_cache(&totals),
            family(
                "canary_router_build_info",
                "What is running; the value is always 1",
                MetricType::GAUGE,
                vec![gauge(&[("commit", COMMIT), ("version", VERSION)], 1.0)],
            ),
        ];
        families.extend(breakers(admission));
        families.extend(self.durability.as_deref().map(state_writes));
        families.extend(config_reloads(&self.reloads));
        families.extend(self.spans.as_deref().map(spans));
        families.push(dropped_lines((self.dropped_lines)()));
        let remaining = admission.remaining();
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
        counter(&labels, totals.ended(*reason))
    });
    family(
        "canary_router_request_count",
        "The count of requests per target and reason",
        MetricType::COUNTER,
        series.collect(),
    )
}

fn request_latency(totals: &Totals) -> MetricFamily {
    family(
        "canary_router_request_latency",
        "The latency distribution per request target",
        MetricType::HISTOGRAM,
        latencies(totals, Some(("version", VERSION)), &LEGACY_BOUNDS_US, 1e3),
    )
}

/// How long requests took, by target and what else there is; the rest as in [`histogram`].
fn latencies(
    totals: &Totals,
    label: Option<(&'static str, &'static str)>,
    shown: &[u64],
    unit_us: f64,
) -> Vec<Metric> {
    let series = Target::ALL.iter().map(|target| {
        let labels = [("target", target.label())].into_iter().chain(label);
        let mut metric = labelled(&labels.collect::<Vec<_>>());
        let latency = &totals.latency[target.index()];
        let bounds = &LATENCY_BOUNDS_US;
        metric.set_histogram(histogram(
            &latency.buckets,
            bounds,
            shown,
            latency.sum_us,
            unit_us,
        ));
        metric
    });
    series.collect()
}

/// The same requests once more, by what their clients got.
fn requests(totals: &Totals, statuses: SidecarStatuses) -> MetricFamily {
    let series = Reason::ALL.iter().flat_map(|reason| {
        let label = reason.label(statuses);
        CodeClass::ALL.map(|class| {
            let labels = [
                ("code_class", class.label()),
                ("reason", &*label),
                ("target", reason.target().label()),
            ];
            counter(&labels, totals.requests[reason.index()][class.index()])
        })
    });
    family(
        "canary_router_requests_total",
        "Requests by the target that was decided on, why, and what the client got",
        MetricType::COUNTER,
        series.collect(),
    )
}

fn request_duration(totals: &Totals) -> MetricFamily {
    family(
        "canary_router_request_duration_seconds",
        "From the head of a request to the last byte of its response, the sidecar's time included",
        MetricType::HISTOGRAM,
        latencies(totals, None, &DURATION_BOUNDS_US, 1e6),
    )
}

fn inflight(totals: &Totals) -> MetricFamily {
    let series = Target::ALL.iter().map(|target| {
        let labels = [("target", target.label())];
        gauge(&labels, totals.inflight(*target) as f64)
    });
    family(
        "canary_router_inflight_requests",
        "Requests that were decided and have not ended, tunnels not among them",
        MetricType::GAUGE,
        series.collect(),
    )
}

/// Of what was counted in buckets that end at `bounds`, shows those that end at the bounds in `shown`, which are
/// among them; all in microseconds. `unit_us` is the unit of the metric in microseconds.
fn histogram(
    counts: &[u64],
    bounds: &[u64],
    shown: &[u64],
    sum_us: u64,
    unit_us: f64,
) -> Histogram {
    let mut cumulative = 0;
    let mut buckets = Vec::with_capacity(shown.len());
    for (i, count) in counts.iter().enumerate() {
        cumulative += count;
        // The encoder adds +Inf from the count.
        if let Some(bound) = bounds.get(i).filter(|bound| shown.contains(bound)) {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound as f64 / unit_us);
            bucket.set_cumulative_count(cumulative);
            buckets.push(bucket);
        }
    }
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets);
    histogram.set_sample_count(cumulative);
    histogram.set_sample_sum(sum_us as f64 / unit_us);
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
    let series = Fallback::ALL.iter().map(|fallback| {
        let [from, to, outcome] = fallback.labels();
        let labels = [("from", from), ("outcome", outcome), ("to", to)];
        counter(&labels, totals.fallbacks[fallback.index()])
    });
    family(
        "canary_router_fallbacks_total",
        "Requests for one upstream that were answered by the other one, or by the static answer, \
         instead, or were to be",
        MetricType::COUNTER,
        series.collect(),
    )
}

fn sidecar_results(totals: &Totals) -> MetricFamily {
    let counts = SidecarResult::ALL.iter();
    by_result(
        "canary_router_sidecar_results_total",
        "Questions to the sidecar by what came of them; answers from the cache are not among them",
        counts.map(|result| (result.label(), totals.sidecar_results[result.index()])),
    )
}

fn sidecar_duration(totals: &Totals) -> MetricFamily {
    let sidecar = &totals.sidecar;
    let bounds = &SIDECAR_BOUNDS_US;
    let mut metric = Metric::default();
    metric.set_histogram(histogram(
        &sidecar.buckets,
        bounds,
        bounds,
        sidecar.sum_us,
        1e6,
    ));
    family(
        "canary_router_sidecar_duration_seconds",
        "How long the sidecar took to answer, or to fail",
        MetricType::HISTOGRAM,
        vec![metric],
    )
}

fn sidecar_cache(totals: &Totals) -> MetricFamily {
    let counts = CacheResult::ALL.iter();
    by_result(
        "canary_router_sidecar_cache_total",
        "Looks into the sidecar's cache",
        counts.map(|result| (result.label(), totals.cache_results[result.index()])),
    )
}

/// State and transitions of all breakers. One that is off is closed for ever.
fn breakers(admission: &Admission) -> [MetricFamily; 2] {
    let (mut states, mut transitions) = (Vec::new(), Vec::new());
    let gates = [
        ("canary", admission.gate(Target::Canary)),
        ("main", admission.gate(Target::Main)),
        ("sidecar", Some(admission.sidecar())),
    ];
    for (target, gate) in gates {
        let look = |gate: &Gate| gate.with(|breaker| (breaker.state(), *breaker.transitions()));
        let (current, counts) = gate.map_or((State::Closed, Transitions::default()), look);
        for state in State::ALL {
            let labels = [("state", state.label()), ("target", target)];
            states.push(gauge(&labels, f64::from(u8::from(state == current))));
        }
        for (from, to) in State::TRANSITIONS {
            let labels = [
                ("from", from.label()),
                ("target", target),
                ("to", to.label()),
            ];
            transitions.push(counter(&labels, counts[from.index()][to.index()]));
        }
    }
    [
        family(
            "canary_router_breaker_state",
            "1 for the state that the circuit breaker is in, 0 for the others",
            MetricType::GAUGE,
            states,
        ),
        family(
            "canary_router_breaker_transitions_total",
            "Changes of state of the circuit breaker",
            MetricType::COUNTER,
            transitions,
        ),
    ]
}

/// Where the rollout stands, and what the judge says.
fn rollout(analyst: &Analyst) -> [MetricFamily; 5] {
    let position = analyst.rollout().position;
    let phases = Phase::ALL.iter().map(|phase| {
        let is_now = *phase == position.phase;
        gauge(&[("phase", phase.label())], f64::from(u8::from(is_now)))
    });
    // Before anything was counted: the evidence of nothing.
    let evidence =
        |of: fn(&Strength) -> Option<f64>| analyst.strength().and_then(of).unwrap_or(0.0);
    let evidence = [
        ("errors", evidence(|strength| Some(strength.errors))),
        ("latency", evidence(|strength| strength.latency)),
        ("overall", evidence(|strength| Some(strength.overall))),
    ];
    let evidence = evidence.map(|(metric, value)| gauge(&[("metric", metric)], value));
    let verdicts = Verdict::ALL.iter().map(|verdict| {
        let count = analyst.verdicts()[verdict.index()];
        counter(&[("verdict", verdict.label())], count)
    });
    [
        family(
            "canary_router_weight_ratio",
            "The share of eligible requests that goes to the canary",
            MetricType::GAUGE,
            vec![gauge(&[], position.weight.ratio())],
        ),
        family(
            "canary_router_rollout_phase",
            "1 for the phase that the rollout is in, 0 for the others",
            MetricType::GAUGE,
            phases.collect(),
        ),
        family(
            "canary_router_rollout_step",
            "The step of the rollout, from 1; 0 where there was none",
            MetricType::GAUGE,
            vec![gauge(&[], decisions::step(&position) as f64)],
        ),
        family(
            "canary_router_analysis_log_evidence",
            "Natural logarithm of the evidence that the canary is worse than allowed; it is rolled back when the \
             overall one reaches the negative logarithm of false-rollback-probability",
            MetricType::GAUGE,
            evidence.into(),
        ),
        family(
            "canary_router_analysis_verdicts_total",
            "What the judge has said, once a second while a rollout is under way",
            MetricType::COUNTER,
            verdicts.collect(),
        ),
    ]
}

fn state_writes(durability: &Durability) -> MetricFamily {
    let writes = durability.writes();
    by_result(
        "canary_router_state_writes_total",
        "Attempts to write the state file",
        [("failed", writes.failed), ("succeeded", writes.succeeded)].into_iter(),
    )
}

fn config_reloads(reloads: &Reloads) -> [MetricFamily; 2] {
    let counts = reloads.counts();
    let since_epoch = counts.last_success.duration_since(UNIX_EPOCH);
    let last_success = since_epoch.unwrap_or_default().as_secs_f64();
    [
        by_result(
            "canary_router_config_reloads_total",
            "Attempts to read the configuration again",
            [("failed", counts.failed), ("succeeded", counts.succeeded)].into_iter(),
        ),
        family(
            "canary_router_config_last_reload_success_timestamp_seconds",
            "When the configuration that is in force was read, at the start or since",
            MetricType::GAUGE,
            vec![gauge(&[], last_success)],
        ),
    ]
}

fn spans(counts: &SpanCounts) -> MetricFamily {
    by_result(
        "canary_router_spans_total",
        "Spans of requests: taken by the collector, not taken by it, or never sent for want of room or time",
        [
            ("dropped", counts.dropped()),
            ("failed", counts.failed()),
            ("sent", counts.sent()),
        ]
        .into_iter(),
    )
}

fn dropped_lines(count: u64) -> MetricFamily {
    family(
        "canary_router_log_lines_dropped_total",
        "Lines that there was no room for while stdout took none",
        MetricType::COUNTER,
        vec![counter(&[], count)],
    )
}

/// Counts that differ in the label `result`.
fn by_result(
    name: &str,
    help: &str,
    counts: impl Iterator<Item = (&'static str, u64)>,
) -> MetricFamily {
    let series = counts.map(|(result, count)| counter(&[("result", result)], count));
    family(name, help, MetricType::COUNTER, series.collect())
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
