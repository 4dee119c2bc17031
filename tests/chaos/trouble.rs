//! What was made difficult for the router, and when: what goes wrong meanwhile is explained by it, and nothing else is.

use std::time::{Duration, Instant};

use canary_router::policy::FailureKind;

/// A service that the router asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    Main,
    Canary,
    Sidecar,
}

impl Peer {
    pub const ALL: [Peer; 3] = [Peer::Main, Peer::Canary, Peer::Sidecar];

    pub fn label(self) -> &'static str {
        match self {
            Peer::Main => "main",
            Peer::Canary => "canary",
            Peer::Sidecar => "sidecar",
        }
    }
}

/// What is difficult for as long as it lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// It does not listen; its connections were closed or reset.
    Down,
    /// It takes requests and does not answer them.
    Stalls,
    /// It accepts no connection.
    Deaf,
    /// It cannot prove that it is who it should be, or breaks off when it is asked to.
    Poses,
    /// It gives up a connection of HTTP/2, in good order (GOAWAY).
    Leaves,
    /// The router has hardly a descriptor left.
    FewDescriptors,
    /// This machine is too busy to be punctual.
    Lag,
}

impl What {
    /// Whether a request may fail by it in this way.
    fn explains(self, kind: FailureKind) -> bool {
        use FailureKind::*;
        match self {
            What::Down => matches!(
                kind,
                Refused | Reset | BodyCut | ConnectTimeout | Timeout | Malformed | Tls
            ),
            // Whoever waits when it ends is sent away.
            What::Stalls => matches!(kind, Timeout | Reset),
            What::Deaf => matches!(kind, Timeout | ConnectTimeout),
            What::Poses => matches!(kind, Tls),
            // Whom it does not reach is sent again, if it can be: see `may_be_overtaken`.
            What::Leaves => false,
            What::FewDescriptors => matches!(kind, Refused),
            What::Lag => matches!(kind, Timeout | ConnectTimeout),
        }
    }
}

/// What a service does to a single request, or a stream of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lie {
    /// No answer, for as long as the connection is there.
    Silence,
    /// A head that takes for ever.
    DripHead,
    /// RST, or RST_STREAM, instead of an answer.
    Reset,
    /// The end of the connection instead of an answer.
    Close,
    /// RST_STREAM that says that nothing was looked at.
    Refuse,
    /// What is no status line.
    Garbage,
    /// Two lengths that differ.
    TwoLengths,
    /// A length and chunks.
    LengthAndChunks,
    /// More informational responses than anybody would read.
    Flood,
    /// A switch of protocols that nobody has asked for.
    Unasked101,
    /// Less than the length says.
    Short,
    /// A chunk size that is none.
    BadChunk,
    /// A reset in the middle of the body.
    CutBody,
    /// Half a body, and nothing more for a while; then a reset.
    HalfBody,
    /// Half a body that its end delimits, and the end of the connection without a goodbye (`close_notify`).
    NoGoodbye,
    /// Another response behind the response, which nobody has asked for.
    Extra,
    /// The answer before the request is over, and no reading of the rest.
    Early,
    /// A body that comes slowly; nothing is wrong with it.
    SlowBody,
    /// A status that says that it failed. It is what it says.
    Fails,
}

impl Lie {
    /// Whether the request may fail by it in this way.
    pub fn explains(self, kind: FailureKind) -> bool {
        use FailureKind::*;
        match self {
            Lie::Silence | Lie::DripHead => kind == Timeout,
            Lie::Reset | Lie::Close | Lie::Refuse => kind == Reset,
            Lie::Garbage | Lie::TwoLengths | Lie::LengthAndChunks | Lie::Flood => kind == Malformed,
            Lie::Unasked101 => kind == Malformed,
            Lie::Short | Lie::CutBody | Lie::HalfBody | Lie::NoGoodbye => {
                matches!(kind, BodyCut | Malformed | Reset)
            }
            Lie::BadChunk => matches!(kind, Malformed | BodyCut),
            Lie::Extra | Lie::Early | Lie::SlowBody | Lie::Fails => false,
        }
    }

    /// Whether there is no status to be read.
    pub fn spoils_head(self) -> bool {
        match self {
            Lie::Silence | Lie::DripHead | Lie::Reset | Lie::Close | Lie::Refuse => true,
            Lie::Garbage | Lie::TwoLengths | Lie::LengthAndChunks => true,
            Lie::Flood | Lie::Unasked101 => true,
            Lie::Short | Lie::BadChunk | Lie::CutBody | Lie::HalfBody | Lie::NoGoodbye => false,
            Lie::Extra | Lie::Early | Lie::SlowBody | Lie::Fails => false,
        }
    }
}

#[derive(Debug)]
struct Trouble {
    what: What,
    /// Nobody's in particular.
    peer: Option<Peer>,
    from: Instant,
    to: Option<Instant>,
}

/// All there was of it.
#[derive(Debug, Default)]
pub struct Troubles {
    all: Vec<Trouble>,
    /// When the canary was to get nothing.
    aborted: Vec<(Instant, Option<Instant>)>,
}

/// What it takes until a trouble that is over no longer shows, and what clocks may differ by.
pub const MARGIN: Duration = Duration::from_millis(500);

/// How long a GOAWAY takes.
const OVERTAKES: Duration = Duration::from_millis(50);

impl Troubles {
    /// It begins; how to [end](Troubles::end) it.
    pub fn begin(&mut self, what: What, peer: Option<Peer>) -> usize {
        self.all.push(Trouble {
            what,
            peer,
            from: Instant::now(),
            to: None,
        });
        self.all.len() - 1
    }

    pub fn end(&mut self, which: usize) {
        self.all[which].to = Some(Instant::now());
    }

    /// It was there between these moments; everybody's where it is nobody's in particular.
    pub fn was(&mut self, what: What, peer: Option<Peer>, from: Instant, to: Instant) {
        self.all.push(Trouble {
            what,
            peer,
            from,
            to: Some(to),
        });
    }

    /// What explains that a request which lasted from `from` to `to` failed at `peer` in this way; `None` asks for
    /// any way.
    pub fn explain(
        &self,
        kind: Option<FailureKind>,
        peer: Peer,
        from: Instant,
        to: Instant,
    ) -> Option<What> {
        let then = |trouble: &&Trouble| {
            trouble.peer.is_none_or(|theirs| theirs == peer)
                && trouble.from <= to + MARGIN
                && trouble.to.is_none_or(|over| from <= over + MARGIN)
                && kind.is_none_or(|kind| trouble.what.explains(kind))
        };
        // From the end: what is judged is recent.
        self.all.iter().rev().find(then).map(|trouble| trouble.what)
    }

    /// Whether a request that this service has not seen may have come too late for its connection: what is sent in the
    /// moment in which it ends.
    pub fn may_be_overtaken(&self, peer: Peer, from: Instant, to: Instant) -> bool {
        let then = |trouble: &Trouble| {
            let is_it = trouble.what == What::Leaves && trouble.peer == Some(peer);
            is_it && trouble.from <= to && from <= trouble.from + OVERTAKES
        };
        self.all.iter().rev().any(then)
    }

    /// From now on the canary is to get nothing, or no longer so.
    pub fn abort(&mut self, is_aborted: bool) {
        let now = Instant::now();
        match (self.aborted.last_mut(), is_aborted) {
            (Some((_, to @ None)), false) => *to = Some(now),
            (Some((_, None)), true) | (_, false) => {}
            (_, true) => self.aborted.push((now, None)),
        }
    }

    /// Whether that was so all the time between these moments.
    pub fn is_aborted(&self, from: Instant, to: Instant) -> bool {
        let then = |(since, until): &(Instant, Option<Instant>)| {
            *since <= from && until.is_none_or(|until| to <= until)
        };
        self.aborted.iter().any(then)
    }

    /// Whether it was there at any time between these moments.
    pub fn was_there(&self, what: What, from: Instant, to: Instant) -> bool {
        let then = |trouble: &Trouble| {
            let over = trouble.to.is_none_or(|over| from <= over + MARGIN);
            trouble.what == what && trouble.from <= to && over
        };
        self.all.iter().any(then)
    }

    /// How long which of them lasted, and how often it was.
    pub fn total(&self, what: What) -> (usize, Duration) {
        let those = self.all.iter().filter(|trouble| trouble.what == what);
        those.fold((0, Duration::ZERO), |(count, sum), trouble| {
            let over = trouble.to.unwrap_or(trouble.from);
            (count + 1, sum + (over - trouble.from))
        })
    }
}
