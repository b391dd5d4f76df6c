//! Fixed sizes, for engines that plan memory ahead or do not support dynamic shapes.

use models::onnx_contract::IMAGES;

use crate::onnx::{Dimension, DimensionValue, GraphProto};

/// Fixes batch size, height and width (`size`) of the input, and the number of rows of the outputs that follows from it. These
/// dimensions are called N, H and W; the rows A (anchors) or M (candidates).
pub(super) fn fix_sizes(graph: &mut GraphProto, batch: Option<usize>, size: Option<[usize; 2]>, rows: Option<usize>) {
    let [height, width] = size.map_or([None; 2], |sides| sides.map(Some));
    let values = graph.input.iter_mut().chain(&mut graph.output);
    let shapes = values.filter_map(|value| value.r#type.as_mut()?.tensor_type.as_mut()?.shape.as_mut());
    for dimension in shapes.flat_map(|shape| &mut shape.dim) {
        let Some(DimensionValue::Name(name)) = &dimension.value else { continue };
        let fixed = match name.as_str() {
            "N" => batch,
            "H" => height,
            "W" => width,
            "A" | "M" => rows,
            _ => None,
        };
        if let Some(fixed) = fixed {
            *dimension = Dimension::fixed(fixed);
        }
    }
    if size.is_some() {
        for images in graph.input.iter_mut().filter(|value| value.name == IMAGES) {
            // What height and width may be.
            images.doc_string.truncate(images.doc_string.find(';').unwrap_or(images.doc_string.len()));
        }
    }
}
