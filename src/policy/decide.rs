//! Main or canary: the table of decisions.
//!
//! [`decide`] looks at what is known of a request and either settles it or says that the sidecar
//! must be asked; [`after_sidecar`] reads the answer. Neither asks anybody anything. A reason that
//! names the canary still needs a permit ([`crate::state::admission`]); if that is refused,
//! [`Reason::demoted`] says why the request goes to main instead.

use super::Target;

/// What is known of a request before anyone was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Where the `X-Canary` header forces the request, see [`forced_by_header`].
    pub forced: Option<Target>,
    /// What stands before the canary at this moment.
    pub barriers: Barriers,
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
}

impl Reason {
    /// All of them, in the order of [`Reason::index`].
    pub const ALL: [Reason; 12] = [
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
    ];

    /// A dense index, for arrays with an element per reason.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The upstream that this reason leads to.
    pub const fn target(self) -> Target {
        match self {
            Reason::HeaderTrue | Reason::SidecarCanary => Target::Canary,
            Reason::NoSidecar
            | Reason::HeaderFalse
            | Reason::RequestLimitReached
            | Reason::ErrorLimitReached
            | Reason::SidecarMain
            | Reason::SidecarCanaryLimitReached
            | Reason::SidecarNonStandard
            | Reason::SidecarError
            | Reason::BreakerOpen
            | Reason::SidecarCanaryBreakerOpen => Target::Main,
        }
    }

    /// The reason for main, when this reason led to the canary and that refused it.
    ///
    /// `X-Canary: true` is never refused, and a reason for main stays what it is.
    pub const fn demoted(self, refusal: Refusal) -> Reason {
        match (self, refusal) {
            (Reason::SidecarCanary, Refusal::Limit) => Reason::SidecarCanaryLimitReached,
            (Reason::SidecarCanary, Refusal::Breaker) => Reason::SidecarCanaryBreakerOpen,
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

/// The order of decisions: the header, then whether there is a sidecar, then what stands before the
/// canary.
pub fn decide(facts: Facts, rules: Rules) -> Decision {
    match facts.forced {
        Some(Target::Canary) => return Decision::Route(Reason::HeaderTrue),
        Some(Target::Main) => return Decision::Route(Reason::HeaderFalse),
        None => {}
    }
    let Some(statuses) = rules.sidecar else {
        return Decision::Route(Reason::NoSidecar);
    };
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
    Decision::AskSidecar(statuses)
}

/// What the sidecar's answer means. Only its canary status leads to the canary; everything that is
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

    /// Every combination of header, sidecar, limits and breaker: 3 × 2 × 2 × 2 rows, none left out, each
    /// with a breaker that is closed and one that is open.
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
            (None,     ALONE,   false,    false,   Route(Reason::NoSidecar)),
            (None,     ALONE,   false,    true,    Route(Reason::NoSidecar)),
            (None,     ALONE,   true,     false,   Route(Reason::NoSidecar)),
            (None,     ALONE,   true,     true,    Route(Reason::NoSidecar)),
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
                let facts = Facts { forced, barriers };
                // It has a say only where nothing else has decided.
                let expected = match breaker && expected == ask {
                    true => Route(Reason::BreakerOpen),
                    false => expected,
                };
                assert_eq!(decide(facts, rules), expected, "{facts:?} {rules:?}");
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
    fn only_a_sidecars_choice_can_be_demoted_and_a_demoted_request_goes_to_main() {
        for refusal in [Refusal::Limit, Refusal::Breaker] {
            for reason in Reason::ALL {
                let demoted = reason.demoted(refusal);
                match reason {
                    Reason::SidecarCanary => assert_eq!(demoted.target(), Target::Main),
                    other => assert_eq!(demoted, other),
                }
            }
        }
    }
}
