//! The books: what clients asked for and got, what services were asked and said, and what the router's access log says
//! of it. A request is settled when all of it is there, and forgotten then.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    time::{Duration, Instant},
};

use canary_router::policy::{FailureKind, Target};
use serde::Deserialize;

use super::{
    counts::{self, Counts},
    pattern::mix,
    sayings::{Key, Sayings},
    trouble::{Lie, Peer, Troubles},
    verdict::{self, Row},
};

/// A column of the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sort {
    Http1,
    Http2,
    Grpc,
    Tunnel,
}

impl Sort {
    pub const ALL: [Sort; 4] = [Sort::Http1, Sort::Http2, Sort::Grpc, Sort::Tunnel];

    pub fn label(self) -> &'static str {
        match self {
            Sort::Http1 => "HTTP/1",
            Sort::Http2 => "HTTP/2",
            Sort::Grpc => "gRPC",
            Sort::Tunnel => "WebSocket",
        }
    }
}

/// A request as its client means it.
#[derive(Debug, Clone)]
pub struct Asked {
    pub sort: Sort,
    pub method: &'static str,
    /// How long its body is, if it is sent to its end.
    pub sends: u64,
    /// It may be done twice.
    pub may_be_repeated: bool,
    pub forced: Option<Target>,
    /// Its client lets the router wait.
    pub is_slow: bool,
    /// Who asks, as `X-User` says.
    pub user: u64,
}

impl Asked {
    /// What it has in common with others where the sidecar's word holds for them too.
    pub fn key(&self) -> Key {
        let method = match self.method {
            // A CONNECT of RFC 8441 is the GET of a handshake.
            "CONNECT" => "GET",
            method => method,
        };
        (self.user, method)
    }
}

/// Who has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    Main,
    Canary,
    /// `fallback.static`.
    Fixed,
    Router,
}

/// What became of a request, as its client sees it.
#[derive(Debug, Clone)]
pub enum End {
    /// All of an answer, and its body is the one that this service sends for this request.
    Whole { status: u16, length: u64, by: By },
    /// An answer that breaks off.
    Cut { status: u16, why: String },
    /// The connection ended before an answer. It may not have been taken: because the connection was an old one, or
    /// went away with another request on it.
    NoAnswer { may_be_untaken: bool },
    /// The client has left, as it meant to.
    Left,
    /// There was no connection to send it on, which is as it should be when the router ends.
    NotSent { is_right: bool, why: String },
    /// What came is wrong.
    Wrong(String),
    /// Nothing came for as long as anybody would wait.
    Hung,
}

/// A request as a service got it.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// How long its body was, where it came to its end.
    pub whole: Option<u64>,
    /// Its body is not what the client sent.
    pub is_wrong: bool,
    /// What the service did to it.
    pub lie: Option<Lie>,
    /// What it answered.
    pub status: Option<u16>,
    /// How much of its answer's body it has handed over.
    pub sent: u64,
    /// Its answer says behind its body, by gRPC, that it has failed.
    pub has_failed_by_grpc: bool,
    /// How long its answer's body is, where it is to come whole.
    pub length: Option<u64>,
}

/// A line of the access log.
#[derive(Debug, Clone, Deserialize)]
pub struct Line {
    pub path: Option<String>,
    pub status: Option<u16>,
    pub request_bytes: u64,
    pub response_bytes: u64,
    pub target: Option<String>,
    pub reason: Option<String>,
    pub upstream_status: Option<u16>,
    pub request_id: Option<String>,
    pub flags: Vec<String>,
}

impl Line {
    pub fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|said| said == flag)
    }

    /// The failures of upstreams in it.
    pub fn failures(&self) -> impl Iterator<Item = (Peer, FailureKind)> {
        self.flags.iter().filter_map(|flag| {
            let (target, kind) = flag.split_once('_')?;
            let peer = match target {
                "main" => Peer::Main,
                "canary" => Peer::Canary,
                _ => return None,
            };
            let kind = FailureKind::ALL
                .into_iter()
                .find(|known| known.label() == kind)?;
            Some((peer, kind))
        })
    }

    /// `code_class` in the metrics.
    pub fn class(&self) -> String {
        match self.status {
            // It is the connection's last word, and no answer to the request.
            Some(408) if self.has("client_timed_out") => "none".into(),
            // In HTTP/2 a switch of protocols is a 200.
            Some(200) if self.upstream_status == Some(101) => "1xx".into(),
            Some(status) => format!("{}xx", status / 100),
            None => "none".into(),
        }
    }
}

/// All that is known of a request.
#[derive(Clone)]
pub struct Entry {
    pub asked: Asked,
    pub began: Instant,
    /// Seconds since the beginning.
    at: f64,
    pub ended: Option<(Instant, End)>,
    pub lines: Vec<Line>,
    /// When the last of them came.
    pub told: Option<Instant>,
    /// By [`Peer`].
    pub seen: [Vec<Seen>; Peer::ALL.len()],
}

impl fmt::Debug for Entry {
    /// All of it, for who has to find out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let took = self.ended.as_ref().map(|(ended, _)| *ended - self.began);
        writeln!(f, "    at {:.3} s, for {took:?}: {:?}", self.at, self.asked)?;
        writeln!(
            f,
            "    client: {:?}",
            self.ended.as_ref().map(|(_, end)| end)
        )?;
        for line in &self.lines {
            writeln!(f, "    log: {line:?}")?;
        }
        for peer in Peer::ALL {
            for seen in &self.seen[peer as usize] {
                writeln!(f, "    {}: {seen:?}", peer.label())?;
            }
        }
        Ok(())
    }
}

#[derive(Default)]
pub struct Books {
    open: HashMap<u64, Entry>,
    /// A bit for each request that is settled.
    settled: Vec<u64>,
    pub begun: u64,
    started: Option<Instant>,
    /// What the log tells of.
    pub told: Counts,
    pub lines: u64,
    /// Another process has begun to count since the last audit.
    pub is_counted_anew: bool,
    /// Requests that say no number, because the router refuses them before it looks, or answers them itself: how many
    /// were sent, and how many the log knows.
    pub nameless: (u64, u64),
    pub rows: BTreeMap<(Row, Sort), u64>,
    /// By why they were.
    pub explained: BTreeMap<String, u64>,
    /// How many errors the canary was charged since the limits were reset: at least, at most.
    pub charged: (u64, u64),
    /// Not if the limits were reset while there were requests.
    pub is_charged_known: bool,
    pub problems: Vec<String>,
    pub sayings: Sayings,
    /// Of clients, and by what was agreed.
    pub handshakes: BTreeMap<String, u64>,
}

/// For how long the sidecar says the same to the same question.
const OPINION: Duration = Duration::from_secs(1);

/// How long a request is kept when it seems to be over, since what is wrong may come late, and a service that was deaf
/// hears of it then; and how long its line in the log is waited for.
const KEPT: Duration = Duration::from_secs(4);
const LATEST: Duration = Duration::from_secs(6);

impl Books {
    /// Nothing has been entered yet.
    pub fn open_at(&mut self, started: Instant) {
        self.started = Some(started);
        self.is_charged_known = true;
    }

    /// A request begins; its number.
    pub fn begin(&mut self, asked: Asked) -> u64 {
        self.begun += 1;
        let entry = Entry {
            asked,
            began: Instant::now(),
            at: self
                .started
                .map_or(0.0, |started| started.elapsed().as_secs_f64()),
            ended: None,
            lines: Vec::new(),
            told: None,
            seen: Default::default(),
        };
        self.open.insert(self.begun, entry);
        self.begun
    }

    /// What this request has in common with others, if there is one.
    pub fn key(&self, id: u64) -> Option<Key> {
        self.open.get(&id).map(|entry| entry.asked.key())
    }

    /// What is asked about it at this moment, as a number.
    pub fn question(&self, id: u64) -> u64 {
        let (user, method) = self.key(id).unwrap_or_default();
        let method = method
            .bytes()
            .fold(0, |sum, byte| mix(sum ^ u64::from(byte)));
        let now = self.started.map_or(0, |started| {
            started.elapsed().as_millis() / OPINION.as_millis()
        });
        mix(user ^ method) ^ now as u64
    }

    /// The sidecar has answered.
    pub fn say(&mut self, id: u64, status: u16, holds: Option<Duration>) {
        if let Some(key) = self.key(id) {
            self.sayings.say(key, status, holds);
        }
    }

    /// Its client lets the router wait.
    pub fn mark_slow(&mut self, id: u64) {
        if let Some(entry) = self.open.get_mut(&id) {
            entry.asked.is_slow = true;
        }
    }

    pub fn end(&mut self, id: u64, end: End) {
        match self.open.get_mut(&id) {
            Some(entry) if entry.ended.is_none() => entry.ended = Some((Instant::now(), end)),
            _ => self.problem(format!("request {id} ended twice: {end:?}")),
        }
    }

    /// A service has got a request; its place in the books.
    pub fn seen(&mut self, peer: Peer, id: u64) -> Option<usize> {
        let Some(entry) = self.open.get_mut(&id) else {
            let which = match self.is_settled(id) {
                true => "was over",
                false => "nobody has sent",
            };
            self.problem(format!("{} got request {id}, which {which}", peer.label()));
            return None;
        };
        let seen = &mut entry.seen[peer as usize];
        seen.push(Seen::default());
        Some(seen.len() - 1)
    }

    /// More is known of it.
    pub fn note(
        &mut self,
        peer: Peer,
        id: u64,
        place: Option<usize>,
        note: impl FnOnce(&mut Seen),
    ) {
        let entry = self.open.get_mut(&id);
        if let Some(seen) = entry.and_then(|entry| entry.seen[peer as usize].get_mut(place?)) {
            note(seen);
        }
    }

    pub fn line(&mut self, line: Line) {
        self.lines += 1;
        let mut told = |what: String| *self.told.entry(what).or_default() += 1;
        if let (Some(target), Some(reason)) = (&line.target, &line.reason) {
            told(counts::request(target, reason, &line.class()));
        }
        for (peer, kind) in line.failures() {
            told(counts::failure(peer.label(), kind.label()));
        }
        // Whose client left before main had answered is not counted.
        let has_main = line.failures().any(|(peer, _)| peer == Peer::Main);
        let is_over = line.upstream_status.is_some() || has_main || line.has("body_broken");
        if line.has("replayed") && is_over {
            told(counts::REPLAYED.into());
        }
        if line.has("static") {
            told(counts::FIXED.into());
        }
        let Some(said) = &line.request_id else {
            self.nameless.1 += 1;
            return;
        };
        let id = said.strip_prefix("soak-").and_then(|id| id.parse().ok());
        let is_its = |id: &u64| {
            let path = line.path.as_deref().unwrap_or_default();
            path.split('/').nth(1) == Some(&id.to_string())
        };
        match id.filter(is_its).and_then(|id| self.open.get_mut(&id)) {
            Some(entry) => {
                entry.lines.push(line);
                entry.told = Some(Instant::now());
            }
            None => self.problem(format!(
                "the log tells of a request that nobody has sent, or a second time: {line:?}"
            )),
        }
    }

    pub fn problem(&mut self, what: String) {
        // The first ones tell; after that it is a number.
        if self.problems.len() < 2000 {
            self.problems.push(what);
        }
    }

    /// Settles what can be.
    pub fn settle(&mut self, troubles: &Troubles) {
        let now = Instant::now();
        let is_over = |entry: &Entry| {
            let ended = entry.ended.as_ref();
            ended.is_some_and(|(ended, _)| {
                let since = now.saturating_duration_since(*ended);
                since >= KEPT && !entry.lines.is_empty() || since >= LATEST
            })
        };
        let over: Vec<u64> = self
            .open
            .iter()
            .filter(|(_, entry)| is_over(entry))
            .map(|(id, _)| *id)
            .collect();
        for id in over {
            self.settle_one(id, troubles);
        }
    }

    /// Settles all of them, whether they can be or not.
    pub fn close(&mut self, troubles: &Troubles) {
        let mut all: Vec<u64> = self.open.keys().copied().collect();
        all.sort_unstable();
        for id in all {
            self.settle_one(id, troubles);
        }
        let (sent, told) = self.nameless;
        if sent != told {
            self.problem(format!(
                "{sent} requests were sent that have no number, and the log knows {told}"
            ));
            self.nameless = (0, 0);
        }
    }

    /// How many are over for their clients, and have no line in the log.
    pub fn untold(&self) -> usize {
        let untold = |entry: &&Entry| entry.ended.is_some() && entry.lines.is_empty();
        self.open.values().filter(untold).count()
    }

    fn settle_one(&mut self, id: u64, troubles: &Troubles) {
        let Some(entry) = self.open.remove(&id) else {
            return;
        };
        let word = (id / 64) as usize;
        if self.settled.len() <= word {
            self.settled.resize(word + 1, 0);
        }
        self.settled[word] |= 1 << (id % 64);
        let verdict = verdict::judge(&entry, troubles, &self.sayings);
        *self
            .rows
            .entry((verdict.row, entry.asked.sort))
            .or_default() += 1;
        for why in verdict.explained {
            *self.explained.entry(why).or_default() += 1;
        }
        let (least, most) = verdict.charged;
        self.charged.0 += least;
        self.charged.1 += most;
        for problem in verdict.problems {
            self.problem(format!("request {id}: {problem}\n{entry:?}"));
        }
    }

    fn is_settled(&self, id: u64) -> bool {
        let word = self.settled.get((id / 64) as usize);
        word.is_some_and(|word| word >> (id % 64) & 1 == 1)
    }
}
