//! Quantization to 8-bit integers. <https://arxiv.org/abs/1712.05877>
//!
//! Quantized values have a pair of QuantizeLinear and DequantizeLinear nodes. Engines fuse these with the operations
//! between pairs; in other engines, a pair only rounds the value. There are pairs before and after each convolution, so
//! that additions, poolings and upsamplings between convolutions are quantized, too. A weight is quantized once, with
//! one scale per channel, however many feature levels use it; activations have one scale per level.
//!
//! A value `x` is quantized to `x.quantized`, with `x.scale` and `x.zero_point`, and dequantized to `x.dequantized`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::layers::{Layers, layer_of};
use super::range::Range;
use crate::graph::Element;
use crate::onnx::{AttributeProto, GraphProto, NodeProto, TensorProto};

/// Why the weights and biases of a graph are there.
const WEIGHTS_ARE_CONSTANTS: &str = "a traced network has only float32 weights and biases";

/// Maximum quantized weight. -128 is not used, so that quantization is symmetric.
const WEIGHT_LIMIT: f32 = 127.0;

/// Maximum quantized bias: an eighth of int32's maximum, so that adding it to a sum does not overflow.
const BIAS_LIMIT: f32 = (1 << 28) as f32;

/// The parts of a graph that are quantized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Quantization {
    /// Node indices of the convolutions.
    convolutions: BTreeSet<usize>,
    /// The quantized values, each with the value whose scale it has: itself, or the input of a pooling or upsampling.
    values: BTreeMap<String, String>,
}

impl Quantization {
    /// All of `graph` except the convolutions in `keep_float`, which stay in float32.
    pub(crate) fn new(graph: &GraphProto, keep_float: &Layers) -> Self {
        let readers = graph.readers();
        let relus = graph.node.iter().filter(|node| node.op_type == "Relu" && readers[node.input[0].as_str()] == 1);
        let relus: HashMap<&str, &str> = relus.map(|node| (node.input[0].as_str(), node.output[0].as_str())).collect();
        // A ReLU that is the only reader of a node's output is treated as part of the node.
        let result =
            |node: &NodeProto| (*relus.get(node.output[0].as_str()).unwrap_or(&node.output[0].as_str())).to_owned();

        let is_quantized = |node: &NodeProto| layer_of(graph, node).is_some_and(|layer| !keep_float.contain(layer));
        let convolutions = (0..).zip(&graph.node).filter(|(_, node)| is_quantized(node)).map(|(index, _)| index);
        let convolutions: BTreeSet<usize> = convolutions.collect();
        let mut values = BTreeMap::new();
        for node in convolutions.iter().map(|index| &graph.node[*index]) {
            for name in [node.input[0].clone(), result(node)] {
                values.insert(name.clone(), name);
            }
        }
        for node in &graph.node {
            let inputs = node.input.iter().filter(|name| !name.is_empty() && graph.constant(name).is_none());
            let sources: Option<Vec<_>> = inputs.map(|name| values.get(name).cloned()).collect();
            match (node.op_type.as_str(), sources.as_deref()) {
                ("Add", Some([_, _])) => {
                    let name = result(node);
                    values.insert(name.clone(), name);
                }
                ("MaxPool" | "Resize", Some([source])) => {
                    values.insert(node.output[0].clone(), source.clone());
                }
                _ => {}
            }
        }
        Self { convolutions, values }
    }

    /// The values whose ranges are needed.
    pub(crate) fn ranged_values(&self) -> BTreeSet<&str> {
        self.values.values().map(String::as_str).collect()
    }

    /// All quantized values, including those that have the scale of another value.
    pub(crate) fn quantized_values(&self) -> BTreeSet<&str> {
        self.values.keys().map(String::as_str).collect()
    }

    /// Quantizes `graph`, which must be the graph passed to [`Quantization::new`].
    ///
    /// # Panics
    /// When `ranges` lacks one of [`ranged_values`](Self::ranged_values).
    pub(crate) fn apply(&self, graph: &mut GraphProto, ranges: &BTreeMap<String, Range>) {
        let scales: BTreeMap<&str, Scale> =
            self.ranged_values().into_iter().map(|name| (name, Scale::of(ranges[name]))).collect();
        for (name, Scale { step, zero_point }) in &scales {
            let [scale, zero] = scale_names(name);
            graph.add_constant(TensorProto::scalar(scale, *step));
            graph.add_constant(TensorProto::scalar(zero, *zero_point));
        }
        let input_steps = self.convolutions.iter().map(|index| {
            let input = &graph.node[*index].input[0];
            (*index, scales[self.values[input].as_str()].step)
        });
        let input_steps: BTreeMap<usize, f32> = input_steps.collect();
        let weight_steps = quantize_weights(graph, &input_steps);

        let mut nodes = Vec::with_capacity(4 * graph.node.len());
        for input in graph.input.iter().filter(|input| self.values.contains_key(&input.name)) {
            nodes.extend(self.quantize(&input.name));
        }
        let mut dequantized = BTreeSet::new();
        for (index, mut node) in std::mem::take(&mut graph.node).into_iter().enumerate() {
            for input in node.input.iter_mut().filter(|input| self.values.contains_key(*input)) {
                *input = format!("{input}.dequantized");
            }
            if let Some(input_step) = input_steps.get(&index) {
                let weight = node.input[1].clone();
                if let Some(bias) = node.input.get(2) {
                    let level = format!("{}.bias", node.name);
                    quantize_bias(graph, bias, &level, *input_step, &weight_steps[&weight]);
                    node.input[2] = format!("{level}.dequantized");
                    nodes.push(dequantize_channels(&level));
                }
                node.input[1] = format!("{weight}.dequantized");
                if dequantized.insert(weight.clone()) {
                    nodes.push(dequantize_channels(&weight));
                }
            }
            let output = node.output[0].clone();
            nodes.push(node);
            if self.values.contains_key(&output) {
                nodes.extend(self.quantize(&output));
            }
        }
        graph.node = nodes;
        graph.drop_unused_constants();
    }

    /// The QuantizeLinear and DequantizeLinear nodes of a value.
    fn quantize(&self, name: &str) -> [NodeProto; 2] {
        let [scale, zero_point] = scale_names(&self.values[name]);
        let node = |op_type, verb: &str, input: &str, output: &str| {
            NodeProto::new(op_type, &format!("{name}.{verb}"), &[input, &scale, &zero_point], output, [])
        };
        let [quantized, dequantized] = ["quantized", "dequantized"].map(|word| format!("{name}.{word}"));
        [
            node("QuantizeLinear", "quantize", name, &quantized),
            node("DequantizeLinear", "dequantize", &quantized, &dequantized),
        ]
    }
}

/// Quantization to integers from 0 to 255: `value = step * (integer - zero_point)`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Scale {
    step: f32,
    zero_point: u8,
}

impl Scale {
    fn of(range: Range) -> Self {
        let (low, high) = (range.low.min(0.0), range.high.max(0.0));
        let step = (high - low) / 255.0;
        // A value that is always zero can have any step.
        let step = if step > 0.0 { step } else { 1.0 };
        Self { step, zero_point: (-low / step).round() as u8 }
    }
}

/// The names of a value's scale and zero point.
fn scale_names(name: &str) -> [String; 2] {
    [format!("{name}.scale"), format!("{name}.zero_point")]
}

/// The DequantizeLinear node of a constant with one scale per index of its first axis.
fn dequantize_channels(name: &str) -> NodeProto {
    let [scale, zero_point] = scale_names(name);
    NodeProto::new(
        "DequantizeLinear",
        &format!("{name}.dequantize"),
        &[format!("{name}.quantized"), scale, zero_point],
        &format!("{name}.dequantized"),
        [AttributeProto::int("axis", 0)],
    )
}

/// The float32 elements of a weight or bias.
fn floats<'a>(graph: &'a GraphProto, name: &str) -> &'a [f32] {
    graph.floats(name).expect(WEIGHTS_ARE_CONSTANTS)
}

/// Adds the quantized weights of the convolutions whose inputs have these steps. Returns the steps of the channels, by
/// name of the weight.
fn quantize_weights(graph: &mut GraphProto, input_steps: &BTreeMap<usize, f32>) -> BTreeMap<String, Vec<f32>> {
    let mut steps: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for (index, input_step) in input_steps {
        let inputs = &graph.node[*index].input;
        let steps = steps.entry(inputs[1].clone());
        let steps = steps.or_insert_with(|| channels(graph, &inputs[1]).map(weight_step).collect());
        let biases = inputs.get(2).map_or(&[][..], |bias| floats(graph, bias));
        // The step of a bias is the product of the steps of weight and input. If the weights are almost zero, it must
        // not be so small that the bias overflows.
        for (step, bias) in steps.iter_mut().zip(biases) {
            *step = step.max(bias.abs() / (input_step * BIAS_LIMIT));
        }
    }
    for (name, steps) in &steps {
        let quantized = channels(graph, name).zip(steps).flat_map(|(values, step)| {
            values.iter().map(move |value| (value / step).round_ties_even().clamp(-WEIGHT_LIMIT, WEIGHT_LIMIT) as i8)
        });
        let quantized: Vec<i8> = quantized.collect();
        let dims = graph.constant(name).expect(WEIGHTS_ARE_CONSTANTS).dims.clone();
        add_quantized(graph, name, dims, quantized, steps.clone());
    }
    steps
}

/// Adds a quantized bias called `name`, with the product of the steps of input and weight as step.
fn quantize_bias(graph: &mut GraphProto, bias: &str, name: &str, input_step: f32, weight_steps: &[f32]) {
    let steps: Vec<f32> = weight_steps.iter().map(|step| step * input_step).collect();
    let values = floats(graph, bias).iter().zip(&steps);
    let quantized: Vec<i32> = values.map(|(value, step)| (value / step).round_ties_even() as i32).collect();
    add_quantized(graph, name, vec![steps.len() as i64], quantized, steps);
}

/// Adds a quantized constant with its steps and zero points, which are zero.
fn add_quantized<T: Element + Default>(
    graph: &mut GraphProto,
    name: &str,
    dims: Vec<i64>,
    quantized: Vec<T>,
    steps: Vec<f32>,
) {
    let [scale, zero_point] = scale_names(name);
    graph.add_constant(TensorProto::vector(zero_point, vec![T::default(); steps.len()]));
    graph.add_constant(TensorProto::vector(scale, steps));
    graph.add_constant(TensorProto::new(format!("{name}.quantized"), dims, quantized));
}

/// The weights of each output channel.
fn channels<'a>(graph: &'a GraphProto, weight: &str) -> impl Iterator<Item = &'a [f32]> + use<'a> {
    let TensorProto { dims, .. } = graph.constant(weight).expect(WEIGHTS_ARE_CONSTANTS);
    floats(graph, weight).chunks_exact(dims[1..].iter().product::<i64>().max(1) as usize)
}

fn weight_step(channel: &[f32]) -> f32 {
    let max = channel.iter().fold(0.0, |max: f32, value| max.max(value.abs()));
    if max > 0.0 { max / WEIGHT_LIMIT } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{folded, node, spec, zeros};
    use models::spec::NormKind;

    /// The graph of a small network with distinct weights and folded batch norms.
    fn graph() -> GraphProto {
        let spec = spec(18, NormKind::FrozenBatch);
        let mut tensors = zeros(&spec);
        for (index, value) in tensors.values_mut().flat_map(|tensor| tensor.iter_mut()).enumerate() {
            *value = (index as f32).sin() * 0.1;
        }
        tensors.iter_mut().filter(|(name, _)| name.ends_with("running_var")).for_each(|(_, tensor)| tensor.fill(1.0));
        folded(&spec, tensors)
    }

    fn quantized(keep_float: &[&str]) -> GraphProto {
        let mut graph = graph();
        let quantization = Quantization::new(&graph, &keep_float.iter().copied().collect());
        let range = |(index, name): (usize, &str)| (name.to_owned(), Range { low: -1.0, high: 1.0 + index as f32 });
        let ranges = quantization.ranged_values().into_iter().enumerate().map(range).collect();
        quantization.apply(&mut graph, &ranges);
        graph
    }

    #[test]
    fn input_and_relu_output_of_a_convolution_are_quantized() {
        let graph = quantized(&[]);
        let conv = node(&graph, "layer1.0.conv1");
        let parts = ["bn1.relu.max_pool", "layer1.0.conv1.weight", "layer1.0.conv1.bias"];
        assert_eq!(conv.input, parts.map(|part| format!("{part}.dequantized")));
        assert_eq!(
            node(&graph, "layer1.0.bn1.relu").input,
            [conv.output[0].as_str()],
            "not quantized between convolution and ReLU"
        );
        let quantize = node(&graph, "layer1.0.bn1.relu.quantize");
        let value = "layer1.0.bn1.relu";
        assert_eq!(quantize.input, [value, "layer1.0.bn1.relu.scale", "layer1.0.bn1.relu.zero_point"]);
        assert_eq!(node(&graph, "layer1.0.conv2").input[0], "layer1.0.bn1.relu.dequantized");
        assert!(graph.node.iter().all(|node| node.input.iter().all(|input| input != "layer1.0.conv1.weight")));
        assert!(graph.constant("layer1.0.conv1.weight").is_none());
    }

    #[test]
    fn additions_poolings_and_upsamplings_are_quantized() {
        let graph = quantized(&[]);
        let sum = node(&graph, "layer1.0.bn2.add");
        assert!(sum.input.iter().all(|input| input.ends_with(".dequantized")), "{sum:?}");
        for (name, source) in [("bn1.relu.max_pool", "bn1.relu"), ("fpn.P5_1.upsample2x", "fpn.P5_1")] {
            assert_eq!(node(&graph, name).input[0], format!("{source}.dequantized"));
            let quantize = node(&graph, &format!("{name}.quantize"));
            assert_eq!(quantize.input[1], format!("{source}.scale"), "poolings and upsamplings keep the scale");
        }
    }

    #[test]
    fn a_shared_weight_is_quantized_once_and_each_level_has_its_own_range() {
        let graph = quantized(&[]);
        let readers = |name: &str| graph.node.iter().filter(|node| node.input.iter().any(|i| i == name)).count();
        assert_eq!(readers("regressionModel.conv2.weight.quantized"), 1);
        assert_eq!(readers("regressionModel.conv2.weight.dequantized"), 5);
        let levels = ["", "_1", "_2", "_3", "_4"].map(|level| format!("regressionModel.conv2{level}"));
        let inputs = levels.each_ref().map(|level| node(&graph, level).input[0].replace(".dequantized", ".scale"));
        let steps: BTreeSet<_> = inputs.iter().map(|scale| floats(&graph, scale)[0].to_bits()).collect();
        assert_eq!(steps.len(), 5);
        for (level, input) in levels.iter().zip(&inputs) {
            let bias = floats(&graph, &format!("{level}.bias.scale"));
            let weight = floats(&graph, "regressionModel.conv2.weight.scale");
            let input = floats(&graph, input)[0];
            assert!(bias.iter().zip(weight).all(|(bias, weight)| *bias == weight * input));
        }
    }

    #[test]
    fn quantization_error_of_weights_and_biases_is_at_most_half_a_step() {
        let (before, after) = (self::graph(), quantized(&[]));
        for (name, original) in
            ["layer3.1.conv2.weight", "layer3.1.conv2.bias"].map(|name| (name, floats(&before, name)))
        {
            let steps = floats(&after, &format!("{name}.scale"));
            let rounded = after.constant(&format!("{name}.quantized")).unwrap();
            let rounded: Vec<f32> = match rounded.elements::<i8>() {
                Some(values) => values.iter().map(|value| f32::from(*value)).collect(),
                None => rounded.elements::<i32>().unwrap().iter().map(|value| *value as f32).collect(),
            };
            let per_channel = rounded.len() / steps.len();
            for ((rounded, original), index) in rounded.iter().zip(original).zip(0..) {
                let step = steps[index / per_channel];
                assert!((rounded * step - original).abs() <= 0.501 * step, "{name} {index}");
            }
        }
    }

    #[test]
    fn a_bias_does_not_overflow_if_the_weights_are_almost_zero() {
        let mut graph = graph();
        let quantization = Quantization::new(&graph, &Layers::default());
        let range = |name: &str| (name.to_owned(), Range { low: 0.0, high: 1e-3 });
        let ranges = quantization.ranged_values().into_iter().map(range).collect();
        let TensorProto { name, dims, .. } = graph.constant("fpn.P6.weight").unwrap().clone();
        let tiny = vec![1e-20f32; floats(&graph, &name).len()];
        graph.add_constant(TensorProto::new(name, dims, tiny));
        graph.add_constant(TensorProto::vector("fpn.P6.bias", vec![-7.0f32; 32]));
        quantization.apply(&mut graph, &ranges);
        let values = graph.constant("fpn.P6.bias.quantized").unwrap().elements::<i32>().unwrap();
        for (value, step) in values.iter().zip(floats(&graph, "fpn.P6.bias.scale")) {
            assert!((*value as f32 * step + 7.0).abs() < 1e-5);
        }
    }

    #[test]
    fn keep_float_layers_read_dequantized_values_and_are_not_quantized() {
        let graph = quantized(&["conv1", "layer1.0", "regressionModel.output"]);
        assert_eq!(node(&graph, "conv1").input, ["images", "conv1.weight", "conv1.bias"]);
        assert_eq!(node(&graph, "layer1.0.conv1").input[0], "bn1.relu.max_pool", "the input is not quantized");
        let output = node(&graph, "regressionModel.output_2");
        assert!(output.input[0].ends_with(".dequantized") && output.input[1] == "regressionModel.output.weight");
        assert!(graph.node.iter().all(|node| !node.name.starts_with("regressionModel.output.quantize")));
    }

    #[test]
    fn zero_is_exact_and_both_ends_of_the_range_are_covered() {
        for (low, high) in [(0.0, 6.0), (-1.0, 3.0), (-4.0, 0.0), (2.0, 5.0), (-3.0, -1.0), (0.0, 0.0), (-1e-30, 1e30)]
        {
            let Scale { step, zero_point } = Scale::of(Range { low, high });
            assert!(step > 0.0 && step.is_finite());
            let number = |integer: f32| step * (integer - f32::from(zero_point));
            assert!(number(0.0) <= low.min(0.0) + 0.51 * step && number(255.0) >= high.max(0.0) - 0.51 * step);
        }
        assert_eq!(Scale::of(Range { low: 0.0, high: 2.55 }).zero_point, 0, "non-negative values use all integers");
    }
}
