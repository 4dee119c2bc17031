//! HTTP/2 (RFC 9113), on both sides, by the `h2` crate: it has the frames, header compression, flow
//! control and the states of streams. Ours is what surrounds them.
//!
//! | module | does |
//! |---|---|
//! | [`session`] | a client's connection: accepts its streams, and ends it |
//! | [`guard`] | watches what a client sends: who owes us the rest, who only costs us work |
//! | [`stream`] | one request of it: hands it to the pipeline, and the response to the client |
//! | [`wire`] | a connection's bytes, as the `h2` crate gets them |
//! | [`upstream`] | connections to an upstream, which requests share |
//! | [`opening`] | such connections while they are made, and who waits for them |
//! | [`flow`] | content, either way, no more than there is room for |
//! | [`head`] | heads, from the pipeline's form and to it |

pub mod flow;
pub mod guard;
pub mod head;
pub mod opening;
pub mod session;
pub mod stream;
pub mod upstream;
pub mod wire;
