//! Answers of the sidecar that are used again (`sidecar.cache`).
//!
//! What makes two questions the same is declared in the configuration, and nothing else is looked at. The
//! answers are in a `moka` cache: bounded, each with a time of its own. Questions that are the same at the
//! same time are asked once; should whoever asks leave, the next in line asks. (`moka` would do that too, but
//! panics the 200th time.)

use std::{
    borrow::Cow,
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use moka::{Expiry, future::Cache};
use tokio::sync;

use super::{fields::Fields, headers, message::RequestHead};
use crate::{
    config::{CacheKey, SidecarCache},
    policy::{CacheResult, SidecarAnswer},
};

/// The answers that all workers share. Cheap to clone.
#[derive(Clone)]
pub struct Answers {
    kept: Cache<Key, Kept>,
    asked: Arc<Mutex<HashMap<Key, Weak<Asked>>>>,
}

/// A question that somebody asks, and its answer as soon as it is there. Who has it locked asks.
type Asked = sync::Mutex<Option<Result<Kept, NoAnswer>>>;

/// What two questions have in common if they are the same.
pub type Key = Box<[u8]>;

/// An answer, and how long it may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// The sidecar's status code.
    pub status: u16,
    /// From the moment that it came.
    pub ttl: Duration,
}

/// The longest that an answer is kept, whatever it says.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// The sidecar has not answered, which is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoAnswer;

struct OwnTime;

impl Expiry<Key, Kept> for OwnTime {
    fn expire_after_create(&self, _: &Key, kept: &Kept, _: Instant) -> Option<Duration> {
        Some(kept.ttl)
    }
}

impl Answers {
    /// An empty cache.
    pub fn new(config: &SidecarCache) -> Answers {
        Answers {
            kept: Cache::builder()
                .max_capacity(config.max_entries)
                .expire_after(OwnTime)
                .build(),
            asked: Arc::default(),
        }
    }

    /// The answer for `key`, if one is kept.
    pub async fn kept(&self, key: &Key) -> Option<SidecarAnswer> {
        let kept = self.kept.get(key).await?;
        Some(SidecarAnswer::Status(kept.status))
    }

    /// The answer for `key`: one that is kept, or that somebody is asking for, or what `ask` says. Dropped
    /// while it asks, it leaves the question to the next one who waits.
    pub async fn get(
        &self,
        key: Key,
        ask: impl Future<Output = Result<Kept, NoAnswer>>,
    ) -> (SidecarAnswer, CacheResult) {
        let waiting = Waiting::join(self, &key);
        let mut answer = waiting.asked.lock().await;
        if let Some(answer) = *answer {
            return (meaning(answer), CacheResult::Shared);
        }
        // Since it was looked for it may have come.
        if let Some(answer) = self.kept(&key).await {
            return (answer, CacheResult::Hit);
        }
        let said = ask.await;
        if let Ok(kept) = said
            && !kept.ttl.is_zero()
        {
            self.kept.insert(key.clone(), kept).await;
        }
        *answer = Some(said);
        // It is for those who wait already, and for nobody else.
        waiting.close();
        (meaning(said), CacheResult::Miss)
    }

    fn asked(&self) -> MutexGuard<'_, HashMap<Key, Weak<Asked>>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn meaning(said: Result<Kept, NoAnswer>) -> SidecarAnswer {
    match said {
        Ok(kept) => SidecarAnswer::Status(kept.status),
        Err(NoAnswer) => SidecarAnswer::Failed,
    }
}

/// One of those who want the same answer. The last one to leave takes the question along.
struct Waiting<'a> {
    answers: &'a Answers,
    key: &'a Key,
    asked: Arc<Asked>,
}

impl<'a> Waiting<'a> {
    fn join(answers: &'a Answers, key: &'a Key) -> Waiting<'a> {
        let mut all = answers.asked();
        let asked = all.get(key).and_then(Weak::upgrade).unwrap_or_else(|| {
            let asked = Arc::default();
            all.insert(key.clone(), Arc::downgrade(&asked));
            asked
        });
        Waiting {
            answers,
            key,
            asked,
        }
    }

    /// Nobody else joins.
    fn close(&self) {
        let mut all = self.answers.asked();
        if self.is_open(&all) {
            all.remove(self.key);
        }
    }

    fn is_open(&self, all: &HashMap<Key, Weak<Asked>>) -> bool {
        let own = |asked: &Weak<Asked>| std::ptr::eq(asked.as_ptr(), Arc::as_ptr(&self.asked));
        all.get(self.key).is_some_and(own)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut all = self.answers.asked();
        let open = self.is_open(&all);
        // Let go of while nobody can join: of two that leave at a time, one is the last.
        drop(std::mem::take(&mut self.asked));
        if open
            && all
                .get(self.key)
                .is_some_and(|asked| asked.strong_count() == 0)
        {
            all.remove(self.key);
        }
    }
}

/// What `declared` is in this request. Each part says how long it is, so that no two lists of parts look
/// the same; a header or cookie that is not there differs from an empty one.
pub fn key<'a>(
    declared: &[CacheKey],
    head: &RequestHead,
    client: impl Fn() -> Cow<'a, str>,
) -> Key {
    let mut key = Vec::with_capacity(64);
    let mut put = |part: Option<&[u8]>| {
        let length = part.map_or(u64::MAX, |part| part.len() as u64);
        key.extend_from_slice(&length.to_le_bytes());
        key.extend_from_slice(part.unwrap_or_default());
    };
    for part in declared {
        match part {
            CacheKey::Header(name) => {
                head.headers
                    .named(name.as_str())
                    .for_each(|value| put(Some(value)));
                put(None);
            }
            CacheKey::Cookie(name) => put(headers::cookie(&head.headers, name.as_bytes())),
            CacheKey::Method => put(Some(head.method.as_str().as_bytes())),
            CacheKey::Path => put(Some(head.target.path())),
            CacheKey::Query => put(head.target.query()),
            CacheKey::ClientIp => put(Some(client().as_bytes())),
        }
    }
    key.into()
}

/// How long the sidecar lets its answer be used (RFC 9111 section 5.2.2), if it says anything about that:
/// not at all is zero. `s-maxage` is for caches that many share, and so comes before `max-age`.
pub fn max_age(headers: &Fields) -> Option<Duration> {
    let directives = || {
        headers
            .named("cache-control")
            .flat_map(|value| value.split(|&byte| byte == b','))
            .map(<[u8]>::trim_ascii)
    };
    let is_forbidden = |directive: &[u8]| {
        [&b"no-store"[..], b"no-cache", b"private"]
            .iter()
            .any(|word| directive.eq_ignore_ascii_case(word))
    };
    if directives().any(is_forbidden) {
        return Some(Duration::ZERO);
    }
    ["s-maxage", "max-age"].iter().find_map(|name| {
        directives().find_map(|directive| {
            let (word, seconds) = directive.split_at_checked(name.len())?;
            let seconds = seconds.strip_prefix(b"=")?.trim_ascii();
            if !word.eq_ignore_ascii_case(name.as_bytes()) {
                return None;
            }
            let quoted = seconds
                .strip_prefix(b"\"")
                .and_then(|rest| rest.strip_suffix(b"\""));
            let seconds = quoted.unwrap_or(seconds);
            // Section 4.2.1: what cannot be understood is stale.
            let seconds = std::str::from_utf8(seconds)
                .ok()
                .and_then(|text| text.parse().ok());
            Some(Duration::from_secs(seconds.unwrap_or(0)).min(LONGEST))
        })
    })
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Poll, Waker},
    };

    use super::*;
    use crate::proxy::fields::tests::fields;

    #[test]
    fn a_question_is_forgotten_when_it_is_answered_or_the_last_has_left() {
        let answers = Answers::new(&SidecarCache {
            key: Vec::new(),
            ttl: Duration::from_secs(1),
            max_entries: 10,
        });
        let mut cx = Context::from_waker(Waker::noop());
        let kept = Kept {
            status: 200,
            ttl: Duration::ZERO,
        };
        let get = |key: &[u8], ask| answers.get(key.into(), ask);
        {
            let mut asks = Box::pin(get(b"a", std::future::pending()));
            let mut waits = Box::pin(get(b"a", std::future::pending()));
            assert!(asks.as_mut().poll(&mut cx).is_pending());
            assert!(waits.as_mut().poll(&mut cx).is_pending());
            drop(asks);
            assert_eq!(answers.asked().len(), 1);
            drop(waits);
        }
        assert_eq!(answers.asked().len(), 0);
        let asks = pin!(answers.get(b"a".as_slice().into(), async { Ok(kept) }));
        let answer = (SidecarAnswer::Status(200), CacheResult::Miss);
        assert_eq!(asks.poll(&mut cx), Poll::Ready(answer));
        assert_eq!(answers.asked().len(), 0);
    }

    #[test]
    fn cache_control_says_how_long() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        for (value, expected) in [
            ("", None),
            ("public", None),
            ("max-age=60", seconds(60)),
            ("Max-Age=60, public", seconds(60)),
            ("max-age=\"60\"", seconds(60)),
            ("max-age=60, s-maxage=5", seconds(5)),
            ("max-age=60, no-store", seconds(0)),
            ("private, max-age=60", seconds(0)),
            ("no-cache", seconds(0)),
            ("max-age=soon", seconds(0)),
            ("max-age=-1", seconds(0)),
            ("max-age=", seconds(0)),
            ("x-max-age=60", None),
            ("max-age=99999999999999", Some(LONGEST)),
        ] {
            let headers = fields(&[("Cache-Control", value)]);
            assert_eq!(max_age(&headers), expected, "{value}");
        }
        assert_eq!(max_age(&fields(&[])), None);
    }
}
