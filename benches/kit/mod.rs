//! What the benches share: a load generator, an upstream that costs little, the configurations of the
//! proxies that are compared, and the processes they run in.
//!
//! Nothing here measures by itself and nothing knows how results are shown. Everything listens on
//! 127.0.0.1, on free ports, and is gone when its value is dropped.

pub mod certificate;
pub mod h2load;
pub mod load;
pub mod machine;
pub mod message;
pub mod nghttpd;
pub mod process;
pub mod proxies;
pub mod upstream;
pub mod wire;
pub mod workload;
