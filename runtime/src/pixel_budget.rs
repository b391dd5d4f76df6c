//! A budget of the pixels of decoded images, which bounds memory whatever the sizes of the images.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// A number of pixels that may be in memory at a time. Clones share it.
#[derive(Clone, Debug)]
pub struct PixelBudget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    total: u64,
    free: Mutex<u64>,
    freed: Condvar,
    /// Held by the thread whose turn it is, so that a large image is not overtaken by small ones for ever.
    turn: Mutex<()>,
}

/// Pixels of a budget; dropping it returns them.
#[derive(Debug)]
pub struct Reservation {
    budget: PixelBudget,
    pub(crate) pixels: u64,
}

impl PixelBudget {
    /// A budget of `total` pixels.
    pub fn new(total: u64) -> Self {
        Self(Arc::new(Shared { total, free: Mutex::new(total), freed: Condvar::new(), turn: Mutex::new(()) }))
    }

    /// Waits until this many pixels are free. An image that is larger than the budget gets all of it, and so is alone.
    pub fn reserve(&self, pixels: u64) -> Reservation {
        let Shared { total, free, freed, turn } = &*self.0;
        let pixels = pixels.min(*total);
        let _turn = lock(turn);
        let mut free = freed.wait_while(lock(free), |free| *free < pixels).unwrap_or_else(PoisonError::into_inner);
        *free -= pixels;
        Reservation { budget: self.clone(), pixels }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        *lock(&self.budget.0.free) += self.pixels;
        self.budget.0.freed.notify_all();
    }
}

/// Ignores poisoning: no panic leaves the numbers inconsistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn threads_never_hold_more_than_the_budget_and_large_images_get_their_turn() {
        let (budget, held, max) = (PixelBudget::new(100), AtomicU64::new(0), AtomicU64::new(0));
        thread::scope(|scope| {
            for thread in 0..8 {
                let (budget, held, max) = (&budget, &held, &max);
                scope.spawn(move || {
                    for round in 0..20 {
                        // One thread asks for more than there is.
                        let pixels = if thread == 0 { 1000 } else { 20 + 7 * (round % 5) };
                        let reservation = budget.reserve(pixels);
                        let now = held.fetch_add(reservation.pixels, SeqCst) + reservation.pixels;
                        max.fetch_max(now, SeqCst);
                        thread::sleep(Duration::from_micros(200));
                        held.fetch_sub(reservation.pixels, SeqCst);
                    }
                });
            }
        });
        assert_eq!((max.into_inner(), *budget.0.free.lock().unwrap()), (100, 100));
    }
}
