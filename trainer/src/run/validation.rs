//! Validation: measures the network on the validation images, of which every rank takes its part.

use models::dataset::Rectangle;
use models::evaluation::{ScoredBox, evaluate};
use process_group::{Error, ProcessGroup};

use super::Trainer;
use super::log::ValidationRecord;
use super::stop::Stop;
use crate::failure::catch;
use crate::group::{Halt, agree};
use crate::loader::Batch;
use crate::predictor::validation_requests;
use crate::progress::Count;

impl Trainer {
    /// Measures the network on the validation images, which the ranks divide among themselves. Its loss is that of one large
    /// batch. Also returns the detections. Every rank has the results of all.
    pub(super) fn validate(&self, title: &str) -> Result<(ValidationRecord, Vec<ScoredBox>), Stop> {
        let normalizer = self.config.loss.normalizer;
        let own = self.detect(title, |batch| {
            let (boxes, losses) = self.model.predictor.validate(batch, &self.config.loss);
            Validated { losses, divisor: batch.loss_divisor(normalizer), boxes }
        })?;
        let batches = gather(&self.group, &own).map_err(Halt::Group)?;
        let (mut sums, mut divisor) = ([0.0; 2], 0);
        for batch in &batches {
            divisor += batch.divisor;
            sums.iter_mut().zip(batch.losses).for_each(|(sum, loss)| *sum += loss * batch.divisor.max(1) as f64);
        }
        let [classification_loss, box_loss] = sums.map(|sum| sum / divisor.max(1) as f64);
        let scored: Vec<_> = batches.into_iter().flat_map(|batch| batch.boxes).collect();
        let dataset = &self.data.validation.recipe().dataset;
        let summary = evaluate(dataset.annotations(), &scored, dataset.classes().len()).summary;
        Ok((ValidationRecord { classification_loss, box_loss, summary }, scored))
    }

    /// What `find` finds in the batches of validation images. Those of this rank are every batch r of as many as there are
    /// ranks.
    fn detect<T>(&self, title: &str, mut find: impl FnMut(&Batch) -> T) -> Result<Vec<T>, Stop> {
        let (group, loader) = (&self.group, &self.data.validation);
        let count = Count::new(title, loader.recipe().dataset.images().len() as u64);
        let requests = validation_requests(loader, self.config.run.batch_size.images());
        let mut batches = loader.batches(requests.iter().skip(group.rank()).step_by(group.world_size()).cloned());
        let mut found = Vec::new();
        for of_all_ranks in requests.chunks(group.world_size()) {
            let mut own = || {
                self.check_interrupt()?;
                let Some(batch) = batches.next().transpose().map_err(Stop::Intact)? else { return Ok(None) };
                catch(|| find(&batch)).map(Some).map_err(|error| self.torch_failure(&error))
            };
            found.extend(agree(group, own(), Stop::is_interrupted, &mut [])?);
            of_all_ranks.iter().flat_map(|request| &request.indices).for_each(|_| count.advance());
        }
        Ok(found)
    }
}

/// Numbers of a box in a message.
const BOX: usize = 7;

/// A validated batch.
#[derive(Clone, Debug, PartialEq)]
struct Validated {
    /// Classification loss and box loss.
    losses: [f64; 2],
    /// The divisor of the losses.
    divisor: usize,
    boxes: Vec<ScoredBox>,
}

/// The batches of all ranks, in their order. Rank r has every batch r of as many as there are ranks.
///
/// # Errors
/// When a rank has ended, or does not take part within the time-out.
fn gather(group: &ProcessGroup, own: &[Validated]) -> Result<Vec<Validated>, Error> {
    let numbers: Vec<f64> = own.iter().flat_map(to_numbers).collect();
    let messages = group.all_gather_bytes(bytemuck::cast_slice(&numbers))?;
    let by_rank = messages.iter().map(|message| from_numbers(&bytemuck::pod_collect_to_vec::<u8, f64>(message)));
    let mut by_rank: Vec<_> = by_rank.map(Vec::into_iter).collect();
    let mut all = Vec::new();
    for rank in (0..by_rank.len()).cycle() {
        let Some(validated) = by_rank[rank].next() else { break };
        all.push(validated);
    }
    Ok(all)
}

fn to_numbers(validated: &Validated) -> Vec<f64> {
    let Validated { losses: [classification_loss, box_loss], divisor, boxes } = validated;
    let mut numbers = vec![*classification_loss, *box_loss, *divisor as f64, boxes.len() as f64];
    for ScoredBox { image, class_index, score, rectangle: Rectangle { x, y, width, height } } in boxes {
        numbers.extend([*image as f64, *class_index as f64, *score, *x, *y, *width, *height]);
    }
    numbers
}

fn from_numbers(mut numbers: &[f64]) -> Vec<Validated> {
    let mut all = Vec::new();
    while let [classification_loss, box_loss, divisor, count, rest @ ..] = numbers {
        let (boxes, others) = rest.split_at(*count as usize * BOX);
        let scored = |numbers: &[f64; BOX]| {
            let [image, class_index, score, x, y, width, height] = *numbers;
            let rectangle = Rectangle { x, y, width, height };
            ScoredBox { image: image as usize, class_index: class_index as usize, score, rectangle }
        };
        let boxes = boxes.as_chunks::<BOX>().0.iter().map(scored).collect();
        all.push(Validated { losses: [*classification_loss, *box_loss], divisor: *divisor as usize, boxes });
        numbers = others;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_survive_their_message_in_order() {
        let batch = |index: usize| {
            let rectangle = Rectangle { x: 0.1 * index as f64, y: 1.0, width: 2.5, height: f64::MIN_POSITIVE };
            let scored = ScoredBox { image: index, class_index: 2, score: 1.0 / 3.0, rectangle };
            Validated { losses: [0.25, index as f64], divisor: 3, boxes: vec![scored; index] }
        };
        let batches: Vec<_> = (0..4).map(batch).collect();
        assert_eq!(gather(&ProcessGroup::alone(), &batches).unwrap(), batches);
        assert!(gather(&ProcessGroup::alone(), &[]).unwrap().is_empty());
    }
}
