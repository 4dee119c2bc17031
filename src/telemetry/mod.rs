//! Log lines, on stdout: JSON for programs, or text for people.
//!
//! Lines are written by a thread of their own, so that a reader of stdout that stalls does not stall
//! requests; what there is no room for meanwhile is dropped, and counted, rather than waited for.

mod json;
mod lines;
mod text;

use std::{
    env,
    fmt::{self, Write as _},
    io::{self, IsTerminal},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use serde_json::{Map, Value};
use tracing::{
    Event, Level as Severity, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    layer::SubscriberExt,
    registry::LookupSpan,
    reload,
};

pub use lines::{Guard, Lines};

use crate::{
    clock,
    config::{Level, Log, LogFormat},
};

/// What the process writes its lines to.
static LINES: OnceLock<Lines> = OnceLock::new();

/// Has the levels changed of what was started by [`init`].
static LEVELS: OnceLock<Box<dyn Fn(Targets) + Send + Sync>> = OnceLock::new();

/// Whether lines are text.
static IS_TEXT: AtomicBool = AtomicBool::new(false);

/// Starts logging. What there is when the returned guard is dropped is still written.
///
/// Only the first call in a process has an effect.
///
/// # Errors
/// The system gives us no thread.
pub fn init(log: Log) -> io::Result<Guard> {
    let (lines, guard) = lines::start(io::stdout())?;
    let stdout = LINES.get_or_init(|| lines);
    let (levels, handle) = reload::Layer::new(levels(log.level));
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_writer(|| stdout.clone())
        .event_format(Form {
            is_text: &IS_TEXT,
            // https://no-color.org
            colours: io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none(),
        })
        .finish()
        .with(levels);
    // A second call is a second router in one process, which tests have; the first one's stays.
    if tracing::subscriber::set_global_default(subscriber).is_ok() {
        set_form(log.format);
        let _first = LEVELS.set(Box::new(move |levels| {
            // It lives as long as the process.
            let _gone = handle.reload(levels);
        }));
    }
    Ok(guard)
}

/// Logs by this from now on. Before [`init`], nothing is logged.
pub fn set(log: Log) {
    if let Some(set) = LEVELS.get() {
        set_form(log.format);
        set(levels(log.level));
    }
}

fn set_form(format: LogFormat) {
    // Relaxed: a line or two may still look as before.
    IS_TEXT.store(format == LogFormat::Text, Ordering::Relaxed);
}

fn levels(level: Level) -> Targets {
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
    Targets::new()
        .with_target(env!("CARGO_CRATE_NAME"), level)
        .with_default(libraries)
}

/// Where lines of another kind are written to, beside those of the log. Before [`init`], nowhere.
pub fn lines() -> Lines {
    LINES.get().cloned().unwrap_or_default()
}

/// How many lines were dropped because stdout took none for a while.
pub fn dropped_lines() -> u64 {
    LINES.get().map_or(0, Lines::dropped)
}

/// `log.format`, whichever it is at the moment.
struct Form {
    is_text: &'static AtomicBool,
    /// Of text.
    colours: bool,
}

impl<S, N> FormatEvent<S, N> for Form
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = Line {
            time: clock::wall(),
            level: *event.metadata().level(),
            message: String::new(),
            fields: Map::new(),
        };
        event.record(&mut line);
        match self.is_text.load(Ordering::Relaxed) {
            false => json::write(line, writer),
            true => text::write(&line, self.colours, writer),
        }
    }
}

/// What a line says.
struct Line {
    time: SystemTime,
    level: Severity,
    message: String,
    fields: Map<String, Value>,
}

impl Line {
    fn set(&mut self, field: &Field, value: Value) {
        self.fields.insert(field.name().into(), value);
    }
}

impl Visit for Line {
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
                self.fields.insert(name.into(), value);
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
struct Rfc3339(SystemTime);

impl fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", humantime::format_rfc3339_millis(self.0))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, Mutex},
        time::{Duration, UNIX_EPOCH},
    };

    use super::*;

    static JSON: AtomicBool = AtomicBool::new(false);
    static TEXT: AtomicBool = AtomicBool::new(true);

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

    /// What `log` logs.
    fn logged(is_text: &'static AtomicBool, log: impl FnOnce()) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .event_format(Form {
                is_text,
                colours: false,
            })
            .finish();
        tracing::subscriber::with_default(subscriber, log);
        String::from_utf8(captured.0.lock().unwrap().clone()).unwrap()
    }

    fn something() {
        tracing::warn!(
            error = %"line\nbreak \"quoted\"",
            count = 3u64,
            config_json = r#"{"a":{"b":1}}"#,
            "something {}", "happened"
        );
    }

    #[test]
    fn a_line_is_one_json_object_with_time_level_and_message_first() {
        let text = logged(&JSON, something);
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
    fn a_line_of_text_says_the_same() {
        let text = logged(&TEXT, something);
        let (time, rest) = text.split_once(' ').unwrap();
        assert!(time.starts_with("20") && time.ends_with('Z'), "{text}");
        assert_eq!(
            rest,
            " WARN something happened error=\"line\\nbreak \\\"quoted\\\"\" count=3 \
             config={\"a\":{\"b\":1}}\n"
        );
    }

    #[test]
    fn before_logging_lines_go_nowhere() {
        lines().write(b"a line\n");
        assert_eq!(dropped_lines(), 0);
    }

    #[test]
    fn times_are_rfc_3339_in_utc() {
        let time = UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        assert_eq!(Rfc3339(time).to_string(), "2023-11-14T22:13:20.123Z");
    }
}
