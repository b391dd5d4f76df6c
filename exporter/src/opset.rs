//! Opsets: versions of the ONNX operators.

use std::fmt;
use std::str::FromStr;

use crate::onnx::{GraphProto, ModelProto, OperatorSetIdProto, TensorProto};

/// The first opset in which weights can have one scale per channel.
const MIN_VERSION: i64 = 13;

/// The last opset that ONNX Runtime 1.30 loads.
const MAX_VERSION: i64 = 26;

/// The first opset in which the axes of reductions are an input.
const AXES_ARE_INPUTS: i64 = 18;

/// A version of the ONNX operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opset(i64);

impl Opset {
    /// The version number.
    pub fn version(self) -> i64 {
        self.0
    }

    /// The IR version that was released with it.
    /// <https://github.com/onnx/onnx/blob/main/docs/Versioning.md#released-versions>
    fn ir_version(self) -> i64 {
        match self.0 {
            ..=14 => 7,
            15..=18 => 8,
            19..=20 => 9,
            21..=22 => 10,
            23 => 11,
            24 => 12,
            _ => 13,
        }
    }

    /// A model of a graph that uses the operators of this opset.
    pub(crate) fn model(self, graph: GraphProto) -> ModelProto {
        ModelProto {
            ir_version: self.ir_version(),
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: self.0 }],
            graph: Some(graph),
            ..ModelProto::default()
        }
    }

    /// Converts operators to their definition in this opset.
    pub(crate) fn adapt(self, graph: &mut GraphProto) {
        if self.0 < AXES_ARE_INPUTS {
            return;
        }
        let mut constants = Vec::new();
        for node in graph.node.iter_mut().filter(|node| ["ReduceMax", "ReduceMin"].contains(&&*node.op_type)) {
            let Some(index) = node.attribute.iter().position(|attribute| attribute.name == "axes") else { continue };
            let axes = node.attribute.remove(index).ints;
            node.input.push(format!("{}.axes", node.name));
            constants.push(TensorProto::vector(format!("{}.axes", node.name), axes));
        }
        constants.into_iter().for_each(|constant| drop(graph.add_constant(constant)));
    }
}

impl Default for Opset {
    /// The last opset before Resize got attributes that engines implement differently. Released in 2022, so that all
    /// engines in use support it.
    fn default() -> Self {
        Self(17)
    }
}

impl fmt::Display for Opset {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl FromStr for Opset {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = text.parse().ok().filter(|version| (MIN_VERSION..=MAX_VERSION).contains(version));
        known.map(Self).ok_or_else(|| format!("expected a version from {MIN_VERSION} to {MAX_VERSION}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{AttributeProto, NodeProto};

    #[test]
    fn untested_versions_are_refused() {
        for version in MIN_VERSION..=MAX_VERSION {
            assert_eq!(version.to_string().parse::<Opset>().unwrap().version(), version);
        }
        for text in ["12", "27", "", "latest", "-1"] {
            assert!(text.parse::<Opset>().unwrap_err().contains("from 13 to 26"), "{text}");
        }
    }

    #[test]
    fn axes_of_reductions_become_an_input_from_opset_18_on() {
        let mut before = GraphProto::default();
        let attributes = [AttributeProto::ints("axes", [2]), AttributeProto::int("keepdims", 0)];
        before.add_node("ReduceMax", "best", &["scores"], attributes);
        let adapted = |version: i64| {
            let mut graph = before.clone();
            Opset(version).adapt(&mut graph);
            graph
        };
        assert_eq!(adapted(17), before);
        let after = adapted(18);
        let NodeProto { input, attribute, .. } = &after.node[0];
        assert_eq!(input, &["scores", "best.axes"]);
        assert_eq!(attribute, &[AttributeProto::int("keepdims", 0)]);
        assert_eq!(after.initializer, [TensorProto::vector("best.axes", vec![2i64])]);
    }
}
