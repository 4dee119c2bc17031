//! One line of text an event, for people.
//!
//! Whatever a peer sends ends up in a value, so nothing in one may end the line, look like the next value, or
//! have a terminal do something: what is more than a word is quoted, and what does not print is escaped.

use std::fmt::{self, Write};

use serde_json::Value;
use tracing::Level;

use super::{Line, Rfc3339};

pub fn write(line: &Line, colours: bool, mut to: impl Write) -> fmt::Result {
    write!(to, "{} ", Rfc3339(line.time))?;
    let level = line.level.as_str();
    match colours {
        true => write!(to, "\x1b[{}m{level:>5}\x1b[0m ", colour(line.level))?,
        false => write!(to, "{level:>5} ")?,
    }
    harmless(&line.message, &mut to)?;
    for (name, value) in &line.fields {
        write!(to, " {name}=")?;
        match value {
            Value::String(text) if is_word(text) => to.write_str(text)?,
            // Escapes what does not print, line separators and changes of direction among it.
            Value::String(text) => write!(to, "{text:?}")?,
            value => harmless(&value.to_string(), &mut to)?,
        }
    }
    to.write_char('\n')
}

/// As `SGR` has it (ECMA-48 section 8.3.117).
fn colour(level: Level) -> u8 {
    match level {
        Level::ERROR => 31,
        Level::WARN => 33,
        Level::INFO => 32,
        _ => 2,
    }
}

fn is_word(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"\"=\\".contains(&byte);
    !text.is_empty() && text.bytes().all(is_plain)
}

/// A text of ours, or JSON, whose quotes are its own; a library's may have a peer's words in it.
fn harmless(text: &str, mut to: impl Write) -> fmt::Result {
    for c in text.chars() {
        match c {
            '"' | '\'' | '\\' => to.write_char(c)?,
            c => write!(to, "{}", c.escape_debug())?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use serde_json::{Map, json};

    use super::*;

    fn written(level: Level, message: &str, fields: Value, colours: bool) -> String {
        let line = Line {
            time: UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
            level,
            message: message.into(),
            fields: fields.as_object().cloned().unwrap_or_else(Map::new),
        };
        let mut text = String::new();
        write(&line, colours, &mut text).unwrap();
        text
    }

    fn value(value: Value) -> String {
        let text = written(Level::INFO, "said", json!({"v": value}), false);
        let before = "2023-11-14T22:13:20.123Z  INFO said v=";
        let value = text
            .strip_prefix(before)
            .unwrap_or_else(|| panic!("{text}"));
        value.strip_suffix('\n').unwrap().to_owned()
    }

    #[test]
    fn a_line_has_time_level_message_and_values() {
        let fields = json!({"target": "canary", "kind": "timeout", "error": "it is gone", "n": 3, "ok": true});
        assert_eq!(
            written(Level::WARN, "upstream failed", fields, false),
            "2023-11-14T22:13:20.123Z  WARN upstream failed target=canary kind=timeout \
             error=\"it is gone\" n=3 ok=true\n"
        );
        assert_eq!(
            written(Level::ERROR, "stopping", json!({}), false),
            "2023-11-14T22:13:20.123Z ERROR stopping\n"
        );
    }

    #[test]
    fn only_the_level_has_a_colour() {
        assert_eq!(
            written(Level::WARN, "said", json!({"v": 1}), true),
            "2023-11-14T22:13:20.123Z \x1b[33m WARN\x1b[0m said v=1\n"
        );
    }

    #[test]
    fn what_is_more_than_a_word_is_quoted() {
        for word in ["canary", "/a?b#c'd", "http://[::1]:80/%0a", "0.5", "{}"] {
            assert_eq!(value(word.into()), word);
        }
        for (text, quoted) in [
            ("", r#""""#),
            ("two words", r#""two words""#),
            ("a=b", r#""a=b""#),
            ("say \"no\"", r#""say \"no\"""#),
            ("\"", r#""\"""#),
            ("a\\n", r#""a\\n""#),
            ("caf\u{e9}", "\"caf\u{e9}\""),
        ] {
            assert_eq!(value(text.into()), quoted);
        }
    }

    /// Forges a line, clears the screen, sets the title, overprints, turns the text around, ends it early.
    const EVIL: [&str; 9] = [
        "x\n2023-11-14T22:13:20.123Z ERROR forged",
        "x\r\nforged",
        "\x1b[2J",
        "\x1b]0;title\x07",
        "\u{9b}31m",
        "\x08\x08\x7f",
        "\u{202e}desrever",
        "\u{2028}\u{2029}\u{85}",
        "\0\" forged=\"",
    ];

    #[test]
    fn no_text_can_end_a_line_or_move_a_terminal() {
        for evil in EVIL {
            for text in [
                value(evil.into()),
                value(json!({evil: [evil]})),
                written(Level::INFO, evil, json!({}), false),
            ] {
                let text = text.strip_suffix('\n').unwrap_or(&text);
                let prints = |c: char| c == ' ' || c.is_ascii_graphic();
                assert!(text.chars().all(prints), "{text:?}");
            }
        }
        assert_eq!(value("\x1b\0\n".into()), r#""\u{1b}\0\n""#);
    }

    /// Reads a value as a person does: up to its end.
    #[test]
    fn no_value_looks_like_two() {
        for evil in EVIL
            .into_iter()
            .chain(["a b=c", "\\", "\\\" b=c", "a\" b=\"c"])
        {
            let text = value(evil.into());
            let Some(quoted) = text.strip_prefix('"') else {
                panic!("{text} is a word")
            };
            let mut escaped = false;
            let end = quoted.bytes().position(|byte| {
                let ends = byte == b'"' && !escaped;
                escaped = byte == b'\\' && !escaped;
                ends
            });
            assert_eq!(end, Some(quoted.len() - 1), "{text}");
        }
    }

    #[test]
    fn structures_are_json() {
        let structure = json!({"a": {"b": [1, "two words", "x\n\"\u{e9}"]}});
        let text = value(structure.clone());
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), structure);
        assert!(!text.starts_with('"'), "{text}");
    }
}
