//! The description of an ONNX file: everything that is needed to use it without `runtime`, as text.

use std::fmt::{self, Write};
use std::fs;
use std::io;
use std::path::Path;

use models::onnx_contract::{CHECK_KEY, END_TO_END_KEY, SIZES, SPEC_KEY, TOP_K_KEY};
use models::spec::{
    AnchorCenter, AnchorRounding, AnchorStride, BoxScale, ByteResampling, Clip, PadRule, PreprocessingSpec, Resampling,
    ResizeFilter, SideRounding, Suppression,
};
use models::{Grid, ModelSpec, SpecError};
use prost::Message;

use crate::onnx::{DataType, Dimension, DimensionValue, ModelProto, ValueInfoProto};

/// Why a file cannot be described.
#[derive(Debug, thiserror::Error)]
pub enum DescribeError {
    /// The file cannot be read.
    #[error("cannot read the file")]
    Io(#[from] io::Error),
    /// The file is not an ONNX file, or is truncated.
    #[error("not an ONNX file, or damaged; pass a file written by `exporter --out FILE.onnx`")]
    Damaged(#[from] prost::DecodeError),
    /// The file has no spec, so another program wrote it.
    #[error(
        "not a RetinaNet written by `exporter`: no `{SPEC_KEY}` in the metadata; pass a file written by `exporter --out FILE.onnx`"
    )]
    NoSpec,
    /// The spec is invalid.
    #[error("invalid `{SPEC_KEY}` in the metadata; export the checkpoint again")]
    Spec(#[from] SpecError),
}

/// Describes the ONNX file at `path`: its contents, preprocessing, and decoding of its outputs.
///
/// # Errors
/// When the file cannot be read, is not an ONNX file, or has no valid spec.
pub fn describe(path: &Path) -> Result<String, DescribeError> {
    let model = ModelProto::decode(fs::read(path)?.as_slice())?;
    let entry = model.metadata_props.iter().find(|entry| entry.key == SPEC_KEY).ok_or(DescribeError::NoSpec)?;
    let spec = ModelSpec::from_yaml(&entry.value)?;
    let mut text = String::new();
    describe_to(&mut text, &model, &spec).expect("writing to a string cannot fail");
    Ok(text)
}

fn describe_to(text: &mut String, model: &ModelProto, spec: &ModelSpec) -> fmt::Result {
    let (inputs, outputs) = model.graph.as_ref().map(|graph| (&graph.input[..], &graph.output[..])).unwrap_or_default();
    writeln!(text, "{}", model.doc_string)?;
    writeln!(text, "\nInputs")?;
    inputs.iter().try_for_each(|value| tensor(text, value))?;
    writeln!(text, "\nPreprocessing")?;
    let has = |key: &str| model.metadata_props.iter().any(|entry| entry.key == key);
    let reads_bytes = inputs.iter().any(|value| value.data_type() == Some(DataType::Uint8));
    preprocessing(text, &spec.preprocessing, reads_bytes)?;
    if inputs.iter().any(|value| value.name == SIZES) {
        writeln!(text, "     {SIZES} are height and width before step 4.")?;
    }
    writeln!(text, "\nOutputs")?;
    outputs.iter().try_for_each(|value| tensor(text, value))?;
    let scale = match spec.preprocessing.box_scale {
        BoxScale::PerAxis => "x by resized width / original width, y by resized height / original height",
        BoxScale::Common => "both by the factor of step 2, before rounding of the sides",
    };
    if has(END_TO_END_KEY) {
        writeln!(
            text,
            "\nBoxes\n  The file decodes boxes, clips them and applies NMS with the thresholds below. Divide {scale},\n  \
             for pixels of the original image."
        )?;
    } else {
        rows(text, spec, has(TOP_K_KEY))?;
        anchors(text, spec)?;
        boxes(text, spec, scale)?;
    }
    postprocessing(text, spec)?;
    writeln!(text, "\nClasses (index, id in the data set, name)")?;
    for (index, class) in spec.classes.iter().enumerate() {
        writeln!(text, "  {index}  {}  {}", class.id, class.name)?;
    }
    writeln!(text, "\nProvenance\n  written by {} {}", model.producer_name, model.producer_version)?;
    for entry in model.metadata_props.iter().filter(|entry| ![SPEC_KEY, CHECK_KEY].contains(&&*entry.key)) {
        writeln!(text, "  {}: {}", entry.key, entry.value)?;
    }
    let opset = model.opset_import.iter().find(|set| set.domain.is_empty()).map_or(0, |set| set.version);
    writeln!(
        text,
        "  ONNX opset {opset}, IR version {}; the metadata contains the full spec under `{SPEC_KEY}`",
        model.ir_version
    )
}

fn tensor(text: &mut String, value: &ValueInfoProto) -> fmt::Result {
    let side = |side: &Dimension| match &side.value {
        Some(DimensionValue::Size(size)) => size.to_string(),
        Some(DimensionValue::Name(name)) => name.clone(),
        None => "any".to_owned(),
    };
    let sides: Vec<_> = value.dims().iter().map(side).collect();
    let elements = match value.data_type() {
        Some(DataType::Int64) => "int64",
        Some(DataType::Int32) => "int32",
        Some(DataType::Uint8) => "uint8",
        _ => "float32",
    };
    writeln!(text, "  {} [{}] {elements}: {}", value.name, sides.join(", "), value.doc_string)
}

fn preprocessing(text: &mut String, spec: &PreprocessingSpec, reads_bytes: bool) -> fmt::Result {
    writeln!(text, "  1. Decode to RGB with 8 bits per channel, and apply the EXIF rotation.")?;
    resizing(text, spec)?;
    if reads_bytes {
        writeln!(text, "  3. round(value) to 0 to 255, halves up; the file normalizes, and sets the padding to zero.")?;
    } else {
        let rounding = if spec.round_pixels { "round(value) to 0 to 255, halves up; then " } else { "" };
        writeln!(
            text,
            "  3. {rounding}value = (value / 255 - mean) / std; mean {:?}, std {:?}, for red, green, blue.",
            spec.mean, spec.std
        )?;
    }
    if let Some([height, width]) = spec.input_size {
        return writeln!(text, "  4. Pad with zeros at the right and bottom to height {height} and width {width}.");
    }
    let multiples = match spec.pad_rule {
        PadRule::Minimal => "sides that already are multiples get no padding",
        PadRule::Always => "sides that already are multiples get one more multiple",
    };
    writeln!(
        text,
        "  4. Pad with zeros at the right and bottom until both sides are multiples of {}; {multiples}.",
        spec.pad_multiple
    )
}

fn resizing(text: &mut String, spec: &PreprocessingSpec) -> fmt::Result {
    match spec.fixed_size {
        Some([height, width]) => {
            writeln!(text, "  2. Resize to height {height} and width {width}, without keeping the aspect ratio;")?
        }
        None => {
            let rounding = match spec.side_rounding {
                SideRounding::HalfEven => "rounded to the nearest integer, half to even",
                SideRounding::HalfUp => "rounded to the nearest integer, half up",
                SideRounding::Down => "rounded down",
            };
            match spec.input_size {
                None => writeln!(
                    text,
                    "  2. Resize both sides by one factor so that the shorter side is {}, or, if the longer side would \
                     exceed {},\n     \
                     so that the longer side is {}; both sides are {rounding};",
                    spec.shorter_side, spec.longer_side, spec.longer_side
                )?,
                Some([height, width]) => writeln!(
                    text,
                    "  2. Resize both sides by the largest factor for which the shorter side is at most {}, the longer \
                     side at most {},\n     \
                     the height at most {height} and the width at most {width}; both sides are {rounding};",
                    spec.shorter_side, spec.longer_side
                )?,
            }
        }
    }
    let filter = match spec.filter {
        ResizeFilter::Bilinear => "bilinear",
        ResizeFilter::Bicubic => "bicubic",
        ResizeFilter::Nearest => "nearest",
    };
    let antialias = if spec.antialias { "antialiased" } else { "not antialiased" };
    let resampling = match (spec.byte_resampling(), spec.resampling) {
        (Some(ByteResampling::Pillow), _) => "as Pillow resizes bytes",
        (Some(ByteResampling::OpenCv), _) => "as OpenCV's INTER_LINEAR resizes bytes",
        (None, Resampling::Torch) => "as torch.nn.functional.interpolate with align_corners=False",
        (None, Resampling::ScikitImage) => "as skimage.transform.resize of scikit-image 0.19 or later",
    };
    writeln!(text, "     {filter}, {antialias}, {resampling}.")
}

fn rows(text: &mut String, spec: &ModelSpec, outputs_candidates: bool) -> fmt::Result {
    writeln!(text, "\nRows")?;
    let subject = if outputs_candidates {
        writeln!(
            text,
            "  Candidate j of an image has score scores[j], class index classes[j], anchor index anchors[j] and offsets\n  \
             regression[j]; score 0 means no candidate. Candidates are the highest scores of each level, see Thresholds."
        )?;
        "Anchors are"
    } else {
        "Row i of both outputs belongs to anchor i. Anchors are"
    };
    writeln!(
        text,
        "  {subject} in order of level P3 to P7 (strides 8, 16, 32, 64 and 128), row y, column x, and\n  \
         anchor of the cell ({} per cell). A level has ceil(H / stride) rows and ceil(W / stride) columns.",
        spec.anchors_per_cell()
    )
}

fn anchors(text: &mut String, spec: &ModelSpec) -> fmt::Result {
    let center = match spec.anchors.center {
        AnchorCenter::Half => "(x + 0.5, y + 0.5) * step",
        AnchorCenter::Zero => "(x, y) * step",
    };
    // Right and lower edges are one pixel further, so centers are half a pixel further.
    let inclusive = if spec.anchors.rounding == AnchorRounding::Inclusive { " + 0.5" } else { "" };
    let step = match spec.anchors.stride {
        AnchorStride::Power => "the level's stride",
        AnchorStride::Fitted => "floor(H / rows) along y and floor(W / columns) along x",
    };
    writeln!(
        text,
        "\nAnchors\n  Centers: {center}{inclusive}, in pixels of the padded input; step is {step}. Anchors of a cell, in order:"
    )?;
    for (level, size) in spec.anchors.sizes.into_iter().enumerate() {
        // Sides do not depend on the stride.
        let cell = spec.anchors.level(size, &Grid { stride_y: 0, stride_x: 0, height: 1, width: 1 });
        let sides: Vec<_> = cell.iter().map(|anchor| format!("{:.2}x{:.2}", anchor.width(), anchor.height())).collect();
        writeln!(text, "  P{} width x height: {}", level + 3, sides.join(" "))?;
    }
    Ok(())
}

fn boxes(text: &mut String, spec: &ModelSpec, scale: &str) -> fmt::Result {
    let [x, y, width, height] = spec.box_coder.std;
    writeln!(
        text,
        "\nBoxes\n  With offsets (dx, dy, dw, dh) and an anchor of center (ax, ay), width aw and height ah:"
    )?;
    writeln!(text, "  center x = ax + {x} * dx * aw, center y = ay + {y} * dy * ah")?;
    match spec.box_coder.clamp {
        None => writeln!(text, "  width = aw * exp({width} * dw), height = ah * exp({height} * dh)")?,
        Some(clamp) => writeln!(
            text,
            "  width = aw * exp(min({width} * dw, {clamp})), height = ah * exp(min({height} * dh, {clamp}))"
        )?,
    }
    let clip = match spec.postprocessing.clip {
        Clip::Padded => "the padded input",
        Clip::Image => "the part of the input that contains the image",
    };
    writeln!(text, "  Clip to {clip}, then divide {scale}, for pixels of the original image.")
}

fn postprocessing(text: &mut String, spec: &ModelSpec) -> fmt::Result {
    let spec = &spec.postprocessing;
    let limit = |count: Option<usize>| count.map_or("all".to_owned(), |count| format!("at most {count}"));
    let others = match spec.suppression {
        Suppression::PerClass => "of the same class",
        Suppression::ClassAgnostic => "of any class",
    };
    writeln!(
        text,
        "\nThresholds\n  Keep scores above {}, per level {}, highest first.",
        spec.score_threshold,
        limit(spec.top_k)
    )?;
    match spec.soft_nms {
        None => writeln!(
            text,
            "  NMS: drop a box whose IoU with a kept, higher-scoring box {others} exceeds {}.",
            spec.nms_threshold
        )?,
        Some(sigma) => writeln!(
            text,
            "  Soft-NMS: in order of decreasing score, each box multiplies the scores of lower-scoring boxes {others} by\n  \
             exp(-IoU^2 / {sigma}); drop scores that are no longer above {}.",
            spec.score_threshold
        )?,
    }
    writeln!(text, "  Keep {} detections per image.", limit(spec.max_detections))
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::import::Kind;
    use models::spec::Class;

    fn description(kind: Kind) -> String {
        let classes = vec![Class { id: 7, name: "cell".to_owned() }];
        let spec = ModelSpec { classes, ..kind.spec().unwrap() };
        let mut text = String::new();
        describe_to(&mut text, &ModelProto::default(), &spec).unwrap();
        text
    }

    #[test]
    fn description_contains_the_settings_of_imported_models() {
        let cases: [(Kind, &[&str]); 3] = [
            (
                Kind::TorchvisionV1,
                &[
                    "the shorter side is 800, or, if the longer side would exceed 1333",
                    "both sides are rounded down",
                    "bilinear, not antialiased, as torch.nn.functional.interpolate",
                    "Centers: (x, y) * step,",
                    "step is floor(H / rows) along y and floor(W / columns) along x",
                    // int(32 * 2 ** (1 / 3)) = 40; 40 / sqrt(2) = 28.3, half of it rounded: 14.
                    "P3 width x height: 46.00x22.00 56.00x28.00 ",
                    "center x = ax + 1 * dx * aw",
                    "exp(min(1 * dw, 4.1351666))",
                    "per level at most 1000",
                    "Keep at most 300 detections per image",
                    "x by resized width / original width",
                ],
            ),
            (
                Kind::Yhenon,
                &[
                    "half to even",
                    "bilinear, antialiased, as skimage.transform.resize",
                    "sides that already are multiples get one more multiple",
                    "Clip to the padded input, then divide both by the factor of step 2",
                    "step is the level's stride",
                ],
            ),
            (Kind::Mlperf, &["Resize to height 800 and width 800, without keeping the aspect ratio", "7  cell"]),
        ];
        for (kind, lines) in cases {
            let text = description(kind);
            for line in lines {
                assert!(text.contains(line), "{}: no `{line}` in {text}", kind.name());
            }
        }
        assert!(!description(Kind::Mlperf).contains("shorter side"));
        let mut rounding = String::new();
        for round_pixels in [false, true] {
            rounding.clear();
            preprocessing(&mut rounding, &PreprocessingSpec { round_pixels, ..PreprocessingSpec::default() }, false)
                .unwrap();
            assert_eq!(rounding.contains("  3. round(value) to 0 to 255, halves up; then value = "), round_pixels);
        }
    }
}
