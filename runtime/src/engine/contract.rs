//! The contract of an exported file: its metadata, checked against its inputs and outputs.

use models::ModelSpec;
use models::onnx_contract::{
    CANDIDATE_ANCHORS, CANDIDATE_CLASSES, CANDIDATE_SCORES, CHECKED_VALUES, CLASSIFICATION, DETECTION_BOXES,
    DETECTION_CLASSES, DETECTION_SCORES, END_TO_END_KEY, IMAGES, NUM_DETECTIONS, REGRESSION, SIZES, SPEC_KEY,
    TOP_K_KEY,
};
use ort::session::{ModelMetadata, Session};
use ort::value::{Outlet, TensorElementType, ValueType};

use super::error::{EngineError, ort_message};
use super::input::{Input, PixelType};

/// What the metadata and the input of an exported file declare.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Contract {
    pub(super) spec: ModelSpec,
    pub(super) outputs: OutputKind,
    pub(super) pixels: PixelType,
    /// Whether there is an input for the sizes of the images in their inputs.
    pub(super) reads_sizes: bool,
    /// Batch size that the file fixes.
    pub(super) batch: Option<usize>,
    /// Input height and width that the file fixes.
    pub(super) size: Option<[usize; 2]>,
}

/// What the file outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OutputKind {
    /// The scores and offsets of all anchors.
    Dense,
    /// The highest-scoring candidates.
    Candidates {
        /// Maximum number per feature level.
        top_k: usize,
    },
    /// Detections.
    Detections {
        /// Maximum number of candidates per feature level.
        top_k: usize,
        /// Maximum number of detections per image.
        max: usize,
    },
}

impl Contract {
    /// Reads the contract. The error says what is missing or wrong in the file.
    pub(super) fn read(session: &Session) -> Result<Self, String> {
        let metadata = session.metadata().map_err(|error| ort_message(&error))?;
        let spec = read_spec(&metadata)?;
        let outputs = OutputKind::read(&metadata)?;
        let images = session.inputs().iter().find(|outlet| outlet.name() == IMAGES);
        let pixels = match images.map(Outlet::dtype) {
            Some(ValueType::Tensor { ty: TensorElementType::Uint8, .. }) => PixelType::Bytes,
            _ => PixelType::Float,
        };
        let reads_sizes = session.inputs().iter().any(|outlet| outlet.name() == SIZES);
        check_inputs(session.inputs(), pixels, reads_sizes)?;
        check_outputs(session.outputs(), outputs, spec.class_count())?;
        let axes = match pixels {
            PixelType::Float => [0, 2, 3],
            PixelType::Bytes => [0, 1, 2],
        };
        let [batch, height, width] = images.map_or([None; 3], |images| fixed_sides(images, axes));
        let size = match (height, width) {
            (Some(height), Some(width)) => Some([height, width]),
            (None, None) => None,
            _ => return Err("its input fixes only one of height and width".to_owned()),
        };
        check_size(size, &spec)?;
        Ok(Self { spec, outputs, pixels, reads_sizes, batch, size })
    }

    /// Why the network cannot be recorded as a CUDA graph; `None` if it can.
    pub(super) fn cuda_graph_obstacle(&self) -> Option<&'static str> {
        if self.outputs != OutputKind::Dense {
            let reason = "the model selects candidates with operators that CUDA graphs do not support; export it without \
                          --top-k and --end-to-end";
            return Some(reason);
        }
        if self.pixels == PixelType::Bytes {
            return Some("the model computes the shape of its input; export it without --input uint8");
        }
        (self.size.is_none() || self.batch.is_none())
            .then_some("a CUDA graph needs a fixed input shape; export the model with --input-size and --batch-size")
    }

    /// Shape of the batch of these inputs, `[N, 3, H, W]` or `[N, H, W, 3]`. N is the fixed batch size if the file has one,
    /// otherwise the number of images or `batch`, whichever is larger.
    pub(super) fn shape(&self, inputs: &[&Input], batch: usize) -> Result<[usize; 4], EngineError> {
        let count = inputs.len();
        let Some(first) = inputs.first() else { return Err(EngineError::Input { found: vec![0; 4] }) };
        if inputs.iter().any(|input| input.pixel_type() != self.pixels) {
            return Err(EngineError::Pixels { expected: self.pixels });
        }
        let shape = first.batch_shape(count);
        if !first.is_valid() || inputs.iter().any(|input| input.batch_shape(count) != shape) {
            return Err(EngineError::Input { found: shape.to_vec() });
        }
        if let Some(expected) = self.size.filter(|size| *size != first.size()) {
            return Err(EngineError::Size { found: first.size(), expected });
        }
        match self.batch {
            Some(max) if count > max => Err(EngineError::Batch { found: count, max }),
            fixed => Ok(first.batch_shape(fixed.unwrap_or(count.max(batch)))),
        }
    }
}

impl OutputKind {
    fn read(metadata: &ModelMetadata) -> Result<Self, String> {
        let number = |key: &str| {
            let number = metadata.custom(key).map(|text| {
                let number = text.parse::<usize>().ok().filter(|number| *number > 0);
                number.ok_or_else(|| format!("its metadata key `{key}` is `{text}`, expected a number of at least 1"))
            });
            number.transpose()
        };
        match (number(TOP_K_KEY)?, number(END_TO_END_KEY)?) {
            (None, None) => Ok(Self::Dense),
            (Some(top_k), None) => Ok(Self::Candidates { top_k }),
            (Some(top_k), Some(max)) => Ok(Self::Detections { top_k, max }),
            (None, Some(_)) => Err(format!("its metadata has `{END_TO_END_KEY}`, but no `{TOP_K_KEY}`")),
        }
    }
}

/// The spec in the metadata.
fn read_spec(metadata: &ModelMetadata) -> Result<ModelSpec, String> {
    let text = metadata.custom(SPEC_KEY).ok_or_else(|| format!("its metadata has no `{SPEC_KEY}`"))?;
    let spec =
        ModelSpec::from_yaml(&text).map_err(|error| format!("its metadata key `{SPEC_KEY}` is invalid: {error}"))?;
    match spec.class_count() {
        0 => Err(format!("its metadata key `{SPEC_KEY}` has no classes")),
        _ => Ok(spec),
    }
}

fn check_inputs(found: &[Outlet], pixels: PixelType, reads_sizes: bool) -> Result<(), String> {
    let images: ExpectedTensor = match pixels {
        PixelType::Float => (IMAGES, TensorElementType::Float32, &[None, Some(3), None, None]),
        PixelType::Bytes => (IMAGES, TensorElementType::Uint8, &[None, None, None, Some(3)]),
    };
    let inputs: [ExpectedTensor; 2] = [images, (SIZES, TensorElementType::Int64, &[None, Some(2)])];
    check_tensors("input", found, &inputs[..1 + usize::from(reads_sizes)])
}

fn check_outputs(found: &[Outlet], kind: OutputKind, classes: usize) -> Result<(), String> {
    let [float, int32, int64] = [TensorElementType::Float32, TensorElementType::Int32, TensorElementType::Int64];
    let expected: &[ExpectedTensor] = match kind {
        OutputKind::Dense => {
            &[(CLASSIFICATION, float, &[None, None, Some(classes)]), (REGRESSION, float, &[None, None, Some(4)])]
        }
        OutputKind::Candidates { .. } => &[
            (CANDIDATE_SCORES, float, &[None, None]),
            (CANDIDATE_ANCHORS, int64, &[None, None]),
            (CANDIDATE_CLASSES, int64, &[None, None]),
            (REGRESSION, float, &[None, None, Some(4)]),
        ],
        OutputKind::Detections { max, .. } => &[
            (NUM_DETECTIONS, int32, &[None, Some(1)]),
            (DETECTION_BOXES, float, &[None, Some(max), Some(4)]),
            (DETECTION_SCORES, float, &[None, Some(max)]),
            (DETECTION_CLASSES, int32, &[None, Some(max)]),
        ],
    };
    // The outputs of a check may follow.
    let end = found.iter().position(|outlet| outlet.name() == CHECKED_VALUES[0]);
    check_tensors("output", &found[..end.unwrap_or(found.len())], expected)
}

/// Checks that the input size that the file fixes is that of the spec.
fn check_size(size: Option<[usize; 2]>, spec: &ModelSpec) -> Result<(), String> {
    let declared = spec.preprocessing.input_size.map(|sides| sides.map(|side| side as usize));
    if size.is_none() || size == declared {
        return Ok(());
    }
    let text =
        |size: Option<[usize; 2]>| size.map_or("any size".to_owned(), |[height, width]| format!("{height}x{width}"));
    Err(format!("its input is {}, but its spec declares {} (height x width)", text(size), text(declared)))
}

/// Sizes of an input along `axes`, where fixed: batch size, height and width.
fn fixed_sides(input: &Outlet, axes: [usize; 3]) -> [Option<usize>; 3] {
    let ValueType::Tensor { shape, .. } = input.dtype() else { return [None; 3] };
    axes.map(|axis| shape.get(axis).and_then(|size| usize::try_from(*size).ok()))
}

/// Name, element type and sizes of a tensor; `None` is any size.
type ExpectedTensor<'a> = (&'a str, TensorElementType, &'a [Option<usize>]);

/// Checks that there are exactly these tensors. Sizes that are dynamic in the file are checked when the network runs.
fn check_tensors(kind: &str, found: &[Outlet], expected: &[ExpectedTensor]) -> Result<(), String> {
    let names = found.iter().map(|outlet| format!("`{}`", outlet.name())).collect::<Vec<_>>().join(", ");
    if found.len() != expected.len() {
        return Err(format!("it has {} {kind}s ({names}), expected {}", found.len(), expected.len()));
    }
    for (name, element, sizes) in expected {
        let outlet = found.iter().find(|outlet| outlet.name() == *name);
        let Some(outlet) = outlet else {
            return Err(format!("it has no {kind} `{name}`; its {kind}s are {names}"));
        };
        let fits = match outlet.dtype() {
            ValueType::Tensor { ty, shape, .. } if ty == element => {
                shape.len() == sizes.len()
                    && shape.iter().zip(*sizes).all(|(found, expected)| {
                        *found < 0 || expected.is_none_or(|expected| usize::try_from(*found) == Ok(expected))
                    })
            }
            _ => false,
        };
        if !fits {
            let sizes = sizes.iter().map(|size| size.map_or("any".to_owned(), |size| size.to_string()));
            let sizes = sizes.collect::<Vec<_>>().join(", ");
            return Err(format!("its {kind} `{name}` is {}, expected {element} [{sizes}]", outlet.dtype()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ndarray::Array3;

    use super::*;
    use crate::engine::input::Pixels;

    fn dense() -> Contract {
        let (outputs, pixels) = (OutputKind::Dense, PixelType::Float);
        Contract { spec: ModelSpec::default(), outputs, pixels, reads_sizes: false, batch: None, size: None }
    }

    #[test]
    fn bytes_are_not_accepted_in_place_of_floats() {
        let bytes = Input { pixels: Pixels::Bytes(Array3::zeros((64, 96, 3)).into()), valid: [60, 90] };
        let reads_bytes = Contract { pixels: PixelType::Bytes, size: Some([64, 96]), ..dense() };
        assert_eq!(reads_bytes.shape(&[&bytes], 2).unwrap(), [2, 64, 96, 3]);
        let error = dense().shape(&[&bytes], 1).unwrap_err();
        assert!(matches!(error, EngineError::Pixels { expected: PixelType::Float }), "{error}");
    }

    #[test]
    fn cuda_graph_needs_a_fixed_shape_and_dense_outputs() {
        let contract = |outputs, batch, size| Contract { outputs, batch, size, ..dense() };
        let (dense, candidates) = (OutputKind::Dense, OutputKind::Candidates { top_k: 100 });
        let size = Some([64, 96]);
        assert_eq!(contract(dense, Some(2), size).cuda_graph_obstacle(), None);
        for (contract, part) in [
            (contract(dense, None, size), "--batch-size"),
            (contract(dense, Some(2), None), "--input-size"),
            (contract(candidates, Some(2), size), "without --top-k"),
        ] {
            assert!(contract.cuda_graph_obstacle().is_some_and(|reason| reason.contains(part)), "{contract:?}");
        }
    }

    #[test]
    fn batch_is_padded_to_the_fixed_or_requested_size() {
        let image = Input::from(Array3::zeros((3, 64, 96)));
        let batch_size = |fixed, batch| {
            let contract = Contract { batch: fixed, ..dense() };
            contract.shape(&[&image, &image], batch).map(|shape| shape[0])
        };
        assert_eq!([0, 2, 8].map(|batch| batch_size(None, batch).unwrap()), [2, 2, 8]);
        assert_eq!(batch_size(Some(4), 8).unwrap(), 4);
        assert!(matches!(batch_size(Some(1), 8), Err(EngineError::Batch { found: 2, max: 1 })));
    }
}
