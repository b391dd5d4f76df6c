//! Training curves: losses, average precision and speed over steps and epochs.

use models::evaluation::Summary;

use super::chart::{Axis, Chart, Columns, Line, Note, Size, Stroke};
use super::markup::Markup;
use super::text::{exact, percent};
use crate::run::log::{EpochRecord, Log, StepRecord};

/// Maximum number of tooltips along a horizontal axis.
const MAX_NOTES: usize = 80;

/// Smoothing window, as a fraction of the steps.
const SMOOTH: f64 = 0.03;

/// Approximate number of ticks of a vertical axis.
const TICKS: usize = 5;

/// Approximate number of ticks of a horizontal axis.
const TICKS_ACROSS: usize = 8;

/// Stages of an epoch's training time.
const STAGES: [&str; 5] = ["waiting for data", "forward", "backward", "optimizer", "other"];

/// Charts of the losses, learning rate, gradient norm, speed and time of the stages.
pub(super) fn draw(log: &Log, markup: &mut Markup) {
    if log.steps.is_empty() {
        markup.phrase("p", &[("class", &"empty")], "The log contains no steps.");
    }
    markup.element("div", &[("class", &"charts")], |markup| {
        if !log.steps.is_empty() {
            over_steps(markup, &log.steps, "Classification loss", true, |step| step.results.classification_loss);
            over_steps(markup, &log.steps, "Box loss", true, |step| step.results.box_loss);
            over_steps(markup, &log.steps, "Learning rate", false, |step| step.results.learning_rate);
            over_steps(markup, &log.steps, "Gradient norm before clipping", true, |step| step.results.gradient_norm);
        }
        if !log.epochs.is_empty() {
            losses(markup, &log.epochs);
            let speed: Curve = ("images per second", |line| Some(line.images_per_second));
            over_epochs(markup, &log.epochs, "Training speed (images per second)", Size::LARGE, None, &[speed]);
            times(markup, &log.epochs);
        }
    });
    if let Some(text) = time_in_words(&log.epochs) {
        markup.phrase("p", &[("class", &"remark")], text);
    }
}

/// Chart of the average precision after each epoch with a validation.
pub(super) fn precision(epochs: &[EpochRecord], best: Option<u32>, markup: &mut Markup) {
    let mark = best.map(|epoch| (f64::from(epoch), "best"));
    let lines: [Curve; 3] = [
        ("AP", |line| metric(line, |summary| summary.ap)),
        ("AP50", |line| metric(line, |summary| summary.ap50)),
        ("AP75", |line| metric(line, |summary| summary.ap75)),
    ];
    over_epochs(markup, epochs, "Average precision after each epoch", Size::TALL, mark, &lines);
}

/// A metric of an epoch's validation. AP is -1 if there are no objects, which is not the same as an AP of 0.
fn metric(line: &EpochRecord, number: fn(&Summary) -> f64) -> Option<f64> {
    let value = number(&line.validation.as_ref()?.summary);
    Some(if value >= 0.0 { value } else { f64::NAN })
}

/// Charts of the losses of each epoch.
fn losses(markup: &mut Markup, epochs: &[EpochRecord]) {
    let classification: [Curve; 2] = [
        ("training", |line| Some(line.classification_loss)),
        ("validation", |line| Some(line.validation?.classification_loss)),
    ];
    let boxes: [Curve; 2] =
        [("training", |line| Some(line.box_loss)), ("validation", |line| Some(line.validation?.box_loss))];
    over_epochs(markup, epochs, "Classification loss of each epoch", Size::LARGE, None, &classification);
    over_epochs(markup, epochs, "Box loss of each epoch", Size::LARGE, None, &boxes);
}

/// A name, and a number of each epoch that has it.
type Curve<'a> = (&'a str, fn(&EpochRecord) -> Option<f64>);

/// Chart of numbers of each epoch. Epochs without a number do not interrupt its line.
fn over_epochs(
    markup: &mut Markup,
    epochs: &[EpochRecord],
    title: &str,
    size: Size,
    mark: Option<(f64, &str)>,
    curves: &[Curve],
) {
    let lines = curves.iter().enumerate().map(|(color, &(name, number))| {
        let points = epochs.iter().filter_map(|line| Some([f64::from(line.epoch), number(line)?]));
        Line { name, points: points.collect(), color, stroke: Stroke::Dotted }
    });
    let lines: Vec<_> = lines.collect();
    let high = lines.iter().flat_map(|line| &line.points).map(|point| point[1]).filter(|y| y.is_finite());
    let high = high.fold(0.0, f64::max);
    let notes = parts(epochs).filter_map(|part| {
        let numbers = curves.iter().filter_map(|(name, number)| {
            let mut numbers = part.iter().filter_map(number).peekable();
            numbers.peek()?;
            Some(format!("{name} {}", exact(mean(numbers))))
        });
        let text = numbers.collect::<Vec<_>>().join(", ");
        (!text.is_empty()).then(|| epoch_note(part, text))
    });
    let chart = Chart {
        title,
        across: Some("epoch"),
        size,
        x: epoch_axis(epochs),
        y: Axis::from_zero(high, TICKS),
        notes: notes.collect(),
        lines,
        mark,
    };
    chart.draw(markup);
}

/// Chart of a number of each step. If it is `noisy`, a smoothed line is drawn over the raw one.
fn over_steps(markup: &mut Markup, steps: &[StepRecord], title: &str, noisy: bool, number: fn(&StepRecord) -> f64) {
    let raw: Vec<_> = steps.iter().map(|step| [step.step as f64, number(step)]).collect();
    let smooth = if noisy { smoothed(&raw) } else { raw.clone() };
    let numbers =
        |points: &[[f64; 2]]| points.iter().map(|point| point[1]).filter(|y| y.is_finite()).collect::<Vec<_>>();
    let (mut rough, fine) = (numbers(&raw), numbers(&smooth));
    rough.sort_by(f64::total_cmp);
    let low = fine.iter().copied().fold(f64::INFINITY, f64::min);
    // The highest 1 % of the raw values may be outside the chart.
    let high = rough.get((rough.len() * 99).div_ceil(100).saturating_sub(1)).copied().unwrap_or(0.0);
    let high = fine.iter().copied().fold(high, f64::max);
    let y = if noisy { Axis::fitting(0.7 * low, high, TICKS) } else { Axis::from_zero(high, TICKS) };
    let notes = steps.chunks(steps.len().div_ceil(MAX_NOTES).max(1)).map(|part| {
        let (first, last) = (part[0].step, part[part.len() - 1].step);
        let text = exact(mean(part.iter().map(number)));
        let text = if first == last {
            format!("step {first}: {text}")
        } else {
            format!("steps {first} to {last}: mean {text}")
        };
        Note { from: first as f64 - 0.5, to: last as f64 + 0.5, text }
    });
    let mut lines = Vec::new();
    if noisy {
        lines.push(Line { name: "each step", points: raw, color: 0, stroke: Stroke::Faint });
    }
    lines.push(Line { name: "smoothed", points: smooth, color: 0, stroke: Stroke::Solid });
    let chart = Chart {
        title,
        across: Some("step"),
        size: Size::LARGE,
        x: Axis::counting(steps[0].step as f64, steps[steps.len() - 1].step as f64, TICKS_ACROSS),
        y,
        lines,
        mark: None,
        notes: notes.collect(),
    };
    chart.draw(markup);
}

fn times(markup: &mut Markup, epochs: &[EpochRecord]) {
    let heights: Vec<_> =
        parts(epochs).map(|part| stages(part).map(|seconds| seconds / part.len() as f64).to_vec()).collect();
    let high = heights.iter().map(|heights| heights.iter().sum()).fold(0.0, f64::max);
    let notes = parts(epochs).zip(&heights).map(|(part, heights)| {
        let said = STAGES.iter().zip(heights).map(|(name, seconds)| format!("{name} {seconds:.2} s"));
        let note = epoch_note(part, said.collect::<Vec<_>>().join(", "));
        Note { from: note.from.max(f64::from(part[0].epoch) - 0.5), ..note }
    });
    let columns = Columns {
        title: "Time per epoch (seconds, without validation)",
        across: "epoch",
        x: Axis::spanning(
            f64::from(epochs[0].epoch) - 0.5,
            f64::from(epochs[epochs.len() - 1].epoch) + 0.5,
            TICKS_ACROSS,
        ),
        y: Axis::from_zero(high, TICKS),
        names: &STAGES,
        notes: notes.collect(),
        heights,
    };
    columns.draw(markup);
}

/// The fraction of the training time that each stage takes, as a sentence.
fn time_in_words(epochs: &[EpochRecord]) -> Option<String> {
    let seconds = stages(epochs);
    let all: f64 = seconds.iter().sum();
    let fractions = STAGES.iter().zip(seconds).map(|(name, seconds)| format!("{name} {}", percent(seconds / all)));
    (all > 0.0)
        .then(|| format!("Training time by stage, without validation: {}.", fractions.collect::<Vec<_>>().join(", ")))
}

/// Seconds of each of the [`STAGES`], summed over epochs.
fn stages(epochs: &[EpochRecord]) -> [f64; STAGES.len()] {
    let mut sums = [0.0; STAGES.len()];
    for EpochRecord { seconds, spent, .. } in epochs {
        let known = [spent.data, spent.forward, spent.backward, spent.optimizer];
        let rest = seconds - known.iter().sum::<f64>();
        for (sum, seconds) in sums.iter_mut().zip(known.into_iter().chain([rest])) {
            *sum += if seconds.is_finite() { seconds.max(0.0) } else { 0.0 };
        }
    }
    sums
}

fn epoch_axis(epochs: &[EpochRecord]) -> Axis {
    let ends = [epochs.first(), epochs.last()].map(|line| line.map_or(1.0, |line| f64::from(line.epoch)));
    Axis::counting(ends[0], ends[1], TICKS_ACROSS)
}

/// Splits a run into at most [`MAX_NOTES`] parts, for tooltips.
fn parts(epochs: &[EpochRecord]) -> impl Iterator<Item = &[EpochRecord]> {
    epochs.chunks(epochs.len().div_ceil(MAX_NOTES).max(1))
}

fn epoch_note(part: &[EpochRecord], text: String) -> Note {
    let (first, last) = (part[0].epoch, part[part.len() - 1].epoch);
    let which = if first == last { format!("epoch {first}") } else { format!("epochs {first} to {last} (mean)") };
    Note { from: f64::from(first) - 0.5, to: f64::from(last) + 0.5, text: format!("{which}: {text}") }
}

/// Exponential moving average with bias correction (<https://arxiv.org/abs/1412.6980>, section 3). Non-finite values become
/// NaN and do not enter the average.
fn smoothed(points: &[[f64; 2]]) -> Vec<[f64; 2]> {
    let keep = 1.0 - 1.0 / (SMOOTH * points.len() as f64).max(1.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    let mut smooth = |[x, y]: [f64; 2]| {
        if !y.is_finite() {
            return [x, f64::NAN];
        }
        (sum, weight) = (keep * sum + (1.0 - keep) * y, keep * weight + (1.0 - keep));
        [x, sum / weight]
    };
    points.iter().map(|point| smooth(*point)).collect()
}

/// Mean of the finite numbers; NaN if there are none.
fn mean(numbers: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) =
        numbers.filter(|number| number.is_finite()).fold((0.0, 0.0), |(sum, count), n| (sum + n, count + 1.0));
    sum / count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::log::ValidationRecord;
    use crate::step::StageSeconds;

    fn epoch_record(epoch: u32) -> EpochRecord {
        EpochRecord {
            epoch,
            steps: 1,
            classification_loss: 0.1,
            box_loss: 0.4,
            seconds: 1.0,
            images_per_second: 1.0,
            spent: StageSeconds::default(),
            validation: None,
        }
    }

    #[test]
    fn smoothing_keeps_a_constant_and_skips_nan() {
        let points: Vec<_> = (0..500).map(|step| [f64::from(step), if step == 77 { f64::NAN } else { 3.0 }]).collect();
        for (point, [x, y]) in points.iter().zip(smoothed(&points)) {
            assert!(x == point[0] && (y - point[1]).abs() < 1e-9 || y.is_nan() && point[1].is_nan());
        }
        assert_eq!(smoothed(&[[1.0, 2.0], [2.0, 4.0]]), [[1.0, 2.0], [2.0, 4.0]]);
    }

    #[test]
    fn time_outside_the_stages_is_other() {
        let spent = StageSeconds { data: 1.0, forward: 2.0, backward: 3.0, optimizer: 0.5 };
        let line = EpochRecord { seconds: 10.0, spent, ..epoch_record(1) };
        assert_eq!(stages(std::slice::from_ref(&line)), [1.0, 2.0, 3.0, 0.5, 3.5]);
        assert_eq!(time_in_words(&[EpochRecord { seconds: f64::NAN, spent: StageSeconds::default(), ..line }]), None);
    }

    #[test]
    fn epochs_without_validation_do_not_interrupt_the_line() {
        let nothing = models::evaluation::evaluate(&[], &[], 1).summary;
        let line = |epoch: u32| EpochRecord {
            validation: epoch.is_multiple_of(2).then_some(ValidationRecord {
                classification_loss: 0.2,
                box_loss: 0.3,
                summary: Summary { ap: 0.5, ap50: 0.9, ap75: 0.6, ..nothing },
            }),
            ..epoch_record(epoch)
        };
        let epochs: Vec<_> = (1..=6).map(line).collect();
        let mut markup = Markup::default();
        precision(&epochs, None, &mut markup);
        losses(&mut markup, &epochs);
        let text = markup.into_document();
        let lines: Vec<_> = text.split("class=\"line ").skip(1).collect();
        assert_eq!(lines.len(), 7);
        for note in [
            "epoch 2: training 0.1000, validation 0.2000",
            "epoch 2: training 0.4000, validation 0.3000",
            "epoch 1: training 0.4000<",
        ] {
            assert!(text.contains(note), "{note} is not in {text}");
        }
        for line in lines {
            let path = line.split(" d=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
            assert_eq!(path.matches('M').count(), 1, "{path}");
        }
    }
}
