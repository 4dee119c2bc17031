//! One JSON object a line, with `@time`, `level` and `msg` first.

use std::fmt::{self, Write};

use serde_json::{Map, Value};

use super::{Line, Rfc3339};

pub fn write(line: Line, mut to: impl Write) -> fmt::Result {
    let time = Rfc3339(line.time).to_string();
    let level = line.level.as_str().to_ascii_lowercase();
    let mut object = Map::new();
    object.insert("@time".into(), time.into());
    object.insert("level".into(), level.into());
    object.insert("msg".into(), line.message.into());
    object.extend(line.fields);
    writeln!(to, "{}", Value::Object(object))
}
