//! The largest batch with which training fits in the memory of a device, for `run.batch_size: auto`.

use anyhow::{Context, anyhow};
use models::ModelSpec;
use process_group::ProcessGroup;
use runtime::machine;
use tch::Device;

use crate::augmentation::{AugmentationConfig, ScaleConfig};
use crate::config::TrainConfig;
use crate::group::Halt;
use crate::loader::{BatchRequest, Loader};
use crate::schedule::{Patience, SchedulePosition};
use crate::training_model::TrainingModel;

/// Fraction of the CPU's free memory that training may take. The rest is for other programs and for files.
const FRACTION_OF_MEMORY: f64 = 0.8;

/// The largest batch of at most `max` images with which training fits in the memory of the device, to about a quarter. Makes
/// a step per size, with a network of its own that computes like a rank of `group`, on the images of `data` that need the most
/// memory. On the CPU, where the system kills a process that takes too much, it tries only sizes that should fit by what
/// smaller ones have taken.
///
/// # Errors
/// When not even one image fits, and when an image cannot be read.
pub(crate) fn largest_batch(
    config: &TrainConfig,
    spec: &ModelSpec,
    device: Device,
    data: &Loader,
    max: usize,
    group: &ProcessGroup,
) -> anyhow::Result<usize> {
    let processes = group.local_world_size() as u64;
    let limit = machine::memory().zip(machine::available_memory());
    let limit = limit.map(|(own, free)| own + (free as f64 * FRACTION_OF_MEMORY) as u64 / processes);
    let mut model = TrainingModel::new(spec, config, device)?;
    if group.world_size() > 1 {
        model.try_as_rank();
    }
    let mut taken: Vec<(usize, u64)> = Vec::new();
    let mut bytes_per_image = 0;
    let fits = |images: usize| -> anyhow::Result<bool> {
        let loader = (images * bytes_per_image * Loader::BATCHES_PER_WORKER * config.run.workers) as u64 >> 20;
        if let (Device::Cpu, Some(limit)) = (device, limit)
            && expected(&taken, images).is_some_and(|memory| memory + loader > limit)
        {
            return Ok(false);
        }
        let batch = data.batches_with(largest_input(config), std::iter::once(hardest(data, images)));
        let batch = batch.last().context("the loader prepares what it is asked for")??;
        bytes_per_image = batch.images.bytes() / images;
        let at = SchedulePosition { step: 0, steps: 1, epoch: 0, patience: Patience::default() };
        match model.step(&[batch], &at) {
            Ok(_) => {
                taken.extend(machine::memory().map(|memory| (images, memory)));
                Ok(true)
            }
            // Libraries have more ways to fail for too large a size than to say that memory ran out.
            Err(Halt::Torch(error)) if images > 1 || error.is_out_of_memory() => Ok(false),
            Err(error) => Err(error.into()),
        }
    };
    let found = search(max.max(1), fits)?.ok_or_else(|| {
        let side = config.model.preprocessing.longer_side;
        anyhow!(
            "`run.batch_size: auto`: not even one image fits in the memory; lower `model.preprocessing.longer_side` ({side}), \
             or use `run.precision: bfloat16`"
        )
    })?;
    // In a run, inputs of many sizes fragment the memory.
    let margin = if found < max && found >= 4 { found.div_ceil(8) } else { 0 };
    Ok(found - margin)
}

/// The largest number from 1 to `max` that `fits`, to an eighth of it; `None` if 1 does not.
fn search(max: usize, mut fits: impl FnMut(usize) -> anyhow::Result<bool>) -> anyhow::Result<Option<usize>> {
    let (mut low, mut next) = (0, 1);
    while low < max && fits(next)? {
        (low, next) = (next, (2 * next).min(max));
    }
    let mut high = next;
    while low > 0 && high - low > (low / 8).max(1) {
        let middle = usize::midpoint(low, high);
        if fits(middle)? { low = middle } else { high = middle }
    }
    Ok(Some(low).filter(|low| *low > 0))
}

/// The memory that this many images should take, on the line through what the last two sizes took.
fn expected(taken: &[(usize, u64)], images: usize) -> Option<u64> {
    let [.., (fewer, before), (more, after)] = *taken else { return None };
    let per_image = after.saturating_sub(before) as f64 / (more - fewer) as f64;
    Some(after + (per_image * images.saturating_sub(more) as f64) as u64)
}

/// The configured augmentation, with the largest inputs that it makes.
fn largest_input(config: &TrainConfig) -> AugmentationConfig {
    let AugmentationConfig { scale: ScaleConfig { probability, max, .. }, .. } = config.augmentation;
    let scale = if probability > 0.0 && max > 1.0 {
        ScaleConfig { probability: 1.0, min: max, max }
    } else {
        ScaleConfig { probability: 0.0, ..ScaleConfig::default() }
    };
    AugmentationConfig { scale, ..config.augmentation.clone() }
}

/// A batch that is as high and as wide as any of the data: it has the highest image and otherwise the widest. One image is
/// the largest.
fn hardest(data: &Loader, images: usize) -> BatchRequest {
    let recipe = data.recipe();
    let max_by = |size: fn(u32, u32) -> u64| {
        let padded = |index: &usize| {
            let image = &recipe.dataset.images()[*index];
            let placement = recipe.spec.preprocessing.place(image.width.max(1), image.height.max(1));
            size(placement.padded_width, placement.padded_height)
        };
        (0..recipe.dataset.images().len()).max_by_key(padded).unwrap_or_default()
    };
    let mut indices = vec![max_by(|width, _| width.into()); images];
    indices[0] = if images == 1 {
        max_by(|width, height| u64::from(width) * u64::from(height))
    } else {
        max_by(|_, height| height.into())
    };
    BatchRequest { indices, seed: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn search_finds_the_largest_that_fits_to_an_eighth() {
        for max in [1, 2, 3, 7, 100, 1000] {
            for largest in 0..=max + 1 {
                let mut tried = Vec::new();
                let found = search(max, |images| {
                    tried.push(images);
                    Ok(images <= largest)
                });
                let found = found.unwrap();
                assert!(tried.iter().all(|images| (1..=max).contains(images)), "{tried:?}");
                let Some(found) = found else {
                    assert_eq!(largest, 0);
                    continue;
                };
                let best = largest.min(max);
                assert!(found <= best && best - found <= found / 8, "{found} instead of {best} of {max}");
            }
        }
    }

    #[test]
    fn memory_is_expected_on_a_line() {
        assert_eq!(expected(&[(1, 100)], 2), None);
        assert_eq!(expected(&[(1, 100), (2, 150), (4, 250)], 8), Some(450));
        // Memory that smaller sizes have left may serve larger ones.
        assert_eq!(expected(&[(1, 100), (2, 100)], 4), Some(100));
    }
}
