//! Samples of a TIFF as bytes.

use std::borrow::Cow;

use half::f16;
use tiff_reader::{ColorModel, ExtraSample, Ifd, RasterLayout};

use super::super::error::DecodeError;

const UNSIGNED: u16 = 1;
const SIGNED: u16 = 2;

/// The samples of decoded pixels, and which of them are the image.
pub(super) struct Samples {
    /// The decoded image: `[height, width, samples_per_pixel]`.
    pub(super) layout: RasterLayout,
    /// The samples that are red, green and blue.
    bands: [usize; 3],
    /// The sample that is the alpha by which the colors were multiplied.
    associated_alpha: Option<usize>,
    /// The value of pixels without data.
    no_data: Option<f64>,
    /// Whether the palette holds bytes, against the specification.
    palette_of_bytes: bool,
}

/// A sample becomes the byte `floor(sample * factor + offset)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scale {
    factor: f64,
    offset: f64,
}

impl Scale {
    const BYTES: Self = Self { factor: 1.0, offset: 0.0 };
    const HIGH_BYTE: Self = Self { factor: 1.0 / 256.0, offset: 0.0 };
    const UNIT: Self = Self { factor: 255.0, offset: 0.5 };

    fn apply(self, sample: f64) -> u8 {
        // `as` makes NaN zero, and clips what only rounding puts outside the range.
        (sample * self.factor + self.offset) as u8
    }
}

impl Samples {
    pub(super) fn new(page: &Ifd) -> Result<Self, DecodeError> {
        const GDAL_NODATA: u16 = 42113;
        let layout = page.decoded_raster_layout()?;
        let model = page.color_model()?;
        let extra = match &model {
            ColorModel::TransparencyMask => &[][..],
            ColorModel::Separated { .. } => return Err(DecodeError::Encoding("its inks are not CMYK".into())),
            ColorModel::Grayscale { extra_samples, .. }
            | ColorModel::Palette { extra_samples, .. }
            | ColorModel::Rgb { extra_samples }
            | ColorModel::Cmyk { extra_samples }
            | ColorModel::YCbCr { extra_samples, .. }
            | ColorModel::CieLab { extra_samples } => extra_samples,
        };
        let channels = layout.samples_per_pixel;
        let alpha = extra.iter().position(|sample| *sample == ExtraSample::AssociatedAlpha);
        let no_data = page.tag(GDAL_NODATA).and_then(|tag| tag.value.as_str()?.trim().parse().ok());
        let palette_of_bytes = match &model {
            ColorModel::Palette { color_map, .. } => [color_map.red(), color_map.green(), color_map.blue()]
                .iter()
                .all(|map| map.iter().all(|value| *value < 256)),
            _ => false,
        };
        Ok(Self {
            layout,
            // Without a color model, GDAL's drivers put red, green and blue first.
            bands: if channels < 3 { [0; 3] } else { [0, 1, 2] },
            associated_alpha: alpha.map(|index| channels - extra.len() + index),
            no_data,
            palette_of_bytes,
        })
    }

    /// The scale of unsigned samples of 8 and 16 bits. Other samples have none.
    pub(super) fn fixed_scale(&self) -> Option<Scale> {
        match (self.layout.sample_format, self.layout.bits_per_sample) {
            (UNSIGNED, 8) => Some(Scale::BYTES),
            (UNSIGNED, 16) if self.palette_of_bytes => Some(Scale::BYTES),
            (UNSIGNED, 16) => Some(Scale::HIGH_BYTE),
            _ => None,
        }
    }

    /// Extends the range of the image's values by those of more pixels.
    pub(super) fn extend_range(&self, samples: &[u8], range: Option<(f64, f64)>) -> Option<(f64, f64)> {
        let values = self.values(samples);
        let pixels = values.chunks_exact(self.layout.samples_per_pixel);
        let values = pixels.flat_map(|pixel| self.bands.map(|band| pixel[band])).filter(|value| !value.is_nan());
        values.fold(range, |range, value| {
            let (min, max) = range.unwrap_or((value, value));
            Some((min.min(value), max.max(value)))
        })
    }

    /// The scale of samples whose values have a range.
    pub(super) fn scale_of(&self, range: Option<(f64, f64)>) -> Result<Scale, DecodeError> {
        let is_float = ![UNSIGNED, SIGNED].contains(&self.layout.sample_format);
        match range {
            Some((min, max)) if min < 0.0 || max > 255.0 => Err(DecodeError::Range { min, max }),
            Some((_, max)) if is_float && max <= 1.0 => Ok(Scale::UNIT),
            _ => Ok(Scale::BYTES),
        }
    }

    /// Appends the red, green and blue bytes of pixels.
    pub(super) fn append_rgb(&self, samples: &[u8], scale: Scale, pixels: &mut Vec<u8>) {
        let is_bytes = (self.layout.sample_format, self.layout.bits_per_sample) == (UNSIGNED, 8);
        let bytes: Cow<'_, [u8]> = match is_bytes {
            true => samples.into(),
            false => self.values(samples).into_iter().map(|value| scale.apply(value)).collect(),
        };
        let rgb_of = |pixel: &[u8]| self.bands.map(|band| pixel[band]);
        match (self.layout.samples_per_pixel, self.associated_alpha) {
            (3, None) => pixels.extend_from_slice(&bytes),
            (channels, None) => pixels.extend(bytes.chunks_exact(channels).flat_map(rgb_of)),
            (channels, Some(alpha)) => pixels.extend(bytes.chunks_exact(channels).flat_map(|pixel| {
                let alpha = u16::from(pixel[alpha]);
                rgb_of(pixel).map(|color| (u16::from(color) * 255).checked_div(alpha).unwrap_or(0).min(255) as u8)
            })),
        }
    }

    /// The numbers that samples stand for; NaN where there is no data.
    fn values(&self, samples: &[u8]) -> Vec<f64> {
        match (self.layout.sample_format, self.layout.bits_per_sample) {
            (UNSIGNED, 8) => self.numbers(samples, |bytes| u8::from_ne_bytes(bytes).into()),
            (UNSIGNED, 16) => self.numbers(samples, |bytes| u16::from_ne_bytes(bytes).into()),
            (UNSIGNED, 32) => self.numbers(samples, |bytes| u32::from_ne_bytes(bytes).into()),
            (UNSIGNED, _) => self.numbers(samples, |bytes| u64::from_ne_bytes(bytes) as f64),
            (SIGNED, 8) => self.numbers(samples, |bytes| i8::from_ne_bytes(bytes).into()),
            (SIGNED, 16) => self.numbers(samples, |bytes| i16::from_ne_bytes(bytes).into()),
            (SIGNED, 32) => self.numbers(samples, |bytes| i32::from_ne_bytes(bytes).into()),
            (SIGNED, _) => self.numbers(samples, |bytes| i64::from_ne_bytes(bytes) as f64),
            (_, 16) => self.numbers(samples, |bytes| f16::from_ne_bytes(bytes).into()),
            (_, 32) => self.numbers(samples, |bytes| f32::from_ne_bytes(bytes).into()),
            _ => self.numbers(samples, f64::from_ne_bytes),
        }
    }

    fn numbers<const BYTES: usize>(&self, samples: &[u8], number: impl Fn([u8; BYTES]) -> f64) -> Vec<f64> {
        let no_data = self.no_data.filter(|_| self.fixed_scale().is_none());
        let numbers = samples.as_chunks().0.iter().map(|bytes| number(*bytes));
        match no_data {
            Some(no_data) => numbers.map(|number| if number == no_data { f64::NAN } else { number }).collect(),
            None => numbers.collect(),
        }
    }
}
