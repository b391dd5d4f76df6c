//! The shim in `shim/c10d.cpp`. All unsafe code of this crate is here.

use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr::{null, null_mut};
use std::time::Duration;

use tch::Tensor;

/// A group of the shim.
#[repr(C)]
struct Group {
    _private: [u8; 0],
}

unsafe extern "C" {
    fn c10d_connect(
        group: *mut *mut Group,
        host: *const c_char,
        port: u16,
        listener: i32,
        timeout_ms: i64,
        prefix: *const c_char,
        error: *mut *mut c_char,
    ) -> bool;
    fn c10d_free(group: *mut Group);
    fn c10d_claim(
        group: *mut Group,
        key: *const c_char,
        value: *const c_char,
        found: *mut *mut c_char,
        error: *mut *mut c_char,
    ) -> bool;
    fn c10d_set(group: *mut Group, key: *const c_char, value: *const c_char, error: *mut *mut c_char) -> bool;
    fn c10d_has(group: *mut Group, key: *const c_char, has: *mut bool, error: *mut *mut c_char) -> bool;
    fn c10d_get(
        group: *mut Group,
        key: *const c_char,
        timeout_ms: i64,
        found: *mut *mut c_char,
        error: *mut *mut c_char,
    ) -> bool;
    fn c10d_open(group: *mut Group, rank: i32, size: i32, interface: *const c_char, error: *mut *mut c_char) -> bool;
    fn c10d_all_reduce_sum(group: *mut Group, tensor: *mut c_void, waits: bool, error: *mut *mut c_char) -> bool;
    fn c10d_differentiable_sum(
        group: *mut Group,
        tensor: *const c_void,
        total: *mut *mut c_void,
        error: *mut *mut c_char,
    ) -> bool;
    fn c10d_broadcast(group: *mut Group, tensor: *mut c_void, root: i32, error: *mut *mut c_char) -> bool;
    fn c10d_all_gather(group: *mut Group, all: *mut c_void, one: *mut c_void, error: *mut *mut c_char) -> bool;
    fn c10d_barrier(group: *mut Group, error: *mut *mut c_char) -> bool;
    fn free(memory: *mut c_void);
}

/// A connection to the store and, once [open](Shim::open), to the other ranks. Errors are the messages of C++ exceptions.
///
/// A collective may be called by one thread at a time, the functions of the store by any.
#[derive(Debug)]
pub(crate) struct Shim(*mut Group);

// SAFETY: c10d's store locks its connection, and its process groups are not bound to a thread.
unsafe impl Send for Shim {}
// SAFETY: as above.
unsafe impl Sync for Shim {}

impl Drop for Shim {
    fn drop(&mut self) {
        // SAFETY: the pointer is that of `connect`, and nothing uses it any more.
        unsafe { c10d_free(self.0) }
    }
}

impl Shim {
    /// Connects to the store at `host`. With the file descriptor of a listening socket, which it takes over, this process
    /// serves the store there.
    pub(crate) fn connect(
        host: &str,
        port: u16,
        listener: Option<i32>,
        timeout: Duration,
        prefix: &str,
    ) -> Result<Self, String> {
        let (host, prefix, listener) = (text(host)?, text(prefix)?, listener.unwrap_or(-1));
        let mut group = null_mut();
        let timeout = milliseconds(timeout);
        // SAFETY: all pointers are valid during the call.
        check(|error| unsafe {
            c10d_connect(&mut group, host.as_ptr(), port, listener, timeout, prefix.as_ptr(), error)
        })?;
        Ok(Self(group))
    }

    /// Sets a key of the store unless it has a value. Returns the value that it has then.
    pub(crate) fn claim(&self, key: &str, value: &str) -> Result<String, String> {
        let (key, value) = (text(key)?, text(value)?);
        // SAFETY: all pointers are valid during the call.
        found(|found, error| unsafe { c10d_claim(self.0, key.as_ptr(), value.as_ptr(), found, error) })
    }

    /// Sets a key of the store.
    pub(crate) fn set(&self, key: &str, value: &str) -> Result<(), String> {
        let (key, value) = (text(key)?, text(value)?);
        // SAFETY: all pointers are valid during the call.
        check(|error| unsafe { c10d_set(self.0, key.as_ptr(), value.as_ptr(), error) })
    }

    /// Whether a key of the store has a value.
    pub(crate) fn has(&self, key: &str) -> Result<bool, String> {
        let (key, mut has) = (text(key)?, false);
        // SAFETY: all pointers are valid during the call.
        check(|error| unsafe { c10d_has(self.0, key.as_ptr(), &mut has, error) })?;
        Ok(has)
    }

    /// The value of a key of the store, once it has one.
    pub(crate) fn get(&self, key: &str, timeout: Duration) -> Result<String, String> {
        let key = text(key)?;
        // SAFETY: all pointers are valid during the call.
        found(|found, error| unsafe { c10d_get(self.0, key.as_ptr(), milliseconds(timeout), found, error) })
    }

    /// Connects the ranks with each other, through the network interface with this address.
    pub(crate) fn open(&self, rank: usize, size: usize, interface: Option<&str>) -> Result<(), String> {
        let number = |number: usize| i32::try_from(number).map_err(|_| format!("{number} is too large"));
        let (rank, size, interface) = (number(rank)?, number(size)?, interface.map(text).transpose()?);
        let interface = interface.as_ref().map_or(null(), |interface| interface.as_ptr());
        // SAFETY: all pointers are valid during the call.
        check(|error| unsafe { c10d_open(self.0, rank, size, interface, error) })
    }

    pub(crate) fn all_reduce_sum(&self, tensor: &mut Tensor, waits: bool) -> Result<(), String> {
        // SAFETY: a tensor's pointer is an `at::Tensor*`.
        check(|error| unsafe { c10d_all_reduce_sum(self.0, tensor.as_mut_ptr().cast(), waits, error) })
    }

    /// The group must exist until the backward pass is over.
    pub(crate) fn differentiable_sum(&self, tensor: &Tensor) -> Result<Tensor, String> {
        let mut total = null_mut();
        // SAFETY: a tensor's pointer is an `at::Tensor*`.
        check(|error| unsafe { c10d_differentiable_sum(self.0, tensor.as_ptr().cast(), &mut total, error) })?;
        // SAFETY: `total` is a new `at::Tensor*`, which the tensor owns from now on.
        Ok(unsafe { Tensor::from_ptr(total.cast()) })
    }

    pub(crate) fn broadcast(&self, tensor: &mut Tensor, root: usize) -> Result<(), String> {
        let root = i32::try_from(root).map_err(|_| format!("{root} is too large"))?;
        // SAFETY: a tensor's pointer is an `at::Tensor*`.
        check(|error| unsafe { c10d_broadcast(self.0, tensor.as_mut_ptr().cast(), root, error) })
    }

    /// Both are flat; `all` has as many elements as the tensors `one` of all ranks.
    pub(crate) fn all_gather(&self, all: &mut Tensor, one: &mut Tensor) -> Result<(), String> {
        // SAFETY: a tensor's pointer is an `at::Tensor*`.
        check(|error| unsafe { c10d_all_gather(self.0, all.as_mut_ptr().cast(), one.as_mut_ptr().cast(), error) })
    }

    pub(crate) fn barrier(&self) -> Result<(), String> {
        // SAFETY: all pointers are valid during the call.
        check(|error| unsafe { c10d_barrier(self.0, error) })
    }
}

fn text(text: &str) -> Result<CString, String> {
    CString::new(text).map_err(|_| format!("`{}` contains a zero byte", text.escape_default()))
}

fn milliseconds(duration: Duration) -> i64 {
    // Zero would mean no time-out.
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX).max(1)
}

/// Calls a function that writes a message if it fails.
fn check(call: impl FnOnce(*mut *mut c_char) -> bool) -> Result<(), String> {
    let mut error = null_mut();
    if call(&mut error) {
        return Ok(());
    }
    // Messages of libtorch may go on with C++ stack frames.
    let message = owned(error);
    let end = ["\nException raised from", "\nframe #"].iter().filter_map(|start| message.find(start)).min();
    let message = &message[..end.unwrap_or(message.len())];
    Err(message.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Calls a function that writes a text if it succeeds, else a message.
fn found(call: impl FnOnce(*mut *mut c_char, *mut *mut c_char) -> bool) -> Result<String, String> {
    let mut found = null_mut();
    check(|error| call(&mut found, error))?;
    Ok(owned(found))
}

/// A text that the shim has allocated.
fn owned(text: *mut c_char) -> String {
    if text.is_null() {
        return "out of memory".to_owned();
    }
    // SAFETY: the shim's texts come from `strdup`: they end with a zero byte and belong to the caller.
    unsafe {
        let owned = CStr::from_ptr(text).to_string_lossy().into_owned();
        free(text.cast());
        owned
    }
}
