use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, Method, Version};

use super::*;
use crate::{
    policy::Weight,
    proxy::{fields::tests::fields, uri},
};

const CLIENT: &str = "192.0.2.7";

fn split(hundredths: u32) -> Split {
    Split {
        rolled_back: false,
        weight: Weight::new(hundredths).unwrap(),
        epoch: 3,
        tick: None,
        since: 1,
    }
}

fn head(lines: &[(&str, &str)]) -> RequestHead {
    RequestHead {
        method: Method::GET,
        target: uri::Target::parse(&Method::GET, Bytes::from_static(b"/")).unwrap(),
        version: Version::HTTP_11,
        headers: fields(lines),
    }
}

fn by_header() -> Sticky {
    Sticky::Header(HeaderName::from_static("x-user-id"))
}

fn by_our_cookie() -> Sticky {
    Sticky::Cookie(StickyCookie {
        name: "canary-router".into(),
        max_age: Duration::from_secs(3600),
        secure: true,
        same_site: SameSite::Lax,
    })
}

/// Name and value, as a client sends it back.
fn sent_back(lot: &Lot) -> String {
    let set = String::from_utf8(lot.cookie.as_ref().unwrap().to_vec()).unwrap();
    set.split("; ").next().unwrap().to_owned()
}

#[test]
fn a_million_keys_get_their_share_and_a_ramp_moves_nobody_out() {
    const KEYS: u64 = 1_000_000;
    let lots = Lots::new(0xfeed);
    let points: Vec<u64> = (0..KEYS)
        .map(|user| {
            lots.point(Kind::Header, format!("user-{user}").as_bytes())
                .unwrap()
        })
        .collect();
    let mut before = vec![false; points.len()];
    for hundredths in [1, 10, 100, 500, 2_500, 5_000, 10_000] {
        let weight = Weight::new(hundredths).unwrap();
        let mut canary = 0;
        for (point, was) in points.iter().zip(&mut before) {
            let is = weight.takes(*point);
            assert!(is >= *was, "a greater weight has moved somebody out");
            canary += u64::from(is);
            *was = is;
        }
        // Five standard deviations: one run in a million.
        let (n, p) = (KEYS as f64, weight.ratio());
        let bound = 5.0 * (n * p * (1.0 - p)).sqrt();
        assert!((canary as f64 - n * p).abs() <= bound, "{weight}: {canary}");
    }
}

#[test]
fn what_a_client_is_known_by_decides_and_nothing_else() {
    let lots = Lots::new(1);
    let draw = |sticky: &Sticky, lines: &[(&str, &str)], client: &str| {
        let lot = lots.draw(split(5_000), Some(sticky), &head(lines), || client.into());
        assert_eq!((lot.is_new, &lot.cookie), (false, &None));
        lot.key
    };
    let header = by_header();
    let named = Sticky::NamedCookie("sid".into());
    let user = draw(&header, &[("X-User-Id", "7")], CLIENT);
    assert!(user.is_some());
    assert_eq!(
        draw(&header, &[("a", "b"), ("x-user-ID", "7")], "::1"),
        user
    );
    assert_ne!(draw(&header, &[("x-user-id", "8")], CLIENT), user);
    let cookie = draw(&named, &[("cookie", "a=1; sid=7")], CLIENT);
    assert!(cookie.is_some() && cookie != user, "a cookie is no header");
    assert_eq!(draw(&named, &[("cookie", "sid=7; sid=8")], "::1"), cookie);
    let address = draw(&Sticky::ClientIp, &[], CLIENT);
    assert!(address.is_some());
    assert_ne!(draw(&Sticky::ClientIp, &[], "192.0.2.8"), address);
    // Whom nothing is known of is a draw of its own.
    for (sticky, lines) in [
        (&header, &[][..]),
        (&header, &[("x-user-id", "")][..]),
        (&named, &[("cookie", "sid=")][..]),
        (&named, &[("cookie", "other=1")][..]),
    ] {
        assert_eq!(draw(sticky, lines, CLIENT), None, "{lines:?}");
    }
    // Another installation draws otherwise.
    let other = Lots::new(2).draw(
        split(5_000),
        Some(&header),
        &head(&[("x-user-id", "7")]),
        || "".into(),
    );
    assert_ne!(other.key, user);
}

#[test]
fn without_a_key_each_request_is_a_draw_of_its_own() {
    let lots = Lots::new(1);
    let canary = (0..10_000)
        .filter(|_| {
            let lot = lots.draw(split(5_000), None, &head(&[]), || CLIENT.into());
            assert_eq!((lot.key, lot.cookie), (None, None));
            lot.target == Target::Canary
        })
        .count();
    assert!((4_700..5_300).contains(&canary), "{canary}");
}

#[test]
fn nobody_is_asked_where_the_weight_is_certain() {
    let lots = Lots::new(1);
    for (weight, target) in [(0, Target::Main), (10_000, Target::Canary)] {
        for sticky in [None, Some(by_our_cookie()), Some(by_header())] {
            let lot = lots.draw(
                split(weight),
                sticky.as_ref(),
                &head(&[("x-user-id", "7")]),
                || CLIENT.into(),
            );
            let expected = Lot {
                target,
                key: None,
                is_new: false,
                cookie: None,
            };
            assert_eq!(lot, expected);
        }
    }
}

#[test]
fn a_cookie_of_ours_is_believed_and_no_other() {
    let lots = Lots::new(7);
    let sticky = by_our_cookie();
    let draw = |lots: &Lots, split: Split, cookie: &str| {
        lots.draw(split, Some(&sticky), &head(&[("cookie", cookie)]), || {
            CLIENT.into()
        })
    };
    let first = draw(&lots, split(5_000), "");
    assert!(first.is_new);
    let set = String::from_utf8(first.cookie.clone().unwrap().to_vec()).unwrap();
    let attributes = "; Path=/; Max-Age=3600; HttpOnly; SameSite=Lax; Secure";
    assert!(
        set.starts_with("canary-router=3.") && set.ends_with(attributes),
        "{set}"
    );

    let cookie = sent_back(&first);
    let again = draw(&lots, split(5_000), &format!("a=b; {cookie}; c=d"));
    assert_eq!((again.key, again.target), (first.key, first.target));
    assert_eq!((again.is_new, again.cookie), (false, None));

    let behind = draw(
        &lots,
        split(5_000),
        &format!("canary-router=junk; {cookie}"),
    );
    assert_eq!((behind.key, behind.is_new), (first.key, false));

    // Another epoch, another installation, or any other byte: a new client.
    let epoch = Split {
        epoch: 4,
        ..split(5_000)
    };
    assert!(draw(&lots, epoch, &cookie).is_new);
    assert!(draw(&Lots::new(8), split(5_000), &cookie).is_new);
    for i in "canary-router=".len()..cookie.len() {
        let mut other = cookie.clone().into_bytes();
        other[i] = if other[i] == b'0' { b'1' } else { b'0' };
        let other = String::from_utf8(other).unwrap();
        assert!(draw(&lots, split(5_000), &other).is_new, "{other}");
    }
    for junk in [
        "",
        "3",
        "..",
        "3.x.y",
        "3.0000000000000000.",
        "18446744073709551616.a.b",
    ] {
        assert!(draw(&lots, split(5_000), &format!("canary-router={junk}")).is_new);
    }
    let longer = format!("{cookie}00");
    assert!(draw(&lots, split(5_000), &longer).is_new);
}
