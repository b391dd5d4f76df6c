//! Failures of libtorch as errors. tch panics where libtorch fails, as when memory runs out; one catch around a step makes errors of
//! these, so that no call within the network has to return a result.

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

/// What libtorch could not do, in its words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TorchError {
    words: String,
}

impl fmt::Display for TorchError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.words)
    }
}

impl std::error::Error for TorchError {}

thread_local! {
    /// Whether this thread is in [`catch`].
    static CATCHING: Cell<bool> = const { Cell::new(false) };
}

/// What `work` returns, or why libtorch failed in it. What `work` changes may then be half changed.
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
            // What becomes an error is not printed as a panic.
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

impl TorchError {
    /// The error that a panic of tch carries, which is `Result::unwrap` on its `TchError::Torch`.
    fn of(panic: &(dyn Any + Send)) -> Option<Self> {
        let (_, words) = panic.downcast_ref::<String>()?.split_once("Torch(\"")?;
        let words = words.replace("\\n", "\n").replace("\\\"", "\"");
        // Behind that, libtorch says where in its source that was.
        let end = ["\nException raised from", "\nframe #0"].iter().filter_map(|place| words.find(place)).min();
        let words = &words[..end.unwrap_or(words.len())];
        let words = words.strip_suffix("\")").unwrap_or(words);
        // Of memory of the CPU it also says where before that.
        let words = words.rsplit_once("DefaultCPUAllocator: ").map_or(words, |(_, words)| words);
        Some(Self { words: words.split_whitespace().collect::<Vec<_>>().join(" ") })
    }

    /// Whether there was not enough memory.
    pub fn is_of_memory(&self) -> bool {
        // CUDA's allocator, cuDNN and cuBLAS, the CPU's allocator, C++.
        const WORDS: [&str; 5] =
            ["out of memory", "STATUS_ALLOC_FAILED", "not enough memory", "can't allocate memory", "bad_alloc"];
        WORDS.iter().any(|words| self.words.contains(words))
    }
}

#[cfg(test)]
mod tests {
    use tch::Tensor;

    use super::*;

    #[test]
    fn a_failure_of_libtorch_is_an_error_in_its_words() {
        assert_eq!(catch(|| 3), Ok(3));
        let error = catch(|| Tensor::from_slice(&[1, 2, 3]) + Tensor::from_slice(&[1, 2])).unwrap_err();
        assert!(error.to_string().contains("must match the size") && !error.is_of_memory(), "{error}");
        assert!(!error.to_string().contains("Exception raised"), "{error}");
    }

    #[test]
    fn memory_that_is_not_there_is_told_with_what_was_asked_for() {
        let error = catch(|| Tensor::zeros([1 << 50], (tch::Kind::Float, tch::Device::Cpu))).unwrap_err();
        assert!(error.is_of_memory(), "{error}");
        assert!(error.to_string().contains("tried to allocate 4503599627370496 bytes"), "{error}");
        assert!(!error.to_string().contains("frame #"), "{error}");
        // As CUDA's allocator says it.
        let cuda = "called `Result::unwrap()` on an `Err` value: Torch(\"CUDA out of memory. Tried to allocate 20.00 MiB. \
                    GPU 0 has a total capacity of 79.10 GiB.\\nException raised from malloc at a.cpp:1\")";
        let error = TorchError::of(&cuda.to_owned()).unwrap();
        assert!(error.is_of_memory());
        assert!(error.to_string().ends_with("Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 GiB."));
    }

    #[test]
    fn other_panics_go_on() {
        let panic = panic::catch_unwind(|| catch(|| panic!("another"))).unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"another"));
    }
}
