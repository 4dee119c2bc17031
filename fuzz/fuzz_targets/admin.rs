//! A weight as an operator says it: what is taken is what any reader of JSON makes of it, and what is not is told in
//! one short line.

#![no_main]

use canary_router::control::weights::{Form, Problem};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|body: &[u8]| {
    for (form, keys) in [
        (Form::Percent, &["weight"][..]),
        (Form::Shares, &["new_weight", "old_weight"]),
    ] {
        let weight = match form.read(body) {
            Ok(weight) => weight,
            Err(Problem::NotJson(why) | Problem::Unfit(why)) => {
                assert!(why.len() < 300, "{why:?}");
                assert!(!why.contains(|c| c < ' '), "{why:?}");
                continue;
            }
        };
        let Ok(Value::Object(said)) = serde_json::from_slice(body) else {
            panic!("no object says a weight");
        };
        let mut known: Vec<&str> = said.keys().map(String::as_str).collect();
        known.sort_unstable();
        assert_eq!(known, keys);
        let number = |key: &str| said[key].as_f64().expect("it is a number");
        let percent = match form {
            Form::Percent => number("weight"),
            Form::Shares => {
                assert!((number("old_weight") + number("new_weight") - 1.0).abs() < 0.002);
                100.0 * number("new_weight")
            }
        };
        assert!((percent - weight.percent()).abs() < 1e-6);
    }
});
