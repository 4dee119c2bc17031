//! The parts that need no socket: the table of decisions, the canary's limits, the configuration.
//!
//! They are a small part of a request (see `benches/instructions`); what is watched here is that they
//! stay one.

// `criterion_group!` makes public functions without a word about them.
#![allow(missing_docs)]

use std::{hint::black_box, time::Duration};

use canary_router::{
    config::{Breaker, Breakers, Config, Limits},
    policy::{
        Barriers, Facts, FailureRule, Outcome, Reason, Refusal, Rules, SidecarAnswer,
        SidecarStatuses, Target, Weight,
        breaker::{Rate, Settings},
        decide::{after_sidecar, decide, forced_by_header},
        quota::{ErrorQuota, take_token},
    },
    state::{Admission, admission::Terms},
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

criterion_group!(benches, decisions, quotas, admissions, configurations);
criterion_main!(benches);

/// One element is one decision.
fn decisions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("policy");
    let mut table = Vec::new();
    for forced in [None, Some(Target::Main), Some(Target::Canary)] {
        for (requests, errors) in [(false, false), (false, true), (true, false), (true, true)] {
            for sidecar in [None, Some(SidecarStatuses::default())] {
                let barriers = Barriers {
                    requests,
                    errors,
                    breaker: false,
                };
                let facts = Facts {
                    forced,
                    barriers,
                    weight: Weight::ALL,
                };
                table.push((facts, Rules { sidecar }));
            }
        }
    }
    group.throughput(Throughput::Elements(table.len() as u64));
    group.bench_function("decide: the whole table", |bencher| {
        bencher.iter(|| {
            for &(facts, rules) in &table {
                black_box(decide(black_box(facts), black_box(rules)));
            }
        });
    });

    let answers = [200, 204, 301, 500].map(SidecarAnswer::Status);
    group.throughput(Throughput::Elements(answers.len() as u64));
    group.bench_function("after_sidecar", |bencher| {
        bencher.iter(|| {
            for answer in answers {
                black_box(after_sidecar(black_box(answer), SidecarStatuses::default()));
            }
        });
    });

    let values: [Option<&[u8]>; 4] = [None, Some(b"true"), Some(b"false"), Some(b"perhaps")];
    group.throughput(Throughput::Elements(values.len() as u64));
    group.bench_function("forced_by_header", |bencher| {
        bencher.iter(|| {
            for value in values {
                black_box(forced_by_header(black_box(value)));
            }
        });
    });

    group.throughput(Throughput::Elements(Reason::ALL.len() as u64));
    group.bench_function("demoted", |bencher| {
        bencher.iter(|| {
            for reason in Reason::ALL {
                black_box(black_box(reason).demoted(Refusal::Limit));
            }
        });
    });
}

fn quotas(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("quota");
    group.bench_function("reserve and settle", |bencher| {
        let quota = ErrorQuota {
            errors: 3,
            reserved: 60,
        };
        bencher.iter(|| {
            black_box(quota)
                .reserve(black_box(100))
                .map(|reserved| reserved.settle(black_box(Outcome::Success)))
        });
    });
    group.bench_function("take_token", |bencher| {
        bencher.iter(|| take_token(black_box(7), black_box(1000)));
    });
}

/// What a request to the canary pays, on one thread: contention is for `benches/compare` with several
/// workers.
fn admissions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("admission");
    let now = || Duration::ZERO;
    let terms = |requests, errors, canary| Terms {
        limits: Limits {
            requests,
            errors,
            ..Limits::default()
        },
        breakers: Breakers { canary, main: None },
        repeats: Rate(2_000),
    };
    let breaker = Breaker {
        settings: Settings {
            failure_rate: Some(Rate(5_000)),
            slow_calls: None,
            failures_in_a_row: None,
            minimum_calls: 20,
            window: Duration::from_secs(30),
            wait_open: Duration::from_secs(30),
            max_wait_open: Duration::from_secs(300),
            permitted_half_open: 5,
        },
        failure: FailureRule::ServerError,
    };
    for (name, requests, errors, canary) in [
        ("all off", None, None, None),
        ("both limits", Some(u64::MAX), Some(u32::MAX), None),
        (
            "limits and breaker",
            Some(u64::MAX),
            Some(u32::MAX),
            Some(breaker),
        ),
    ] {
        let admission = Admission::new(terms(requests, errors, canary), now());
        group.bench_function(format!("admit and settle, {name}"), |bencher| {
            bencher.iter(|| {
                if let Ok(mut permit) = admission.admit(now) {
                    permit.answered(black_box(200), now(), now(), 0.0);
                    permit.completed(now(), 0.0);
                }
            });
        });
        group.bench_function(format!("barriers, {name}"), |bencher| {
            bencher.iter(|| black_box(&admission).barriers(now));
        });
    }
    let spent = Admission::new(terms(Some(0), Some(10), None), now());
    group.bench_function("admit, refused", |bencher| {
        bencher.iter(|| spent.admit(now).is_err());
    });
}

fn configurations(criterion: &mut Criterion) {
    let text = include_str!("../config.template.json");
    let mut group = criterion.benchmark_group("config");
    group.throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function("parse the template", |bencher| {
        bencher.iter(|| Config::parse("config.template.json", black_box(text)));
    });
    let wrong = text.replace("\"timeout\"", "\"timeuot\"");
    group.throughput(Throughput::Bytes(wrong.len() as u64));
    group.bench_function("refuse a misspelt key", |bencher| {
        bencher.iter(|| Config::parse("wrong.json", black_box(&wrong)).is_err());
    });
}
