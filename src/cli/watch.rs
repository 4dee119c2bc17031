//! `status --watch`: the status each second, until Ctrl-C.
//!
//! A router that has answered once may come and go, and is waited for; one that never has is an error, so that
//! a wrong URL does not look like a router that will be there soon.

use std::{
    io::{self, IsTerminal},
    pin::pin,
    time::Duration,
};

use serde_json::Value;
use tokio::time::MissedTickBehavior;

use super::{Error, client::Call, complain, print, shown, verbs::Request};

/// Shows it again and again.
pub async fn watch(call: &Call<'_>, request: &Request, json: bool) -> Result<(), Error> {
    let mut ended = pin!(tokio::signal::ctrl_c());
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watched = Watched {
        form: match (json, io::stdout().is_terminal()) {
            (true, _) => Form::Documents,
            (false, true) => Form::Screen,
            (false, false) => Form::Blocks,
        },
        uptime: f64::NEG_INFINITY,
        last: None,
    };
    loop {
        let answer = tokio::select! {
            interrupted = &mut ended => return interrupted.map_err(Error::System),
            answer = async {
                seconds.tick().await;
                call.make(request).await
            } => answer,
        };
        match answer {
            Ok(status) => print(&watched.status(&status))?,
            Err(error) => match watched.failure(&error) {
                None => return Err(error),
                // Among documents there is no place for a sentence.
                Some(text) if watched.form == Form::Documents => complain(&text),
                Some(text) => print(&text)?,
            },
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// A terminal: each in the place of the one before.
    Screen,
    /// A file or a pipe: one after the other, an empty line between.
    Blocks,
    /// JSON, one document after the other.
    Documents,
}

/// What has been shown so far.
struct Watched {
    form: Form,
    /// In seconds; when it falls, the router is another process.
    uptime: f64,
    last: Option<String>,
}

impl Watched {
    fn status(&mut self, status: &Value) -> String {
        let text = shown(status, self.form == Form::Documents);
        let before = self.uptime;
        self.uptime = status["uptime_seconds"].as_f64().unwrap_or(before);
        let again = match self.uptime < before {
            true => "the router has started again\n",
            false => "",
        };
        let shown = match self.form {
            Form::Screen => redrawn(&format!("{again}{text}")),
            Form::Blocks => format!("{again}{text}\n"),
            Form::Documents => text.clone(),
        };
        self.last = Some(text);
        shown
    }

    /// `None` where there is nothing to wait for.
    fn failure(&self, error: &Error) -> Option<String> {
        let last = self.last.as_ref()?;
        let trying = format!("{error}\ntrying again each second");
        Some(match self.form {
            Form::Screen => redrawn(&format!("{trying}\n\nas it was before:\n{last}")),
            Form::Blocks => format!("{trying}\n\n"),
            Form::Documents => trying,
        })
    }
}

/// The text in place of what was on the terminal, without the flicker of an empty one in between.
fn redrawn(text: &str) -> String {
    const HOME: &str = "\x1b[H";
    const END_OF_LINE: &str = "\x1b[K\n";
    const REST_OF_SCREEN: &str = "\x1b[J";
    format!("{HOME}{}{REST_OF_SCREEN}", text.replace('\n', END_OF_LINE))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn watched(form: Form) -> Watched {
        Watched {
            form,
            uptime: f64::NEG_INFINITY,
            last: None,
        }
    }

    fn gone() -> Error {
        Error::System(io::ErrorKind::ConnectionRefused.into())
    }

    #[test]
    fn a_redrawn_screen_has_nothing_left_of_the_one_before() {
        assert_eq!(redrawn("a\nb\n"), "\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J");
    }

    #[test]
    fn a_router_that_never_answered_is_not_waited_for() {
        for form in [Form::Screen, Form::Blocks, Form::Documents] {
            assert_eq!(watched(form).failure(&gone()), None);
        }
    }

    #[test]
    fn a_router_that_goes_is_waited_for_and_what_it_was_stays_on_the_screen() {
        let mut screen = watched(Form::Screen);
        let shown = screen.status(&json!({"uptime_seconds": 60}));
        let kept = screen.failure(&gone()).unwrap();
        assert!(kept.contains("trying again"), "{kept}");
        let body = shown.trim_start_matches("\x1b[H");
        assert!(kept.ends_with(body), "{kept}");
        let mut blocks = watched(Form::Blocks);
        blocks.status(&json!({"uptime_seconds": 60}));
        let said = blocks.failure(&gone()).unwrap();
        assert!(said.ends_with("trying again each second\n\n"), "{said}");
    }

    #[test]
    fn a_router_that_has_started_again_is_said_once() {
        let mut blocks = watched(Form::Blocks);
        let mut says = |uptime: Value| {
            let block = blocks.status(&json!({"uptime_seconds": uptime}));
            block.starts_with("the router has started again\ncanary-router")
        };
        let uptimes = [
            json!(60),
            json!(61),
            json!(1),
            json!(2),
            json!(null),
            json!(3),
        ];
        assert_eq!(
            uptimes.map(&mut says),
            [false, false, true, false, false, false]
        );
        let mut documents = watched(Form::Documents);
        documents.status(&json!({"uptime_seconds": 60}));
        let document = documents.status(&json!({"uptime_seconds": 1}));
        assert_eq!(document, "{\n  \"uptime_seconds\": 1\n}\n");
    }
}
