//! What a file of ours promises, read from the file and held against its inputs and outputs.

use models::ModelSpec;
use ndarray::ArrayView3;
use ort::session::Session;
use ort::value::{Outlet, TensorElementType, ValueType};

use super::error::words;
use super::{
    CANDIDATE_ANCHORS, CANDIDATE_CLASSES, CANDIDATE_SCORES, CLASSIFICATION, EngineError, IMAGES, REGRESSION,
    SIDE_MULTIPLE, SPEC_KEY, TOP_K_KEY,
};

/// What a file of ours promises.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Contract {
    pub(super) spec: ModelSpec,
    /// Candidates of each level that the file hands over; a score of everything if absent.
    pub(super) top_k: Option<usize>,
    /// Number of images that the file fixes.
    pub(super) batch: Option<usize>,
    /// Height and width that the file fixes.
    pub(super) size: Option<[usize; 2]>,
}

impl Contract {
    /// The contract of a file that is ours; otherwise what is missing or different.
    pub(super) fn read(session: &Session) -> Result<Self, String> {
        let metadata = session.metadata().map_err(|error| words(&error))?;
        let text = metadata.custom(SPEC_KEY).ok_or_else(|| format!("it carries no `{SPEC_KEY}`"))?;
        let spec = ModelSpec::from_yaml(&text).map_err(|error| format!("its `{SPEC_KEY}` is broken: {error}"))?;
        let classes = spec.class_count();
        if classes == 0 {
            return Err(format!("its `{SPEC_KEY}` names no classes"));
        }
        let top_k = metadata.custom(TOP_K_KEY).map(|text| {
            text.parse().map_err(|_| format!("its `{TOP_K_KEY}` is `{text}`, expected how many candidates a level has"))
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
            _ => return Err("it fixes one side of its input alone".to_owned()),
        };
        let said = spec.preprocessing.input_size.map(|sides| sides.map(|side| side as usize));
        if size.is_some() && size != said {
            return Err(format!("its input is {size:?}, its spec says {said:?} (height, width)"));
        }
        Ok(Self { spec, top_k, batch, size })
    }

    /// Why runs of the file cannot be replayed from a CUDA graph, if they cannot.
    pub(super) fn against_graphs(&self) -> Option<&'static str> {
        if self.top_k.is_some() {
            return Some(
                "the model chooses candidates by operators that a graph cannot hold; export it without --top-k",
            );
        }
        (self.size.is_none() || self.batch.is_none()).then_some(
            "the model takes inputs of any shape, and a graph has one; export it with --input-size and --batch-size",
        )
    }

    /// The shape of the input as the file takes it, of no fewer than `batch` images where that is free.
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
            Some(most) if count > most => Err(EngineError::Batch { found: count, most }),
            fixed => Ok([fixed.unwrap_or(count.max(batch)), channels, height, width]),
        }
    }
}

/// The number of images, the height and the width that an input fixes.
fn fixed_sides(input: &Outlet) -> [Option<usize>; 3] {
    let ValueType::Tensor { shape, .. } = input.dtype() else { return [None; 3] };
    [0, 2, 3].map(|axis| shape.get(axis).and_then(|size| usize::try_from(*size).ok()))
}

/// Checks that there are exactly these tensors, with these elements and sizes; `None` is any size, and a size that
/// the file leaves open is checked when the network runs.
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
            return Err(format!("it has no {kind} `{name}`, only {names}"));
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
    fn a_graph_needs_one_shape_and_all_scores() {
        let contract = |top_k, batch, size| Contract { spec: ModelSpec::default(), top_k, batch, size };
        let size = Some([64, 96]);
        assert_eq!(contract(None, Some(2), size).against_graphs(), None);
        for (free, part) in [
            (contract(None, None, size), "--batch-size"),
            (contract(None, Some(2), None), "--input-size"),
            (contract(Some(100), Some(2), size), "without --top-k"),
        ] {
            assert!(free.against_graphs().is_some_and(|reason| reason.contains(part)), "{free:?}");
        }
    }

    #[test]
    fn a_free_number_of_images_is_filled_up_and_a_fixed_one_is_fixed() {
        let image = Array3::zeros((3, 64, 96));
        let views = [image.view(), image.view()];
        let images = |fixed, batch| {
            let contract = Contract { spec: ModelSpec::default(), top_k: None, batch: fixed, size: None };
            contract.shape(&views, batch).map(|shape| shape[0])
        };
        assert_eq!([0, 2, 8].map(|batch| images(None, batch).unwrap()), [2, 2, 8]);
        assert_eq!(images(Some(4), 8).unwrap(), 4);
        assert!(matches!(images(Some(1), 8), Err(EngineError::Batch { found: 2, most: 1 })));
    }
}
