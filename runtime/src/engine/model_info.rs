//! Description of an ONNX file apart from its spec, for `runtime info`.

use std::collections::BTreeMap;

use models::onnx_contract::{CHECK_KEY, SPEC_KEY};
use ort::session::Session;
use ort::value::{Outlet, ValueType};
use schemars::JsonSchema;
use serde::Serialize;

use super::error::ort_message;

/// Description of an ONNX file apart from its spec.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ModelInfo {
    /// Name of the graph.
    pub graph: String,
    /// Program that wrote the file.
    pub producer: String,
    /// Inputs of the network.
    pub inputs: Vec<ValueInfo>,
    /// Outputs of the network.
    pub outputs: Vec<ValueInfo>,
    /// The file's `metadata_props` except spec and check, by key.
    pub metadata: BTreeMap<String, String>,
    /// The file's check, as JSON, if it has one.
    #[serde(skip)]
    pub check: Option<String>,
}

/// An input or output of the network.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ValueInfo {
    /// Name.
    pub name: String,
    /// Element type, such as `f32`.
    pub element: String,
    /// Shape; `None` for a dynamic dimension.
    pub shape: Vec<Option<usize>>,
}

impl ModelInfo {
    pub(super) fn read(session: &Session) -> Result<Self, String> {
        let file = session.metadata().map_err(|error| ort_message(&error))?;
        let keys = file.custom_keys().map_err(|error| ort_message(&error))?;
        let metadata = keys.into_iter().filter(|key| key != SPEC_KEY && key != CHECK_KEY);
        Ok(Self {
            graph: file.name().unwrap_or_default(),
            producer: file.producer().unwrap_or_default(),
            inputs: session.inputs().iter().map(ValueInfo::of).collect(),
            outputs: session.outputs().iter().map(ValueInfo::of).collect(),
            metadata: metadata.filter_map(|key| Some((key.clone(), file.custom(&key)?))).collect(),
            check: file.custom(CHECK_KEY),
        })
    }
}

impl ValueInfo {
    fn of(outlet: &Outlet) -> Self {
        let (element, shape) = match outlet.dtype() {
            ValueType::Tensor { ty, shape, .. } => {
                (ty.to_string(), shape.iter().map(|size| usize::try_from(*size).ok()).collect())
            }
            other => (format!("{other:?}"), Vec::new()),
        };
        Self { name: outlet.name().to_owned(), element, shape }
    }
}
