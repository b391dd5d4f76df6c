//! Candidates: the file outputs only the highest scores of each feature level, so that a few thousand numbers are
//! copied from GPU to CPU instead of all anchors times all classes.
//!
//! Each level has two stages. The anchor of each of the `k` highest scores is one of the `k` anchors with the highest
//! maximum score (of equal ones, the first). So the first stage selects anchors, and the second selects among the
//! scores of these anchors. The selected anchors are sorted by index, so that equal scores are ordered by anchor and
//! class, as in `runtime`.

use models::ModelSpec;
use models::onnx_contract::{CANDIDATE_ANCHORS, CANDIDATE_CLASSES, CANDIDATE_SCORES, CLASSIFICATION, REGRESSION};

use crate::onnx::{AttributeProto, DataType, Dimension, GraphProto, NodeProto, TensorProto, ValueInfoProto};

/// Replaces scores and offsets of all anchors by those of candidates, at most `top_k` per level. `levels` is the number
/// of anchors of each level, if known.
pub(super) fn select_candidates(graph: &mut GraphProto, spec: &ModelSpec, top_k: usize, levels: Option<[usize; 5]>) {
    let scores = Joined::take(graph, CLASSIFICATION);
    let offsets = Joined::take(graph, REGRESSION);
    let mut selection = Selection { graph, classes: spec.class_count(), top_k };
    let mut first: Option<String> = None;
    let mut selected = Vec::new();
    for (index, (scores_part, offsets_part)) in scores.parts.iter().zip(&offsets.parts).enumerate() {
        let level = Level {
            name: format!("P{}", index + 3),
            scores: selection.repeat(&scores.after, scores_part),
            offsets: offsets_part.clone(),
            anchors: levels.map(|levels| levels[index]),
            end: levels.map(|levels| levels[..=index].iter().sum()),
        };
        let sizes = selection.sizes(&level);
        selected.push(selection.choose(&level, &sizes, first.as_deref()));
        if index + 1 < scores.parts.len() {
            first = Some(selection.end(&level, &sizes, first));
        }
    }
    let join = |part: fn(&Selected) -> &String| selected.iter().map(part).cloned().collect::<Vec<_>>();

    let all = selection.join("candidates", join(|selected| &selected.scores));
    let threshold = TensorProto::scalar("score_threshold", spec.postprocessing.score_threshold);
    let threshold = selection.graph.add_constant(threshold);
    let zero = selection.graph.add_constant(TensorProto::scalar("zero", 0f32));
    let above = selection.node("Greater", "candidates.above", &[&all, &threshold], &[]);
    selection.node("Where", CANDIDATE_SCORES, &[&above, &all, &zero], &[]);
    selection.join(CANDIDATE_ANCHORS, join(|selected| &selected.anchors));
    selection.join(CANDIDATE_CLASSES, join(|selected| &selected.classes));
    let Joined { mut concat, after, .. } = offsets;
    concat.input = join(|selected| &selected.offsets);
    graph.node.push(concat);
    graph.node.extend(after);
    graph.output = outputs();
    graph.drop_unused_constants();
}

fn outputs() -> Vec<ValueInfoProto> {
    let rows = [Dimension::dynamic("N"), Dimension::dynamic("M")];
    let offsets: Vec<_> = rows.iter().cloned().chain([Dimension::fixed(4)]).collect();
    let scores = "scores of the candidates, in (0, 1), in order of level P3 to P7, then highest first; 0 means none";
    let regression = "offsets of x, y, log width and log height from the candidate's anchor, in the box coder's units";
    vec![
        ValueInfoProto::new(CANDIDATE_SCORES, DataType::Float, rows.clone(), scores),
        ValueInfoProto::new(CANDIDATE_ANCHORS, DataType::Int64, rows.clone(), "anchor indices of the candidates"),
        ValueInfoProto::new(CANDIDATE_CLASSES, DataType::Int64, rows, "class indices of the candidates"),
        ValueInfoProto::new(REGRESSION, DataType::Float, offsets, regression),
    ]
}

/// An output that concatenates the values of all levels.
struct Joined {
    /// The concatenated values, each `[N, rows, width]`.
    parts: Vec<String>,
    concat: NodeProto,
    /// The element-wise nodes after the concatenation, in order.
    after: Vec<NodeProto>,
}

impl Joined {
    /// Removes the node that concatenates the levels of an output, and those after it, from `graph`.
    fn take(graph: &mut GraphProto, output: &str) -> Self {
        let mut after = Vec::new();
        let mut value = output.to_owned();
        loop {
            let index = graph.node.iter().position(|node| node.output[0] == value);
            let node = graph.node.remove(index.expect("each output is a Concat of the levels or follows one"));
            if node.op_type == "Concat" {
                after.reverse();
                return Self { parts: node.input.clone(), concat: node, after };
            }
            value.clone_from(&node.input[0]);
            after.push(node);
        }
    }
}

/// One feature level.
struct Level {
    name: String,
    /// `[N, anchors, classes]`.
    scores: String,
    /// `[N, anchors, 4]`.
    offsets: String,
    /// Number of anchors, if known.
    anchors: Option<usize>,
    /// Number of anchors of this level and those before it, if known.
    end: Option<usize>,
}

/// The candidates of one level.
struct Selected {
    /// `[N, k]`.
    scores: String,
    /// `[N, k]`, indices into the anchors of all levels.
    anchors: String,
    /// `[N, k]`.
    classes: String,
    /// `[N, k, 4]`.
    offsets: String,
}

/// A graph to which the selection of candidates is added.
struct Selection<'a> {
    graph: &'a mut GraphProto,
    classes: usize,
    top_k: usize,
}

impl Selection<'_> {
    /// Adds the selection of one level. `first` is the number of anchors of the levels before it, if any.
    fn choose(&mut self, level: &Level, sizes: &Sizes, first: Option<&str>) -> Selected {
        let name = |word: &str| format!("{}.{word}", level.name);
        let axis = [AttributeProto::int("axis", 1)];
        let best_of_anchor = [AttributeProto::ints("axes", [2]), AttributeProto::int("keepdims", 0)];

        let best = self.node("ReduceMax", &name("best"), &[&level.scores], &best_of_anchor);
        let [_, anchors] = self.graph.add_top_k(&name("best_anchors"), &best, &sizes.anchors);
        let [anchors, _] = self.graph.add_lowest_k(&name("picked_anchors"), &anchors, &sizes.anchors);
        let scores = self.graph.gather_rows(&name("picked_scores"), &level.scores, &anchors);
        let flat = self.graph.ints("shape.same.rest", &[0, -1]);
        let scores = self.node("Reshape", &name("picked_scores.flat"), &[&scores, &flat], &[]);
        let [scores, columns] = self.graph.add_top_k(&name("candidates"), &scores, &sizes.candidates);

        let classes = self.graph.ints("class_count", &[self.classes as i64]);
        let picks = self.node("Div", &name("candidates.picks"), &[&columns, &classes], &[]);
        let classes = self.node("Mod", &name("candidates.classes"), &[&columns, &classes], &[]);
        let rows = self.node("GatherElements", &name("candidates.rows"), &[&anchors, &picks], &axis);
        let offsets = self.graph.gather_rows(&name("candidates.offsets"), &level.offsets, &rows);

        let anchors = match first {
            None => rows,
            Some(first) => self.node("Add", &name("candidates.anchors"), &[&rows, first], &[]),
        };
        Selected { scores, anchors, classes, offsets }
    }

    /// The number of anchors of this level and those before it. `first` is the number of those before it.
    fn end(&mut self, level: &Level, sizes: &Sizes, first: Option<String>) -> String {
        let name = format!("{}.end", level.name);
        match (level.end, first) {
            (Some(end), _) => self.graph.ints(&name, &[end as i64]),
            (None, None) => sizes.all.clone(),
            (None, Some(first)) => self.node("Add", &name, &[&first, &sizes.all], &[]),
        }
    }

    /// The numbers of anchors, selected anchors and candidates of a level.
    fn sizes(&mut self, level: &Level) -> Sizes {
        let name = |word: &str| format!("{}.{word}", level.name);
        if let Some(all) = level.anchors {
            let anchors = all.min(self.top_k);
            let candidates = self.top_k.min(anchors * self.classes);
            let mut constant = |word, size: usize| self.graph.ints(&name(word), &[size as i64]);
            return Sizes {
                all: constant("anchor_count", all),
                anchors: constant("picked_count", anchors),
                candidates: constant("candidate_count", candidates),
            };
        }
        let top_k = self.graph.ints("top_k", &[self.top_k as i64]);
        let classes = self.graph.ints("class_count", &[self.classes as i64]);
        let axis = self.graph.ints("axis.1", &[1]);
        let shape = self.node("Shape", &name("shape"), &[&level.scores], &[]);
        let all = self.node("Gather", &name("anchor_count"), &[&shape, &axis], &[AttributeProto::int("axis", 0)]);
        let anchors = self.node("Min", &name("picked_count"), &[&all, &top_k], &[]);
        let scores = self.node("Mul", &name("score_count"), &[&anchors, &classes], &[]);
        let candidates = self.node("Min", &name("candidate_count"), &[&scores, &top_k], &[]);
        Sizes { all, anchors, candidates }
    }

    /// Applies the operators of `nodes`, one after another, to another value.
    fn repeat(&mut self, nodes: &[NodeProto], value: &str) -> String {
        nodes.iter().fold(value.to_owned(), |value, node| {
            let inputs: Vec<_> = std::iter::once(&value).chain(&node.input[1..]).map(String::as_str).collect();
            let name = format!("{value}.{}", node.op_type.to_lowercase());
            self.node(&node.op_type, &name, &inputs, &node.attribute)
        })
    }

    /// Concatenates the values of the levels.
    fn join(&mut self, name: &str, parts: Vec<String>) -> String {
        let parts: Vec<_> = parts.iter().map(String::as_str).collect();
        self.node("Concat", name, &parts, &[AttributeProto::int("axis", 1)])
    }

    /// Adds a node. It and its output are called `name`.
    fn node(&mut self, op_type: &str, name: &str, inputs: &[&str], attributes: &[AttributeProto]) -> String {
        self.graph.add_node(op_type, name, inputs, attributes)
    }
}

/// Counts of one level, each a vector of one element.
struct Sizes {
    /// Number of anchors.
    all: String,
    /// Number of selected anchors.
    anchors: String,
    /// Number of candidates.
    candidates: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{folded, node, spec, zeros};
    use models::spec::NormKind;
    use std::collections::HashSet;

    fn selecting(levels: Option<[usize; 5]>, change: impl FnOnce(&mut GraphProto)) -> GraphProto {
        let spec = spec(18, NormKind::Batch);
        let mut graph = folded(&spec, zeros(&spec));
        change(&mut graph);
        select_candidates(&mut graph, &spec, 50, levels);
        graph
    }

    #[test]
    fn names_are_unique_and_every_value_is_computed_before_it_is_read() {
        for levels in [None, Some([216, 54, 18, 9, 9])] {
            let graph = selecting(levels, |_| ());
            let mut known: HashSet<_> = graph.initializer.iter().map(|constant| constant.name.as_str()).collect();
            known.insert(models::onnx_contract::IMAGES);
            let mut names = HashSet::new();
            for node in &graph.node {
                assert!(names.insert(&node.name), "{node:?}");
                assert!(node.input.iter().all(|input| input.is_empty() || known.contains(input.as_str())), "{node:?}");
                assert!(node.output.iter().all(|value| known.insert(value)), "{node:?}");
            }
            let outputs: Vec<_> = graph.output.iter().map(|value| value.name.as_str()).collect();
            assert_eq!(outputs, ["scores", "anchors", "classes", "regression"]);
            assert!(outputs.iter().all(|name| known.contains(name)));
        }
    }

    #[test]
    fn fixed_sizes_are_constants_and_dynamic_ones_are_computed() {
        let graph = selecting(Some([216, 54, 18, 9, 9]), |_| ());
        assert!(graph.node.iter().all(|node| !["Shape", "Min"].contains(&node.op_type.as_str())));
        for (name, size) in [
            ("P3.picked_count", 50i64),
            ("P3.candidate_count", 50),
            ("P6.picked_count", 9),
            ("P6.candidate_count", 18),
            ("P3.end", 216),
            ("P6.end", 297),
        ] {
            assert_eq!(graph.constant(name), Some(&TensorProto::vector(name, vec![size])), "{name}");
        }
        assert!(graph.constant("P7.end").is_none());
        let graph = selecting(None, |_| ());
        assert_eq!(node(&graph, "P3.picked_count").input, ["P3.anchor_count", "top_k"]);
        assert_eq!(graph.constant("top_k"), Some(&TensorProto::vector("top_k", vec![50i64])));
    }

    #[test]
    fn levels_are_found_with_and_without_a_sigmoid_after_the_concat() {
        let graph = selecting(None, |_| ());
        assert_eq!(node(&graph, "P4.best").input, ["classificationModel.output_1.per_anchor.sigmoid"]);
        assert_eq!(node(&graph, "classificationModel.output_1.per_anchor.sigmoid").op_type, "Sigmoid");
        assert!(graph.node.iter().all(|node| node.output[0] != CLASSIFICATION));

        // The Concat is the output, as if a sigmoid had been applied to each level before it.
        let graph = selecting(None, |graph| {
            graph.node.iter_mut().for_each(|node| match node.op_type.as_str() {
                "Sigmoid" => node.output[0] = "unused".to_owned(),
                "Concat" if node.name.starts_with("classification") => node.output[0] = CLASSIFICATION.to_owned(),
                _ => {}
            });
        });
        assert_eq!(node(&graph, "P4.best").input, ["classificationModel.output_1.per_anchor"]);
    }
}
