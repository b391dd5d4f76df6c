//! The tensor names of other projects. This is the only place where names are translated.

/// A prefix of names elsewhere, and the prefix that replaces it here. The longest matching prefix applies.
type Rename = (&'static str, &'static str);

/// Projects with the same names as ours: yhenon/pytorch-retinanet, and torchvision's ResNets.
pub(super) const OURS: &[Rename] = &[("", "")];

/// RetinaNets of torchvision and MLPerf. Where two rows have the same right side, the second is for torchvision before 0.13
/// and for MLPerf, where a convolution is named by its index among convolutions and activations.
pub(super) const TORCHVISION: &[Rename] = &[
    ("backbone.body.", ""),
    ("backbone.fpn.inner_blocks.0.0.", "fpn.P3_1."),
    ("backbone.fpn.inner_blocks.0.", "fpn.P3_1."),
    ("backbone.fpn.inner_blocks.1.0.", "fpn.P4_1."),
    ("backbone.fpn.inner_blocks.1.", "fpn.P4_1."),
    ("backbone.fpn.inner_blocks.2.0.", "fpn.P5_1."),
    ("backbone.fpn.inner_blocks.2.", "fpn.P5_1."),
    ("backbone.fpn.layer_blocks.0.0.", "fpn.P3_2."),
    ("backbone.fpn.layer_blocks.0.", "fpn.P3_2."),
    ("backbone.fpn.layer_blocks.1.0.", "fpn.P4_2."),
    ("backbone.fpn.layer_blocks.1.", "fpn.P4_2."),
    ("backbone.fpn.layer_blocks.2.0.", "fpn.P5_2."),
    ("backbone.fpn.layer_blocks.2.", "fpn.P5_2."),
    ("backbone.fpn.extra_blocks.p6.", "fpn.P6."),
    ("backbone.fpn.extra_blocks.p7.", "fpn.P7_2."),
    ("head.classification_head.conv.0.0.", "classificationModel.conv1."),
    ("head.classification_head.conv.0.", "classificationModel.conv1."),
    ("head.classification_head.conv.0.1.", "classificationModel.norm1."),
    ("head.classification_head.conv.1.0.", "classificationModel.conv2."),
    ("head.classification_head.conv.2.", "classificationModel.conv2."),
    ("head.classification_head.conv.1.1.", "classificationModel.norm2."),
    ("head.classification_head.conv.2.0.", "classificationModel.conv3."),
    ("head.classification_head.conv.4.", "classificationModel.conv3."),
    ("head.classification_head.conv.2.1.", "classificationModel.norm3."),
    ("head.classification_head.conv.3.0.", "classificationModel.conv4."),
    ("head.classification_head.conv.6.", "classificationModel.conv4."),
    ("head.classification_head.conv.3.1.", "classificationModel.norm4."),
    ("head.classification_head.cls_logits.", "classificationModel.output."),
    ("head.regression_head.conv.0.0.", "regressionModel.conv1."),
    ("head.regression_head.conv.0.", "regressionModel.conv1."),
    ("head.regression_head.conv.0.1.", "regressionModel.norm1."),
    ("head.regression_head.conv.1.0.", "regressionModel.conv2."),
    ("head.regression_head.conv.2.", "regressionModel.conv2."),
    ("head.regression_head.conv.1.1.", "regressionModel.norm2."),
    ("head.regression_head.conv.2.0.", "regressionModel.conv3."),
    ("head.regression_head.conv.4.", "regressionModel.conv3."),
    ("head.regression_head.conv.2.1.", "regressionModel.norm3."),
    ("head.regression_head.conv.3.0.", "regressionModel.conv4."),
    ("head.regression_head.conv.6.", "regressionModel.conv4."),
    ("head.regression_head.conv.3.1.", "regressionModel.norm4."),
    ("head.regression_head.bbox_reg.", "regressionModel.output."),
];

/// Suffixes of tensors that the network does not need, and what they are.
pub(super) const NEEDLESS: &[(&str, &str)] = &[
    (".num_batches_tracked", "counters of training steps"),
    ("fc.weight", "the image classifier"),
    ("fc.bias", "the image classifier"),
];

/// Our name for their `name`; none if no row matches.
pub(super) fn translate(table: &[Rename], name: &str) -> Option<String> {
    let fitting = table.iter().filter_map(|(theirs, ours)| Some((theirs.len(), ours, name.strip_prefix(theirs)?)));
    fitting.max_by_key(|(length, ..)| *length).map(|(_, ours, rest)| format!("{ours}{rest}"))
}

/// Their name for our `name`; the newest one if the table has several.
pub(super) fn translate_back(table: &[Rename], name: &str) -> String {
    let fitting = table.iter().rev().filter_map(|(theirs, ours)| Some((ours.len(), theirs, name.strip_prefix(ours)?)));
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
            assert_eq!(translate(TORCHVISION, theirs).as_deref(), Some(ours));
        }
        assert_eq!(translate(TORCHVISION, "rpn.head.conv.weight"), None);
    }

    #[test]
    fn translate_back_gives_the_newest_names() {
        for (theirs, ours) in [
            ("backbone.body.layer1.0.bn1.weight", "layer1.0.bn1.weight"),
            ("backbone.fpn.inner_blocks.0.0.weight", "fpn.P3_1.weight"),
            ("head.classification_head.conv.2.0.weight", "classificationModel.conv3.weight"),
        ] {
            assert_eq!(translate_back(TORCHVISION, ours), theirs);
        }
        assert_eq!(translate_back(OURS, "fpn.P6.bias"), "fpn.P6.bias");
    }
}
