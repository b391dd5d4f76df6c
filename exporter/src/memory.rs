//! Allocator settings for exporting.

/// Freed blocks of at least this many bytes are returned to the system.
const THRESHOLD: i32 = 1 << 20;

/// Stops glibc from raising this threshold to up to 32 MB, which it does when large blocks are freed. ONNX Runtime
/// copies all weights twice when it loads a file: with ResNet-50, peak memory falls from 2.9 to 2.4 times the size of
/// the weights.
pub(crate) fn return_large_blocks() {
    #[cfg(target_env = "gnu")]
    #[allow(unsafe_code, reason = "a setting of the C library that a running program can only change with mallopt")]
    // SAFETY: `mallopt` takes two numbers and does not access this program's memory. If it fails, it changes nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, THRESHOLD);
    }
}
