//! Request bodies: received within limits of bytes, memory and time.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::{Body, Bytes};
use runtime::protocol::RequestError;
use tokio::time::timeout;

/// Memory that a body gets at first; it doubles as bytes arrive, so that a client cannot take memory by declaring a length.
const FIRST_STEP: usize = 1 << 14;

/// The memory that all request bodies may take together.
#[derive(Debug)]
pub(super) struct UploadMemory {
    total: u64,
    taken: AtomicU64,
}

/// A part of the memory; dropping it gives it back.
#[derive(Debug)]
pub(super) struct UploadPermit {
    memory: Arc<UploadMemory>,
    bytes: u64,
    /// Bytes that other permits of the same request have.
    beside: u64,
}

impl UploadMemory {
    pub(super) fn new(total: u64) -> Arc<Self> {
        Arc::new(Self { total, taken: AtomicU64::new(0) })
    }

    /// A permit for no bytes yet, of a request that has this many already.
    pub(super) fn permit(self: &Arc<Self>, beside: usize) -> UploadPermit {
        UploadPermit { memory: Arc::clone(self), bytes: 0, beside: beside as u64 }
    }
}

impl UploadPermit {
    /// Takes more bytes, or refuses the request: for now, or for good if it needs more than there is.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), RequestError> {
        let bytes = bytes as u64;
        let UploadMemory { total, taken } = &*self.memory;
        if self.beside.saturating_add(self.bytes).saturating_add(bytes) > *total {
            return Err(RequestError::too_large(format!(
                "the request needs more than the {total} bytes of memory for all requests (--max-upload-bytes)"
            )));
        }
        let add = |taken: u64| taken.checked_add(bytes).filter(|taken| taken <= total);
        taken.fetch_update(Relaxed, Relaxed, add).map_err(|_| {
            RequestError::busy(format!(
                "the requests in memory already have nearly {total} bytes (--max-upload-bytes); try again"
            ))
        })?;
        self.bytes += bytes;
        Ok(())
    }

    /// Bytes that keep this permit until their last clone or slice is dropped.
    pub(super) fn attach(self, bytes: impl AsRef<[u8]> + Send + 'static) -> Bytes {
        Bytes::from_owner(WithPermit { bytes, _permit: Arc::new(self) })
    }

    /// Bytes that keep this permit until the last of them is dropped.
    pub(super) fn attach_to_all(self, parts: Vec<Bytes>) -> Vec<Bytes> {
        let permit = Arc::new(self);
        parts.into_iter().map(|bytes| Bytes::from_owner(WithPermit { bytes, _permit: Arc::clone(&permit) })).collect()
    }
}

impl Drop for UploadPermit {
    fn drop(&mut self) {
        self.memory.taken.fetch_sub(self.bytes, Relaxed);
    }
}

/// Bytes with the permit for their memory.
struct WithPermit<B> {
    bytes: B,
    _permit: Arc<UploadPermit>,
}

impl<B: AsRef<[u8]>> AsRef<[u8]> for WithPermit<B> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

/// The body of a request.
pub(super) trait RequestBody: Body<Data = Bytes, Error: Display> + Unpin {}

impl<B: Body<Data = Bytes, Error: Display> + Unpin> RequestBody for B {}

/// The body of a request that is being received.
pub(super) struct Upload<B> {
    body: B,
    /// Whether the client waits for `100 Continue` and has sent nothing yet.
    is_held_back: bool,
    /// Bytes received so far.
    pub(super) received: u64,
}

impl<B: RequestBody> Upload<B> {
    pub(super) fn new(body: B, expects_continue: bool) -> Self {
        Self { body, is_held_back: expects_continue, received: 0 }
    }

    /// Receives the body. The bytes keep their permit.
    pub(super) async fn receive(
        &mut self,
        max_bytes: u64,
        limit: Duration,
        memory: &Arc<UploadMemory>,
    ) -> Result<Bytes, RequestError> {
        timeout(limit, self.receive_all(max_bytes, memory)).await.unwrap_or_else(|_| {
            let message = format!("the request did not arrive within {} s (--read-timeout)", limit.as_secs());
            Err(RequestError::new(StatusCode::REQUEST_TIMEOUT, message))
        })
    }

    async fn receive_all(&mut self, max_bytes: u64, memory: &Arc<UploadMemory>) -> Result<Bytes, RequestError> {
        let too_large = || {
            RequestError::too_large(format!("the request is larger than the limit of {max_bytes} bytes (--max-bytes)"))
        };
        // The declared length; 0 if unknown.
        let declared = self.body.size_hint().lower();
        if declared > max_bytes {
            return Err(too_large());
        }
        let (mut bytes, mut permit) = (Vec::new(), memory.permit(0));
        while let Some(part) = self.next().await {
            let part = part.map_err(|error| RequestError::bad(format!("the request is incomplete: {error}")))?;
            let length = bytes.len() + part.len();
            if length as u64 > max_bytes {
                return Err(too_large());
            }
            if length > bytes.capacity() {
                let doubled = length.max(2 * bytes.capacity()).max(FIRST_STEP);
                // The last step is as long as the rest.
                let capacity = if declared > 0 { doubled.min(declared as usize).max(length) } else { doubled };
                permit.grow(capacity - bytes.capacity())?;
                bytes.reserve_exact(capacity - bytes.len());
            }
            bytes.extend_from_slice(&part);
        }
        Ok(permit.attach(bytes))
    }

    /// Reads the rest of the body of a refused request: a client that is still sending would miss the response.
    pub(super) async fn discard(&mut self, limit: Duration) {
        if !self.is_held_back {
            let _ = timeout(limit, async { while let Some(Ok(_)) = self.next().await {} }).await;
        }
    }

    /// The next bytes of the body; `None` at its end.
    async fn next(&mut self) -> Option<Result<Bytes, B::Error>> {
        // Polling the body sends `100 Continue`.
        self.is_held_back = false;
        let frame = self.body.frame().await?;
        // Frames without data are trailers, which are ignored.
        let data = frame.map(|frame| frame.into_data().unwrap_or_default());
        self.received += data.as_ref().map_or(0, Bytes::len) as u64;
        Some(data)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn receive(length: usize, max_bytes: u64, memory: &Arc<UploadMemory>) -> Result<Bytes, RequestError> {
        let mut upload = Upload::new(Full::new(Bytes::from(vec![7; length])), false);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(upload.receive(max_bytes, LONG, memory))
    }

    #[test]
    fn bytes_keep_their_memory_until_the_last_slice_is_dropped() {
        let memory = UploadMemory::new(100_000);
        let bytes = receive(60_000, 100_000, &memory).unwrap();
        assert_eq!((bytes.len(), memory.taken.load(Relaxed)), (60_000, 60_000));
        assert_eq!(receive(60_000, 100_000, &memory).unwrap_err().status, 429);
        let slice = bytes.slice(10..20);
        drop(bytes);
        assert_eq!(receive(60_000, 100_000, &memory).unwrap_err().status, 429);
        drop(slice);
        assert_eq!(memory.taken.load(Relaxed), 0);
        receive(60_000, 100_000, &memory).unwrap();
    }

    #[test]
    fn what_needs_more_than_all_memory_is_refused_for_good() {
        let error = receive(150_000, 200_000, &UploadMemory::new(100_000)).unwrap_err();
        assert!(error.status == 413 && error.message.contains("--max-upload-bytes"), "{error}");
    }

    #[test]
    fn copies_share_a_permit() {
        let memory = UploadMemory::new(100);
        let mut permit = memory.permit(0);
        permit.grow(50).unwrap();
        let mut parts = permit.attach_to_all(vec![Bytes::from_static(b"a"), Bytes::from_static(b"b")]);
        parts.pop();
        assert_eq!((memory.taken.load(Relaxed), &parts[0][..]), (50, &b"a"[..]));
        parts.clear();
        assert_eq!(memory.taken.load(Relaxed), 0);
    }

    #[test]
    fn large_bodies_are_refused_and_take_no_memory() {
        let memory = UploadMemory::new(100_000);
        let error = receive(2000, 1999, &memory).unwrap_err();
        assert!(error.status == 413 && error.message.contains("--max-bytes"), "{error}");
        assert_eq!(memory.taken.load(Relaxed), 0);
        assert_eq!(receive(2000, 2000, &memory).unwrap().len(), 2000);
    }
}
