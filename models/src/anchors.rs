//! Anchors: the reference boxes that the network classifies and regresses, a few at every cell of every feature level.
//! <https://arxiv.org/abs/1708.02002>, section 4

use std::ops::Range;

use crate::boxes::BoundingBox;
use crate::spec::{AnchorCenter, AnchorOrder, AnchorRounding, AnchorSpec, AnchorStride};

/// P3, the finest of the five feature levels. Level p has one cell per 2^p pixels of a side, rounded up.
const FINEST_LEVEL: usize = 3;

/// All anchors of one input size, in pixels of the padded input. Row `i` of the network's outputs belongs to anchor `i`.
#[derive(Clone, Debug)]
pub struct Anchors {
    boxes: Vec<BoundingBox>,
    levels: [Range<usize>; 5],
}

impl Anchors {
    /// The anchors of an input of `height` by `width` pixels, including padding.
    pub fn new(spec: &AnchorSpec, height: usize, width: usize) -> Self {
        let mut boxes = Vec::new();
        let mut level = FINEST_LEVEL;
        let levels = spec.sizes.map(|size| {
            let start = boxes.len();
            spec.push_level(size, &spec.grid(level, height, width), &mut boxes);
            level += 1;
            start..boxes.len()
        });
        Self { boxes, levels }
    }

    /// All anchors, in pixels of the padded input: by level P3 to P7, row, column, and the spec's order within a cell. They
    /// may extend beyond the input.
    pub fn boxes(&self) -> &[BoundingBox] {
        &self.boxes
    }

    /// The ranges of [`boxes`](Self::boxes) that belong to P3 to P7.
    pub fn levels(&self) -> &[Range<usize>; 5] {
        &self.levels
    }
}

/// The cells of one feature level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Distance between rows of cells, in pixels.
    pub stride_y: usize,
    /// Distance between columns of cells, in pixels.
    pub stride_x: usize,
    /// Rows of cells.
    pub height: usize,
    /// Columns of cells.
    pub width: usize,
}

impl AnchorSpec {
    /// The anchors of one level, in pixels of the padded input: row by row, `ratios · scales` per cell. `size` is the side
    /// of the square anchor, in pixels.
    pub fn level(&self, size: f64, grid: &Grid) -> Vec<BoundingBox> {
        let mut boxes = Vec::new();
        self.push_level(size, grid, &mut boxes);
        boxes
    }

    /// The cells of a feature level for an input of `height` by `width` pixels.
    fn grid(&self, level: usize, height: usize, width: usize) -> Grid {
        let pixels = 1 << level;
        let (rows, columns) = (height.div_ceil(pixels), width.div_ceil(pixels));
        let (stride_y, stride_x) = match self.stride {
            AnchorStride::Power => (pixels, pixels),
            // An input without pixels has no cells; `max` avoids a division by zero.
            AnchorStride::Fitted => (height / rows.max(1), width / columns.max(1)),
        };
        Grid { stride_y, stride_x, height: rows, width: columns }
    }

    /// Appends the anchors of one level. They are computed in double precision and rounded at the end, as in
    /// yhenon/pytorch-retinanet (`retinanet/anchors.py`, 0348a9d).
    fn push_level(&self, size: f64, grid: &Grid, boxes: &mut Vec<BoundingBox>) {
        let cell_anchors = self.cell_anchors(size);
        let shift = match self.center {
            AnchorCenter::Half => 0.5,
            AnchorCenter::Zero => 0.0,
        };
        let position = |cell: usize, stride: usize| (cell as f64 + shift) * stride as f64;
        boxes.reserve(grid.height * grid.width * cell_anchors.len());
        for y in (0..grid.height).map(|row| position(row, grid.stride_y)) {
            for x in (0..grid.width).map(|column| position(column, grid.stride_x)) {
                boxes.extend(cell_anchors.iter().map(|[x1, y1, x2, y2]| BoundingBox {
                    x1: (x + x1) as f32,
                    y1: (y + y1) as f32,
                    x2: (x + x2) as f32,
                    y2: (y + y2) as f32,
                }));
            }
        }
    }

    /// The anchors of one cell as `x1, y1, x2, y2`, centered at the origin.
    fn cell_anchors(&self, size: f64) -> Vec<[f64; 4]> {
        let corners = |ratio: f64, scale: f64| {
            let side = match self.rounding {
                AnchorRounding::None | AnchorRounding::Inclusive => size * scale,
                AnchorRounding::Corners => (size * scale).trunc(),
            };
            let width = (side * side / ratio).sqrt();
            let (half_width, half_height) = (0.5 * width, 0.5 * width * ratio);
            let corners = [-half_width, -half_height, half_width, half_height];
            match self.rounding {
                AnchorRounding::None => corners,
                AnchorRounding::Corners => corners.map(f64::round_ties_even),
                AnchorRounding::Inclusive => [corners[0], corners[1], corners[2] + 1.0, corners[3] + 1.0],
            }
        };
        let (ratios, scales) = (&self.ratios, &self.scales);
        match self.order {
            AnchorOrder::RatioMajor => {
                ratios.iter().flat_map(|&r| scales.iter().map(move |&s| corners(r, s))).collect()
            }
            AnchorOrder::ScaleMajor => {
                scales.iter().flat_map(|&s| ratios.iter().map(move |&r| corners(r, s))).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_near(found: BoundingBox, expected: [f32; 4]) {
        let near = <[f32; 4]>::from(found).iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-4);
        assert!(near, "found {found:?}, expected {expected:?}");
    }

    #[test]
    fn levels_cover_all_anchors_in_order() {
        let anchors = Anchors::new(&AnchorSpec::default(), 640, 640);
        let sizes = anchors.levels().each_ref().map(|level| level.len());
        assert_eq!(sizes, [57_600, 14_400, 3_600, 900, 225]);
        assert_eq!(anchors.levels()[0].start, 0);
        assert!(anchors.levels().windows(2).all(|pair| pair[0].end == pair[1].start));
        assert_eq!(anchors.levels()[4].end, anchors.boxes().len());
    }

    #[test]
    fn anchor_counts_match_yhenon() {
        let counts = [
            (640, 640, 76_725),
            (640, 832, 99_765),
            (640, 1056, 126_675),
            (800, 800, 120_087),
            (800, 1344, 201_600),
            (512, 512, 49_104),
            (64, 64, 774),
        ];
        for (height, width, count) in counts {
            assert_eq!(Anchors::new(&AnchorSpec::default(), height, width).boxes().len(), count, "{height}x{width}");
        }
    }

    // yhenon/pytorch-retinanet 0348a9d: Anchors()(torch.zeros(1, 3, 640, 640))[0]
    #[test]
    fn anchors_match_yhenon() {
        let anchors = Anchors::new(&AnchorSpec::default(), 640, 640);
        let boxes = anchors.boxes();
        assert_near(boxes[0], [-18.627417, -7.313708, 26.627417, 15.313708]);
        assert_near(boxes[9], [-10.627417, -7.313708, 34.62742, 15.313708]);
        assert_near(boxes[boxes.len() - 1], [288.64972, 1.299431, 863.3503, 1150.7006]);
        let sum: f64 = boxes.iter().flat_map(|&b| <[f32; 4]>::from(b)).map(f64::from).sum();
        assert!((sum - 98_208_000.094_7).abs() < 1e-3, "{sum}");
    }

    #[test]
    fn anchor_centers_may_lie_outside_the_input() {
        let boxes = Anchors::new(&AnchorSpec::default(), 640, 1056).boxes().to_vec();
        let last = boxes[boxes.len() - 1];
        assert_eq!((last.x1 + last.x2) / 2.0, 1088.0);
    }

    #[test]
    fn order_only_permutes_the_anchors_of_a_cell() {
        let ratio_major = AnchorSpec { ratios: vec![0.5, 2.0], scales: vec![1.0, 2.0, 4.0], ..Default::default() };
        let scale_major = AnchorSpec { order: AnchorOrder::ScaleMajor, ..ratio_major.clone() };
        let (by_ratio, by_scale) = (ratio_major.cell_anchors(16.0), scale_major.cell_anchors(16.0));
        for (i, anchor) in by_ratio.iter().enumerate() {
            assert_eq!(by_scale[i % 3 * 2 + i / 3], *anchor);
        }
    }

    // torchvision 0.26: torchvision.models.detection.retinanet._default_anchorgen().cell_anchors[0] and [4], where
    // 512 * 2^(1/3) is truncated to 645, and half of that is rounded to the even 322.
    #[test]
    fn rounded_corners_match_torchvision() {
        let spec = AnchorSpec { rounding: AnchorRounding::Corners, center: AnchorCenter::Zero, ..Default::default() };
        let one_cell = Grid { stride_y: 8, stride_x: 8, height: 1, width: 1 };
        let halves =
            |size| spec.level(size, &one_cell).iter().map(|b| [b.x2, b.y2].map(|v| v as u32)).collect::<Vec<_>>();
        let small = [[23, 11], [28, 14], [35, 18], [16, 16], [20, 20], [25, 25], [11, 23], [14, 28], [18, 35]];
        assert_eq!(halves(32.0), small);
        assert_eq!(halves(512.0)[3..6], [[256, 256], [322, 322], [406, 406]]);
        assert!(spec.level(32.0, &one_cell).iter().all(|b| b.x1 == -b.x2 && b.y1 == -b.y2 && b.x2.fract() == 0.0));
    }

    // NVIDIA/retinanet-examples 65e6310: odtk.box.generate_anchors(8, [1.0, 2.0, 0.5], [4 * 2 ** (i / 3) for i in range(3)])
    // gives [-12, -12, 20, 20] and [-7.3137, -18.6274, 15.3137, 26.6274]; decode.cu adds one to both sides.
    #[test]
    fn inclusive_corners_match_odtk() {
        let spec = AnchorSpec {
            ratios: vec![1.0, 2.0, 0.5],
            order: AnchorOrder::ScaleMajor,
            rounding: AnchorRounding::Inclusive,
            ..AnchorSpec::default()
        };
        let cell = spec.level(32.0, &Grid { stride_y: 8, stride_x: 8, height: 1, width: 1 });
        assert_near(cell[0], [-12.0, -12.0, 21.0, 21.0]);
        assert_near(cell[1], [-7.313_708, -18.627_417, 16.313_708, 27.627_417]);
    }

    #[test]
    fn fitted_strides_differ_only_for_sides_that_are_not_multiples() {
        let power = AnchorSpec::default();
        let fitted = AnchorSpec { stride: AnchorStride::Fitted, ..AnchorSpec::default() };
        assert_eq!(Anchors::new(&fitted, 640, 1024).boxes(), Anchors::new(&power, 640, 1024).boxes());
        // torchvision: [image_size[0] // grid_size[0], image_size[1] // grid_size[1]] at P3 to P7
        for (height, width, expected) in [
            (800, 800, [(8, 8), (16, 16), (32, 32), (61, 61), (114, 114)]),
            (800, 1088, [(8, 8), (16, 16), (32, 32), (61, 64), (114, 120)]),
            (832, 1344, [(8, 8), (16, 16), (32, 32), (64, 64), (118, 122)]),
            (32, 96, [(8, 8), (16, 16), (32, 32), (32, 48), (32, 96)]),
        ] {
            for (level, (stride_y, stride_x)) in (FINEST_LEVEL..).zip(expected) {
                let cells = power.grid(level, height, width);
                let expected = Grid { stride_y, stride_x, ..cells };
                assert_eq!(fitted.grid(level, height, width), expected, "P{level} of {height}x{width}");
            }
        }
    }

    #[test]
    fn empty_input_has_no_anchors() {
        for stride in [AnchorStride::Power, AnchorStride::Fitted] {
            let spec = AnchorSpec { stride, ..AnchorSpec::default() };
            assert!(Anchors::new(&spec, 0, 640).boxes().is_empty());
            assert!(Anchors::new(&spec, 640, 0).boxes().is_empty());
        }
    }
}
