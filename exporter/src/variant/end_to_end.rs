//! End to end: the file decodes and clips boxes and applies NMS itself, with the arithmetic of `runtime`, so that any engine
//! gives the same detections.
//!
//! Candidates are selected as in `top_k`. Every candidate has one class, so that NMS runs on scores that are zero for all other
//! classes, and then the highest scores of what it keeps are the detections.

use models::onnx_contract::{
    CANDIDATE_CLASSES, CANDIDATE_SCORES, DETECTION_BOXES, DETECTION_CLASSES, DETECTION_SCORES, IMAGES, NUM_DETECTIONS,
    REGRESSION, SIZES,
};
use models::spec::{AnchorCenter, AnchorStride, Clip, Suppression};
use models::{Grid, ModelSpec};

use super::bytes::add_sizes;
use crate::onnx::{AttributeProto, DataType, Dimension, GraphProto, TensorProto, ValueInfoProto};

/// Replaces the candidates that `graph` outputs by at most `max_detections` detections. The spec has greedy NMS. `size` is the
/// height and width of the input, if fixed.
pub(super) fn detect(graph: &mut GraphProto, spec: &ModelSpec, max_detections: usize, size: Option<[usize; 2]>) {
    let mut tail = Tail { graph, spec, size };
    let anchors: Vec<_> = (0..spec.anchors.sizes.len()).map(|level| tail.anchors(level)).collect();
    let anchors = tail.concat("anchors", &anchors, 1);
    let (boxes, is_valid) = tail.boxes(&anchors);

    let zero = tail.float("zero", 0.0);
    let scores = tail.node("Where", "valid_scores", &[&is_valid, CANDIDATE_SCORES, &zero]);
    let max = tail.graph.ints("detections.max", &[max_detections as i64]);
    let scores = tail.suppress(&boxes, &scores, &max);

    // There may be fewer candidates than detections.
    let pads = tail.graph.ints("detections.pads.2", &[0, 0, 0, max_detections as i64]);
    let scores = tail.node("Pad", "padded_scores", &[&scores, &pads]);
    let classes = tail.node("Pad", "padded_classes", &[CANDIDATE_CLASSES, &pads]);
    let pads = tail.graph.ints("detections.pads.3", &[0, 0, 0, 0, max_detections as i64, 0]);
    let boxes = tail.node("Pad", "padded_boxes", &[&boxes, &pads]);

    let [scores, rows] = tail.graph.add_top_k(DETECTION_SCORES, &scores, &max);
    let is_detection = tail.node("Greater", "is_detection", &[&scores, &zero]);
    let [axis_1, axis_2] = [1, 2].map(|axis| tail.graph.ints(&format!("axis.{axis}"), &[axis]));
    let is_row = tail.node("Unsqueeze", "is_detection.2", &[&is_detection, &axis_2]);
    let boxes = tail.graph.gather_rows("detections.boxes", &boxes, &rows);
    tail.graph.add_node("Where", DETECTION_BOXES, &[&is_row, &boxes, &zero], []);
    let classes = tail.with("GatherElements", "classes", &[&classes, &rows], [AttributeProto::int("axis", 1)]);
    let to_int32 = || [AttributeProto::int("to", DataType::Int32 as i64)];
    let classes = tail.with("Cast", "classes.int32", &[&classes], to_int32());
    let none = tail.graph.add_constant(TensorProto::scalar("detections.no_class", 0i32));
    tail.graph.add_node("Where", DETECTION_CLASSES, &[&is_detection, &classes, &none], []);
    let counted = tail.with("Cast", "counted", &[&is_detection], to_int32());
    let keepdims = [AttributeProto::int("keepdims", 1)];
    tail.graph.add_node("ReduceSum", NUM_DETECTIONS, &[&counted, &axis_1], keepdims);
    graph.output = outputs(max_detections);
    graph.drop_unused();
}

fn outputs(max: usize) -> Vec<ValueInfoProto> {
    let rows = || [Dimension::dynamic("N"), Dimension::fixed(max)];
    let (count, corners) =
        ([Dimension::dynamic("N"), Dimension::fixed(1)], [rows().to_vec(), vec![Dimension::fixed(4)]]);
    let boxes = "boxes as x1, y1, x2, y2 in pixels of the input; zero in rows from num_detections on";
    vec![
        ValueInfoProto::new(NUM_DETECTIONS, DataType::Int32, count, "number of detections"),
        ValueInfoProto::new(DETECTION_BOXES, DataType::Float, corners.concat(), boxes),
        ValueInfoProto::new(DETECTION_SCORES, DataType::Float, rows(), "scores, in (0, 1), the highest first"),
        ValueInfoProto::new(DETECTION_CLASSES, DataType::Int32, rows(), "class indices"),
    ]
}

/// A graph to which the decoding of candidates and NMS are added.
struct Tail<'a> {
    graph: &'a mut GraphProto,
    spec: &'a ModelSpec,
    size: Option<[usize; 2]>,
}

impl Tail<'_> {
    /// The anchors of the candidates of a level, `[N, k, 4]`, from their indices in the level.
    fn anchors(&mut self, level: usize) -> String {
        let spec = &self.spec.anchors;
        let name = |word: &str| format!("P{}.{word}", level + 3);
        let rows = format!("P{}.candidates.rows", level + 3);
        // One cell at the origin, with half a cell's shift taken out.
        let grid = Grid { stride_y: 0, stride_x: 0, height: 1, width: 1 };
        let cell = spec.level(spec.sizes[level], &grid);
        let count = self.graph.ints("detections.anchors_per_cell", &[cell.len() as i64]);
        let cells = self.node("Div", &name("cells"), &[&rows, &count]);
        let kinds = self.node("Mod", &name("kinds"), &[&rows, &count]);
        let corners: Vec<f32> = cell.into_iter().flat_map(<[f32; 4]>::from).collect();
        let corners =
            TensorProto::new(format!("detections.{}", name("corners")), [corners.len() as i64 / 4, 4], corners);
        let corners = self.graph.add_constant(corners);
        let corners =
            self.with("Gather", &name("anchor_corners"), &[&corners, &kinds], [AttributeProto::int("axis", 0)]);

        let [(_, step_y), (columns, step_x)] = [0, 1].map(|axis| self.cells_and_step(level, axis));
        let y = self.node("Div", &name("y"), &[&cells, &columns]);
        let x = self.node("Mod", &name("x"), &[&cells, &columns]);
        let axis_2 = self.graph.ints("axis.2", &[2]);
        let [x, y] = [("x", x, step_x), ("y", y, step_y)].map(|(axis, index, step)| {
            let name = |word: &str| name(&format!("{axis}.{word}"));
            let mut center = self.float_of(&name("float"), &index);
            if spec.center == AnchorCenter::Half {
                let half = self.float("detections.half", 0.5);
                center = self.node("Add", &name("center"), &[&center, &half]);
            }
            let center = self.node("Mul", &name("pixels"), &[&center, &step]);
            self.node("Unsqueeze", &name("pixels.2"), &[&center, &axis_2])
        });
        let centers = self.concat(&name("centers"), &[x.clone(), y.clone(), x, y], 2);
        self.node("Add", &name("anchors"), &[&corners, &centers])
    }

    /// Number of rows (axis 0) or columns (axis 1) of cells of a level, and their distance in pixels as a float.
    fn cells_and_step(&mut self, level: usize, axis: usize) -> (String, String) {
        let stride = 8 << level;
        let name = |word: &str| format!("P{}.{}.{word}", level + 3, ["rows", "columns"][axis]);
        let is_fitted = self.spec.anchors.stride == AnchorStride::Fitted;
        if let Some(size) = self.size {
            let cells = size[axis].div_ceil(stride);
            let step = if is_fitted { size[axis] / cells } else { stride };
            let cells = self.graph.ints(&format!("detections.{}", name("count")), &[cells as i64]);
            return (cells, self.float(&format!("detections.{}", name("step")), step as f32));
        }
        let side = self.side(axis);
        let [rest, divisor] =
            [stride - 1, stride].map(|number| self.graph.ints(&format!("int.{number}.1"), &[number as i64]));
        let extended = self.node("Add", &name("extended"), &[&side, &rest]);
        let cells = self.node("Div", &name("count"), &[&extended, &divisor]);
        let step = if is_fitted {
            let step = self.node("Div", &name("step"), &[&side, &cells]);
            self.float_of(&name("step.float"), &step)
        } else {
            self.float(&format!("detections.{}", name("step")), stride as f32)
        };
        (cells, step)
    }

    /// Height (axis 0) or width (axis 1) of the input, `[1]` int64.
    fn side(&mut self, axis: usize) -> String {
        let shape = "detections.input_shape";
        if self.graph.node.iter().all(|node| node.name != shape) {
            self.node("Shape", "input_shape", &[IMAGES]);
        }
        let name = ["input_height", "input_width"][axis];
        if self.graph.node.iter().all(|node| node.name != format!("detections.{name}")) {
            let index = self.graph.ints(&format!("axis.{}", 2 + axis), &[2 + axis as i64]);
            self.with("Gather", name, &[shape, &index], [AttributeProto::int("axis", 0)]);
        }
        format!("detections.{name}")
    }

    /// The clipped boxes of the candidates, `[N, M, 4]`, and which have an area, `[N, M]`.
    fn boxes(&mut self, anchors: &str) -> (String, String) {
        let coder = &self.spec.box_coder;
        let halves = [("first", [0, 1]), ("last", [2, 3])];
        let columns = halves.map(|(name, columns)| self.graph.ints(&format!("detections.{name}"), &columns));
        let half_of = |tail: &mut Self, word: &str, value: &str, half: usize| {
            let name = format!("{word}.{}", halves[half].0);
            tail.with("Gather", &name, &[value, &columns[half]], [AttributeProto::int("axis", 2)])
        };
        let [low, high] = [0, 1].map(|half| half_of(self, "anchor", anchors, half));
        let [shifts, log_sides] = [0, 1].map(|half| half_of(self, "offset", REGRESSION, half));
        let [x_std, y_std, width_std, height_std] = coder.std;
        let half = self.float("detections.half", 0.5);

        let sides = self.node("Sub", "anchor.sides", &[&high, &low]);
        let half_sides = self.node("Mul", "anchor.half_sides", &[&half, &sides]);
        let centers = self.node("Add", "anchor.centers", &[&low, &half_sides]);
        let std = self.graph.add_constant(TensorProto::vector("detections.shift_std", vec![x_std, y_std]));
        let shifts = self.node("Mul", "shifts", &[&shifts, &std]);
        let shifts = self.node("Mul", "shifts.pixels", &[&shifts, &sides]);
        let centers = self.node("Add", "centers", &[&centers, &shifts]);
        let std = self.graph.add_constant(TensorProto::vector("detections.side_std", vec![width_std, height_std]));
        let mut log_sides = self.node("Mul", "log_sides", &[&log_sides, &std]);
        if let Some(clamp) = coder.clamp {
            let clamp = self.float("detections.clamp", clamp);
            log_sides = self.node("Min", "log_sides.clamped", &[&log_sides, &clamp]);
        }
        let factors = self.node("Exp", "side_factors", &[&log_sides]);
        let factors = self.node("Mul", "half_side_factors", &[&half, &factors]);
        let half_sides = self.node("Mul", "half_sides", &[&factors, &sides]);
        let low = self.node("Sub", "low", &[&centers, &half_sides]);
        let high = self.node("Add", "high", &[&centers, &half_sides]);

        let zero = self.float("zero", 0.0);
        let limits = self.limits();
        let low = self.node("Max", "low.clipped", &[&low, &zero]);
        let high = self.node("Min", "high.clipped", &[&high, &limits]);
        let sides = self.node("Sub", "sides", &[&high, &low]);
        let attributes = [AttributeProto::ints("axes", [2]), AttributeProto::int("keepdims", 0)];
        let shorter = self.with("ReduceMin", "shorter_sides", &[&sides], attributes);
        let is_valid = self.node("Greater", "is_valid", &[&shorter, &zero]);
        (self.concat("clipped", &[low, high], 2), is_valid)
    }

    /// Width and height that boxes are clipped to, `[N, 1, 2]` or `[2]`.
    fn limits(&mut self) -> String {
        let swapped = self.graph.ints("detections.swapped", &[1, 0]);
        match (self.spec.postprocessing.clip, self.size) {
            (Clip::Image, _) => {
                add_sizes(self.graph);
                let limits = self.with("Gather", "limits", &[SIZES, &swapped], [AttributeProto::int("axis", 1)]);
                let limits = self.float_of("limits.float", &limits);
                let axis = self.graph.ints("axis.1", &[1]);
                self.node("Unsqueeze", "limits.1", &[&limits, &axis])
            }
            (Clip::Padded, Some([height, width])) => {
                let limits = vec![width as f32, height as f32];
                self.graph.add_constant(TensorProto::vector("detections.limits", limits))
            }
            (Clip::Padded, None) => {
                let [height, width] = [0, 1].map(|axis| self.side(axis));
                let limits = self.concat("limits", &[width, height], 0);
                self.float_of("limits.float", &limits)
            }
        }
    }

    /// The scores of the candidates after NMS, `[N, M]`: zero for those that it removes, and beyond the `max` highest of a class.
    fn suppress(&mut self, boxes: &str, scores: &str, max: &str) -> String {
        let rules = &self.spec.postprocessing;
        let zero = self.float("zero", 0.0);
        let axis_1 = self.graph.ints("axis.1", &[1]);
        let mut class_scores = self.node("Unsqueeze", "scores.1", &[scores, &axis_1]);
        if rules.suppression == Suppression::PerClass {
            let classes = self.node("Unsqueeze", "classes.1", &[CANDIDATE_CLASSES, &axis_1]);
            let ids: Vec<i64> = (0..self.spec.class_count() as i64).collect();
            let ids = TensorProto::new("detections.class_ids", [1, ids.len() as i64, 1], ids);
            let ids = self.graph.add_constant(ids);
            let is_class = self.node("Equal", "is_class", &[&classes, &ids]);
            class_scores = self.node("Where", "class_scores", &[&is_class, &class_scores, &zero]);
        }
        let iou = self.graph.add_constant(TensorProto::vector("detections.iou", vec![rules.nms_threshold]));
        let above = self.graph.add_constant(TensorProto::vector("detections.above", vec![0f32]));
        let kept = self.node("NonMaxSuppression", "nms", &[boxes, &class_scores, max, &iou, &above]);

        // Of image, class and candidate, the class is that of the candidate.
        let columns = self.graph.ints("detections.columns", &[0, 2]);
        let kept = self.with("Gather", "kept", &[&kept, &columns], [AttributeProto::int("axis", 1)]);
        let kept_scores = self.node("GatherND", "kept_scores", &[scores, &kept]);
        let shape = self.node("Shape", "scores.shape", &[scores]);
        let zeros = self.node("ConstantOfShape", "zeros", &[&shape]);
        self.node("ScatterND", "all_scores", &[&zeros, &kept, &kept_scores])
    }

    /// Adds a node without attributes, called `detections.NAME`.
    fn node(&mut self, op_type: &str, name: &str, inputs: &[&str]) -> String {
        self.with(op_type, name, inputs, [])
    }

    /// Adds a node called `detections.NAME`.
    fn with(
        &mut self,
        op_type: &str,
        name: &str,
        inputs: &[&str],
        attributes: impl Into<Vec<AttributeProto>>,
    ) -> String {
        self.graph.add_node(op_type, &format!("detections.{name}"), inputs, attributes)
    }

    /// Concatenates values along an axis.
    fn concat(&mut self, name: &str, parts: &[String], axis: i64) -> String {
        let parts: Vec<_> = parts.iter().map(String::as_str).collect();
        self.with("Concat", name, &parts, [AttributeProto::int("axis", axis)])
    }

    /// A value as float32.
    fn float_of(&mut self, name: &str, value: &str) -> String {
        self.with("Cast", name, &[value], [AttributeProto::int("to", DataType::Float as i64)])
    }

    /// A constant number.
    fn float(&mut self, name: &str, value: f32) -> String {
        self.graph.add_constant(TensorProto::scalar(name, value))
    }
}
