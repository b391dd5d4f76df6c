//! Finds and loads ONNX Runtime's library. Folders are searched in a fixed order, and a library is examined before
//! `ort` loads it, because `ort` hangs or aborts if it is missing or too old
//! (<https://github.com/pykeio/ort/issues/560>).

use std::env;
use std::error::Error;
use std::ffi::CStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ort::environment::{Environment, GlobalThreadPoolOptions};
use ort::ep;
use ort::logging::LogLevel;
use tracing::Level;

use crate::machine;

/// Target of the events of ONNX Runtime's log.
pub(crate) const LOG: &str = "onnxruntime";

/// Environment variable with the path of the library, as `ort` and other programs use it.
const VARIABLE: &str = "ORT_DYLIB_PATH";

/// Environment variable that disables ONNX Runtime's telemetry. <https://github.com/microsoft/onnxruntime/pull/29843>
const TELEMETRY: &str = "ORT_DISABLE_TELEMETRY";

/// Folder of the library that `make setup` installs, from the root of the repository.
const CHECKOUT_FOLDER: &str = ".deps/onnxruntime/lib";

/// How to install the library.
const REMEDY: &str =
    "run `make setup`, or unpack pip's `onnxruntime` wheel and set ORT_DYLIB_PATH to its capi/libonnxruntime.so.*";

/// A library of ONNX Runtime in a version that this program can use.
#[derive(Debug)]
pub struct Library {
    /// Path of the file; only its name if the system's loader found it.
    pub path: PathBuf,
    /// Its version, such as `1.30.0`.
    pub version: String,
    /// How it was found.
    pub origin: Origin,
    /// Keeps the library loaded, so that `ort` uses the one that was examined.
    _handle: libloading::Library,
}

impl fmt::Display for Library {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "ONNX Runtime {} at `{}`, {}", self.version, self.path.display(), self.origin)
    }
}

/// How a library was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The caller passed its path, with `--onnxruntime` in programs.
    Option,
    /// The environment variable `ORT_DYLIB_PATH` contains its path.
    Variable,
    /// [`find`] searched for it.
    Search,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Origin::Option => "set by --onnxruntime",
            Origin::Variable => "set by ORT_DYLIB_PATH",
            Origin::Search => "found by search",
        })
    }
}

/// ONNX Runtime cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LibraryError {
    /// The library was not found.
    #[error("cannot find ONNX Runtime; searched {}; {REMEDY}", .searched.join(", "))]
    NotFound {
        /// The searched folders, in order.
        searched: Vec<String>,
    },
    /// There is no such file, or the system's loader cannot load it. If the caller or `ORT_DYLIB_PATH` sets its path there is
    /// no search, so that the mistake shows.
    #[error("cannot load ONNX Runtime from `{}`, {origin}: {reason}; {REMEDY}", .path.display())]
    Load {
        /// Path of the file.
        path: PathBuf,
        /// How it was found.
        origin: Origin,
        /// What is wrong with the path, or the loader's message.
        reason: String,
    },
    /// The library is not ONNX Runtime.
    #[error("`{}`, {origin}, is not ONNX Runtime: it does not export OrtGetApiBase; {REMEDY}", .path.display())]
    NotOnnxRuntime {
        /// Path of the file.
        path: PathBuf,
        /// How it was found.
        origin: Origin,
    },
    /// The version of ONNX Runtime lacks the API that this program uses.
    #[error(
        "ONNX Runtime at `{}`, {origin}, is version {version}, expected 1.{} or newer; {REMEDY}",
        .path.display(), ort::MINOR_VERSION
    )]
    TooOld {
        /// Path of the file.
        path: PathBuf,
        /// How it was found.
        origin: Origin,
        /// Its version.
        version: String,
    },
    /// The process has loaded another ONNX Runtime already.
    #[error(
        "cannot load ONNX Runtime from `{}`: this process has loaded `{}` already, and can load only one",
        .requested.display(), .loaded.display()
    )]
    AlreadyLoaded {
        /// Path of the requested file.
        requested: PathBuf,
        /// Path of the loaded file.
        loaded: PathBuf,
    },
    /// ONNX Runtime failed to start.
    #[error("cannot start ONNX Runtime from `{}`: {reason}", .path.display())]
    Start {
        /// Path of the file.
        path: PathBuf,
        /// ONNX Runtime's message.
        reason: String,
    },
}

/// Finds ONNX Runtime: `file` if given, else the path in `ORT_DYLIB_PATH`, else next to the executable, else
/// `.deps/onnxruntime/lib` in a folder above the executable, else in the system's library path. The current folder is
/// not searched, because anyone who can write to it could run code here.
///
/// # Errors
/// When it is not found, and when the first library found cannot be used.
pub fn find(file: Option<&Path>) -> Result<Library, LibraryError> {
    if let Some(path) = file {
        return from_path(path, Origin::Option);
    }
    if let Some(path) = env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
        return from_path(Path::new(&path), Origin::Variable);
    }

    let name = format!("{}onnxruntime{}", env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX);
    let mut searched = Vec::new();
    let program = env::current_exe().ok();
    if let Some(program_folder) = program.as_deref().and_then(Path::parent) {
        let beside = program_folder.join(&name);
        let in_checkouts = program_folder.ancestors().map(|folder| folder.join(CHECKOUT_FOLDER).join(&name));
        if let Some(path) = [beside].into_iter().chain(in_checkouts).find(|path| path.exists()) {
            return examine(&path, Origin::Search);
        }
        let folder = program_folder.display();
        searched.push(format!("for {name} in `{folder}`"));
        searched.push(format!("for {CHECKOUT_FOLDER}/{name} in `{folder}` and its parents"));
    }
    // Runtime packages of Linux distributions contain only the second name.
    for name in [name.clone(), format!("{name}.1")] {
        match examine(Path::new(&name), Origin::Search) {
            Err(LibraryError::Load { .. }) => {}
            other => return other,
        }
    }
    searched.push("in the system's library path".to_owned());
    Err(LibraryError::NotFound { searched })
}

/// The library at a path that the caller or `ORT_DYLIB_PATH` sets.
fn from_path(path: &Path, origin: Origin) -> Result<Library, LibraryError> {
    // `ort` resolves relative paths against the executable's folder first; users mean the current folder.
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let reason = match path.metadata() {
        Err(_) => "the file does not exist",
        Ok(metadata) if metadata.is_dir() => "it is a folder; pass the library's file",
        Ok(_) => return examine(&path, origin),
    };
    Err(LibraryError::Load { path, origin, reason: reason.to_owned() })
}

/// Loads the library and checks its version.
#[allow(unsafe_code, reason = "the compiler cannot check loading a library and calling its functions")]
fn examine(path: &Path, origin: Origin) -> Result<Library, LibraryError> {
    type GetApiBase = unsafe extern "C" fn() -> *const ort::sys::OrtApiBase;

    // SAFETY: ONNX Runtime's initializers have no preconditions; those of any other library are the risk of whoever
    // sets the path.
    let handle = unsafe { libloading::Library::new(path) }.map_err(|error| LibraryError::Load {
        path: path.to_owned(),
        origin,
        reason: error.source().map_or_else(|| error.to_string(), |source| source.to_string()),
    })?;
    // SAFETY: the symbol has this type in every release of ONNX Runtime, and the returned base is static.
    let (base, version) = unsafe {
        let Ok(get_api_base) = handle.get::<GetApiBase>(b"OrtGetApiBase\0") else {
            return Err(LibraryError::NotOnnxRuntime { path: path.to_owned(), origin });
        };
        let Some(base) = get_api_base().as_ref() else {
            return Err(LibraryError::NotOnnxRuntime { path: path.to_owned(), origin });
        };
        (base, CStr::from_ptr((base.GetVersionString)()).to_string_lossy().into_owned())
    };
    // ONNX Runtime writes to stderr when asked for an API version that it lacks, so the version is checked first.
    let minor: u32 = version.split('.').nth(1).and_then(|minor| minor.parse().ok()).unwrap_or(0);
    // SAFETY: the function accepts any number and returns null for unknown ones.
    if minor < ort::MINOR_VERSION || unsafe { (base.GetApi)(ort::MINOR_VERSION) }.is_null() {
        return Err(LibraryError::TooOld { path: path.to_owned(), origin, version });
    }
    Ok(Library { path: path.to_owned(), version, origin, _handle: handle })
}

/// Disables ONNX Runtime's telemetry for this process, unless `ORT_DISABLE_TELEMETRY` is already set, to whatever
/// value.
///
/// From 1.29 on, Microsoft's Linux builds upload model names, devices and run times, store a device id below the home
/// folder and write to `/tmp`. Only the environment variable stops that in time: `DisableTelemetryEvents` needs an ONNX
/// Runtime environment, and creating one starts the telemetry. Every engine calls this before it loads the library. A
/// program in which C code in another thread may read the environment at that moment must call it first in `main`, as
/// `runtime`, `exporter` and `trainer` do.
#[allow(unsafe_code, reason = "only an environment variable can disable telemetry before ONNX Runtime starts")]
pub fn disable_telemetry() {
    if env::var_os(TELEMETRY).is_none() {
        // SAFETY: Rust synchronizes its own accesses to the environment. C code in another thread might read it
        // concurrently; programs prevent that by calling this before they start threads.
        unsafe { env::set_var(TELEMETRY, "1") };
    }
}

/// Whether ONNX Runtime's telemetry is enabled: `ORT_DISABLE_TELEMETRY` is set to a value that does not disable it.
pub fn has_telemetry() -> bool {
    // The values that ONNX Runtime 1.30 accepts.
    const DISABLING: [&str; 5] = ["1", "true", "yes", "y", "on"];
    env::var(TELEMETRY).is_ok_and(|value| !DISABLING.contains(&value.trim().to_ascii_lowercase().as_str()))
}

/// ONNX Runtime, loaded and started.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// The library.
    pub(crate) library: Library,
    /// The environment of all sessions.
    pub(crate) environment: Environment,
}

/// The only ONNX Runtime of this process: a process cannot load another one, even after dropping the first.
static LOADED: Mutex<Option<&'static Loaded>> = Mutex::new(None);

/// Loads ONNX Runtime as [`find`] finds it; later calls return the same one.
///
/// # Errors
/// Those of [`find`], and when `file` is not the library that an earlier call loaded.
pub(crate) fn load(file: Option<&Path>) -> Result<&'static Loaded, LibraryError> {
    let mut slot = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(loaded) = *slot {
        let path = &loaded.library.path;
        return match file.filter(|requested| !same_file(requested, path)) {
            Some(requested) => {
                Err(LibraryError::AlreadyLoaded { requested: requested.to_owned(), loaded: path.clone() })
            }
            None => Ok(loaded),
        };
    }
    disable_telemetry();
    let library = find(file)?;
    let start_error = |reason: String| LibraryError::Start { path: library.path.clone(), reason };
    let builder = ort::init_from(&library.path).map_err(|error| start_error(error.to_string()))?;
    let mut threads = GlobalThreadPoolOptions::default();
    if let Some(cores) = machine::quota() {
        // ONNX Runtime would start a thread per CPU: <https://github.com/microsoft/onnxruntime/issues/29510>
        threads = threads.with_intra_threads(cores).map_err(|error| start_error(error.to_string()))?;
    }
    let environment = builder
        .with_name("retinanet")
        .with_telemetry(has_telemetry())
        .with_logger(Arc::new(log))
        // One thread per core or as many as the quota allows, shared by all sessions that do not have their own.
        .with_global_thread_pool(threads)
        .build()
        .map_err(|error| start_error(error.to_string()))?;
    environment.set_log_level(log_level());
    Ok(slot.insert(Box::leak(Box::new(Loaded { library, environment }))))
}

/// The level of ONNX Runtime's log that the subscriber of the crate `tracing` wants.
fn log_level() -> LogLevel {
    match () {
        () if tracing::enabled!(target: LOG, Level::TRACE) => LogLevel::Verbose,
        () if tracing::enabled!(target: LOG, Level::DEBUG) => LogLevel::Info,
        () if tracing::enabled!(target: LOG, Level::WARN) => LogLevel::Warning,
        () if tracing::enabled!(target: LOG, Level::ERROR) => LogLevel::Error,
        // Failures are also returned as errors.
        () => LogLevel::Fatal,
    }
}

/// Passes a line of ONNX Runtime's log on to the crate `tracing`.
fn log(level: LogLevel, _category: &str, _id: &str, location: &str, message: &str) {
    match level {
        LogLevel::Verbose => tracing::trace!(target: LOG, location, "{message}"),
        LogLevel::Info => tracing::debug!(target: LOG, location, "{message}"),
        LogLevel::Warning => tracing::warn!(target: LOG, location, "{message}"),
        LogLevel::Error | LogLevel::Fatal => tracing::error!(target: LOG, location, "{message}"),
    }
}

impl Library {
    /// Loads CUDA and cuDNN from where `make setup CUDA=1` and Python's wheels install them: `../../nvidia` from the
    /// library's folder, which the system's loader does not search. Missing libraries are not an error here: ONNX
    /// Runtime searches the system's library path, and reports what is missing.
    pub(crate) fn preload_cuda(&self) {
        let wheels = self.path.parent().unwrap_or(&self.path).join("../../nvidia");
        for (folder, names) in [("cu13/lib", ep::cuda::CUDA_DYLIBS), ("cudnn/lib", ep::cuda::CUDNN_DYLIBS)] {
            for name in names {
                let _ = ort::util::preload_dylib(wheels.join(folder).join(name));
            }
        }
    }

    /// As [`Library::preload_cuda`], for TensorRT, which Python's wheel installs in `../../tensorrt_libs`.
    pub(crate) fn preload_tensorrt(&self) {
        let wheel = self.path.parent().unwrap_or(&self.path).join("../../tensorrt_libs");
        for name in ["libnvinfer.so.10", "libnvonnxparser.so.10"] {
            let _ = ort::util::preload_dylib(wheel.join(name));
        }
    }
}

/// Loads a library from the system's library path for the rest of the process; the error ends with `remedy`.
pub(crate) fn require(name: &str, remedy: &str) -> Result<(), String> {
    #[allow(unsafe_code, reason = "the compiler cannot check loading a library")]
    // SAFETY: loading NVIDIA's libraries has no preconditions.
    let library = unsafe { libloading::Library::new(name) };
    // CUDA's libraries must not be unloaded once initialized.
    library.map(std::mem::forget).map_err(|_| format!("cannot find {name}; {remedy}"))
}

fn same_file(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_file_is_an_error_that_names_it() {
        let error = find(Some(Path::new("/nonexistent/libonnxruntime.so"))).unwrap_err();
        assert!(matches!(error, LibraryError::Load { origin: Origin::Option, .. }));
        let text = error.to_string();
        assert!(text.contains("/nonexistent/libonnxruntime.so") && text.contains("make setup"), "{text}");
    }

    #[test]
    fn folder_is_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let error = find(Some(folder.path())).unwrap_err();
        assert!(error.to_string().contains("it is a folder"), "{error}");
    }

    #[test]
    fn file_that_is_not_a_library_is_an_error_of_the_loader() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "not a library").unwrap();
        let error = find(Some(file.path())).unwrap_err();
        assert!(matches!(error, LibraryError::Load { .. }), "{error}");
        assert!(error.to_string().contains(&file.path().display().to_string()));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn missing_required_library_is_named_with_its_remedy() {
        assert_eq!(require("libc.so.6", "install libc"), Ok(()));
        let reason = require("libmissing.so.9", "install it").unwrap_err();
        assert_eq!(reason, "cannot find libmissing.so.9; install it");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn other_libraries_are_not_onnx_runtime() {
        // Every Linux program that links the C library has loaded it.
        let error = examine(Path::new("libc.so.6"), Origin::Search).unwrap_err();
        assert!(matches!(error, LibraryError::NotOnnxRuntime { .. }), "{error}");
    }
}
