//! Tracing: the network runs on values that are only names in a graph, and each operation adds its ONNX node to the
//! graph.
//!
//! A node with weights has the name of its layer: the node with the weight `layer1.0.conv1.weight` is `layer1.0.conv1`.
//! An operation without weights appends its name to that of its input: `layer1.0.bn1.relu`. The nodes of a layer that
//! runs on several levels are numbered: `regressionModel.conv1`, `regressionModel.conv1_1`. A node's output has the
//! node's name.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use models::onnx_contract::{CLASSIFICATION, IMAGES, REGRESSION};
use models::{BatchNorm, Conv2d, GroupNorm, MaxPool, ModelSpec, Parameter, RetinaNet, Tensor, Weights, WeightsError};
use ndarray::ArrayD;

use crate::onnx::{AttributeProto, DataType, Dimension, GraphProto, TensorProto, ValueInfoProto};

/// The graph of the spec's network, with batch norms not yet folded. The tensors move into the graph.
///
/// # Errors
/// When a tensor is missing or has the wrong shape, or the spec has no classes or an unknown depth.
pub fn trace(spec: &ModelSpec, tensors: BTreeMap<String, ArrayD<f32>>) -> Result<GraphProto, WeightsError> {
    let recorder = Rc::new(Recorder::default());
    let source = Source { recorder: recorder.clone(), tensors: RefCell::new(tensors) };
    let network = RetinaNet::new(spec, &source)?;

    let predictions = network.forward(&recorder.value(IMAGES));
    recorder.rename(&predictions.scores(), CLASSIFICATION);
    recorder.rename(&predictions.offsets, REGRESSION);

    let mut graph = recorder.graph.take();
    let rows = |name, width: usize, meaning: &str| {
        let shape = [Dimension::dynamic("N"), Dimension::dynamic("A"), Dimension::fixed(width)];
        let doc = format!("{meaning}; row i belongs to anchor i, in order of level P3 to P7, y, x, anchor of the cell");
        ValueInfoProto::new(name, DataType::Float, shape, &doc)
    };
    let shape = [Dimension::dynamic("N"), Dimension::fixed(3), Dimension::dynamic("H"), Dimension::dynamic("W")];
    let doc = "normalized RGB images; H and W are multiples of 32";
    graph.input = vec![ValueInfoProto::new(IMAGES, DataType::Float, shape, doc)];
    graph.output = vec![
        rows(CLASSIFICATION, spec.class_count(), "class scores, in (0, 1)"),
        rows(REGRESSION, 4, "offsets of x, y, log width and log height from the anchor, in the box coder's units"),
    ];
    Ok(graph)
}

/// The graph recorded so far. Shared by all values of one forward pass.
#[derive(Default)]
struct Recorder {
    graph: RefCell<GraphProto>,
    /// Names of nodes and values in use.
    names: RefCell<BTreeSet<String>>,
}

/// Moves a checkpoint's tensors into the graph as constants, under their own names.
struct Source {
    recorder: Rc<Recorder>,
    tensors: RefCell<BTreeMap<String, ArrayD<f32>>>,
}

impl Weights<Traced> for Source {
    fn tensor(&self, parameter: Parameter) -> Result<Traced, WeightsError> {
        let Parameter { name, shape, .. } = parameter;
        let Some(tensor) = self.tensors.borrow_mut().remove(&name) else {
            return Err(WeightsError::Missing { name });
        };
        if tensor.shape() != shape {
            return Err(WeightsError::Shape { name, expected: shape, found: tensor.shape().to_vec() });
        }
        let dims: Vec<i64> = shape.into_iter().map(|size| size as i64).collect();
        Ok(self.recorder.constant(TensorProto::new(name, dims, row_major(tensor))))
    }
}

/// The elements in row-major order; not copied if they already are.
fn row_major(tensor: ArrayD<f32>) -> Vec<f32> {
    if !tensor.is_standard_layout() {
        return tensor.iter().copied().collect();
    }
    let length = tensor.len();
    let (mut elements, offset) = tensor.into_raw_vec_and_offset();
    elements.drain(..offset.unwrap_or(0));
    elements.truncate(length);
    elements
}

/// A value of the graph, known only by name.
#[derive(Clone)]
struct Traced {
    name: Rc<str>,
    recorder: Rc<Recorder>,
}

impl Recorder {
    fn value(self: &Rc<Self>, name: &str) -> Traced {
        Traced { name: name.into(), recorder: self.clone() }
    }

    /// Adds a constant.
    fn constant(self: &Rc<Self>, constant: TensorProto) -> Traced {
        let name = self.graph.borrow_mut().add_constant(constant);
        self.value(&name)
    }

    /// Adds a node called `name`, followed by a number if that is in use. Returns its output.
    fn node(self: &Rc<Self>, op_type: &str, name: &str, inputs: &[&Traced], attributes: Vec<AttributeProto>) -> Traced {
        let mut names = self.names.borrow_mut();
        let numbered = (1..).map(|number| format!("{name}_{number}"));
        let name = std::iter::once(name.to_owned()).chain(numbered).find(|name| names.insert(name.clone()));
        let name = name.expect("there are infinitely many numbers");
        let inputs: Vec<_> = inputs.iter().map(|input| &*input.name).collect();
        self.value(&self.graph.borrow_mut().add_node(op_type, &name, &inputs, attributes))
    }

    /// Renames a value that no node reads, to the name of an output.
    fn rename(&self, value: &Traced, name: &str) {
        let mut graph = self.graph.borrow_mut();
        let node = graph.node.iter_mut().find(|node| *node.output[0] == *value.name);
        node.expect("a node computes every traced value").output[0] = name.to_owned();
    }
}

impl Traced {
    /// The layer of a weight: its name without the last part.
    fn layer(&self) -> &str {
        self.name.rsplit_once('.').map_or(&self.name, |(layer, _)| layer)
    }

    /// Adds a node with this value and then `others` as inputs.
    fn then(&self, op_type: &str, name: &str, others: &[&Traced], attributes: Vec<AttributeProto>) -> Self {
        self.recorder.node(op_type, name, &[&[self], others].concat(), attributes)
    }

    /// Adds a node without weights, named after this value.
    fn then_plain(&self, op_type: &str, verb: &str, others: &[&Traced]) -> Self {
        self.then(op_type, &format!("{}.{verb}", self.name), others, Vec::new())
    }

    /// Reshapes to a constant shape, in which 0 keeps a size and -1 is inferred.
    fn reshape(&self, name: &str, shape: &[i64]) -> Self {
        let constant = shape.iter().fold("shape".to_owned(), |name, size| match size {
            0 => name + ".same",
            -1 => name + ".rest",
            size => format!("{name}.{size}"),
        });
        let shape = self.recorder.constant(TensorProto::vector(constant, shape.to_vec()));
        self.then("Reshape", name, &[&shape], Vec::new())
    }

    /// Reshapes a weight `[channels]` to `[channels, 1, 1]`, to multiply or add it per channel.
    fn per_channel(&self) -> Self {
        let weight = self.weight();
        let dims = vec![weight.dims[0], 1, 1];
        self.recorder.constant(TensorProto { dims, ..weight })
    }

    /// The constant of a weight.
    fn weight(&self) -> TensorProto {
        let graph = self.recorder.graph.borrow();
        graph.constant(&self.name).expect("the weights of a layer are constants").clone()
    }
}

/// Kernel size, padding and stride: the same for both axes and on all sides.
fn window(kernel: usize, padding: usize, stride: usize) -> [AttributeProto; 3] {
    [
        AttributeProto::ints("kernel_shape", [kernel as i64; 2]),
        AttributeProto::ints("pads", [padding as i64; 4]),
        AttributeProto::ints("strides", [stride as i64; 2]),
    ]
}

impl Tensor for Traced {
    fn conv2d(&self, layer: &Conv2d<Self>) -> Self {
        let config = &layer.config;
        let group = AttributeProto::int("group", config.groups as i64);
        let window = window(config.kernel, config.padding, config.stride);
        let weights: Vec<_> = std::iter::once(&layer.weight).chain(&layer.bias).collect();
        self.then("Conv", layer.weight.layer(), &weights, [group].into_iter().chain(window).collect())
    }

    fn conv2d_batch_norm(&self, conv: &Conv2d<Self>, norm: &BatchNorm<Self>) -> Self {
        let weights = [&norm.weight, &norm.bias, &norm.running_mean, &norm.running_var];
        let epsilon = AttributeProto::float("epsilon", norm.epsilon);
        self.conv2d(conv).then("BatchNormalization", norm.weight.layer(), &weights, vec![epsilon])
    }

    /// Instance normalization of the groups, then scale and shift per channel: ONNX has no correct GroupNormalization
    /// before opset 21. The reshapes keep N and the width, and the height is inferred, so that no sizes are computed in
    /// the graph.
    fn group_norm(&self, layer: &GroupNorm<Self>) -> Self {
        let GroupNorm { weight, bias, groups, epsilon } = layer;
        let name = weight.layer();
        let constant = |word: &str, value: f32| {
            self.recorder.constant(TensorProto::vector(format!("{word}.{groups}"), vec![value; *groups]))
        };
        let (ones, zeros) = (constant("ones", 1.0), constant("zeros", 0.0));
        let channels = weight.weight().dims[0];
        self.reshape(&format!("{name}.groups"), &[0, *groups as i64, -1, 0])
            .then(
                "InstanceNormalization",
                &format!("{name}.normalize"),
                &[&ones, &zeros],
                vec![AttributeProto::float("epsilon", *epsilon)],
            )
            .reshape(&format!("{name}.channels"), &[0, channels, -1, 0])
            .then("Mul", &format!("{name}.factor"), &[&weight.per_channel()], Vec::new())
            .then("Add", name, &[&bias.per_channel()], Vec::new())
    }

    fn relu(&self) -> Self {
        self.then_plain("Relu", "relu", &[])
    }

    fn sigmoid(&self) -> Self {
        self.then_plain("Sigmoid", "sigmoid", &[])
    }

    fn add(&self, other: &Self) -> Self {
        self.then_plain("Add", "add", &[other])
    }

    fn max_pool(&self, MaxPool { kernel, padding, stride }: MaxPool) -> Self {
        let attributes = window(kernel, padding, stride).into();
        self.then("MaxPool", &format!("{}.max_pool", self.name), &[], attributes)
    }

    /// Nearest-neighbor Resize, with the attributes that all engines implement correctly.
    fn upsample2x(&self) -> Self {
        // An empty name omits the second input of Resize, the region of interest.
        let region = self.recorder.value("");
        let scales = self.recorder.constant(TensorProto::vector("scales.1.1.2.2", vec![1.0f32, 1.0, 2.0, 2.0]));
        let attributes = vec![
            AttributeProto::text("coordinate_transformation_mode", "asymmetric"),
            AttributeProto::text("mode", "nearest"),
            AttributeProto::text("nearest_mode", "floor"),
        ];
        self.then("Resize", &format!("{}.upsample2x", self.name), &[&region, &scales], attributes)
    }

    fn per_anchor(&self, width: usize) -> Self {
        let channels_last = vec![AttributeProto::ints("perm", [0, 2, 3, 1])];
        self.then("Transpose", &format!("{}.channels_last", self.name), &[], channels_last)
            .reshape(&format!("{}.per_anchor", self.name), &[0, -1, width as i64])
    }

    fn concat(parts: &[Self]) -> Self {
        let (first, others) = parts.split_first().expect("the network has five levels");
        let others: Vec<_> = others.iter().collect();
        first.then("Concat", &format!("{}.concat", first.name), &others, vec![AttributeProto::int("axis", 1)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{node, spec, zeros};
    use models::spec::NormKind;
    use ndarray::{array, s};
    use std::collections::HashSet;

    fn traced(depth: u32, kind: NormKind) -> GraphProto {
        let spec = spec(depth, kind);
        trace(&spec, zeros(&spec)).unwrap()
    }

    #[test]
    fn names_are_unique_and_every_value_is_computed_before_it_is_read() {
        for kind in [NormKind::FrozenBatch, NormKind::Batch, NormKind::Group] {
            for depth in [18, 50] {
                let graph = traced(depth, kind);
                let names: HashSet<_> = graph.node.iter().map(|node| &node.name).collect();
                assert_eq!(names.len(), graph.node.len());
                let mut known: HashSet<_> = graph.initializer.iter().map(|constant| constant.name.as_str()).collect();
                known.insert(IMAGES);
                for node in &graph.node {
                    let is_known = |input: &String| input.is_empty() || known.contains(input.as_str());
                    assert!(node.input.iter().all(is_known), "{node:?}");
                    assert!(known.insert(&node.output[0]), "{node:?}");
                }
                assert!(graph.output.iter().all(|value| known.contains(value.name.as_str())));
            }
        }
    }

    #[test]
    fn nodes_are_named_after_their_layers() {
        let graph = traced(50, NormKind::FrozenBatch);
        for (name, operator, inputs) in [
            ("conv1", "Conv", "images conv1.weight"),
            ("bn1", "BatchNormalization", "conv1 bn1.weight bn1.bias bn1.running_mean bn1.running_var"),
            ("bn1.relu.max_pool", "MaxPool", "bn1.relu"),
            ("layer1.0.downsample.0", "Conv", "bn1.relu.max_pool layer1.0.downsample.0.weight"),
            ("layer1.0.bn3.add", "Add", "layer1.0.bn3 layer1.0.downsample.1"),
            ("layer1.1.conv1", "Conv", "layer1.0.bn3.add.relu layer1.1.conv1.weight"),
            ("fpn.P4_1.add", "Add", "fpn.P4_1 fpn.P5_1.upsample2x"),
            ("regressionModel.conv1", "Conv", "fpn.P3_2 regressionModel.conv1.weight regressionModel.conv1.bias"),
            ("regressionModel.conv1_4", "Conv", "fpn.P7_2 regressionModel.conv1.weight regressionModel.conv1.bias"),
            (
                "regressionModel.output_4.per_anchor",
                "Reshape",
                "regressionModel.output_4.channels_last shape.same.rest.4",
            ),
        ] {
            let node = node(&graph, name);
            assert_eq!((node.op_type.as_str(), node.input.join(" ").as_str()), (operator, inputs), "{name}");
        }
        let outputs: Vec<_> = graph.node.iter().rev().take(2).map(|node| node.output[0].as_str()).collect();
        assert_eq!(outputs, [CLASSIFICATION, REGRESSION]);
    }

    #[test]
    fn attributes_are_those_of_the_layers() {
        let graph = traced(50, NormKind::FrozenBatch);
        let stem = node(&graph, "conv1");
        assert_eq!(stem.ints("strides"), [2, 2]);
        assert_eq!(stem.ints("pads"), [3; 4]);
        assert_eq!(stem.ints("kernel_shape"), [7, 7]);
        assert_eq!(stem.ints("group"), [1]);
        assert_eq!(node(&graph, "layer2.0.conv2").ints("strides"), [2, 2]);
        assert_eq!(node(&graph, "bn1").attribute, [AttributeProto::float("epsilon", 1e-5)]);
        assert_eq!(node(&graph, "bn1.relu.max_pool").ints("pads"), [1; 4]);
        assert_eq!(node(&graph, "regressionModel.output.channels_last").ints("perm"), [0, 2, 3, 1]);
        let mut resnext = spec(50, NormKind::FrozenBatch);
        (resnext.backbone.groups, resnext.backbone.width_per_group) = (32, 4);
        let graph = trace(&resnext, zeros(&resnext)).unwrap();
        assert_eq!(node(&graph, "layer1.0.conv2").ints("group"), [32]);
    }

    #[test]
    fn group_norm_keeps_batch_and_image_size_dynamic() {
        let graph = traced(18, NormKind::Group);
        assert_eq!(node(&graph, "bn1.groups").input, ["conv1", "shape.same.32.rest.same"]);
        assert_eq!(node(&graph, "bn1.channels").input, ["bn1.normalize", "shape.same.64.rest.same"]);
        let shape = TensorProto::vector("shape.same.64.rest.same", vec![0i64, 64, -1, 0]);
        assert_eq!(graph.constant(&shape.name), Some(&shape));
        assert_eq!(graph.constant("bn1.weight").unwrap().dims, [64, 1, 1]);
        assert_eq!(node(&graph, "bn1").input, ["bn1.factor", "bn1.bias"]);
    }

    #[test]
    fn elements_are_row_major_for_every_memory_layout() {
        let tensor = array![[0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [6.0, 7.0, 8.0]];
        assert_eq!(row_major(tensor.clone().into_dyn()), (0..9).map(|i| i as f32).collect::<Vec<_>>());
        assert_eq!(row_major(tensor.t().to_owned().into_dyn()), [0.0, 3.0, 6.0, 1.0, 4.0, 7.0, 2.0, 5.0, 8.0]);
        assert_eq!(row_major(tensor.clone().slice_move(s![1..2, ..]).into_dyn()), [3.0, 4.0, 5.0]);
        assert_eq!(row_major(tensor.slice_move(s![.., 1..]).into_dyn()), [1.0, 2.0, 4.0, 5.0, 7.0, 8.0]);
    }

    #[test]
    fn error_contains_the_name_of_a_missing_or_misshapen_tensor() {
        let spec = spec(18, NormKind::FrozenBatch);
        let mut tensors = zeros(&spec);
        let stem = tensors.remove("conv1.weight").unwrap();
        assert_eq!(
            trace(&spec, tensors.clone()).unwrap_err(),
            WeightsError::Missing { name: "conv1.weight".to_owned() }
        );
        tensors.insert("conv1.weight".to_owned(), stem.permuted_axes(vec![1, 0, 2, 3]));
        assert_eq!(
            trace(&spec, tensors).unwrap_err(),
            WeightsError::Shape {
                name: "conv1.weight".to_owned(),
                expected: vec![64, 3, 7, 7],
                found: vec![3, 64, 7, 7]
            }
        );
    }
}
