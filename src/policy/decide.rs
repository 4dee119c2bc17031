//! Main or canary: the table of decisions.
//!
//! [`decide`] looks at what is known of a request and either settles it, or says that the sidecar must be
//! asked, or that the request is *eligible*: chance says where it goes, by the weight. [`after_sidecar`] reads
//! the sidecar's answer; its canary means eligible, too. [`Reason::drawn`] reads what chance said. None of
//! them asks anybody anything. A reason that names the canary still needs a permit
//! ([`crate::state::admission`]); if that is refused, [`Reason::demoted`] says why the request goes to main
//! instead.

use super::{Target, Weight};

/// What is known of a request before anyone was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Where the `X-Canary` header forces the request, see [`forced_by_header`].
    pub forced: Option<Target>,
    /// What stands before the canary at this moment.
    pub barriers: Barriers,
    /// The canary's share of eligible requests.
    pub weight: Weight,
}

/// What keeps requests from the canary. What is off never does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Barriers {
    /// `circuit-breaker.request-limit-canary` requests were given to the canary.
    pub requests: bool,
    /// `circuit-breaker.error-limit-canary` bad responses came from the canary.
    pub errors: bool,
    /// The canary's breaker is open, or all its probes are out.
    pub breaker: bool,
}

/// Why a request that was to go to the canary got no permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// A limit is used up, or could be by what is in flight.
    Limit,
    /// The breaker is open, or all its probes are out.
    Breaker,
}

/// What the operator configured, as far as decisions depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rules {
    /// The status codes of the sidecar, if there is one.
    pub sidecar: Option<SidecarStatuses>,
}

/// The two status codes by which a sidecar answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SidecarStatuses {
    /// Means main; 204 unless configured.
    pub main: u16,
    /// Means canary; 200 unless configured.
    pub canary: u16,
}

impl Default for SidecarStatuses {
    fn default() -> Self {
        SidecarStatuses {
            main: 204,
            canary: 200,
        }
    }
}

/// What [`decide`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The request goes to [`Reason::target`].
    Route(Reason),
    /// The facts do not settle it: ask the sidecar, then [`after_sidecar`].
    AskSidecar(SidecarStatuses),
    /// It is eligible without being asked about: [`Reason::WeightCanary`], if chance agrees.
    Eligible,
}

/// How the sidecar answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SidecarAnswer {
    /// With this HTTP status code.
    Status(u16),
    /// Not at all, too late, or with something that is not HTTP.
    Failed,
}

/// Why a request went where it went: the closed set behind the `reason` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// There is no sidecar and no `X-Canary` header.
    NoSidecar,
    /// `X-Canary: true`.
    HeaderTrue,
    /// `X-Canary: false`.
    HeaderFalse,
    /// The request limit was used up before the sidecar was asked.
    RequestLimitReached,
    /// The error limit was used up before the sidecar was asked.
    ErrorLimitReached,
    /// The sidecar said canary.
    SidecarCanary,
    /// The sidecar said main.
    SidecarMain,
    /// The sidecar said canary, but no permit was left.
    SidecarCanaryLimitReached,
    /// The sidecar answered with a status code that means nothing to us.
    SidecarNonStandard,
    /// The sidecar failed.
    SidecarError,
    /// The breaker was open before the sidecar was asked.
    BreakerOpen,
    /// The sidecar said canary, but the breaker was open.
    SidecarCanaryBreakerOpen,
    /// There is a sidecar, but the weight leaves nothing to ask about.
    WeightZero,
    /// There is no sidecar, and chance chose the canary.
    WeightCanary,
    /// There is no sidecar, and chance chose main.
    WeightMain,
    /// There is no sidecar, and chance chose the canary, but no permit was left.
    WeightCanaryLimitReached,
    /// There is no sidecar, and chance chose the canary, but the breaker was open.
    WeightCanaryBreakerOpen,
    /// The sidecar said canary, and chance chose main.
    SidecarCanaryWeightMain,
}

impl Reason {
    /// All of them, in the order of [`Reason::index`].
    pub const ALL: [Reason; 18] = [
        Reason::NoSidecar,
        Reason::HeaderTrue,
        Reason::HeaderFalse,
        Reason::RequestLimitReached,
        Reason::ErrorLimitReached,
        Reason::SidecarCanary,
        Reason::SidecarMain,
        Reason::SidecarCanaryLimitReached,
        Reason::SidecarNonStandard,
        Reason::SidecarError,
        Reason::BreakerOpen,
        Reason::SidecarCanaryBreakerOpen,
        Reason::WeightZero,
        Reason::WeightCanary,
        Reason::WeightMain,
        Reason::WeightCanaryLimitReached,
        Reason::WeightCanaryBreakerOpen,
        Reason::SidecarCanaryWeightMain,
    ];

    /// A dense index, for arrays with an element per reason.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The upstream that this reason leads to.
    pub const fn target(self) -> Target {
        match self {
            Reason::HeaderTrue | Reason::SidecarCanary | Reason::WeightCanary => Target::Canary,
            Reason::NoSidecar
            | Reason::HeaderFalse
            | Reason::RequestLimitReached
            | Reason::ErrorLimitReached
            | Reason::SidecarMain
            | Reason::SidecarCanaryLimitReached
            | Reason::SidecarNonStandard
            | Reason::SidecarError
            | Reason::BreakerOpen
            | Reason::SidecarCanaryBreakerOpen
            | Reason::WeightZero
            | Reason::WeightMain
            | Reason::WeightCanaryLimitReached
            | Reason::WeightCanaryBreakerOpen
            | Reason::SidecarCanaryWeightMain => Target::Main,
        }
    }

    /// Whether chance has a say in it.
    pub const fn is_eligible(self) -> bool {
        matches!(self, Reason::SidecarCanary | Reason::WeightCanary)
    }

    /// The reason for an [eligible](Reason::is_eligible) request when chance has chosen this target; any other
    /// reason stays what it is.
    pub const fn drawn(self, chosen: Target) -> Reason {
        match (self, chosen) {
            (Reason::SidecarCanary, Target::Main) => Reason::SidecarCanaryWeightMain,
            (Reason::WeightCanary, Target::Main) => Reason::WeightMain,
            (other, _) => other,
        }
    }

    /// The reason for main, when this reason led to the canary and that refused it.
    ///
    /// `X-Canary: true` is never refused, and a reason for main stays what it is.
    pub const fn demoted(self, refusal: Refusal) -> Reason {
        match (self, refusal) {
            (Reason::SidecarCanary, Refusal::Limit) => Reason::SidecarCanaryLimitReached,
            (Reason::SidecarCanary, Refusal::Breaker) => Reason::SidecarCanaryBreakerOpen,
            (Reason::WeightCanary, Refusal::Limit) => Reason::WeightCanaryLimitReached,
            (Reason::WeightCanary, Refusal::Breaker) => Reason::WeightCanaryBreakerOpen,
            (other, _) => other,
        }
    }

    /// The value of the `reason` label. The numbers are the configured status codes, so the set is
    /// closed for the life of a configuration.
    pub fn label(self, statuses: SidecarStatuses) -> String {
        match self {
            Reason::NoSidecar => String::new(),
            Reason::HeaderTrue => "Routed via X-Canary header value: true".into(),
            Reason::HeaderFalse => "Routed via X-Canary header value: false".into(),
            Reason::RequestLimitReached => "Canary request limit reached".into(),
            Reason::ErrorLimitReached => "Canary error limit reached".into(),
            Reason::SidecarCanary => format!("Sidecar returns status code {}", statuses.canary),
            Reason::SidecarMain => format!("Sidecar returns status code {}", statuses.main),
            Reason::SidecarCanaryLimitReached => {
                format!(
                    "Sidecar returns status code {}, but canary limit reached",
                    statuses.canary
                )
            }
            Reason::SidecarNonStandard => "Sidecar returns non standard status code".into(),
            Reason::SidecarError => "Sidecar error".into(),
            Reason::BreakerOpen => "Canary circuit breaker open".into(),
            Reason::SidecarCanaryBreakerOpen => {
                format!(
                    "Sidecar returns status code {}, but canary circuit breaker open",
                    statuses.canary
                )
            }
            Reason::WeightZero => "Canary weight is 0".into(),
            Reason::WeightCanary => "Routed via weight: canary".into(),
            Reason::WeightMain => "Routed via weight: main".into(),
            Reason::WeightCanaryLimitReached => {
                "Routed via weight: canary, but canary limit reached".into()
            }
            Reason::WeightCanaryBreakerOpen => {
                "Routed via weight: canary, but canary circuit breaker open".into()
            }
            Reason::SidecarCanaryWeightMain => {
                format!(
                    "Sidecar returns status code {}, but weight chose main",
                    statuses.canary
                )
            }
        }
    }
}

/// Where an `X-Canary` header forces a request: `true` and `false`, exactly so and case-sensitive.
/// Any other value is as if the header were absent. Of several headers the first one counts.
pub fn forced_by_header(value: Option<&[u8]>) -> Option<Target> {
    match value {
        Some(b"true") => Some(Target::Canary),
        Some(b"false") => Some(Target::Main),
        _ => None,
    }
}

/// The order of decisions: the header, then whether the canary gets anything at all, then what stands before
/// it, then whether there is a sidecar.
pub fn decide(facts: Facts, rules: Rules) -> Decision {
    match facts.forced {
        Some(Target::Canary) => return Decision::Route(Reason::HeaderTrue),
        Some(Target::Main) => return Decision::Route(Reason::HeaderFalse),
        None => {}
    }
    if facts.weight == Weight::NONE {
        return Decision::Route(match rules.sidecar {
            None => Reason::NoSidecar,
            Some(_) => Reason::WeightZero,
        });
    }
    let Barriers {
        requests,
        errors,
        breaker,
    } = facts.barriers;
    if requests {
        return Decision::Route(Reason::RequestLimitReached);
    }
    if errors {
        return Decision::Route(Reason::ErrorLimitReached);
    }
    if breaker {
        return Decision::Route(Reason::BreakerOpen);
    }
    match rules.sidecar {
        Some(statuses) => Decision::AskSidecar(statuses),
        None => Decision::Eligible,
    }
}

/// What the sidecar's answer means. Only its canary status makes a request eligible; everything that is
/// not understood is main.
pub fn after_sidecar(answer: SidecarAnswer, statuses: SidecarStatuses) -> Reason {
    match answer {
        SidecarAnswer::Status(status) if status == statuses.canary => Reason::SidecarCanary,
        SidecarAnswer::Status(status) if status == statuses.main => Reason::SidecarMain,
        SidecarAnswer::Status(_) => Reason::SidecarNonStandard,
        SidecarAnswer::Failed => Reason::SidecarError,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIDECAR: Rules = Rules {
        sidecar: Some(SidecarStatuses {
            main: 204,
            canary: 200,
        }),
    };
    const ALONE: Rules = Rules { sidecar: None };

    /// Every combination of header, sidecar, limits, breaker and weight: 3 × 2 × 2 × 2 rows, none left out,
    /// each with a breaker that is closed and one that is open, and with nothing, a little and all for the
    /// canary.
    #[test]
    fn the_whole_table_of_decisions() {
        use Decision::Route;
        let ask = Decision::AskSidecar(SidecarStatuses::default());
        let main = Some(Target::Main);
        let canary = Some(Target::Canary);
        #[rustfmt::skip]
        let table = [
            // forced, rules,   requests, errors   decision
            (canary,   ALONE,   false,    false,   Route(Reason::HeaderTrue)),
            (canary,   ALONE,   false,    true,    Route(Reason::HeaderTrue)),
            (canary,   ALONE,   true,     false,   Route(Reason::HeaderTrue)),
            (canary,   ALONE,   true,     true,    Route(Reason::HeaderTrue)),
            (canary,   SIDECAR, false,    false,   Route(Reason::HeaderTrue)),
            (canary,   SIDECAR, false,    true,    Route(Reason::HeaderTrue)),
            (canary,   SIDECAR, true,     false,   Route(Reason::HeaderTrue)),
            (canary,   SIDECAR, true,     true,    Route(Reason::HeaderTrue)),
            (main,     ALONE,   false,    false,   Route(Reason::HeaderFalse)),
            (main,     ALONE,   false,    true,    Route(Reason::HeaderFalse)),
            (main,     ALONE,   true,     false,   Route(Reason::HeaderFalse)),
            (main,     ALONE,   true,     true,    Route(Reason::HeaderFalse)),
            (main,     SIDECAR, false,    false,   Route(Reason::HeaderFalse)),
            (main,     SIDECAR, false,    true,    Route(Reason::HeaderFalse)),
            (main,     SIDECAR, true,     false,   Route(Reason::HeaderFalse)),
            (main,     SIDECAR, true,     true,    Route(Reason::HeaderFalse)),
            (None,     ALONE,   false,    false,   Decision::Eligible),
            (None,     ALONE,   false,    true,    Route(Reason::ErrorLimitReached)),
            (None,     ALONE,   true,     false,   Route(Reason::RequestLimitReached)),
            (None,     ALONE,   true,     true,    Route(Reason::RequestLimitReached)),
            (None,     SIDECAR, false,    false,   ask),
            (None,     SIDECAR, false,    true,    Route(Reason::ErrorLimitReached)),
            (None,     SIDECAR, true,     false,   Route(Reason::RequestLimitReached)),
            (None,     SIDECAR, true,     true,    Route(Reason::RequestLimitReached)),
        ];
        for (forced, rules, requests, errors, expected) in table {
            for breaker in [false, true] {
                let barriers = Barriers {
                    requests,
                    errors,
                    breaker,
                };
                for weight in [Weight::NONE, Weight::new(1).unwrap(), Weight::ALL] {
                    let facts = Facts {
                        forced,
                        barriers,
                        weight,
                    };
                    let undecided = [ask, Decision::Eligible].contains(&expected);
                    // The breaker has a say only where nothing else has decided, and a weight of nothing
                    // wherever the header has not.
                    let expected = match (forced, weight, rules.sidecar) {
                        (None, Weight::NONE, None) => Route(Reason::NoSidecar),
                        (None, Weight::NONE, Some(_)) => Route(Reason::WeightZero),
                        _ if breaker && undecided => Route(Reason::BreakerOpen),
                        _ => expected,
                    };
                    assert_eq!(decide(facts, rules), expected, "{facts:?} {rules:?}");
                }
            }
        }
    }

    #[test]
    fn only_the_two_exact_values_force() {
        assert_eq!(forced_by_header(Some(b"true")), Some(Target::Canary));
        assert_eq!(forced_by_header(Some(b"false")), Some(Target::Main));
        for other in [
            &b"True"[..],
            b"TRUE",
            b"1",
            b"0",
            b"",
            b"true ",
            b"yes",
            b"False",
            b"truefalse",
        ] {
            assert_eq!(forced_by_header(Some(other)), None, "{other:?}");
        }
        assert_eq!(forced_by_header(None), None);
    }

    #[test]
    fn every_status_of_a_sidecar_has_a_meaning() {
        for statuses in [
            SidecarStatuses::default(),
            SidecarStatuses {
                main: 200,
                canary: 299,
            },
        ] {
            for status in 100..=999 {
                let reason = after_sidecar(SidecarAnswer::Status(status), statuses);
                let expected = if status == statuses.canary {
                    Reason::SidecarCanary
                } else if status == statuses.main {
                    Reason::SidecarMain
                } else {
                    Reason::SidecarNonStandard
                };
                assert_eq!(reason, expected, "{status} {statuses:?}");
                assert_eq!(reason.target() == Target::Canary, status == statuses.canary);
            }
            assert_eq!(
                after_sidecar(SidecarAnswer::Failed, statuses),
                Reason::SidecarError
            );
        }
    }

    #[test]
    fn indices_are_dense_and_labels_differ() {
        let labels: std::collections::HashSet<String> = Reason::ALL
            .iter()
            .map(|r| r.label(SidecarStatuses::default()))
            .collect();
        assert_eq!(labels.len(), Reason::ALL.len());
        for (i, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), i);
        }
        for (i, target) in Target::ALL.iter().enumerate() {
            assert_eq!(target.index(), i);
        }
    }

    #[test]
    fn only_what_is_eligible_can_be_drawn_or_demoted_and_goes_to_main_then() {
        for reason in Reason::ALL {
            assert_eq!(reason.drawn(Target::Canary), reason);
            let others = [Refusal::Limit, Refusal::Breaker].map(|refusal| reason.demoted(refusal));
            for other in others.into_iter().chain([reason.drawn(Target::Main)]) {
                match reason.is_eligible() {
                    true => assert_eq!(
                        (reason.target(), other.target()),
                        (Target::Canary, Target::Main)
                    ),
                    false => assert_eq!(other, reason),
                }
            }
        }
    }
}
