//! Where ONNX Runtime is. Places are searched in a fixed order, and what is found is examined before `ort` gets it,
//! because `ort` hangs or aborts on a library that is missing or too old (<https://github.com/pykeio/ort/issues/560>).

use std::env;
use std::error::Error;
use std::ffi::{CStr, OsStr};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ort::environment::{Environment, GlobalThreadPoolOptions};
use ort::ep;
use ort::logging::LogLevel;

/// The variable that names the library's file, as `ort` and others know it.
const VARIABLE: &str = "ORT_DYLIB_PATH";

/// The variable that turns ONNX Runtime's telemetry off. <https://github.com/microsoft/onnxruntime/pull/29843>
const TELEMETRY: &str = "ORT_DISABLE_TELEMETRY";

/// Where `make setup` puts the library, from the checkout's root.
const CHECKOUT: &str = ".deps/onnxruntime/lib";

/// What to do about a missing library.
const REMEDY: &str =
    "run `make setup`, or unpack pip's `onnxruntime` wheel and set ORT_DYLIB_PATH to its capi/libonnxruntime.so.*";

/// A library that exports ONNX Runtime in a version that this program can use.
#[derive(Debug)]
pub struct Library {
    /// The file; a bare name when the system's loader found it.
    pub path: PathBuf,
    /// Its version, such as `1.30.0`.
    pub version: String,
    /// Who named it.
    pub origin: Origin,
    /// Keeps the library in memory, so that `ort` gets the very one that was examined.
    _handle: libloading::Library,
}

/// Who named a library's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The caller: an option of the program.
    Option,
    /// The variable `ORT_DYLIB_PATH`.
    Variable,
    /// The search.
    Search,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Origin::Option => "named by --onnxruntime",
            Origin::Variable => "named by ORT_DYLIB_PATH",
            Origin::Search => "found by search",
        })
    }
}

/// Why there is no ONNX Runtime.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// No place has one.
    #[error("ONNX Runtime is not found; looked {}; {REMEDY}", .looked.join(", "))]
    NotFound {
        /// The places, in order.
        looked: Vec<String>,
    },
    /// A named file is not there. The search does not go on: a wrong name is a mistake to mend.
    #[error("ONNX Runtime is not at `{}`, {origin}: {reason}; name the file of the library, or {REMEDY}", .path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// Who named it.
        origin: Origin,
        /// What is there instead.
        reason: &'static str,
    },
    /// The system's loader refuses the file.
    #[error("ONNX Runtime at `{}`, {origin}, cannot be loaded: {reason}; {REMEDY}", .path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// Who named it.
        origin: Origin,
        /// The loader's words.
        reason: String,
    },
    /// A library, but not ONNX Runtime.
    #[error("`{}`, {origin}, is not ONNX Runtime: it exports no OrtGetApiBase; {REMEDY}", .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Who named it.
        origin: Origin,
    },
    /// ONNX Runtime, in a version from before the interface that this program uses.
    #[error("ONNX Runtime at `{}`, {origin}, is version {version}, needed is 1.{} or newer; {REMEDY}", .path.display(), ort::MINOR_VERSION)]
    TooOld {
        /// The file.
        path: PathBuf,
        /// Who named it.
        origin: Origin,
        /// Its version.
        version: String,
    },
    /// The process runs another ONNX Runtime already, and can have only one.
    #[error("ONNX Runtime at `{}` is asked for, but this process has loaded `{}`, and can load only one", .asked.display(), .loaded.display())]
    Second {
        /// The file asked for.
        asked: PathBuf,
        /// The file in use.
        loaded: PathBuf,
    },
    /// ONNX Runtime itself does not start.
    #[error("ONNX Runtime at `{}` does not start: {reason}", .path.display())]
    Start {
        /// The file.
        path: PathBuf,
        /// ONNX Runtime's words.
        reason: String,
    },
}

/// Finds ONNX Runtime: `file` if given, else the file that `ORT_DYLIB_PATH` names, else beside the executable, else
/// `.deps/onnxruntime/lib` in a folder above the executable, else where the system's loader looks. The current folder is not
/// searched: whoever can write there would choose the code that runs.
///
/// # Errors
/// When no place has it, and when the first place that has it holds something unusable.
pub fn find(file: Option<&Path>) -> Result<Library, LibraryError> {
    if let Some(path) = file {
        return named(path, Origin::Option);
    }
    if let Some(path) = env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
        return named(Path::new(&path), Origin::Variable);
    }

    let name = format!("{}onnxruntime{}", env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX);
    let mut looked = Vec::new();
    let beside = env::current_exe().ok().and_then(|program| program.parent().map(Path::to_owned));
    if let Some(folder) = &beside {
        let path = folder.join(&name);
        if path.exists() {
            return examine(&path, Origin::Search);
        }
        looked.push(format!("for {name} in {}", folder.display()));
    }
    if let Some(root) = &beside {
        for folder in root.ancestors() {
            let path = folder.join(CHECKOUT).join(&name);
            if path.exists() {
                return examine(&path, Origin::Search);
            }
        }
        looked.push(format!("for {CHECKOUT}/{name} in {} and above", root.display()));
    }
    // Runtime packages of distributions have the second name only.
    for name in [name.clone(), format!("{name}.1")] {
        match examine(Path::new(&name), Origin::Search) {
            Err(LibraryError::Load { .. }) => {}
            other => return other,
        }
    }
    looked.push("in the system's library folders".to_owned());
    Err(LibraryError::NotFound { looked })
}

/// A file that someone named: it must be one.
fn named(path: &Path, origin: Origin) -> Result<Library, LibraryError> {
    // `ort` resolves relative paths against the executable's folder first; people mean the current one.
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match path.metadata() {
        Err(_) => Err(LibraryError::Missing { path, origin, reason: "there is nothing" }),
        Ok(metadata) if metadata.is_dir() => Err(LibraryError::Missing { path, origin, reason: "that is a folder" }),
        Ok(_) => examine(&path, origin),
    }
}

/// Loads the library and asks for its version.
#[allow(unsafe_code, reason = "loading a library and calling what it exports is beyond what the compiler can check")]
fn examine(path: &Path, origin: Origin) -> Result<Library, LibraryError> {
    type GetApiBase = unsafe extern "C" fn() -> *const ort::sys::OrtApiBase;

    // SAFETY: initializers of ONNX Runtime have no preconditions; that of anything else is the risk of naming it.
    let handle = unsafe { libloading::Library::new(path) }.map_err(|error| LibraryError::Load {
        path: path.to_owned(),
        origin,
        reason: error.source().map_or_else(|| error.to_string(), |source| source.to_string()),
    })?;
    // SAFETY: the symbol has this type in every release of ONNX Runtime, and the base that it returns is static.
    let (base, version) = unsafe {
        let Ok(get_api_base) = handle.get::<GetApiBase>(b"OrtGetApiBase\0") else {
            return Err(LibraryError::Foreign { path: path.to_owned(), origin });
        };
        let Some(base) = get_api_base().as_ref() else {
            return Err(LibraryError::Foreign { path: path.to_owned(), origin });
        };
        (base, CStr::from_ptr((base.GetVersionString)()).to_string_lossy().into_owned())
    };
    // Asking for an interface that it lacks makes ONNX Runtime write to stderr, so the version is looked at first.
    let minor: u32 = version.split('.').nth(1).and_then(|minor| minor.parse().ok()).unwrap_or(0);
    // SAFETY: the function takes any number and answers null for those that it does not know.
    if minor < ort::MINOR_VERSION || unsafe { (base.GetApi)(ort::MINOR_VERSION) }.is_null() {
        return Err(LibraryError::TooOld { path: path.to_owned(), origin, version });
    }
    Ok(Library { path: path.to_owned(), version, origin, _handle: handle })
}

/// Turns ONNX Runtime's telemetry off for this process, unless `ORT_DISABLE_TELEMETRY` is set already, to whatever value.
///
/// Microsoft's Linux builds from 1.29 on upload models' names, devices and run times, keep a device id below the home folder and
/// write to `/tmp`. Only the environment stops that in time: `DisableTelemetryEvents` wants an environment of ONNX Runtime, and
/// making one has started it. Every engine calls this before it loads the library. A program in which C code in another thread
/// may read the environment at that moment calls it first thing in `main`, as `runtime`, `exporter` and `trainer` do.
#[allow(unsafe_code, reason = "the environment is the only place where ONNX Runtime looks before it begins")]
pub fn disable_telemetry() {
    if env::var_os(TELEMETRY).is_none() {
        // SAFETY: Rust's readers and writers of the environment wait for each other. C code in another thread might read it
        // meanwhile; a program prevents that by calling this before it starts threads.
        unsafe { env::set_var(TELEMETRY, "1") };
    }
}

/// Whether ONNX Runtime's telemetry is on: `ORT_DISABLE_TELEMETRY` is set to something that does not disable it.
pub fn has_telemetry() -> bool {
    // As ONNX Runtime 1.30 reads it.
    const DISABLING: [&str; 5] = ["1", "true", "yes", "y", "on"];
    env::var(TELEMETRY).is_ok_and(|value| !DISABLING.contains(&value.trim().to_ascii_lowercase().as_str()))
}

/// ONNX Runtime at work.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// Where it came from.
    pub(crate) library: Library,
    /// What sessions are made in.
    pub(crate) environment: Environment,
}

/// The one ONNX Runtime of this process, which allows no second, not even after the first is gone.
static LOADED: Mutex<Option<&'static Loaded>> = Mutex::new(None);

/// ONNX Runtime from the library that [`find`] finds; the same one for every later call.
///
/// # Errors
/// Those of [`find`], and when `file` is not the library that an earlier call loaded.
pub(crate) fn load(file: Option<&Path>) -> Result<&'static Loaded, LibraryError> {
    let mut slot = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(loaded) = *slot {
        let path = &loaded.library.path;
        return match file.filter(|asked| !same_file(asked, path)) {
            Some(asked) => Err(LibraryError::Second { asked: asked.to_owned(), loaded: path.clone() }),
            None => Ok(loaded),
        };
    }
    disable_telemetry();
    let library = find(file)?;
    let start_error = |reason: String| LibraryError::Start { path: library.path.clone(), reason };
    let builder = ort::init_from(&library.path).map_err(|error| start_error(error.to_string()))?;
    let threads = GlobalThreadPoolOptions::default();
    let environment = builder
        .with_name("retinanet")
        .with_telemetry(has_telemetry())
        // All sessions share these threads, one per core, unless they ask for their own.
        .with_global_thread_pool(threads)
        .build()
        .map_err(|error| start_error(error.to_string()))?;
    // Failures come back as errors too; ONNX Runtime's own lines only help those who ask for them.
    if env::var_os("ORT_LOG").is_none() {
        environment.set_log_level(LogLevel::Fatal);
    }
    Ok(slot.insert(Box::leak(Box::new(Loaded { library, environment }))))
}

impl Library {
    /// Loads CUDA and cuDNN from where `make setup CUDA=1` and Python's wheels put them: `../../nvidia` from the library's
    /// folder. The system's loader does not look there. What is not there may still be elsewhere: ONNX Runtime looks
    /// itself, and says what it misses.
    pub(crate) fn preload_cuda(&self) {
        let wheels = self.path.parent().unwrap_or(&self.path).join("../../nvidia");
        for (folder, names) in [("cu13/lib", ep::cuda::CUDA_DYLIBS), ("cudnn/lib", ep::cuda::CUDNN_DYLIBS)] {
            for name in names {
                let _ = ort::util::preload_dylib(wheels.join(folder).join(name));
            }
        }
    }

    /// Loads TensorRT from where Python's wheel puts it, `../../tensorrt_libs`, as [`Library::preload_cuda`] does with CUDA.
    pub(crate) fn preload_tensorrt(&self) {
        let wheel = self.path.parent().unwrap_or(&self.path).join("../../tensorrt_libs");
        for name in ["libnvinfer.so.10", "libnvonnxparser.so.10"] {
            let _ = ort::util::preload_dylib(wheel.join(name));
        }
    }
}

/// That the system's loader finds a library, which stays loaded.
pub(crate) fn demand(name: &str, remedy: &str) -> Result<(), String> {
    #[allow(unsafe_code, reason = "loading a library is beyond what the compiler can check")]
    // SAFETY: NVIDIA's libraries have no preconditions to be loaded.
    let library = unsafe { libloading::Library::new(name) };
    // What has begun must not be unloaded.
    library.map(std::mem::forget).map_err(|_| format!("{name} is not found; it needs {remedy}"))
}

fn same_file(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => AsRef::<OsStr>::as_ref(a) == AsRef::<OsStr>::as_ref(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_file_that_is_missing_is_an_error_that_names_it() {
        let error = find(Some(Path::new("/nonexistent/libonnxruntime.so"))).unwrap_err();
        assert!(matches!(error, LibraryError::Missing { origin: Origin::Option, .. }));
        let text = error.to_string();
        assert!(text.contains("/nonexistent/libonnxruntime.so") && text.contains("make setup"), "{text}");
    }

    #[test]
    fn a_named_folder_is_not_a_library() {
        let folder = tempfile::tempdir().unwrap();
        let error = find(Some(folder.path())).unwrap_err();
        assert!(matches!(error, LibraryError::Missing { reason: "that is a folder", .. }), "{error}");
    }

    #[test]
    fn a_file_that_is_no_library_is_refused_with_the_loaders_words() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "not a library").unwrap();
        let error = find(Some(file.path())).unwrap_err();
        assert!(matches!(error, LibraryError::Load { .. }), "{error}");
        assert!(error.to_string().contains(&file.path().display().to_string()));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_library_that_is_demanded_and_missing_is_named_with_what_brings_it() {
        assert_eq!(demand("libc.so.6", "libc"), Ok(()));
        let reason = demand("libnowhere.so.9", "what is nowhere").unwrap_err();
        assert_eq!(reason, "libnowhere.so.9 is not found; it needs what is nowhere");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn another_library_is_not_onnx_runtime() {
        // Every Linux program that links the C library has it in memory.
        let error = examine(Path::new("libc.so.6"), Origin::Search).unwrap_err();
        assert!(matches!(error, LibraryError::Foreign { .. }), "{error}");
    }
}
