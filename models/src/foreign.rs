//! Weights of other projects: what they are, what their tensors are called here, and what has to change in them.
//!
//! A [`Plan`] is made from names and shapes alone; numbers are read, one tensor at a time, when it is carried out. So nothing
//! large is in memory twice, and a file that does not fit is refused before any of its numbers are read.

mod kind;
mod names;
mod rename;
mod design;
mod classes;
mod report;
mod error;

use std::collections::{BTreeMap, BTreeSet};

use ndarray::{ArrayD, Axis, IxDyn};

use crate::checkpoint::{BackboneCheckpointSpec, TensorProblems};
use crate::spec::{BackboneSpec, Class, ModelSpec};
use crate::weights::{Parameter, WeightsError};
use design::{Design, Shapes, design};
use kind::{Said, find, part};
use names::translate_back;
use rename::{Renamed, rename};

pub use error::ForeignError;
pub use kind::Kind;

/// A tensor in a file, of which no number has been read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// What its numbers are stored as, as safetensors calls it: `F32`, `BF16`.
    pub number: String,
}

/// The tensors of a file, by their names in it.
pub type StoredTensors = BTreeMap<String, Stored>;

/// A file, and what a person says of it. Where nothing is said, names and shapes decide.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The file's name, without folders.
    pub file: String,
    /// The SHA-256 of its bytes, in hexadecimal digits.
    pub sha256: String,
    /// What it is.
    pub kind: Option<Kind>,
    /// Which entry of the file holds the weights, where several could.
    pub key: Option<String>,
    /// The classes, in the order of its outputs; without background.
    pub classes: Option<Vec<Class>>,
    /// The norms' epsilon.
    pub epsilon: Option<f32>,
    /// Beginnings of names that may be left out, though they look as if they belonged to the network.
    pub drop: Vec<String>,
}

/// How the tensors of a file become a network of ours.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What the file is.
    pub kind: Kind,
    /// What its weights mean.
    pub network: Network,
    /// What shows the kind.
    reason: String,
    /// Every tensor of the network.
    steps: Vec<Step>,
    /// The outputs that become classes, where some do not.
    kept: Option<Kept>,
    /// Tensors that no network needs, by what they are.
    dropped: BTreeMap<String, Vec<String>>,
    /// Tensors beside the network.
    unexpected: Vec<String>,
    /// Whether the names of the classes are a guess by their number.
    guessed: bool,
}

/// What imported weights mean.
#[derive(Clone, Debug, PartialEq)]
pub enum Network {
    /// A whole detector.
    Detector(Box<ModelSpec>),
    /// A backbone alone.
    Backbone(BackboneCheckpointSpec),
}

impl Network {
    /// The backbone's section of the spec.
    pub fn backbone(&self) -> &BackboneSpec {
        match self {
            Self::Detector(spec) => &spec.backbone,
            Self::Backbone(spec) => &spec.backbone,
        }
    }
}

/// Where a tensor of the network comes from.
#[derive(Clone, Debug, PartialEq)]
struct Step {
    name: String,
    shape: Vec<usize>,
    /// Its name in the file and what its numbers are; none for zeros.
    source: Option<(String, String)>,
}

/// The outputs per anchor, and those of them that become classes.
#[derive(Clone, Debug, PartialEq)]
struct Kept {
    all: usize,
    rows: Vec<usize>,
}

/// Real numbers, as safetensors calls their types.
const NUMBERS: [&str; 4] = ["F32", "F64", "F16", "BF16"];

/// The layer whose channels belong to classes.
const CLASSIFIER: &str = "classificationModel.output.";

impl Plan {
    /// Finds out what the file is and where every tensor of its network comes from.
    ///
    /// # Errors
    /// When the file is of no known kind, or its tensors are not those of its kind.
    pub fn new(tensors: &StoredTensors, request: &Request) -> Result<Self, ForeignError> {
        let Request { file, sha256, kind, key, .. } = request;
        let found = find(tensors, Said { kind: *kind, key: key.as_deref(), file, sha256 })?;
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

    /// The network's tensors, which `read` gives under their names in the file, in the shapes that it has said.
    ///
    /// # Errors
    /// Those of `read`, and when a tensor holds numbers that no network can work with.
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
            return wrong("a number that is not finite");
        }
        let variances = name.ends_with(".running_var");
        if variances && tensor.iter().any(|value| *value < 0.0) {
            return wrong("a variance below zero");
        }
        if variances && self.network.backbone().norm.epsilon == 0.0 && tensor.iter().any(|value| *value == 0.0) {
            return wrong(
                "a variance of zero, which is divided by, since the norms' epsilon is 0; say another --norm-epsilon",
            );
        }
        Ok(())
    }
}

/// Where the tensors of a network could come from.
struct Sources<'a> {
    kind: Kind,
    prefix: &'a str,
    /// Names in the file, without their prefix, by our names.
    names: &'a BTreeMap<String, &'a str>,
    /// The tensors of these names.
    tensors: &'a BTreeMap<&'a str, &'a Stored>,
    /// Tensors of the file that look as if they belonged to the network.
    refused: Vec<String>,
}

impl Sources<'_> {
    /// Where those of `expected` come from.
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
                None => problems.missing.push(full(&translate_back(kind.names(), &name))),
                Some((key, stored)) if stored.shape != shape => {
                    let found = stored.shape.clone();
                    problems.misshapen.push(WeightsError::Shape { name: key, expected: shape, found });
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
    /// The rows of the kept outputs: row `a * all + k` is output k at anchor a.
    fn of(&self, tensor: &ArrayD<f32>) -> ArrayD<f32> {
        let anchors = tensor.shape()[0] / self.all;
        let rows = (0..anchors).flat_map(|anchor| self.rows.iter().map(move |row| anchor * self.all + row));
        tensor.select(Axis(0), &rows.collect::<Vec<_>>())
    }
}

/// Whether this is a bias that the source does not have before a normalization. Zeros then say the same.
fn is_needless_bias(name: &str, network: &Network) -> bool {
    let Network::Detector(spec) = network else { return false };
    spec.heads.norm.is_some() && name.contains("Model.conv") && name.ends_with(".bias")
}
