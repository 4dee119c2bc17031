//! HTTP/2 (RFC 9113) towards clients. The `h2` crate speaks it; here is what it leaves to us.

pub mod guard;
