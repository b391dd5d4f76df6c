//! Metrics under Triton's names, and those that Triton has not.
//!
//! <https://github.com/triton-inference-server/server/blob/main/docs/user_guide/metrics.md>

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use hyper::StatusCode;
use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};
use runtime::image_file::DecodeError;
use runtime::protocol::{DurationStatistics, ModelStatistics, RequestError};

/// Upper bounds of the histogram of decode times, in seconds.
const DECODE_BUCKETS: [f64; 11] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0];

/// Upper bounds of the histogram of batch sizes.
const BATCH_BUCKETS: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    /// The server is full, or the time of the request was over.
    Rejected,
    /// The client has left.
    Canceled,
    /// The engine failed.
    Backend,
    /// Anything else: the request is wrong.
    Other,
}

impl Reason {
    const ALL: [Self; 4] = [Self::Rejected, Self::Canceled, Self::Backend, Self::Other];

    fn label(self) -> &'static str {
        match self {
            Self::Rejected => "REJECTED",
            Self::Canceled => "CANCELED",
            Self::Backend => "BACKEND",
            Self::Other => "OTHER",
        }
    }

    fn of(error: &RequestError) -> Self {
        match error.status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Self::Rejected,
            status if status.is_server_error() => Self::Backend,
            _ => Self::Other,
        }
    }
}

/// Where the time of an image went; of a request, summed over its images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stages {
    /// Waiting for a worker, an engine, and others to fill the batch.
    pub(super) queue: Duration,
    pub(super) decode: Duration,
    pub(super) prepare: Duration,
    pub(super) network: Duration,
    pub(super) postprocess: Duration,
}

impl Stages {
    pub(super) fn add(&mut self, other: &Self) {
        self.queue += other.queue;
        self.decode += other.decode;
        self.prepare += other.prepare;
        self.network += other.network;
        self.postprocess += other.postprocess;
    }
}

/// The metrics of all models. Those of a version end with it: a server that gets new versions for years has no others.
#[derive(Default)]
pub(super) struct Metrics {
    /// By model and version.
    models: Mutex<BTreeMap<[String; 2], Weak<ModelMetrics>>>,
}

/// The metrics of one version of a model.
pub(super) struct ModelMetrics {
    registry: Registry,
    success: IntCounter,
    /// In the order of [`Reason::ALL`].
    failures: [IntCounter; 4],
    inferences: IntCounter,
    executions: IntCounter,
    pending: IntGauge,
    request: IntCounter,
    queue: IntCounter,
    compute_input: IntCounter,
    compute_infer: IntCounter,
    compute_output: IntCounter,
    decode: Histogram,
    batch_size: Histogram,
    /// By reason.
    refused: IntCounterVec,
    /// Microseconds of failed requests.
    failed: AtomicU64,
    /// Milliseconds from 1970 to the last request.
    last: AtomicU64,
    /// Runs of the network by batch size.
    batches: Mutex<BTreeMap<usize, DurationStatistics>>,
}

impl Metrics {
    /// The metrics of a version of a model, which go on if another file of it is opened.
    pub(super) fn of(&self, model: &str, version: &str) -> Arc<ModelMetrics> {
        let labels = [model, version].map(str::to_owned);
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        models.retain(|_, metrics| metrics.strong_count() > 0);
        models.get(&labels).and_then(Weak::upgrade).unwrap_or_else(|| {
            let metrics = Arc::new(ModelMetrics::new(&labels));
            models.insert(labels, Arc::downgrade(&metrics));
            metrics
        })
    }

    /// Prometheus text.
    pub(super) fn text(&self) -> String {
        let models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        let mut families = BTreeMap::<String, MetricFamily>::new();
        for mut family in models.values().filter_map(Weak::upgrade).flat_map(|metrics| metrics.registry.gather()) {
            match families.entry(family.name().to_owned()) {
                Entry::Vacant(entry) => drop(entry.insert(family)),
                Entry::Occupied(mut entry) => entry.get_mut().mut_metric().append(family.mut_metric()),
            }
        }
        let families: Vec<_> = families.into_values().collect();
        TextEncoder::new().encode_to_string(&families).expect("text can be written to memory")
    }
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: prometheus::Result<C>) -> C {
    let collector = collector.expect("names and labels are valid");
    registry.register(Box::new(collector.clone())).expect("every name is registered once");
    collector
}

impl ModelMetrics {
    fn new([model, version]: &[String; 2]) -> Self {
        let registry = Registry::new();
        let options =
            |name: &str, help: &str| Opts::new(name, help).const_label("model", model).const_label("version", version);
        let counter = |name: &str, help: &str| register(&registry, IntCounter::with_opts(options(name, help)));
        let failure = |reason: Reason| {
            let options = options("nv_inference_request_failure", "Failed requests by reason");
            register(&registry, IntCounter::with_opts(options.const_label("reason", reason.label())))
        };
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let options = HistogramOpts { common_opts: options(name, help), buckets: buckets.to_vec() };
            register(&registry, Histogram::with_opts(options))
        };
        let pending = options("nv_inference_pending_request_count", "Requests that wait for a worker");
        let refused = options("detector_images_refused_total", "Images that could not be read, by reason");
        Self {
            success: counter("nv_inference_request_success", "Successful requests"),
            failures: Reason::ALL.map(failure),
            inferences: counter("nv_inference_count", "Images of successful requests that were detected in"),
            executions: counter("nv_inference_exec_count", "Runs of the network"),
            pending: register(&registry, IntGauge::with_opts(pending)),
            request: counter("nv_inference_request_duration_us", "Microseconds of successful requests"),
            queue: counter("nv_inference_queue_duration_us", "Microseconds that their images waited"),
            compute_input: counter("nv_inference_compute_input_duration_us", "Microseconds of decoding and preparing"),
            compute_infer: counter("nv_inference_compute_infer_duration_us", "Microseconds in the network"),
            compute_output: counter("nv_inference_compute_output_duration_us", "Microseconds of post-processing"),
            decode: histogram("detector_decode_duration_seconds", "Time to decode an image", &DECODE_BUCKETS),
            batch_size: histogram("detector_batch_size", "Images per run of the network", &BATCH_BUCKETS),
            refused: register(&registry, IntCounterVec::new(refused, &["reason"])),
            registry,
            failed: AtomicU64::new(0),
            last: AtomicU64::new(0),
            batches: Mutex::default(),
        }
    }

    /// Counts a run of the network.
    pub(super) fn count_batch(&self, images: usize, time: Duration) {
        self.executions.inc();
        self.batch_size.observe(images as f64);
        let mut batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        let batch = batches.entry(images).or_default();
        batch.count += 1;
        batch.ns += time.as_nanos() as u64;
    }

    /// Counts a decoded image.
    pub(super) fn count_decoded(&self, time: Duration) {
        self.decode.observe(time.as_secs_f64());
    }

    /// Counts an image that cannot be read.
    pub(super) fn count_refused(&self, error: &DecodeError) {
        let reason = match error {
            DecodeError::Empty => "empty",
            DecodeError::Unknown => "unknown_format",
            DecodeError::Unsupported(_) | DecodeError::Encoding(_) => "unsupported_format",
            DecodeError::Large { .. } | DecodeError::Long { .. } | DecodeError::Blocks { .. } => "too_large",
            DecodeError::Truncated => "truncated",
            _ => "damaged",
        };
        self.refused.with_label_values(&[reason]).inc();
    }

    /// Counts a request that waits until this is dropped.
    pub(super) fn pending(&self) -> PendingRequest {
        self.pending.inc();
        PendingRequest(self.pending.clone())
    }

    pub(super) fn statistics(&self) -> ModelStatistics {
        let count = self.success.get();
        let duration = |count, microseconds: u64| DurationStatistics { count, ns: 1000 * microseconds };
        let batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        ModelStatistics {
            last_inference: self.last.load(Relaxed),
            inference_count: self.inferences.get(),
            execution_count: self.executions.get(),
            success: duration(count, self.request.get()),
            fail: duration(self.failures.iter().map(IntCounter::get).sum(), self.failed.load(Relaxed)),
            queue: duration(count, self.queue.get()),
            compute_input: duration(count, self.compute_input.get()),
            compute_infer: duration(count, self.compute_infer.get()),
            compute_output: duration(count, self.compute_output.get()),
            batches: batches.iter().map(|(size, runs)| (*size, *runs)).collect(),
        }
    }
}

/// A request that waits for a worker.
#[derive(Debug)]
pub(super) struct PendingRequest(IntGauge);

impl Drop for PendingRequest {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Counts a request once, however it ends: if it is dropped, the client has left.
pub(super) struct RequestOutcome {
    metrics: Arc<ModelMetrics>,
    started: Instant,
    /// `None` when it has been counted.
    reason: Option<Reason>,
}

impl RequestOutcome {
    pub(super) fn new(metrics: Arc<ModelMetrics>) -> Self {
        Self { metrics, started: Instant::now(), reason: Some(Reason::Canceled) }
    }

    /// The request was answered. `images`: those that were detected in.
    pub(super) fn succeed(mut self, images: usize, stages: &Stages) {
        self.reason = None;
        let metrics = &self.metrics;
        metrics.success.inc();
        metrics.inferences.inc_by(images as u64);
        metrics.request.inc_by(microseconds(self.started.elapsed()));
        metrics.queue.inc_by(microseconds(stages.queue));
        metrics.compute_input.inc_by(microseconds(stages.decode + stages.prepare));
        metrics.compute_infer.inc_by(microseconds(stages.network));
        metrics.compute_output.inc_by(microseconds(stages.postprocess));
        self.touch();
    }

    /// The request was refused or failed.
    pub(super) fn fail(mut self, error: &RequestError) {
        self.reason = Some(Reason::of(error));
    }

    fn touch(&self) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.metrics.last.store(now.as_millis() as u64, Relaxed);
    }
}

impl Drop for RequestOutcome {
    fn drop(&mut self) {
        let Some(reason) = self.reason else { return };
        self.metrics.failures[reason as usize].inc();
        self.metrics.failed.fetch_add(microseconds(self.started.elapsed()), Relaxed);
        self.touch();
    }
}

fn microseconds(time: Duration) -> u64 {
    time.as_micros() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_is_counted_once_however_it_ends() {
        let metrics = Metrics::default();
        let model = metrics.of("m", "1");
        let outcome = || RequestOutcome::new(Arc::clone(&model));
        let stages = Stages { queue: Duration::from_micros(5), ..Stages::default() };
        outcome().succeed(3, &stages);
        outcome().succeed(1, &stages);
        outcome().fail(&RequestError::busy("full"));
        outcome().fail(&RequestError::bad("wrong"));
        outcome().fail(&RequestError::new(StatusCode::INTERNAL_SERVER_ERROR, "broken"));
        drop(outcome());
        model.count_batch(4, Duration::from_micros(7));
        let text = metrics.text();
        for line in [
            "# TYPE nv_inference_request_success counter",
            r#"nv_inference_request_success{model="m",version="1"} 2"#,
            r#"nv_inference_request_failure{model="m",reason="REJECTED",version="1"} 1"#,
            r#"nv_inference_request_failure{model="m",reason="CANCELED",version="1"} 1"#,
            r#"nv_inference_request_failure{model="m",reason="BACKEND",version="1"} 1"#,
            r#"nv_inference_request_failure{model="m",reason="OTHER",version="1"} 1"#,
            r#"nv_inference_count{model="m",version="1"} 4"#,
            r#"nv_inference_exec_count{model="m",version="1"} 1"#,
            r#"nv_inference_queue_duration_us{model="m",version="1"} 10"#,
            r#"detector_batch_size_sum{model="m",version="1"} 4"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
        }
        let statistics = model.statistics();
        assert_eq!((statistics.success.count, statistics.fail.count, statistics.inference_count), (2, 4, 4));
        assert_eq!(statistics.batches, [(4, DurationStatistics { count: 1, ns: 7000 })]);
    }

    #[test]
    fn counts_last_as_long_as_their_version() {
        let metrics = Metrics::default();
        let versions = ["1", "2"].map(|version| metrics.of("m", version));
        RequestOutcome::new(metrics.of("m", "1")).succeed(1, &Stages::default());
        RequestOutcome::new(metrics.of("m", "1")).succeed(1, &Stages::default());
        RequestOutcome::new(metrics.of("m", "2")).succeed(1, &Stages::default());
        assert_eq!(metrics.of("m", "1").statistics().success.count, 2);
        let text = metrics.text();
        assert_eq!(text.matches("# TYPE nv_inference_request_success counter").count(), 1, "{text}");
        for line in [r#"{model="m",version="1"} 2"#, r#"{model="m",version="2"} 1"#] {
            assert!(text.contains(&format!("nv_inference_request_success{line}\n")), "{text}");
        }
        let pending = [metrics.of("m", "1").pending(), metrics.of("m", "1").pending()];
        assert!(metrics.text().contains(r#"nv_inference_pending_request_count{model="m",version="1"} 2"#));
        drop(pending);
        assert!(metrics.text().contains(r#"nv_inference_pending_request_count{model="m",version="1"} 0"#));
        let [first, second] = versions;
        drop(first);
        assert!(!metrics.text().contains(r#"version="1""#) && metrics.text().contains(r#"version="2""#));
        assert_eq!(metrics.of("m", "1").statistics().success.count, 0);
        drop(second);
        assert_eq!(metrics.text(), "");
    }
}
