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
//! | [`arrival`] | what comes before HTTP: a PROXY header, a TLS handshake, which version |
//! | [`proxy_protocol`] | reads whose connection a load balancer passes on |
//! | [`io`] | a connection's bytes, whatever it is made of |
//! | [`conversation`] | the requests of one client, one after the other; how a connection ends |
//! | [`connection`] | what a client connection has received and has yet to send |
//! | [`http1`] | HTTP/1.1 as bytes: what is understood, and what is refused |
//! | [`http2`] | HTTP/2: what the `h2` crate leaves to us |
//! | [`client`] | who a request is from, in either version |
//! | [`watch`] | what a connection waits for and since when |
//! | [`service`] | the pipeline |
//! | [`message`], [`fields`], [`headers`], [`uri`] | message heads; what is passed on, and how it is rewritten |
//! | [`forwarded`] | who a request comes from, behind proxies that we trust |
//! | [`sidecar`], [`answers`] | asks main or canary, or knows from before |
//! | [`kit`], [`places`] | what a worker makes of a configuration; how many connections there may be |
//! | [`split`] | draws by the weight; who is whose, with sticky assignment |
//! | [`forward`] | sends to an upstream, falls back to main |
//! | [`upload`], [`call`] | one request to an upstream, and its response |
//! | [`pool`], [`connect`], [`refusal`] | upstream connections; whether one that ended had read a request |
//! | [`body`] | request and response bodies on their way through |
//! | [`upgrade`], [`websocket`] | tunnels after a `101`; what of a handshake is said for others |
//! | [`record`] | settles permit and tally once per request |
//! | [`notes`], [`access`], [`trace`] | what is told of each request, where somebody wants to know |
//! | [`error`] | what can fail, and which status that is |

pub mod access;
pub mod answers;
pub mod arrival;
pub mod body;
pub mod call;
pub mod client;
pub mod connect;
pub mod connection;
pub mod conversation;
pub mod date;
pub mod error;
pub mod fields;
pub mod forward;
pub mod forwarded;
pub mod headers;
pub mod http1;
pub mod http2;
pub mod io;
pub mod kit;
pub mod listener;
pub mod message;
pub mod notes;
pub mod places;
pub mod pool;
pub mod proxy_protocol;
pub mod record;
pub mod refusal;
pub mod service;
pub mod sidecar;
pub mod split;
pub mod trace;
pub mod upgrade;
pub mod upload;
pub mod uri;
pub mod watch;
pub mod websocket;
pub mod worker;
