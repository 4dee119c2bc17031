//! The router from outside, through real sockets: one file a capability.
//!
//! Everything listens on a free port of 127.0.0.1. A test waits for a condition, never for a time.

// In a test, what is not as expected has to end it.
#![allow(clippy::unwrap_used)]
// The kit has a runtime of its own; the ban is for the data plane.
#![allow(clippy::disallowed_methods)]

mod support;

mod access;
mod admin;
mod admin_changes;
mod admin_junk;
mod admin_phases;
mod bodies;
mod breaker;
mod cache;
mod certificates;
mod check;
mod cli;
mod command_line;
mod compose;
mod connections;
mod crowds;
mod dashboard;
mod decisions;
mod descriptors;
mod desync;
mod drain;
mod environment;
mod events;
mod failures;
mod fallback;
mod forwarding;
mod framing;
mod grpc;
mod guide;
mod guide_nginx;
mod guide_places;
mod guide_words;
mod h2;
mod h2_abuse;
mod h2_conformance;
mod h2_drain;
mod h2_memory;
mod h2_smuggling;
mod h2_timeouts;
mod h2_tls;
mod h2_tunnels;
mod h2_upstreams;
mod hangups;
mod headers;
mod http2_review;
mod informational;
mod kubernetes;
mod liars;
mod limits;
mod logs;
mod manual;
mod memory;
mod metrics;
mod observability;
mod origin;
mod others;
mod packaging;
mod peers;
mod readme;
mod reference;
mod reload;
mod replay;
mod rollout;
mod schema;
mod secrets;
mod shutdown;
mod sidecar;
mod sidecars;
mod spans;
mod split;
mod state;
mod succession;
mod succession_review;
mod timeouts;
mod tls;
mod traces;
mod trailers;
mod upgrades;
mod version;
