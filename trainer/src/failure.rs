//! Errors of libtorch. tch panics when libtorch fails, for example when memory runs out. [`catch`] around a whole step
//! converts these panics to errors, so that calls within the network need not return results.

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

/// An error of libtorch, with libtorch's message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TorchError {
    message: String,
}

impl fmt::Display for TorchError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for TorchError {}

thread_local! {
    /// Whether this thread is in [`catch`].
    static CATCHING: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` and converts failures of libtorch to errors. After an error, values that `work` modifies may be partly
/// modified.
///
/// # Errors
/// When a call of libtorch fails.
///
/// # Panics
/// When `work` panics for another reason.
pub fn catch<T>(work: impl FnOnce() -> T) -> Result<T, TorchError> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let print = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            // A panic that becomes an error is not printed.
            if !CATCHING.get() || TorchError::of(panic.payload()).is_none() {
                print(panic);
            }
        }));
    });
    let outer = CATCHING.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    CATCHING.set(outer);
    result.map_err(|panic| match TorchError::of(&*panic) {
        Some(error) => error,
        None => panic::resume_unwind(panic),
    })
}

/// Fails like a call of libtorch, for operations within the network.
///
/// # Panics
/// Always; [`catch`] converts it to an error.
pub(crate) fn fail(error: &dyn fmt::Display) -> ! {
    panic::panic_any(TorchError { message: error.to_string() })
}

impl TorchError {
    /// The error in a panic of [`fail`] or of tch, which comes from `Result::unwrap` on `TchError::Torch`; none for other
    /// panics.
    fn of(panic: &(dyn Any + Send)) -> Option<Self> {
        if let Some(error) = panic.downcast_ref::<Self>() {
            return Some(error.clone());
        }
        let (_, message) = panic.downcast_ref::<String>()?.split_once("Torch(\"")?;
        let message = message.replace("\\n", "\n").replace("\\\"", "\"");
        // The message ends where libtorch's source location and stack trace begin.
        let end = ["\nException raised from", "\nframe #0"].iter().filter_map(|start| message.find(start)).min();
        let message = &message[..end.unwrap_or(message.len())];
        let message = message.strip_suffix("\")").unwrap_or(message);
        // Errors of the CPU's allocator begin with a source location.
        let message = message.rsplit_once("DefaultCPUAllocator: ").map_or(message, |(_, message)| message);
        Some(Self { message: message.split_whitespace().collect::<Vec<_>>().join(" ") })
    }

    /// Whether memory ran out.
    pub fn is_out_of_memory(&self) -> bool {
        // CUDA's allocator, cuDNN and cuBLAS, the CPU's allocator, C++.
        const PHRASES: [&str; 5] =
            ["out of memory", "STATUS_ALLOC_FAILED", "not enough memory", "can't allocate memory", "bad_alloc"];
        PHRASES.iter().any(|phrase| self.message.contains(phrase))
    }
}

#[cfg(test)]
mod tests {
    use tch::Tensor;

    use super::*;

    #[test]
    fn failure_of_libtorch_is_an_error_with_its_message() {
        assert_eq!(catch(|| 3), Ok(3));
        let error = catch(|| Tensor::from_slice(&[1, 2, 3]) + Tensor::from_slice(&[1, 2])).unwrap_err();
        assert!(error.to_string().contains("must match the size") && !error.is_out_of_memory(), "{error}");
        assert!(!error.to_string().contains("Exception raised"), "{error}");
    }

    #[test]
    fn out_of_memory_error_contains_the_requested_size() {
        let error = catch(|| Tensor::zeros([1 << 50], (tch::Kind::Float, tch::Device::Cpu))).unwrap_err();
        assert!(error.is_out_of_memory(), "{error}");
        assert!(error.to_string().contains("tried to allocate 4503599627370496 bytes"), "{error}");
        assert!(!error.to_string().contains("frame #"), "{error}");
        // Message of CUDA's allocator.
        let cuda = "called `Result::unwrap()` on an `Err` value: Torch(\"CUDA out of memory. Tried to allocate 20.00 MiB. \
                    GPU 0 has a total capacity of 79.10 GiB.\\nException raised from malloc at a.cpp:1\")";
        let error = TorchError::of(&cuda.to_owned()).unwrap();
        assert!(error.is_out_of_memory());
        assert!(error.to_string().ends_with("Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 GiB."));
    }

    #[test]
    fn other_panics_are_not_caught() {
        let panic = panic::catch_unwind(|| catch(|| panic!("another"))).unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"another"));
    }
}
