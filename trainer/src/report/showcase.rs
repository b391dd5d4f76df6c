//! The best and worst images, with detections and ground truth.

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::RgbImage;
use image::codecs::jpeg::JpegEncoder;
use image::imageops::{FilterType, resize, thumbnail};
use models::dataset::Dataset;
use models::evaluation::{ConfusionMatrix, ConfusionRule, ScoredBox, confusion_matrix};

use super::markup::Markup;
use super::text::{count, counted};
use super::threshold::Counts;
use crate::annotated::confident_detections;
use crate::loader::Recipe;

/// Number of best images, and of worst images.
const SHOWN: usize = 6;

/// Maximum side of a shown image, in pixels.
const LONGEST_SIDE: u32 = 512;

/// Images whose longer side is below this number of pixels are enlarged, so that tags do not hide them.
const SMALL_SIDE: u32 = 256;

/// Maximum enlargement.
const ENLARGED: f64 = 3.0;

/// JPEG quality, from 1 to 100. Files have half the size of those with visually lossless quality.
const JPEG_QUALITY: u8 = 80;

/// Maximum number of kinds of errors listed below an image.
const NAMED: usize = 4;

/// An image with its numbers of objects, detections and correct detections.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Judged {
    image: usize,
    counts: Counts,
}

pub(super) fn draw(recipe: &Recipe, scored: &[ScoredBox], rule: ConfusionRule, markup: &mut Markup) {
    let detections = by_image(&recipe.dataset, scored);
    let [best, worst] = best_and_worst(&judge(&recipe.dataset, &detections, rule));
    let text = format!(
        "Images ranked by F1 at IoU {}, counting detections with a score of at least {:.2}. Ties are broken by the number of \
         objects found (best) or of errors (worst).",
        rule.iou, rule.score
    );
    markup.phrase("p", &[("class", &"remark")], text);
    markup.element("p", &[("class", &"remark")], |markup| {
        markup.phrase("span", &[("class", &"key truth")], "ground truth: black and white dashes");
        markup.phrase("span", &[("class", &"key frame")], "detection: frame with class and score");
    });
    let kinds = [("Worst", worst, "No image has errors."), ("Best", best, "No object was found in any image.")];
    for (title, chosen, none) in kinds {
        markup.phrase("h3", &[], title);
        if chosen.is_empty() {
            markup.phrase("p", &[("class", &"empty")], none);
        }
        markup.element("div", &[("class", &"images")], |markup| {
            for judged in chosen {
                image(recipe, judged, &detections[judged.image], rule, markup);
            }
        });
    }
}

fn by_image(dataset: &Dataset, scored: &[ScoredBox]) -> Vec<Vec<ScoredBox>> {
    let mut detections = vec![Vec::new(); dataset.images().len()];
    for found in scored {
        if let Some(of_image) = detections.get_mut(found.image) {
            of_image.push(*found);
        }
    }
    detections
}

/// Evaluates each image. `detections` has one list per image.
fn judge(dataset: &Dataset, detections: &[Vec<ScoredBox>], rule: ConfusionRule) -> Vec<Judged> {
    let judge = |(image, found): (usize, &Vec<ScoredBox>)| {
        let (_, matrix) = compare(dataset, image, found, rule);
        Judged { image, counts: Counts::of(&matrix) }
    };
    detections.iter().enumerate().map(judge).collect()
}

/// The confusion matrix of one image, and the class indices of its rows: only classes of its objects and detections, because
/// a matrix of a thousand classes would be large.
fn compare(dataset: &Dataset, image: usize, found: &[ScoredBox], rule: ConfusionRule) -> (Vec<usize>, ConfusionMatrix) {
    let mut objects = dataset.annotations_of(image).to_vec();
    let mut found = found.to_vec();
    let all = objects.iter().map(|object| object.class_index).chain(found.iter().map(|found| found.class_index));
    let mut classes: Vec<_> = all.filter(|class| *class < dataset.classes().len()).collect();
    classes.sort_unstable();
    classes.dedup();
    let place = |class: usize| classes.binary_search(&class).unwrap_or(usize::MAX);
    objects.iter_mut().for_each(|object| object.class_index = place(object.class_index));
    found.iter_mut().for_each(|found| found.class_index = place(found.class_index));
    let matrix = confusion_matrix(&objects, &found, classes.len(), rule);
    (classes, matrix)
}

/// The best and the worst images; no image is in both lists.
fn best_and_worst(judged: &[Judged]) -> [Vec<Judged>; 2] {
    let mut order = judged.to_vec();
    order.sort_by(|a, b| b.counts.f1().total_cmp(&a.counts.f1()).then(b.counts.right.cmp(&a.counts.right)));
    order.truncate(SHOWN.min(judged.len().div_ceil(2)));
    let best: Vec<_> = order.into_iter().filter(|judged| judged.counts.right > 0).collect();
    let mut worst: Vec<_> =
        judged.iter().filter(|one| one.counts.errors() > 0 && !best.contains(one)).copied().collect();
    worst.sort_by(|a, b| a.counts.f1().total_cmp(&b.counts.f1()).then(b.counts.errors().cmp(&a.counts.errors())));
    worst.truncate(SHOWN);
    [best, worst]
}

fn image(recipe: &Recipe, judged: Judged, found: &[ScoredBox], rule: ConfusionRule, markup: &mut Markup) {
    let dataset = &recipe.dataset;
    let name = &dataset.images()[judged.image].file_name;
    markup.element("figure", &[("class", &"image")], |markup| {
        match drawn(recipe, judged.image, found, rule) {
            Ok((jpeg, [width, height])) => {
                let address = format!("data:image/jpeg;base64,{}", STANDARD.encode(jpeg));
                let alternative = format!("{name} with boxes");
                markup.leaf("img", &[("src", &address), ("alt", &alternative), ("width", &width), ("height", &height)]);
            }
            Err(error) => markup.phrase("p", &[("class", &"empty")], format!("Cannot draw the image: {error:#}")),
        }
        markup.element("figcaption", &[], |markup| {
            markup.phrase("b", &[], name);
            let Counts { objects, detections, right } = judged.counts;
            let text = format!(
                "F1 {:.2}: {} of {} found, {}",
                judged.counts.f1(),
                count(right),
                counted(objects, "object", "objects"),
                counted(detections - right, "false positive", "false positives")
            );
            markup.phrase("span", &[], text);
            let errors = errors(dataset, judged.image, found, rule);
            if !errors.is_empty() {
                markup.phrase("span", &[("class", &"errors")], errors);
            }
        });
    });
}

/// The image with boxes as JPEG, and its width and height.
fn drawn(
    recipe: &Recipe,
    index: usize,
    found: &[ScoredBox],
    rule: ConfusionRule,
) -> anyhow::Result<(Vec<u8>, [u32; 2])> {
    let image = runtime::image_file::read(recipe.dataset.path_of(index))?;
    let (mut image, scale) = sized(image);
    let detections = confident_detections(found, index, rule.score, scale);
    let objects = recipe.dataset.annotations_of(index).iter();
    let objects: Vec<_> = objects.map(|object| object.rectangle.bounding_box().scale(scale, scale)).collect();
    runtime::draw::draw_with_truth(&mut image, &detections, &recipe.spec.classes, &objects);
    let mut jpeg = Vec::new();
    let encoder = JpegEncoder::new_with_quality(&mut jpeg, JPEG_QUALITY);
    image.write_with_encoder(encoder).context("cannot encode the image as JPEG")?;
    Ok((jpeg, image.dimensions().into()))
}

/// Resizes an image to the size at which it is shown; also returns the scale factor.
fn sized(image: RgbImage) -> (RgbImage, f32) {
    let longest = image.width().max(image.height()).max(1);
    let factor = f64::from(LONGEST_SIDE) / f64::from(longest);
    let factor = if longest < SMALL_SIDE { factor.min(ENLARGED) } else { factor.min(1.0) };
    let side = |side: u32| (f64::from(side) * factor).round().max(1.0) as u32;
    let (width, height) = (side(image.width()), side(image.height()));
    let sized = match factor {
        ..1.0 => thumbnail(&image, width, height),
        1.0 => image,
        _ => resize(&image, width, height, FilterType::Triangle),
    };
    (sized, factor as f32)
}

/// The errors on an image as text, most frequent first.
fn errors(dataset: &Dataset, image: usize, found: &[ScoredBox], rule: ConfusionRule) -> String {
    let (classes, matrix) = compare(dataset, image, found, rule);
    let background = matrix.background();
    let name = |place: usize| dataset.classes()[classes[place]].name.as_str();
    let mut errors = Vec::new();
    for (truth, counts) in matrix.counts.iter().enumerate() {
        for (prediction, number) in counts.iter().enumerate().filter(|(_, number)| **number > 0) {
            let times = if *number > 1 { format!("{number} × ") } else { String::new() };
            let text = match (truth, prediction) {
                _ if truth == prediction => continue,
                (_, _) if prediction == background => format!("{times}{} missed", name(truth)),
                (_, _) if truth == background => format!("{times}{} without an object", name(prediction)),
                _ => format!("{times}{} detected as {}", name(truth), name(prediction)),
            };
            errors.push((*number, text));
        }
    }
    errors.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    let more = errors.len() > NAMED;
    let texts: Vec<_> = errors.into_iter().take(NAMED).map(|(_, text)| text).collect();
    texts.join(", ") + if more { ", and more" } else { "" }
}

#[cfg(test)]
mod tests {
    use models::dataset::{Annotation, Image, Rectangle};
    use models::spec::Class;

    use super::*;

    fn place(x: f64) -> Rectangle {
        Rectangle { x, y: 0.0, width: 10.0, height: 10.0 }
    }

    /// A data set whose images each have a dog and a cow.
    fn dataset(images: usize) -> Dataset {
        let image = |id| Image { id, file_name: format!("{id}.png"), width: 100, height: 50 };
        let object = |image, class_index, x| Annotation {
            id: 1,
            image,
            class_index,
            rectangle: place(x),
            area: 100.0,
            crowd: false,
            difficult: false,
        };
        let annotations = (0..images).flat_map(|image| [object(image, 1, 0.0), object(image, 2, 20.0)]).collect();
        let classes = (0..).zip(["cat", "dog", "cow"]).map(|(id, name)| Class { id, name: name.to_owned() }).collect();
        Dataset::new("", (0..images as i64).map(image).collect(), annotations, classes).unwrap()
    }

    fn found(image: usize, class_index: usize, x: f64) -> ScoredBox {
        ScoredBox { image, class_index, score: 0.9, rectangle: place(x) }
    }

    fn chosen(dataset: &Dataset, scored: &[ScoredBox]) -> [Vec<usize>; 2] {
        let judged = judge(dataset, &by_image(dataset, scored), ConfusionRule::default());
        best_and_worst(&judged).map(|chosen| chosen.iter().map(|judged| judged.image).collect())
    }

    #[test]
    fn worst_images_have_the_lowest_f1_then_the_most_errors() {
        let scored = [
            found(0, 1, 0.0),
            found(0, 2, 20.0), // Both objects found.
            found(1, 1, 0.0),  // One object found.
            found(3, 2, 0.0),
            found(3, 0, 50.0), // A wrong class, and a detection without an object.
        ];
        assert_eq!(chosen(&dataset(4), &scored), [vec![0, 1], vec![3, 2]]);
        assert_eq!(chosen(&dataset(1), &scored), [vec![0], vec![]]);
        assert_eq!(chosen(&dataset(2), &[]), [vec![], vec![0, 1]]);
        assert_eq!(chosen(&dataset(0), &scored).concat(), [0; 0]);
    }

    #[test]
    fn errors_are_described() {
        let scored = [found(0, 2, 0.0), found(0, 0, 50.0), found(0, 0, 70.0)];
        let text = errors(&dataset(1), 0, &scored, ConfusionRule::default());
        assert_eq!(text, "2 × cat without an object, dog detected as cow, cow missed");
    }

    #[test]
    fn small_images_are_enlarged_and_large_ones_shrunk() {
        for ([width, height], expected) in
            [([150, 96], [450, 288]), ([250, 10], [512, 20]), ([400, 300], [400, 300]), ([5120, 3], [512, 1])]
        {
            let (sized, scale) = sized(RgbImage::new(width, height));
            assert_eq!(<[u32; 2]>::from(sized.dimensions()), expected);
            assert!((scale - expected[0] as f32 / width as f32).abs() < 0.01);
        }
    }
}
