//! What a validation finds in each batch, collected from all ranks.

use models::dataset::Rectangle;
use models::evaluation::ScoredBox;
use process_group::{Error, ProcessGroup};

/// Numbers of a box in a message.
const BOX: usize = 7;

/// A validated batch.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Validated {
    /// Classification loss and box loss.
    pub(super) losses: [f64; 2],
    /// The divisor of the losses.
    pub(super) divisor: usize,
    pub(super) boxes: Vec<ScoredBox>,
}

/// The batches of all ranks, in their order. Rank r has every batch r of as many as there are ranks.
///
/// # Errors
/// When a rank has ended, or does not take part within the time-out.
pub(super) fn gather(group: &ProcessGroup, own: &[Validated]) -> Result<Vec<Validated>, Error> {
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
