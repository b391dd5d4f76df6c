//! Candidates: the file outputs only the highest scores of each feature level, so that a few thousand numbers are
//! copied from GPU to CPU instead of all anchors times all classes.
//!
//! Each level has two stages. The anchor of each of the `k` highest scores is one of the `k` anchors with the highest
//! maximum score (of equal ones, the first). So the first stage selects anchors, and the second selects among the
//! scores of these anchors. The selected anchors are sorted by index, so that equal scores are ordered by anchor and
//! class, as in `runtime`.

use models::ModelSpec;
use models::onnx_contract::{CANDIDATE_ANCHORS, CANDIDATE_CLASSES, CANDIDATE_SCORES, CLASSIFICATION, REGRESSION};

use crate::graph::{Attribute, Constant, ElementType, Elements, Graph, Node, Port, Side};

/// Replaces scores and offsets of all anchors by those of candidates, at most `top_k` per level. `levels` is the number
/// of anchors of each level, if known.
pub(super) fn hand_over_candidates(graph: &mut Graph, spec: &ModelSpec, top_k: usize, levels: Option<[usize; 5]>) {
    let scores = Joined::take(graph, CLASSIFICATION);
    let offsets = Joined::take(graph, REGRESSION);
    let mut selection = Selection { graph, classes: spec.class_count(), top_k };
    let mut first: Option<String> = None;
    let mut chosen = Vec::new();
    for (index, (scores_part, offsets_part)) in scores.parts.iter().zip(&offsets.parts).enumerate() {
        let level = Level {
            name: format!("P{}", index + 3),
            scores: selection.repeat(&scores.after, scores_part),
            offsets: offsets_part.clone(),
            anchors: levels.map(|levels| levels[index]),
            end: levels.map(|levels| levels[..=index].iter().sum()),
        };
        let sizes = selection.sizes(&level);
        chosen.push(selection.choose(&level, &sizes, first.as_deref()));
        if index + 1 < scores.parts.len() {
            first = Some(selection.end(&level, &sizes, first));
        }
    }
    let join = |part: fn(&Chosen) -> &String| chosen.iter().map(part).cloned().collect::<Vec<_>>();

    let all = selection.join("candidates", join(|chosen| &chosen.scores));
    let threshold = Constant::scalar(Elements::Float(vec![spec.postprocessing.score_threshold]));
    let threshold = selection.constant("score_threshold", threshold);
    let zero = selection.constant("zero", Constant::scalar(Elements::Float(vec![0.0])));
    let above = selection.node("Greater", "candidates.above", &[&all, &threshold], &[]);
    selection.node("Where", CANDIDATE_SCORES, &[&above, &all, &zero], &[]);
    selection.join(CANDIDATE_ANCHORS, join(|chosen| &chosen.anchors));
    selection.join(CANDIDATE_CLASSES, join(|chosen| &chosen.classes));
    let Joined { mut concat, after, .. } = offsets;
    concat.inputs = join(|chosen| &chosen.offsets);
    graph.nodes.push(concat);
    graph.nodes.extend(after);
    graph.outputs = ports();
    graph.drop_unused_constants();
}

fn ports() -> Vec<Port> {
    let port = |name, elements, width: Option<usize>, meaning: &str| Port {
        name,
        elements,
        shape: [Side::Dynamic("N"), Side::Dynamic("M")].into_iter().chain(width.map(Side::Fixed)).collect(),
        meaning: meaning.to_owned(),
    };
    vec![
        port(
            CANDIDATE_SCORES,
            ElementType::Float,
            None,
            "scores of the candidates, in (0, 1), in order of level P3 to P7, then highest first; 0 means none",
        ),
        port(CANDIDATE_ANCHORS, ElementType::Int, None, "anchor indices of the candidates"),
        port(CANDIDATE_CLASSES, ElementType::Int, None, "class indices of the candidates"),
        port(
            REGRESSION,
            ElementType::Float,
            Some(4),
            "offsets of x, y, log width and log height from the candidate's anchor, in the box coder's units",
        ),
    ]
}

/// An output that concatenates the values of all levels.
struct Joined {
    /// The concatenated values, each `[N, rows, width]`.
    parts: Vec<String>,
    concat: Node,
    /// The element-wise nodes after the concatenation, in order.
    after: Vec<Node>,
}

impl Joined {
    /// Removes the node that concatenates the levels of an output, and those after it, from `graph`.
    fn take(graph: &mut Graph, output: &str) -> Self {
        let mut after = Vec::new();
        let mut value = output.to_owned();
        loop {
            let place = graph.nodes.iter().position(|node| node.output == value);
            let node = graph.nodes.remove(place.expect("each output is a Concat of the levels or follows one"));
            if node.operator == "Concat" {
                after.reverse();
                return Self { parts: node.inputs.clone(), concat: node, after };
            }
            value.clone_from(&node.inputs[0]);
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
struct Chosen {
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
    graph: &'a mut Graph,
    classes: usize,
    top_k: usize,
}

impl Selection<'_> {
    /// Adds the selection of one level. `first` is the number of anchors of the levels before it, if any.
    fn choose(&mut self, level: &Level, sizes: &Sizes, first: Option<&str>) -> Chosen {
        let name = |word: &str| format!("{}.{word}", level.name);
        let axis = [("axis", Attribute::Int(1))];
        let best_of_anchor = [("axes", Attribute::Ints(vec![2])), ("keepdims", Attribute::Int(0))];

        let best = self.node("ReduceMax", &name("best"), &[&level.scores], &best_of_anchor);
        let (_, anchors) = self.top_k(&name("best_anchors"), &best, &sizes.anchors, true);
        let (anchors, _) = self.top_k(&name("picked_anchors"), &anchors, &sizes.anchors, false);
        let scores = self.rows(&name("picked_scores"), &level.scores, &anchors);
        let flat = self.constant("shape.same.rest", Constant::ints(&[0, -1]));
        let scores = self.node("Reshape", &name("picked_scores.flat"), &[&scores, &flat], &[]);
        let (scores, places) = self.top_k(&name("candidates"), &scores, &sizes.candidates, true);

        let classes = self.constant("class_count", Constant::ints(&[self.classes as i64]));
        let picks = self.node("Div", &name("candidates.picks"), &[&places, &classes], &[]);
        let classes = self.node("Mod", &name("candidates.classes"), &[&places, &classes], &[]);
        let rows = self.node("GatherElements", &name("candidates.rows"), &[&anchors, &picks], &axis);
        let offsets = self.rows(&name("candidates.offsets"), &level.offsets, &rows);

        let anchors = match first {
            None => rows,
            Some(first) => self.node("Add", &name("candidates.anchors"), &[&rows, first], &[]),
        };
        Chosen { scores, anchors, classes, offsets }
    }

    /// The number of anchors of this level and those before it. `first` is the number of those before it.
    fn end(&mut self, level: &Level, sizes: &Sizes, first: Option<String>) -> String {
        let name = format!("{}.end", level.name);
        match (level.end, first) {
            (Some(end), _) => self.constant(&name, Constant::ints(&[end as i64])),
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
            let mut constant = |word, size: usize| self.constant(&name(word), Constant::ints(&[size as i64]));
            return Sizes {
                all: constant("anchor_count", all),
                anchors: constant("picked_count", anchors),
                candidates: constant("candidate_count", candidates),
            };
        }
        let top_k = self.constant("top_k", Constant::ints(&[self.top_k as i64]));
        let classes = self.constant("class_count", Constant::ints(&[self.classes as i64]));
        let axis = self.constant("axis.1", Constant::ints(&[1]));
        let shape = self.node("Shape", &name("shape"), &[&level.scores], &[]);
        let all = self.node("Gather", &name("anchor_count"), &[&shape, &axis], &[("axis", Attribute::Int(0))]);
        let anchors = self.node("Min", &name("picked_count"), &[&all, &top_k], &[]);
        let scores = self.node("Mul", &name("score_count"), &[&anchors, &classes], &[]);
        let candidates = self.node("Min", &name("candidate_count"), &[&scores, &top_k], &[]);
        Sizes { all, anchors, candidates }
    }

    /// The `k` largest or smallest values of every row, sorted, and their indices. Of equal values, the first come
    /// first.
    fn top_k(&mut self, name: &str, values: &str, k: &str, largest: bool) -> (String, String) {
        let attributes = [
            ("axis", Attribute::Int(1)),
            ("largest", Attribute::Int(i64::from(largest))),
            ("sorted", Attribute::Int(1)),
        ];
        let found = self.node("TopK", name, &[values, k], &attributes);
        let places = format!("{name}.places");
        self.graph.nodes.last_mut().expect("a node was just added").further.push(places.clone());
        (found, places)
    }

    /// Gathers rows of `values` `[N, rows, width]` by index `rows` `[N, k]`: `[N, k, width]`.
    fn rows(&mut self, name: &str, values: &str, rows: &str) -> String {
        let axes = self.constant("axis.2", Constant::ints(&[2]));
        let indices = self.node("Unsqueeze", &format!("{name}.indices"), &[rows, &axes], &[]);
        self.node("GatherND", name, &[values, &indices], &[("batch_dims", Attribute::Int(1))])
    }

    /// Applies the operators of `nodes`, one after another, to another value.
    fn repeat(&mut self, nodes: &[Node], value: &str) -> String {
        nodes.iter().fold(value.to_owned(), |value, node| {
            let inputs: Vec<_> = std::iter::once(&value).chain(&node.inputs[1..]).map(String::as_str).collect();
            let name = format!("{value}.{}", node.operator.to_lowercase());
            self.node(node.operator, &name, &inputs, &node.attributes)
        })
    }

    /// Concatenates the values of the levels.
    fn join(&mut self, name: &str, parts: Vec<String>) -> String {
        let parts: Vec<_> = parts.iter().map(String::as_str).collect();
        self.node("Concat", name, &parts, &[("axis", Attribute::Int(1))])
    }

    /// Adds a node. It and its output are called `name`.
    fn node(
        &mut self,
        operator: &'static str,
        name: &str,
        inputs: &[&str],
        attributes: &[(&'static str, Attribute)],
    ) -> String {
        self.graph.nodes.push(Node {
            name: name.to_owned(),
            operator,
            inputs: inputs.iter().map(|input| (*input).to_owned()).collect(),
            output: name.to_owned(),
            further: Vec::new(),
            attributes: attributes.to_vec(),
        });
        name.to_owned()
    }

    /// A constant. If the name is in use, the existing constant of that name.
    fn constant(&mut self, name: &str, constant: Constant) -> String {
        self.graph.initializers.entry(name.to_owned()).or_insert(constant);
        name.to_owned()
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
    use crate::fold::fold_batch_norms;
    use crate::testing::{spec, zeros};
    use crate::trace::trace;
    use models::spec::NormKind;
    use std::collections::HashSet;

    fn selecting(levels: Option<[usize; 5]>, change: impl FnOnce(&mut Graph)) -> Graph {
        let spec = spec(18, NormKind::Batch);
        let mut graph = trace(&spec, zeros(&spec)).unwrap();
        fold_batch_norms(&mut graph);
        change(&mut graph);
        hand_over_candidates(&mut graph, &spec, 50, levels);
        graph
    }

    fn node<'a>(graph: &'a Graph, name: &str) -> &'a Node {
        graph.nodes.iter().find(|node| node.name == name).unwrap_or_else(|| panic!("no node `{name}`"))
    }

    #[test]
    fn names_are_unique_and_every_value_is_computed_before_it_is_read() {
        for levels in [None, Some([216, 54, 18, 9, 9])] {
            let graph = selecting(levels, |_| ());
            let mut known: HashSet<_> = graph.initializers.keys().map(String::as_str).collect();
            known.insert(models::onnx_contract::IMAGES);
            let mut names = HashSet::new();
            for node in &graph.nodes {
                assert!(names.insert(&node.name), "{node:?}");
                assert!(node.inputs.iter().all(|input| input.is_empty() || known.contains(input.as_str())), "{node:?}");
                assert!(
                    std::iter::once(&node.output).chain(&node.further).all(|value| known.insert(value)),
                    "{node:?}"
                );
            }
            let outputs: Vec<_> = graph.outputs.iter().map(|port| port.name).collect();
            assert_eq!(outputs, ["scores", "anchors", "classes", "regression"]);
            assert!(outputs.iter().all(|name| known.contains(name)));
        }
    }

    #[test]
    fn fixed_sizes_are_constants_and_dynamic_ones_are_computed() {
        let graph = selecting(Some([216, 54, 18, 9, 9]), |_| ());
        assert!(graph.nodes.iter().all(|node| !["Shape", "Min"].contains(&node.operator)));
        for (name, size) in [
            ("P3.picked_count", 50),
            ("P3.candidate_count", 50),
            ("P6.picked_count", 9),
            ("P6.candidate_count", 18),
            ("P3.end", 216),
            ("P6.end", 297),
        ] {
            assert_eq!(graph.initializers[name], Constant::ints(&[size]), "{name}");
        }
        assert!(!graph.initializers.contains_key("P7.end"));
        let graph = selecting(None, |_| ());
        assert_eq!(node(&graph, "P3.picked_count").inputs, ["P3.anchor_count", "top_k"]);
        assert_eq!(graph.initializers["top_k"], Constant::ints(&[50]));
    }

    #[test]
    fn levels_are_found_with_and_without_a_sigmoid_after_the_concat() {
        let graph = selecting(None, |_| ());
        assert_eq!(node(&graph, "P4.best").inputs, ["classificationModel.output_1.per_anchor.sigmoid"]);
        assert_eq!(node(&graph, "classificationModel.output_1.per_anchor.sigmoid").operator, "Sigmoid");
        assert!(graph.nodes.iter().all(|node| node.output != CLASSIFICATION));

        // The Concat is the output, as if a sigmoid had been applied to each level before it.
        let graph = selecting(None, |graph| {
            graph.nodes.iter_mut().for_each(|node| match node.operator {
                "Sigmoid" => node.output = "unused".to_owned(),
                "Concat" if node.name.starts_with("classification") => node.output = CLASSIFICATION.to_owned(),
                _ => {}
            });
        });
        assert_eq!(node(&graph, "P4.best").inputs, ["classificationModel.output_1.per_anchor"]);
    }
}
