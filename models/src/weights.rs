//! Sources of weights. The code that builds a layer declares name, shape, initial values and role of its tensors here, so
//! building the network also lists its parameters.

use crate::spec::SpecError;

/// The role of a tensor in training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A trainable parameter.
    Parameter,
    /// Part of the state dict, without gradient: running statistics of batch normalization, and its scale and shift if they
    /// are frozen.
    Buffer,
}

/// The initial values of a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Initial {
    /// All elements have this value.
    Constant(f32),
    /// Independent normal samples with mean zero.
    Normal {
        /// Standard deviation.
        std: f32,
    },
    /// Independent uniform samples in `[-bound, bound)`.
    Uniform {
        /// Half the width of the interval.
        bound: f32,
    },
}

/// One named tensor of the network.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Dotted name, as in PyTorch's `state_dict`: `layer1.0.conv1.weight`.
    pub name: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Role in training.
    pub role: Role,
    /// Initial values.
    pub initial: Initial,
}

impl Parameter {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the shape has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Why a network could not be built from its weights.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum WeightsError {
    /// The source has no tensor of that name.
    #[error("tensor `{name}` is missing")]
    Missing {
        /// Dotted name.
        name: String,
    },
    /// The source has the tensor with another shape.
    #[error("tensor `{name}` has shape {found:?}, expected {expected:?}")]
    Shape {
        /// Dotted name.
        name: String,
        /// Shape in the network.
        expected: Vec<usize>,
        /// Shape in the source.
        found: Vec<usize>,
    },
    /// No network can be built from the spec.
    #[error("{0}")]
    Spec(String),
}

impl From<SpecError> for WeightsError {
    fn from(error: SpecError) -> Self {
        Self::Spec(error.to_string())
    }
}

/// A source of weights, such as a checkpoint or a random number generator.
pub trait Weights<T> {
    /// The tensor that `parameter` describes.
    ///
    /// # Errors
    /// When the source does not have it or has it with another shape.
    fn tensor(&self, parameter: Parameter) -> Result<T, WeightsError>;
}

/// A prefix of tensor names, under which a layer creates its tensors.
pub struct Scope<'a, T> {
    weights: &'a dyn Weights<T>,
    path: String,
}

impl<'a, T> Scope<'a, T> {
    /// The scope with the empty prefix.
    pub fn root(weights: &'a dyn Weights<T>) -> Self {
        Self { weights, path: String::new() }
    }

    /// The scope `name` inside this one.
    pub fn at(&self, name: impl std::fmt::Display) -> Self {
        Self { weights: self.weights, path: self.join(&name.to_string()) }
    }

    /// A trainable tensor.
    ///
    /// # Errors
    /// Those of the source.
    pub fn parameter(&self, name: &str, shape: &[usize], initial: Initial) -> Result<T, WeightsError> {
        self.tensor(name, shape, initial, Role::Parameter)
    }

    /// A tensor with this role.
    ///
    /// # Errors
    /// Those of the source.
    pub fn tensor(&self, name: &str, shape: &[usize], initial: Initial, role: Role) -> Result<T, WeightsError> {
        self.weights.tensor(Parameter { name: self.join(name), shape: shape.to_vec(), role, initial })
    }

    fn join(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }
}

/// Tensor names as text. Consecutive tensors of one layer or block are replaced by its name with their number.
pub fn grouped<S: AsRef<str>>(names: &[S]) -> String {
    let mut groups: Vec<(&str, usize)> = Vec::new();
    let group = |name: &str| name.match_indices('.').nth(1).map_or(name.len(), |(at, _)| at);
    for name in names.iter().map(AsRef::as_ref) {
        let prefix = &name[..group(name)];
        match groups.last_mut() {
            Some((last, count)) if *last == prefix => *count += 1,
            _ => groups.push((prefix, 1)),
        }
    }
    let named = groups.iter().map(|(prefix, count)| match count {
        1 => (*prefix).to_owned(),
        _ => format!("{prefix} ({count})"),
    });
    named.collect::<Vec<_>>().join(", ")
}
