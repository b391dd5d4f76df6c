//! Which endpoint a URL names.

use hyper::{Method, StatusCode};
use percent_encoding::percent_decode_str;

use super::error::RequestError;

/// An endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `GET /v2`: name, version and extensions of the server.
    Server,
    /// `GET /v2/health/live`: whether the server can answer.
    Live,
    /// `GET /v2/health/ready`: whether it is to get requests.
    Ready,
    /// `GET /v2/models/stats`: statistics of all models.
    Statistics,
    /// `GET` and `POST /v2/models/M[/versions/V]..`: something of a model.
    Model {
        /// Name of the model.
        name: String,
        /// Version; `None` for the one that serves.
        version: Option<String>,
        /// What of it.
        route: ModelRoute,
    },
    /// `POST /v2/repository/index`: all models and versions, with their states.
    RepositoryIndex,
    /// `POST /v2/repository/models/M/load`: opens the highest version.
    Load(String),
    /// `POST /v2/repository/models/M/unload`: closes the model.
    Unload(String),
    /// `GET /metrics`: Prometheus text.
    Metrics,
    /// `POST /detect`: the short form.
    Detect,
    /// `GET /model`: the model's spec.
    Spec,
}

/// An endpoint of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelRoute {
    /// `GET`: names, types and shapes of inputs and outputs.
    Metadata,
    /// `GET ../ready`: whether it answers.
    Ready,
    /// `GET ../config`: Triton's model configuration.
    Config,
    /// `GET ../stats`: Triton's statistics.
    Statistics,
    /// `POST ../infer`.
    Infer,
}

impl Route {
    /// The endpoint of a method and the path of a URL, which may be percent-encoded.
    ///
    /// # Errors
    /// 404 for an unknown path, 405 for the wrong method of a known one.
    pub fn parse(method: &Method, path: &str) -> Result<Self, RequestError> {
        let segments: Option<Vec<String>> =
            path.strip_prefix('/').and_then(|path| path.split('/').map(decode).collect());
        let segments = segments.ok_or_else(|| unknown(path))?;
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        let (expected, route) = match &segments[..] {
            ["v2"] | ["v2", ""] => (Method::GET, Self::Server),
            ["v2", "health", "live"] => (Method::GET, Self::Live),
            ["v2", "health", "ready"] => (Method::GET, Self::Ready),
            ["v2", "models", "stats"] => (Method::GET, Self::Statistics),
            ["v2", "models", name, "versions", version, rest @ ..] => Self::of_model(name, Some(*version), rest, path)?,
            ["v2", "models", name, rest @ ..] => Self::of_model(name, None, rest, path)?,
            ["v2", "repository", "index"] => (Method::POST, Self::RepositoryIndex),
            ["v2", "repository", "models", name, "load"] => (Method::POST, Self::Load((*name).to_owned())),
            ["v2", "repository", "models", name, "unload"] => (Method::POST, Self::Unload((*name).to_owned())),
            ["metrics"] => (Method::GET, Self::Metrics),
            ["detect"] => (Method::POST, Self::Detect),
            ["model"] => (Method::GET, Self::Spec),
            _ => return Err(unknown(path)),
        };
        // A server answers HEAD where it answers GET.
        let is_head = *method == Method::HEAD && expected == Method::GET;
        if *method == expected || is_head {
            return Ok(route);
        }
        let message = format!("`{path}` does not take {method}; use {expected}");
        Err(RequestError::new(StatusCode::METHOD_NOT_ALLOWED, message))
    }

    fn of_model(name: &str, version: Option<&str>, rest: &[&str], path: &str) -> Result<(Method, Self), RequestError> {
        let (method, route) = match rest {
            [] => (Method::GET, ModelRoute::Metadata),
            ["ready"] => (Method::GET, ModelRoute::Ready),
            ["config"] => (Method::GET, ModelRoute::Config),
            ["stats"] => (Method::GET, ModelRoute::Statistics),
            ["infer"] => (Method::POST, ModelRoute::Infer),
            _ => return Err(unknown(path)),
        };
        Ok((method, Self::Model { name: name.to_owned(), version: version.map(str::to_owned), route }))
    }

    /// Whether the endpoint needs no token: probes and metrics are asked by machines that have none.
    pub fn is_public(&self) -> bool {
        let is_ready = matches!(self, Self::Model { route: ModelRoute::Ready, .. });
        is_ready || matches!(self, Self::Live | Self::Ready | Self::Metrics)
    }
}

fn decode(segment: &str) -> Option<String> {
    percent_decode_str(segment).decode_utf8().ok().map(Into::into)
}

fn unknown(path: &str) -> RequestError {
    RequestError::not_found(format!(
        "there is no `{path}`; images go to POST /detect or POST /v2/models/MODEL/infer, and GET /v2 describes the server"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(method: Method, path: &str) -> u16 {
        Route::parse(&method, path).map_or_else(|error| error.status.as_u16(), |_| 200)
    }

    #[test]
    fn every_endpoint_of_the_protocol_is_known() {
        let model = |name: &str, version: Option<&str>, route| {
            let (name, version) = (name.to_owned(), version.map(str::to_owned));
            Ok(Route::Model { name, version, route })
        };
        let get = |path| Route::parse(&Method::GET, path);
        let post = |path| Route::parse(&Method::POST, path);
        assert_eq!(get("/v2"), Ok(Route::Server));
        assert_eq!(get("/v2/"), Ok(Route::Server));
        assert_eq!(get("/v2/health/live"), Ok(Route::Live));
        assert_eq!(get("/v2/models/stats"), Ok(Route::Statistics));
        assert_eq!(get("/v2/models/a"), model("a", None, ModelRoute::Metadata));
        assert_eq!(get("/v2/models/a/versions/3/config"), model("a", Some("3"), ModelRoute::Config));
        assert_eq!(get("/v2/models/a%20b%2Fc/ready"), model("a b/c", None, ModelRoute::Ready));
        assert_eq!(post("/v2/models/versions/infer"), model("versions", None, ModelRoute::Infer));
        assert_eq!(post("/v2/repository/models/a/load"), Ok(Route::Load("a".to_owned())));
        assert_eq!(post("/detect"), Ok(Route::Detect));
    }

    #[test]
    fn unknown_paths_get_404_and_wrong_methods_405() {
        for path in
            ["", "/", "/v1", "v2", "/v2/models", "/v2/models/a/versions", "/v2/models/a/else", "/%ff", "/detect/"]
        {
            assert_eq!(status(Method::GET, path), 404, "{path}");
        }
        assert_eq!(status(Method::GET, "/detect"), 405);
        assert_eq!(status(Method::POST, "/v2"), 405);
        assert_eq!(status(Method::HEAD, "/v2"), 200);
        assert_eq!(status(Method::HEAD, "/detect"), 405);
    }

    #[test]
    fn only_probes_and_metrics_are_public() {
        let is_public = |method, path| Route::parse(&method, path).unwrap().is_public();
        for path in ["/v2/health/live", "/v2/health/ready", "/metrics", "/v2/models/a/ready"] {
            assert!(is_public(Method::GET, path));
        }
        for path in ["/v2", "/model", "/v2/models/a", "/v2/models/stats"] {
            assert!(!is_public(Method::GET, path));
        }
        for path in ["/detect", "/v2/models/a/infer", "/v2/repository/index"] {
            assert!(!is_public(Method::POST, path));
        }
    }
}
