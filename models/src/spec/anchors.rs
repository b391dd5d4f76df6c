//! The anchors section of the spec.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::section::{Section, SpecError, checked, ensure, within};

/// The anchors: at every cell of every feature level, one for each ratio and scale.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, remote = "Self")]
#[schemars(!remote)]
pub struct AnchorSpec {
    /// Side of the square anchor at P3 to P7, in pixels of the padded input.
    pub sizes: [f64; 5],
    /// Height / width.
    pub ratios: Vec<f64>,
    /// Factors of the size.
    pub scales: Vec<f64>,
    /// Position of the anchors' center in a cell.
    pub center: AnchorCenter,
    /// Distance between cells.
    pub stride: AnchorStride,
    /// Whether sides are rounded to whole pixels.
    pub rounding: AnchorRounding,
    /// Order of the anchors of a cell.
    pub order: AnchorOrder,
}

/// Position of an anchor's center in its cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AnchorCenter {
    /// The center of the cell: (i + 0.5) · stride.
    Half,
    /// Its upper left corner: i · stride.
    Zero,
}

/// Distance between neighboring cells of level p.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AnchorStride {
    /// 2^p pixels.
    Power,
    /// As in torchvision: for each axis, the input's side divided by its number of cells, rounded down. If the side is not
    /// a multiple of 2^p, the cells of P6 and P7 are closer together.
    Fitted,
}

/// Rounding of anchors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AnchorRounding {
    /// No rounding.
    None,
    /// As in torchvision: size · scale is truncated, then the corners around the origin are rounded half to even.
    Corners,
    /// No rounding, but corners are pixels that belong to the anchor, as in NVIDIA's ODTK: right and lower edges are one
    /// pixel further.
    Inclusive,
}

/// Order of the anchors of one cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AnchorOrder {
    /// All scales of the first ratio, then all of the second.
    RatioMajor,
    /// All ratios of the first scale, then all of the second.
    ScaleMajor,
}

impl AnchorSpec {
    /// Number of anchors per cell.
    pub fn per_cell(&self) -> usize {
        self.ratios.len() * self.scales.len()
    }
}

impl Section for AnchorSpec {
    fn check(&self) -> Result<(), SpecError> {
        within("anchors.sizes", &self.sizes, 0.1..=16384.0)?;
        within("anchors.ratios", &self.ratios, 0.01..=100.0)?;
        within("anchors.scales", &self.scales, 0.01..=100.0)?;
        let (found, expected) = (self.scales.len(), "at most 256 anchors per cell (ratios times scales)");
        ensure(self.per_cell() <= 256, "anchors.scales", format_args!("a list of {found}"), expected)
    }
}

checked!(AnchorSpec);

impl Default for AnchorSpec {
    fn default() -> Self {
        Self {
            sizes: [32.0, 64.0, 128.0, 256.0, 512.0],
            ratios: vec![0.5, 1.0, 2.0],
            scales: vec![1.0, 2f64.powf(1.0 / 3.0), 2f64.powf(2.0 / 3.0)],
            center: AnchorCenter::Half,
            stride: AnchorStride::Power,
            rounding: AnchorRounding::None,
            order: AnchorOrder::RatioMajor,
        }
    }
}
