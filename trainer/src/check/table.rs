//! The survey as text.

use std::fmt::{Display, Write as _};

use models::coverage::Suggestion;

use super::survey::{BoxLocation, ClassSurvey, MatchedBoxes, Survey, Unmatched};
use crate::progress::counted;
use crate::splits::SourceSummary;

/// Maximum number of entries printed of a list. The JSON output contains all of them.
const MAX_ENTRIES: usize = 10;

/// The survey of one split, without a final line break.
pub(super) fn split(title: &str, survey: &Survey, images_per_epoch: Option<usize>) -> String {
    let images = |count| counted(count, "image", "images");
    let boxes = |count| counted(count, "box", "boxes");
    let of_all = match &survey.sources[..] {
        [one] => one.annotations.display().to_string(),
        several => format!("{} data sets", several.len()),
    };
    let mut text = format!(
        "{title}, {of_all}: {}, {} of {}, {}, {} without boxes\n",
        images(survey.images),
        boxes(survey.boxes),
        counted(survey.classes.len(), "class", "classes"),
        counted(survey.crowds, "crowd region", "crowd regions"),
        images(survey.images_without_boxes)
    );
    for source in survey.sources.iter().filter(|_| survey.sources.len() > 1) {
        let SourceSummary { annotations, images: count, boxes: objects, repeat } = source;
        let repeated = if *repeat == 1 { String::new() } else { format!(", {repeat} times in an epoch") };
        let _ = writeln!(text, "  {}: {}, {}{repeated}", annotations.display(), images(*count), boxes(*objects));
    }
    if let Some(drawn) = images_per_epoch.filter(|drawn| *drawn != survey.images) {
        let _ = writeln!(text, "{} per epoch, repeated ones included", images(drawn));
    }
    class_table(&mut text, &survey.classes);
    size_histograms(&mut text, survey);
    problems(&mut text, survey);
    text.truncate(text.trim_end().len());
    text
}

/// Numbers of images and boxes of each class, and how many boxes have an anchor.
fn class_table(text: &mut String, classes: &[ClassSurvey]) {
    let width = classes.iter().map(|class| class.name.chars().count()).max().unwrap_or(0).max(5);
    let _ = writeln!(
        text,
        "\n{:<width$}{:>10}{:>10}{:>12}{:>18}{:>18}{:>18}",
        "class", "images", "boxes", "with anchor", "small", "medium", "large"
    );
    for class in classes {
        let ClassSurvey { name, images, all, small, medium, large, .. } = class;
        let _ = writeln!(
            text,
            "{name:<width$}{images:>10}{:>10}{:>12}{:>18}{:>18}{:>18}",
            all.boxes,
            percentage(*all),
            ratio(*small),
            ratio(*medium),
            ratio(*large)
        );
    }
    let _ = writeln!(
        text,
        "(small, medium, large: boxes with an anchor, of all of that size; small: area below 32² pixels of the network's \
         input, large: 96² or more)"
    );
}

/// Numbers of boxes and of images by size.
fn size_histograms(text: &mut String, survey: &Survey) {
    let _ = writeln!(text, "\nboxes by size (square root of the area, in pixels of the image)");
    let max = survey.sides.iter().map(|bin| bin.boxes).max().unwrap_or(1);
    for bin in &survey.sides {
        let bar = "#".repeat((40 * bin.boxes).div_ceil(max));
        let _ = writeln!(text, "{:>6} to {:<6}{:>8}  {bar}", bin.from, bin.to, bin.boxes);
    }
    let _ = writeln!(text, "\nimages by size (width x height)");
    for size in survey.image_sizes.iter().take(MAX_ENTRIES) {
        let _ = writeln!(text, "{:>6} x {:<6}{:>8}", size.width, size.height, size.images);
    }
    more(text, survey.image_sizes.len());
}

/// What training refuses, and what may be a mistake.
fn problems(text: &mut String, survey: &Survey) {
    for problem in &survey.problems {
        let _ = writeln!(text, "\n{problem}");
    }
    let bad = survey.bad_images.iter().map(|bad| format!("{}: {}", bad.file, bad.reason));
    list(text, ["image that cannot be used", "images that cannot be used"], bad);
    list(
        text,
        ["group of images with identical pixels", "groups of images with identical pixels"],
        survey.duplicate_images.iter().map(|files| files.join(", ")),
    );
    let located = |location: &BoxLocation| {
        let BoxLocation { file, annotation, class } = location;
        format!("{file} annotation {annotation} ({class})")
    };
    list(text, ["duplicate box", "duplicate boxes"], survey.duplicate_boxes.iter().map(located));
    let unmatched = survey.unmatched.iter().map(|Unmatched { location, width, height, max_iou }| {
        let location = located(location);
        format!("{location}: {width:.0} x {height:.0} pixels of the network's input, maximum IoU {max_iou:.2}")
    });
    let titles = [
        "box without a matched anchor, which cannot be learned",
        "boxes without a matched anchor, which cannot be learned",
    ];
    list(text, titles, unmatched);
}

/// Images that are in both splits.
pub(super) fn in_both(in_both: &[[String; 2]]) -> Option<String> {
    let mut text = String::new();
    let pairs = in_both.iter().map(|[train, validation]| format!("{train} and {validation}"));
    let consequence = "in both splits, so validation overestimates the AP";
    list(&mut text, [&format!("image is {consequence}"), &format!("images are {consequence}")], pairs);
    (!text.is_empty()).then(|| text.trim().to_owned())
}

/// Why training would not start.
pub(super) fn refusals(refusals: &[String]) -> Option<String> {
    (!refusals.is_empty()).then(|| format!("training would refuse this data:\n  {}", refusals.join("\n  ")))
}

/// The suggested anchors, as lines of the configuration.
pub(super) fn suggestion(suggestion: Option<&Suggestion>, images: usize) -> String {
    let Some(Suggestion { anchors, matched_fraction: [configured, suggested] }) = suggestion else {
        return format!(
            "anchors: none of the candidates matches more boxes than the configured anchors (on {})",
            counted(images, "image", "images")
        );
    };
    format!(
        "anchors: these match {:.2} % of the boxes instead of {:.2} % (on {})\nmodel:\n  anchors:\n    \
         sizes: {:?}\n    ratios: {:?}\n    scales: {:?}",
        100.0 * suggested,
        100.0 * configured,
        counted(images, "image", "images"),
        anchors.sizes,
        anchors.ratios,
        anchors.scales
    )
}

/// `titles`: for one entry, and for several.
fn list(text: &mut String, [one, several]: [&str; 2], entries: impl ExactSizeIterator<Item = impl Display>) {
    let count = entries.len();
    if count > 0 {
        let _ = writeln!(text, "\n{}", counted(count, one, several));
        for entry in entries.take(MAX_ENTRIES) {
            let _ = writeln!(text, "  {entry}");
        }
        more(text, count);
    }
}

fn more(text: &mut String, count: usize) {
    if count > MAX_ENTRIES {
        let _ = writeln!(text, "  and {} more", count - MAX_ENTRIES);
    }
}

fn percentage(matched: MatchedBoxes) -> String {
    match matched.boxes {
        0 => "-".to_owned(),
        boxes => format!("{:.1} %", 100.0 * matched.matched as f64 / boxes as f64),
    }
}

fn ratio(matched: MatchedBoxes) -> String {
    match matched.boxes {
        0 => "-".to_owned(),
        boxes => format!("{} of {boxes}", matched.matched),
    }
}
