//! How one call of a detector differs from others: its thresholds, its priority, and whether anybody still waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use crate::rules::Rules;

/// Options of one call of [`Detector::detect_with`](crate::Detector::detect_with).
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CallOptions {
    /// Overrides of the detector's thresholds and limits. Classes can only be narrowed.
    pub rules: Rules,
    /// Which of the waiting inputs the network runs on first.
    pub priority: Priority,
    /// Ends the call early.
    pub cancellation: Cancellation,
}

/// Priority of a call. Inputs of a lower priority wait while there are inputs of a higher one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Runs first.
    High,
    /// The default.
    #[default]
    Normal,
}

/// Says whether anybody still waits for a result. Clones share it. A call whose cancellation is set fails with
/// [`EngineError::Canceled`](crate::EngineError::Canceled) before its next run of the network.
#[derive(Clone, Debug, Default)]
pub struct Cancellation(Arc<State>);

#[derive(Debug, Default)]
struct State {
    is_canceled: AtomicBool,
    deadline: Option<Instant>,
    /// Sets this one, too.
    parent: Option<Cancellation>,
}

/// Sets a cancellation when it is dropped, such as at the early end of what waits for the result.
#[derive(Debug)]
pub struct CancelOnDrop(pub Cancellation);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Cancellation {
    /// Is set by itself when the deadline has passed.
    pub fn at(deadline: Option<Instant>) -> Self {
        Self(Arc::new(State { deadline, ..State::default() }))
    }

    /// A cancellation of its own for a part of the work, which is also set when this one is.
    pub fn child(&self) -> Self {
        Self(Arc::new(State { parent: Some(self.clone()), ..State::default() }))
    }

    /// Says that nobody waits any more.
    pub fn cancel(&self) {
        self.0.is_canceled.store(true, Relaxed);
    }

    /// Whether [`Cancellation::cancel`] was called or the deadline has passed.
    pub fn is_canceled(&self) -> bool {
        let State { is_canceled, deadline, parent } = &*self.0;
        is_canceled.load(Relaxed)
            || deadline.is_some_and(|deadline| Instant::now() >= deadline)
            || parent.as_ref().is_some_and(Self::is_canceled)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn clones_share_the_cancellation_and_a_deadline_sets_it() {
        let cancellation = Cancellation::default();
        let clone = cancellation.clone();
        assert!(!clone.is_canceled());
        cancellation.cancel();
        assert!(clone.is_canceled());
        let now = Instant::now();
        assert!(Cancellation::at(Some(now)).is_canceled());
        assert!(!Cancellation::at(Some(now + Duration::from_secs(60))).is_canceled());
    }

    #[test]
    fn a_child_is_set_with_its_parent_and_not_the_other_way() {
        let parent = Cancellation::default();
        let [first, second] = [parent.child(), parent.child()];
        drop(CancelOnDrop(first.clone()));
        assert_eq!([&parent, &first, &second].map(Cancellation::is_canceled), [false, true, false]);
        parent.cancel();
        assert!(second.is_canceled());
    }
}
