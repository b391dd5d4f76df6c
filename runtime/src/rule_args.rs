//! Arguments of the thresholds and limits, and of the views.

use std::num::NonZeroUsize;

use models::spec::Suppression;
use runtime::{Rules, Tiling, ViewOptions};

use crate::value_parsers::size;

/// Arguments of thresholds, tiles and flips.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Thresholds")]
pub(crate) struct RuleArgs {
    /// Report only detections with a score above this, from 0 to 1 [default: the model's].
    #[arg(long, value_name = "SCORE", value_parser = parse_fraction)]
    min_score: Option<f32>,

    /// NMS threshold, from 0 to 1: of boxes of a class overlapping by more than this IoU, keep the highest-scoring
    /// [default: the model's]. Also replaces a model's soft-NMS.
    #[arg(long, value_name = "IOU", value_parser = parse_fraction)]
    nms_iou: Option<f32>,

    /// Use Gaussian soft-NMS with this sigma, such as 0.5: lower the scores of overlapping boxes instead of removing them.
    /// The detections of tiles and flips are still merged by NMS, since their overlapping boxes are the same objects again.
    #[arg(long, value_name = "SIGMA", conflicts_with = "nms_iou", value_parser = parse_sigma)]
    soft_nms: Option<f32>,

    /// Pass the N highest scores of each feature level to NMS, or `all` [default: the model's].
    #[arg(long, value_name = "N", value_parser = parse_limit)]
    top_k: Option<usize>,

    /// Report at most N detections per image, or `all` [default: the model's].
    #[arg(long, value_name = "N", value_parser = parse_limit)]
    max_detections: Option<usize>,

    /// Let boxes suppress boxes of other classes too [default: the model's, usually per class].
    #[arg(long)]
    class_agnostic: bool,

    /// Also run on overlapping tiles of this many image pixels and merge the detections. Finds small objects in images much
    /// larger than the network's input; the time grows with the number of tiles.
    #[arg(long, value_name = "SIDE|WIDTHxHEIGHT", value_parser = parse_tile, help_heading = "Tiles and flips")]
    tile: Option<(u32, u32)>,

    /// Minimum overlap of neighboring tiles, as a fraction of a tile. Must be larger than the objects to find.
    #[arg(long, value_name = "FRACTION", default_value_t = 0.2, requires = "tile", value_parser = parse_fraction)]
    #[arg(help_heading = "Tiles and flips")]
    tile_overlap: f32,

    /// Also run on the horizontally flipped image and merge the detections; takes twice as long.
    #[arg(long, help_heading = "Tiles and flips")]
    flip: bool,
}

impl RuleArgs {
    /// The overrides of the model's spec.
    pub(crate) fn rules(&self) -> Rules {
        Rules {
            score_threshold: self.min_score,
            nms_threshold: self.nms_iou,
            soft_nms: self.soft_nms,
            top_k: self.top_k,
            max_detections: self.max_detections,
            suppression: self.class_agnostic.then_some(Suppression::ClassAgnostic),
            classes: None,
        }
    }

    /// The options of an image's views.
    pub(crate) fn views(&self) -> ViewOptions {
        let tiling = self.tile.map(|(width, height)| Tiling { width, height, overlap: self.tile_overlap });
        ViewOptions { tiling, flip: self.flip }
    }
}

fn parse_fraction(text: &str) -> Result<f32, String> {
    let fraction = text.parse().ok().filter(|fraction| (0.0..=1.0).contains(fraction));
    fraction.ok_or_else(|| "expected a number from 0 to 1".to_owned())
}

fn parse_sigma(text: &str) -> Result<f32, String> {
    let sigma = text.parse().ok().filter(|sigma: &f32| *sigma > 0.0 && sigma.is_finite());
    sigma.ok_or_else(|| "expected a number above 0".to_owned())
}

fn parse_limit(text: &str) -> Result<usize, String> {
    let number = match text {
        "all" => Some(usize::MAX),
        _ => text.parse().ok().map(NonZeroUsize::get),
    };
    number.ok_or_else(|| "expected a number of at least 1, or `all`".to_owned())
}

fn parse_tile(text: &str) -> Result<(u32, u32), String> {
    let square = format!("{text}x{text}");
    size(if text.contains('x') { text } else { &square }, [Tiling::MIN_SIDE, u32::MAX])
}
