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

    /// What the status code of a response head says. Outside 200–299 is a failure, as it always was
    /// for `error-limit-canary` (3xx, 304 and 404 too); `101` is neutral.
    pub const fn of_status(status: u16) -> Outcome {
        match status {
            101 => Outcome::Ignored,
            200..=299 => Outcome::Success,
            _ => Outcome::Failure,
        }
    }
}

/// Which statuses are failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureRule {
    /// `"5xx"`: what the server itself calls its fault. From 600 up, which no status may be, is one
    /// too (RFC 9110 section 15).
    ServerError,
    /// `"non-2xx"`: [`Outcome::of_status`].
    NotSuccess,
}

impl FailureRule {
    /// What the status code of a response head says; `101` is neutral.
    pub const fn of_status(self, status: u16) -> Outcome {
        match self {
            FailureRule::NotSuccess => Outcome::of_status(status),
            FailureRule::ServerError => match status {
                101 => Outcome::Ignored,
                500.. => Outcome::Failure,
                _ => Outcome::Success,
            },
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

/// How a replay on the other upstream ended: the closed set behind the `outcome` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FallbackOutcome {
    /// It answered, with whatever status.
    Answered,
    /// It did not answer either.
    Failed,
}

impl FallbackOutcome {
    /// All of them, in the order of [`FallbackOutcome::index`].
    pub const ALL: [FallbackOutcome; 2] = [FallbackOutcome::Answered, FallbackOutcome::Failed];

    /// A dense index.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The value of the `outcome` label.
    pub const fn label(self) -> &'static str {
        match self {
            FallbackOutcome::Answered => "answered",
            FallbackOutcome::Failed => "failed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_200_to_299_is_a_failure_and_101_is_neutral() {
        for status in 100..=999 {
            let expected = match status {
                101 => Outcome::Ignored,
                s if (200..300).contains(&s) => Outcome::Success,
                _ => Outcome::Failure,
            };
            assert_eq!(Outcome::of_status(status), expected, "{status}");
        }
    }

    #[test]
    fn the_rules_differ_in_what_is_neither_2xx_nor_5xx() {
        for status in 100..=999 {
            let strict = FailureRule::NotSuccess.of_status(status);
            assert_eq!(strict, Outcome::of_status(status), "{status}");
            let expected = match status {
                101 => Outcome::Ignored,
                s if s >= 500 => Outcome::Failure,
                _ => Outcome::Success,
            };
            let lenient = FailureRule::ServerError.of_status(status);
            assert_eq!(lenient, expected, "{status}");
        }
    }

    #[test]
    fn indices_are_dense() {
        for (i, kind) in FailureKind::ALL.iter().enumerate() {
            assert_eq!(kind.index(), i);
        }
        for (i, outcome) in FallbackOutcome::ALL.iter().enumerate() {
            assert_eq!(outcome.index(), i);
        }
    }
}
