//! `runtime doctor`: whether this machine can run models, on what, and what is missing.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use runtime::drivers::Drivers;
use runtime::library;
use runtime::output::ReportWriter;
use runtime::{EngineError, EngineOptions, OpenvinoDevice, Provider, machine, smoke_test};
use serde::Serialize;

/// Check which providers work on this machine, and say what the others are missing.
///
/// Runs a tiny network on each provider. The exit code is 0 if at least the CPU works, otherwise 1.
#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArgs {
    /// ONNX Runtime library to load [default: $ORT_DYLIB_PATH, then beside the program, .deps above it, the system's].
    #[arg(long, value_name = "FILE")]
    onnxruntime: Option<PathBuf>,

    /// Also write this as JSON; `-` writes it to stdout instead of the text.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What there is.
#[derive(Serialize)]
struct Health {
    runtime: &'static str,
    cpu: Option<String>,
    cores: usize,
    /// Of the CPU's extensions those that networks gain from.
    extensions: Vec<&'static str>,
    onnxruntime: Result<Found, String>,
    /// Whether ONNX Runtime may send what it is used for to Microsoft.
    telemetry: bool,
    drivers: Option<Drivers>,
    providers: Vec<Trial>,
}

/// ONNX Runtime.
#[derive(Serialize)]
struct Found {
    version: String,
    path: PathBuf,
    how: String,
}

/// Whether a provider works.
#[derive(Serialize)]
struct Trial {
    provider: String,
    /// How long it took to start and compute something, in milliseconds; why it did not.
    outcome: Result<f64, String>,
}

const PROVIDERS: [Provider; 4] = [
    Provider::Cpu,
    Provider::Cuda { device: 0 },
    Provider::Tensorrt { device: 0 },
    Provider::Openvino { device: OpenvinoDevice::Cpu },
];

/// Tries the providers and prints what works.
pub(crate) fn run(args: &DoctorArgs) -> Result<ExitCode> {
    let writer = ReportWriter::open(args.json.as_deref())?;
    let library = library::find(args.onnxruntime.as_deref());
    let drivers = library.as_ref().ok().map(|library| Drivers::find(&library.path));
    let trial = |provider: Provider| {
        let options = EngineOptions { provider, onnxruntime: args.onnxruntime.clone(), ..EngineOptions::default() };
        let reason = |error| match error {
            EngineError::Provider { reason, .. } => reason,
            other => other.to_string(),
        };
        let outcome = smoke_test(&options).map(|time| 1e3 * time.as_secs_f64()).map_err(reason);
        Trial { provider: provider.to_string(), outcome }
    };
    let providers: Vec<_> = if library.is_ok() { PROVIDERS.map(trial).into() } else { Vec::new() };
    let found = |library: library::Library| Found {
        how: library.origin.to_string(),
        version: library.version,
        path: library.path,
    };
    let health = Health {
        runtime: env!("CARGO_PKG_VERSION"),
        cpu: machine::cpu(),
        cores: machine::cores(),
        extensions: machine::extensions(),
        onnxruntime: library.map(found).map_err(|error| error.to_string()),
        telemetry: library::has_telemetry(),
        drivers,
        providers,
    };
    writer.publish(&health, &health.text())?;
    let works = health.providers.first().is_some_and(|cpu| cpu.outcome.is_ok());
    Ok(if works { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Health {
    /// For people, without the last line's end.
    fn text(&self) -> String {
        let Self { runtime, cpu, cores, extensions, .. } = self;
        let extensions = if extensions.is_empty() { "none known".to_owned() } else { extensions.join(", ") };
        let mut rows = vec![
            ["runtime".to_owned(), (*runtime).to_owned()],
            ["CPU".to_owned(), cpu.clone().unwrap_or_else(|| "unknown".to_owned())],
            ["cores".to_owned(), cores.to_string()],
            ["extensions".to_owned(), extensions],
        ];
        rows.push([
            "ONNX Runtime".to_owned(),
            match &self.onnxruntime {
                Ok(Found { version, path, how }) => format!("{version}, {}, {how}", path.display()),
                Err(reason) => reason.clone(),
            },
        ]);
        let telemetry = match self.telemetry {
            true => "on: ORT_DISABLE_TELEMETRY is set, and not to 1",
            false => "off",
        };
        rows.push(["its telemetry".to_owned(), telemetry.to_owned()]);
        if let Some(Drivers { gpus, capabilities, kernel, cuda_driver, cuda_runtime, cudnn }) = &self.drivers {
            let gpus = if gpus.is_empty() { "none".to_owned() } else { gpus.join(", ") };
            rows.push(["NVIDIA GPUs".to_owned(), gpus]);
            for capability in capabilities {
                let remedy = if capability.is_in_wheel() {
                    ""
                } else {
                    "; the library in Microsoft's wheel of ONNX Runtime 1.30 has no code for it: build ONNX Runtime for it"
                };
                rows.push(["compute capability".to_owned(), format!("{capability}{remedy}")]);
            }
            let parts = [
                ("NVIDIA's driver", kernel),
                ("CUDA of the driver", cuda_driver),
                ("CUDA's runtime", cuda_runtime),
                ("cuDNN", cudnn),
            ];
            for (name, version) in parts {
                rows.push([name.to_owned(), version.clone().unwrap_or_else(|| "not found".to_owned())]);
            }
        }
        for Trial { provider, outcome } in &self.providers {
            let outcome = match outcome {
                Ok(ms) => format!("works; started in {ms:.0} ms"),
                Err(reason) => format!("cannot start: {reason}"),
            };
            let tf32 = if provider.starts_with("cuda") { "; convolutions in TF32 unless --no-tf32" } else { "" };
            rows.push([format!("--provider {provider}"), format!("{outcome}{tf32}")]);
        }
        let width = rows.iter().map(|[name, _]| name.len()).max().unwrap_or(0);
        let lines = rows.iter().map(|[name, value]| format!("{name:<width$}  {value}"));
        lines.collect::<Vec<_>>().join("\n")
    }
}
