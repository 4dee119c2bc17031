//! Log lines: one JSON object each, on stdout, with `@time`, `level` and `msg` first.
//!
//! Lines are written by a thread of their own, so that a reader of stdout that stalls does not stall
//! requests; what does not fit into its queue meanwhile is dropped rather than waited for.

use std::fmt::{self, Write as _};

use serde_json::{Map, Value};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    layer::SubscriberExt,
    registry::LookupSpan,
};

use crate::{clock, config::Level};

/// Starts logging. What the returned guard is dropped with is still written.
///
/// Only the first call in a process has an effect.
pub fn init(level: Level) -> WorkerGuard {
    let (writer, guard) = tracing_appender::non_blocking(std::io::stdout());
    let level = match level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    };
    // What libraries say of each frame and packet is for `trace`.
    let libraries = match level {
        LevelFilter::TRACE => level,
        level => level.min(LevelFilter::WARN),
    };
    let levels = Targets::new()
        .with_target(env!("CARGO_CRATE_NAME"), level)
        .with_default(libraries);
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(writer)
        .event_format(JsonLines)
        .finish()
        .with(levels);
    // A second call is a second router in one process, which tests have; the first one's stays.
    let _already_set = tracing::subscriber::set_global_default(subscriber);
    guard
}

/// One JSON object a line.
struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let time = Rfc3339(clock::wall()).to_string();
        let level = event.metadata().level().as_str().to_ascii_lowercase();
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut line = Map::new();
        line.insert("@time".into(), time.into());
        line.insert("level".into(), level.into());
        line.insert("msg".into(), fields.message.into());
        line.extend(fields.others);
        writeln!(writer, "{}", Value::Object(line))
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Fields {
    fn set(&mut self, field: &Field, value: Value) {
        self.others.insert(field.name().into(), value);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => write!(self.message, "{value:?}").unwrap_or_default(),
            _ => self.set(field, format!("{value:?}").into()),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        // Structured values travel as JSON text in a field that says so.
        match field.name().strip_suffix("_json") {
            Some(name) => {
                let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
                self.others.insert(name.into(), value);
            }
            None => self.set(field, value.into()),
        }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, value.into());
    }
}

/// A time in UTC with milliseconds (RFC 3339 section 5.6).
struct Rfc3339(std::time::SystemTime);

impl fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", humantime::format_rfc3339_millis(self.0))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
        time::{Duration, UNIX_EPOCH},
    };

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_is_one_json_object_with_time_level_and_message_first() {
        let captured = Captured::default();
        let writer = captured.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .event_format(JsonLines)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(
                error = %"line\nbreak \"quoted\"",
                count = 3u64,
                config_json = r#"{"a":{"b":1}}"#,
                "something {}", "happened"
            );
        });
        let text = String::from_utf8(captured.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        assert!(text.starts_with(r#"{"@time":"20"#), "{text}");
        let line: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["level"], "warn");
        assert_eq!(line["msg"], "something happened");
        assert_eq!(line["error"], "line\nbreak \"quoted\"");
        assert_eq!(line["count"], 3);
        assert_eq!(line["config"]["a"]["b"], 1);
    }

    #[test]
    fn times_are_rfc_3339_in_utc() {
        let time = UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        assert_eq!(Rfc3339(time).to_string(), "2023-11-14T22:13:20.123Z");
    }
}
