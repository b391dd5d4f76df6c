//! Which tensor of a file becomes which tensor of the network.

use std::collections::{BTreeMap, BTreeSet};

use ndarray::{ArrayD, Axis, IxDyn};

use super::architecture::{Architecture, Network, Shapes, architecture};
use super::classes::{ClassSource, Outputs};
use super::error::ImportError;
use super::hints::Hints;
use super::kind::Kind;
use super::names::{Rename, table, translate_back};
use super::recognition::{Assumption, Found, find};
use super::rename::{Renamed, rename};
use super::stored::{Stored, StoredTensors, part};
use crate::checkpoint::TensorProblems;
use crate::weights::{Parameter, WeightsError};

/// How the tensors of a file become the tensors of a [`Network`].
#[derive(Clone, Debug, PartialEq)]
pub struct KeyMap {
    /// Kind of the weights.
    pub kind: Kind,
    /// Spec of the network.
    pub network: Network,
    /// What is assumed.
    pub assumptions: Vec<Assumption>,
    /// Where the classes come from; none for a backbone.
    pub class_source: Option<ClassSource>,
    /// How the kind was recognized.
    pub(super) reason: &'static str,
    /// One for every tensor of the network.
    pub(super) steps: Vec<Step>,
    /// The outputs that become classes; none if all of them do.
    pub(super) class_outputs: Option<ClassOutputs>,
    /// Names of tensors that are not needed, by what they are.
    pub(super) dropped: BTreeMap<String, Vec<String>>,
    /// Names of tensors outside the network.
    pub(super) unexpected: Vec<String>,
}

/// The source of one tensor of the network.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Step {
    pub(super) name: String,
    shape: Vec<usize>,
    /// Its name and the type of its values in the file; none if it is filled with zeros.
    pub(super) source: Option<(String, String)>,
}

/// The number of outputs per anchor, and the indices of those that become classes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ClassOutputs {
    pub(super) all: usize,
    pub(super) indices: Vec<usize>,
}

/// Floating-point types that can be imported, as safetensors calls them.
const DTYPES: [&str; 4] = ["F32", "F64", "F16", "BF16"];

/// Prefix of the layer whose output channels belong to classes.
pub(super) const CLASSIFIER: &str = "classificationModel.output.";

impl KeyMap {
    /// Recognizes the kind of the weights and finds the source of every tensor of their network.
    ///
    /// # Errors
    /// When the kind is not recognized, the tensors do not match it, or it is unknown whether output 0 is a background.
    pub fn new(tensors: &StoredTensors, hints: &Hints) -> Result<Self, ImportError> {
        let Found { kind, prefix, reason, assumption } = find(tensors, hints)?;
        let table = table(kind.naming());
        let Renamed { sources, dropped, unexpected, refused } = rename(tensors, &prefix, kind, &table, &hints.drop)?;
        let known = part(tensors, &prefix);
        let shapes: Shapes = sources.iter().map(|(name, key)| (name.as_str(), known[key].shape.as_slice())).collect();

        let counted = known.keys().any(|name| name.ends_with(".num_batches_tracked"));
        let Architecture { network, expected, outputs } = architecture(kind, &shapes, counted, hints)?;
        let mut assumptions: Vec<_> = assumption
            .filter(|assumption| *assumption != Assumption::Epsilon || hints.epsilon.is_none())
            .into_iter()
            .collect();
        let mut class_outputs = None;
        let mut class_source = None;
        if let Some(Outputs { all, classes, source }) = outputs {
            let indices: Vec<_> = classes.into_iter().map(|(index, _)| index).collect();
            class_outputs = (indices.len() < all).then_some(ClassOutputs { all, indices });
            if matches!(source, ClassSource::Published | ClassSource::Numbered) {
                assumptions.push(Assumption::ClassNames);
            }
            class_source = Some(source);
        }
        let sources = Sources { kind, prefix: &prefix, names: &sources, tensors: &known, refused };
        let steps = sources.of(expected, &network, &table)?;
        Ok(Self { kind, network, assumptions, class_source, reason, steps, class_outputs, dropped, unexpected })
    }

    /// The network's tensors, by name. `read` returns a tensor of the file, by its name there and in its declared shape.
    ///
    /// # Errors
    /// Those of `read`, and when a tensor contains values that no network can use.
    pub fn apply<E: From<ImportError>>(
        &self,
        read: impl Fn(&str) -> Result<ArrayD<f32>, E>,
    ) -> Result<BTreeMap<String, ArrayD<f32>>, E> {
        let mut tensors = BTreeMap::new();
        for Step { name, shape, source } in &self.steps {
            let Some((key, _)) = source else {
                tensors.insert(name.clone(), ArrayD::zeros(IxDyn(shape)));
                continue;
            };
            let mut tensor = read(key)?;
            self.check(name, key, &tensor)?;
            if let Some(outputs) = self.class_outputs.as_ref().filter(|_| name.starts_with(CLASSIFIER)) {
                tensor = outputs.rows_of(&tensor);
            }
            if self.swaps_channels(name) {
                tensor.invert_axis(Axis(1));
                tensor = tensor.as_standard_layout().into_owned();
            }
            tensors.insert(name.clone(), tensor);
        }
        Ok(tensors)
    }

    /// Whether this is a convolution that takes blue, green, red. With its input channels in reverse order, it computes the
    /// same from red, green, blue.
    pub(super) fn swaps_channels(&self, name: &str) -> bool {
        self.kind.is_bgr() && name == "conv1.weight"
    }

    fn check(&self, name: &str, key: &str, tensor: &ArrayD<f32>) -> Result<(), ImportError> {
        let wrong = |what| Err(ImportError::Values { name: key.to_owned(), what });
        if !tensor.iter().all(|value| value.is_finite()) {
            return wrong("a value that is not finite");
        }
        let variances = name.ends_with(".running_var");
        if variances && tensor.iter().any(|value| *value < 0.0) {
            return wrong("a negative variance");
        }
        if variances && self.network.backbone().norm.epsilon == 0.0 && tensor.iter().any(|value| *value == 0.0) {
            return wrong("a variance of zero, and the norm epsilon is 0, so it would divide by zero");
        }
        Ok(())
    }
}

/// The tensors of a file from which those of a network are taken.
struct Sources<'a> {
    kind: Kind,
    prefix: &'a str,
    /// Names in the file, without the prefix, by our names.
    names: &'a BTreeMap<String, &'a str>,
    /// The tensors by these names.
    tensors: &'a BTreeMap<&'a str, &'a Stored>,
    /// Full names of unknown tensors inside the network.
    refused: Vec<String>,
}

impl Sources<'_> {
    /// The sources of the `expected` tensors.
    fn of(self, expected: Vec<Parameter>, network: &Network, table: &[Rename]) -> Result<Vec<Step>, ImportError> {
        let Self { kind, prefix, names, tensors, refused } = self;
        let full = |key: &str| format!("{prefix}{key}");
        let mut problems = TensorProblems { unexpected: refused, ..TensorProblems::default() };
        let ours: BTreeSet<_> = expected.iter().map(|parameter| parameter.name.clone()).collect();
        let unknown = names.iter().filter(|(name, _)| !ours.contains(*name));
        problems.unexpected.extend(unknown.map(|(_, key)| full(key)));
        let mut steps = Vec::new();
        for Parameter { name, shape, .. } in expected {
            match names.get(&name).map(|key| (full(key), tensors[key])) {
                None if is_needless_bias(&name, network) => steps.push(Step { name, shape, source: None }),
                None => problems.missing.push(full(&translate_back(table, &name))),
                Some((key, stored)) if stored.shape != shape => {
                    let found = stored.shape.clone();
                    problems.wrong_shape.push(WeightsError::Shape { name: key, expected: shape, found });
                }
                Some((key, Stored { dtype, .. })) => {
                    if !DTYPES.contains(&dtype.as_str()) {
                        return Err(ImportError::Dtype { name: key, dtype: dtype.clone() });
                    }
                    steps.push(Step { name, shape, source: Some((key, dtype.clone())) });
                }
            }
        }
        if problems.is_empty() {
            return Ok(steps);
        }
        Err(ImportError::Tensors { kind, matched: steps.len(), problems })
    }
}

impl ClassOutputs {
    /// The rows of a tensor that belong to classes. Row `a * all + k` is output k at anchor a.
    fn rows_of(&self, tensor: &ArrayD<f32>) -> ArrayD<f32> {
        let anchors = tensor.shape()[0] / self.all;
        let rows = (0..anchors).flat_map(|anchor| self.indices.iter().map(move |index| anchor * self.all + index));
        tensor.select(Axis(0), &rows.collect::<Vec<_>>())
    }
}

/// Whether this is the bias of a head's convolution before a norm layer. Files do not contain it; zeros are equivalent.
fn is_needless_bias(name: &str, network: &Network) -> bool {
    let Network::Detector(spec) = network else { return false };
    spec.heads.norm.is_some() && name.contains("Model.conv") && name.ends_with(".bias")
}
