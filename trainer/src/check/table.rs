//! The survey of a data set, for people.

use std::fmt::{Display, Write as _};

use models::coverage::Suggestion;
use models::dataset::Dataset;
use models::spec::Class;

use super::survey::{ClassSurvey, MatchedBoxes, Survey};

/// Entries of a list that are named; the JSON file holds all of them.
const NAMED: usize = 10;

/// One part of the data, without the last line's end.
pub(super) fn part(title: &str, survey: &Survey) -> String {
    let mut text = format!(
        "{title}: {} images, {} boxes of {} classes, {} crowds, {} images without boxes\n",
        survey.images,
        survey.boxes,
        survey.classes.len(),
        survey.crowds,
        survey.images_without_boxes
    );
    let width = survey.classes.iter().map(|class| class.name.chars().count()).max().unwrap_or(0).max(5);
    let _ = writeln!(
        text,
        "\n{:<width$}{:>10}{:>10}{:>12}{:>18}{:>18}{:>18}",
        "class", "images", "boxes", "with anchor", "small", "medium", "large"
    );
    for class in &survey.classes {
        let ClassSurvey { name, images, all, small, medium, large, .. } = class;
        let _ = writeln!(
            text,
            "{name:<width$}{images:>10}{:>10}{:>12}{:>18}{:>18}{:>18}",
            all.boxes,
            share(*all),
            of(*small),
            of(*medium),
            of(*large)
        );
    }
    let _ = writeln!(text, "(small, medium, large: below 32², below 96² and from 96² pixels of the network's input)");
    let _ = writeln!(text, "\nside of boxes in pixels of the image");
    let most = survey.sides.iter().map(|bin| bin.boxes).max().unwrap_or(1);
    for bin in &survey.sides {
        let bar = "#".repeat((40 * bin.boxes).div_ceil(most));
        let _ = writeln!(text, "{:>6} to {:<6}{:>8}  {bar}", bin.from, bin.to, bin.boxes);
    }
    let _ = writeln!(text, "\nimages by size");
    for size in survey.image_sizes.iter().take(NAMED) {
        let _ = writeln!(text, "{:>6} x {:<6}{:>8}", size.width, size.height, size.images);
    }
    more(&mut text, survey.image_sizes.len());

    for problem in &survey.problems {
        let _ = writeln!(text, "\nannotations: {problem}");
    }
    let bad = survey.bad_images.iter().map(|bad| format!("{}: {}", bad.file, bad.reason));
    list(&mut text, "images that can't be used", bad);
    list(&mut text, "images with the same pixels", survey.duplicate_images.iter().map(|files| files.join(", ")));
    let boxes = survey.duplicate_boxes.iter();
    let boxes = boxes.map(|place| format!("{} annotation {} ({})", place.file, place.annotation, place.class));
    list(&mut text, "boxes that repeat another one", boxes);
    let unmatched = survey.unmatched.iter().map(|unmatched| {
        let place = &unmatched.place;
        format!(
            "{} annotation {} ({}): {:.0} x {:.0} in the network's input, best IoU {:.2}",
            place.file, place.annotation, place.class, unmatched.width, unmatched.height, unmatched.max_iou
        )
    });
    list(&mut text, "boxes without an anchor, which won't be learned", unmatched);
    text.truncate(text.trim_end().len());
    text
}

/// How the two parts differ where they should not, and agree where they should not; and the `foreign` classes, those of
/// the configuration where they are not those of the training data.
pub(super) fn differences(
    foreign: Option<&[Class]>,
    train: &Dataset,
    validation: &Dataset,
    in_both: &[[String; 2]],
) -> Option<String> {
    let mut text = String::new();
    let names = |classes: &[Class]| {
        classes.iter().map(|class| format!("{} {}", class.id, class.name)).collect::<Vec<_>>().join(", ")
    };
    if let Some(classes) = foreign {
        let _ = writeln!(
            text,
            "the classes differ: `model.classes` has {}; training has {}; leave `model.classes` out to take the latter",
            names(classes),
            names(&train.classes)
        );
    }
    if train.classes != validation.classes {
        let _ = writeln!(
            text,
            "the classes differ: training has {}; validation has {}; give both parts the same `classes`",
            names(&train.classes),
            names(&validation.classes)
        );
    }
    let pairs = in_both.iter().map(|[train, validation]| format!("{train} and {validation}"));
    list(&mut text, "images are in both parts, so validation says too much", pairs);
    (!text.is_empty()).then(|| text.trim().to_owned())
}

/// What anchors would be better, as the lines of the configuration.
pub(super) fn suggestion(suggestion: Option<&Suggestion>, images: usize) -> String {
    let Some(Suggestion { anchors, share: [own, share] }) = suggestion else {
        return format!("anchors: none of those tried match more boxes than the configured ones (on {images} images)");
    };
    format!(
        "anchors: these match {:.2} % of the boxes instead of {:.2} % (on {images} images)\nmodel:\n  anchors:\n    \
         sizes: {:?}\n    ratios: {:?}\n    scales: {:?}",
        100.0 * share,
        100.0 * own,
        anchors.sizes,
        anchors.ratios,
        anchors.scales
    )
}

fn list(text: &mut String, title: &str, entries: impl ExactSizeIterator<Item = impl Display>) {
    let count = entries.len();
    if count > 0 {
        let _ = writeln!(text, "\n{count} {title}");
        for entry in entries.take(NAMED) {
            let _ = writeln!(text, "  {entry}");
        }
        more(text, count);
    }
}

fn more(text: &mut String, count: usize) {
    if count > NAMED {
        let _ = writeln!(text, "  and {} more", count - NAMED);
    }
}

fn share(matched: MatchedBoxes) -> String {
    match matched.boxes {
        0 => "-".to_owned(),
        boxes => format!("{:.1} %", 100.0 * matched.matched as f64 / boxes as f64),
    }
}

fn of(matched: MatchedBoxes) -> String {
    match matched.boxes {
        0 => "-".to_owned(),
        boxes => format!("{} of {boxes}", matched.matched),
    }
}
