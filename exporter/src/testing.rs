//! Small networks for the tests of this crate.

use std::collections::BTreeMap;

use models::spec::{NormKind, NormSpec};
use models::{ModelSpec, parameters};
use ndarray::{ArrayD, IxDyn};

use crate::fold::fold_batch_norms;
use crate::onnx::{GraphProto, NodeProto};
use crate::trace::trace;

/// A spec with a ResNet of this depth, and FPN and heads of 32 channels.
pub(crate) fn spec(depth: u32, kind: NormKind) -> ModelSpec {
    let yaml = "{pyramid: {width: 32}, heads: {width: 32}, classes: [{id: 1, name: cell}, {id: 5, name: platelet}]}";
    let mut spec = ModelSpec::from_yaml(yaml).unwrap();
    spec.backbone.depth = depth;
    spec.backbone.norm = NormSpec { kind, ..NormSpec::default() };
    spec
}

/// All tensors of the spec's network, filled with zeros.
pub(crate) fn zeros(spec: &ModelSpec) -> BTreeMap<String, ArrayD<f32>> {
    let parameters = parameters(spec).unwrap().into_iter();
    parameters.map(|parameter| (parameter.name, ArrayD::zeros(IxDyn(&parameter.shape)))).collect()
}

/// The graph of the spec's network with folded batch norms.
pub(crate) fn folded(spec: &ModelSpec, tensors: BTreeMap<String, ArrayD<f32>>) -> GraphProto {
    let mut graph = trace(spec, tensors).unwrap();
    fold_batch_norms(&mut graph);
    graph
}

/// The node of this name.
pub(crate) fn node<'a>(graph: &'a GraphProto, name: &str) -> &'a NodeProto {
    graph.node.iter().find(|node| node.name == name).unwrap_or_else(|| panic!("no node `{name}`"))
}
