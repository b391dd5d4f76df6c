//! Why a request is refused.

use std::fmt;

use hyper::StatusCode;

/// Why a request is refused: the status of the response, and its message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RequestError {
    /// Status of the response.
    pub status: StatusCode,
    /// What is wrong, and what to do next.
    pub message: String,
}

impl RequestError {
    /// An error with this status.
    pub fn new(status: StatusCode, message: impl fmt::Display) -> Self {
        Self { status, message: message.to_string() }
    }

    /// 400: an argument of the request is wrong.
    pub fn bad(message: impl fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 404: there is no such thing.
    pub fn not_found(message: impl fmt::Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// 413: more than the limit.
    pub fn too_large(message: impl fmt::Display) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    }

    /// 429: the server is full; try again.
    pub fn busy(message: impl fmt::Display) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, message)
    }

    /// 503: the server or the model is not ready, or the request took too long.
    pub fn unavailable(message: impl fmt::Display) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }
}
