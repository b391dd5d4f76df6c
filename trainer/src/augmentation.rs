//! Augmentation of images and their boxes.
//!
//! Mosaic, crop, rotation, flips and colors are applied in this order to the original image. `scale` changes the size that
//! preprocessing resizes to, and `large_scale_jitter` crops and changes it last, so that no image is resized twice.

mod sample;
mod random_streams;
mod mosaic;
mod crop;
mod window;
mod rotation;
mod color;
mod scale;
mod large_scale_jitter;
#[cfg(test)]
pub(crate) mod testing;

use anyhow::ensure;
use rand_chacha::ChaCha8Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use color::{ColorConfig, HueConfig};
pub use crop::CropConfig;
pub use large_scale_jitter::LargeScaleJitterConfig;
pub use mosaic::MosaicConfig;
pub use random_streams::RandomStreams;
pub use sample::Sample;
pub use scale::ScaleConfig;

use color::{ColorJitter, ColorMatrix};
use random_streams::Augmentation;
use rotation::Rotation;

/// Augmentations and their probabilities. Each is applied independently of the others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AugmentationConfig {
    /// Probability of a horizontal flip (left and right swapped).
    pub horizontal_flip: f64,
    /// Probability of a vertical flip (top and bottom swapped).
    pub vertical_flip: f64,
    /// Probability of a rotation by 90, 180 or 270 degrees, all equally likely. A batch with rotated and other images is
    /// padded to a square.
    pub rotation: f64,
    /// Scale jitter: changes the input size of a batch.
    pub scale: ScaleConfig,
    /// Large-scale jitter: resizes each image by its own factor, then crops or pads it. The input size stays.
    pub large_scale_jitter: LargeScaleJitterConfig,
    /// Random crop.
    pub crop: CropConfig,
    /// Multiplies every channel by a factor.
    pub brightness: ColorConfig,
    /// Moves every channel away from the image's mean gray, or toward it.
    pub contrast: ColorConfig,
    /// Moves every channel away from the pixel's gray, or toward it.
    pub saturation: ColorConfig,
    /// Rotates the hue.
    pub hue: HueConfig,
    /// Mosaic of four images.
    pub mosaic: MosaicConfig,
    /// Number of epochs at the end of the run without mosaic, `scale` and `large_scale_jitter`.
    /// <https://arxiv.org/abs/2107.08430>, section 2.1
    pub close_mosaic: u32,
}

impl Default for AugmentationConfig {
    fn default() -> Self {
        Self { horizontal_flip: 0.5, ..Self::none() }
    }
}

impl AugmentationConfig {
    /// No augmentation, as for validation.
    pub fn none() -> Self {
        Self {
            horizontal_flip: 0.0,
            vertical_flip: 0.0,
            rotation: 0.0,
            scale: ScaleConfig::default(),
            large_scale_jitter: LargeScaleJitterConfig::default(),
            crop: CropConfig::default(),
            brightness: ColorConfig::default(),
            contrast: ColorConfig::default(),
            saturation: ColorConfig::default(),
            hue: HueConfig::default(),
            mosaic: MosaicConfig::default(),
            close_mosaic: 0,
        }
    }

    /// The augmentation of an epoch, counted from 0, in a run of `epochs` epochs.
    pub(crate) fn of_epoch(&self, epoch: u32, epochs: u32) -> Self {
        if epoch.saturating_add(self.close_mosaic) < epochs { self.clone() } else { self.closed() }
    }

    /// Without mosaic and scale jitter.
    pub(crate) fn closed(&self) -> Self {
        let mut closed = self.clone();
        for probability in
            [&mut closed.mosaic.probability, &mut closed.scale.probability, &mut closed.large_scale_jitter.probability]
        {
            *probability = 0.0;
        }
        closed
    }

    /// Checks every value.
    ///
    /// # Errors
    /// When a value is out of range; the message contains its key and the range.
    pub fn validate(&self) -> anyhow::Result<()> {
        let Self { scale, large_scale_jitter: jitter, crop, brightness, contrast, saturation, hue, mosaic, .. } = self;
        let fractions = [
            ("horizontal_flip", self.horizontal_flip),
            ("vertical_flip", self.vertical_flip),
            ("rotation", self.rotation),
            ("scale.probability", scale.probability),
            ("large_scale_jitter.probability", jitter.probability),
            ("large_scale_jitter.min_visibility", jitter.min_visibility),
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
        for (key, value) in fractions {
            ensure!((0.0..=1.0).contains(&value), "`augmentation.{key}` is {value}, expected 0 to 1");
        }
        let limits = [ScaleConfig::MIN_FACTOR, ScaleConfig::MAX_FACTOR];
        let jitter_limits = [LargeScaleJitterConfig::MIN_FACTOR, LargeScaleJitterConfig::MAX_FACTOR];
        for (key, min, max, [lowest, highest]) in
            [("scale", scale.min, scale.max, limits), ("large_scale_jitter", jitter.min, jitter.max, jitter_limits)]
        {
            ensure!(
                lowest <= min && min <= max && max <= highest,
                "`augmentation.{key}` has min {min} and max {max}, expected {lowest} <= min <= max <= {highest}"
            );
        }
        let (min, degrees) = (crop.min, hue.degrees);
        ensure!(0.0 < min && min <= 1.0, "`augmentation.crop.min` is {min}, expected more than 0 and at most 1");
        ensure!((0.0..=180.0).contains(&degrees), "`augmentation.hue.degrees` is {degrees}, expected 0 to 180");
        Ok(())
    }

    /// Augments an image with random numbers from `streams` only. For mosaics, `load_random` returns a random image of the
    /// data set, chosen with the generator it gets.
    ///
    /// # Errors
    /// Those of `load_random`.
    pub fn apply<E>(
        &self,
        mut sample: Sample,
        streams: &RandomStreams,
        load_random: impl FnMut(&mut ChaCha8Rng) -> Result<Sample, E>,
    ) -> Result<Sample, E> {
        if let Some(mut random) = streams.chance(Augmentation::Mosaic, self.mosaic.probability) {
            sample = mosaic::mosaic(sample, self.mosaic.min_visibility, &mut random, load_random)?;
        }
        if let Some(mut random) = streams.chance(Augmentation::Crop, self.crop.probability) {
            sample = self.crop.apply(sample, &mut random);
        }
        if let Some(mut random) = streams.chance(Augmentation::Rotation, self.rotation) {
            sample.rotate(Rotation::random(&mut random));
        }
        if streams.chance(Augmentation::HorizontalFlip, self.horizontal_flip).is_some() {
            sample.flip_horizontally();
        }
        if streams.chance(Augmentation::VerticalFlip, self.vertical_flip).is_some() {
            sample.flip_vertically();
        }
        let Self { brightness, contrast, saturation, hue, .. } = self;
        let jitter = ColorJitter { brightness, contrast, saturation, hue };
        if let Some(matrix) = ColorMatrix::random(&jitter, streams, &sample.pixels) {
            sample.transform_colors(&matrix);
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
    use crate::augmentation::testing::{
        assert_boxes_enclose_rectangles, colored_rectangles, colored_rectangles_of, colorful, gray_image,
    };

    const ALWAYS: ColorConfig = ColorConfig { probability: 1.0, strength: 0.1 };

    /// Every augmentation that moves boxes, alone, with its name.
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

    /// Every color augmentation alone, with its name.
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
            large_scale_jitter: LargeScaleJitterConfig { probability: 1.0, ..Default::default() },
            close_mosaic: 0,
        }
    }

    /// Augments an image with rectangles of colors 0 and 1. The other images of a mosaic have the colors 2 and 3, 4 and 5,
    /// and 6.
    fn augment(config: &AugmentationConfig, seed: u64) -> Sample {
        let mut colors = [2..4, 4..6, 6..7].into_iter();
        let load_random = |_: &mut ChaCha8Rng| Ok::<_, Infallible>(colored_rectangles_of(seed, colors.next().unwrap()));
        let Ok(augmented) = config.apply(colored_rectangles_of(seed, 0..2), &RandomStreams::new(seed, 7), load_random);
        augmented
    }

    fn recolor(config: &AugmentationConfig, seed: u64) -> Sample {
        let load_random = |_: &mut ChaCha8Rng| unreachable!("color augmentations need no other image");
        let Ok(recolored) = config.apply::<Infallible>(colorful(), &RandomStreams::new(seed, 7), load_random);
        recolored
    }

    #[test]
    fn boxes_enclose_their_objects_after_augmentation() {
        let cases = geometric().into_iter().chain(colors()).chain([("all", all())]);
        for (name, config) in cases {
            // Resizing blurs the rectangles by up to a pixel at each edge.
            let tolerance = if config.mosaic.probability > 0.0 { 1.0 } else { 0.0 };
            let mut boxes = 0;
            for seed in 0..200 {
                let augmented = augment(&config, seed);
                assert_boxes_enclose_rectangles(&augmented, tolerance, &format!("{name}, seed {seed}"));
                boxes += augmented.objects.len();
            }
            assert!(boxes > 200, "only {boxes} boxes are left after {name}");
        }
    }

    #[test]
    fn augmentations_are_applied_at_probability_one_and_not_at_zero() {
        for seed in 0..20 {
            assert_eq!(augment(&AugmentationConfig::none(), seed), colored_rectangles_of(seed, 0..2));
        }
        for (name, config) in geometric() {
            let changed = (0..20)
                .filter(|&seed| augment(&config, seed).pixels != colored_rectangles_of(seed, 0..2).pixels)
                .count();
            assert_eq!(changed, 20, "{name}");
        }
        for (name, config) in colors() {
            let changed = (0..20).filter(|&seed| recolor(&config, seed).pixels != colorful().pixels).count();
            assert!(
                changed >= 18,
                "{name} changed {changed} of 20 images, expected at least 18: a few factors are nearly 1"
            );
        }
    }

    #[test]
    fn color_augmentations_do_not_change_boxes() {
        for (name, config) in colors() {
            for seed in 0..20 {
                assert_eq!(recolor(&config, seed).objects, colorful().objects, "{name}");
            }
        }
    }

    #[test]
    fn augmentation_depends_only_on_seed_and_image_index() {
        assert_eq!(augment(&all(), 3), augment(&all(), 3));
        assert_ne!(augment(&all(), 3), augment(&all(), 4));
        let apply = |image| {
            let load_random = |_: &mut ChaCha8Rng| Ok::<_, Infallible>(colored_rectangles(1));
            let Ok(augmented) = all().apply(colored_rectangles(0), &RandomStreams::new(0, image), load_random);
            augmented
        };
        assert_ne!(apply(0), apply(1));
    }

    #[test]
    fn augmentations_are_applied_independently() {
        let half = AugmentationConfig { horizontal_flip: 0.5, ..AugmentationConfig::none() };
        let both = AugmentationConfig { rotation: 0.5, brightness: ALWAYS, ..half.clone() };
        let flips = |config: &AugmentationConfig, image| {
            let streams = RandomStreams::new(0, image);
            streams.chance(Augmentation::HorizontalFlip, config.horizontal_flip).is_some()
        };
        let flipped: Vec<_> = (0..100).map(|image| flips(&half, image)).collect();
        assert_eq!(flipped, (0..100).map(|image| flips(&both, image)).collect::<Vec<_>>());
        assert!((30..70).contains(&flipped.iter().filter(|flipped| **flipped).count()));
    }

    #[test]
    fn tiny_and_elongated_images_are_augmented() {
        for (width, height) in [(1, 1), (1, 2), (2, 1), (2, 2), (4000, 2), (2, 4000), (17, 16)] {
            for (name, config) in geometric().into_iter().chain(colors()).chain([("all", all())]) {
                for seed in 0..10 {
                    let sizes = [(1, 1), (4000, 2), (40, 30)];
                    let mut sizes = sizes.into_iter();
                    let load_random = |_: &mut ChaCha8Rng| {
                        let (width, height) = sizes.next().unwrap();
                        Ok::<_, Infallible>(gray_image(width, height))
                    };
                    let streams = RandomStreams::new(seed, 0);
                    let Ok(augmented) = config.apply(gray_image(width, height), &streams, load_random);
                    assert!(augmented.pixels.width() > 0 && augmented.pixels.height() > 0);
                    let (width, height) = (augmented.pixels.width() as f32, augmented.pixels.height() as f32);
                    for object in &augmented.objects {
                        let inside = object.bounding_box.clip(width, height);
                        assert_eq!(inside, object.bounding_box, "{name}");
                        assert!(inside.width() > 0.0 && inside.height() > 0.0, "{name}");
                    }
                }
            }
        }
    }

    #[test]
    fn augmentation_does_not_modify_shared_pixels() {
        let sample = colored_rectangles(0);
        let shared = sample.pixels.clone();
        let before: RgbImage = (*shared).clone();
        let load_random = |_: &mut ChaCha8Rng| Ok::<_, Infallible>(colored_rectangles(1));
        let Ok(augmented) = all().apply(sample, &RandomStreams::new(0, 0), load_random);
        assert_eq!(*shared, before);
        assert!(!Arc::ptr_eq(&shared, &augmented.pixels));
    }

    #[test]
    fn errors_of_other_mosaic_images_are_returned() {
        let [.., (_, mosaic)] = geometric();
        let result = mosaic.apply(colored_rectangles(0), &RandomStreams::new(0, 0), |_| Err("unreadable"));
        assert_eq!(result.unwrap_err(), "unreadable");
    }

    #[test]
    fn mosaic_and_scale_jitter_end_before_the_run_does() {
        let config = AugmentationConfig { close_mosaic: 3, ..all() };
        for epoch in 0..10 {
            let of_epoch = config.of_epoch(epoch, 10);
            let closed =
                [of_epoch.mosaic.probability, of_epoch.scale.probability, of_epoch.large_scale_jitter.probability];
            assert_eq!(closed, if epoch < 7 { [1.0; 3] } else { [0.0; 3] }, "epoch {epoch}");
            assert_eq!(of_epoch.crop, config.crop);
            assert_eq!(all().of_epoch(epoch, 10), all());
            // A longer run counts from its own end.
            assert_eq!(config.of_epoch(epoch, 20), config);
        }
        assert_eq!(config.of_epoch(0, 3), config.closed());
    }

    #[test]
    fn configs_are_read_from_yaml_and_written_back() {
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
    fn errors_name_unknown_keys_and_values_out_of_range() {
        for (text, key) in [("zoom: 1", "`zoom`"), ("crop: {size: 1}", "`size`"), ("hue: 0.5", "hue")] {
            let error = serde_yaml::from_str::<AugmentationConfig>(text).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
        let cases = [
            ("horizontal_flip: -0.1", "`augmentation.horizontal_flip` is -0.1, expected 0 to 1"),
            ("rotation: 90", "`augmentation.rotation` is 90, expected 0 to 1"),
            ("mosaic: {probability: .nan}", "`augmentation.mosaic.probability` is NaN, expected 0 to 1"),
            ("contrast: {strength: 2}", "`augmentation.contrast.strength` is 2, expected 0 to 1"),
            ("crop: {min_visibility: 30}", "`augmentation.crop.min_visibility` is 30, expected 0 to 1"),
            ("crop: {min: 0}", "`augmentation.crop.min` is 0, expected more than 0 and at most 1"),
            ("hue: {degrees: 270}", "`augmentation.hue.degrees` is 270, expected 0 to 180"),
            (
                "large_scale_jitter: {min: 0.01}",
                "`augmentation.large_scale_jitter` has min 0.01 and max 2, expected 0.05 <= min <= max <= 20",
            ),
            ("scale: {min: 1.5}", "`augmentation.scale` has min 1.5 and max 1.25, expected 0.1 <= min <= max <= 4"),
        ];
        for (text, message) in cases {
            let config: AugmentationConfig = serde_yaml::from_str(text).unwrap();
            assert_eq!(config.validate().unwrap_err().to_string(), message);
        }
    }
}
