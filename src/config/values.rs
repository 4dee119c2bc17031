//! Single values as files have them: what shapes are taken for each, and how they are printed.

use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

/// A duration: a number is seconds, a string carries its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

/// A size in bytes: a number, or a string with a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

/// A TCP port, as a number or a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port(pub u16);

/// A whole number from 0 up, as a number or a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count(pub u64);

/// A boolean, as such or as a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flag(pub bool);

/// A share in hundredths of a percent, from 0 to 10,000; a number, or a string, with or without `%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Percent(pub u32);

/// A finite number, as such or as a string.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decimal(pub f64);

/// A text that nobody is shown: neither where it is printed nor in what is said of a wrong one.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

/// A list of texts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Texts(pub Vec<String>);

/// A list of whole numbers from 0 up, each as a number or a string.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counts(pub Vec<u64>);

const SPAN: &str =
    "a duration: seconds as a number, or a string with a unit: \"250ms\", \"5s\", \"2m\", \"1h\"";
const SIZE: &str =
    "a size: bytes as a number, or a string with a unit: \"64KiB\", \"1MiB\", \"1GiB\"";
const PORT: &str = "a TCP port from 1 to 65535, such as 1345 or \"1345\"";
const COUNT: &str = "a whole number, 0 or more";
const FLAG: &str = "true or false";
const PERCENT: &str = "a percentage from 0 to 100 with at most two decimals: 50, 0.25 or \"50%\"";
const DECIMAL: &str = "a number, such as 1.5 or 0.01";
const TEXTS: &str = "a list of strings, such as [\"a\", \"b\"]";
const COUNTS: &str = "a list of whole numbers, such as [502, 503]";

/// The longest duration that is taken: a year. Beyond it somebody meant another unit.
const MAX_SPAN: Duration = Duration::from_secs(365 * 24 * 3600);

impl Span {
    fn parse(value: &Value) -> Option<Span> {
        let seconds = match value {
            Value::Number(seconds) => seconds.as_f64()?,
            Value::String(text) => {
                let text = text.trim();
                let digits = text.len() - text.trim_start_matches(is_decimal).len();
                let (number, unit) = text.split_at(digits);
                let factor = match unit.trim_start() {
                    "" | "s" => 1.0,
                    "ms" => 0.001,
                    "m" => 60.0,
                    "h" => 3600.0,
                    _ => return None,
                };
                number.parse::<f64>().ok()? * factor
            }
            _ => return None,
        };
        let span = Duration::try_from_secs_f64(seconds).ok()?;
        (span <= MAX_SPAN).then_some(Span(span))
    }
}

impl Size {
    fn parse(value: &Value) -> Option<Size> {
        match value {
            Value::Number(bytes) => bytes.as_u64().map(Size),
            Value::String(text) => {
                let text = text.trim();
                let digits =
                    text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
                let (number, unit) = text.split_at(digits);
                let factor: u64 = match unit.trim_start() {
                    "" | "B" => 1,
                    "KiB" => 1 << 10,
                    "MiB" => 1 << 20,
                    "GiB" => 1 << 30,
                    "kB" | "KB" => 1_000,
                    "MB" => 1_000_000,
                    "GB" => 1_000_000_000,
                    _ => return None,
                };
                number.parse::<u64>().ok()?.checked_mul(factor).map(Size)
            }
            _ => None,
        }
    }
}

impl Count {
    fn parse(value: &Value) -> Option<Count> {
        match value {
            Value::Number(number) => number.as_u64().map(Count),
            Value::String(text) => text.trim().parse().ok().map(Count),
            _ => None,
        }
    }
}

impl Port {
    fn parse(value: &Value) -> Option<Port> {
        u16::try_from(Count::parse(value)?.0).ok().map(Port)
    }
}

impl Flag {
    fn parse(value: &Value) -> Option<Flag> {
        match value {
            Value::Bool(flag) => Some(Flag(*flag)),
            Value::String(text) => text.trim().parse().ok().map(Flag),
            _ => None,
        }
    }
}

impl Percent {
    /// By its digits: no rounding decides what a limit is.
    fn parse(value: &Value) -> Option<Percent> {
        let text = match value {
            Value::Number(number) => number.to_string(),
            Value::String(text) => {
                let text = text.trim();
                text.strip_suffix('%').unwrap_or(text).trim_end().to_owned()
            }
            _ => return None,
        };
        let (whole, fraction) = text.split_once('.').unwrap_or((&text, "0"));
        let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || fraction.is_empty() || !all_digits(whole) || !all_digits(fraction) {
            return None;
        }
        let hundredths = match fraction.trim_end_matches('0') {
            "" => 0,
            tenths if tenths.len() == 1 => 10 * tenths.parse::<u32>().ok()?,
            both if both.len() == 2 => both.parse().ok()?,
            _ => return None,
        };
        let whole = whole.parse::<u32>().ok().filter(|whole| *whole <= 100)?;
        let percent = Percent(100 * whole + hundredths);
        (percent.0 <= 10_000).then_some(percent)
    }
}

impl Decimal {
    fn parse(value: &Value) -> Option<Decimal> {
        let number = match value {
            Value::Number(number) => number.as_f64()?,
            Value::String(text) => text.trim().parse().ok()?,
            _ => return None,
        };
        number.is_finite().then_some(Decimal(number))
    }
}

impl Secret {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

impl Texts {
    fn parse(value: &Value) -> Option<Texts> {
        let items = value.as_array()?.iter();
        let texts: Option<_> = items.map(|item| item.as_str().map(str::to_owned)).collect();
        texts.map(Texts)
    }
}

impl Counts {
    fn parse(value: &Value) -> Option<Counts> {
        let items = value.as_array()?.iter();
        let counts: Option<_> = items.map(|item| Some(Count::parse(item)?.0)).collect();
        counts.map(Counts)
    }
}

fn is_decimal(c: char) -> bool {
    c.is_ascii_digit() || c == '.'
}

macro_rules! deserialize_leniently {
    ($($type:ty: $expected:expr),*) => {$(
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let value = Value::deserialize(deserializer)?;
                Self::parse(&value).ok_or_else(|| {
                    serde::de::Error::custom(format_args!("expected {}, not {value}", $expected))
                })
            }
        }
    )*};
}
deserialize_leniently!(Span: SPAN, Size: SIZE, Port: PORT, Count: COUNT, Flag: FLAG, Percent: PERCENT, Decimal: DECIMAL, Texts: TEXTS, Counts: COUNTS);

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) => Ok(Secret(text)),
            _ => Err(serde::de::Error::custom("expected a string in quotes")),
        }
    }
}

impl Serialize for Span {
    /// Seconds where they are whole, as in old files; otherwise milliseconds with their unit.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match (self.0.as_secs(), self.0.subsec_nanos()) {
            (seconds, 0) => serializer.serialize_u64(seconds),
            _ => serializer.collect_str(&format_args!("{}ms", self.0.as_secs_f64() * 1000.0)),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            0 => serializer.serialize_u64(0),
            bytes if bytes % (1 << 30) == 0 => {
                serializer.collect_str(&format_args!("{}GiB", bytes >> 30))
            }
            bytes if bytes % (1 << 20) == 0 => {
                serializer.collect_str(&format_args!("{}MiB", bytes >> 20))
            }
            bytes if bytes % (1 << 10) == 0 => {
                serializer.collect_str(&format_args!("{}KiB", bytes >> 10))
            }
            bytes => serializer.serialize_u64(bytes),
        }
    }
}

impl Serialize for Port {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u16(self.0)
    }
}

impl Serialize for Count {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl Serialize for Flag {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bool(self.0)
    }
}

impl Serialize for Percent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match (self.0 / 100, self.0 % 100) {
            (whole, 0) => serializer.serialize_u32(whole),
            _ => serializer.serialize_f64(f64::from(self.0) / 100.0),
        }
    }
}

impl Serialize for Decimal {
    /// Without a point where it is whole, as people write it.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 as i64 {
            whole if whole as f64 == self.0 => serializer.serialize_i64(whole),
            _ => serializer.serialize_f64(self.0),
        }
    }
}

impl Serialize for Secret {
    /// Only whether there is one.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self.0.trim() {
            "" => "",
            _ => "***",
        })
    }
}

impl Serialize for Texts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(&self.0)
    }
}

impl Serialize for Counts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn durations_take_seconds_and_units() {
        for (written, milliseconds) in [
            (json!(5), 5_000),
            (json!(0.25), 250),
            (json!("250ms"), 250),
            (json!("5s"), 5_000),
            (json!("1.5s"), 1_500),
            (json!("2m"), 120_000),
            (json!("2h"), 7_200_000),
            (json!("5"), 5_000),
            (json!(" 5 s "), 5_000),
        ] {
            let span = Span::parse(&written).map(|span| span.0.as_millis());
            assert_eq!(span, Some(milliseconds), "{written}");
        }
        for written in [
            json!("5 parsecs"),
            json!("-1s"),
            json!(-1),
            json!("s"),
            json!(""),
            json!(true),
            json!([5]),
            json!("1e400"),
            json!(1e12),
            json!("5d"),
        ] {
            assert_eq!(Span::parse(&written), None, "{written}");
        }
    }

    #[test]
    fn sizes_take_bytes_and_units() {
        for (written, bytes) in [
            (json!(0), 0),
            (json!(65536), 65536),
            (json!("64KiB"), 65536),
            (json!("1MiB"), 1 << 20),
            (json!("1 GiB"), 1 << 30),
            (json!("64"), 64),
            (json!("1MB"), 1_000_000),
        ] {
            assert_eq!(Size::parse(&written), Some(Size(bytes)), "{written}");
        }
        for written in [
            json!("1.5MiB"),
            json!(-1),
            json!("many"),
            json!("99999999999GiB"),
            json!(""),
        ] {
            assert_eq!(Size::parse(&written), None, "{written}");
        }
    }

    #[test]
    fn ports_counts_and_flags_may_be_strings_as_in_old_files() {
        assert_eq!(Port::parse(&json!("1345")), Some(Port(1345)));
        assert_eq!(Port::parse(&json!(1345)), Some(Port(1345)));
        assert_eq!(Port::parse(&json!(65536)), None);
        assert_eq!(Port::parse(&json!("http")), None);
        assert_eq!(Count::parse(&json!("300")), Some(Count(300)));
        assert_eq!(Count::parse(&json!(-3)), None);
        assert_eq!(Count::parse(&json!(1.5)), None);
        assert_eq!(Flag::parse(&json!("true")), Some(Flag(true)));
        assert_eq!(Flag::parse(&json!("yes")), None);
    }

    #[test]
    fn percentages_take_hundredths_and_signs() {
        for (written, hundredths) in [
            (json!(0), 0),
            (json!(50), 5_000),
            (json!(100), 10_000),
            (json!(0.01), 1),
            (json!(33.3), 3_330),
            (json!(99.99), 9_999),
            (json!(7.0), 700),
            (json!("50%"), 5_000),
            (json!(" 0.5 % "), 50),
            (json!("12.340"), 1_234),
        ] {
            let percent = Percent::parse(&written);
            assert_eq!(percent, Some(Percent(hundredths)), "{written}");
        }
        for written in [
            json!(-1),
            json!(100.01),
            json!(101),
            json!(0.001),
            json!(1e-7),
            json!(1e300),
            json!("half"),
            json!(""),
            json!("%"),
            json!("5%%"),
            json!("5."),
            json!(".5"),
            json!("1.2.3"),
            json!("+5"),
            json!("99999999999999999999"),
            json!(true),
            json!([5]),
        ] {
            assert_eq!(Percent::parse(&written), None, "{written}");
        }
    }

    #[test]
    fn decimals_take_every_finite_number() {
        for (written, number) in [
            (json!(0), 0.0),
            (json!(2), 2.0),
            (json!(1.5), 1.5),
            (json!(-0.25), -0.25),
            (json!("0.01"), 0.01),
            (json!(" 3 "), 3.0),
            (json!(1e-6), 0.000_001),
        ] {
            assert_eq!(Decimal::parse(&written), Some(Decimal(number)), "{written}");
        }
        for written in [
            json!("inf"),
            json!("NaN"),
            json!("1e400"),
            json!("5%"),
            json!("1,5"),
            json!(""),
            json!(true),
            json!([1]),
        ] {
            assert_eq!(Decimal::parse(&written), None, "{written}");
        }
    }

    #[test]
    fn a_secret_is_shown_nowhere() {
        let secret: Secret = serde_json::from_value(json!("hunter2")).unwrap();
        assert_eq!(secret.as_str(), "hunter2");
        assert_eq!(serde_json::to_value(&secret).unwrap(), json!("***"));
        assert_eq!(format!("{secret:?}"), "Secret(***)");
        let wrong = serde_json::from_value::<Secret>(json!(["hunter2"])).unwrap_err();
        assert!(!wrong.to_string().contains("hunter2"), "{wrong}");
        let none = serde_json::to_value(Secret::default()).unwrap();
        assert_eq!(none, json!(""));
    }

    #[test]
    fn lists_take_what_their_items_take() {
        let texts = Texts::parse(&json!(["a", ""]));
        assert_eq!(texts, Some(Texts(vec!["a".into(), "".into()])));
        assert_eq!(Texts::parse(&json!([])), Some(Texts::default()));
        assert_eq!(Texts::parse(&json!(["a", 1])), None);
        assert_eq!(Texts::parse(&json!("a")), None);
        let counts = Counts::parse(&json!([502, "503"]));
        assert_eq!(counts, Some(Counts(vec![502, 503])));
        assert_eq!(Counts::parse(&json!([502, -1])), None);
        assert_eq!(Counts::parse(&json!({})), None);
    }

    #[test]
    fn what_is_written_reads_back_as_the_same() {
        for span in [
            Duration::ZERO,
            Duration::from_millis(250),
            Duration::from_secs(90),
        ] {
            let written = serde_json::to_value(Span(span)).unwrap();
            assert_eq!(Span::parse(&written), Some(Span(span)), "{written}");
        }
        for number in [0.0, 1.0, 1.5, 0.000_001, -3.0, 0.1, 1e300] {
            let written = serde_json::to_value(Decimal(number)).unwrap();
            assert_eq!(Decimal::parse(&written), Some(Decimal(number)), "{written}");
        }
        assert_eq!(serde_json::to_value(Decimal(2.0)).unwrap(), json!(2));
        for size in [0, 1, 1000, 1 << 10, 3 << 20, 5 << 30] {
            let written = serde_json::to_value(Size(size)).unwrap();
            assert_eq!(Size::parse(&written), Some(Size(size)), "{written}");
        }
        for percent in 0..=10_000 {
            let written = serde_json::to_value(Percent(percent)).unwrap();
            assert_eq!(
                Percent::parse(&written),
                Some(Percent(percent)),
                "{written}"
            );
        }
    }
}
