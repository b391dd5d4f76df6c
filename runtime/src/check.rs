//! The check of a file: what the network must compute for a drawn image, in the file's metadata. Where the file runs, it shows
//! whether a provider computes the right numbers.

use std::fmt;
use std::fs;
use std::path::Path;

use models::Deviation;
use models::onnx_contract::{CHECK_KEY, CHECKED_VALUES};
use models::spec::PreprocessingSpec;
use ndarray::{Array3, ArrayView3};
use serde::{Deserialize, Serialize};

use crate::drawn;
use crate::engine::{Engine, EngineError, EngineOptions, Input, PixelType, Pixels};

/// Height and width of the image, for files that accept any.
const SIDES: [usize; 2] = [64, 96];

/// Number of logits and of offsets that are compared, evenly spaced.
const SAMPLE: usize = 2048;

/// RMS differences of logits and offsets that are always allowed, of logits as much as int8 rounds them: before training, the
/// outputs themselves vary less.
const NEGLIGIBLE: [f64; 2] = [0.03, 0.001];

/// What a network must compute for the drawn image, and how to read it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// Bytes that, appended to the file, add the outputs [`CHECKED_VALUES`], since a file may output only detections: a file is a
    /// protocol buffer, and concatenated protocol buffers are decoded as one.
    #[serde(with = "hex")]
    pub outputs: Vec<u8>,
    /// A sample of the logits.
    #[serde(with = "hex")]
    pub logits: Vec<u8>,
    /// A sample of the offsets.
    #[serde(with = "hex")]
    pub offsets: Vec<u8>,
    /// Maximum RMS difference of either, in standard deviations.
    pub limit: f64,
}

/// Differences of what a provider computes from the expected values.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckReport {
    /// Of the logits.
    pub logits: Deviation,
    /// Of the offsets.
    pub offsets: Deviation,
    /// Maximum RMS difference of either, in standard deviations.
    pub limit: f64,
}

impl Check {
    /// A check with these logits and offsets, each with the values of all levels and anchors for [`Check::image`].
    pub fn new(outputs: Vec<u8>, logits: &[f32], offsets: &[f32], limit: f64) -> Self {
        let bytes = |values: &[f32]| sample(values).flat_map(f32::to_le_bytes).collect();
        Self { outputs, logits: bytes(logits), offsets: bytes(offsets), limit }
    }

    /// The check as a value of the file's metadata, under [`CHECK_KEY`].
    ///
    /// # Errors
    /// When JSON cannot represent it.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }

    /// The drawn image as the network's input, `[3, H, W]` normalized. `size` is the height and width that the file fixes.
    pub fn image(spec: &PreprocessingSpec, size: Option<[usize; 2]>) -> Array3<f32> {
        let [factor, term] = spec.factor_and_term();
        let bytes = bytes(size);
        let (height, width, _) = bytes.dim();
        let normalized = |(c, y, x): (usize, usize, usize)| f32::from(bytes[[y, x, c]]) * factor[c] + term[c];
        Array3::from_shape_fn((3, height, width), normalized)
    }

    /// Runs the check of a file with these options.
    ///
    /// # Errors
    /// When the file has no check or cannot be read, and when the provider does not work.
    pub fn run(path: &Path, options: &EngineOptions) -> Result<CheckReport, EngineError> {
        let model = || path.display().to_string();
        let file =
            Engine::open(path, &EngineOptions { onnxruntime: options.onnxruntime.clone(), ..Default::default() })?;
        let not_exported = |reason: &str| EngineError::NotExported { model: model(), reason: reason.to_owned() };
        let text = file.info().check.as_deref();
        let text = text.ok_or_else(|| not_exported("its metadata has no check; export it with this version"))?;
        let check: Self = serde_json::from_str(text)
            .map_err(|error| not_exported(&format!("its metadata key `{CHECK_KEY}` is {error}")))?;
        let spec = &file.spec().preprocessing;
        let pixels = match file.pixel_type() {
            PixelType::Float => Pixels::Float(Self::image(spec, file.size()).into()),
            PixelType::Bytes => Pixels::Bytes(bytes(file.size()).into()),
        };
        let mut input = Input { pixels, valid: [0; 2] };
        input.valid = input.size();
        drop(file);

        let read = |error: std::io::Error| EngineError::Read { model: model(), reason: error.to_string() };
        let mut bytes = fs::read(path).map_err(read)?;
        bytes.extend_from_slice(&check.outputs);
        let engine = Engine::from_bytes_in(&model(), &bytes, path.parent(), options)?;
        drop(bytes);
        let values = engine.read_values(&input, &CHECKED_VALUES)?;
        let (logits, offsets) = values.split_at(values.len() / 2);
        Ok(check.compare(&logits.concat(), &offsets.concat()))
    }

    /// Compares logits and offsets that a provider computed, each with the values of all levels and anchors.
    pub fn compare(&self, logits: &[f32], offsets: &[f32]) -> CheckReport {
        let deviation = |expected: &[u8], found: &[f32]| {
            let expected: Vec<f32> = expected.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            let found: Vec<f32> = sample(found).collect();
            let mut deviation = Deviation::default();
            // Values that are no row become none, which differ from every expected row.
            let row = |values: &[f32]| {
                ArrayView3::from_shape((1, values.len(), 1), values).map(|row| row.to_owned()).unwrap_or_default()
            };
            deviation.add(row(&expected).view(), row(&found).view());
            deviation
        };
        let [logits, offsets] = [(&self.logits, logits), (&self.offsets, offsets)].map(|(a, b)| deviation(a, b));
        CheckReport { logits, offsets, limit: self.limit }
    }
}

impl CheckReport {
    /// Whether the numbers are right.
    pub fn passes(&self) -> bool {
        let mut parts = [&self.logits, &self.offsets].into_iter().zip(NEGLIGIBLE);
        parts.all(|(part, negligible)| part.rms() <= negligible.max(self.limit * part.expected_std()))
    }
}

/// RMS differences in standard deviations.
impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let [logits, offsets] = [&self.logits, &self.offsets].map(|part| match part.expected_std() {
            0.0 => part.rms(),
            std => part.rms() / std,
        });
        let limit = self.limit;
        write!(
            f,
            "RMS difference {logits:.1e} for logits and {offsets:.1e} for offsets, in standard deviations (limit {limit})"
        )
    }
}

/// The drawn image, `[H, W, 3]`.
fn bytes(size: Option<[usize; 2]>) -> Array3<u8> {
    let [height, width] = size.unwrap_or(SIDES);
    let image = drawn::image(1, width as u32, height as u32);
    Array3::from_shape_fn((height, width, 3), |(y, x, c)| image.get_pixel(x as u32, y as u32).0[c])
}

/// At most [`SAMPLE`] evenly spaced values.
fn sample(values: &[f32]) -> impl Iterator<Item = f32> + '_ {
    let count = values.len().min(SAMPLE);
    (0..count).map(move |index| values[index * values.len() / count])
}

/// Bytes as hexadecimal text.
mod hex {
    use std::fmt::Write;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(2 * bytes.len());
        // Writing to a string cannot fail.
        bytes.iter().for_each(|byte| write!(text, "{byte:02x}").unwrap_or_default());
        serializer.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let byte = |digits: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
        let (digits, rest) = text.as_bytes().as_chunks::<2>();
        let bytes: Option<Vec<u8>> = digits.iter().map(byte).collect();
        bytes.filter(|_| rest.is_empty()).ok_or_else(|| D::Error::custom("not hexadecimal"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logits and offsets of a network.
    fn values() -> [Vec<f32>; 2] {
        [3.0, 0.1].map(|scale: f32| (0..5000).map(|i| scale * (i as f32 * 0.7).sin() - scale).collect())
    }

    fn check() -> Check {
        let [logits, offsets] = values();
        Check::new(vec![1, 0xab], &logits, &offsets, 0.01)
    }

    #[test]
    fn a_provider_with_wrong_kernels_fails() {
        let [logits, offsets] = values();
        assert!(check().compare(&logits, &offsets).passes());
        // As TF32 rounds.
        let rounded: Vec<f32> = logits.iter().map(|value| value * (1.0 + 0.0005 * (value * 1e4).sin())).collect();
        assert!(check().compare(&rounded, &offsets).passes());
        type Change = fn(&mut Vec<f32>);
        let wrong: [(&str, Change); 6] = [
            ("a bias is left out", |values| values.iter_mut().for_each(|value| *value += 0.3)),
            ("rows are swapped", |values| values.chunks_exact_mut(2).for_each(|pair| pair.swap(0, 1))),
            ("a part is zero", |values| values[4000..].fill(0.0)),
            ("a value is NaN", |values| values.fill(f32::NAN)),
            ("there are too few", |values| values.truncate(1000)),
            ("there are none", Vec::clear),
        ];
        for (what, change) in wrong {
            for part in 0..2 {
                let mut found = values();
                change(&mut found[part]);
                let report = check().compare(&found[0], &found[1]);
                assert!(!report.passes(), "{what}: {report}");
            }
        }
    }

    #[test]
    fn metadata_keep_the_check() {
        let text = check().to_json().unwrap();
        assert_eq!(serde_json::from_str::<Check>(&text).unwrap(), check());
        assert!(text.len() < 40_000 && text.contains("\"outputs\":\"01ab\""), "{}", text.len());
        for broken in ["01a", "0g", "é"] {
            assert!(serde_json::from_str::<Check>(&text.replace("01ab", broken)).is_err(), "{broken}");
        }
    }

    #[test]
    fn constant_outputs_of_an_untrained_network_may_differ_by_rounding() {
        let constant = vec![-4.595f32; 100];
        let check = Check::new(Vec::new(), &constant, &constant, 0.01);
        let near: Vec<f32> = constant.iter().map(|value| value + 1e-5).collect();
        assert!(check.compare(&near, &near).passes());
        let far: Vec<f32> = constant.iter().map(|value| value + 0.1).collect();
        assert!(!check.compare(&far, &near).passes());
    }
}
