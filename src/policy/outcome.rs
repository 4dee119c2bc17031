//! How a request ended, and what counts as a failure of an upstream.

/// How a request to the canary ended, as far as limits are concerned. A permit ends with exactly
/// one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The upstream did what it should.
    Success,
    /// The upstream failed: a bad status, or no proper answer.
    Failure,
    /// It says nothing about the upstream: the client left, or the connection was handed over
    /// (`101`).
    Ignored,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Outcome; 3] = [Outcome::Success, Outcome::Failure, Outcome::Ignored];
}

/// Which statuses are failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureRule {
    /// `"5xx"`: what the server itself calls its fault. From 600 up, which no status may be, is one
    /// too (RFC 9110 section 15).
    ServerError,
    /// `"non-2xx"`: all but 200 to 299 (3xx, 304 and 404 too), as it always was for
    /// `error-limit-canary`.
    NotSuccess,
}

impl FailureRule {
    /// What the status code of a response head says; `101` says nothing.
    pub const fn of_status(self, status: u16) -> Outcome {
        match (self, status) {
            (_, 101) => Outcome::Ignored,
            (FailureRule::NotSuccess, 200..=299) => Outcome::Success,
            (FailureRule::NotSuccess, _) | (FailureRule::ServerError, 500..) => Outcome::Failure,
            (FailureRule::ServerError, _) => Outcome::Success,
        }
    }
}

/// Whether a gRPC status code is a failure of the server, rather than its answer: `UNKNOWN`,
/// `DEADLINE_EXCEEDED`, `INTERNAL`, `UNAVAILABLE`, `DATA_LOSS` (grpc/doc/statuscodes.md). Where an answer has
/// one, it counts and not the HTTP status, which is 200.
pub const fn is_grpc_failure(code: u32) -> bool {
    matches!(code, 2 | 4 | 13 | 14 | 15)
}

/// What kind of answer a client got: the closed set behind the `code_class` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CodeClass {
    /// 1xx: it has switched to another protocol.
    Informational,
    /// 2xx.
    Success,
    /// 3xx.
    Redirection,
    /// 4xx.
    ClientError,
    /// 5xx, and what is above, which no status may be (RFC 9110 section 15).
    ServerError,
    /// None: it left, or let us wait for too long, before there was one.
    None,
}

impl CodeClass {
    /// All of them, in the order of [`CodeClass::index`].
    pub const ALL: [CodeClass; 6] = [
        CodeClass::Informational,
        CodeClass::Success,
        CodeClass::Redirection,
        CodeClass::ClientError,
        CodeClass::ServerError,
        CodeClass::None,
    ];

    /// The class of a status.
    pub const fn of(status: u16) -> CodeClass {
        match status {
            0..200 => CodeClass::Informational,
            200..300 => CodeClass::Success,
            300..400 => CodeClass::Redirection,
            400..500 => CodeClass::ClientError,
            500.. => CodeClass::ServerError,
        }
    }

    /// The value of the `code_class` label.
    pub const fn label(self) -> &'static str {
        match self {
            CodeClass::Informational => "1xx",
            CodeClass::Success => "2xx",
            CodeClass::Redirection => "3xx",
            CodeClass::ClientError => "4xx",
            CodeClass::ServerError => "5xx",
            CodeClass::None => "none",
        }
    }

    /// A dense index, for arrays with an element per class.
    pub const fn index(self) -> usize {
        match self {
            CodeClass::Informational => 0,
            CodeClass::Success => 1,
            CodeClass::Redirection => 2,
            CodeClass::ClientError => 3,
            CodeClass::ServerError => 4,
            CodeClass::None => 5,
        }
    }
}

/// What went wrong with an upstream: the closed set behind the `kind` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// Its name has no address.
    Unresolved,
    /// It refused the connection, or the network did.
    Refused,
    /// The connection did not come about within `connect-timeout`.
    ConnectTimeout,
    /// The TLS handshake failed.
    Tls,
    /// No response head within `timeout`.
    Timeout,
    /// It closed or reset the connection before a response head.
    Reset,
    /// What it sent is not an HTTP/1 response that we may pass on.
    Malformed,
    /// It broke off in the middle of a response body.
    BodyCut,
}

impl FailureKind {
    /// All of them, in the order of [`FailureKind::index`].
    pub const ALL: [FailureKind; 8] = [
        FailureKind::Unresolved,
        FailureKind::Refused,
        FailureKind::ConnectTimeout,
        FailureKind::Tls,
        FailureKind::Timeout,
        FailureKind::Reset,
        FailureKind::Malformed,
        FailureKind::BodyCut,
    ];

    /// A dense index, for arrays with an element per kind.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The value of the `kind` label.
    pub const fn label(self) -> &'static str {
        match self {
            FailureKind::Unresolved => "unresolved",
            FailureKind::Refused => "refused",
            FailureKind::ConnectTimeout => "connect_timeout",
            FailureKind::Tls => "tls",
            FailureKind::Timeout => "timeout",
            FailureKind::Reset => "reset",
            FailureKind::Malformed => "malformed",
            FailureKind::BodyCut => "body_cut",
        }
    }

    /// Whether nothing of the request can have reached the upstream's application, so that sending
    /// it elsewhere cannot do anything twice.
    pub const fn never_sent(self) -> bool {
        match self {
            FailureKind::Unresolved
            | FailureKind::Refused
            | FailureKind::ConnectTimeout
            | FailureKind::Tls => true,
            FailureKind::Timeout
            | FailureKind::Reset
            | FailureKind::Malformed
            | FailureKind::BodyCut => false,
        }
    }
}

/// What became of a request that its upstream did not answer well: the closed set behind the labels
/// `from`, `to` and `outcome`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fallback {
    /// Main answered what was for the canary, with whatever status.
    Replayed,
    /// Main did not answer it either.
    ReplayFailed,
    /// It was not sent to main, because too many were.
    OverBudget,
    /// The static answer took the canary's place.
    CanaryStatic,
    /// The static answer took main's place.
    MainStatic,
}

impl Fallback {
    /// All of them, in the order of [`Fallback::index`].
    pub const ALL: [Fallback; 5] = [
        Fallback::Replayed,
        Fallback::ReplayFailed,
        Fallback::OverBudget,
        Fallback::CanaryStatic,
        Fallback::MainStatic,
    ];

    /// A dense index.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The values of the labels `from`, `to` and `outcome`.
    pub const fn labels(self) -> [&'static str; 3] {
        match self {
            Fallback::Replayed => ["canary", "main", "answered"],
            Fallback::ReplayFailed => ["canary", "main", "failed"],
            Fallback::OverBudget => ["canary", "main", "over_budget"],
            Fallback::CanaryStatic => ["canary", "static", "answered"],
            Fallback::MainStatic => ["main", "static", "answered"],
        }
    }
}

/// What came of a question to the sidecar: the closed set behind the `result` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SidecarResult {
    /// It said main.
    Main,
    /// It said canary.
    Canary,
    /// It answered with a status code that means nothing to us.
    NonStandard,
    /// It did not answer, or not in time.
    Error,
    /// It was not asked, because it had not answered others.
    BreakerOpen,
}

impl SidecarResult {
    /// All of them, in the order of [`SidecarResult::index`].
    pub const ALL: [SidecarResult; 5] = [
        SidecarResult::Main,
        SidecarResult::Canary,
        SidecarResult::NonStandard,
        SidecarResult::Error,
        SidecarResult::BreakerOpen,
    ];

    /// A dense index.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The value of the label.
    pub const fn label(self) -> &'static str {
        match self {
            SidecarResult::Main => "main",
            SidecarResult::Canary => "canary",
            SidecarResult::NonStandard => "non_standard",
            SidecarResult::Error => "error",
            SidecarResult::BreakerOpen => "breaker_open",
        }
    }
}

/// What a look into the sidecar's cache came to: the closed set behind the `result` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CacheResult {
    /// The answer was there.
    Hit,
    /// The sidecar was asked.
    Miss,
    /// The sidecar was being asked the same already.
    Shared,
}

impl CacheResult {
    /// All of them, in the order of [`CacheResult::index`].
    pub const ALL: [CacheResult; 3] = [CacheResult::Hit, CacheResult::Miss, CacheResult::Shared];

    /// A dense index.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The value of the label.
    pub const fn label(self) -> &'static str {
        match self {
            CacheResult::Hit => "hit",
            CacheResult::Miss => "miss",
            CacheResult::Shared => "shared",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_status_says_depends_on_the_rule_and_101_is_neutral() {
        for status in 100..=999 {
            let success = |is: bool| match is {
                _ if status == 101 => Outcome::Ignored,
                true => Outcome::Success,
                false => Outcome::Failure,
            };
            let by = |rule: FailureRule| rule.of_status(status);
            assert_eq!(
                by(FailureRule::NotSuccess),
                success(status / 100 == 2),
                "{status}"
            );
            assert_eq!(
                by(FailureRule::ServerError),
                success(status < 500),
                "{status}"
            );
        }
    }

    #[test]
    fn indices_are_dense() {
        for (i, kind) in FailureKind::ALL.iter().enumerate() {
            assert_eq!(kind.index(), i);
        }
        for (i, fallback) in Fallback::ALL.iter().enumerate() {
            assert_eq!(fallback.index(), i);
        }
        for (i, result) in SidecarResult::ALL.iter().enumerate() {
            assert_eq!(result.index(), i);
        }
        for (i, result) in CacheResult::ALL.iter().enumerate() {
            assert_eq!(result.index(), i);
        }
    }
}
