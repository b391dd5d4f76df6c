//! The tensor names of other projects. This is the only place where names are translated.

/// A prefix of names elsewhere, and the prefix that replaces it here. The longest matching prefix applies.
type Rename = (String, String);

/// Projects with the same names as ours: yhenon/pytorch-retinanet, and torchvision's ResNets.
pub(super) fn ours() -> Vec<Rename> {
    vec![(String::new(), String::new())]
}

/// RetinaNets of torchvision and MLPerf. Where two rows have the same right side, the second is for torchvision before 0.13
/// and for MLPerf, where a convolution is named by its index among convolutions and activations.
pub(super) fn torchvision() -> Vec<Rename> {
    let mut table = Vec::new();
    let mut row = |theirs: String, ours: String| table.push((theirs, ours));
    row("backbone.body.".to_owned(), String::new());
    for (blocks, conv) in [("inner_blocks", 1), ("layer_blocks", 2)] {
        for index in 0..3 {
            row(format!("backbone.fpn.{blocks}.{index}.0."), format!("fpn.P{}_{conv}.", index + 3));
            row(format!("backbone.fpn.{blocks}.{index}."), format!("fpn.P{}_{conv}.", index + 3));
        }
    }
    row("backbone.fpn.extra_blocks.p6.".to_owned(), "fpn.P6.".to_owned());
    row("backbone.fpn.extra_blocks.p7.".to_owned(), "fpn.P7_2.".to_owned());
    for (head, output) in [("classification", "cls_logits"), ("regression", "bbox_reg")] {
        for index in 0..4 {
            let layer = |kind: &str| format!("{head}Model.{kind}{}.", index + 1);
            row(format!("head.{head}_head.conv.{index}.0."), layer("conv"));
            row(format!("head.{head}_head.conv.{}.", 2 * index), layer("conv"));
            row(format!("head.{head}_head.conv.{index}.1."), layer("norm"));
        }
        row(format!("head.{head}_head.{output}."), format!("{head}Model.output."));
    }
    table
}

/// Suffixes of tensors that the network does not need, and what they are.
pub(super) const NEEDLESS: &[(&str, &str)] = &[
    (".num_batches_tracked", "counters of training steps"),
    ("fc.weight", "the image classifier"),
    ("fc.bias", "the image classifier"),
];

/// Our name for their `name`; none if no row matches.
pub(super) fn translate(table: &[Rename], name: &str) -> Option<String> {
    let fitting =
        table.iter().filter_map(|(theirs, ours)| Some((theirs.len(), ours, name.strip_prefix(theirs.as_str())?)));
    fitting.max_by_key(|(length, ..)| *length).map(|(_, ours, rest)| format!("{ours}{rest}"))
}

/// Their name for our `name`; the newest one if the table has several.
pub(super) fn translate_back(table: &[Rename], name: &str) -> String {
    let fitting =
        table.iter().rev().filter_map(|(theirs, ours)| Some((ours.len(), theirs, name.strip_prefix(ours.as_str())?)));
    fitting
        .max_by_key(|(length, ..)| *length)
        .map_or_else(|| name.to_owned(), |(_, theirs, rest)| format!("{theirs}{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn translate_knows_old_and_new_names_of_torchvision() {
        for (theirs, ours) in [
            ("backbone.body.layer1.0.bn1.weight", "layer1.0.bn1.weight"),
            ("backbone.fpn.inner_blocks.0.0.weight", "fpn.P3_1.weight"),
            ("backbone.fpn.inner_blocks.0.weight", "fpn.P3_1.weight"),
            ("backbone.fpn.layer_blocks.2.bias", "fpn.P5_2.bias"),
            ("head.classification_head.conv.2.0.weight", "classificationModel.conv3.weight"),
            ("head.classification_head.conv.2.weight", "classificationModel.conv2.weight"),
            ("head.regression_head.conv.0.1.bias", "regressionModel.norm1.bias"),
            ("head.regression_head.conv.6.bias", "regressionModel.conv4.bias"),
            ("head.regression_head.bbox_reg.bias", "regressionModel.output.bias"),
        ] {
            assert_eq!(translate(&torchvision(), theirs).as_deref(), Some(ours));
        }
        assert_eq!(translate(&torchvision(), "rpn.head.conv.weight"), None);
    }

    #[test]
    fn translate_back_gives_the_newest_names() {
        for (theirs, ours) in [
            ("backbone.body.layer1.0.bn1.weight", "layer1.0.bn1.weight"),
            ("backbone.fpn.inner_blocks.0.0.weight", "fpn.P3_1.weight"),
            ("head.classification_head.conv.2.0.weight", "classificationModel.conv3.weight"),
        ] {
            assert_eq!(translate_back(&torchvision(), ours), theirs);
        }
        assert_eq!(translate_back(&ours(), "fpn.P6.bias"), "fpn.P6.bias");
    }
}
