//! Views: the whole image, its tiles and their mirror images, each of which is an input of the network, and how their
//! detections are merged.

use image::{RgbImage, imageops};
use models::BoundingBox;
use models::spec::{PostprocessingSpec, Suppression};

use crate::image_file::Region;
use crate::postprocess::Detection;

/// Which views of an image the network runs on, besides the whole image.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ViewOptions {
    /// Also tiles of images that are larger than a tile.
    pub tiling: Option<Tiling>,
    /// Also every view mirrored horizontally.
    pub flip: bool,
}

/// Tiling of an image that is much larger than the network's input, so that small objects are large in a tile. Objects
/// larger than a tile are found in the whole image, which is a view too.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tiling {
    /// Width of a tile, in pixels of the image.
    pub width: u32,
    /// Height of a tile, in pixels of the image.
    pub height: u32,
    /// Minimum overlap of neighboring tiles, as a fraction of a tile. Smaller objects are complete in at least one
    /// tile.
    pub overlap: f32,
}

/// The tiling is invalid.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TilingError {
    /// The tiles are too small.
    #[error("tile size is {width}x{height} pixels, expected at least {} per side", Tiling::MIN_SIDE)]
    Small {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// The overlap is out of range.
    #[error("tile overlap is {found}, expected between 0 and {}", Tiling::MAX_OVERLAP)]
    Overlap {
        /// Fraction of a tile.
        found: f32,
    },
}

impl Tiling {
    /// Minimum width and height of a tile, in pixels.
    pub const MIN_SIDE: u32 = 32;

    /// Maximum overlap; more would multiply the number of tiles.
    pub const MAX_OVERLAP: f32 = 0.9;

    pub(crate) fn check(&self) -> Result<(), TilingError> {
        if self.width.min(self.height) < Self::MIN_SIDE {
            return Err(TilingError::Small { width: self.width, height: self.height });
        }
        match (0.0..=Self::MAX_OVERLAP).contains(&self.overlap) {
            true => Ok(()),
            false => Err(TilingError::Overlap { found: self.overlap }),
        }
    }

    /// The tiles of an image, row by row; empty if one tile would cover all of it.
    fn regions(&self, width: u32, height: u32) -> Vec<Region> {
        let columns = tile_starts(width, self.width, self.overlap);
        let rows = tile_starts(height, self.height, self.overlap);
        if columns.len() * rows.len() == 1 {
            return Vec::new();
        }
        let (tile_width, tile_height) = (self.width.min(width), self.height.min(height));
        let region = |x, y| Region { x, y, width: tile_width, height: tile_height };
        rows.iter().flat_map(|y| columns.iter().map(move |x| region(*x, *y))).collect()
    }
}

/// First pixels of evenly spaced tiles with this `side`, which cover `length` pixels.
fn tile_starts(length: u32, side: u32, overlap: f32) -> Vec<u32> {
    if length <= side {
        return vec![0];
    }
    let step = (f64::from(side) * (1.0 - f64::from(overlap))).max(1.0);
    let last = length - side;
    let steps = (f64::from(last) / step).ceil() as u32;
    (0..=steps).map(|step| (u64::from(last) * u64::from(step) / u64::from(steps)) as u32).collect()
}

fn intersect(a: &Region, b: &Region) -> bool {
    let overlap =
        |start1: u32, length1: u32, start2: u32, length2: u32| start1 < start2 + length2 && start2 < start1 + length1;
    overlap(a.x, a.width, b.x, b.width) && overlap(a.y, a.height, b.y, b.height)
}

/// Specifies a view: the whole image or a part, unchanged or mirrored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ViewSpec {
    /// The part of the upright image.
    pub(crate) region: Region,
    /// Whether the part is mirrored horizontally.
    pub(crate) mirrored: bool,
}

impl ViewOptions {
    /// The views of an image of `width` by `height` pixels; the whole image comes first.
    pub(crate) fn view_specs(&self, width: u32, height: u32) -> Vec<ViewSpec> {
        let whole = Region { x: 0, y: 0, width, height };
        let tiles = self.tiling.map(|tiling| tiling.regions(width, height)).unwrap_or_default();
        let mirrored: &[bool] = if self.flip { &[false, true] } else { &[false] };
        let of_region = |region| mirrored.iter().map(move |mirrored| ViewSpec { region, mirrored: *mirrored });
        std::iter::once(whole).chain(tiles).flat_map(of_region).collect()
    }
}

impl ViewSpec {
    /// The pixels of the view; `None` if the view is the unchanged image.
    pub(crate) fn crop(&self, image: &RgbImage) -> Option<RgbImage> {
        let Region { x, y, width, height } = self.region;
        let part =
            ((width, height) != image.dimensions()).then(|| imageops::crop_imm(image, x, y, width, height).to_image());
        match (self.mirrored, part) {
            (false, part) => part,
            (true, Some(mut part)) => {
                imageops::flip_horizontal_in_place(&mut part);
                Some(part)
            }
            (true, None) => Some(imageops::flip_horizontal(image)),
        }
    }

    /// Converts detections from pixels of the view to pixels of the original image.
    pub(crate) fn to_original_image(self, mut detections: Vec<Detection>) -> Vec<Detection> {
        for detection in &mut detections {
            detection.bounding_box = self.box_to_original_image(&detection.bounding_box);
        }
        detections
    }

    fn box_to_original_image(self, in_view: &BoundingBox) -> BoundingBox {
        let (left, top, width) = (self.region.x as f32, self.region.y as f32, self.region.width as f32);
        let (x1, x2) = if self.mirrored { (width - in_view.x2, width - in_view.x1) } else { (in_view.x1, in_view.x2) };
        BoundingBox::new(x1 + left, in_view.y1 + top, x2 + left, in_view.y2 + top)
    }

    /// Whether the view's border, where it is not the image's, probably truncates the object. `found` is in pixels of
    /// the original image, whose size is `width` by `height`.
    fn truncates(&self, found: &BoundingBox, width: u32, height: u32) -> bool {
        /// Boxes of truncated objects end within this fraction of the view's side from the border. A box whose edges are off
        /// by 2 % of its side overlaps its object with an IoU of 0.96, better than a trained detector's boxes usually do, and
        /// no box is larger than its view.
        const NEAR: f32 = 0.02;
        let side = |start: u32, length: u32, whole: u32, near: f32, far: f32| {
            let (first, last, margin) = (start as f32, (start + length) as f32, NEAR * length as f32);
            (start > 0 && near < first + margin) || (start + length < whole && far > last - margin)
        };
        let Region { x, y, width: columns, height: rows } = self.region;
        side(x, columns, width, found.x1, found.x2) || side(y, rows, height, found.y1, found.y2)
    }
}

/// Merges the detections in the views of one image, highest score first. Boxes are in pixels of the original image; NMS
/// has already been applied within each view.
///
/// A box is removed if its IoU with a higher-scoring kept box of another view exceeds the spec's NMS threshold. A box
/// that a tile border truncates is also removed if another box covers more than that fraction of it. Complete boxes are
/// visited before truncated ones, so that a part of an object never replaces the whole.
///
/// Soft-NMS does not apply here: boxes of several views that overlap are not crowded objects, but the same object again,
/// whose lowered scores would remain. Views that do not intersect are not compared: a large image has hundreds of tiles,
/// each with a few neighbors.
pub(crate) fn merge(
    mut found: Vec<(ViewSpec, Vec<Detection>)>,
    [width, height]: [u32; 2],
    rules: &PostprocessingSpec,
) -> Vec<Detection> {
    if found.len() == 1 {
        return found.pop().map(|(_, detections)| detections).unwrap_or_default();
    }
    let mut candidates: Vec<_> = found
        .iter()
        .enumerate()
        .flat_map(|(view, (spec, detections))| {
            let candidate = move |detection: &Detection| Candidate {
                view,
                is_truncated: spec.truncates(&detection.bounding_box, width, height),
                detection: *detection,
            };
            detections.iter().map(candidate)
        })
        .collect();
    candidates
        .sort_by(|a, b| a.is_truncated.cmp(&b.is_truncated).then(b.detection.score.total_cmp(&a.detection.score)));
    let regions: Vec<_> = found.iter().map(|(spec, _)| spec.region).collect();
    let others = |view: usize| (0..regions.len()).filter(move |other| *other != view);
    let neighbors: Vec<Vec<_>> = (0..regions.len())
        .map(|view| others(view).filter(|other| intersect(&regions[view], &regions[*other])).collect())
        .collect();
    let mut kept: Vec<Vec<Candidate>> = found.iter().map(|_| Vec::new()).collect();
    for candidate in candidates {
        let mut others = neighbors[candidate.view].iter().flat_map(|view| &kept[*view]);
        if !others.any(|other| other.suppresses(&candidate, rules)) {
            kept[candidate.view].push(candidate);
        }
    }
    let mut detections: Vec<_> = kept.into_iter().flatten().map(|candidate| candidate.detection).collect();
    detections.sort_by(|a, b| b.score.total_cmp(&a.score));
    detections.truncate(rules.max_detections.unwrap_or(usize::MAX));
    detections
}

/// A detection in one of several views.
struct Candidate {
    view: usize,
    /// Whether the view probably shows only a part of the object.
    is_truncated: bool,
    detection: Detection,
}

impl Candidate {
    /// Whether this kept box suppresses `other`, a later box of another view.
    fn suppresses(&self, other: &Self, rules: &PostprocessingSpec) -> bool {
        let same_group = rules.suppression == Suppression::ClassAgnostic
            || self.detection.class_index == other.detection.class_index;
        if !same_group {
            return false;
        }
        let (kept, later) = (&self.detection.bounding_box, &other.detection.bounding_box);
        kept.iou(later) > rules.nms_threshold
            || (other.is_truncated && covered_fraction(later, kept) > rules.nms_threshold)
    }
}

/// The fraction of `part` that `by` covers.
fn covered_fraction(part: &BoundingBox, by: &BoundingBox) -> f32 {
    let width = (part.x2.min(by.x2) - part.x1.max(by.x1)).max(0.0);
    let height = (part.y2.min(by.y2) - part.y1.max(by.y1)).max(0.0);
    width * height / part.area()
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    const TILING: Tiling = Tiling { width: 100, height: 80, overlap: 0.25 };

    #[test]
    fn tiles_cover_the_image_with_at_least_the_minimum_overlap() {
        for (width, height) in [(101, 80), (250, 333), (1000, 81), (99, 1000), (175, 140)] {
            let regions = TILING.regions(width, height);
            assert!(
                regions.iter().all(|region| region.x + region.width <= width && region.y + region.height <= height)
            );
            let columns: Vec<_> = tile_starts(width, 100, 0.25);
            assert_eq!((columns[0], columns[columns.len() - 1] + 100.min(width)), (0, width));
            assert!(columns.windows(2).all(|pair| pair[1] - pair[0] <= 75), "{columns:?}");
        }
        // The second tile starts 75 pixels later and ends at the image's border.
        assert_eq!(tile_starts(175, 100, 0.25), [0, 75]);
    }

    #[test]
    fn image_that_fits_one_tile_has_one_view() {
        let options = ViewOptions { tiling: Some(TILING), flip: false };
        assert_eq!(options.view_specs(100, 80).len(), 1);
        assert_eq!(options.view_specs(101, 80).len(), 3);
        assert_eq!(ViewOptions { flip: true, ..options }.view_specs(101, 80).len(), 6);
    }

    #[test]
    fn small_tiles_and_large_overlaps_are_rejected() {
        assert!(matches!(Tiling { width: 31, ..TILING }.check(), Err(TilingError::Small { .. })));
        for overlap in [-0.1, 0.95, f32::NAN] {
            assert!(matches!(Tiling { overlap, ..TILING }.check(), Err(TilingError::Overlap { .. })));
        }
        assert_eq!(TILING.check(), Ok(()));
    }

    #[test]
    fn view_shows_its_part_and_boxes_map_back_to_the_image() {
        let image = RgbImage::from_fn(30, 20, |x, y| Rgb([x as u8, y as u8, 0]));
        let region = Region { x: 4, y: 5, width: 10, height: 8 };
        let part = ViewSpec { region, mirrored: false }.crop(&image).unwrap();
        assert_eq!((part.dimensions(), part.get_pixel(1, 2)), ((10, 8), &Rgb([5, 7, 0])));
        let mirrored = ViewSpec { region, mirrored: true };
        assert_eq!(mirrored.crop(&image).unwrap().get_pixel(0, 2), &Rgb([13, 7, 0]));
        let found = mirrored.box_to_original_image(&BoundingBox::new(0.0, 2.0, 3.0, 4.0));
        assert_eq!(found, BoundingBox::new(11.0, 7.0, 14.0, 9.0));
        let whole = ViewSpec { region: Region { x: 0, y: 0, width: 30, height: 20 }, mirrored: false };
        assert_eq!(whole.crop(&image), None);
    }

    fn detection(score: f32, corners: [f32; 4]) -> Detection {
        Detection { class_index: 0, score, bounding_box: corners.into() }
    }

    /// Detections in the views of an image of 175x80 pixels: the whole image and two tiles.
    fn views(whole: Vec<Detection>, left: Vec<Detection>, right: Vec<Detection>) -> Vec<(ViewSpec, Vec<Detection>)> {
        let specs = ViewOptions { tiling: Some(TILING), flip: false }.view_specs(175, 80);
        let [whole_spec, left_spec, right_spec] = specs[..] else { panic!("{specs:?}") };
        vec![(whole_spec, whole), (left_spec, left), (right_spec, right)]
    }

    fn scores(found: Vec<(ViewSpec, Vec<Detection>)>) -> Vec<f32> {
        let rules = PostprocessingSpec::default();
        merge(found, [175, 80], &rules).into_iter().map(|detection| detection.score).collect()
    }

    #[test]
    fn object_in_several_views_is_detected_once() {
        // The tiles' columns are 0 to 100 and 75 to 175.
        let found = detection(0.9, [84.0, 10.0, 95.0, 30.0]);
        let again = detection(0.8, [84.5, 10.0, 95.0, 30.0]);
        assert_eq!(scores(views(vec![again], vec![found], vec![again])), [0.9]);
    }

    #[test]
    fn truncated_box_never_replaces_the_complete_one() {
        let whole = detection(0.6, [40.0, 10.0, 140.0, 50.0]);
        let left = detection(0.9, [40.0, 10.0, 100.0, 50.0]);
        let right = detection(0.95, [75.0, 10.0, 140.0, 50.0]);
        assert_eq!(scores(views(vec![whole], vec![left], vec![right])), [0.6]);
        // Without the complete box, both parts are kept: each covers less than half of the other.
        assert_eq!(scores(views(vec![], vec![left], vec![right])), [0.95, 0.9]);
    }

    #[test]
    fn smaller_boxes_and_other_classes_are_kept() {
        let large = detection(0.9, [0.0, 0.0, 70.0, 70.0]);
        let small = detection(0.5, [20.0, 20.0, 40.0, 40.0]);
        assert_eq!(scores(views(vec![large], vec![small], vec![])), [0.9, 0.5]);
        let other = Detection { class_index: 1, ..large };
        assert_eq!(scores(views(vec![large], vec![other], vec![])), [0.9, 0.9]);
    }

    #[test]
    fn boxes_of_one_view_do_not_suppress_each_other() {
        let overlapping = vec![detection(0.9, [10.0, 10.0, 50.0, 50.0]), detection(0.8, [12.0, 10.0, 50.0, 50.0])];
        assert_eq!(scores(views(overlapping, vec![], vec![])), [0.9, 0.8]);
    }

    #[test]
    fn skipping_disjoint_views_changes_nothing() {
        let specs = ViewOptions { tiling: Some(TILING), flip: true }.view_specs(400, 300);
        let mut state = 5u32;
        let mut unit = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32
        };
        let mut random_detection = |region: Region| {
            let (width, height) = (region.width as f32, region.height as f32);
            let (x, y) = (width * unit(), height * unit());
            let (far_x, far_y) = ((x + 60.0 * unit()).min(width), (y + 60.0 * unit()).min(height));
            let (left, top) = (region.x as f32, region.y as f32);
            detection(unit(), [left + x, top + y, left + far_x, top + far_y])
        };
        let found: Vec<(ViewSpec, Vec<_>)> =
            specs.iter().map(|spec| (*spec, (0..40).map(|_| random_detection(spec.region)).collect())).collect();

        let rules = PostprocessingSpec { nms_threshold: 0.2, ..PostprocessingSpec::default() };
        let candidates = found.iter().enumerate().flat_map(|(view, (spec, detections))| {
            detections.iter().map(move |detection| {
                let is_truncated = spec.truncates(&detection.bounding_box, 400, 300);
                Candidate { view, is_truncated, detection: *detection }
            })
        });
        let mut candidates: Vec<_> = candidates.collect();
        candidates
            .sort_by(|a, b| a.is_truncated.cmp(&b.is_truncated).then(b.detection.score.total_cmp(&a.detection.score)));
        let mut kept: Vec<Candidate> = Vec::new();
        for candidate in candidates {
            let mut others = kept.iter().filter(|other| other.view != candidate.view);
            if !others.any(|other| other.suppresses(&candidate, &rules)) {
                kept.push(candidate);
            }
        }
        let mut expected: Vec<_> = kept.iter().map(|candidate| candidate.detection.score).collect();
        expected.sort_by(|a, b| b.total_cmp(a));
        assert!(expected.len() < 40 * specs.len() * 9 / 10, "{} of {}", expected.len(), 40 * specs.len());

        let merged = merge(found, [400, 300], &rules);
        assert_eq!(merged.iter().map(|detection| detection.score).collect::<Vec<_>>(), expected);
    }
}
