//! An HTTP service of your own around one detector: `cargo run -p runtime --example service -- retinanet.onnx`, then
//! `curl --data-binary @street.jpg http://127.0.0.1:3000/count`

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::post;
use runtime::{Detector, DetectorOptions, image_file};
use tokio::net::TcpListener;
use tokio::task::spawn_blocking;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let model = std::env::args_os().nth(1).ok_or("expected a model")?;
    serve(model.as_ref(), TcpListener::bind("127.0.0.1:3000").await?).await
}

pub(crate) async fn serve(model: &Path, listener: TcpListener) -> Result<(), Box<dyn Error>> {
    let mut options = DetectorOptions::default();
    // Images of one input size that wait at the same time share a run of the network.
    options.max_batch = 8.try_into().ok();
    let detector = Arc::new(Detector::open(model, options)?);
    let service = Router::new().route("/count", post(count)).layer(DefaultBodyLimit::max(32 << 20));
    Ok(axum::serve(listener, service.with_state(detector)).await?)
}

/// The number of objects in the image that is the body.
async fn count(State(detector): State<Arc<Detector>>, body: Bytes) -> Result<String, (StatusCode, String)> {
    let detect = move || {
        let image = image_file::decode(&body).map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?;
        let detections =
            detector.detect(&image).map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        Ok(detections.len().to_string())
    };
    // It computes for a while; the threads for that leave the server free.
    spawn_blocking(detect).await.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?
}
