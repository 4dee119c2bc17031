//! The value of the `Date` field (RFC 9110 section 6.6.1), made once a second.

use http::HeaderValue;
use httpdate::HttpDate;

use crate::clock;

/// The time of day at the last [`refresh`](Date::refresh).
#[derive(Debug)]
pub struct Date {
    second: HttpDate,
    value: HeaderValue,
}

impl Default for Date {
    fn default() -> Self {
        Date::at(clock::wall().into())
    }
}

impl Date {
    fn at(second: HttpDate) -> Date {
        let text = second.to_string();
        Date {
            second,
            value: HeaderValue::try_from(text).expect("a date is letters, digits and punctuation"),
        }
    }

    /// Brings it up to date.
    pub fn refresh(&mut self) {
        let now = HttpDate::from(clock::wall());
        if now != self.second {
            *self = Date::at(now);
        }
    }

    /// As it stands in a field.
    pub fn as_bytes(&self) -> &[u8] {
        self.value.as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn it_is_an_imf_fixdate_and_follows_the_clock() {
        let mut date = Date::at((UNIX_EPOCH + Duration::from_secs(784_111_777)).into());
        assert_eq!(date.as_bytes(), b"Sun, 06 Nov 1994 08:49:37 GMT");
        date.refresh();
        assert!(date.second >= clock::wall().into());
    }
}
