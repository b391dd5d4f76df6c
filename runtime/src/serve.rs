//! `runtime serve`: detects objects in images sent over HTTP.

mod args;
mod app;
mod backend;
mod connections;
mod http;
mod metrics;
mod model_store;
mod page;
mod queue;
mod readiness;
mod repository;
mod request_log;
mod response;
mod signals;
mod uploads;
mod version;
mod worker;

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use runtime::interrupt::EXIT_CODE;
use runtime::progress::{self, say};
use runtime::protocol::ModelDescription;
use runtime::{BatchObserver, PixelBudget};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep, timeout};

use app::AppState;
pub(crate) use args::{ServeArgs, with_environment};
use backend::{Backend, WarmDetector};
use connections::Acceptor;
use metrics::Metrics;
use model_store::{ModelStore, Open, Retry};
use queue::Queue;
use repository::ModelFile;
use signals::{Signal, Signals};
use uploads::UploadMemory;
use version::ModelVersion;
use worker::Worker;

/// How often a model whose engine has failed is tried.
const TRIAL_INTERVAL: Duration = Duration::from_secs(5);

/// Time in which the last connections may send their requests.
const LAST_REQUESTS: Duration = Duration::from_millis(100);

/// Serves until Ctrl-C or a termination signal.
pub(crate) fn run(args: ServeArgs) -> Result<()> {
    if args.check {
        return readiness::check(&args.listen);
    }
    let (listener, address) = listen(&args.listen).map_err(|error| {
        anyhow!("cannot listen on `{}`: {error}; choose another with --listen ADDRESS:PORT", args.listen)
    })?;
    // One thread is enough, since it only transfers requests and responses; others decode, detect, parse and open models.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match runtime.block_on(serve(Arc::new(args), listener, address))? {}
}

/// Serves until the process exits. Fails only before it serves.
async fn serve(args: Arc<ServeArgs>, listener: TcpListener, address: SocketAddr) -> Result<Infallible> {
    let mut signals = Signals::new(args.reloads())?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let metrics = Arc::new(Metrics::default());
    let models = Arc::new(ModelStore::new(args.repository(), opener(Arc::clone(&args), Arc::clone(&metrics))));
    let app = Arc::new(AppState {
        settings: args.settings(),
        models: Arc::clone(&models),
        metrics,
        uploads: UploadMemory::new(args.max_upload_bytes),
        is_started: AtomicBool::new(false),
        is_draining: AtomicBool::new(false),
    });
    let acceptor = Acceptor::new(Arc::clone(&app), args.connection_limits());
    say(format_args!("listening on http://{address}"));
    let ended = tokio::select! {
        never = acceptor.accept(&listener) => match never {},
        error = maintain(&args, &app) => Err(error),
        () = handle_signals(&mut signals, &models) => Ok(()),
    };
    app.is_draining.store(true, Relaxed);
    if let Err(error) = ended {
        progress::error(format_args!("{error:#}"));
        signals::exit_at_once(1);
    }
    say(format_args!("stopping: finishing the requests in progress; press Ctrl-C again to stop at once"));
    tokio::select! {
        drained = drain(&args, listener, acceptor) => if let Err(error) = drained {
            progress::error(format_args!("{error:#}"));
            signals::exit_at_once(1);
        },
        () = signals.end() => signals::exit_at_once(EXIT_CODE.into()),
    }
    // Workers whose clients have left, trials and models that are being opened are not waited for.
    signals::exit_at_once(0)
}

/// Opens the models, then looks after them. Returns only if the first models cannot be opened.
async fn maintain(args: &ServeArgs, app: &Arc<AppState>) -> anyhow::Error {
    let load = async || {
        let models = Arc::clone(&app.models);
        let loaded = spawn_blocking(move || models.load_all(Retry::Changed)).await;
        loaded.map_err(anyhow::Error::from).flatten()
    };
    let errors = match load().await {
        Err(error) => return error,
        Ok(errors) => errors,
    };
    // Also of those that a client has tried to load before.
    let failures = app.models.failures();
    if !failures.is_empty() {
        return anyhow!("{}", failures.join("; "));
    }
    report(Ok(errors));
    app.is_started.store(true, Relaxed);
    let mut trials = every(TRIAL_INTERVAL);
    let mut trial = None::<JoinHandle<()>>;
    let mut polls = args.poll_models.map(|seconds| every(Duration::from_secs(seconds)));
    loop {
        tokio::select! {
            // A run of a broken GPU may never end.
            _ = trials.tick() => if trial.as_ref().is_none_or(JoinHandle::is_finished) {
                let models = Arc::clone(&app.models);
                // A panic is reported on stderr, and the model stays as it is.
                trial = Some(spawn_blocking(move || try_failed_models(&models)));
            },
            // Without polls, never.
            Some(_) = async { Some(polls.as_mut()?.tick().await) } => report(load().await),
        }
    }
}

/// Ticks at once, and then as often as this; not faster to make up for what took longer.
fn every(period: Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// Runs the networks that have failed once more: a model that works again is ready again.
fn try_failed_models(models: &ModelStore) {
    for version in models.serving().into_iter().filter(|version| !version.is_ready()) {
        let (name, number) = (&version.description.name, &version.description.version);
        match version.backend.try_run() {
            Ok(()) => say(format_args!("model `{name}` version {number} works again")),
            Err(error) => progress::error(format_args!("model `{name}` version {number} is not ready: {error}")),
        }
    }
}

/// Reloads models at SIGHUP; returns at the signals that end the server.
async fn handle_signals(signals: &mut Signals, models: &Arc<ModelStore>) {
    while signals.next().await == Signal::Reload {
        say(format_args!("looking for new versions of models"));
        let models = Arc::clone(models);
        // Requests and further signals go on meanwhile.
        spawn_blocking(move || report(models.load_all(Retry::Failed)));
    }
}

/// Reports which versions cannot be opened.
fn report(loaded: Result<Vec<anyhow::Error>>) {
    for error in loaded.unwrap_or_else(|error| vec![error]) {
        progress::error(format_args!("{error:#}"));
    }
}

/// Answers the accepted requests, and the connections that arrive before the delay is over.
async fn drain(args: &ServeArgs, listener: tokio::net::TcpListener, acceptor: Acceptor) -> Result<()> {
    let delay = Duration::from_secs(args.drain_delay);
    if !delay.is_zero() {
        // Ends by its time.
        let _ = timeout(delay, acceptor.accept(&listener)).await;
    }
    acceptor.accept_waiting(listener);
    // A new connection is closed at once if its request has not been read.
    sleep(LAST_REQUESTS).await;
    tokio::select! {
        () = acceptor.connections.shutdown() => Ok(()),
        () = sleep(Duration::from_secs(args.grace)) => {
            bail!("some requests were not answered within {} s; raise --grace", args.grace)
        }
    }
}

/// Opens models as the flags say, and warms them up.
fn opener(args: Arc<ServeArgs>, metrics: Arc<Metrics>) -> Box<Open> {
    let limits = args.image_limits();
    let budget = PixelBudget::new(limits.pixels);
    Box::new(move |name: &str, number: u64, file: &ModelFile| -> Result<ModelVersion> {
        let metrics = metrics.of(name, &number.to_string());
        let observed = Arc::clone(&metrics);
        let mut options = args.detector.options();
        (options.max_batch, options.rules.classes) = (args.max_batch, args.classes.clone());
        options.max_queue_delay = Duration::from_micros(args.max_queue_delay);
        options.observer = Some(BatchObserver::new(move |images, time| observed.count_batch(images, time)));
        let (instances, max_queue_delay) = (options.instances.get(), options.max_queue_delay);
        let detector = args.detector.model.open_file(&file.path, options)?;
        let workers = args.detector.workers(&detector);
        let description = ModelDescription {
            name: name.to_owned(),
            version: number.to_string(),
            max_batch: detector.max_batch(),
            max_queue_delay,
            max_queue: args.max_queue.get(),
            instances,
            is_on_gpu: !detector.engine().provider().is_on_cpu(),
            classes: detector.spec().classes.iter().map(|class| class.name.clone()).collect(),
        };
        let backend: Arc<dyn Backend> =
            Arc::new(WarmDetector::new(detector, &args.warm_up).context("the network cannot be warmed up")?);
        let queue = Arc::new(Queue::new(args.max_queue.get()));
        let worker = Worker { queue, backend, metrics, limits, budget: budget.clone() };
        Ok(ModelVersion::start(description, worker, workers))
    })
}

/// A listening socket, and its address.
fn listen(address: &str) -> std::io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

#[cfg(test)]
mod tests;
