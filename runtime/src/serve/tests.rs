//! The server with engines that fail, panic or block on purpose.

use std::io::Cursor;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use image::{ImageFormat, RgbImage};
use models::spec::Class;
use models::{BoundingBox, ModelSpec};
use runtime::image_file::Limits;
use runtime::protocol::ModelDescription;
use runtime::{CallOptions, Detection, DetectorError, EngineError, PixelBudget, Timing};
use serde_json::Value;
use tokio::time::{sleep, timeout};

use super::app::{AppState, Settings};
use super::backend::Backend;
use super::http::answer;
use super::metrics::Metrics;
use super::model_store::{ModelStore, Retry};
use super::queue::Queue;
use super::repository::Repository;
use super::try_failed_models;
use super::uploads::UploadMemory;
use super::version::ModelVersion;
use super::worker::Worker;

/// What the engine does in its next run.
type Behavior = dyn Fn() -> Result<(), EngineError> + Send + Sync;

struct Fake {
    spec: ModelSpec,
    behavior: Box<Behavior>,
    failures: AtomicU64,
}

impl Fake {
    fn run(&self) -> Result<(), DetectorError> {
        let result = (self.behavior)();
        if result.is_ok() {
            self.failures.store(0, SeqCst);
        } else {
            self.failures.fetch_add(1, SeqCst);
        }
        Ok(result?)
    }
}

impl Backend for Fake {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn detect(&self, _: &RgbImage, _: &CallOptions) -> Result<(Vec<Detection>, Timing), DetectorError> {
        self.run()?;
        let bounding_box = BoundingBox::new(1.0, 2.0, 3.0, 4.0);
        Ok((vec![Detection { class_index: 0, score: 0.5, bounding_box }], Timing::default()))
    }

    fn failures_in_a_row(&self) -> u64 {
        self.failures.load(SeqCst)
    }

    fn try_run(&self) -> Result<(), DetectorError> {
        self.run()
    }

    fn provider(&self) -> [String; 2] {
        ["fake".to_owned(), "0".to_owned()]
    }
}

/// An open version of the model `name`, with one worker and a queue of four images.
fn version(name: &str, metrics: &Metrics, behavior: Box<Behavior>) -> ModelVersion {
    let spec = ModelSpec { classes: vec![Class { id: 7, name: "cat".to_owned() }], ..ModelSpec::default() };
    let description = ModelDescription {
        name: name.to_owned(),
        version: "1".to_owned(),
        max_batch: 1,
        max_queue_delay: Duration::ZERO,
        max_queue: 4,
        instances: 1,
        is_on_gpu: false,
        classes: vec!["cat".to_owned()],
    };
    let worker = Worker {
        queue: Arc::new(Queue::new(4)),
        backend: Arc::new(Fake { spec, behavior, failures: AtomicU64::new(0) }),
        metrics: metrics.of(name, "1"),
        limits: Limits::DEFAULT,
        budget: PixelBudget::new(1 << 20),
    };
    ModelVersion::start(description, worker, 1)
}

/// The server of the model `m`.
fn app(behavior: impl Fn() -> Result<(), EngineError> + Send + Sync + 'static) -> Arc<AppState> {
    let metrics = Arc::new(Metrics::default());
    let (of_versions, behavior) = (Arc::clone(&metrics), Mutex::new(Some(Box::new(behavior) as Box<Behavior>)));
    let open = move |name: &str, _: u64, _: &super::repository::ModelFile| {
        Ok(version(name, &of_versions, behavior.lock().unwrap().take().unwrap()))
    };
    let repository = Repository::File { path: PathBuf::from("m.onnx"), name: "m".to_owned() };
    let models = Arc::new(ModelStore::new(repository, Box::new(open)));
    assert!(models.load_all(Retry::Changed).unwrap().is_empty());
    Arc::new(AppState {
        settings: Settings {
            max_bytes: 1 << 20,
            read_timeout: Duration::from_secs(10),
            request_timeout: None,
            token: None,
            model_control: false,
        },
        models,
        metrics,
        uploads: UploadMemory::new(1 << 22),
        is_started: AtomicBool::new(true),
        is_draining: AtomicBool::new(false),
    })
}

/// An opening that takes long must not undo an `unload` that was answered meanwhile.
#[test]
fn a_model_that_is_unloaded_while_it_is_opened_does_not_serve() {
    let (started, starts) = channel();
    let (go_on, wait) = channel();
    let wait = Mutex::new(wait);
    let open = move |name: &str, _: u64, _: &super::repository::ModelFile| {
        started.send(()).unwrap();
        wait.lock().unwrap().recv().unwrap();
        Ok(version(name, &Metrics::default(), Box::new(|| Ok(()))))
    };
    let repository = Repository::File { path: PathBuf::from("m.onnx"), name: "m".to_owned() };
    let models = Arc::new(ModelStore::new(repository, Box::new(open)));
    let opening = {
        let models = Arc::clone(&models);
        thread::spawn(move || models.load_all(Retry::Changed).unwrap().len())
    };
    starts.recv().unwrap();
    models.unload("m").unwrap();
    go_on.send(()).unwrap();
    assert_eq!(opening.join().unwrap(), 0);
    assert!(models.get("m", None).is_err() && models.serving().is_empty());
    // Polls and SIGHUP leave it so; a request to load it does not.
    for retry in [Retry::Changed, Retry::Failed] {
        assert!(models.load_all(retry).unwrap().is_empty());
    }
    assert!(starts.try_recv().is_err());
    go_on.send(()).unwrap();
    models.load("m").unwrap();
    assert!(models.get("m", None).is_ok());
    // Nor does the request to load it claim that it does.
    models.unload("m").unwrap();
    starts.recv().unwrap();
    let loading = {
        let models = Arc::clone(&models);
        thread::spawn(move || models.load("m").unwrap_err())
    };
    starts.recv().unwrap();
    models.unload("m").unwrap();
    go_on.send(()).unwrap();
    let error = loading.join().unwrap();
    assert!(error.status == 503 && error.message.contains("while it was opened"), "{error}");
}

/// A client may ask for a model before the server opens all.
#[test]
fn why_a_model_fails_is_known_whoever_has_tried_it_first() {
    let open = |_: &str, _: u64, _: &super::repository::ModelFile| anyhow::bail!("it is broken");
    let repository = Repository::File { path: PathBuf::from("m.onnx"), name: "m".to_owned() };
    let models = ModelStore::new(repository, Box::new(open));
    assert!(models.load("m").unwrap_err().message.contains("it is broken"));
    assert!(models.load_all(Retry::Changed).unwrap().is_empty());
    assert_eq!(models.failures(), ["model `m` version 1 cannot be opened: it is broken"]);
    models.unload("m").unwrap();
    assert!(models.failures().is_empty());
}

fn image() -> Bytes {
    let mut bytes = Cursor::new(Vec::new());
    RgbImage::new(8, 8).write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner().into()
}

/// Status and body of the response.
async fn send(app: &Arc<AppState>, method: &str, uri: &str, body: Bytes) -> (u16, String) {
    let request = Request::builder().method(method).uri(uri).body(Full::new(body)).unwrap();
    let Ok(response) = answer(Arc::clone(app), request).await;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn status(app: &Arc<AppState>, method: &str, uri: &str, body: Bytes) -> u16 {
    send(app, method, uri, body).await.0
}

async fn get(app: &Arc<AppState>, uri: &str) -> u16 {
    status(app, "GET", uri, Bytes::new()).await
}

async fn metric(app: &Arc<AppState>, line: &str) -> bool {
    send(app, "GET", "/metrics", Bytes::new()).await.1.lines().any(|found| found == line)
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { timeout(Duration::from_secs(60), future).await.expect("it takes too long") })
}

fn broken() -> EngineError {
    EngineError::Run { shape: vec![1, 3, 32, 32], reason: "CUDA error 700".to_owned() }
}

#[test]
fn an_engine_that_fails_for_good_makes_the_server_unready_until_it_works_again() {
    let (runs, is_broken) = (AtomicU64::new(0), Arc::new(AtomicBool::new(true)));
    let switch = Arc::clone(&is_broken);
    let app = app(move || {
        // Works twice.
        if runs.fetch_add(1, SeqCst) >= 2 && switch.load(SeqCst) { Err(broken()) } else { Ok(()) }
    });
    block_on(async {
        for expected in [200, 200, 500, 500] {
            assert_eq!(status(&app, "POST", "/detect", image()).await, expected);
            assert_eq!(get(&app, "/v2/health/ready").await, 200);
        }
        let (status, text) = send(&app, "POST", "/detect", image()).await;
        assert!(status == 500 && text.contains("CUDA error 700"), "{text}");
        for (path, expected) in [("/v2/health/ready", 503), ("/v2/models/m/ready", 503), ("/v2/health/live", 200)] {
            assert_eq!(get(&app, path).await, expected, "{path}");
        }
        try_failed_models(&app.models);
        assert_eq!(get(&app, "/v2/health/ready").await, 503);
        is_broken.store(false, SeqCst);
        try_failed_models(&app.models);
        assert_eq!(get(&app, "/v2/health/ready").await, 200);
        assert!(metric(&app, r#"nv_inference_request_failure{model="m",reason="BACKEND",version="1"} 3"#).await);
        assert!(metric(&app, r#"nv_inference_request_success{model="m",version="1"} 2"#).await);
    });
}

#[test]
fn an_engine_that_panics_fails_one_request_only() {
    let runs = AtomicU64::new(0);
    let app = app(move || {
        assert_ne!(runs.fetch_add(1, SeqCst), 0, "on purpose");
        Ok(())
    });
    block_on(async {
        let (status_of_first, text) = send(&app, "POST", "/detect", image()).await;
        assert!(status_of_first == 500 && text.contains("fault of its own"), "{text}");
        let (status_of_second, text) = send(&app, "POST", "/detect", image()).await;
        let expected = serde_json::json!({"width": 8, "height": 8, "detections": [
            {"label": "cat", "category_id": 7, "score": 0.5, "box": [1.0, 2.0, 3.0, 4.0]},
        ]});
        assert_eq!((status_of_second, serde_json::from_str::<Value>(&text).unwrap()), (200, expected));
    });
}

/// An engine that says when a run begins, and waits for a message before it ends.
fn gated() -> (impl Fn() -> Result<(), EngineError> + Send + Sync, Receiver<()>, Sender<()>) {
    let (begin, begun) = channel();
    let (end, ended) = channel();
    let gate = Mutex::new((begin, ended));
    let behavior = move || {
        let (begin, ended) = &*gate.lock().unwrap();
        let _ = begin.send(());
        let _ = ended.recv();
        Ok(())
    };
    (behavior, begun, end)
}

#[test]
fn requests_wait_behind_a_blocked_engine_and_those_that_nobody_waits_for_never_run() {
    let (behavior, begun, end) = gated();
    let app = app(behavior);
    block_on(async {
        let detect = |query: &str| {
            let (app, uri) = (Arc::clone(&app), format!("/detect{query}"));
            tokio::spawn(async move { send(&app, "POST", &uri, image()).await })
        };
        let blocked = detect("");
        while begun.try_recv().is_err() {
            sleep(Duration::from_millis(5)).await;
        }
        let (leaving, late, waiting) = (detect(""), detect("?timeout=50000"), detect(""));
        let (status, text) = late.await.unwrap();
        assert!(status == 503 && text.contains("within 50 ms"), "{text}");
        assert!(metric(&app, r#"nv_inference_pending_request_count{model="m",version="1"} 3"#).await);
        leaving.abort();
        assert!(leaving.await.is_err());
        // Of four slots, one is taken: those of the two that do not wait any more are free.
        let more = [detect(""), detect(""), detect("")];
        sleep(Duration::from_millis(50)).await;
        assert_eq!(detect("").await.unwrap().0, 429);
        for _ in 0..5 {
            end.send(()).unwrap();
        }
        for request in [blocked, waiting].into_iter().chain(more) {
            assert_eq!(request.await.unwrap().0, 200);
        }
        assert!(metric(&app, r#"nv_inference_request_failure{model="m",reason="CANCELED",version="1"} 1"#).await);
        assert!(metric(&app, r#"nv_inference_request_failure{model="m",reason="REJECTED",version="1"} 2"#).await);
        assert!(metric(&app, r#"nv_inference_count{model="m",version="1"} 5"#).await);
        assert!(metric(&app, r#"nv_inference_pending_request_count{model="m",version="1"} 0"#).await);
    });
    assert_eq!(begun.try_iter().count(), 4);
}

#[test]
fn a_model_that_is_dropped_finishes_its_queue() {
    let (behavior, begun, end) = gated();
    let app = app(behavior);
    block_on(async {
        let request = {
            let app = Arc::clone(&app);
            tokio::spawn(async move { send(&app, "POST", "/detect", image()).await })
        };
        while begun.try_recv().is_err() {
            sleep(Duration::from_millis(5)).await;
        }
        app.models.unload("m").unwrap();
        assert_eq!(status(&app, "POST", "/detect", image()).await, 503);
        end.send(()).unwrap();
        assert_eq!(request.await.unwrap().0, 200);
    });
}
