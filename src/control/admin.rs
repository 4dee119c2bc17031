//! The instrumentation port: `/metrics`, `/health/live`, `/health/ready`.

use std::convert::Infallible;

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE},
};
use http_body_util::Full;
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::{Control, metrics::Exposition, readiness::Readiness};

/// Answers the instrumentation port's requests.
pub struct Admin {
    exposition: Exposition,
    readiness: Readiness,
}

impl Admin {
    /// # Errors
    /// The metrics cannot be registered: two of them have the same name.
    pub fn new(control: Control) -> Result<Admin, prometheus::Error> {
        Ok(Admin {
            readiness: Readiness::new(&control),
            exposition: Exposition::new(control)?,
        })
    }

    /// Answers one request.
    ///
    /// # Errors
    /// None; every request has an answer.
    pub async fn answer(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let path = request.uri().path();
        let known = matches!(path, "/metrics" | "/health/live" | "/health/ready");
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        Ok(match path {
            _ if !known => error(
                StatusCode::NOT_FOUND,
                "there is nothing here: see /metrics, /health/live and /health/ready",
            ),
            _ if !reads => {
                let mut response = error(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "this can only be read: use GET",
                );
                response
                    .headers_mut()
                    .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
                response
            }
            "/metrics" => self.metrics(),
            "/health/live" => json_response(StatusCode::OK, &json!({"status": "live"})),
            _ => self.ready().await,
        })
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        match self.exposition.text() {
            Ok(text) => respond(StatusCode::OK, prometheus::TEXT_FORMAT, text),
            Err(failure) => error(StatusCode::INTERNAL_SERVER_ERROR, &failure.to_string()),
        }
    }

    async fn ready(&self) -> Response<Full<Bytes>> {
        let report = self.readiness.report().await;
        let status = match report.ready {
            true => StatusCode::OK,
            false => StatusCode::SERVICE_UNAVAILABLE,
        };
        json_response(status, &report.to_json())
    }
}

fn error(status: StatusCode, message: &str) -> Response<Full<Bytes>> {
    json_response(status, &json!({"error": message}))
}

fn json_response(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    respond(status, "application/json", format!("{body}\n"))
}

fn respond(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
