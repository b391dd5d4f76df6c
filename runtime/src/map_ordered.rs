//! A parallel map that keeps the order of its items.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

/// Calls `map` on every item, on `workers` threads (at least one), and passes the results in the order of the items to
/// `consume`. At most twice as many items as workers are in progress or waiting for their turn, so that memory does not
/// grow with the number of items. When `consume` drops the results, no more items are started.
///
/// # Panics
/// When `items`, `map` or `consume` panics; a panic of `map` reaches `consume` in the order of the items.
pub fn map_ordered<T: Send, F: Send, R>(
    items: impl Iterator<Item = T> + Send,
    workers: usize,
    map: impl Fn(T) -> F + Sync,
    consume: impl FnOnce(Ordered<F>) -> R,
) -> R {
    let workers = workers.max(1);
    let under_way = 2 * workers;
    let (permit_sender, permits) = bounded(under_way);
    for _ in 0..under_way {
        // Does not block: the channel has room for all permits.
        let _ = permit_sender.send(());
    }
    // The permits bound it. Unlike a bounded channel, it drops what nobody will read any more, which items may wait for.
    let (sender, finished) = unbounded();
    let items = Mutex::new(items.enumerate().fuse());
    // Waiting for a permit under the lock, too, starts the items in order.
    let next = || {
        let mut items = items.lock().ok()?;
        permits.recv().ok()?;
        items.next()
    };
    thread::scope(|scope| {
        let (next, map) = (&next, &map);
        for _ in 0..workers {
            let sender = sender.clone();
            scope.spawn(move || {
                while let Some((index, item)) = next() {
                    let result = catch_unwind(AssertUnwindSafe(|| map(item)));
                    if sender.send((index, result)).is_err() {
                        break;
                    }
                }
            });
        }
        // The results end when the workers do.
        drop(sender);
        consume(Ordered { finished, permits: permit_sender, early: BTreeMap::new(), next: 0 })
    })
}

/// Iterator over the results of [`map_ordered`].
#[derive(Debug)]
pub struct Ordered<F> {
    finished: Receiver<(usize, thread::Result<F>)>,
    permits: Sender<()>,
    /// Results that are there before their predecessors, by index.
    early: BTreeMap<usize, thread::Result<F>>,
    next: usize,
}

impl<F> Iterator for Ordered<F> {
    type Item = F;

    fn next(&mut self) -> Option<F> {
        loop {
            if let Some(result) = self.early.remove(&self.next) {
                self.next += 1;
                // Fails only when all items have been started.
                let _ = self.permits.send(());
                return Some(result.unwrap_or_else(|panic| resume_unwind(panic)));
            }
            let (index, result) = self.finished.recv().ok()?;
            self.early.insert(index, result);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::time::Duration;

    use super::*;

    #[test]
    fn results_are_in_the_order_of_the_items() {
        let slow_first = |number: u64| {
            thread::sleep(Duration::from_millis(10 - number % 10));
            number
        };
        for workers in [0, 1, 3, 50] {
            let found = map_ordered(0..40, workers, slow_first, |results| results.collect::<Vec<_>>());
            assert_eq!(found, (0..40).collect::<Vec<_>>());
        }
        assert_eq!(map_ordered(0..0, 3, slow_first, Iterator::count), 0);
    }

    #[test]
    fn a_slow_item_or_consumer_limits_the_number_of_items_in_progress() {
        let (started, workers) = (AtomicUsize::new(0), 3);
        let map = |number: usize| {
            started.fetch_add(1, Relaxed);
            thread::sleep(Duration::from_millis(if number == 0 { 100 } else { 0 }));
        };
        let consumed = map_ordered(0..60, workers, map, |results| {
            let mut consumed = 0;
            for () in results {
                thread::sleep(Duration::from_millis(1));
                consumed += 1;
                assert!(started.load(Relaxed) <= consumed + 2 * workers);
            }
            consumed
        });
        assert_eq!((consumed, started.into_inner()), (60, 60));
    }

    #[test]
    fn no_more_items_are_started_once_the_consumer_stops() {
        let started = AtomicUsize::new(0);
        let map = |number: usize| {
            started.fetch_add(1, Relaxed);
            number
        };
        assert_eq!(map_ordered(0.., 4, map, |mut results| results.next()), Some(0));
        assert!(started.into_inner() <= 9);
    }

    #[test]
    fn unread_results_are_dropped_with_the_iterator() {
        // Items wait until the results before them are dropped, as those of a budget of pixels do.
        let (slot, free) = bounded::<()>(1);
        let items = (0..100).map(|_| {
            slot.send(()).unwrap();
            free.clone()
        });
        struct Held(Receiver<()>);
        impl Drop for Held {
            fn drop(&mut self) {
                self.0.recv().unwrap();
            }
        }
        assert!(map_ordered(items, 2, Held, |mut results| results.next().is_some()));
    }

    #[test]
    fn a_panic_reaches_the_caller_after_the_results_before_it() {
        let seen = AtomicUsize::new(0);
        let map = |number: usize| assert_ne!(number, 5, "on purpose");
        let consume = |results: Ordered<()>| results.for_each(|()| _ = seen.fetch_add(1, Relaxed));
        let panic = catch_unwind(AssertUnwindSafe(|| map_ordered(0.., 2, map, consume))).unwrap_err();
        assert!(panic.downcast_ref::<String>().unwrap().contains("on purpose"));
        assert_eq!(seen.into_inner(), 5);
        let items = (0..).inspect(|number| assert_ne!(*number, 5, "on purpose"));
        assert!(catch_unwind(AssertUnwindSafe(|| map_ordered(items, 2, |number| number, Iterator::count))).is_err());
    }
}
