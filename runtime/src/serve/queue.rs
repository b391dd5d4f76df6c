//! The queue of a model: images that wait for a worker.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hyper::body::Bytes;
use runtime::CallOptions;
use runtime::output::{Failure, Found};
use runtime::protocol::RequestError;
use tokio::sync::oneshot;

use super::metrics::{PendingRequest, Stages};

/// Sends the result of an image to the request that waits for it.
pub(super) type ReplySender = oneshot::Sender<ImageReply>;

/// The result of an image.
pub(super) struct ImageReply {
    pub(super) outcome: Result<Found, Failure>,
    /// The annotated image as JPEG, if it was wanted.
    pub(super) drawn: Option<Vec<u8>>,
    pub(super) stages: Stages,
}

/// An image to detect in.
pub(super) struct ImageJob {
    /// The image file.
    pub(super) image: Bytes,
    pub(super) options: Arc<CallOptions>,
    /// Whether the annotated image is wanted too.
    pub(super) is_drawn: bool,
    pub(super) submitted: Instant,
    pub(super) reply: ReplySender,
    /// The request, until the last of its images is taken.
    pub(super) pending: Option<Arc<PendingRequest>>,
}

/// Images that wait for a worker, by priority, then in the order of arrival.
pub(super) struct Queue {
    state: Mutex<State>,
    /// Notified about new images, and when the queue is closed.
    changed: Condvar,
    /// Maximum number of images.
    max: usize,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<ImageJob>,
    is_closed: bool,
}

impl Queue {
    pub(super) fn new(max: usize) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), max }
    }

    /// Adds the images of a request, all of them or none.
    pub(super) fn submit(&self, jobs: Vec<ImageJob>) -> Result<(), RequestError> {
        let mut state = self.lock();
        if state.is_closed {
            return Err(RequestError::unavailable("the model was unloaded; try again"));
        }
        if !state.has_room(jobs.len(), self.max) {
            return Err(full(self.max));
        }
        for job in jobs {
            let priority = job.options.priority;
            let position = state.waiting.partition_point(|waiting| waiting.options.priority <= priority);
            state.waiting.insert(position, job);
        }
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Refuses a request whose images have not arrived yet, if the queue is full.
    pub(super) fn check_room(&self) -> Result<(), RequestError> {
        if self.lock().has_room(1, self.max) { Ok(()) } else { Err(full(self.max)) }
    }

    /// Waits for the next image that somebody waits for. `None` when the queue is closed and empty.
    pub(super) fn next(&self) -> Option<ImageJob> {
        let mut state = self.lock();
        loop {
            match state.waiting.pop_front() {
                Some(job) if job.options.cancellation.is_canceled() => {}
                Some(mut job) => {
                    job.pending = None;
                    return Some(job);
                }
                None if state.is_closed => return None,
                None => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Takes no more images. Those that wait are still processed.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    /// Ignores poisoning: no panic leaves the state inconsistent.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn has_room(&mut self, count: usize, max: usize) -> bool {
        if self.waiting.len() + count > max {
            // Clients that have left, and requests whose time is over, free their slots.
            self.waiting.retain(|job| !job.options.cancellation.is_canceled());
        }
        self.waiting.len() + count <= max
    }
}

fn full(max: usize) -> RequestError {
    RequestError::busy(format!("the queue of {max} images (--max-queue) is full; try again"))
}

#[cfg(test)]
mod tests {
    use runtime::{Cancellation, Priority};

    use super::*;

    fn job(text: &'static str, priority: Priority, cancellation: &Cancellation) -> ImageJob {
        let mut options = CallOptions::default();
        (options.priority, options.cancellation) = (priority, cancellation.clone());
        ImageJob {
            image: Bytes::from_static(text.as_bytes()),
            options: Arc::new(options),
            is_drawn: false,
            submitted: Instant::now(),
            reply: oneshot::channel().0,
            pending: None,
        }
    }

    #[test]
    fn images_leave_by_priority_and_canceled_ones_never() {
        let (queue, canceled, wanted) = (Queue::new(5), Cancellation::default(), Cancellation::default());
        let jobs = [
            job("a", Priority::Normal, &wanted),
            job("b", Priority::Normal, &canceled),
            job("c", Priority::High, &wanted),
            job("d", Priority::Normal, &wanted),
            job("e", Priority::High, &wanted),
        ];
        queue.submit(jobs.into()).unwrap();
        canceled.cancel();
        queue.close();
        let left: Vec<_> = std::iter::from_fn(|| queue.next()).map(|job| job.image).collect();
        assert_eq!(left, ["c", "e", "a", "d"]);
        let error = queue.submit(vec![job("f", Priority::High, &wanted)]).unwrap_err();
        assert_eq!(error.status, 503);
    }

    #[test]
    fn a_full_queue_refuses_whole_requests_until_clients_leave() {
        let (queue, leaving, staying) = (Queue::new(3), Cancellation::default(), Cancellation::default());
        let jobs = |cancellation: &Cancellation, count| {
            (0..count).map(|_| job("a", Priority::Normal, cancellation)).collect::<Vec<_>>()
        };
        queue.submit(jobs(&leaving, 2)).unwrap();
        queue.check_room().unwrap();
        assert_eq!(queue.submit(jobs(&staying, 2)).unwrap_err().status, 429);
        queue.submit(jobs(&staying, 1)).unwrap();
        assert_eq!(queue.check_room().unwrap_err().status, 429);
        leaving.cancel();
        queue.submit(jobs(&staying, 2)).unwrap();
    }
}
