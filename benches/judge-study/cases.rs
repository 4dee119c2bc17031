//! The cases: what is true, and what the judge must then do.

use super::{
    rules::{Name, Told},
    world::{Canary, Crowd, Errors, Latency, World},
};

/// A row of the table.
pub struct Case {
    /// Short, for the chart and the tests.
    pub id: &'static str,
    pub what: &'static str,
    pub must: Must,
    pub world: World,
    pub told: Told,
    pub rules: Vec<Name>,
    /// In the whole study.
    pub runs: usize,
    pub seed: u64,
}

/// What the judge must show.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Must {
    /// No more than this share of rollouts is rolled back: the canary is good.
    Spare(f64),
    /// The same, but the canary is somewhat worse than main, so a rival that rolls back is not wrong.
    SpareWorse(f64),
    /// The median of the seconds until it rolls back, and of the canary's failures until then. `like` is the
    /// case in which the canary is good and the rest the same.
    Catch {
        seconds: u32,
        errors: Option<u64>,
        like: &'static str,
    },
    /// Nothing: it stands there for comparison.
    Nothing,
}

const HOUR: u32 = 3600;
const FEW: f64 = 0.002;
const MANY: f64 = 0.01;
const RAMP: [f64; 4] = [1.0, 5.0, 25.0, 50.0];
const SAME: Latency = Latency {
    factor: 1.0,
    stuck: 0.0,
};
const CROWD: Crowd = Crowd {
    users: 2000,
    broken: 20,
};

/// All cases, in the order of the table.
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    good(&mut cases);
    boundary(&mut cases);
    bad(&mut cases);
    sticky(&mut cases);
    slow(&mut cases);
    for (row, case) in cases.iter_mut().enumerate() {
        case.seed = row as u64 + 1;
    }
    cases
}

/// Canaries as good as main.
fn good(cases: &mut Vec<Case>) {
    let outage = |usual| Errors::Outage { usual, outage: 0.4 };
    let spare = Must::Spare(0.01);
    let mut null = |id, what, rate, weight, main| {
        let world = World {
            rate,
            main,
            ..steady(weight, Canary::Ratio(1.0))
        };
        cases.push(errors(id, what, spare, world, 4000));
    };
    let steady = Errors::Steady;
    null("null-few", "as good, 0.2 % fail", 100.0, 5.0, steady(FEW));
    null("null-many", "as good, 1 % fail", 100.0, 5.0, steady(MANY));
    null(
        "null-outage-few",
        "as good, 0.2 % fail, 3 minutes of shared outage (40 % fail)",
        100.0,
        5.0,
        outage(FEW),
    );
    null(
        "null-outage-many",
        "as good, 1 % fail, 3 minutes of shared outage (40 % fail)",
        100.0,
        5.0,
        outage(MANY),
    );
    null(
        "null-1-few",
        "as good, 0.2 % fail, weight 1 %",
        100.0,
        1.0,
        steady(FEW),
    );
    null(
        "null-1-many",
        "as good, 1 % fail, weight 1 %",
        100.0,
        1.0,
        steady(MANY),
    );
    null(
        "null-rare-few",
        "as good, 0.2 % fail, 0.2 rps",
        0.2,
        5.0,
        steady(FEW),
    );
    null(
        "null-rare-many",
        "as good, 1 % fail, 0.2 rps",
        0.2,
        5.0,
        steady(MANY),
    );
    let world = World {
        main: Errors::Rising {
            from: FEW,
            to: 0.02,
        },
        ..ramp(Canary::Ratio(1.0))
    };
    cases.push(errors(
        "null-ramp",
        "as good, ramp 1→50 % while the shared error rate rises from 0.2 to 2 %",
        spare,
        world,
        4000,
    ));
}

/// Canaries that fail exactly as often as allowed.
fn boundary(cases: &mut Vec<Case>) {
    let mut row = |id, what, weight, main| {
        let world = World {
            main,
            ..steady(weight, Canary::Ratio(1.5))
        };
        let must = Must::SpareWorse(0.01);
        // Half of the traffic is ten times as many events of the canary's to be judged.
        let runs = if weight == 50.0 { 10_000 } else { 40_000 };
        cases.push(errors(id, what, must, world, runs));
    };
    let outage = Errors::Outage {
        usual: MANY,
        outage: 0.4,
    };
    row(
        "edge-few",
        "1.5 times as many failures, 0.2 % fail",
        5.0,
        Errors::Steady(FEW),
    );
    row(
        "edge-many",
        "1.5 times as many failures, 1 % fail",
        5.0,
        Errors::Steady(MANY),
    );
    row(
        "edge-outage",
        "1.5 times as many failures, 1 % fail, shared outage",
        5.0,
        outage,
    );
    row(
        "edge-1",
        "1.5 times as many failures, 1 % fail, weight 1 %",
        1.0,
        Errors::Steady(MANY),
    );
    row(
        "edge-50",
        "1.5 times as many failures, 1 % fail, weight 50 %",
        50.0,
        Errors::Steady(MANY),
    );
}

/// Canaries that fail more often than allowed.
fn bad(cases: &mut Vec<Case>) {
    let mut row = |id, what, must, canary, main| {
        let world = World {
            main: Errors::Steady(main),
            ..steady(5.0, canary)
        };
        cases.push(errors(id, what, must, world, 2000));
    };
    let at_once = Must::Catch {
        seconds: 5,
        errors: Some(10),
        like: "null-few",
    };
    let catch = |seconds, like| Must::Catch {
        seconds,
        errors: None,
        like,
    };
    row(
        "bad-30",
        "fails 30 % against 0.2 %",
        at_once,
        Canary::Share(0.3),
        FEW,
    );
    row(
        "bad-5",
        "fails 5 % against 0.2 %",
        catch(30, "null-few"),
        Canary::Share(0.05),
        FEW,
    );
    row(
        "bad-5-many",
        "fails 5 % against 1 %",
        catch(90, "null-many"),
        Canary::Share(0.05),
        MANY,
    );
    row(
        "bad-2",
        "fails 2 % against 1 %",
        catch(3600, "null-many"),
        Canary::Share(0.02),
        MANY,
    );
    let late = Canary::Late {
        from: 2700,
        share: 0.05,
    };
    let world = World {
        main: Errors::Steady(MANY),
        ..ramp(late)
    };
    let within_a_step = World {
        main: Errors::Steady(MANY),
        ..steady(5.0, late)
    };
    cases.push(errors(
        "late",
        "ramp 1→50 %, as good until the last step, then fails 5 % against 1 %",
        catch(60, "null-ramp"),
        world,
        2000,
    ));
    cases.push(errors(
        "late-same-step",
        "as good for 45 minutes at 5 %, then fails 5 % against 1 %",
        catch(300, "null-many"),
        within_a_step,
        2000,
    ));
}

/// Users who stay where they are, 20 of 2000 of them broken.
fn sticky(cases: &mut Vec<Case>) {
    let mut row = |id, what, must, told, world| {
        let world = World {
            crowd: Some(CROWD),
            ..world
        };
        let mut case = errors(id, what, must, world, 2000);
        case.told = told;
        cases.push(case);
    };
    let (spare, as_it_is) = (Must::Spare(0.01), Told::AsItIs);
    let steady = || steady(5.0, Canary::Ratio(1.0));
    let ramp = || ramp(Canary::Ratio(1.0));
    row(
        "sticky",
        "sticky users, 1 % of them broken whichever target has them",
        spare,
        as_it_is,
        steady(),
    );
    row(
        "sticky-ramp",
        "the same, ramp 1→5→25→50 %",
        spare,
        as_it_is,
        ramp(),
    );
    row(
        "sticky-mistake",
        "sticky users, were every failure counted",
        Must::Nothing,
        Told::EveryFailure,
        steady(),
    );
    row(
        "sticky-ramp-mistake",
        "the same, ramp 1→5→25→50 %",
        Must::Nothing,
        Told::EveryFailure,
        ramp(),
    );
}

/// Cases in which latency is judged as well.
fn slow(cases: &mut Vec<Case>) {
    let mut row = |id, what, must, runs, canary, main, latency| {
        let world = World {
            main,
            latency: Some(latency),
            ..steady(5.0, canary)
        };
        let mut case = errors(id, what, must, world, runs);
        case.rules.push(Name::MannWhitney);
        cases.push(case);
    };
    let spare = Must::Spare(0.01);
    let equal = Canary::Ratio(1.0);
    let few = Errors::Steady(FEW);
    let many = Errors::Steady(MANY);
    let outage = Errors::Outage {
        usual: FEW,
        outage: 0.4,
    };
    row(
        "both-null",
        "latency judged too: as good, 0.2 % fail",
        spare,
        500,
        equal,
        few,
        SAME,
    );
    row(
        "both-outage",
        "latency judged too: as good, shared outage",
        spare,
        500,
        equal,
        outage,
        SAME,
    );
    row(
        "both-edge",
        "latency judged too: 1.5 times as many failures, 1 % fail",
        Must::SpareWorse(0.01),
        500,
        Canary::Ratio(1.5),
        many,
        SAME,
    );
    row(
        "both-fix",
        "latency judged too: a canary that mends main, of which 20 % fail",
        spare,
        500,
        Canary::Share(0.0),
        Errors::Steady(0.2),
        SAME,
    );
    let times = |factor| Latency { factor, stuck: 0.0 };
    row(
        "slow-allowed",
        "latency × 1.1, which is allowed",
        Must::SpareWorse(0.01),
        500,
        equal,
        few,
        times(1.1),
    );
    let catch = |seconds| Must::Catch {
        seconds,
        errors: None,
        like: "both-null",
    };
    row(
        "slow-1.5",
        "latency × 1.5",
        catch(90),
        500,
        equal,
        few,
        times(1.5),
    );
    row(
        "slow-2",
        "latency × 2",
        catch(30),
        500,
        equal,
        few,
        times(2.0),
    );
    let stuck = Latency {
        factor: 1.0,
        stuck: 0.02,
    };
    row(
        "slow-tail",
        "2 % of answers take 1 s more",
        catch(90),
        500,
        equal,
        few,
        stuck,
    );
    let mut mistake = errors(
        "slow-mistake",
        "1.5 times as many failures, 1 % fail, were failures endless latencies",
        Must::Nothing,
        World {
            main: many,
            latency: Some(SAME),
            ..steady(5.0, Canary::Ratio(1.5))
        },
        500,
    );
    mistake.told = Told::FailuresAsSlow;
    mistake.rules = vec![Name::Judge];
    cases.push(mistake);
}

fn errors(id: &'static str, what: &'static str, must: Must, world: World, runs: usize) -> Case {
    Case {
        id,
        what,
        must,
        world,
        told: Told::AsItIs,
        rules: vec![Name::Judge, Name::Fixed, Name::ZTest],
        runs,
        seed: 0,
    }
}

/// One hour at one weight, 100 rps, 0.2 % of which fail.
fn steady(weight: f64, canary: Canary) -> World {
    World {
        rate: 100.0,
        steps: vec![(weight, HOUR)],
        main: Errors::Steady(FEW),
        canary,
        latency: None,
        crowd: None,
    }
}

/// A quarter of an hour at each weight.
fn ramp(canary: Canary) -> World {
    World {
        steps: RAMP.map(|weight| (weight, HOUR / 4)).to_vec(),
        ..steady(0.0, canary)
    }
}
