//! What a file says about itself besides the spec, for people who look into it.

use std::collections::BTreeMap;

use ort::session::Session;
use ort::value::{Outlet, ValueType};
use serde::Serialize;

use super::SPEC_KEY;
use super::error::words;

/// What a file says about itself besides the spec.
#[derive(Clone, Debug, Serialize)]
pub struct About {
    /// What the network is called.
    pub graph: String,
    /// The program that wrote the file.
    pub producer: String,
    /// What goes in.
    pub inputs: Vec<Port>,
    /// What comes out.
    pub outputs: Vec<Port>,
    /// Where it comes from, by keys.
    pub metadata: BTreeMap<String, String>,
}

/// An input or an output.
#[derive(Clone, Debug, Serialize)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Its elements, such as `f32`.
    pub element: String,
    /// Its shape; a side that is absent is any.
    pub shape: Vec<Option<usize>>,
}

impl About {
    pub(super) fn read(session: &Session) -> Result<Self, String> {
        let file = session.metadata().map_err(|error| words(&error))?;
        let keys = file.custom_keys().map_err(|error| words(&error))?;
        let metadata = keys.into_iter().filter(|key| key != SPEC_KEY);
        Ok(Self {
            graph: file.name().unwrap_or_default(),
            producer: file.producer().unwrap_or_default(),
            inputs: session.inputs().iter().map(Port::of).collect(),
            outputs: session.outputs().iter().map(Port::of).collect(),
            metadata: metadata.filter_map(|key| Some((key.clone(), file.custom(&key)?))).collect(),
        })
    }
}

impl Port {
    fn of(outlet: &Outlet) -> Self {
        let (element, shape) = match outlet.dtype() {
            ValueType::Tensor { ty, shape, .. } => {
                (ty.to_string(), shape.iter().map(|side| usize::try_from(*side).ok()).collect())
            }
            other => (format!("{other:?}"), Vec::new()),
        };
        Self { name: outlet.name().to_owned(), element, shape }
    }
}
