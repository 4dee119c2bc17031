//! The configuration: any text is judged; what is wrong is told in lines of text; and what is accepted is accepted
//! again, with the same meaning, as `/status` shows it.

#![no_main]

use std::sync::LazyLock;

use canary_router::config::Config;
use edits::Template;
use libfuzzer_sys::fuzz_target;

mod edits;

static TEMPLATE: LazyLock<Template> =
    LazyLock::new(|| Template::new(include_str!("../../config.template.json")));

fuzz_target!(|input: &[u8]| {
    let Ok(input) = str::from_utf8(input) else {
        return;
    };
    match Config::parse("config.json", &TEMPLATE.text(input)) {
        Ok(config) => accepted(&config),
        Err(error) => {
            let told = error.to_string();
            let lines: Vec<&str> = told.split('\n').collect();
            assert_eq!(lines.len(), error.problems.len(), "{told:?}");
            assert!(
                !lines.iter().any(|line| line.contains(char::is_control)),
                "{told:?}"
            );
        }
    }
});

fn accepted(config: &Config) {
    let shown = config.effective.to_string();
    // What is masked is not what was written.
    if shown.contains("***") {
        return;
    }
    match Config::parse("config.json", &shown) {
        Ok(again) => assert_eq!(format!("{config:?}"), format!("{again:?}")),
        Err(error) => panic!("what is in force is refused: {error}\n{shown}"),
    }
}
