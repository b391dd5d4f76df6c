//! From an HTTP request to a response.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use hyper::body::{Body, Bytes};
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, EXPECT, HeaderMap, HeaderName, HeaderValue,
};
use hyper::http::request::Parts;
use hyper::{Method, Request, StatusCode};
use runtime::output::outcome_json;
use runtime::protocol::{
    Encoding, Form, HEADER_LENGTH, InferRequest, ModelRoute, Parameters, RequestError, Route, form_boundary,
    server_description,
};
use serde::Deserialize;
use subtle::ConstantTimeEq;

use super::app::AppState;
use super::metrics::{RequestOutcome, Stages};
use super::page;
use super::queue::ImageReply;
use super::request_log::RequestLog;
use super::response::{
    JSON, Response, error_response, json_response, page_response, ready_response, response, server_timing,
    statistics_response,
};
use super::uploads::{RequestBody, Upload};
use super::version::ModelVersion;
use super::worker::request_error;

/// The body of `POST /v2/repository/index`; other keys are ignored.
#[derive(Default, Deserialize)]
struct IndexOptions {
    /// Lists only what serves.
    ready: Option<bool>,
}

/// Answers a request.
pub(super) async fn answer<B: RequestBody>(app: Arc<AppState>, request: Request<B>) -> Result<Response, Infallible> {
    let (parts, body) = request.into_parts();
    let mut log = RequestLog::new(&parts);
    let mut upload = Upload::new(body, parts.headers.contains_key(EXPECT));
    let answered = app.route(&parts, &mut upload, &mut log).await;
    let mut response = answered.unwrap_or_else(|error| error_response(&error));
    let is_error = response.status().is_client_error() || response.status().is_server_error();
    // A client that was too slow has had its time.
    if is_error && response.status() != StatusCode::REQUEST_TIMEOUT {
        upload.discard(app.settings.read_timeout).await;
    }
    if let Ok(id) = HeaderValue::from_str(&log.id) {
        response.headers_mut().insert("x-request-id", id);
    }
    log.status = response.status().as_u16();
    (log.bytes_in, log.bytes_out) = (upload.received, response.body().size_hint().exact().unwrap_or(0));
    Ok(response)
}

impl AppState {
    async fn route<B: RequestBody>(
        &self,
        parts: &Parts,
        upload: &mut Upload<B>,
        log: &mut RequestLog,
    ) -> Result<Response, RequestError> {
        let is_get = matches!(parts.method, Method::GET | Method::HEAD);
        if let Some(file) = page::file(parts.uri.path()).filter(|_| is_get) {
            return Ok(page_response(file));
        }
        let route = Route::parse(&parts.method, parts.uri.path())?;
        if !route.is_public() {
            self.authorize(&parts.headers)?;
        }
        let query = parts.uri.query().unwrap_or_default();
        match route {
            Route::Server => {
                Ok(json_response(&server_description(env!("CARGO_PKG_VERSION"), self.settings.model_control)))
            }
            Route::Live => Ok(response(StatusCode::OK, JSON, Bytes::new())),
            Route::Ready => Ok(ready_response(self.is_ready())),
            Route::Metrics => Ok(response(StatusCode::OK, prometheus::TEXT_FORMAT, self.metrics.text())),
            Route::Statistics => Ok(statistics_response(&self.models.serving())),
            Route::Spec => {
                let parameters = Parameters::from_query(query)?;
                Ok(json_response(&self.spec(&*self.models.get_or_only(parameters.model.as_deref())?)))
            }
            Route::Model { name, version, route } => {
                let model = self.models.get(&name, version.as_deref());
                self.answer_model(model, route, parts, upload, log).await
            }
            Route::Detect => self.answer_detect(parts, query, upload, log).await,
            Route::RepositoryIndex => self.answer_index(upload).await,
            Route::Load(name) => {
                self.check_model_control()?;
                self.receive(upload).await?;
                let models = Arc::clone(&self.models);
                on_thread(move || models.load(&name)).await?;
                Ok(response(StatusCode::OK, JSON, Bytes::new()))
            }
            Route::Unload(name) => {
                self.check_model_control()?;
                self.receive(upload).await?;
                self.models.unload(&name)?;
                Ok(response(StatusCode::OK, JSON, Bytes::new()))
            }
        }
    }

    /// `GET` and `POST /v2/models/M..`.
    async fn answer_model<B: RequestBody>(
        &self,
        model: Result<Arc<ModelVersion>, RequestError>,
        route: ModelRoute,
        parts: &Parts,
        upload: &mut Upload<B>,
        log: &mut RequestLog,
    ) -> Result<Response, RequestError> {
        match route {
            ModelRoute::Ready => Ok(ready_response(match model {
                Ok(model) => model.is_ready() && !self.is_draining.load(Relaxed),
                Err(error) if error.status == StatusCode::NOT_FOUND => return Err(error),
                Err(_) => false,
            })),
            ModelRoute::Metadata => Ok(json_response(&model?.description.metadata())),
            ModelRoute::Config => Ok(json_response(&model?.description.config())),
            ModelRoute::Statistics => Ok(statistics_response(&[model?])),
            ModelRoute::Infer if parts.uri.query().is_some_and(|query| !query.is_empty()) => {
                Err(RequestError::bad("parameters of an inference are in its JSON, under `parameters`, not in the URL"))
            }
            ModelRoute::Infer => self.answer_infer(&*model?, parts, upload, log).await,
        }
    }

    /// `POST /v2/repository/index`.
    async fn answer_index<B: RequestBody>(&self, upload: &mut Upload<B>) -> Result<Response, RequestError> {
        self.check_model_control()?;
        let body = self.receive(upload).await?;
        let options = match body.is_empty() {
            true => IndexOptions::default(),
            false => serde_json::from_slice(&body)
                .map_err(|error| RequestError::bad(format!("the request's JSON is invalid: {error}")))?,
        };
        Ok(json_response(&self.models.index(options.ready == Some(true))))
    }

    fn authorize(&self, headers: &HeaderMap) -> Result<(), RequestError> {
        let Some(token) = &self.settings.token else { return Ok(()) };
        let sent = header(headers, &AUTHORIZATION)?.and_then(|value| value.split_once(' '));
        let is_valid = sent.is_some_and(|(scheme, sent)| {
            scheme.eq_ignore_ascii_case("bearer") && bool::from(sent.trim().as_bytes().ct_eq(token.as_bytes()))
        });
        if is_valid {
            return Ok(());
        }
        let message = "the server needs its token (--token) in the header `Authorization: Bearer TOKEN`";
        Err(RequestError::new(StatusCode::UNAUTHORIZED, message))
    }

    fn check_model_control(&self) -> Result<(), RequestError> {
        if self.settings.model_control {
            return Ok(());
        }
        let message = "models cannot be loaded over HTTP; start the server with --model-control and --token";
        Err(RequestError::new(StatusCode::FORBIDDEN, message))
    }

    async fn receive<B: RequestBody>(&self, upload: &mut Upload<B>) -> Result<Bytes, RequestError> {
        upload.receive(self.settings.max_bytes, self.settings.read_timeout, &self.uploads).await
    }

    /// Receives a body and decompresses it. Takes nothing while the model's queue is full.
    async fn receive_images<B: RequestBody>(
        &self,
        model: &ModelVersion,
        parts: &Parts,
        upload: &mut Upload<B>,
    ) -> Result<Bytes, RequestError> {
        let encoding = Encoding::parse(header(&parts.headers, &CONTENT_ENCODING)?)?;
        model.queue.check_room()?;
        let body = self.receive(upload).await?;
        let Some(encoding) = encoding else { return Ok(body) };
        let (mut permit, max_bytes) = (self.uploads.permit(body.len()), self.settings.max_bytes);
        on_thread(move || {
            let bytes = encoding.decompress(&body, max_bytes, |bytes| permit.grow(bytes))?;
            Ok(permit.attach(bytes))
        })
        .await
    }

    /// `POST /v2/models/M/infer`.
    async fn answer_infer<B: RequestBody>(
        &self,
        model: &ModelVersion,
        parts: &Parts,
        upload: &mut Upload<B>,
        log: &mut RequestLog,
    ) -> Result<Response, RequestError> {
        let outcome = RequestOutcome::new(Arc::clone(&model.metrics));
        let answered = async {
            let header_length = header(&parts.headers, &HeaderName::from_static(HEADER_LENGTH))?.map(str::to_owned);
            let body = self.receive_images(model, parts, upload).await?;
            let (mut permit, max_images) = (self.uploads.permit(body.len()), model.description.max_queue);
            let request = on_thread(move || {
                // What images in base64 are decoded to. A length that is not within the body is refused below.
                let json = header_length.as_deref().and_then(|length| length.trim().parse().ok()).unwrap_or(body.len());
                permit.grow(json.min(body.len()) / 4 * 3)?;
                let mut request = InferRequest::parse(&body, header_length.as_deref(), max_images)?;
                if request.is_copied {
                    request.images = permit.attach_to_all(request.images);
                }
                Ok(request)
            });
            self.infer(model, request.await?, &mut log.stages).await
        };
        let answer = end(outcome, answered.await, log.stages)?;
        let content_type = if answer.header_length.is_some() { "application/octet-stream" } else { JSON };
        let mut response = response(StatusCode::OK, content_type, answer.body);
        if let Some(length) = answer.header_length {
            response.headers_mut().insert(HEADER_LENGTH, length.into());
        }
        Ok(response)
    }

    /// `POST /detect`.
    async fn answer_detect<B: RequestBody>(
        &self,
        parts: &Parts,
        query: &str,
        upload: &mut Upload<B>,
        log: &mut RequestLog,
    ) -> Result<Response, RequestError> {
        let parameters = Parameters::from_query(query);
        let name = parameters.as_ref().ok().and_then(|parameters| parameters.model.clone());
        let model = match (self.models.get_or_only(name.as_deref()), &parameters) {
            // With wrong parameters, the model is not known either.
            (Err(_), Err(error)) => return Err(error.clone()),
            (model, _) => model?,
        };
        let outcome = RequestOutcome::new(Arc::clone(&model.metrics));
        let answered = async {
            let (parameters, is_drawn) = (parameters?, accepts_jpeg(&parts.headers)?);
            let boundary = form_boundary(header(&parts.headers, &CONTENT_TYPE)?)?;
            let body = self.receive_images(&model, parts, upload).await?;
            let Form { image, parameters } = match boundary {
                None => Form { image: body, parameters },
                Some(boundary) => {
                    let mut permit = self.uploads.permit(body.len());
                    permit.grow(body.len())?;
                    let form = on_thread(move || Form::parse(body, &boundary, parameters)).await?;
                    Form { image: permit.attach(form.image), ..form }
                }
            };
            if parameters.model != name {
                return Err(RequestError::bad("the model is chosen in the URL, as in /detect?model=NAME"));
            }
            let replies = self.submit(&model, vec![image], &parameters, is_drawn, &mut log.stages).await?;
            let [ImageReply { outcome, drawn, .. }]: [ImageReply; 1] =
                replies.try_into().unwrap_or_else(|_| unreachable!("a request of one image has one reply"));
            let found = outcome.map_err(|failure| request_error(&failure))?;
            Ok(((found, drawn), 1))
        };
        let (found, drawn) = end(outcome, answered.await, log.stages)?;
        let mut response = match drawn {
            Some(jpeg) => response(StatusCode::OK, "image/jpeg", jpeg),
            None => response(StatusCode::OK, JSON, outcome_json(&Ok(found), &model.backend.spec().classes)),
        };
        if let Some(Ok(timing)) = log.stages.as_ref().map(|stages| HeaderValue::from_str(&server_timing(stages))) {
            response.headers_mut().insert("server-timing", timing);
        }
        Ok(response)
    }
}

/// Counts how a request for detections has ended: with an answer and the number of images that were detected in, or with an
/// error.
fn end<T>(
    outcome: RequestOutcome,
    answered: Result<(T, usize), RequestError>,
    stages: Option<Stages>,
) -> Result<T, RequestError> {
    match answered {
        Ok((answer, images)) => {
            outcome.succeed(images, &stages.unwrap_or_default());
            Ok(answer)
        }
        Err(error) => {
            outcome.fail(&error);
            Err(error)
        }
    }
}

/// Runs what takes longer than the other requests should wait on another thread.
async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RequestError> + Send + 'static,
) -> Result<T, RequestError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| {
        let message = "the server failed with a fault of its own; please report this together with the request";
        Err(RequestError::new(StatusCode::INTERNAL_SERVER_ERROR, message))
    })
}

/// A header as text.
fn header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, RequestError> {
    let text = headers.get(name).map(HeaderValue::to_str).transpose();
    text.map_err(|_| RequestError::bad(format!("the header `{name}` is not ASCII text")))
}

/// Whether a client asks for the annotated image rather than JSON.
fn accepts_jpeg(headers: &HeaderMap) -> Result<bool, RequestError> {
    let accept = header(headers, &ACCEPT)?.unwrap_or_default();
    let has = |wanted: &str| {
        accept.split(',').filter_map(|range| range.split(';').next()).any(|range| range.trim() == wanted)
    };
    Ok(has("image/jpeg") && !has(JSON))
}
