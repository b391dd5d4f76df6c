//! The contract of an exported file: its metadata, checked against its inputs and outputs.

use models::ModelSpec;
use models::onnx_contract::{
    CANDIDATE_ANCHORS, CANDIDATE_CLASSES, CANDIDATE_SCORES, CLASSIFICATION, IMAGES, REGRESSION, SIDE_MULTIPLE,
    SPEC_KEY, TOP_K_KEY,
};
use ndarray::ArrayView3;
use ort::session::Session;
use ort::value::{Outlet, TensorElementType, ValueType};

use super::error::EngineError;
use super::error::ort_message;

/// What the metadata and the input of an exported file declare.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Contract {
    pub(super) spec: ModelSpec,
    /// Maximum number of candidates per feature level that the file outputs; `None` if it outputs the scores of all
    /// anchors.
    pub(super) top_k: Option<usize>,
    /// Batch size that the file fixes.
    pub(super) batch: Option<usize>,
    /// Input height and width that the file fixes.
    pub(super) size: Option<[usize; 2]>,
}

impl Contract {
    /// Reads the contract. The error says what is missing or wrong in the file.
    pub(super) fn read(session: &Session) -> Result<Self, String> {
        let metadata = session.metadata().map_err(|error| ort_message(&error))?;
        let text = metadata.custom(SPEC_KEY).ok_or_else(|| format!("its metadata has no `{SPEC_KEY}`"))?;
        let spec = ModelSpec::from_yaml(&text)
            .map_err(|error| format!("its metadata key `{SPEC_KEY}` is invalid: {error}"))?;
        let classes = spec.class_count();
        if classes == 0 {
            return Err(format!("its metadata key `{SPEC_KEY}` has no classes"));
        }
        let top_k = metadata.custom(TOP_K_KEY).map(|text| {
            text.parse().map_err(|_| {
                format!("its metadata key `{TOP_K_KEY}` is `{text}`, expected the number of candidates per level")
            })
        });
        let top_k = top_k.transpose()?;

        let (float, int) = (TensorElementType::Float32, TensorElementType::Int64);
        check_tensors("input", session.inputs(), &[(IMAGES, float, &[None, Some(3), None, None])])?;
        let outputs: &[(&str, TensorElementType, &[Option<usize>])] = match top_k {
            None => {
                &[(CLASSIFICATION, float, &[None, None, Some(classes)]), (REGRESSION, float, &[None, None, Some(4)])]
            }
            Some(_) => &[
                (CANDIDATE_SCORES, float, &[None, None]),
                (CANDIDATE_ANCHORS, int, &[None, None]),
                (CANDIDATE_CLASSES, int, &[None, None]),
                (REGRESSION, float, &[None, None, Some(4)]),
            ],
        };
        check_tensors("output", session.outputs(), outputs)?;

        let [batch, height, width] = fixed_sides(&session.inputs()[0]);
        let size = match (height, width) {
            (Some(height), Some(width)) => Some([height, width]),
            (None, None) => None,
            _ => return Err("its input fixes only one of height and width".to_owned()),
        };
        let declared = spec.preprocessing.input_size.map(|sides| sides.map(|side| side as usize));
        if size.is_some() && size != declared {
            let text = |size: Option<[usize; 2]>| {
                size.map_or("any size".to_owned(), |[height, width]| format!("{height}x{width}"))
            };
            return Err(format!(
                "its input is {}, but its spec declares {} (height x width)",
                text(size),
                text(declared)
            ));
        }
        Ok(Self { spec, top_k, batch, size })
    }

    /// Why the network cannot be recorded as a CUDA graph; `None` if it can.
    pub(super) fn cuda_graph_obstacle(&self) -> Option<&'static str> {
        if self.top_k.is_some() {
            return Some(
                "the model selects candidates with operators that CUDA graphs do not support; export it without --top-k",
            );
        }
        (self.size.is_none() || self.batch.is_none())
            .then_some("a CUDA graph needs a fixed input shape; export the model with --input-size and --batch-size")
    }

    /// Shape of the input for these images, `[N, 3, H, W]`. N is the fixed batch size if the file has one, otherwise
    /// the number of images or `batch`, whichever is larger.
    pub(super) fn shape(&self, images: &[ArrayView3<f32>], batch: usize) -> Result<[usize; 4], EngineError> {
        let count = images.len();
        let (channels, height, width) = images.first().map_or((0, 0, 0), ArrayView3::dim);
        let fits = [height, width].iter().all(|side| *side > 0 && side.is_multiple_of(SIDE_MULTIPLE));
        if channels != 3 || !fits || images.iter().any(|image| image.dim() != (channels, height, width)) {
            return Err(EngineError::Input { found: vec![count, channels, height, width] });
        }
        if let Some(expected) = self.size.filter(|size| *size != [height, width]) {
            return Err(EngineError::Size { found: [height, width], expected });
        }
        match self.batch {
            Some(max) if count > max => Err(EngineError::Batch { found: count, max }),
            fixed => Ok([fixed.unwrap_or(count.max(batch)), channels, height, width]),
        }
    }
}

/// Batch size, height and width of an input, where fixed.
fn fixed_sides(input: &Outlet) -> [Option<usize>; 3] {
    let ValueType::Tensor { shape, .. } = input.dtype() else { return [None; 3] };
    [0, 2, 3].map(|axis| shape.get(axis).and_then(|size| usize::try_from(*size).ok()))
}

/// Checks that there are exactly these tensors, with these element types and sizes; `None` is any size. Sizes that are
/// dynamic in the file are checked when the network runs.
fn check_tensors(
    kind: &str,
    found: &[Outlet],
    expected: &[(&str, TensorElementType, &[Option<usize>])],
) -> Result<(), String> {
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

    #[test]
    fn cuda_graph_needs_a_fixed_shape_and_dense_outputs() {
        let contract = |top_k, batch, size| Contract { spec: ModelSpec::default(), top_k, batch, size };
        let size = Some([64, 96]);
        assert_eq!(contract(None, Some(2), size).cuda_graph_obstacle(), None);
        for (contract, part) in [
            (contract(None, None, size), "--batch-size"),
            (contract(None, Some(2), None), "--input-size"),
            (contract(Some(100), Some(2), size), "without --top-k"),
        ] {
            assert!(contract.cuda_graph_obstacle().is_some_and(|reason| reason.contains(part)), "{contract:?}");
        }
    }

    #[test]
    fn batch_is_padded_to_the_fixed_or_requested_size() {
        let image = Array3::zeros((3, 64, 96));
        let views = [image.view(), image.view()];
        let batch_size = |fixed, batch| {
            let contract = Contract { spec: ModelSpec::default(), top_k: None, batch: fixed, size: None };
            contract.shape(&views, batch).map(|shape| shape[0])
        };
        assert_eq!([0, 2, 8].map(|batch| batch_size(None, batch).unwrap()), [2, 2, 8]);
        assert_eq!(batch_size(Some(4), 8).unwrap(), 4);
        assert!(matches!(batch_size(Some(1), 8), Err(EngineError::Batch { found: 2, max: 1 })));
    }
}
