//! The router from outside, through real sockets: one file a capability.
//!
//! Everything listens on a free port of 127.0.0.1. A test waits for a condition, never for a time.

mod support;

mod cli;
mod decisions;
mod fallback;
mod forwarding;
mod headers;
mod limits;
mod logs;
mod metrics;
mod peers;
mod readme;
mod shutdown;
mod sidecar;
mod timeouts;
mod tls;
mod upgrades;
