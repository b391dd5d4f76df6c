//! What clients send to `runtime serve` and what they get, as pure functions of bytes: the Open Inference Protocol v2 over
//! HTTP with the extensions of Triton for binary data, parameters, statistics and the model repository, and the short form
//! `POST /detect`.
//!
//! <https://github.com/kserve/open-inference-protocol>, <https://github.com/triton-inference-server/server/tree/main/docs/protocol>

mod description;
mod encoding;
mod error;
mod form;
mod lists;
mod parameters;
mod request;
mod response;
mod route;

pub use description::{DurationStatistics, ModelDescription, ModelStatistics, server_description};
pub use encoding::Encoding;
pub use error::RequestError;
pub use form::{Form, form_boundary};
pub use parameters::Parameters;
pub use request::InferRequest;
pub use response::{ImageResult, InferResponse, Output, RequestedOutput};
pub use route::{ModelRoute, Route};

/// Name of the only input: encoded image files, BYTES `[N]` or `[N, 1]`.
pub const INPUT: &str = "image";

/// Name of the header that says how many bytes of a body are JSON, before binary tensors.
pub const HEADER_LENGTH: &str = "inference-header-content-length";
