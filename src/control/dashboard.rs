//! The dashboard: one page, made when the program is, that asks for nothing but what this port tells.
//!
//! Its Content-Security-Policy lets its own script and style run and nothing else, so that whatever gets into
//! what it shows, a URL from the configuration or an error's text, is shown and never done.

use std::sync::LazyLock;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::HeaderValue;
use ring::digest::{SHA256, digest};

const HTML: &str = include_str!("dashboard/page.html");
const CSS: &str = include_str!("dashboard/page.css");
/// In the order in which it is read.
const JS: &str = concat!(
    include_str!("dashboard/feed.js"),
    "\n",
    include_str!("dashboard/verdict.js"),
    "\n",
    include_str!("dashboard/charts.js"),
    "\n",
    include_str!("dashboard/rollout.js"),
    "\n",
    include_str!("dashboard/decisions.js"),
    "\n",
    include_str!("dashboard/actions.js"),
    "\n",
    include_str!("dashboard/kit.js"),
);

/// The page and its policy.
pub struct Page {
    /// HTML.
    pub html: Bytes,
    /// The value of `Content-Security-Policy` (W3C CSP level 3).
    pub policy: HeaderValue,
}

/// The page, put together when it is asked for first.
pub static PAGE: LazyLock<Page> = LazyLock::new(|| Page {
    html: HTML.replace("/*CSS*/", CSS).replace("/*JS*/", JS).into(),
    policy: HeaderValue::try_from(format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        source(JS),
        source(CSS)
    ))
    .expect("what we say ourselves is visible ASCII"),
});

/// What a script or style is known by.
fn source(text: &str) -> String {
    let hash = digest(&SHA256, text.as_bytes());
    format!("sha256-{}", STANDARD.encode(hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_whole_and_asks_nobody_else() {
        let html = std::str::from_utf8(&PAGE.html).unwrap();
        for part in [CSS, JS] {
            assert_eq!(html.matches(part).count(), 1);
            for end in ["</script", "</style"] {
                assert!(!part.contains(end), "{end} in the midst of it");
            }
        }
        assert_eq!(html.matches("<script").count(), 1);
        assert_eq!(html.matches("<style").count(), 1);
        for word in ["http://", "https://"] {
            // Names of SVG, which nobody fetches.
            let text = html.replace("http://www.w3.org/2000/svg", "");
            assert!(!text.contains(word), "{word}");
        }
    }

    #[test]
    fn a_source_is_its_hash() {
        // CSP level 3, section 8.3, has this example.
        assert_eq!(
            source("alert('Hello, world.');"),
            "sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng="
        );
    }
}
