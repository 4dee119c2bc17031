//! A sidecar to copy: the canary is for users whose number ends in 0, everybody else gets main.
//!
//! It is asked with the method, path, query, headers and body of each request, and answers with a
//! status: 200 is canary, 204 is main. Anything else, or no answer within the timeout, is main.
//!
//!     cargo run --example sidecar -- 127.0.0.1:8083

use std::convert::Infallible;

use http_body_util::Empty;
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// The rule. This is what you write.
fn is_for_canary(headers: &HeaderMap) -> bool {
    let user = headers.get("x-user-id").and_then(|user| user.to_str().ok());
    user.is_some_and(|user| user.ends_with('0'))
}

async fn decide(request: Request<Incoming>) -> Result<Response<Empty<Bytes>>, Infallible> {
    let mut response = Response::new(Empty::new());
    *response.status_mut() = match is_for_canary(request.headers()) {
        true => StatusCode::OK,
        false => StatusCode::NO_CONTENT,
    };
    Ok(response)
}

/// Answers for as long as the process lives.
pub async fn serve(listener: TcpListener) -> std::io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let served =
            http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(decide));
        tokio::task::spawn_local(async move {
            // A router that hangs up is no reason to stop.
            let _hung_up = served.await;
        });
    }
}

#[allow(dead_code)] // The demo runs `serve` only.
fn main() -> std::io::Result<()> {
    let address = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:8083".into());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        serve(TcpListener::bind(address).await?).await
    })
}
