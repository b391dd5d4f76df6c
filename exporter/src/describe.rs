//! The description: all that a stranger needs to use an ONNX file of ours without us, in words and numbers.

use std::fmt::{self, Write};
use std::fs;
use std::io;
use std::path::Path;

use models::spec::{
    AnchorCenter, AnchorStride, BoxScale, Clip, PadRule, PreprocessingSpec, Resampling, ResizeFilter, SideRounding,
    Suppression,
};
use models::{BoundingBox, Grid, ModelSpec, SpecError};
use prost::Message;
use runtime::{SPEC_KEY, TOP_K_KEY};

use crate::onnx::{DataType, Dimension, DimensionValue, ModelProto, ValueInfoProto};

/// Why a file can't be described.
#[derive(Debug, thiserror::Error)]
pub enum DescribeError {
    /// It can't be read.
    #[error("cannot read it")]
    Io(#[from] io::Error),
    /// It is no ONNX file, or was cut short.
    #[error("it is no ONNX file, or is damaged; name a file that `exporter --out FILE.onnx` wrote")]
    Damaged(#[from] prost::DecodeError),
    /// It comes from another program.
    #[error("it carries no `{SPEC_KEY}`, so its weights could mean anything; name a file that `exporter` wrote")]
    Foreign,
    /// Its spec makes no sense.
    #[error("its `{SPEC_KEY}` is broken; export the model again")]
    Spec(#[from] SpecError),
}

/// What is in the ONNX file at `path`, and how to use it.
///
/// # Errors
/// When the file can't be read, is no ONNX file, or carries no spec of ours.
pub fn describe(path: &Path) -> Result<String, DescribeError> {
    let model = ModelProto::decode(fs::read(path)?.as_slice())?;
    let entry = model.metadata_props.iter().find(|entry| entry.key == SPEC_KEY).ok_or(DescribeError::Foreign)?;
    let spec = ModelSpec::from_yaml(&entry.value)?;
    let mut text = String::new();
    describe_to(&mut text, &model, &spec).expect("a string takes any text");
    Ok(text)
}

fn describe_to(text: &mut String, model: &ModelProto, spec: &ModelSpec) -> fmt::Result {
    let (inputs, outputs) = model.graph.as_ref().map(|graph| (&graph.input[..], &graph.output[..])).unwrap_or_default();
    writeln!(text, "{}", model.doc_string)?;
    writeln!(text, "\nInputs")?;
    inputs.iter().try_for_each(|value| tensor(text, value))?;
    writeln!(text, "\nPreprocessing")?;
    preprocessing(text, &spec.preprocessing)?;
    writeln!(text, "\nOutputs")?;
    outputs.iter().try_for_each(|value| tensor(text, value))?;
    let hands_over_candidates = model.metadata_props.iter().any(|entry| entry.key == TOP_K_KEY);
    rows(text, spec, hands_over_candidates)?;
    anchors(text, spec)?;
    boxes(text, spec)?;
    postprocessing(text, spec)?;
    writeln!(text, "\nClasses (column, id in the data set, name)")?;
    for (column, class) in spec.classes.iter().enumerate() {
        writeln!(text, "  {column}  {}  {}", class.id, class.name)?;
    }
    writeln!(text, "\nProvenance\n  written by {} {}", model.producer_name, model.producer_version)?;
    for entry in model.metadata_props.iter().filter(|entry| entry.key != SPEC_KEY) {
        writeln!(text, "  {}: {}", entry.key, entry.value)?;
    }
    let opset = model.opset_import.iter().find(|set| set.domain.is_empty()).map_or(0, |set| set.version);
    writeln!(
        text,
        "  ONNX operator set {opset}, file format {}; the whole spec is under `{SPEC_KEY}`",
        model.ir_version
    )
}

fn tensor(text: &mut String, value: &ValueInfoProto) -> fmt::Result {
    let tensor = value.r#type.as_ref().and_then(|kind| kind.tensor_type.as_ref());
    let sides = tensor.and_then(|tensor| tensor.shape.as_ref()).map(|shape| shape.dim.as_slice()).unwrap_or_default();
    let side = |side: &Dimension| match &side.value {
        Some(DimensionValue::Size(size)) => size.to_string(),
        Some(DimensionValue::Name(name)) => name.clone(),
        None => "any".to_owned(),
    };
    let sides: Vec<_> = sides.iter().map(side).collect();
    let elements = match tensor.and_then(|tensor| DataType::try_from(tensor.elem_type).ok()) {
        Some(DataType::Int64) => "int64",
        _ => "float32",
    };
    writeln!(text, "  {} [{}] {elements}: {}", value.name, sides.join(", "), value.doc_string)
}

fn preprocessing(text: &mut String, spec: &PreprocessingSpec) -> fmt::Result {
    let filter = match spec.filter {
        ResizeFilter::Bilinear => "bilinear",
        ResizeFilter::Bicubic => "bicubic",
        ResizeFilter::Nearest => "nearest",
    };
    let antialias = if spec.antialias { "antialiased" } else { "not antialiased" };
    let resampling = match spec.resampling {
        Resampling::Torch => "as torch.nn.functional.interpolate with align_corners=False",
        Resampling::ScikitImage => "as skimage.transform.resize from 0.19 on",
    };
    writeln!(text, "  1. Turn the image upright (EXIF), as RGB, 8 bits per channel.")?;
    match spec.fixed_size {
        Some([height, width]) => {
            writeln!(text, "  2. Stretch to {height} rows of {width} pixels, whatever its shape;")?
        }
        None => {
            let rounding = match spec.side_rounding {
                SideRounding::HalfEven => "rounded to the nearest whole number, a half to the even one",
                SideRounding::Down => "rounded down",
            };
            match spec.input_size {
                None => writeln!(
                    text,
                    "  2. Resize by one factor so that the shorter side is {}, or, where the longer side would exceed {}, so that the\n     \
                     longer side is {}; both sides are {rounding};",
                    spec.shorter_side, spec.longer_side, spec.longer_side
                )?,
                Some([height, width]) => writeln!(
                    text,
                    "  2. Resize by the largest factor by which neither the shorter side exceeds {}, nor the longer side {}, nor its\n     \
                     height {height} or its width {width}; both sides are {rounding};",
                    spec.shorter_side, spec.longer_side
                )?,
            }
        }
    }
    writeln!(text, "     {filter}, {antialias}, {resampling}.")?;
    writeln!(
        text,
        "  3. value = (value / 255 - mean) / std; mean {:?}, std {:?}, for red, green, blue.",
        spec.mean, spec.std
    )?;
    if let Some([height, width]) = spec.input_size {
        return writeln!(
            text,
            "  4. Pad with zeros, right and below, until it is {height} pixels high and {width} wide."
        );
    }
    let always = match spec.pad_rule {
        PadRule::Minimal => "a side that is one already gets none",
        PadRule::Always => "a side that is one already gets one more multiple",
    };
    writeln!(
        text,
        "  4. Pad with zeros, right and below, until both sides are multiples of {}; {always}.",
        spec.pad_multiple
    )
}

fn rows(text: &mut String, spec: &ModelSpec, hands_over_candidates: bool) -> fmt::Result {
    writeln!(text, "\nRows")?;
    let belongs = if hands_over_candidates {
        writeln!(
            text,
            "  Candidate j of an image is scores[j] of class classes[j] at anchor anchors[j] with offsets regression[j]; one\n  \
             whose score is 0 is none. They are the best of each level, as under Thresholds."
        )?;
        "Anchors have numbers"
    } else {
        "Row i of both outputs belongs to anchor i"
    };
    writeln!(
        text,
        "  {belongs}: levels P3 to P7, which divide the input by 8, 16, 32, 64 and 128; in a\n  \
         level row y, in it column x, in the cell {} anchors. A level has ceil(H / divisor) rows and ceil(W / divisor) columns.",
        spec.anchors_per_cell()
    )
}

fn anchors(text: &mut String, spec: &ModelSpec) -> fmt::Result {
    let center = match spec.anchors.center {
        AnchorCenter::Half => "(x + 0.5, y + 0.5) * stride",
        AnchorCenter::Zero => "(x, y) * stride",
    };
    let stride = match spec.anchors.stride {
        AnchorStride::Power => "the level's divisor",
        AnchorStride::Fitted => "floor(H / rows) along y and floor(W / columns) along x",
    };
    writeln!(
        text,
        "\nAnchors\n  Around {center}, in pixels of the padded input; the stride is {stride}. In the order of a cell:"
    )?;
    for (level, size) in spec.anchors.sizes.into_iter().enumerate() {
        let sides = spec
            .anchors
            .level(size, &Grid { stride_y: 1 << (level + 3), stride_x: 1 << (level + 3), height: 1, width: 1 });
        let side = |anchor: &BoundingBox| format!("{:.2}x{:.2}", anchor.width(), anchor.height());
        let sides: Vec<_> = sides.iter().map(side).collect();
        writeln!(text, "  P{} width x height: {}", level + 3, sides.join(" "))?;
    }
    Ok(())
}

fn boxes(text: &mut String, spec: &ModelSpec) -> fmt::Result {
    let [x, y, width, height] = spec.box_coder.std;
    writeln!(text, "\nBoxes\n  With offsets (dx, dy, dw, dh) and an anchor of center (ax, ay) and sides (aw, ah):")?;
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
        Clip::Image => "the part of the input that shows the image",
    };
    let scale = match spec.preprocessing.box_scale {
        BoxScale::PerAxis => "x by resized width / original width, y by resized height / original height",
        BoxScale::Common => "both by the factor of step 2, as it is before sides are rounded",
    };
    writeln!(text, "  Clip to {clip}, then divide {scale}.")
}

fn postprocessing(text: &mut String, spec: &ModelSpec) -> fmt::Result {
    let spec = &spec.postprocessing;
    let limit = |count: Option<usize>| count.map_or("all".to_owned(), |count| format!("at most {count}"));
    let rivals = match spec.suppression {
        Suppression::PerClass => "of the same class",
        Suppression::ClassAgnostic => "of any class",
    };
    writeln!(
        text,
        "\nThresholds\n  Keep scores above {}, per level {}, best first.",
        spec.score_threshold,
        limit(spec.top_k)
    )?;
    match spec.soft_nms {
        None => writeln!(text, "  Drop a box whose IoU with a better one {rivals} exceeds {}.", spec.nms_threshold)?,
        Some(sigma) => writeln!(
            text,
            "  Best box first, multiply every other score by exp(-IoU^2 / {sigma}) for each better box {rivals}; drop what no \
             longer exceeds {}.",
            spec.score_threshold
        )?,
    }
    writeln!(text, "  Keep per image {}.", limit(spec.max_detections))
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::spec::{Class, Source};

    fn description(source: Source) -> String {
        let classes = vec![Class { id: 7, name: "cell".to_owned() }];
        let spec = ModelSpec { classes, ..source.spec().unwrap() };
        let mut text = String::new();
        describe_to(&mut text, &ModelProto::default(), &spec).unwrap();
        text
    }

    #[test]
    fn what_relatives_do_in_another_way_is_said() {
        let relatives: [(Source, &[&str]); 3] = [
            (
                Source::TorchvisionV1,
                &[
                    "the shorter side is 800, or, where the longer side would exceed 1333",
                    "both sides are rounded down",
                    "bilinear, not antialiased, as torch.nn.functional.interpolate",
                    "Around (x, y) * stride",
                    "the stride is floor(H / rows) along y and floor(W / columns) along x",
                    // int(32 * 2 ** (1 / 3)) = 40; 40 / sqrt(2) = 28.3, half of it rounded: 14.
                    "P3 width x height: 46.00x22.00 56.00x28.00 ",
                    "center x = ax + 1 * dx * aw",
                    "exp(min(1 * dw, 4.1351666))",
                    "per level at most 1000",
                    "Keep per image at most 300",
                    "x by resized width / original width",
                ],
            ),
            (
                Source::Yhenon,
                &[
                    "a half to the even one",
                    "bilinear, antialiased, as skimage.transform.resize",
                    "a side that is one already gets one more multiple",
                    "Clip to the padded input, then divide both by the factor of step 2",
                    "the stride is the level's divisor",
                ],
            ),
            (Source::Mlperf, &["Stretch to 800 rows of 800 pixels, whatever its shape", "7  cell"]),
        ];
        for (source, lines) in relatives {
            let text = description(source);
            for line in lines {
                assert!(text.contains(line), "{}: no `{line}` in {text}", source.name());
            }
        }
        assert!(!description(Source::Mlperf).contains("shorter side"));
    }
}
