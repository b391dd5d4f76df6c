//! Variations of an image together with its boxes.
//!
//! On the image's own pixels and in this order: mosaic, crop, rotation, flips, colors. Then comes preprocessing, whose size
//! `scale` varies, so that no image is resized twice for it.

mod sample;
mod draws;
mod mosaic;
mod crop;
mod window;
mod turn;
mod color;
mod scale;
#[cfg(test)]
pub(crate) mod testing;

use anyhow::ensure;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

pub use color::{ColorConfig, HueConfig};
pub use crop::CropConfig;
pub use draws::Draws;
pub use mosaic::MosaicConfig;
pub use sample::Sample;
pub use scale::ScaleConfig;

use color::ColorChange;
use draws::Variation;
use turn::Turn;

/// Which variations, and how likely. Each is drawn by itself: none changes the chance of another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AugmentationConfig {
    /// Probability that left and right are exchanged.
    pub horizontal_flip: f64,
    /// Probability that top and bottom are exchanged.
    pub vertical_flip: f64,
    /// Probability of a turn by 90, 180 or 270 degrees, each as likely. Turned images and others in one batch are padded
    /// to a square.
    pub rotation: f64,
    /// The network sees images larger or smaller.
    pub scale: ScaleConfig,
    /// Only a part of the image is seen.
    pub crop: CropConfig,
    /// Every channel is multiplied.
    pub brightness: ColorConfig,
    /// Every channel moves away from the image's mean gray, or to it.
    pub contrast: ColorConfig,
    /// Every channel moves away from the pixel's gray, or to it.
    pub saturation: ColorConfig,
    /// Colors turn around gray.
    pub hue: HueConfig,
    /// Four images in one.
    pub mosaic: MosaicConfig,
}

impl Default for AugmentationConfig {
    fn default() -> Self {
        Self { horizontal_flip: 0.5, ..Self::none() }
    }
}

impl AugmentationConfig {
    /// No variation: for validation.
    pub fn none() -> Self {
        Self {
            horizontal_flip: 0.0,
            vertical_flip: 0.0,
            rotation: 0.0,
            scale: ScaleConfig::default(),
            crop: CropConfig::default(),
            brightness: ColorConfig::default(),
            contrast: ColorConfig::default(),
            saturation: ColorConfig::default(),
            hue: HueConfig::default(),
            mosaic: MosaicConfig::default(),
        }
    }

    /// Whether every value makes sense.
    ///
    /// # Errors
    /// When one does not; the message names its key and what it may be.
    pub fn validate(&self) -> anyhow::Result<()> {
        let Self { scale, crop, brightness, contrast, saturation, hue, mosaic, .. } = self;
        let shares = [
            ("horizontal_flip", self.horizontal_flip),
            ("vertical_flip", self.vertical_flip),
            ("rotation", self.rotation),
            ("scale.probability", scale.probability),
            ("crop.probability", crop.probability),
            ("crop.min_visibility", crop.min_visibility),
            ("brightness.probability", brightness.probability),
            ("brightness.strength", brightness.strength),
            ("contrast.probability", contrast.probability),
            ("contrast.strength", contrast.strength),
            ("saturation.probability", saturation.probability),
            ("saturation.strength", saturation.strength),
            ("hue.probability", hue.probability),
            ("mosaic.probability", mosaic.probability),
            ("mosaic.min_visibility", mosaic.min_visibility),
        ];
        for (key, value) in shares {
            ensure!((0.0..=1.0).contains(&value), "`augmentation.{key}` is {value}, expected 0 to 1");
        }
        let ScaleConfig { min, max, .. } = *scale;
        ensure!(
            ScaleConfig::LEAST <= min && min <= max && max <= ScaleConfig::MOST,
            "`augmentation.scale` goes from {min} to {max}, expected {} <= min <= max <= {}",
            ScaleConfig::LEAST,
            ScaleConfig::MOST
        );
        ensure!(
            0.0 < crop.min && crop.min <= 1.0,
            "`augmentation.crop.min` is {}, expected more than 0, up to 1",
            crop.min
        );
        ensure!(
            (0.0..=180.0).contains(&hue.degrees),
            "`augmentation.hue.degrees` is {}, expected 0 to 180",
            hue.degrees
        );
        Ok(())
    }

    /// Varies an image, by numbers from `draws` alone. `another` gives some image of the data set, which it chooses with
    /// the numbers that it is handed.
    ///
    /// # Errors
    /// Those of `another`.
    pub fn apply<E>(
        &self,
        mut sample: Sample,
        draws: &Draws,
        another: impl FnMut(&mut ChaCha8Rng) -> Result<Sample, E>,
    ) -> Result<Sample, E> {
        if let Some(mut random) = draws.chance(Variation::Mosaic, self.mosaic.probability) {
            sample = mosaic::mosaic(sample, self.mosaic.min_visibility, &mut random, another)?;
        }
        if let Some(mut random) = draws.chance(Variation::Crop, self.crop.probability) {
            sample = crop::crop(sample, &self.crop, &mut random);
        }
        if let Some(mut random) = draws.chance(Variation::Rotation, self.rotation) {
            sample.turn(Turn::draw(&mut random));
        }
        if draws.chance(Variation::HorizontalFlip, self.horizontal_flip).is_some() {
            sample.flip_horizontally();
        }
        if draws.chance(Variation::VerticalFlip, self.vertical_flip).is_some() {
            sample.flip_vertically();
        }
        if let Some(change) = ColorChange::draw(self, draws, &sample.pixels) {
            sample.recolor(&change);
        }
        Ok(sample)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;

    use image::RgbImage;

    use super::*;
    use crate::augmentation::testing::{assert_boxes_are_on_their_rectangles, colorful, marked, marked_among, plain};

    const ALWAYS: ColorConfig = ColorConfig { probability: 1.0, strength: 0.1 };

    /// Every variation of positions by itself, by name.
    fn geometric() -> [(&'static str, AugmentationConfig); 5] {
        let none = AugmentationConfig::none();
        [
            ("horizontal_flip", AugmentationConfig { horizontal_flip: 1.0, ..none.clone() }),
            ("vertical_flip", AugmentationConfig { vertical_flip: 1.0, ..none.clone() }),
            ("rotation", AugmentationConfig { rotation: 1.0, ..none.clone() }),
            ("crop", AugmentationConfig { crop: CropConfig { probability: 1.0, ..none.crop }, ..none.clone() }),
            ("mosaic", AugmentationConfig { mosaic: MosaicConfig { probability: 1.0, ..none.mosaic }, ..none }),
        ]
    }

    /// Every variation of colors by itself, by name.
    fn colors() -> [(&'static str, AugmentationConfig); 4] {
        let none = AugmentationConfig::none();
        [
            ("brightness", AugmentationConfig { brightness: ALWAYS, ..none.clone() }),
            ("contrast", AugmentationConfig { contrast: ALWAYS, ..none.clone() }),
            ("saturation", AugmentationConfig { saturation: ALWAYS, ..none.clone() }),
            ("hue", AugmentationConfig { hue: HueConfig { probability: 1.0, degrees: 8.0 }, ..none }),
        ]
    }

    fn all() -> AugmentationConfig {
        AugmentationConfig {
            horizontal_flip: 1.0,
            vertical_flip: 1.0,
            rotation: 1.0,
            brightness: ALWAYS,
            contrast: ALWAYS,
            saturation: ALWAYS,
            hue: HueConfig { probability: 1.0, degrees: 8.0 },
            crop: CropConfig { probability: 1.0, ..Default::default() },
            mosaic: MosaicConfig { probability: 1.0, ..Default::default() },
            scale: ScaleConfig { probability: 1.0, ..Default::default() },
        }
    }

    /// The image with the rectangles of colors 0 and 1, varied; in a mosaic with three that have two other colors each,
    /// the last only one.
    fn vary(config: &AugmentationConfig, seed: u64) -> Sample {
        let mut colors = [2..4, 4..6, 6..7].into_iter();
        let another = |_: &mut ChaCha8Rng| Ok::<_, Infallible>(marked_among(seed, colors.next().unwrap()));
        let Ok(varied) = config.apply(marked_among(seed, 0..2), &Draws::new(seed, 7), another);
        varied
    }

    fn recolor(config: &AugmentationConfig, seed: u64) -> Sample {
        let another = |_: &mut ChaCha8Rng| unreachable!("colors need no other image");
        let Ok(varied) = config.apply::<Infallible>(colorful(), &Draws::new(seed, 7), another);
        varied
    }

    #[test]
    fn boxes_stay_on_their_objects() {
        let cases = geometric().into_iter().chain(colors()).chain([("all", all())]);
        for (name, config) in cases {
            // Resizing blurs what is found by up to a pixel at each edge.
            let tolerance = if config.mosaic.probability > 0.0 { 1.0 } else { 0.0 };
            let mut boxes = 0;
            for seed in 0..200 {
                let varied = vary(&config, seed);
                assert_boxes_are_on_their_rectangles(&varied, tolerance, &format!("{name}, seed {seed}"));
                boxes += varied.objects.len();
            }
            assert!(boxes > 200, "{name} leaves only {boxes} boxes");
        }
    }

    #[test]
    fn a_variation_happens_when_its_probability_is_one_and_not_when_it_is_zero() {
        for seed in 0..20 {
            assert_eq!(vary(&AugmentationConfig::none(), seed), marked_among(seed, 0..2));
        }
        for (name, config) in geometric() {
            let changed = (0..20).filter(|&seed| vary(&config, seed).pixels != marked_among(seed, 0..2).pixels).count();
            assert_eq!(changed, 20, "{name}");
        }
        for (name, config) in colors() {
            let changed = (0..20).filter(|&seed| recolor(&config, seed).pixels != colorful().pixels).count();
            assert!(changed >= 18, "{name} changed {changed} of 20 images; a few factors are nearly 1");
        }
    }

    #[test]
    fn colors_leave_boxes_alone() {
        for (name, config) in colors() {
            for seed in 0..20 {
                assert_eq!(recolor(&config, seed).objects, colorful().objects, "{name}");
            }
        }
    }

    #[test]
    fn the_same_numbers_repeat_and_others_do_not() {
        assert_eq!(vary(&all(), 3), vary(&all(), 3));
        assert_ne!(vary(&all(), 3), vary(&all(), 4));
        let apply = |image| {
            let another = |_: &mut ChaCha8Rng| Ok::<_, Infallible>(marked(1));
            let Ok(varied) = all().apply(marked(0), &Draws::new(0, image), another);
            varied
        };
        assert_ne!(apply(0), apply(1));
    }

    #[test]
    fn a_variation_does_not_change_the_chance_of_another() {
        let half = AugmentationConfig { horizontal_flip: 0.5, ..AugmentationConfig::none() };
        let both = AugmentationConfig { rotation: 0.5, brightness: ALWAYS, ..half.clone() };
        let flips = |config: &AugmentationConfig, image| {
            let draws = Draws::new(0, image);
            draws.chance(Variation::HorizontalFlip, config.horizontal_flip).is_some()
        };
        let flipped: Vec<_> = (0..100).map(|image| flips(&half, image)).collect();
        assert_eq!(flipped, (0..100).map(|image| flips(&both, image)).collect::<Vec<_>>());
        assert!((30..70).contains(&flipped.iter().filter(|flipped| **flipped).count()));
    }

    #[test]
    fn the_smallest_and_the_longest_images_are_varied() {
        for (width, height) in [(1, 1), (1, 2), (2, 1), (2, 2), (4000, 2), (2, 4000), (17, 16)] {
            for (name, config) in geometric().into_iter().chain(colors()).chain([("all", all())]) {
                for seed in 0..10 {
                    let sizes = [(1, 1), (4000, 2), (40, 30)];
                    let mut sizes = sizes.into_iter();
                    let another = |_: &mut ChaCha8Rng| {
                        let (width, height) = sizes.next().unwrap();
                        Ok::<_, Infallible>(plain(width, height))
                    };
                    let Ok(varied) = config.apply(plain(width, height), &Draws::new(seed, 0), another);
                    assert!(varied.pixels.width() > 0 && varied.pixels.height() > 0);
                    let (width, height) = (varied.pixels.width() as f32, varied.pixels.height() as f32);
                    for object in &varied.objects {
                        let inside = object.bounding_box.clip(width, height);
                        assert_eq!(inside, object.bounding_box, "{name}");
                        assert!(inside.width() > 0.0 && inside.height() > 0.0, "{name}");
                    }
                }
            }
        }
    }

    #[test]
    fn an_image_that_others_hold_too_is_not_changed_under_them() {
        let sample = marked(0);
        let held = sample.pixels.clone();
        let before: RgbImage = (*held).clone();
        let another = |_: &mut ChaCha8Rng| Ok::<_, Infallible>(marked(1));
        let Ok(varied) = all().apply(sample, &Draws::new(0, 0), another);
        assert_eq!(*held, before);
        assert!(!Arc::ptr_eq(&held, &varied.pixels));
    }

    #[test]
    fn an_error_of_another_image_is_passed_on() {
        let [.., (_, mosaic)] = geometric();
        let result = mosaic.apply(marked(0), &Draws::new(0, 0), |_| Err("unreadable"));
        assert_eq!(result.unwrap_err(), "unreadable");
    }

    #[test]
    fn every_option_is_read_and_numbers_for_flips_are_plain() {
        let text = "{horizontal_flip: 0, vertical_flip: 0.5, rotation: 1, scale: {probability: 1, max: 2},
            crop: {min: 0.25}, brightness: {strength: 1}, hue: {degrees: 90}, mosaic: {min_visibility: 0}}";
        let config: AugmentationConfig = serde_yaml::from_str(text).unwrap();
        config.validate().unwrap();
        let none = AugmentationConfig::none();
        let expected = AugmentationConfig {
            vertical_flip: 0.5,
            rotation: 1.0,
            scale: ScaleConfig { probability: 1.0, max: 2.0, ..none.scale.clone() },
            crop: CropConfig { min: 0.25, ..none.crop.clone() },
            brightness: ColorConfig { strength: 1.0, ..none.brightness.clone() },
            hue: HueConfig { degrees: 90.0, ..none.hue.clone() },
            mosaic: MosaicConfig { min_visibility: 0.0, ..none.mosaic.clone() },
            ..none
        };
        assert_eq!(config, expected);
        let written = serde_yaml::to_string(&config).unwrap();
        assert_eq!(serde_yaml::from_str::<AugmentationConfig>(&written).unwrap(), config);
    }

    #[test]
    fn unknown_keys_and_values_out_of_range_are_named() {
        for (text, named) in [("zoom: 1", "`zoom`"), ("crop: {share: 1}", "`share`"), ("hue: 0.5", "hue")] {
            let error = serde_yaml::from_str::<AugmentationConfig>(text).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
        let cases = [
            ("horizontal_flip: -0.1", "`augmentation.horizontal_flip` is -0.1, expected 0 to 1"),
            ("rotation: 90", "`augmentation.rotation` is 90, expected 0 to 1"),
            ("mosaic: {probability: .nan}", "`augmentation.mosaic.probability` is NaN, expected 0 to 1"),
            ("contrast: {strength: 2}", "`augmentation.contrast.strength` is 2, expected 0 to 1"),
            ("crop: {min_visibility: 30}", "`augmentation.crop.min_visibility` is 30, expected 0 to 1"),
            ("crop: {min: 0}", "`augmentation.crop.min` is 0, expected more than 0, up to 1"),
            ("hue: {degrees: 270}", "`augmentation.hue.degrees` is 270, expected 0 to 180"),
            ("scale: {min: 1.5}", "`augmentation.scale` goes from 1.5 to 1.25, expected 0.1 <= min <= max <= 4"),
        ];
        for (text, message) in cases {
            let config: AugmentationConfig = serde_yaml::from_str(text).unwrap();
            assert_eq!(config.validate().unwrap_err().to_string(), message);
        }
    }
}
