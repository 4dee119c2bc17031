//! What must be true of a request that is over, whatever was done to it.

use std::time::Instant;

use canary_router::policy::{FailureKind, FailureRule, Outcome, Target};

use super::{
    books::{By, End, Entry, Line, Seen, Sort},
    sayings::Sayings,
    trouble::{Lie, Peer, Troubles},
};

/// A row of the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Row {
    ByMain,
    ByCanary,
    Fixed,
    /// By the router, which says that an upstream has failed.
    Failed,
    /// Likewise, that the client has, or asks for what there is not.
    Refused,
    Cut,
    Left,
    /// The connection went away first, as connections may: nobody has looked at it.
    Untaken,
    /// Something does not add up.
    Unaccounted,
}

impl Row {
    pub const ALL: [Row; 9] = [
        Row::ByMain,
        Row::ByCanary,
        Row::Fixed,
        Row::Failed,
        Row::Refused,
        Row::Cut,
        Row::Left,
        Row::Untaken,
        Row::Unaccounted,
    ];

    pub fn label(self) -> &'static str {
        match self {
            Row::ByMain => "answered by main, whole and verified",
            Row::ByCanary => "answered by canary, whole and verified",
            Row::Fixed => "answered by fallback.static",
            Row::Failed => "502, 503, 504: an upstream failed",
            Row::Refused => "400, 408: the client was at fault",
            Row::Cut => "cut off, as the upstream had it",
            Row::Left => "the client left",
            Row::Untaken => "not taken: the connection ended first",
            Row::Unaccounted => "UNACCOUNTED FOR",
        }
    }
}

/// How much of a body the router keeps, for an upstream by HTTP/2 that may not look at it.
const KEPT: u64 = 64 << 10;

pub struct Verdict {
    pub row: Row,
    pub problems: Vec<String>,
    /// What was wrong, and by what.
    pub explained: Vec<String>,
    /// Errors that it cost the canary: at least, at most.
    pub charged: (u64, u64),
}

pub fn judge(entry: &Entry, troubles: &Troubles, sayings: &Sayings) -> Verdict {
    let mut case = Case {
        entry,
        troubles,
        sayings,
        problems: Vec::new(),
        explained: Vec::new(),
    };
    let row = case.row();
    case.log();
    case.sidecar();
    case.services();
    case.abstains();
    let charged = case.charged();
    let Case {
        problems,
        explained,
        ..
    } = case;
    Verdict {
        row: match problems.is_empty() {
            true => row,
            false => Row::Unaccounted,
        },
        problems,
        explained,
        charged,
    }
}

struct Case<'a> {
    entry: &'a Entry,
    troubles: &'a Troubles,
    sayings: &'a Sayings,
    problems: Vec<String>,
    explained: Vec<String>,
}

impl Case<'_> {
    fn problem(&mut self, what: impl Into<String>) {
        self.problems.push(what.into());
    }

    fn line(&self) -> Option<&Line> {
        self.entry.lines.first()
    }

    fn seen(&self, peer: Peer) -> &[Seen] {
        &self.entry.seen[peer as usize]
    }

    fn was_seen(&self) -> bool {
        Peer::ALL.iter().any(|peer| !self.seen(*peer).is_empty())
    }

    /// What its client got, and that the log says the same.
    fn row(&mut self) -> Row {
        let Some((_, end)) = &self.entry.ended else {
            self.problem("its client still waits");
            return Row::Unaccounted;
        };
        let line = self.line().cloned();
        match (end, line) {
            (End::Wrong(why), _) => self.problem(format!("what came is wrong: {why}")),
            (End::Hung, _) => self.problem("nothing came any more"),
            (End::NotSent { is_right: true, .. }, None) => return Row::Untaken,
            (End::NotSent { why, .. }, None) => {
                self.problem(format!("there was no connection to be had: {why}"));
            }
            (End::NotSent { .. }, Some(_)) => {
                self.problem("it was not sent, and has a line in the log")
            }
            (End::Left, _) => return Row::Left,
            (End::NoAnswer { may_be_untaken }, None) => {
                if !may_be_untaken {
                    self.problem("the connection ended without an answer");
                }
                return Row::Untaken;
            }
            (End::NoAnswer { .. }, Some(line)) => return self.no_answer(&line),
            (End::Whole { .. } | End::Cut { .. }, None) => {
                self.problem("it was answered, and the log does not know it");
            }
            (End::Cut { status, why }, Some(line)) => return self.cut(*status, why, &line),
            (End::Whole { status, length, by }, Some(line)) => {
                return self.whole(*status, *length, *by, &line);
            }
        }
        Row::Unaccounted
    }

    fn whole(&mut self, status: u16, length: u64, by: By, line: &Line) -> Row {
        if line.status != Some(status) {
            self.problem(format!("the client got {status}, the log says otherwise"));
        }
        if line.response_bytes != length && self.entry.asked.sort != Sort::Tunnel {
            self.problem(format!(
                "the client got {length} bytes, the log says otherwise"
            ));
        }
        // Who has an answer before it has said all may leave then.
        let is_early = |seen: &Seen| seen.whole.is_none();
        let may_leave = [Peer::Main, Peer::Canary]
            .iter()
            .any(|peer| self.seen(*peer).iter().any(is_early));
        for flag in ["cut", "client_gone"] {
            if line.has(flag) && !(may_leave && flag == "client_gone") {
                self.problem(format!("the client got all of it, the log says {flag}"));
            }
        }
        let whole = |peer: &Peer| self.seen(*peer).iter().find_map(|seen| seen.whole);
        let got = [Peer::Main, Peer::Canary].iter().find_map(whole);
        let is_tunnel = self.entry.asked.sort == Sort::Tunnel;
        if got.is_some_and(|got| got != line.request_bytes) && !is_tunnel {
            self.problem(format!(
                "the service got {got:?} bytes, the log says otherwise"
            ));
        }
        let is_replayed = line.has("replayed");
        match by {
            By::Main | By::Canary => {
                let (peer, row) = match by {
                    By::Main => (Peer::Main, Row::ByMain),
                    _ => (Peer::Canary, Row::ByCanary),
                };
                // In HTTP/2 a switch of protocols is a 200.
                let alike = |status| {
                    if is_tunnel && status == 200 {
                        101
                    } else {
                        status
                    }
                };
                let is_read = |seen: &Seen| {
                    // Who fails, or has enough, need not have read it.
                    seen.whole.is_some() || matches!(seen.lie, Some(Lie::Early | Lie::Fails))
                };
                let answered = |seen: &Seen| {
                    seen.status.map(alike) == Some(alike(status))
                        && seen.length == Some(length)
                        && is_read(seen)
                };
                if !self.seen(peer).iter().any(answered) {
                    self.problem(format!("{} did not answer that", peer.label()));
                }
                let said = line.target.as_deref();
                let is_there = match peer {
                    Peer::Canary => said == Some("canary") && !is_replayed,
                    _ => said == Some("main") || is_replayed,
                };
                if !is_there {
                    self.problem(format!("{} answered, the log says otherwise", peer.label()));
                }
                row
            }
            By::Fixed => {
                if !line.has("static") {
                    self.problem("the client got fallback.static, the log says otherwise");
                }
                if line.failures().next().is_none() && !line.has("main_breaker_open") {
                    self.problem("nothing called for fallback.static");
                }
                Row::Fixed
            }
            By::Router => self.by_router(status, line),
        }
    }

    fn by_router(&mut self, status: u16, line: &Line) -> Row {
        let failed = |late: bool| {
            line.failures().any(|(_, kind)| {
                use FailureKind::*;
                matches!(kind, Timeout | ConnectTimeout) == late
            })
        };
        let (row, is_right) = match status {
            // To HEAD it cannot be told from the router's own.
            _ if line.has("static") && self.entry.asked.method == "HEAD" => (Row::Fixed, true),
            502 => (Row::Failed, failed(false)),
            504 => (Row::Failed, failed(true)),
            503 => (Row::Failed, line.has("main_breaker_open")),
            400 => (Row::Refused, line.has("refused") || line.has("body_broken")),
            408 => (
                Row::Refused,
                self.entry.asked.is_slow && line.has("client_timed_out"),
            ),
            _ => (Row::Unaccounted, false),
        };
        if !is_right {
            self.problem(format!(
                "the router answers {status}, and nothing explains it"
            ));
        }
        row
    }

    fn cut(&mut self, status: u16, why: &str, line: &Line) -> Row {
        if line.status != Some(status) {
            self.problem(format!("the client got {status}, the log says otherwise"));
        }
        let is_tunnel = self.entry.asked.sort == Sort::Tunnel;
        let (from, to) = self.span();
        let by_service = line.failures().next().is_some();
        let by_client = self.entry.asked.is_slow && line.has("client_timed_out");
        // What breaks a tunnel is nobody's failure.
        let by_tunnel = is_tunnel
            && [Peer::Main, Peer::Canary]
                .iter()
                .any(|peer| self.troubles.explain(None, *peer, from, to).is_some());
        if !by_service && !by_client && !by_tunnel {
            self.problem(format!(
                "the answer broke off, and the log does not know it: {why}"
            ));
        }
        Row::Cut
    }

    fn no_answer(&mut self, line: &Line) -> Row {
        let by_client = self.entry.asked.is_slow && line.has("client_timed_out");
        // In HTTP/2 a reset overtakes what was said before it.
        let is_http1 = self.entry.asked.sort == Sort::Http1;
        let by_service = line.failures().next().is_some() && !is_http1;
        if !by_client && !by_service {
            self.problem("the connection ended without an answer, and the log does not say why");
        }
        Row::Cut
    }

    /// Each line has its reasons.
    fn log(&mut self) {
        match self.entry.lines.len() {
            0 if self.was_seen() => self.problem("services got it, and the log does not know it"),
            0 | 1 => {}
            more => self.problem(format!("the log has {more} lines for it")),
        }
        let Some(line) = self.line().cloned() else {
            return;
        };
        for (peer, kind) in line.failures() {
            match self.why(peer, |lie| lie.explains(kind), Some(kind)) {
                Some(why) => {
                    let what = format!("{}_{}: {why}", peer.label(), kind.label());
                    self.explained.push(what);
                }
                None => self.problem(format!(
                    "{}_{} in the log, and nothing was wrong with {0}",
                    peer.label(),
                    kind.label()
                )),
            }
        }
        if line.has("sidecar_failed") {
            match self.why(Peer::Sidecar, |_| true, None) {
                Some(why) => self.explained.push(format!("sidecar_failed: {why}")),
                None => self.problem("sidecar_failed in the log, and nothing was wrong with it"),
            }
        }
        let reason = line.reason.as_deref().unwrap_or_default();
        if let Some(word) = reason.strip_prefix("Routed via X-Canary header value: ") {
            let said = self
                .entry
                .asked
                .forced
                .map(|target| target == Target::Canary);
            if said != word.parse().ok() {
                self.problem("X-Canary said otherwise");
            }
        }
    }

    /// The router goes by what the sidecar has said of this request, or of another one that is as good.
    fn sidecar(&mut self) {
        let reason = self.line().and_then(|line| line.reason.clone());
        let reason = reason.unwrap_or_default();
        let is_asked = !self.seen(Peer::Sidecar).is_empty();
        if is_asked && !reason.is_empty() && !reason.starts_with("Sidecar") {
            return self.problem("the sidecar was asked, and it was decided by something else");
        }
        let Some(told) = reason.strip_prefix("Sidecar returns ") else {
            return;
        };
        let is_told = |status: u16| match status {
            200 | 204 => told.starts_with(&format!("status code {status}")),
            _ => told.starts_with("non standard"),
        };
        let own = self.seen(Peer::Sidecar);
        let says = own.iter().find_map(|seen| seen.status);
        if let Some(says) = says {
            if !is_told(says) {
                self.problem(format!(
                    "the sidecar said {says}, the router heard otherwise"
                ));
            }
            return;
        }
        if !own.is_empty() {
            return self.problem("the sidecar was asked and said nothing, the router heard it");
        }
        let (from, to) = self.span();
        match self.sayings.held(self.entry.asked.key(), is_told, from, to) {
            true => self
                .explained
                .push("the sidecar's word, said before".into()),
            false => self.problem("the sidecar has said that to nobody who is alike"),
        }
    }

    /// What made a request fail at a service.
    fn why(
        &self,
        peer: Peer,
        by: impl Fn(Lie) -> bool,
        kind: Option<FailureKind>,
    ) -> Option<String> {
        let lies = self.seen(peer).iter().filter_map(|seen| seen.lie);
        if let Some(lie) = lies.into_iter().find(|lie| by(*lie)) {
            return Some(format!("{lie:?}"));
        }
        let (from, to) = self.span();
        if let Some(what) = self.troubles.explain(kind, peer, from, to) {
            return Some(format!("{what:?}"));
        }
        // What is kept of it the router would have sent again.
        let is_lost = self.entry.asked.sends > KEPT && self.seen(peer).is_empty();
        let may_be = is_lost && kind.is_none_or(|kind| kind == FailureKind::Reset);
        let is_overtaken = may_be && self.troubles.may_be_overtaken(peer, from, to);
        is_overtaken.then(|| "a long upload to a connection that ended".into())
    }

    fn span(&self) -> (Instant, Instant) {
        let Some((ended, end)) = &self.entry.ended else {
            return (self.entry.began, Instant::now());
        };
        // Of who has left, the router may not have known yet.
        let later = self.entry.told.filter(|told| {
            told > ended && matches!(end, End::Left | End::NoAnswer { .. } | End::Hung)
        });
        (self.entry.began, later.unwrap_or(*ended))
    }

    /// What an operator has ended stays so.
    fn abstains(&mut self) {
        let chosen = |line: &Line| {
            let reason = line.reason.as_deref();
            matches!(
                reason,
                Some("Routed via weight: canary" | "Sidecar returns status code 200")
            )
        };
        let (from, to) = self.span();
        if self.line().is_some_and(chosen) && self.troubles.is_aborted(from, to) {
            self.problem("it was given to the canary after the rollout was aborted");
        }
    }

    /// Nobody gets it twice, and nobody something else.
    fn services(&mut self) {
        let asked = &self.entry.asked;
        for peer in Peer::ALL {
            // What was refused was not looked at.
            let looked = |seen: &&Seen| seen.lie != Some(Lie::Refuse);
            let seen: Vec<Seen> = self.seen(peer).iter().filter(looked).cloned().collect();
            if seen.len() > 1 {
                self.problem(format!("{} got it {} times", peer.label(), seen.len()));
            }
            for seen in seen {
                if seen.is_wrong {
                    self.problem(format!("{} got another body than was sent", peer.label()));
                }
                // Only in part, and it says so.
                let is_partial = peer == Peer::Sidecar;
                if seen.whole.is_some_and(|length| length != asked.sends) && !is_partial {
                    self.problem(format!(
                        "{} got {:?} bytes as if they were all of {}",
                        peer.label(),
                        seen.whole,
                        asked.sends
                    ));
                }
            }
        }
        let by_both = !self.seen(Peer::Main).is_empty() && !self.seen(Peer::Canary).is_empty();
        let refused = |seen: &Seen| seen.lie == Some(Lie::Refuse);
        let replayed = self.line().is_some_and(|line| line.has("replayed"));
        if by_both && !replayed {
            self.problem("both targets got it, and it was not replayed");
        }
        if by_both && !asked.may_be_repeated && !self.seen(Peer::Canary).iter().all(refused) {
            self.problem("both targets got what may be done once only");
        }
    }

    /// Errors that the canary was charged for it, by the rule `"5xx"`.
    fn charged(&self) -> (u64, u64) {
        let Some(line) = self.line() else {
            return (0, 0);
        };
        if line.target.as_deref() != Some("canary") {
            return (0, 0);
        }
        let failed = line.failures().any(|(peer, _)| peer == Peer::Canary);
        // What it answered where main answered after it is in its own books.
        let canary = self.seen(Peer::Canary).iter().find_map(|seen| seen.status);
        let status = match line.has("replayed") {
            true => canary,
            false => line.upstream_status,
        };
        let is_bad = |status| FailureRule::ServerError.of_status(status) == Outcome::Failure;
        if failed || status.is_some_and(is_bad) {
            return (1, 1);
        }
        if self
            .seen(Peer::Canary)
            .iter()
            .any(|seen| seen.has_failed_by_grpc)
        {
            // Whose client left may have left before that.
            let is_whole = matches!(self.entry.ended, Some((_, End::Whole { .. })));
            return (u64::from(is_whole), 1);
        }
        (0, 0)
    }
}
