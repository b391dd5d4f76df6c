//! Import of weights of other projects: recognizes the network, renames its tensors, and converts them.
//!
//! A [`Plan`] is made from names and shapes alone. Values are read one tensor at a time when it is carried out, so no large
//! tensor is in memory twice, and a file that does not match is rejected before any of its values are read.

mod kind;
mod names;
mod rename;
mod design;
mod classes;
mod report;
mod error;

use std::collections::{BTreeMap, BTreeSet};

use ndarray::{ArrayD, Axis, IxDyn};

use crate::checkpoint::TensorProblems;
use crate::spec::{BackboneCheckpointSpec, BackboneSpec, Class, ModelSpec};
use crate::weights::{Parameter, WeightsError};
use design::{Design, Shapes, design};
use kind::{find, part};
use names::translate_back;
use rename::{Renamed, rename};

pub use error::ForeignError;
pub use kind::Kind;

/// A tensor in a file whose values have not been read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Type of its values, as safetensors calls it: `F32`, `BF16`.
    pub number: String,
}

/// The tensors of a file, by their names in the file.
pub type StoredTensors = BTreeMap<String, Stored>;

/// A file and the user's options for its import. Where an option is absent, names and shapes decide.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The file's name, without folders.
    pub file: String,
    /// The SHA-256 of its bytes, in hexadecimal digits.
    pub sha256: String,
    /// Kind of its weights.
    pub kind: Option<Kind>,
    /// Entry of the file that contains the weights, if there are several.
    pub key: Option<String>,
    /// Classes in the order of the network's outputs, without background.
    pub classes: Option<Vec<Class>>,
    /// Epsilon of the backbone's norm layers.
    pub epsilon: Option<f32>,
    /// Name prefixes of tensors to ignore although they look like parts of the network.
    pub drop: Vec<String>,
}

/// How the tensors of a file become the tensors of a [`Network`].
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Kind of the weights.
    pub kind: Kind,
    /// Spec of the network.
    pub network: Network,
    /// How the kind was recognized.
    reason: String,
    /// One for every tensor of the network.
    steps: Vec<Step>,
    /// The outputs that become classes; none if all of them do.
    kept: Option<Kept>,
    /// Names of tensors that are not needed, by what they are.
    dropped: BTreeMap<String, Vec<String>>,
    /// Names of tensors outside the network.
    unexpected: Vec<String>,
    /// Whether the classes are assumed from the number of outputs.
    guessed: bool,
}

/// Spec of imported weights.
#[derive(Clone, Debug, PartialEq)]
pub enum Network {
    /// A whole detector.
    Detector(Box<ModelSpec>),
    /// A backbone alone.
    Backbone(BackboneCheckpointSpec),
}

impl Network {
    /// The backbone section of the spec.
    pub fn backbone(&self) -> &BackboneSpec {
        match self {
            Self::Detector(spec) => &spec.backbone,
            Self::Backbone(spec) => &spec.backbone,
        }
    }
}

/// The source of one tensor of the network.
#[derive(Clone, Debug, PartialEq)]
struct Step {
    name: String,
    shape: Vec<usize>,
    /// Its name and the type of its values in the file; none if it is filled with zeros.
    source: Option<(String, String)>,
}

/// The number of outputs per anchor, and the indices of those that become classes.
#[derive(Clone, Debug, PartialEq)]
struct Kept {
    all: usize,
    rows: Vec<usize>,
}

/// Floating-point types that can be imported, as safetensors calls them.
const NUMBERS: [&str; 4] = ["F32", "F64", "F16", "BF16"];

/// Prefix of the layer whose output channels belong to classes.
const CLASSIFIER: &str = "classificationModel.output.";

impl Plan {
    /// Recognizes the kind of the weights and finds the source of every tensor of their network.
    ///
    /// # Errors
    /// When the kind is not recognized, or the tensors do not match it.
    pub fn new(tensors: &StoredTensors, request: &Request) -> Result<Self, ForeignError> {
        let found = find(tensors, request)?;
        let kind = found.kind;
        let Renamed { sources, dropped, outside, refused } = rename(tensors, &found.prefix, kind, &request.drop)?;
        let known = part(tensors, &found.prefix);
        let shapes: Shapes = sources.iter().map(|(name, key)| (name.as_str(), known[key].shape.as_slice())).collect();

        let counted = known.keys().any(|name| name.ends_with(".num_batches_tracked"));
        let Design { network, expected, outputs, guessed } = design(kind, &shapes, counted, request)?;
        let kept = outputs.as_ref().and_then(|outputs| {
            let rows: Vec<_> = outputs.rows.iter().map(|output| output.row).collect();
            (rows.len() < outputs.all).then_some(Kept { all: outputs.all, rows })
        });

        let steps = Sources { kind, prefix: &found.prefix, names: &sources, tensors: &known, refused };
        let steps = steps.of(expected, &network)?;
        Ok(Self { kind, network, reason: found.reason, steps, kept, dropped, unexpected: outside, guessed })
    }

    /// The network's tensors, by name. `read` returns a tensor of the file, by its name there and in its declared shape.
    ///
    /// # Errors
    /// Those of `read`, and when a tensor contains values that no network can use.
    pub fn carry_out<E: From<ForeignError>>(
        &self,
        read: impl Fn(&str) -> Result<ArrayD<f32>, E>,
    ) -> Result<BTreeMap<String, ArrayD<f32>>, E> {
        let mut tensors = BTreeMap::new();
        for Step { name, shape, source } in &self.steps {
            let Some((key, _)) = source else {
                tensors.insert(name.clone(), ArrayD::zeros(IxDyn(shape)));
                continue;
            };
            let tensor = read(key)?;
            self.check(name, key, &tensor)?;
            let kept = self.kept.as_ref().filter(|_| name.starts_with(CLASSIFIER));
            tensors.insert(
                name.clone(),
                match kept {
                    Some(kept) => kept.of(&tensor),
                    None => tensor,
                },
            );
        }
        Ok(tensors)
    }

    fn check(&self, name: &str, key: &str, tensor: &ArrayD<f32>) -> Result<(), ForeignError> {
        let wrong = |what| Err(ForeignError::Values { name: key.to_owned(), what });
        if !tensor.iter().all(|value| value.is_finite()) {
            return wrong("a value that is not finite");
        }
        let variances = name.ends_with(".running_var");
        if variances && tensor.iter().any(|value| *value < 0.0) {
            return wrong("a negative variance");
        }
        if variances && self.network.backbone().norm.epsilon == 0.0 && tensor.iter().any(|value| *value == 0.0) {
            return wrong(
                "a variance of zero, and the norm epsilon is 0, so it would divide by zero; set --norm-epsilon",
            );
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
    fn of(self, expected: Vec<Parameter>, network: &Network) -> Result<Vec<Step>, ForeignError> {
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
                None => problems.missing.push(full(&translate_back(&kind.names(), &name))),
                Some((key, stored)) if stored.shape != shape => {
                    let found = stored.shape.clone();
                    problems.wrong_shape.push(WeightsError::Shape { name: key, expected: shape, found });
                }
                Some((key, Stored { number, .. })) => {
                    if !NUMBERS.contains(&number.as_str()) {
                        return Err(ForeignError::Number { name: key, number: number.clone() });
                    }
                    steps.push(Step { name, shape, source: Some((key, number.clone())) });
                }
            }
        }
        if problems.is_empty() {
            return Ok(steps);
        }
        Err(ForeignError::Tensors { kind, matched: steps.len(), problems })
    }
}

impl Kept {
    /// The rows of the outputs that become classes. Row `a * all + k` is output k at anchor a.
    fn of(&self, tensor: &ArrayD<f32>) -> ArrayD<f32> {
        let anchors = tensor.shape()[0] / self.all;
        let rows = (0..anchors).flat_map(|anchor| self.rows.iter().map(move |row| anchor * self.all + row));
        tensor.select(Axis(0), &rows.collect::<Vec<_>>())
    }
}

/// Whether this is the bias of a head's convolution before a norm layer. Files do not contain it; zeros are equivalent.
fn is_needless_bias(name: &str, network: &Network) -> bool {
    let Network::Detector(spec) = network else { return false };
    spec.heads.norm.is_some() && name.contains("Model.conv") && name.ends_with(".bias")
}
