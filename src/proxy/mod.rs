//! The data plane: one runtime, listener, pool and tally per worker thread; nothing shared on the
//! path of a request but the exact limits.
//!
//! The life of a request is one function, [`service`]'s `handle`; everything else here is what it
//! calls, in this order:
//!
//! | module | does |
//! |---|---|
//! | [`listener`] | binds the sockets and accepts |
//! | [`worker`] | the thread: runtime, accepted connections, sweep of deadlines, drain |
//! | [`connection`] | one client connection: drives hyper, timeouts, 1xx, lingering close |
//! | [`watch`] | what a connection waits for and since when |
//! | [`service`] | the pipeline |
//! | [`headers`], [`uri`] | what of a message is passed on, and how it is rewritten |
//! | [`sidecar`] | asks main or canary |
//! | [`forward`] | sends to an upstream, falls back to main |
//! | [`pool`], [`connect`] | upstream connections |
//! | [`body`] | request and response bodies on their way through |
//! | [`informational`], [`trailers`] | what hyper does not send, written past it |
//! | [`upgrade`] | tunnels after a `101` |
//! | [`record`] | settles permit, tally and log once per request |
//! | [`error`] | what can fail, and which status that is |

pub mod body;
pub mod connect;
pub mod connection;
pub mod error;
pub mod forward;
pub mod headers;
pub mod informational;
pub mod listener;
pub mod pool;
pub mod record;
pub mod service;
pub mod sidecar;
pub mod trailers;
pub mod upgrade;
pub mod uri;
pub mod watch;
pub mod worker;
