//! Views: an image as the network sees it, at once or in several parts, and how what was found in each becomes one result.

use image::{RgbImage, imageops};
use models::spec::{PostprocessingSpec, Suppression};
use models::{BoundingBox, Preprocessed};

use crate::postprocess::Detection;

/// In which views the network sees an image.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ViewOptions {
    /// Larger images are also seen in tiles.
    pub tiling: Option<Tiling>,
    /// Everything is also seen mirrored, left to right.
    pub flip: bool,
}

/// How an image that is much larger than the network's input is cut, so that small objects are seen large. What is larger
/// than a tile is found in the whole image, which is a view too.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tiling {
    /// Width of a tile, in pixels of the image.
    pub width: u32,
    /// Height of a tile, in pixels of the image.
    pub height: u32,
    /// The least share of a tile that the next one shows too. An object not larger than that is whole in one of them.
    pub overlap: f32,
}

/// Why an image cannot be cut.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TilingError {
    /// Tiles would be tiny.
    #[error("tiles of {width}x{height} pixels are too small; {} is the least", Tiling::LEAST_SIDE)]
    Small {
        /// Pixels.
        width: u32,
        /// Pixels.
        height: u32,
    },
    /// Tiles would hardly move on.
    #[error("an overlap of tiles of {found} is not between 0 and {}", Tiling::MOST_OVERLAP)]
    Overlap {
        /// Share of a tile.
        found: f32,
    },
}

impl Tiling {
    /// Shorter sides would show nothing.
    pub const LEAST_SIDE: u32 = 32;

    /// More would take many times as many tiles.
    pub const MOST_OVERLAP: f32 = 0.9;

    pub(crate) fn check(&self) -> Result<(), TilingError> {
        if self.width.min(self.height) < Self::LEAST_SIDE {
            return Err(TilingError::Small { width: self.width, height: self.height });
        }
        match (0.0..=Self::MOST_OVERLAP).contains(&self.overlap) {
            true => Ok(()),
            false => Err(TilingError::Overlap { found: self.overlap }),
        }
    }

    /// The tiles of an image, row by row; none where one would show all of it.
    fn areas(&self, width: u32, height: u32) -> Vec<Area> {
        let columns = starts(width, self.width, self.overlap);
        let rows = starts(height, self.height, self.overlap);
        if columns.len() * rows.len() == 1 {
            return Vec::new();
        }
        let (tile_width, tile_height) = (self.width.min(width), self.height.min(height));
        let area = |left, top| Area { left, top, width: tile_width, height: tile_height };
        rows.iter().flat_map(|top| columns.iter().map(move |left| area(*left, *top))).collect()
    }
}

/// Where tiles of this `side` begin along `length` pixels: evenly, from one end to the other.
fn starts(length: u32, side: u32, overlap: f32) -> Vec<u32> {
    if length <= side {
        return vec![0];
    }
    let step = (f64::from(side) * (1.0 - f64::from(overlap))).max(1.0);
    let last = length - side;
    let steps = (f64::from(last) / step).ceil() as u32;
    (0..=steps).map(|place| (u64::from(last) * u64::from(place) / u64::from(steps)) as u32).collect()
}

/// A part of an image, in its pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// The first column.
    pub left: u32,
    /// The first row.
    pub top: u32,
    /// Number of columns, at least 1.
    pub width: u32,
    /// Number of rows, at least 1.
    pub height: u32,
}

impl Area {
    fn shares_pixels_with(&self, other: &Self) -> bool {
        let meet = |start: u32, length: u32, other: u32, its: u32| start < other + its && other < start + length;
        meet(self.left, self.width, other.left, other.width) && meet(self.top, self.height, other.top, other.height)
    }
}

/// What the network is to look at: all of an image or a part, as it is or mirrored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// The part.
    pub area: Area,
    /// Whether left and right change places.
    pub mirrored: bool,
}

impl ViewOptions {
    /// What the network looks at in an image of `width` by `height` pixels; the whole comes first.
    pub fn looks(&self, width: u32, height: u32) -> Vec<Look> {
        let whole = Area { left: 0, top: 0, width, height };
        let tiles = self.tiling.map(|tiling| tiling.areas(width, height)).unwrap_or_default();
        let mirrored: &[bool] = if self.flip { &[false, true] } else { &[false] };
        let looks = |area| mirrored.iter().map(move |mirrored| Look { area, mirrored: *mirrored });
        std::iter::once(whole).chain(tiles).flat_map(looks).collect()
    }
}

impl Look {
    /// What is to be seen; nothing if that is the image as it is.
    pub(crate) fn cut(&self, image: &RgbImage) -> Option<RgbImage> {
        let Area { left, top, width, height } = self.area;
        let part = ((width, height) != image.dimensions())
            .then(|| imageops::crop_imm(image, left, top, width, height).to_image());
        match (self.mirrored, part) {
            (false, part) => part,
            (true, Some(mut part)) => {
                imageops::flip_horizontal_in_place(&mut part);
                Some(part)
            }
            (true, None) => Some(imageops::flip_horizontal(image)),
        }
    }

    /// A box from pixels of what was seen to pixels of the image.
    fn to_original_image(self, seen: &BoundingBox) -> BoundingBox {
        let (left, top, width) = (self.area.left as f32, self.area.top as f32, self.area.width as f32);
        let (x1, x2) = if self.mirrored { (width - seen.x2, width - seen.x1) } else { (seen.x1, seen.x2) };
        BoundingBox::new(x1 + left, seen.y1 + top, x2 + left, seen.y2 + top)
    }

    /// Whether a box, in pixels of the image, ends where the view does and the image does not.
    fn cuts(&self, found: &BoundingBox, width: u32, height: u32) -> bool {
        /// Boxes of objects that go on beyond an edge end near it, by this share of the side.
        const NEAR: f32 = 0.02;
        let side = |start: u32, length: u32, whole: u32, near: f32, far: f32| {
            let (first, last, margin) = (start as f32, (start + length) as f32, NEAR * length as f32);
            (start > 0 && near < first + margin) || (start + length < whole && far > last - margin)
        };
        let Area { left, top, width: columns, height: rows } = self.area;
        side(left, columns, width, found.x1, found.x2) || side(top, rows, height, found.y1, found.y2)
    }
}

/// A view of an image, ready for the network.
#[derive(Clone, Debug)]
pub struct View {
    /// What of the image it shows.
    pub look: Look,
    /// The network's input.
    pub input: Preprocessed,
}

impl View {
    /// Height and width of the network's input.
    pub fn size(&self) -> [usize; 2] {
        let (_, height, width) = self.input.pixels.dim();
        [height, width]
    }

    /// Detections from pixels of the view to pixels of the image.
    pub(crate) fn to_original_image(&self, mut detections: Vec<Detection>) -> Vec<Detection> {
        for detection in &mut detections {
            detection.bounding_box = self.look.to_original_image(&detection.bounding_box);
        }
        detections
    }
}

/// What was found in the views of one image, in pixels of the image, as one result; the best first. Each view's are without
/// duplicates among themselves.
///
/// Of boxes in different views, one goes when its IoU with a better one exceeds the spec's threshold. Where a tile cuts an
/// object, its box there goes when another box covers more than that share of it; whole objects come first, so that no part
/// stands for one. Views that share no pixels are not compared: a large image has hundreds of tiles, each with a few neighbors.
pub(crate) fn merge(
    mut seen: Vec<(Look, Vec<Detection>)>,
    [width, height]: [u32; 2],
    rules: &PostprocessingSpec,
) -> Vec<Detection> {
    if seen.len() == 1 {
        return seen.pop().map(|(_, detections)| detections).unwrap_or_default();
    }
    let mut candidates: Vec<_> = seen
        .iter()
        .enumerate()
        .flat_map(|(view, (look, detections))| {
            let candidate = move |detection: &Detection| Candidate {
                view,
                cut: look.cuts(&detection.bounding_box, width, height),
                detection: *detection,
            };
            detections.iter().map(candidate)
        })
        .collect();
    candidates.sort_by(|a, b| a.cut.cmp(&b.cut).then(b.detection.score.total_cmp(&a.detection.score)));
    let areas: Vec<_> = seen.iter().map(|(look, _)| look.area).collect();
    let others = |view: usize| (0..areas.len()).filter(move |other| *other != view);
    let neighbors: Vec<Vec<_>> = (0..areas.len())
        .map(|view| others(view).filter(|other| areas[view].shares_pixels_with(&areas[*other])).collect())
        .collect();
    let mut kept: Vec<Vec<Candidate>> = seen.iter().map(|_| Vec::new()).collect();
    for candidate in candidates {
        let mut better = neighbors[candidate.view].iter().flat_map(|view| &kept[*view]);
        if !better.any(|better| better.suppresses(&candidate, rules)) {
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
    /// Whether the view shows a part of the object only.
    cut: bool,
    detection: Detection,
}

impl Candidate {
    /// Whether `other`, of another view, goes because of this one, which comes before it.
    fn suppresses(&self, other: &Self, rules: &PostprocessingSpec) -> bool {
        let rivals = rules.suppression == Suppression::ClassAgnostic
            || self.detection.class_index == other.detection.class_index;
        if !rivals {
            return false;
        }
        let (mine, its) = (&self.detection.bounding_box, &other.detection.bounding_box);
        mine.iou(its) > rules.nms_threshold || (other.cut && covered(its, mine) > rules.nms_threshold)
    }
}

/// The share of a box that another one covers.
fn covered(part: &BoundingBox, by: &BoundingBox) -> f32 {
    let width = (part.x2.min(by.x2) - part.x1.max(by.x1)).max(0.0);
    let height = (part.y2.min(by.y2) - part.y1.max(by.y1)).max(0.0);
    width * height / part.area()
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    const TILING: Tiling = Tiling { width: 100, height: 80, overlap: 0.25 };

    fn looks(width: u32, height: u32, options: ViewOptions) -> Vec<Look> {
        options.looks(width, height)
    }

    #[test]
    fn tiles_cover_the_image_and_overlap_enough() {
        for (width, height) in [(101, 80), (250, 333), (1000, 81), (99, 1000), (175, 140)] {
            let areas = TILING.areas(width, height);
            assert!(areas.iter().all(|area| area.left + area.width <= width && area.top + area.height <= height));
            let columns: Vec<_> = starts(width, 100, 0.25);
            assert_eq!((columns[0], columns[columns.len() - 1] + 100.min(width)), (0, width));
            assert!(columns.windows(2).all(|pair| pair[1] - pair[0] <= 75), "{columns:?}");
        }
        // 75 pixels further on, the second tile ends where the image does.
        assert_eq!(starts(175, 100, 0.25), [0, 75]);
    }

    #[test]
    fn an_image_that_one_tile_shows_is_seen_once() {
        let options = ViewOptions { tiling: Some(TILING), flip: false };
        assert_eq!(looks(100, 80, options).len(), 1);
        assert_eq!(looks(101, 80, options).len(), 3);
        assert_eq!(looks(101, 80, ViewOptions { flip: true, ..options }).len(), 6);
    }

    #[test]
    fn tiles_that_are_tiny_or_do_not_move_on_are_refused() {
        assert!(matches!(Tiling { width: 31, ..TILING }.check(), Err(TilingError::Small { .. })));
        for overlap in [-0.1, 0.95, f32::NAN] {
            assert!(matches!(Tiling { overlap, ..TILING }.check(), Err(TilingError::Overlap { .. })));
        }
        assert_eq!(TILING.check(), Ok(()));
    }

    #[test]
    fn a_look_shows_its_part_and_boxes_come_back() {
        let image = RgbImage::from_fn(30, 20, |x, y| Rgb([x as u8, y as u8, 0]));
        let area = Area { left: 4, top: 5, width: 10, height: 8 };
        let part = Look { area, mirrored: false }.cut(&image).unwrap();
        assert_eq!((part.dimensions(), part.get_pixel(1, 2)), ((10, 8), &Rgb([5, 7, 0])));
        let mirrored = Look { area, mirrored: true };
        assert_eq!(mirrored.cut(&image).unwrap().get_pixel(0, 2), &Rgb([13, 7, 0]));
        let found = mirrored.to_original_image(&BoundingBox::new(0.0, 2.0, 3.0, 4.0));
        assert_eq!(found, BoundingBox::new(11.0, 7.0, 14.0, 9.0));
        let whole = Look { area: Area { left: 0, top: 0, width: 30, height: 20 }, mirrored: false };
        assert_eq!(whole.cut(&image), None);
    }

    fn detection(score: f32, corners: [f32; 4]) -> Detection {
        Detection { class_index: 0, score, bounding_box: corners.into() }
    }

    /// Two tiles of an image of 175 by 80, and the whole.
    fn views(whole: Vec<Detection>, left: Vec<Detection>, right: Vec<Detection>) -> Vec<(Look, Vec<Detection>)> {
        let looks = ViewOptions { tiling: Some(TILING), flip: false }.looks(175, 80);
        let [a, b, c] = looks[..] else { panic!("{looks:?}") };
        vec![(a, whole), (b, left), (c, right)]
    }

    fn scores(seen: Vec<(Look, Vec<Detection>)>) -> Vec<f32> {
        let rules = PostprocessingSpec::default();
        merge(seen, [175, 80], &rules).into_iter().map(|detection| detection.score).collect()
    }

    #[test]
    fn an_object_in_several_views_is_found_once() {
        // Tiles are 0 to 100 and 75 to 175.
        let found = detection(0.9, [84.0, 10.0, 95.0, 30.0]);
        let again = detection(0.8, [84.5, 10.0, 95.0, 30.0]);
        assert_eq!(scores(views(vec![again], vec![found], vec![again])), [0.9]);
    }

    #[test]
    fn a_part_never_stands_for_the_whole() {
        let whole = detection(0.6, [40.0, 10.0, 140.0, 50.0]);
        let left = detection(0.9, [40.0, 10.0, 100.0, 50.0]);
        let right = detection(0.95, [75.0, 10.0, 140.0, 50.0]);
        assert_eq!(scores(views(vec![whole], vec![left], vec![right])), [0.6]);
        // Without the whole, both parts remain: less than half of either is the other.
        assert_eq!(scores(views(vec![], vec![left], vec![right])), [0.95, 0.9]);
    }

    #[test]
    fn neighbors_and_other_classes_stay() {
        let large = detection(0.9, [0.0, 0.0, 70.0, 70.0]);
        let small = detection(0.5, [20.0, 20.0, 40.0, 40.0]);
        assert_eq!(scores(views(vec![large], vec![small], vec![])), [0.9, 0.5]);
        let other = Detection { class_index: 1, ..large };
        assert_eq!(scores(views(vec![large], vec![other], vec![])), [0.9, 0.9]);
    }

    #[test]
    fn duplicates_within_one_view_were_settled_before() {
        let twins = vec![detection(0.9, [10.0, 10.0, 50.0, 50.0]), detection(0.8, [12.0, 10.0, 50.0, 50.0])];
        assert_eq!(scores(views(twins, vec![], vec![])), [0.9, 0.8]);
    }

    #[test]
    fn views_that_share_no_pixels_need_no_comparison() {
        let looks = ViewOptions { tiling: Some(TILING), flip: true }.looks(400, 300);
        let mut state = 5u32;
        let mut unit = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32
        };
        let mut found = |area: Area| {
            let (width, height) = (area.width as f32, area.height as f32);
            let (x, y) = (width * unit(), height * unit());
            let (far_x, far_y) = ((x + 60.0 * unit()).min(width), (y + 60.0 * unit()).min(height));
            let (left, top) = (area.left as f32, area.top as f32);
            detection(unit(), [left + x, top + y, left + far_x, top + far_y])
        };
        let seen: Vec<(Look, Vec<_>)> =
            looks.iter().map(|look| (*look, (0..40).map(|_| found(look.area)).collect())).collect();

        let rules = PostprocessingSpec { nms_threshold: 0.2, ..PostprocessingSpec::default() };
        let candidates = seen.iter().enumerate().flat_map(|(view, (look, detections))| {
            let cut = |detection: &Detection| look.cuts(&detection.bounding_box, 400, 300);
            detections.iter().map(move |detection| Candidate { view, cut: cut(detection), detection: *detection })
        });
        let mut candidates: Vec<_> = candidates.collect();
        candidates.sort_by(|a, b| a.cut.cmp(&b.cut).then(b.detection.score.total_cmp(&a.detection.score)));
        let mut kept: Vec<Candidate> = Vec::new();
        for candidate in candidates {
            let mut others = kept.iter().filter(|better| better.view != candidate.view);
            if !others.any(|better| better.suppresses(&candidate, &rules)) {
                kept.push(candidate);
            }
        }
        let mut expected: Vec<_> = kept.iter().map(|candidate| candidate.detection.score).collect();
        expected.sort_by(|a, b| b.total_cmp(a));
        assert!(expected.len() < 40 * looks.len() * 9 / 10, "{} of {}", expected.len(), 40 * looks.len());

        let merged = merge(seen, [400, 300], &rules);
        assert_eq!(merged.iter().map(|detection| detection.score).collect::<Vec<_>>(), expected);
    }
}
