//! `runtime doctor`: which providers work on this machine, and what the others are missing.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use runtime::drivers::Drivers;
use runtime::library;
use runtime::output::ReportWriter;
use runtime::{Check, EngineError, EngineOptions, OpenvinoDevice, Provider, machine, smoke_test};
use schemars::JsonSchema;
use serde::Serialize;

/// Check which providers work on this machine, and say what the others are missing.
///
/// Runs a tiny network on each provider, and with --model also that network, whose numbers must be those in the file. The exit
/// code is 0 if at least the CPU works and no numbers are wrong, otherwise 1.
#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArgs {
    /// ONNX file to run on each provider that works; except on TensorRT, which takes minutes to start.
    #[arg(long, short, value_name = "FILE")]
    model: Option<PathBuf>,

    /// ONNX Runtime library to load [default: $ORT_DYLIB_PATH, then next to the program, .deps above it, the system's].
    #[arg(long, value_name = "FILE")]
    onnxruntime: Option<PathBuf>,

    /// Also write this as JSON; `-` writes it to stdout instead of the text.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The state of this machine.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Health {
    /// Version of this program.
    runtime: &'static str,
    /// Name of the CPU.
    cpu: Option<String>,
    /// Number of cores that this program may use.
    cores: usize,
    /// The x86 extensions of the CPU that speed up networks.
    extensions: Vec<&'static str>,
    /// The library of ONNX Runtime, or why there is none.
    onnxruntime: OrError<OnnxRuntime>,
    /// Whether ONNX Runtime may send usage data to Microsoft.
    telemetry: bool,
    /// NVIDIA's driver and libraries; `None` without ONNX Runtime.
    drivers: Option<Drivers>,
    /// Every provider; none without ONNX Runtime.
    providers: Vec<ProviderCheck>,
}

/// The library of ONNX Runtime.
#[derive(Serialize, JsonSchema)]
struct OnnxRuntime {
    /// Its version.
    version: String,
    /// Its file.
    path: PathBuf,
    /// What named the file.
    origin: String,
}

/// Whether a provider works.
#[derive(Serialize, JsonSchema)]
struct ProviderCheck {
    /// The provider, as `--provider` names it, with its device.
    provider: String,
    /// The smoke test, or why it failed.
    #[serde(flatten)]
    outcome: OrError<SmokeTest>,
    /// The check of the model, if there is one and the provider works.
    #[serde(skip_serializing_if = "Option::is_none")]
    check: Option<OrError<ModelCheck>>,
}

/// A check of a model that ran.
#[derive(Serialize, JsonSchema)]
struct ModelCheck {
    /// Whether the numbers are right.
    passes: bool,
    /// How much they differ, in words.
    differences: String,
}

/// A smoke test that passed.
#[derive(Serialize, JsonSchema)]
struct SmokeTest {
    /// Time to start the provider and run the test, in milliseconds.
    smoke_test_ms: f64,
}

/// The fields of a value, or the field `error`.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
enum OrError<T> {
    /// It worked.
    Value(T),
    /// It failed.
    Error {
        /// The reason.
        error: String,
    },
}

impl<T> From<Result<T, String>> for OrError<T> {
    fn from(result: Result<T, String>) -> Self {
        result.map_or_else(|error| Self::Error { error }, Self::Value)
    }
}

impl<T> OrError<T> {
    fn as_result(&self) -> Result<&T, &str> {
        match self {
            Self::Value(value) => Ok(value),
            Self::Error { error } => Err(error),
        }
    }
}

const PROVIDERS: [Provider; 4] = [
    Provider::Cpu,
    Provider::Cuda { device: 0 },
    Provider::Tensorrt { device: 0 },
    Provider::Openvino { device: OpenvinoDevice::Cpu },
];

/// Tests the providers and prints the results.
pub(crate) fn run(args: &DoctorArgs) -> Result<ExitCode> {
    let writer = ReportWriter::open(args.json.as_deref())?;
    let library = library::find(args.onnxruntime.as_deref());
    let drivers = library.as_ref().ok().map(|library| Drivers::find(&library.path));
    let check = |provider: Provider| {
        let options = EngineOptions { provider, onnxruntime: args.onnxruntime.clone(), ..EngineOptions::default() };
        let reason = |error| match error {
            EngineError::Provider { reason, .. } => reason,
            other => other.to_string(),
        };
        let outcome =
            smoke_test(&options).map(|time| SmokeTest { smoke_test_ms: 1e3 * time.as_secs_f64() }).map_err(reason);
        let can_check = outcome.is_ok() && !matches!(provider, Provider::Tensorrt { .. });
        let check = args.model.as_deref().filter(|_| can_check).map(|model| check_model(model, &options));
        ProviderCheck { provider: provider.to_string(), outcome: outcome.into(), check: check.map(OrError::from) }
    };
    let providers: Vec<_> = if library.is_ok() { PROVIDERS.map(check).into() } else { Vec::new() };
    let onnxruntime = |library: library::Library| OnnxRuntime {
        origin: library.origin.to_string(),
        version: library.version,
        path: library.path,
    };
    let health = Health {
        runtime: env!("CARGO_PKG_VERSION"),
        cpu: machine::cpu(),
        cores: machine::cores(),
        extensions: machine::extensions(),
        onnxruntime: library.map(onnxruntime).map_err(|error| error.to_string()).into(),
        telemetry: library::has_telemetry(),
        drivers,
        providers,
    };
    writer.publish(&health, &health.text())?;
    let works = health.providers.first().is_some_and(|cpu| cpu.outcome.as_result().is_ok());
    let passes = |provider: &ProviderCheck| match &provider.check {
        Some(check) => check.as_result().is_ok_and(|check| check.passes),
        None => true,
    };
    Ok(if works && health.providers.iter().all(passes) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the check of a model.
fn check_model(model: &Path, options: &EngineOptions) -> Result<ModelCheck, String> {
    let report = Check::run(model, options).map_err(|error| error.to_string())?;
    Ok(ModelCheck { passes: report.passes(), differences: report.to_string() })
}

impl ProviderCheck {
    /// The lines of the text output.
    fn rows(&self) -> Vec<[String; 2]> {
        let Self { provider, outcome, check } = self;
        let outcome = match outcome.as_result() {
            Ok(SmokeTest { smoke_test_ms: ms }) => format!("works; started in {ms:.0} ms"),
            Err(reason) => format!("cannot start: {reason}"),
        };
        let tf32 = match provider.starts_with("cuda") {
            true => "; float32 convolutions run in TF32 unless --no-tf32 is given",
            false => "",
        };
        let check = check.as_ref().map(|check| match check.as_result() {
            Ok(ModelCheck { passes: true, differences }) => format!("right numbers: {differences}"),
            Ok(ModelCheck { passes: false, differences }) => {
                format!("WRONG NUMBERS: {differences}; use another provider, or update its libraries")
            }
            Err(reason) => format!("cannot run: {reason}"),
        });
        let check = check.map(|check| [format!("model on {provider}"), check]);
        [[format!("--provider {provider}"), format!("{outcome}{tf32}")]].into_iter().chain(check).collect()
    }
}

impl Health {
    /// The text output, without a final newline.
    fn text(&self) -> String {
        let Self { runtime, cpu, cores, extensions, .. } = self;
        let extensions = if extensions.is_empty() { "none detected".to_owned() } else { extensions.join(", ") };
        let onnxruntime = match self.onnxruntime.as_result() {
            Ok(OnnxRuntime { version, path, origin }) => format!("{version}, {}, {origin}", path.display()),
            Err(reason) => reason.to_owned(),
        };
        let telemetry = match self.telemetry {
            true => "on: ORT_DISABLE_TELEMETRY is set, but not to 1",
            false => "off",
        };
        let rows = [
            ("runtime", (*runtime).to_owned()),
            ("CPU", cpu.clone().unwrap_or_else(|| "unknown".to_owned())),
            ("cores", cores.to_string()),
            ("extensions", extensions),
            ("ONNX Runtime", onnxruntime),
            ("ONNX Runtime telemetry", telemetry.to_owned()),
        ];
        let mut rows: Vec<_> = rows.map(|(name, value)| [name.to_owned(), value]).into();
        rows.extend(self.drivers.iter().flat_map(driver_rows));
        rows.extend(self.providers.iter().flat_map(ProviderCheck::rows));
        let width = rows.iter().map(|[name, _]| name.len()).max().unwrap_or(0);
        let lines = rows.iter().map(|[name, value]| format!("{name:<width$}  {value}"));
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// The lines of the text output about NVIDIA's driver and libraries.
fn driver_rows(drivers: &Drivers) -> Vec<[String; 2]> {
    let Drivers { gpus, capabilities, driver, cuda_driver, cuda_runtime, cudnn } = drivers;
    let gpus = if gpus.is_empty() { "none".to_owned() } else { gpus.join(", ") };
    let capabilities = capabilities.iter().map(|capability| {
        let remedy = match capability.is_in_wheel() {
            true => "",
            false => "; Microsoft's wheel of ONNX Runtime 1.30 does not support it: build ONNX Runtime for it",
        };
        ("compute capability", format!("{capability}{remedy}"))
    });
    let versions = [
        ("NVIDIA driver", driver),
        ("CUDA version of the driver", cuda_driver),
        ("CUDA runtime", cuda_runtime),
        ("cuDNN", cudnn),
    ];
    let versions = versions.map(|(name, version)| (name, version.clone().unwrap_or_else(|| "not found".to_owned())));
    let rows = [("NVIDIA GPUs", gpus)].into_iter().chain(capabilities).chain(versions);
    rows.map(|(name, value)| [name.to_owned(), value]).collect()
}
