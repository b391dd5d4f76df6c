//! Where weights come from. The code that builds a layer says its key, shape, start and role here, so that the list of
//! layers is also the list of parameters.

/// What a tensor of the network is to training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Learned by gradient descent.
    Parameter,
    /// Statistics of a normalization: kept with the weights, never given a gradient.
    Buffer,
}

/// The distribution a tensor starts from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Initial {
    /// Every element has this value.
    Constant(f32),
    /// Independent normal samples around zero.
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
    /// Dotted name, as PyTorch's `state_dict` has it: `layer1.0.conv1.weight`.
    pub name: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// What training does with it.
    pub role: Role,
    /// What it holds before training.
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
    /// The source has the tensor, in another shape.
    #[error("tensor `{name}` has shape {found:?}, expected {expected:?}")]
    Shape {
        /// Dotted name.
        name: String,
        /// The network's shape.
        expected: Vec<usize>,
        /// The source's shape.
        found: Vec<usize>,
    },
    /// The spec asks for something that no network has.
    #[error("{0}")]
    Spec(String),
}

/// A source of weights: a checkpoint, random numbers, or a recorder.
pub trait Weights<T> {
    /// The tensor that `parameter` describes.
    ///
    /// # Errors
    /// When the source lacks it or has it in another shape.
    fn tensor(&self, parameter: Parameter) -> Result<T, WeightsError>;
}

/// A place in the tree of names, from which layers take their tensors.
pub struct Scope<'a, T> {
    weights: &'a dyn Weights<T>,
    path: String,
}

impl<'a, T> Scope<'a, T> {
    /// The top of the tree.
    pub fn root(weights: &'a dyn Weights<T>) -> Self {
        Self { weights, path: String::new() }
    }

    /// The scope `name` below this one.
    pub fn at(&self, name: impl std::fmt::Display) -> Self {
        Self { weights: self.weights, path: self.join(&name.to_string()) }
    }

    /// A tensor that is learned.
    ///
    /// # Errors
    /// Those of the source.
    pub fn parameter(&self, name: &str, shape: &[usize], initial: Initial) -> Result<T, WeightsError> {
        self.tensor(name, shape, initial, Role::Parameter)
    }

    /// A tensor that is kept, not learned.
    ///
    /// # Errors
    /// Those of the source.
    pub fn buffer(&self, name: &str, shape: &[usize], initial: Initial) -> Result<T, WeightsError> {
        self.tensor(name, shape, initial, Role::Buffer)
    }

    fn tensor(&self, name: &str, shape: &[usize], initial: Initial, role: Role) -> Result<T, WeightsError> {
        self.weights.tensor(Parameter { name: self.join(name), shape: shape.to_vec(), role, initial })
    }

    fn join(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }
}

/// The names of tensors, those of one layer or block under its name with their number.
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
