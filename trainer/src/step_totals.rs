//! What a step trains on.

use process_group::ProcessGroup;

use crate::group::{Halt, agree};
use crate::loader::Batch;
use crate::targets::Normalizer;

/// What the ranks train on in one step, together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepTotals {
    /// Number of batches.
    pub batches: usize,
    /// Number of images.
    pub images: usize,
    /// Sum of the batches' loss divisors.
    pub divisor: usize,
}

impl StepTotals {
    /// Those of one rank's batches.
    pub(crate) fn of(batches: &[Batch], normalizer: Normalizer) -> Self {
        Self {
            batches: batches.len(),
            images: batches.iter().map(|batch| batch.indices.len()).sum(),
            divisor: batches.iter().map(|batch| batch.loss_divisor(normalizer)).sum(),
        }
    }

    /// The totals of all ranks, given those of this one; an error of one rank is an error of all, as in [`agree`].
    ///
    /// # Errors
    /// When a rank has an error, and when the group fails.
    pub(crate) fn over_ranks<T, E: From<Halt>>(
        group: &ProcessGroup,
        own: Result<T, E>,
        is_interrupted: impl Fn(&E) -> bool,
        totals: impl Fn(&T) -> Self,
    ) -> Result<(T, Self), E> {
        let Self { batches, images, divisor } = own.as_ref().map_or_else(|_| Self::default(), totals);
        let mut numbers = [batches, images, divisor].map(|number| number as f64);
        let own = agree(group, own, is_interrupted, &mut numbers)?;
        let [batches, images, divisor] = numbers.map(|number| number as usize);
        Ok((own, Self { batches, images, divisor }))
    }
}
