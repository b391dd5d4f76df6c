//! Input of bytes: the network normalizes the pixels itself, and sets the padding to zero afterwards, with the operations of
//! `models::preprocess`, so that all outputs are the same to the last bit.

use models::onnx_contract::{IMAGES, SIZES};
use models::spec::PreprocessingSpec;

use crate::onnx::{AttributeProto, DataType, Dimension, GraphProto, TensorProto, ValueInfoProto};

/// Replaces the input of normalized images by one of bytes, and adds the input of sizes if there is none. `size` is the height
/// and width of the input, if fixed.
pub(super) fn read_bytes(graph: &mut GraphProto, spec: &PreprocessingSpec, size: Option<[usize; 2]>) {
    let network = std::mem::take(&mut graph.node);
    let [factor, term] = spec.factor_and_term();
    let factor = graph.add_constant(TensorProto::vector("images.factor", factor.to_vec()));
    let term = graph.add_constant(TensorProto::vector("images.term", term.to_vec()));
    let float = graph.add_node("Cast", "images.float", &[IMAGES], [AttributeProto::int("to", DataType::Float as i64)]);
    let scaled = graph.add_node("Mul", "images.scaled", &[&float, &factor], []);
    let shifted = graph.add_node("Add", "images.shifted", &[&scaled, &term], []);

    let inside = [("height", 0), ("width", 1)].map(|(side, axis)| {
        let name = |word: &str| format!("images.{side}.{word}");
        let positions = positions(graph, &name("positions"), axis, size.map(|size| size[axis]));
        // Positions are [1, H, 1, 1] and [1, 1, W, 1].
        let other_axes: Vec<i64> = (0..4).filter(|other| *other != 1 + axis as i64).collect();
        let axes = graph.ints(&name("axes"), &other_axes);
        let positions = graph.add_node("Unsqueeze", &name("grid"), &[&positions, &axes], []);
        let column = graph.ints(&name("column"), &[axis as i64]);
        let limit = graph.add_node("Gather", &name("limit"), &[SIZES, &column], [AttributeProto::int("axis", 1)]);
        let axes = graph.ints("axes.2.3", &[2, 3]);
        let limit = graph.add_node("Unsqueeze", &name("limit.grid"), &[&limit, &axes], []);
        graph.add_node("Less", &name("inside"), &[&positions, &limit], [])
    });
    let inside = graph.add_node("And", "images.inside", &[&inside[0], &inside[1]], []);
    let zero = graph.add_constant(TensorProto::scalar("zero", 0f32));
    let masked = graph.add_node("Where", "images.masked", &[&inside, &shifted, &zero], []);
    let channels_first = [AttributeProto::ints("perm", [0, 3, 1, 2])];
    let normalized = graph.add_node("Transpose", "images.normalized", &[&masked], channels_first);

    let added = graph.node.len();
    graph.node.extend(network);
    let inputs = graph.node[added..].iter_mut().flat_map(|node| &mut node.input);
    inputs.filter(|input| *input == IMAGES).for_each(|input| input.clone_from(&normalized));

    let shape = [Dimension::dynamic("N"), Dimension::dynamic("H"), Dimension::dynamic("W"), Dimension::fixed(3)];
    let doc = "resized RGB images, padded at the right and bottom; H and W are multiples of 32";
    graph.input.retain(|value| value.name != IMAGES);
    graph.input.insert(0, ValueInfoProto::new(IMAGES, DataType::Uint8, shape, doc));
    add_sizes(graph);
}

/// Adds the input for the sizes of the images in their inputs, if there is none.
pub(super) fn add_sizes(graph: &mut GraphProto) {
    if graph.input.iter().all(|value| value.name != SIZES) {
        let doc = "height and width of the part of each input that contains the image, in its upper left corner";
        let shape = [Dimension::dynamic("N"), Dimension::fixed(2)];
        graph.input.push(ValueInfoProto::new(SIZES, DataType::Int64, shape, doc));
    }
}

/// The numbers from 0 to the height (axis 0) or width (axis 1) of the images.
fn positions(graph: &mut GraphProto, name: &str, axis: usize, size: Option<usize>) -> String {
    if let Some(size) = size {
        return graph.ints(name, &(0..size as i64).collect::<Vec<_>>());
    }
    let shape = graph.add_node("Shape", &format!("{name}.shape"), &[IMAGES], []);
    let index = graph.add_constant(TensorProto::scalar(format!("{name}.index"), 1 + axis as i64));
    let end = graph.add_node("Gather", &format!("{name}.end"), &[&shape, &index], [AttributeProto::int("axis", 0)]);
    let [zero, one] = [0i64, 1].map(|number| graph.add_constant(TensorProto::scalar(format!("int.{number}"), number)));
    graph.add_node("Range", name, &[&zero, &end, &one], [])
}
