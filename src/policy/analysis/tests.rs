use proptest::prelude::*;

use super::*;

mod naive;

const MAIN: usize = Target::Main.index();
const CANARY: usize = Target::Canary.index();

/// The smallest and the greatest that are not certain, and what people use.
const WEIGHTS: [u32; 9] = [1, 10, 100, 500, 2500, 5000, 9000, 9900, 9999];

fn defaults() -> Settings {
    Settings {
        error_ratio: 1.5,
        false_rollback_probability: 0.01,
        latency: Some(rule()),
        safe_ratio: 2.0,
        acceptable_failure_rate: 0.01,
    }
}

fn rule() -> LatencyRule {
    LatencyRule {
        margin: 0.1,
        slack: Duration::from_millis(15),
    }
}

fn weight(hundredths: u32) -> Weight {
    Weight::new(hundredths).unwrap()
}

/// So many failures of so many requests, main's first.
fn failures(requests: Pair, failures: Pair) -> Counts {
    Counts {
        requests,
        failures,
        failed: failures,
        ..Counts::default()
    }
}

/// As it was kept, whatever the judge would have made of it.
fn as_kept(accounts: &[(usize, u32, Counts)]) -> Evidence {
    let account = |(step, hundredths, counts): &(usize, u32, Counts)| Account {
        step: *step,
        weight: weight(*hundredths),
        counts: *counts,
    };
    Evidence::new(accounts.iter().map(account).collect())
}

fn evidence(accounts: &[(usize, u32, Counts)]) -> Evidence {
    let mut evidence = Evidence::default();
    for (step, hundredths, counts) in accounts {
        evidence.add(*step, weight(*hundredths), counts);
    }
    evidence
}

// What the evidence is.

fn some_counts() -> impl Strategy<Value = Counts> {
    let pair = |most: u64| [0..most, 0..most];
    let slow = proptest::collection::vec(pair(12), THRESHOLDS);
    (pair(30), pair(12), slow).prop_map(|(answered, failed, slow)| Counts {
        requests: std::array::from_fn(|of| answered[of] + failed[of]),
        failures: failed,
        failed,
        slow: std::array::from_fn(|i| slow[i]),
    })
}

fn some_accounts() -> impl Strategy<Value = Vec<(usize, u32, Counts)>> {
    proptest::collection::vec((0usize..5, 1u32..10_000, some_counts()), 0..6)
}

fn same(ln: f64, naive: f64) -> Result<(), TestCaseError> {
    prop_assert!((ln - naive.ln()).abs() < 1e-9, "{ln} is not {}", naive.ln());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_evidence_is_the_product_of_likelihood_ratios_of_single_labels(
        accounts in some_accounts(),
        error_ratio in 1.0f64..4.0,
        step in 0usize..5,
    ) {
        let settings = Settings { error_ratio, ..defaults() };
        let evidence = as_kept(&accounts);
        let strength = evidence.strength(&settings, step);
        let errors = naive::errors(&accounts, error_ratio);
        let latency = naive::latency(&accounts, error_ratio);
        same(strength.errors, errors)?;
        same(strength.latency.unwrap(), latency)?;
        same(strength.overall, (errors + latency) / 2.0)?;
        same(strength.safe_ratio, naive::safe(&accounts, step, settings.safe_ratio))?;
        let acceptable = naive::acceptable(&accounts, step, settings.acceptable_failure_rate);
        same(strength.acceptable.unwrap(), acceptable)?;
        let blind = Settings { latency: None, ..settings };
        let strength = evidence.strength(&blind, step);
        same(strength.overall, errors)?;
    }

    #[test]
    fn it_does_not_matter_in_how_many_parts_counts_come(accounts in some_accounts()) {
        let mut in_parts = evidence(&accounts);
        for (step, hundredths, counts) in &accounts {
            in_parts.add(*step, weight(*hundredths), counts);
        }
        let twice: Vec<_> = accounts.iter().map(|(step, hundredths, counts)| {
            let mut sum = *counts;
            sum.add(counts);
            (*step, *hundredths, sum)
        }).collect();
        prop_assert_eq!(in_parts, evidence(&twice));
    }

    #[test]
    fn a_failure_of_the_canary_speaks_against_it_and_one_of_main_for_it(
        accounts in some_accounts(),
        hundredths in 1u32..10_000,
    ) {
        let before = evidence(&accounts).strength(&defaults(), 0);
        let after = |failed| {
            let mut evidence = evidence(&accounts);
            evidence.add(0, weight(hundredths), &failures(failed, failed));
            evidence.strength(&defaults(), 0)
        };
        // By as much as numbers of this size can be told apart.
        let canary = after([0, 1]);
        prop_assert!(canary.errors >= before.errors - 1e-9);
        prop_assert!(canary.latency >= before.latency.map(|it| it - 1e-9));
        prop_assert!(canary.safe_ratio <= before.safe_ratio + 1e-9);
        prop_assert!(canary.acceptable < before.acceptable);
        let main = after([1, 0]);
        prop_assert!(main.errors <= before.errors + 1e-9);
        prop_assert!(main.latency <= before.latency.map(|it| it + 1e-9));
        prop_assert!(main.safe_ratio >= before.safe_ratio - 1e-9);
        prop_assert_eq!(main.acceptable, before.acceptable);
    }

    #[test]
    fn no_counts_and_no_settings_make_it_anything_but_a_number(
        accounts in proptest::collection::vec(
            (0usize..1000, 1u32..10_000, prop::array::uniform6(any_count())),
            0..6,
        ),
        error_ratio in prop_oneof![Just(1.0), Just(100.0), 1.0f64..100.0],
        false_rollback_probability in prop_oneof![Just(1e-12), Just(0.5)],
        acceptable_failure_rate in prop_oneof![Just(0.0), Just(1e-9), Just(0.5)],
        safe_ratio in prop_oneof![Just(1.000_001), Just(1000.0)],
        step in 0usize..1000,
    ) {
        let settings = Settings {
            error_ratio,
            false_rollback_probability,
            latency: Some(rule()),
            safe_ratio,
            acceptable_failure_rate,
        };
        let accounts: Vec<_> = accounts.iter().map(|(step, hundredths, of)| {
            let counts = Counts {
                requests: [of[0], of[1]],
                failures: [of[2], of[3]],
                failed: [of[2], of[3]],
                slow: [[of[4], of[5]]; THRESHOLDS],
            };
            (*step, *hundredths, counts)
        }).collect();
        let strength = evidence(&accounts).strength(&settings, step);
        for number in [
            strength.errors,
            strength.latency.unwrap(),
            strength.overall,
            strength.threshold,
            strength.safe_ratio,
            strength.acceptable.unwrap_or(0.0),
            strength.enough,
        ] {
            prop_assert!(number.is_finite(), "{strength:?}");
        }
    }

    #[test]
    fn a_level_is_how_many_bounds_are_exceeded(
        micros in 0u64..100_000_000,
        target in prop_oneof![Just(Target::Main), Just(Target::Canary)],
    ) {
        let thresholds = Thresholds::new(rule());
        let exceeded = thresholds.bounds(target).iter().filter(|bound| **bound < micros);
        let level = thresholds.level(target, Duration::from_micros(micros));
        prop_assert_eq!(level, exceeded.count());
    }
}

fn any_count() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(1),
        0u64..1_000_000,
        Just(u64::MAX / 2),
        Just(u64::MAX)
    ]
}

#[test]
fn without_evidence_the_strength_is_one() {
    let strength = Evidence::default().strength(&defaults(), 3);
    let numbers = [
        strength.errors,
        strength.latency.unwrap(),
        strength.overall,
        strength.safe_ratio,
        strength.acceptable.unwrap(),
    ];
    for ln in numbers {
        assert!(ln.abs() < 1e-12, "{strength:?}");
    }
    // What they are compared with: one in a hundred, and one in twenty.
    assert!((strength.threshold.exp() - 100.0).abs() < 1e-9);
    assert!((strength.enough.exp() - 20.0).abs() < 1e-9);
    assert_eq!(strength.verdict(), Verdict::Inconclusive);
}

// It is a supermartingale: on average, one label does not add to it where the null hypothesis holds.

#[test]
fn one_failure_adds_nothing_on_average_at_the_allowed_ratio_and_takes_away_below_it() {
    for hundredths in WEIGHTS {
        let rho = weight(hundredths).ratio();
        for r0 in [1.0, 1.5, 2.0, 10.0, 100.0] {
            for factor in ALTERNATIVES {
                let odds = Odds::new(weight(hundredths), factor * r0, r0);
                let at = |ratio: f64| {
                    let canary = rho * ratio / (1.0 - rho + rho * ratio);
                    canary * odds.canary.exp() + (1.0 - canary) * odds.main.exp()
                };
                let here = format!("weight {hundredths}, r0 {r0}, alternative {factor}");
                assert!((at(r0) - 1.0).abs() < 1e-9, "{here}: {}", at(r0));
                for share in [0.0, 0.1, 0.5, 0.9, 0.99] {
                    assert!(at(share * r0) < 1.0, "{here}, R {}", share * r0);
                }
                assert!(at(1.1 * r0) > 1.0, "{here}: it must grow where it should");
            }
        }
    }
}

#[test]
fn one_failure_does_not_make_a_canary_safer_that_is_not_safe() {
    for hundredths in WEIGHTS {
        let rho = weight(hundredths).ratio();
        for safe_ratio in [1.1, 2.0, 10.0] {
            for factor in SAFE_ALTERNATIVES {
                let odds = Odds::new(weight(hundredths), factor * safe_ratio, safe_ratio);
                let at = |ratio: f64| {
                    let canary = rho * ratio / (1.0 - rho + rho * ratio);
                    canary * odds.canary.exp() + (1.0 - canary) * odds.main.exp()
                };
                let here = format!("weight {hundredths}, safe ratio {safe_ratio}, {factor}");
                assert!((at(safe_ratio) - 1.0).abs() < 1e-9, "{here}");
                for times in [1.01, 2.0, 10.0, 1000.0] {
                    assert!(
                        at(times * safe_ratio) < 1.0,
                        "{here}, R {}",
                        times * safe_ratio
                    );
                }
            }
        }
    }
}

/// Over all that can come of 200 requests.
#[test]
fn requests_do_not_make_a_rate_acceptable_that_is_not() {
    for acceptable in [0.001, 0.01, 0.1, 0.5] {
        let at = |p: f64| {
            let n = 200u64;
            let mut ln_choose = 0.0;
            let mut sum = 0.0;
            for failed in 0..=n {
                let k = failed as f64;
                if failed > 0 {
                    ln_choose += ((n as f64 - k + 1.0) / k).ln();
                }
                let ln = ln_choose + k * p.ln() + (n as f64 - k) * (-p).ln_1p();
                sum += (ln + ln_below(acceptable, [n, failed])).exp();
            }
            sum
        };
        assert!(
            (at(acceptable) - 1.0).abs() < 1e-9,
            "{acceptable}: {}",
            at(acceptable)
        );
        for times in [1.01, 1.5, 1.9] {
            assert!(at(times * acceptable) < 1.0, "{acceptable} × {times}");
        }
        assert!(at(0.5 * acceptable) > 1.0, "it must grow where it should");
    }
}

/// One request after another: it may be slow or fail, in either target. The canary is slow more rarely than main,
/// or as rarely, where "slow" is a failure too, the canary's in the share that is not allowed anyway.
#[test]
fn one_request_adds_nothing_on_average_to_the_evidence_of_latency() {
    let one = |hundredths, main: bool, slow: bool, failed: bool| {
        let of = if main { [1, 0] } else { [0, 1] };
        let pair = |is: bool| if is { of } else { [0, 0] };
        let mut counts = failures(of, pair(failed));
        counts.slow = [pair(slow); THRESHOLDS];
        let evidence = evidence(&[(0, hundredths, counts)]);
        evidence.strength(&defaults(), 0).latency.unwrap().exp()
    };
    for hundredths in WEIGHTS {
        let rho = weight(hundredths).ratio();
        let mean = |main: [f64; 2], canary: [f64; 2]| {
            let of = |is_main, [slow, fails]: [f64; 2]| {
                slow * one(hundredths, is_main, true, false)
                    + fails * one(hundredths, is_main, false, true)
                    + (1.0 - slow - fails) * one(hundredths, is_main, false, false)
            };
            (1.0 - rho) * of(true, main) + rho * of(false, canary)
        };
        let here = format!("weight {hundredths}");
        // As slow, and as many failures as allowed.
        let edge = mean([0.1, 0.02], [0.1, 0.03]);
        assert!((edge - 1.0).abs() < 1e-9, "{here}: {edge}");
        // A canary that answers, late, what main fails.
        let mended = mean([0.1, 0.2], [0.3, 0.0]);
        assert!((mended - 1.0).abs() < 1e-9, "{here}: {mended}");
        assert!(mean([0.1, 0.02], [0.1, 0.02]) < 1.0, "{here}");
        assert!(mean([0.1, 0.02], [0.1, 0.0]) < 1.0, "{here}");
        assert!(mean([0.1, 0.02], [0.2, 0.02]) > 1.0, "{here}: it must grow");
    }
}

/// A canary that fails what main fails is as good as main; a share of failures within `error_ratio` is no
/// latency either. The first version of the judge did not count failures here at all, and rolled back, as
/// slow, a canary that mended a main of which one request in five failed.
#[test]
fn a_canary_that_mends_main_is_not_slow() {
    let mut counts = failures([95_000, 5_000], [19_000, 0]);
    counts.slow = [[38_000, 2_500]; THRESHOLDS];
    let strength = evidence(&[(0, 500, counts)]).strength(&defaults(), 0);
    assert!(strength.latency.unwrap() < 0.0, "{strength:?}");
    assert_eq!(strength.verdict(), Verdict::Healthy);
}

/// The first version multiplied all evidence. What spoke for the canary in three steps had to be lost before it
/// could be rolled back in the fourth: 658 of its requests failed until then, instead of 78.
#[test]
fn what_spoke_for_the_canary_earlier_does_not_shield_it() {
    let good = failures([100_000, 10_000], [1_000, 100]);
    let bad = failures([1_000, 1_000], [10, 100]);
    let settings = Settings {
        latency: None,
        ..defaults()
    };
    let strength = |accounts: &[_]| evidence(accounts).strength(&settings, 3);
    let alone = strength(&[(0, 5_000, bad)]);
    let late = strength(&[
        (0, 1_000, good),
        (1, 1_000, good),
        (2, 1_000, good),
        (3, 5_000, bad),
    ]);
    assert_eq!(late.verdict(), Verdict::Unhealthy);
    // The fourth has a twentieth of the stake, the first has a half.
    assert!((alone.errors - late.errors - f64::ln(10.0)).abs() < 1e-3);
    // The same in one step, in which accounts get full.
    let late = strength(&[
        (3, 1_000, good),
        (3, 1_000, good),
        (3, 1_000, good),
        (3, 5_000, bad),
    ]);
    assert_eq!(late.verdict(), Verdict::Unhealthy);
}

/// What is begun is decided by requests before those that it counts.
#[test]
fn an_account_is_full_with_an_eighth_of_all_requests_but_not_below_ten_thousand() {
    let mut evidence = Evidence::default();
    let second = failures([950, 50], [0, 0]);
    for _ in 0..1_000 {
        evidence.add(0, weight(500), &second);
    }
    let sizes: Vec<u64> = evidence
        .accounts()
        .iter()
        .map(|account| account.counts.requests.iter().sum())
        .collect();
    assert_eq!(sizes.iter().sum::<u64>(), 1_000_000);
    assert_eq!(sizes[..8], [10_000; 8]);
    assert_eq!(sizes[8..11], [12_000, 14_000, 16_000]);
    // A year at 1,000 requests per second, in portions of a thousandth of what came before.
    let mut all = 1_000_000;
    while all < 31_536_000_000 {
        evidence.add(0, weight(500), &failures([all / 1_000, 0], [0, 0]));
        all += all / 1_000;
    }
    assert_eq!(evidence.accounts().len(), 104);
    // Others are not touched by it.
    let before = evidence.accounts().len();
    evidence.add(1, weight(500), &second);
    evidence.add(0, weight(501), &second);
    assert_eq!(evidence.accounts().len(), before + 2);
}

// What it comes to.

#[test]
fn about_three_hundred_requests_without_a_failure_are_enough() {
    let verdict = |requests| {
        let counts = failures([requests * 19, requests], [0, 0]);
        evidence(&[(0, 500, counts)])
            .strength(&defaults(), 0)
            .verdict()
    };
    assert_eq!(verdict(ENOUGH_REQUESTS - 1), Verdict::Inconclusive);
    assert_eq!(verdict(ENOUGH_REQUESTS), Verdict::Healthy);
}

/// 299 would do if nobody looked before.
const ENOUGH_REQUESTS: u64 = 316;

#[test]
fn a_canary_that_fails_as_rarely_as_main_is_shown_to_be_safe() {
    // Above the acceptable rate, so only the ratio can show it.
    let verdict = |failed: Pair| {
        let counts = failures([50 * failed[MAIN]; 2], failed);
        evidence(&[(0, 5_000, counts)])
            .strength(&defaults(), 0)
            .verdict()
    };
    assert_eq!(verdict([10, 10]), Verdict::Inconclusive);
    assert_eq!(verdict([100, 100]), Verdict::Healthy);
    assert_eq!(verdict([100, 150]), Verdict::Inconclusive);
    assert_eq!(verdict([100, 300]), Verdict::Unhealthy);
}

#[test]
fn evidence_for_a_canary_is_of_its_step_alone_and_evidence_against_it_of_all() {
    let good = failures([10_000, 1_000], [0, 0]);
    let bad = failures([10_000, 1_000], [1, 100]);
    let verdict = |counts, step| {
        evidence(&[(0, 500, counts)])
            .strength(&defaults(), step)
            .verdict()
    };
    assert_eq!(verdict(good, 0), Verdict::Healthy);
    assert_eq!(verdict(good, 1), Verdict::Inconclusive);
    assert_eq!(verdict(bad, 0), Verdict::Unhealthy);
    assert_eq!(verdict(bad, 1), Verdict::Unhealthy);
}

#[test]
fn a_slow_canary_is_unhealthy_only_where_latency_is_judged() {
    let mut counts = failures([9_500, 500], [0, 0]);
    counts.slow[20] = [95, 100];
    let evidence = evidence(&[(0, 500, counts)]);
    assert_eq!(
        evidence.strength(&defaults(), 0).verdict(),
        Verdict::Unhealthy
    );
    let settings = Settings {
        latency: None,
        ..defaults()
    };
    assert_eq!(evidence.strength(&settings, 0).verdict(), Verdict::Healthy);
}

#[test]
fn an_acceptable_rate_of_zero_is_not_asked_for() {
    let settings = Settings {
        acceptable_failure_rate: 0.0,
        ..defaults()
    };
    let counts = failures([1_000_000, 1_000_000], [0, 0]);
    let strength = evidence(&[(0, 5_000, counts)]).strength(&settings, 0);
    assert_eq!(strength.acceptable, None);
    assert_eq!(strength.verdict(), Verdict::Inconclusive);
}

/// The example of `docs/analysis.md`.
#[test]
fn the_worked_example_is_right() {
    let settings = Settings {
        latency: None,
        ..defaults()
    };
    let strength = |failed| {
        let counts = failures([1900, 100], failed);
        evidence(&[(0, 500, counts)])
            .strength(&settings, 0)
            .errors
            .exp()
    };
    let shown = [[0, 0], [0, 1], [1, 1], [1, 2], [1, 3], [1, 4]];
    let rounded = shown.map(|failed| (strength(failed) * 100.0).round() / 100.0);
    assert_eq!(rounded, EXAMPLE);
}

const EXAMPLE: [f64; 6] = [1.0, 3.4, 1.5, 5.84, 41.46, 380.15];

// What is counted.

#[test]
fn a_canary_may_be_slower_by_the_greater_of_margin_and_slack() {
    let thresholds = Thresholds::new(rule());
    let [main, canary] = Target::ALL.map(|target| *thresholds.bounds(target));
    assert_eq!((main[0], canary[0]), (2_000, 17_000));
    assert_eq!(main[THRESHOLDS - 1], 12_037_062);
    assert_eq!(canary[THRESHOLDS - 1], 13_240_768);
    for (t, allowed) in main.into_iter().zip(canary) {
        let (margin, slack) = (1.1 * t as f64, t as f64 + 15_000.0);
        // Both were rounded to a microsecond.
        assert!(
            (allowed as f64 - margin.max(slack)).abs() <= 1.1,
            "{t} {allowed}"
        );
    }
    assert!(main.is_sorted() && canary.is_sorted());
    let exact = Thresholds::new(LatencyRule {
        margin: 0.0,
        slack: Duration::ZERO,
    });
    assert_eq!(exact.bounds(Target::Main), exact.bounds(Target::Canary));
}

#[test]
fn what_takes_as_long_as_a_threshold_does_not_exceed_it() {
    let thresholds = Thresholds::new(rule());
    for target in Target::ALL {
        for (i, bound) in thresholds.bounds(target).iter().enumerate() {
            let level = |micros| thresholds.level(target, Duration::from_micros(micros));
            assert_eq!(
                [level(bound - 1), level(*bound), level(bound + 1)],
                [i, i, i + 1]
            );
        }
        assert_eq!(thresholds.level(target, Duration::ZERO), 0);
        assert_eq!(thresholds.level(target, Duration::MAX), THRESHOLDS);
        assert_eq!(THRESHOLDS + 1, LEVELS);
    }
}

#[test]
fn a_canary_that_gets_nothing_is_no_evidence() {
    let mut evidence = Evidence::default();
    evidence.add(0, Weight::NONE, &failures([1_000, 0], [10, 0]));
    assert_eq!(evidence, Evidence::default());
}

#[test]
fn where_the_canary_gets_everything_nothing_is_compared_and_it_must_be_good_by_itself() {
    let settings = defaults();
    let unasked = Settings {
        acceptable_failure_rate: 0.0,
        ..settings
    };
    let verdict = |settings: &Settings, evidence: &Evidence, step| {
        evidence.strength(settings, step).verdict()
    };
    // Main fails, too: it is shown to be no worse.
    let mut evidence = Evidence::default();
    evidence.add(0, weight(5_000), &failures([400, 400], [100, 100]));
    assert_eq!(verdict(&unasked, &evidence, 0), Verdict::Healthy);
    assert_eq!(
        verdict(&unasked, &evidence, 1),
        Verdict::Inconclusive,
        "silence is no pass"
    );

    let before = evidence.strength(&settings, 1).overall;
    let mut failing = evidence.clone();
    failing.add(1, Weight::ALL, &failures([0, 1_000], [0, 1_000]));
    let strength = failing.strength(&settings, 1);
    // What begins with the second step is worth its stake, and has nothing to grow by.
    assert!((strength.overall - before).abs() < 1e-9, "{strength:?}");
    assert_eq!(strength.verdict(), Verdict::Inconclusive);

    evidence.add(1, Weight::ALL, &failures([0, 400], [0, 0]));
    assert_eq!(verdict(&settings, &evidence, 1), Verdict::Healthy);
    assert_eq!(verdict(&unasked, &evidence, 1), Verdict::Healthy);
}

#[test]
fn nothing_makes_no_account() {
    let mut evidence = Evidence::default();
    evidence.add(0, weight(500), &Counts::default());
    assert!(evidence.accounts().is_empty());
}

#[test]
fn there_are_never_more_accounts_than_that_and_those_there_are_go_on() {
    let one = failures([1, 1], [0, 0]);
    let mut evidence = Evidence::default();
    for step in 0..2 * MOST_ACCOUNTS {
        evidence.add(step, weight(500), &one);
    }
    assert_eq!(evidence.accounts().len(), MOST_ACCOUNTS);
    evidence.add(0, weight(500), &one);
    evidence.add(0, weight(501), &one);
    assert_eq!(evidence.accounts().len(), MOST_ACCOUNTS);
    assert_eq!(evidence.accounts()[0].counts.requests, [2, 2]);
    assert_eq!(Evidence::new(evidence.accounts().to_vec()), evidence);
}

#[test]
fn counts_stop_at_the_greatest_number() {
    let mut counts = failures([u64::MAX, 1], [u64::MAX, 0]);
    counts.add(&failures([1, 1], [1, 0]));
    assert_eq!(counts, failures([u64::MAX, 2], [u64::MAX, 0]));
}
