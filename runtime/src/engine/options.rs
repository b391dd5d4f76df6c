//! Options of an engine, and which of them fit together.

use std::path::PathBuf;

use super::error::EngineError;
use crate::machine;
use crate::provider::Provider;

/// Options of an [`Engine`](crate::Engine).
#[derive(Clone, Debug, Default)]
pub struct EngineOptions {
    /// Execution provider that computes the network.
    pub provider: Provider,
    /// Threads of the engine's own pool, from 1 to [`EngineOptions::MAX_THREADS`]. `None`: all engines of the process
    /// share one pool with a thread per core.
    pub threads: Option<usize>,
    /// CPUs, from 0, to bind these threads to: one fewer than `threads`, since the calling thread is not bound. Empty:
    /// no binding.
    pub affinity: Vec<usize>,
    /// GPU memory limit for CUDA's arena, in bytes; `None` for no limit.
    pub cuda_memory: Option<usize>,
    /// Whether to record a run as a CUDA graph and replay it, which saves kernel launches. Requires a model with a
    /// fixed input shape.
    pub cuda_graphs: bool,
    /// Whether `cuda` computes float32 convolutions in full precision. Otherwise ONNX Runtime uses TF32, with 10 bits
    /// of mantissa, on GPUs that support it.
    pub no_tf32: bool,
    /// Options of TensorRT.
    pub tensorrt: TensorrtOptions,
    /// File of ONNX Runtime's library; if `None`, [`crate::library::find`] searches for it.
    pub onnxruntime: Option<PathBuf>,
}

/// Options of TensorRT.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TensorrtOptions {
    /// Folder of TensorRT's engine and timing caches; `None` for `retinanet/tensorrt` in the user's cache folder.
    pub cache: Option<PathBuf>,
    /// Input shapes to build the engine for, if the file does not fix them.
    pub profile: Option<ShapeProfile>,
    /// Whether TensorRT may compute in float16.
    pub fp16: bool,
}

/// TensorRT optimization profile: minimum, optimal and maximum input as `[images, height, width]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShapeProfile {
    /// Minimum input.
    pub min: [usize; 3],
    /// Input that the engine is optimized for.
    pub opt: [usize; 3],
    /// Maximum input.
    pub max: [usize; 3],
}

impl EngineOptions {
    /// Upper limit of [`EngineOptions::threads`], more than any machine has cores.
    pub const MAX_THREADS: usize = 1024;

    /// These options for `provider`. If the provider was [`Provider::Auto`], options of CUDA are dropped for other
    /// providers.
    pub(crate) fn on(&self, provider: Provider) -> Self {
        let options = Self { provider, ..self.clone() };
        match (self.provider, provider) {
            (Provider::Auto, Provider::Cuda { .. }) => options,
            (Provider::Auto, _) => Self { cuda_memory: None, cuda_graphs: false, no_tf32: false, ..options },
            _ => options,
        }
    }

    /// Rejects invalid options and options that the provider does not support.
    pub(super) fn check(&self) -> Result<(), EngineError> {
        let provider = self.provider;
        let invalid = |option, reason: &str| EngineError::Option { option, provider, reason: reason.to_owned() };
        let (memory, graphs, tf32) = (self.cuda_memory.is_some(), self.cuda_graphs, self.no_tf32);
        for (option, is_set) in [("--cuda-memory", memory), ("--cuda-graphs", graphs), ("--no-tf32", tf32)] {
            if is_set && !matches!(provider, Provider::Cuda { .. }) {
                return Err(invalid(option, "only `cuda` supports it"));
            }
        }
        if self.tensorrt != TensorrtOptions::default() && !matches!(provider, Provider::Tensorrt { .. }) {
            return Err(invalid("--tensorrt-*", "only `tensorrt` supports it"));
        }
        let Some(threads) = self.threads else {
            return match self.affinity.is_empty() {
                true => Ok(()),
                false => Err(invalid("--affinity", "it requires the number of threads, --threads")),
            };
        };
        if !(1..=Self::MAX_THREADS).contains(&threads) {
            return Err(invalid("--threads", &format!("{threads} is not between 1 and {}", Self::MAX_THREADS)));
        }
        if !self.affinity.is_empty() && self.affinity.len() != threads - 1 {
            return Err(invalid(
                "--affinity",
                "it needs one CPU fewer than --threads, since the calling thread is not bound",
            ));
        }
        // ONNX Runtime would ignore such a CPU.
        if let Some(missing) = self.affinity.iter().find(|cpu| !machine::has_cpu(**cpu)) {
            return Err(invalid("--affinity", &format!("CPU {missing} is not available to this program")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_of(options: &EngineOptions) -> String {
        options.check().unwrap_err().to_string()
    }

    #[test]
    fn unsupported_options_are_rejected() {
        let cuda_memory = Some(1 << 30);
        let cuda = EngineOptions { provider: Provider::Cuda { device: 0 }, cuda_memory, ..EngineOptions::default() };
        assert!(cuda.check().is_ok());
        assert!(error_of(&EngineOptions { provider: Provider::Cpu, ..cuda }).contains("only `cuda` supports it"));
        assert!(
            error_of(&EngineOptions { no_tf32: true, ..EngineOptions::default() }).contains("only `cuda` supports it")
        );
        assert!(
            error_of(&EngineOptions { cuda_graphs: true, ..EngineOptions::default() })
                .contains("only `cuda` supports it")
        );
        let tensorrt = TensorrtOptions { fp16: true, ..TensorrtOptions::default() };
        assert!(
            error_of(&EngineOptions { tensorrt, ..EngineOptions::default() }).contains("only `tensorrt` supports it")
        );
    }

    #[test]
    fn affinity_needs_one_cpu_fewer_than_threads() {
        let options = |threads, affinity: &[usize]| EngineOptions {
            threads,
            affinity: affinity.to_vec(),
            ..EngineOptions::default()
        };
        let cpu = (0..).find(|cpu| machine::has_cpu(*cpu)).unwrap();
        assert!(options(Some(2), &[cpu]).check().is_ok() && options(Some(1), &[]).check().is_ok());
        assert!(error_of(&options(None, &[cpu])).contains("number of threads"));
        assert!(error_of(&options(Some(3), &[cpu])).contains("one CPU fewer"));
        #[cfg(target_os = "linux")]
        assert!(error_of(&options(Some(2), &[123_456])).contains("CPU 123456"));
    }

    #[test]
    fn auto_keeps_cuda_options_only_on_cuda() {
        let auto = EngineOptions {
            provider: Provider::Auto,
            cuda_memory: Some(1 << 30),
            no_tf32: true,
            ..EngineOptions::default()
        };
        assert!(auto.on(Provider::Cpu).check().is_ok());
        assert!(auto.on(Provider::Cuda { device: 0 }).no_tf32);
    }

    #[test]
    fn zero_threads_and_too_many_are_rejected() {
        for threads in [0, EngineOptions::MAX_THREADS + 1, usize::MAX] {
            let options = EngineOptions { threads: Some(threads), ..EngineOptions::default() };
            assert!(error_of(&options).contains(&format!("{threads} is not between")));
        }
    }
}
