//! Folding: batch norms are folded into the weight and bias of the convolution before them.
//! <https://arxiv.org/abs/1712.05877>, section 3.2.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::onnx::{GraphProto, TensorProto};

/// Folds every batch norm into the convolution before it, and removes unused constants. A batch norm stays if another
/// node reads the convolution's output or its weights.
pub fn fold_batch_norms(graph: &mut GraphProto) {
    let mut removed = BTreeSet::new();
    for (constants, pairs) in layers(graph) {
        let Some([weight, bias]) = fold(graph, &constants) else { continue };
        for Pair { conv, norm } in pairs {
            graph.node[conv].output = graph.node[norm].output.clone();
            graph.node[conv].input.truncate(1);
            graph.node[conv].input.extend([weight.clone(), bias.clone()]);
            removed.insert(norm);
        }
    }
    let mut index = 0..;
    graph.node.retain(|_| !index.next().is_some_and(|index| removed.contains(&index)));
    graph.drop_unused_constants();
}

/// Node indices of a convolution and of the batch norm that is the only reader of its output.
struct Pair {
    conv: usize,
    norm: usize,
}

/// Names of the constants of a convolution and of the batch norm after it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Constants {
    weight: String,
    bias: Option<String>,
    /// Scale (gamma), shift (beta), mean and variance of the batch norm.
    norm: [String; 4],
    /// Bits of the batch norm's epsilon.
    epsilon: u32,
}

/// The pairs by their constants: a layer that runs on several levels has several pairs. Only pairs whose convolution
/// weights no other node reads.
fn layers(graph: &GraphProto) -> BTreeMap<Constants, Vec<Pair>> {
    let readers = graph.readers();
    let convs = graph.node.iter().enumerate().filter(|(_, node)| node.op_type == "Conv");
    let convs: HashMap<_, _> = convs.map(|(index, node)| (node.output[0].as_str(), index)).collect();

    let mut layers = BTreeMap::<_, Vec<_>>::new();
    for (norm, node) in graph.node.iter().enumerate().filter(|(_, node)| node.op_type == "BatchNormalization") {
        let [input, constants @ ..] = node.input.as_slice() else { continue };
        let (Some(&conv), Ok(constants)) = (convs.get(input.as_str()), constants.to_vec().try_into()) else { continue };
        if readers[input.as_str()] == 1 {
            let weights = &graph.node[conv].input;
            let constants = Constants {
                weight: weights[1].clone(),
                bias: weights.get(2).cloned(),
                norm: constants,
                // ONNX's default.
                epsilon: node.attribute("epsilon").and_then(|epsilon| epsilon.f).unwrap_or(1e-5).to_bits(),
            };
            layers.entry(constants).or_default().push(Pair { conv, norm });
        }
    }
    layers.retain(|constants, pairs| {
        std::iter::once(&constants.weight).chain(&constants.bias).all(|name| readers[name.as_str()] == pairs.len())
    });
    layers
}

/// Replaces a convolution's weight and bias by those that include the batch norm, and returns their names. Returns
/// `None` if a constant is not float32.
///
/// Computes in float64: in float32, channels whose variance is close to zero would lose digits.
fn fold(graph: &mut GraphProto, constants: &Constants) -> Option<[String; 2]> {
    let floats = |name: &String| graph.floats(name);
    let [gamma, beta, mean, variance] = constants.norm.each_ref().map(floats);
    let (gamma, beta, mean, variance) = (gamma?, beta?, mean?, variance?);
    let zeros = vec![0.0; gamma.len()];
    let bias = constants.bias.as_ref().map_or(Some(zeros.as_slice()), floats)?;

    let epsilon = f64::from(f32::from_bits(constants.epsilon));
    let scale = |(gamma, variance): (&f32, &f32)| f64::from(*gamma) / (f64::from(*variance) + epsilon).sqrt();
    let scales: Vec<f64> = gamma.iter().zip(variance).map(scale).collect();
    let folded =
        bias.iter().zip(mean).zip(beta).zip(&scales).map(|(((bias, mean), beta), scale)| {
            ((f64::from(*bias) - f64::from(*mean)) * scale + f64::from(*beta)) as f32
        });
    let folded: Vec<f32> = folded.collect();

    let weight = graph.constant(&constants.weight)?;
    let (dims, mut scaled) = (weight.dims.clone(), weight.floats()?.to_vec());
    let per_output = (scaled.len() / scales.len().max(1)).max(1);
    for (elements, scale) in scaled.chunks_exact_mut(per_output).zip(scales) {
        elements.iter_mut().for_each(|element| *element = (f64::from(*element) * scale) as f32);
    }
    let layer = constants.weight.strip_suffix(".weight").unwrap_or(&constants.weight);
    let bias = constants.bias.clone().unwrap_or_else(|| format!("{layer}.bias"));
    let weight = graph.add_constant(TensorProto::new(&constants.weight, dims, scaled));
    Some([weight, graph.add_constant(TensorProto::vector(bias, folded))])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{AttributeProto, NodeProto, ValueInfoProto};
    use crate::testing::{spec, zeros};
    use crate::trace::trace;
    use models::spec::{NormKind, NormSpec};

    fn node(operator: &str, inputs: &[&str], output: &str) -> NodeProto {
        let attributes = match operator {
            "BatchNormalization" => vec![AttributeProto::float("epsilon", 1e-5)],
            _ => Vec::new(),
        };
        NodeProto::new(operator, output, inputs, output, attributes)
    }

    const NORM: [&str; 4] = ["bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"];

    fn norm(input: &str, output: &str) -> NodeProto {
        node("BatchNormalization", &[&[input], &NORM[..]].concat(), output)
    }

    /// A 1x1 convolution from two to three channels, and a batch norm whose last channel has a variance close to zero.
    fn constants() -> [TensorProto; 6] {
        let weight = TensorProto::new("conv.weight", [3, 2, 1, 1], vec![1.0f32, -2.0, 3.0, 4.0, 0.5, 0.25]);
        let vectors = [
            ("conv.bias", vec![0.1f32, 0.2, 0.3]),
            ("bn.weight", vec![1.5, -0.5, 2.0]),
            ("bn.bias", vec![0.0, 1.0, -1.0]),
            ("bn.running_mean", vec![0.25, -3.0, 0.125]),
            ("bn.running_var", vec![4.0, 0.5, 1e-12]),
        ];
        let [a, b, c, d, e] = vectors.map(|(name, values)| TensorProto::vector(name, values));
        [weight, a, b, c, d, e]
    }

    fn graph(node: Vec<NodeProto>, outputs: &[&str]) -> GraphProto {
        let output = outputs.iter().map(|name| ValueInfoProto::float(name)).collect();
        let mut graph = GraphProto { node, output, ..GraphProto::default() };
        constants().into_iter().for_each(|constant| drop(graph.add_constant(constant)));
        graph
    }

    /// The convolution at one pixel, in float64.
    fn convolve(constants: &GraphProto, bias: &str, x: [f64; 2]) -> [f64; 3] {
        let weight = constants.floats("conv.weight").unwrap();
        let bias = constants.floats(bias).unwrap_or(&[0.0; 3]);
        std::array::from_fn(|row| {
            f64::from(weight[2 * row]) * x[0] + f64::from(weight[2 * row + 1]) * x[1] + f64::from(bias[row])
        })
    }

    fn normalize(constants: &GraphProto, y: [f64; 3]) -> [f64; 3] {
        let at = |name: &str, channel: usize| f64::from(constants.floats(name).unwrap()[channel]);
        std::array::from_fn(|c| {
            let normal = (y[c] - at(NORM[2], c)) / (at(NORM[3], c) + f64::from(1e-5f32)).sqrt();
            normal * at(NORM[0], c) + at(NORM[1], c)
        })
    }

    #[test]
    fn folded_convolution_equals_convolution_and_batch_norm() {
        for bias in ["conv.bias", "none"] {
            let inputs = if bias == "none" { vec!["x", "conv.weight"] } else { vec!["x", "conv.weight", bias] };
            let mut graph = graph(vec![node("Conv", &inputs, "conv"), norm("conv", "bn")], &["bn"]);
            let before = graph.clone();
            fold_batch_norms(&mut graph);
            assert_eq!(
                graph.node,
                [NodeProto {
                    output: vec!["bn".to_owned()],
                    ..node("Conv", &["x", "conv.weight", "conv.bias"], "conv")
                }]
            );
            let names: Vec<_> = graph.initializer.iter().map(|constant| constant.name.as_str()).collect();
            assert_eq!(names, ["conv.bias", "conv.weight"]);
            for x in [[0.0, 0.0], [1.0, 0.0], [-0.3, 7.0]] {
                let expected = normalize(&before, convolve(&before, bias, x));
                let found = convolve(&graph, "conv.bias", x);
                for (expected, found) in expected.into_iter().zip(found) {
                    assert!((expected - found).abs() <= 1e-6 * expected.abs().max(1.0), "{expected} {found}");
                }
            }
        }
    }

    #[test]
    fn a_layer_that_runs_on_several_levels_is_folded_once() {
        let once = || vec![node("Conv", &["x", "conv.weight"], "conv"), norm("conv", "bn")];
        let again = [node("Conv", &["y", "conv.weight"], "conv_1"), norm("conv_1", "bn_1")];
        let mut single = graph(once(), &["bn"]);
        let mut double = graph(once().into_iter().chain(again).collect(), &["bn", "bn_1"]);
        fold_batch_norms(&mut single);
        fold_batch_norms(&mut double);
        assert_eq!(single.initializer, double.initializer);
        let outputs: Vec<_> = double.node.iter().map(|node| (node.op_type.as_str(), node.output[0].as_str())).collect();
        assert_eq!(outputs, [("Conv", "bn"), ("Conv", "bn_1")]);
    }

    #[test]
    fn batch_norm_stays_where_it_cannot_be_folded() {
        let conv = || node("Conv", &["x", "conv.weight"], "conv");
        let other = || node("Conv", &["y", "conv.weight"], "other");
        let read = || node("Relu", &["conv"], "relu");
        for unchanged in [
            graph(vec![conv(), norm("conv", "bn"), read()], &["bn", "relu"]),
            graph(vec![conv(), norm("conv", "bn")], &["bn", "conv"]),
            graph(vec![conv(), norm("conv", "bn"), other()], &["bn", "other"]),
            graph(vec![read(), norm("relu", "bn")], &["bn"]),
        ] {
            let mut graph = unchanged.clone();
            fold_batch_norms(&mut graph);
            assert_eq!(graph.node, unchanged.node);
            assert!(graph.initializer.iter().all(|constant| unchanged.constant(&constant.name) == Some(constant)));
        }
    }

    #[test]
    fn every_batch_norm_of_every_network_is_folded() {
        for depth in [18, 34, 50, 101, 152] {
            for kind in [NormKind::FrozenBatch, NormKind::Batch] {
                let mut spec = spec(depth, kind);
                spec.heads.norm = (kind == NormKind::Batch).then(|| NormSpec { kind, ..NormSpec::default() });
                let mut graph = trace(&spec, zeros(&spec)).unwrap();
                fold_batch_norms(&mut graph);
                let operators: BTreeSet<_> = graph.node.iter().map(|node| node.op_type.as_str()).collect();
                let expected =
                    ["Add", "Concat", "Conv", "MaxPool", "Relu", "Reshape", "Resize", "Sigmoid", "Transpose"];
                assert_eq!(operators.into_iter().collect::<Vec<_>>(), expected);
                assert!(
                    graph.initializer.iter().all(|constant| !constant.name.contains("running_")),
                    "{depth} {kind:?}"
                );
                assert!(graph.node.iter().all(|node| node.op_type != "Conv" || node.input.len() == 3));
            }
        }
    }
}
