//! What is kept of a request while it is worked on, for who wants to know of each one: the access log
//! ([`super::access`]) and traces ([`super::trace`]).
//!
//! Nothing is kept where nobody wants to know. Whatever a request comes to, it is told once: when its notes are
//! dropped.

use std::{cell::RefCell, rc::Rc, time::Instant};

use http::{Method, StatusCode, Version};

use super::{
    forwarded::{Origin, Peer},
    message::RequestHead,
    trace::{self, Context, Trace},
    worker::Worker,
};
use crate::{
    clock,
    policy::{FailureKind, Reason, SidecarResult, SidecarStatuses, Target},
};

/// The notes of a client's current request, if there are any.
#[derive(Default)]
pub struct Notes(RefCell<Option<Box<Entry>>>);

/// What is known of a request.
pub struct Entry {
    worker: Rc<Worker>,
    /// Whether it is told in the access log.
    has_line: bool,
    /// When its head was there.
    pub started: Instant,
    /// The address of who sent it.
    pub client: Box<str>,
    /// What it asked for; `None` where that could not be read.
    pub asked: Option<Asked>,
    /// What it is called.
    pub request_id: Box<[u8]>,
    /// Where it was to go, why, and when that was known.
    pub decided: Option<(Reason, Instant)>,
    /// By which statuses the sidecar answers; they are in the words for the reason.
    pub statuses: SidecarStatuses,
    /// What the sidecar was asked for it.
    pub question: Option<Question>,
    /// The upstreams that it was sent to, in order.
    pub attempts: Vec<Attempt>,
    /// What the client got.
    pub status: Option<StatusCode>,
    /// Bytes of its body that came, and of the response's that were sent.
    pub request_bytes: u64,
    /// Likewise.
    pub response_bytes: u64,
    /// What else went wrong.
    pub flags: Vec<Flag>,
    /// What it is a part of, where it is traced.
    pub trace: Option<Trace>,
}

/// What a request asks for.
pub struct Asked {
    /// How.
    pub method: Method,
    /// What, as it came, without its query.
    pub path: Box<[u8]>,
    /// In which version of HTTP.
    pub version: Version,
}

/// A question to the sidecar.
pub struct Question {
    /// When it was asked.
    pub started: Instant,
    /// What came of it, and when; `None` where the request was over before.
    pub answered: Option<(SidecarResult, Instant)>,
    /// Its span, where the request is traced.
    pub span: u64,
}

/// A request on its way to an upstream.
pub struct Attempt {
    /// Which one.
    pub target: Target,
    /// When.
    pub started: Instant,
    /// The status of its response, and when its head came.
    pub answered: Option<(u16, Instant)>,
    /// What went wrong, and when; perhaps after the head.
    pub failed: Option<(FailureKind, Instant)>,
    /// Its span, where the request is traced.
    pub span: u64,
}

/// What may have gone wrong beside what upstreams do: a closed set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flag {
    /// The router does not forward it.
    Refused,
    /// Its client let us wait for too long.
    ClientTimedOut,
    /// Its client left.
    ClientGone,
    /// Its body broke off.
    BodyBroken,
    /// Main answered what the canary had been sent.
    Replayed,
    /// The client got `fallback.static`.
    Static,
    /// Main was not asked, because its breaker is open.
    MainBreakerOpen,
    /// The process ended.
    Cut,
}

impl Flag {
    /// The word for it.
    pub const fn label(self) -> &'static str {
        match self {
            Flag::Refused => "refused",
            Flag::ClientTimedOut => "client_timed_out",
            Flag::ClientGone => "client_gone",
            Flag::BodyBroken => "body_broken",
            Flag::Replayed => "replayed",
            Flag::Static => "static",
            Flag::MainBreakerOpen => "main_breaker_open",
            Flag::Cut => "cut",
        }
    }
}

impl Notes {
    /// A request has come, or something that was to be one, which has no head.
    pub fn begin(
        &self,
        worker: &Rc<Worker>,
        peer: &Peer,
        head: Option<&RequestHead>,
        started: Instant,
    ) {
        let kit = worker.kit();
        let trace = match (&worker.tracer, &kit.config.tracing, head) {
            (Some(tracer), Some(tracing), Some(head)) => tracer.begin(head, tracing.sample),
            _ => None,
        };
        if !kit.tells && trace.is_none() {
            return;
        }
        let entry = Entry {
            worker: Rc::clone(worker),
            has_line: kit.tells,
            started,
            client: peer.text.as_str().into(),
            asked: head.map(|head| Asked {
                method: head.method.clone(),
                path: head.target.path().into(),
                version: head.version,
            }),
            request_id: Box::default(),
            decided: None,
            statuses: kit.config.sidecar_statuses,
            question: None,
            attempts: Vec::new(),
            status: None,
            request_bytes: 0,
            response_bytes: 0,
            flags: Vec::new(),
            trace,
        };
        *self.0.borrow_mut() = Some(Box::new(entry));
    }

    /// It is over: it is told.
    pub fn end(&self) {
        drop(self.0.take());
    }

    /// Writes something down, if anybody wants to know.
    #[inline]
    pub fn add(&self, note: impl FnOnce(&mut Entry)) {
        if let Some(entry) = &mut *self.0.borrow_mut() {
            note(entry);
        }
    }

    /// Something went wrong.
    pub fn flag(&self, flag: Flag) {
        self.add(|entry| {
            if !entry.flags.contains(&flag) {
                entry.flags.push(flag);
            }
        });
    }

    /// Where the request comes from, and what it is called.
    #[inline]
    pub fn came_from<'a>(
        &self,
        origin: &Origin<'_>,
        peer: &Peer,
        request_id: impl FnOnce() -> Option<&'a [u8]>,
    ) {
        self.add(|entry| {
            if origin.client != peer.address {
                entry.client = origin.client.to_string().into();
            }
            entry.request_id = request_id().unwrap_or_default().into();
        });
    }

    /// It is sent to an upstream now. What that is to be told of the trace.
    #[inline]
    pub fn sending(&self, target: Target) -> Option<Context> {
        let mut context = None;
        self.add(|entry| {
            let span = trace::fresh_span();
            context = entry.context(span);
            entry.attempts.push(Attempt {
                target,
                started: clock::now(),
                answered: None,
                failed: None,
                span,
            });
        });
        context
    }

    /// It has answered.
    #[inline]
    pub fn answered(&self, status: StatusCode) {
        self.add(|entry| {
            if let Some(attempt) = entry.attempts.last_mut() {
                attempt.answered = Some((status.as_u16(), clock::now()));
            }
        });
    }

    /// It has failed. The first failure counts: others come of it.
    pub fn failed(&self, kind: FailureKind) {
        self.add(|entry| {
            if let Some(attempt) = entry.attempts.last_mut() {
                attempt.failed.get_or_insert((kind, clock::now()));
            }
        });
    }

    /// The sidecar is asked now. What it is to be told of the trace.
    pub fn asking(&self) -> Option<Context> {
        let mut context = None;
        self.add(|entry| {
            let span = trace::fresh_span();
            context = entry.context(span);
            entry.question = Some(Question {
                started: clock::now(),
                answered: None,
                span,
            });
        });
        context
    }

    /// It has answered, or has failed.
    pub fn asked(&self, result: SidecarResult) {
        self.add(|entry| {
            if let Some(question) = &mut entry.question {
                question.answered = Some((result, clock::now()));
            }
        });
    }
}

impl Entry {
    fn context(&self, span: u64) -> Option<Context> {
        Some(self.trace.as_ref()?.context(span))
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let worker = &self.worker;
        let now = clock::now();
        if self.has_line {
            worker.access.add(self, now);
        }
        if let (Some(tracer), Some(trace)) = (&worker.tracer, &self.trace) {
            tracer.leave(trace::spans(self, trace, now));
        }
    }
}
