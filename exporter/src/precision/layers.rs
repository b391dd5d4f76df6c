//! Names of layers and blocks, as in `--keep-float`.

use std::collections::BTreeSet;

use crate::onnx::{GraphProto, NodeProto};

/// The layer of the convolution `node`: the name of its weight without `.weight`. `None` for other nodes, and for
/// convolutions whose weight is not a float32 constant.
pub(super) fn layer_of<'a>(graph: &GraphProto, node: &'a NodeProto) -> Option<&'a str> {
    let weight = node.input.get(1).filter(|_| node.op_type == "Conv")?;
    graph.floats(weight)?;
    Some(weight.strip_suffix(".weight").unwrap_or(weight))
}

/// Names of layers, and of blocks, which mean all their layers: `conv1`, `layer4`, `classificationModel.output`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layers(BTreeSet<String>);

/// A name that no layer or block has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the network has no convolution or block `{name}`; --summary lists the layers")]
pub struct UnknownLayer {
    /// The requested name.
    pub name: String,
}

impl Layers {
    /// The convolutions of a graph, without duplicates.
    pub(crate) fn all(graph: &GraphProto) -> Self {
        graph.node.iter().filter_map(|node| layer_of(graph, node)).collect()
    }

    /// Whether `layer` is one of the layers, or part of one of the blocks.
    pub(crate) fn contain(&self, layer: &str) -> bool {
        let ends = layer.match_indices('.').map(|(index, _)| index).chain([layer.len()]);
        ends.into_iter().any(|end| self.0.contains(&layer[..end]))
    }

    /// The names.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// All names except `layer`.
    pub(crate) fn without(&self, layer: &str) -> Self {
        self.names().filter(|name| *name != layer).collect()
    }

    /// Checks that every name is a convolution or block of `graph`.
    ///
    /// # Errors
    /// With the first name that is not.
    pub(crate) fn check(&self, graph: &GraphProto) -> Result<(), UnknownLayer> {
        let all = Self::all(graph);
        let exists = |name: &str| all.names().any(|layer| Self::from_iter([name]).contain(layer));
        match self.names().find(|name| !exists(name)) {
            Some(name) => Err(UnknownLayer { name: name.to_owned() }),
            None => Ok(()),
        }
    }
}

impl<T: Into<String>> FromIterator<T> for Layers {
    fn from_iter<I: IntoIterator<Item = T>>(names: I) -> Self {
        Self(names.into_iter().map(Into::into).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{spec, zeros};
    use crate::trace::trace;
    use models::spec::NormKind;

    #[test]
    fn a_block_contains_its_layers_and_no_others() {
        let layers = Layers::from_iter(["layer1", "layer2.0.conv1", "conv1"]);
        for inside in ["layer1.0.conv1", "layer1.1.downsample.0", "layer2.0.conv1", "conv1"] {
            assert!(layers.contain(inside), "{inside}");
        }
        for outside in ["layer10.0.conv1", "layer2.0.conv2", "layer2.0.conv10", "fpn.conv1", "conv10"] {
            assert!(!layers.contain(outside), "{outside}");
        }
    }

    #[test]
    fn an_unknown_name_is_refused() {
        let spec = spec(18, NormKind::Batch);
        let graph = trace(&spec, zeros(&spec)).unwrap();
        assert_eq!(Layers::from_iter(["conv1", "layer4", "regressionModel.output"]).check(&graph), Ok(()));
        for name in ["layer5", "layer4.0.bn1", "conv", ""] {
            assert_eq!(Layers::from_iter([name]).check(&graph), Err(UnknownLayer { name: name.to_owned() }));
        }
    }

    #[test]
    fn a_layer_that_runs_on_several_levels_is_listed_once() {
        let spec = spec(18, NormKind::Batch);
        let graph = trace(&spec, zeros(&spec)).unwrap();
        let all = Layers::all(&graph);
        // 20 in the backbone, including three shortcuts, 8 in the FPN, 5 in each head.
        assert_eq!(all.names().count(), 20 + 8 + 2 * 5);
        assert_eq!(all.without("conv1").names().count(), 37);
    }
}
