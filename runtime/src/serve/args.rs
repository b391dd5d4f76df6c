//! The command line of `serve`, and its environment variables.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{Arg, ArgAction, Command};
use runtime::image_file::Limits;

use super::app::Settings;
use super::connections::ConnectionLimits;
use super::repository::Repository;
use crate::detector_args::{DetectorArgs, MAX_BATCH};
use crate::value_parsers::{size, up_to};

/// Detect objects in images sent over HTTP.
///
/// Speaks the Open Inference Protocol v2 (KServe, Triton): POST /v2/models/MODEL/infer takes encoded images as a BYTES tensor;
/// GET /v2/health/live and /v2/health/ready are for probes, GET /metrics for Prometheus, and / is a page for browsers.
/// `POST /detect` is short:
/// `curl --data-binary @street.jpg http://127.0.0.1:8080/detect`, or `curl -F image=@street.jpg`, with `?min_score=`, `classes=`,
/// `max_detections=`; `-H 'Accept: image/jpeg'` gets the annotated image.
///
/// Errors are JSON `{"error": ..}` with a status: 400 wrong request or no image, 401 token, 404 model, 408 too slow, 413 too large,
/// 429 full, 503 not ready or out of time, 500 the network failed. SIGTERM and Ctrl-C answer the accepted requests, then exit
/// with 0. There is no TLS: put a reverse proxy in front before you expose it.
#[derive(Debug, clap::Args)]
pub(crate) struct ServeArgs {
    /// Address and port to listen on; port 0 chooses a free one.
    #[arg(long, help_heading = "Server", value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    pub(super) listen: String,

    /// Ask the server that listens there whether it is ready, and exit with 0 or 1: the health check of a container without
    /// curl.
    #[arg(long, help_heading = "Server")]
    pub(super) check: bool,

    /// Serve the models of a folder in Triton's layout, NAME/VERSION/model.onnx, each in its highest version. SIGHUP opens new
    /// versions; the old one serves until the new one is warmed up.
    #[arg(long, help_heading = "Model", value_name = "DIR", conflicts_with = "model")]
    models: Option<PathBuf>,

    /// Name of the model in URLs [default: the name of the file without .onnx].
    #[arg(long, help_heading = "Model", value_name = "NAME", conflicts_with = "models")]
    model_name: Option<String>,

    /// Look for new versions every so many seconds [default: only at SIGHUP].
    #[arg(long, help_heading = "Model", value_name = "S", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(super) poll_models: Option<u64>,

    /// Allow clients with the token to load and unload models: POST /v2/repository/models/NAME/load.
    #[arg(long, help_heading = "Model", requires = "token")]
    model_control: bool,

    /// Width and height of images to expect, separated by commas: the network runs on each in all batch sizes before the
    /// server is ready.
    #[arg(
        long,
        help_heading = "Model",
        value_name = "WIDTHxHEIGHT,..",
        value_delimiter = ',',
        default_value = "640x480"
    )]
    #[arg(value_parser = |text: &str| size(text, [1, 16_384]))]
    pub(super) warm_up: Vec<(u32, u32)>,

    #[command(flatten)]
    pub(super) detector: DetectorArgs,

    /// Report only these classes, by name or id, separated by commas.
    #[arg(long, value_name = "NAMES", help_heading = "Thresholds")]
    pub(super) classes: Option<Vec<String>>,

    /// Maximum images per run of the network; images of one input size share a run [default: the model's if fixed, else 1].
    #[arg(long, value_name = "N", value_parser = up_to(MAX_BATCH), help_heading = "Performance")]
    pub(super) max_batch: Option<NonZeroUsize>,

    /// Microseconds for which an image waits for others to fill its batch.
    #[arg(long, value_name = "US", default_value_t = 0, help_heading = "Performance")]
    #[arg(value_parser = clap::value_parser!(u64).range(..=60_000_000))]
    pub(super) max_queue_delay: u64,

    /// Maximum number of images of a model that wait for a worker; requests beyond get 429. Also the maximum number of images
    /// of a request.
    #[arg(long, value_name = "N", default_value = "64", value_parser = up_to(65_536), help_heading = "Performance")]
    pub(super) max_queue: NonZeroUsize,

    /// Milliseconds within which a request must be finished, waiting included; then it gets 503 and frees its slot. A request
    /// may ask for less [default: no limit].
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=86_400_000), help_heading = "Performance")]
    request_timeout: Option<u64>,

    /// Token that clients must send as `Authorization: Bearer TOKEN`, except for health and metrics. Other users of the machine
    /// see the command line: better set DETECTOR_TOKEN.
    #[arg(long, help_heading = "Safety", value_name = "TOKEN", value_parser = parse_token)]
    token: Option<String>,

    /// Seconds within which the header of a request must arrive.
    #[arg(long, help_heading = "Safety", value_name = "S", default_value_t = 10, value_parser = seconds())]
    header_timeout: u64,

    /// Seconds within which a request must have arrived completely.
    #[arg(long, help_heading = "Safety", value_name = "S", default_value_t = 30, value_parser = seconds())]
    read_timeout: u64,

    /// Seconds after which a connection is closed that has no request, or whose client does not take its response.
    #[arg(long, help_heading = "Safety", value_name = "S", default_value_t = 60, value_parser = seconds())]
    idle_timeout: u64,

    /// Maximum number of open connections; further ones wait until one closes.
    #[arg(long, help_heading = "Safety", value_name = "N", default_value = "2048", value_parser = up_to(65_536))]
    pub(super) max_connections: NonZeroUsize,

    /// Reject images with more pixels than this; together, the decoded images in memory have no more either.
    #[arg(long, help_heading = "Safety", value_name = "N", default_value_t = 1 << 26)]
    max_pixels: u64,

    /// Reject requests with more bytes than this.
    #[arg(long, help_heading = "Safety", value_name = "N", default_value_t = 1 << 25)]
    max_bytes: u64,

    /// Maximum bytes of all requests in memory; further ones get 429.
    #[arg(long, help_heading = "Safety", value_name = "N", default_value_t = 1 << 29)]
    pub(super) max_upload_bytes: u64,

    /// Seconds after SIGTERM for which the server, no longer ready, still takes requests, so that load balancers can notice.
    #[arg(long, help_heading = "Server", value_name = "S", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=3600))]
    pub(super) drain_delay: u64,

    /// Seconds within which the accepted requests must be answered after that; then the server stops with exit code 1.
    #[arg(long, help_heading = "Server", value_name = "S", default_value_t = 25, value_parser = seconds())]
    pub(super) grace: u64,
}

fn seconds() -> clap::builder::RangedU64ValueParser {
    clap::builder::RangedU64ValueParser::new().range(1..=3600)
}

fn parse_token(text: &str) -> Result<String, String> {
    let is_valid = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    if is_valid {
        Ok(text.to_owned())
    } else {
        Err("expected ASCII letters, digits and signs without spaces".to_owned())
    }
}

impl ServeArgs {
    pub(super) fn settings(&self) -> Settings {
        Settings {
            max_bytes: self.max_bytes,
            read_timeout: Duration::from_secs(self.read_timeout),
            request_timeout: self.request_timeout.map(Duration::from_millis),
            token: self.token.clone(),
            model_control: self.model_control,
        }
    }

    pub(super) fn connection_limits(&self) -> ConnectionLimits {
        ConnectionLimits {
            connections: self.max_connections.get(),
            header_timeout: Duration::from_secs(self.header_timeout),
            idle_timeout: Duration::from_secs(self.idle_timeout),
        }
    }

    pub(super) fn image_limits(&self) -> Limits {
        Limits { pixels: self.max_pixels, bytes: self.max_bytes }
    }

    pub(super) fn repository(&self) -> Repository {
        if let Some(folder) = &self.models {
            return Repository::Folder(folder.clone());
        }
        let path = self.detector.model.path().to_owned();
        let stem = || path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let name = self.model_name.clone().or_else(stem).unwrap_or_else(|| "model".to_owned());
        Repository::File { path, name }
    }

    /// Whether SIGHUP opens new versions.
    pub(super) fn reloads(&self) -> bool {
        self.models.is_some()
    }
}

/// Adds an environment variable for every flag of `serve`, as containers want: DETECTOR_MAX_BATCH for --max-batch.
/// The flags that all commands have get theirs too.
pub(crate) fn with_environment(command: Command) -> Command {
    // A flag on the command line wins over the variable of the other kind of models, such as that of a container's image.
    let given = |flag: &str| {
        // File names need not be UTF-8.
        let is_flag = |arg: &str| arg.strip_prefix(flag).is_some_and(|rest| rest.is_empty() || rest.starts_with('='));
        std::env::args_os().any(|arg| is_flag(&arg.to_string_lossy()))
    };
    let hidden: &[&str] = match (given("--model"), given("--models")) {
        (true, false) => &["models"],
        (false, true) => &["model", "model-name"],
        _ => &[],
    };
    let with_variable = |arg: Arg| {
        let Some(long) = arg.get_long().filter(|long| !hidden.contains(long)) else { return arg };
        let name = format!("DETECTOR_{}", long.replace('-', "_").to_uppercase());
        // The token is not to be shown.
        let arg = arg.env(name).hide_env_values(true);
        if matches!(arg.get_action(), ArgAction::SetTrue) { arg.value_parser(BoolishValueParser::new()) } else { arg }
    };
    let common = command.mut_args(|arg| with_variable(arg).hide_env(true));
    common.mut_subcommand("serve", |serve| serve.mut_args(with_variable))
}
