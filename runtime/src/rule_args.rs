//! The arguments that say what counts as a detection, and how images are looked at.

use std::num::NonZeroUsize;

use models::spec::Suppression;
use runtime::{Rules, Tiling, ViewOptions};

/// What counts as a detection, and how images are looked at.
#[derive(Debug, clap::Args)]
pub(crate) struct RuleArgs {
    /// Report detections with a score above X, from 0 to 1. [default: what the model says, as for the following]
    #[arg(long, value_name = "X", value_parser = parse_share)]
    score: Option<f32>,

    /// Of boxes whose IoU exceeds X, from 0 to 1, only the best remains.
    #[arg(long, value_name = "X", value_parser = parse_share)]
    nms: Option<f32>,

    /// In place of removing boxes, lower the scores of those that overlap with better ones, with this sigma, such as 0.5
    /// (soft-NMS).
    #[arg(long, value_name = "SIGMA", conflicts_with = "nms", value_parser = parse_sigma)]
    soft_nms: Option<f32>,

    /// Consider the best N scores of each of the five levels, or `all`.
    #[arg(long, value_name = "N", value_parser = parse_cap)]
    top_k: Option<usize>,

    /// Report the best N detections of each image, or `all`.
    #[arg(long, value_name = "N", value_parser = parse_cap)]
    max_detections: Option<usize>,

    /// Boxes of all classes suppress each other. [default: what the model says; per class for those of `trainer init`]
    #[arg(long)]
    class_agnostic: bool,

    /// Also look at larger images in overlapping tiles of so many of their pixels, and merge what was found. For small
    /// objects in images much larger than the network's input; takes as many times as long as there are tiles.
    #[arg(long, value_name = "SIDE|WIDTHxHEIGHT", value_parser = parse_tile)]
    tile: Option<(u32, u32)>,

    /// The least share of a tile that the next one shows too. Small objects must fit into it.
    #[arg(long, value_name = "X", default_value_t = 0.2, requires = "tile", value_parser = parse_share)]
    tile_overlap: f32,

    /// Also look at everything mirrored, left to right, and merge; takes twice as long.
    #[arg(long)]
    flip: bool,
}

impl RuleArgs {
    /// What replaces the rules of the model's spec, for these classes or for all.
    pub(crate) fn rules(&self, classes: Option<&[String]>) -> Rules {
        Rules {
            score_threshold: self.score,
            nms_threshold: self.nms,
            soft_nms: self.soft_nms,
            top_k: self.top_k,
            max_detections: self.max_detections,
            suppression: self.class_agnostic.then_some(Suppression::ClassAgnostic),
            classes: classes.map(<[String]>::to_vec),
        }
    }

    /// The views of an image.
    pub(crate) fn views(&self) -> ViewOptions {
        let tiling = self.tile.map(|(width, height)| Tiling { width, height, overlap: self.tile_overlap });
        ViewOptions { tiling, flip: self.flip }
    }
}

fn parse_share(text: &str) -> Result<f32, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "expected a number from 0 to 1".to_owned())
}

fn parse_sigma(text: &str) -> Result<f32, String> {
    let sigma = text.parse().ok().filter(|sigma: &f32| *sigma > 0.0 && sigma.is_finite());
    sigma.ok_or_else(|| "expected a number above 0".to_owned())
}

fn parse_cap(text: &str) -> Result<usize, String> {
    let number = match text {
        "all" => Some(usize::MAX),
        _ => text.parse().ok().map(NonZeroUsize::get),
    };
    number.ok_or_else(|| "expected a number from 1 on, or `all`".to_owned())
}

fn parse_tile(text: &str) -> Result<(u32, u32), String> {
    let (width, height) = text.split_once('x').unwrap_or((text, text));
    let side = |text: &str| text.parse().ok().filter(|side| *side >= Tiling::LEAST_SIDE);
    let sides = side(width).zip(side(height));
    sides.ok_or_else(|| format!("expected pixels, as 1024 or 1280x960, at least {}", Tiling::LEAST_SIDE))
}
