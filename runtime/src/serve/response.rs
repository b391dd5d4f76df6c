//! Responses, and their headers.

use std::sync::Arc;

use http_body_util::Full;
use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use runtime::protocol::RequestError;
use serde_json::{Value, json};

use super::metrics::Stages;
use super::page;
use super::version::ModelVersion;

pub(super) type Response = hyper::Response<Full<Bytes>>;

pub(super) const JSON: &str = "application/json";

/// A response with a body.
pub(super) fn response(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

pub(super) fn json_response(value: &Value) -> Response {
    response(StatusCode::OK, JSON, value.to_string())
}

pub(super) fn error_response(error: &RequestError) -> Response {
    let mut response = response(error.status, JSON, json!({"error": error.message}).to_string());
    let headers = response.headers_mut();
    match error.status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        StatusCode::UNAUTHORIZED => {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        _ => {}
    }
    response
}

/// The status counts; the body is empty.
pub(super) fn ready_response(is_ready: bool) -> Response {
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    response(status, JSON, Bytes::new())
}

pub(super) fn statistics_response(models: &[Arc<ModelVersion>]) -> Response {
    let statistics = models.iter().map(|model| {
        let description = &model.description;
        model.metrics.statistics().to_json(&description.name, &description.version)
    });
    json_response(&json!({"model_stats": statistics.collect::<Vec<_>>()}))
}

pub(super) fn page_response(file: &page::File) -> Response {
    let mut response = response(StatusCode::OK, file.media_type, file.text);
    for (name, value) in page::HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Where the time went, as browsers' developer tools show it. <https://www.w3.org/TR/server-timing/>
pub(super) fn server_timing(stages: &Stages) -> String {
    let stages = [
        ("queue", stages.queue),
        ("decode", stages.decode),
        ("prepare", stages.prepare),
        ("network", stages.network),
        ("postprocess", stages.postprocess),
    ];
    let entries = stages.map(|(name, time)| format!("{name};dur={:.3}", time.as_secs_f64() * 1e3));
    entries.join(", ")
}
