//! The report of an import, as lines of text.

use std::collections::BTreeMap;

use super::architecture::Network;
use super::classes::ClassSource;
use super::key_map::{CLASSIFIER, KeyMap};
use crate::spec::{ModelSpec, P6From};
use crate::weights::grouped;

impl KeyMap {
    /// How every tensor is used, and what the spec is based on, apart from the assumptions.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("kind {}: {}", self.kind, self.reason)];
        lines.extend(self.tensors());
        lines.extend(self.meaning());
        lines
    }

    fn tensors(&self) -> Vec<String> {
        let mut matched = Vec::new();
        let mut created = Vec::new();
        let mut converted: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for step in &self.steps {
            let name = step.name.as_str();
            let Some((_, dtype)) = &step.source else {
                created.push(name);
                continue;
            };
            let rows = self.class_outputs.as_ref().filter(|_| name.starts_with(CLASSIFIER));
            let rows = rows.map(|outputs| format!("{} outputs to {} classes", outputs.all, outputs.indices.len()));
            let dtype = (dtype != "F32").then(|| format!("{dtype} to F32"));
            let channels = self.swaps_channels(name).then(|| "BGR to RGB".to_owned());
            let changes: Vec<_> = [dtype, rows, channels].into_iter().flatten().collect();
            if changes.is_empty() {
                matched.push(name);
            } else {
                converted.entry(changes.join(", ")).or_default().push(name);
            }
        }
        let mut lines = vec![listed("matched", "", &matched)];
        lines.extend(converted.iter().map(|(change, names)| listed("converted", change, names)));
        if !created.is_empty() {
            lines.push(listed("created", "zero biases, which the file's convolutions do not have", &created));
        }
        lines.push("missing: none".to_owned());
        lines.extend(self.dropped.iter().map(|(what, names)| listed("dropped", what, names)));
        lines.push(listed("unexpected", "ignored", &self.unexpected));
        lines
    }

    fn meaning(&self) -> Vec<String> {
        let backbone = self.network.backbone();
        let residual = match (backbone.groups, backbone.width_per_group) {
            (1, 64) => format!("ResNet-{}", backbone.depth),
            (groups, width) => format!("ResNet-{} with {groups} groups of width {width}", backbone.depth),
        };
        let Network::Detector(spec) = &self.network else {
            return vec![
                format!("from the tensor shapes: {residual}"),
                format!("assumed: norm epsilon {}, ImageNet mean and std", backbone.norm.epsilon),
                "a backbone, not a detector; a training can start from it".to_owned(),
            ];
        };
        let ModelSpec { pyramid, heads, preprocessing, postprocessing, classes, .. } = spec.as_ref();
        let p6 = if pyramid.p6_from == P6From::C5 { "C5" } else { "P5" };
        let norms = if heads.norm.is_some() { "with" } else { "without" };
        let sides = match preprocessing.fixed_size {
            Some([height, width]) => format!("{height}x{width}"),
            None => format!("{} to {}", preprocessing.shorter_side, preprocessing.longer_side),
        };
        let names: Vec<_> = classes.iter().take(3).map(|class| class.name.as_str()).collect();
        let more = if classes.len() > names.len() { ", ..." } else { "" };
        let place = match &self.class_source {
            Some(ClassSource::Labels(place)) => format!(" (from {place})"),
            _ => String::new(),
        };
        vec![
            format!("from the tensor shapes: {residual}, P6 from {p6}, heads {norms} norm layers"),
            format!(
                "from {}: norm epsilon {}, anchors, box coder, image sides {sides}, score threshold {}, NMS IoU {}",
                self.kind, backbone.norm.epsilon, postprocessing.score_threshold, postprocessing.nms_threshold
            ),
            format!("{} classes: {}{more}{place}", classes.len(), names.join(", ")),
        ]
    }
}

/// A line with a number of tensors and their names, grouped by layer or block.
fn listed(what: &str, why: &str, names: &[impl AsRef<str>]) -> String {
    let why = if why.is_empty() { String::new() } else { format!(" ({why})") };
    match names {
        [] => format!("{what}: none"),
        _ => format!("{what} {}{why}: {}", names.len(), grouped(names)),
    }
}
