//! The spec: everything needed to interpret the weights of a detector. It is written in YAML and stored in every checkpoint
//! and every ONNX file. No invalid spec can be read: every section checks itself (`section.rs`).
//!
//! Keys that are absent have the values of yhenon/pytorch-retinanet, with five exceptions: the backbone's batch norms are
//! frozen completely (`affine`); boxes are clipped to the image, not to the padded input (`clip`); a side that is a multiple
//! of 32 gets no padding instead of 32 pixels (`pad_rule`); images are resized like PyTorch, not like scikit-image
//! (`resampling`); boxes are scaled by the sides in whole pixels (`box_scale`). The presets, for new trainings, also round
//! resized pixels (`round_pixels`).

mod section;
mod norm;
mod backbone;
mod pyramid;
mod heads;
mod anchors;
mod box_coder;
mod preprocessing;
mod postprocessing;
mod classes;
mod presets;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};

use section::{checked, ensure};

pub(crate) use backbone::RESNETS;
pub(crate) use section::Section;

pub use anchors::{AnchorCenter, AnchorOrder, AnchorRounding, AnchorSpec, AnchorStride};
pub use backbone::{BackboneCheckpointSpec, BackboneSpec};
pub use box_coder::BoxCoderSpec;
pub use classes::Class;
pub use heads::HeadsSpec;
pub use norm::{Affine, NormKind, NormSpec};
pub use postprocessing::{Clip, PostprocessingSpec, Suppression};
pub use preprocessing::{BoxScale, ByteResampling, PadRule, PreprocessingSpec, Resampling, ResizeFilter, SideRounding};
pub use presets::{preset_names, preset_text};
pub use pyramid::{P6From, PyramidSpec};
pub use section::{FORMAT, SpecError};

/// Everything needed to interpret the weights of a detector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, remote = "Self")]
#[schemars(!remote)]
pub struct ModelSpec {
    /// Version of the spec format, which comes first in a file; the newest if absent.
    #[serde(deserialize_with = "read_format")]
    pub format: u32,
    /// The backbone.
    pub backbone: BackboneSpec,
    /// The feature pyramid.
    pub pyramid: PyramidSpec,
    /// The two heads.
    pub heads: HeadsSpec,
    /// The anchors.
    pub anchors: AnchorSpec,
    /// How boxes are encoded as offsets (box deltas).
    pub box_coder: BoxCoderSpec,
    /// Conversion of images to the network's input.
    pub preprocessing: PreprocessingSpec,
    /// Conversion of the network's outputs to detections.
    pub postprocessing: PostprocessingSpec,
    /// The classes, in the order of the network's outputs.
    #[serde(deserialize_with = "classes::read")]
    pub classes: Vec<Class>,
}

/// Bound on the elements of the heads' output convolutions, and of the network's outputs: 4 GiB each. For comparison, 1,203
/// classes (LVIS) and 9 anchors per cell have 25 million and, at 800x1344, 244 million.
const MAX_ELEMENTS: u64 = 1 << 30;

/// Refuses a newer format before anything else of it is read.
fn read_format<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match u32::deserialize(deserializer)? {
        found if found > FORMAT => Err(de::Error::custom(SpecError::Format { found })),
        found => ensure(found > 0, "format", found, "1 or 2").map(|()| found).map_err(de::Error::custom),
    }
}

impl Section for ModelSpec {
    fn check(&self) -> Result<(), SpecError> {
        self.check()
    }

    fn converted(self) -> Self {
        if self.format == 1 { self.converted_from_format_1() } else { self }
    }
}

checked!(ModelSpec);

impl ModelSpec {
    /// Number of classes.
    pub fn class_count(&self) -> usize {
        self.classes.len()
    }

    /// Number of anchors per cell.
    pub fn anchors_per_cell(&self) -> usize {
        self.anchors.per_cell()
    }

    /// Checks a spec that was changed in code; one that was read is valid. [`RetinaNet::new`](crate::RetinaNet::new),
    /// [`parameters`](crate::parameters) and [`Checkpoint::write`](crate::Checkpoint::write) call it. A spec without
    /// classes is valid: training takes them from its data.
    ///
    /// # Errors
    /// With the first field that is out of range.
    pub fn check(&self) -> Result<(), SpecError> {
        let Self { format, backbone, pyramid, heads, anchors, box_coder, preprocessing, postprocessing, classes } =
            self;
        ensure(*format == FORMAT, "format", format, "2")?;
        backbone.check()?;
        pyramid.check()?;
        heads.check()?;
        anchors.check()?;
        box_coder.check()?;
        preprocessing.check()?;
        postprocessing.check()?;
        classes::check(classes)?;
        let outputs = self.anchors_per_cell() as u64 * (self.class_count() as u64 + 4);
        let found = format_args!("{} per cell, with {} classes", self.anchors_per_cell(), self.class_count());
        let weights = outputs * 9 * heads.width.max(pyramid.width) as u64;
        ensure(weights <= MAX_ELEMENTS, "anchors", found, "fewer, or narrower heads: their weights exceed 4 GiB")?;
        let [height, width] = preprocessing.max_input();
        // One cell per 8x8 pixels at P3, and a quarter of the cells at each further level.
        let elements = height.div_ceil(8) * width.div_ceil(8) * 4 / 3 * outputs;
        ensure(elements <= MAX_ELEMENTS, "anchors", found, "fewer, or smaller inputs: the outputs exceed 4 GiB")
    }

    /// The meaning of a spec of format 1: its frozen batch norms trained scale and shift.
    #[must_use]
    fn converted_from_format_1(mut self) -> Self {
        self.format = FORMAT;
        self.backbone.norm.convert_from_format_1();
        self.heads.norm.iter_mut().for_each(NormSpec::convert_from_format_1);
        self
    }

    /// The spec of a preset, without classes.
    ///
    /// # Errors
    /// When there is no preset of that name.
    pub fn preset(name: &str) -> Result<Self, SpecError> {
        Self::from_yaml(&preset_text(name)?)
    }

    /// Reads a spec.
    ///
    /// # Errors
    /// When a newer version of this program wrote it; when the text is not YAML, or has an unknown key, a value of the wrong
    /// type, or a value out of range.
    pub fn from_yaml(text: &str) -> Result<Self, SpecError> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        match serde_yaml::from_str(text) {
            Ok(Version { format: found }) if found > FORMAT => Err(SpecError::Format { found }),
            _ => Ok(serde_yaml::from_str(text)?),
        }
    }

    /// The spec as YAML, with all fields.
    pub fn to_yaml(&self) -> String {
        serde_yaml::to_string(self).expect("a spec holds only strings, numbers and lists, all of which YAML can write")
    }
}

impl Default for ModelSpec {
    fn default() -> Self {
        Self {
            format: FORMAT,
            backbone: BackboneSpec::default(),
            pyramid: PyramidSpec::default(),
            heads: HeadsSpec::default(),
            anchors: AnchorSpec::default(),
            box_coder: BoxCoderSpec::default(),
            preprocessing: PreprocessingSpec::default(),
            postprocessing: PostprocessingSpec::default(),
            classes: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        ModelSpec::from_yaml(text).unwrap_err().to_string()
    }

    #[test]
    fn error_of_an_unknown_key_contains_its_line() {
        let message = error("format: 1\nbackbone:\n  depht: 50\n");
        assert!(message.contains("depht") && message.contains("line 3"), "{message}");
    }

    #[test]
    fn error_of_an_invalid_value_contains_field_value_expectation_and_line() {
        assert_eq!(
            error("heads: {depth: 2}\nanchors:\n  sizes: [32, 64, 128, 256, .inf]\n"),
            "anchors: `anchors.sizes` is [32.0, 64.0, 128.0, 256.0, inf], expected 0.1 to 16384 at line 3 column 3"
        );
        assert_eq!(
            error("heads:\n  norm: {kind: group, epsilon: -1}\n"),
            "heads.norm: `norm.epsilon` is -1.0, expected 0 to 1 at line 2 column 9"
        );
    }

    #[test]
    fn no_section_can_be_read_with_an_invalid_value() {
        let scales = format!("anchors: {{scales: [{}1]}}", "1, ".repeat(256 / 3));
        let classes: Vec<_> = (0..1000).map(|id| format!("{{id: {id}, name: class {id}}}")).collect();
        let classes = classes.join(", ");
        let many_outputs = format!("preprocessing: {{fixed_size: [4096, 4096]}}, classes: [{classes}]");
        let many_weights =
            format!("heads: {{width: 2048}}, anchors: {{ratios: [{}1]}}, classes: [{classes}]", "1, ".repeat(30));
        for (text, field) in [
            ("format: 0", "`format` is 0"),
            ("backbone: {depth: 19}", "`backbone.depth` is 19, expected one of [18, 34, 50, 101, 152]"),
            ("backbone: {depth: 18, groups: 2}", "`backbone.groups, width_per_group` is (2, 64)"),
            ("backbone: {groups: 0}", "backbone.groups"),
            ("backbone: {groups: 257, width_per_group: 1}", "backbone.groups"),
            ("backbone: {width_per_group: 257}", "backbone.width_per_group"),
            ("backbone: {groups: 25, width_per_group: 64}", "backbone.groups"),
            ("backbone: {norm: {epsilon: .nan}}", "backbone.norm: `norm.epsilon` is NaN"),
            ("backbone: {norm: {kind: group, groups: 24}}", "backbone.norm.groups"),
            // 32 groups do not divide the 30 channels of the blocks, only the 64 of the stem.
            ("backbone: {depth: 50, groups: 3, width_per_group: 10, norm: {kind: group}}", "backbone.norm.groups"),
            ("pyramid: {width: 2049}", "pyramid.width"),
            ("heads: {width: 0}", "heads.width"),
            ("heads: {depth: 17}", "heads.depth"),
            ("heads: {prior: 1.0}", "heads.prior"),
            ("heads: {norm: {kind: group, groups: 0}}", "heads.norm: `norm.groups`"),
            ("heads: {norm: {kind: group, groups: 24}}", "heads.norm.groups"),
            ("anchors: {sizes: [1, 2, 3, 4, 16385]}", "anchors.sizes"),
            ("anchors: {ratios: []}", "anchors.ratios"),
            ("anchors: {ratios: [-1]}", "anchors.ratios"),
            ("anchors: {scales: [101]}", "anchors.scales"),
            (&scales, "`anchors.scales` is a list of 86"),
            ("box_coder: {std: [1, 1, 1, .nan]}", "box_coder.std"),
            ("box_coder: {clamp: 0}", "`box_coder.clamp` is Some(0.0), expected 0.01 to 88, or null"),
            ("preprocessing: {shorter_side: 0}", "preprocessing.shorter_side"),
            ("preprocessing: {shorter_side: 800, longer_side: 600}", "preprocessing.longer_side"),
            ("preprocessing: {longer_side: 16385}", "preprocessing.longer_side"),
            (
                "preprocessing: {shorter_side: 16384, longer_side: 16384}",
                "`preprocessing` is an input of up to 16384x16384",
            ),
            ("preprocessing: {fixed_size: [0, 800]}", "preprocessing.fixed_size"),
            ("preprocessing: {fixed_size: [800, 16385]}", "preprocessing.fixed_size"),
            ("preprocessing: {fixed_size: [800, 800], box_scale: common}", "preprocessing.box_scale"),
            ("preprocessing: {resampling: scikit_image, filter: bicubic}", "preprocessing.filter"),
            ("preprocessing: {mean: [0, .inf, 0]}", "preprocessing.mean"),
            ("preprocessing: {mean: [0, .nan, 0]}", "preprocessing.mean"),
            ("preprocessing: {std: [1, 0, 1]}", "preprocessing.std"),
            ("preprocessing: {std: [1, -1, 1]}", "preprocessing.std"),
            ("preprocessing: {std: [.nan, 1, 1]}", "preprocessing.std"),
            ("preprocessing: {pad_multiple: 48}", "preprocessing.pad_multiple"),
            ("preprocessing: {input_size: [320, 330]}", "preprocessing.input_size"),
            ("preprocessing: {input_size: [0, 320]}", "preprocessing.input_size"),
            ("preprocessing: {input_size: [320, 32768]}", "preprocessing.input_size"),
            ("preprocessing: {input_size: [832, 800], fixed_size: [800, 800]}", "preprocessing.input_size"),
            ("postprocessing: {score_threshold: .nan}", "postprocessing.score_threshold"),
            ("postprocessing: {nms_threshold: 1.5}", "postprocessing.nms_threshold"),
            ("postprocessing: {soft_nms: 0.0}", "postprocessing.soft_nms"),
            ("postprocessing: {top_k: 0}", "`postprocessing.top_k` is Some(0), expected at least 1, or null"),
            ("postprocessing: {max_detections: 0}", "postprocessing.max_detections"),
            ("classes: [{id: 1, name: a}, {id: 1, name: b}]", "`classes.id` is 1 twice"),
            ("classes: [{id: 1, name: a}, {id: 2, name: a}]", "`classes.name` is `a` twice"),
            (&many_outputs, "the outputs exceed 4 GiB"),
            (&many_weights, "their weights exceed 4 GiB"),
        ] {
            let message = error(&format!("{{{text}}}"));
            assert!(message.contains(field), "{text}: {message}");
        }
        for text in ["input_size: [320, 64]", "input_size: [320, 224], fixed_size: [300, 200]"] {
            ModelSpec::from_yaml(&format!("preprocessing: {{{text}}}")).unwrap();
        }
    }

    #[test]
    fn sections_check_themselves_inside_other_types() {
        let read = |text: &str| serde_json::from_str::<Vec<NormSpec>>(text);
        assert!(read(r#"[{"groups": 8}]"#).is_ok());
        assert!(read(r#"[{"groups": 0}]"#).unwrap_err().to_string().contains("`norm.groups` is 0"));
    }

    #[test]
    fn check_finds_values_that_were_changed_in_code() {
        let mut spec = ModelSpec::default();
        spec.check().unwrap();
        spec.backbone.norm.epsilon = -1.0;
        let message = spec.check().unwrap_err().to_string();
        assert_eq!(message, "`backbone.norm.epsilon` is -1.0, expected 0 to 1");
    }

    #[test]
    fn newer_formats_are_named_before_their_unknown_keys() {
        for text in ["format: 3\nrotation: 7\n", "rotation: 7\nformat: 3\n"] {
            assert_eq!(error(text), "the spec has format 3, this program reads up to 2; update this program");
        }
    }

    #[test]
    fn frozen_batch_norms_of_format_1_train_scale_and_shift() {
        let norms = "backbone: {norm: {kind: frozen_batch}}\nheads: {norm: {kind: frozen_batch}}\n";
        let norms_of = |format: &str| {
            let spec = ModelSpec::from_yaml(&format!("{format}{norms}")).unwrap();
            assert_eq!(spec.format, FORMAT);
            assert_eq!(ModelSpec::from_yaml(&spec.to_yaml()).unwrap(), spec);
            [spec.backbone.norm, spec.heads.norm.unwrap()].map(|norm| norm.trains_affine())
        };
        assert_eq!(norms_of("format: 1\n"), [true; 2]);
        assert_eq!(norms_of("format: 2\n"), [false; 2]);
        assert_eq!(norms_of(""), [false; 2]);
        let norm = |text: &str| ModelSpec::from_yaml(text).unwrap().backbone.norm;
        assert!(norm("format: 1").trains_affine() && !norm("format: 2").trains_affine());
        assert!(norm("backbone: {norm: {affine: trainable}}").trains_affine());
        assert_eq!(norm("{format: 1, backbone: {norm: {kind: batch}}}").affine, None);
    }

    #[test]
    fn affine_is_only_for_frozen_batch_norms() {
        for kind in ["batch", "group"] {
            let message = error(&format!("backbone: {{norm: {{kind: {kind}, affine: frozen}}}}"));
            assert!(
                message.contains("`norm.affine`") && message.contains("only `kind: frozen_batch` has it"),
                "{message}"
            );
        }
    }
}
