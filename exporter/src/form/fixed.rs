//! Fixed sizes, for engines that plan memory ahead or do not support dynamic shapes.

use models::onnx_contract::IMAGES;

use crate::graph::{Graph, Side};

/// Fixes batch size, height and width (`size`) of the input, and the number of rows of the outputs that follows from it.
pub(super) fn fix_sizes(graph: &mut Graph, batch: Option<usize>, size: Option<[usize; 2]>, rows: Option<usize>) {
    let [height, width] = size.map_or([None; 2], |sides| sides.map(Some));
    for port in graph.inputs.iter_mut().chain(&mut graph.outputs) {
        for side in &mut port.shape {
            let fixed = match side {
                Side::Dynamic("N") => batch,
                Side::Dynamic("H") => height,
                Side::Dynamic("W") => width,
                Side::Dynamic("A" | "M") => rows,
                Side::Dynamic(_) | Side::Fixed(_) => None,
            };
            if let Some(fixed) = fixed {
                *side = Side::Fixed(fixed);
            }
        }
    }
    if size.is_some() {
        let images = graph.inputs.iter_mut().filter(|port| port.name == IMAGES);
        images.for_each(|port| port.meaning = "normalized RGB images".to_owned());
    }
}
