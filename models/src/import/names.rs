//! The tensor names of other projects. This is the only place where names are translated.

use super::kind::Naming;

/// A prefix of names elsewhere, and the prefix that replaces it here. The longest matching prefix applies.
pub(super) type Rename = (String, String);

/// Blocks in the longest stage of a ResNet.
const MAX_BLOCKS: usize = 36;

/// ODTK's backbones, whose names are part of the tensors' names.
const ODTK_BACKBONES: [&str; 7] = [
    "ResNet50FPN",
    "ResNet18FPN",
    "ResNet34FPN",
    "ResNet101FPN",
    "ResNet152FPN",
    "ResNeXt50_32x4dFPN",
    "ResNeXt101_32x8dFPN",
];

/// The table that maps the names of a project to ours.
pub(super) fn table(naming: Naming) -> Vec<Rename> {
    match naming {
        // Ours are yhenon/pytorch-retinanet's and those of torchvision's ResNets.
        Naming::Ours => vec![(String::new(), String::new())],
        Naming::Torchvision => torchvision(),
        Naming::Detectron2 => detectron2(),
        Naming::Mmdetection => mmdetection(),
        Naming::Odtk => odtk(),
    }
}

/// The parts of a network whose tensors a project names so. Unknown tensors in them mean that it is another network.
pub(super) fn parts(naming: Naming) -> &'static [&'static str] {
    match naming {
        Naming::Ours => &["fpn.", "regressionModel.", "classificationModel."],
        Naming::Torchvision | Naming::Detectron2 => &["backbone.", "head."],
        Naming::Mmdetection => &["backbone.", "neck.", "bbox_head."],
        Naming::Odtk => &["backbones.", "cls_head.", "box_head."],
    }
}

/// Whether a tensor of that name of ours belongs to the backbone.
pub(super) fn is_of_backbone(name: &str) -> bool {
    ["conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4."].iter().any(|start| name.starts_with(start))
}

/// RetinaNets of torchvision and MLPerf. Where two rows have the same right side, the second is for torchvision before 0.13
/// and for MLPerf, where a convolution is named by its index among convolutions and activations.
fn torchvision() -> Vec<Rename> {
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

/// Detectron2's RetinaNet: modeling/backbone/resnet.py, fpn.py and meta_arch/retinanet.py.
fn detectron2() -> Vec<Rename> {
    let mut table = Vec::new();
    let mut row = |theirs: String, ours: String| table.push((theirs, ours));
    row("backbone.bottom_up.stem.conv1.".to_owned(), "conv1.".to_owned());
    row("backbone.bottom_up.stem.conv1.norm.".to_owned(), "bn1.".to_owned());
    for (stage, block) in (1..=4).flat_map(|stage| (0..MAX_BLOCKS).map(move |block| (stage, block))) {
        let theirs = format!("backbone.bottom_up.res{}.{block}", stage + 1);
        let ours = format!("layer{stage}.{block}");
        for conv in 1..=3 {
            row(format!("{theirs}.conv{conv}."), format!("{ours}.conv{conv}."));
            row(format!("{theirs}.conv{conv}.norm."), format!("{ours}.bn{conv}."));
        }
        row(format!("{theirs}.shortcut."), format!("{ours}.downsample.0."));
        row(format!("{theirs}.shortcut.norm."), format!("{ours}.downsample.1."));
    }
    for level in 3..=5 {
        row(format!("backbone.fpn_lateral{level}."), format!("fpn.P{level}_1."));
        row(format!("backbone.fpn_output{level}."), format!("fpn.P{level}_2."));
    }
    row("backbone.top_block.p6.".to_owned(), "fpn.P6.".to_owned());
    row("backbone.top_block.p7.".to_owned(), "fpn.P7_2.".to_owned());
    for (subnet, output, ours) in
        [("cls_subnet", "cls_score", "classificationModel"), ("bbox_subnet", "bbox_pred", "regressionModel")]
    {
        (0..4).for_each(|i| row(format!("head.{subnet}.{}.", 2 * i), format!("{ours}.conv{}.", i + 1)));
        row(format!("head.{output}."), format!("{ours}.output."));
    }
    table
}

/// MMDetection's RetinaNet: models/necks/fpn.py and dense_heads/retina_head.py.
fn mmdetection() -> Vec<Rename> {
    let mut table = vec![("backbone.".to_owned(), String::new())];
    let mut row = |theirs: String, ours: String| table.push((theirs, ours));
    for index in 0..3 {
        row(format!("neck.lateral_convs.{index}.conv."), format!("fpn.P{}_1.", index + 3));
        row(format!("neck.fpn_convs.{index}.conv."), format!("fpn.P{}_2.", index + 3));
    }
    row("neck.fpn_convs.3.conv.".to_owned(), "fpn.P6.".to_owned());
    row("neck.fpn_convs.4.conv.".to_owned(), "fpn.P7_2.".to_owned());
    for (theirs, ours) in [("cls", "classificationModel"), ("reg", "regressionModel")] {
        for index in 0..4 {
            row(format!("bbox_head.{theirs}_convs.{index}.conv."), format!("{ours}.conv{}.", index + 1));
        }
        row(format!("bbox_head.retina_{theirs}."), format!("{ours}.output."));
    }
    table
}

/// NVIDIA/retinanet-examples: odtk/backbones/fpn.py and odtk/model.py.
fn odtk() -> Vec<Rename> {
    let mut table = Vec::new();
    let mut row = |theirs: String, ours: String| table.push((theirs, ours));
    for backbone in ODTK_BACKBONES.map(|name| format!("backbones.{name}")) {
        row(format!("{backbone}.features."), String::new());
        for level in 3..=5 {
            row(format!("{backbone}.lateral{level}."), format!("fpn.P{level}_1."));
            row(format!("{backbone}.smooth{level}."), format!("fpn.P{level}_2."));
        }
        row(format!("{backbone}.pyramid6."), "fpn.P6.".to_owned());
        row(format!("{backbone}.pyramid7."), "fpn.P7_2.".to_owned());
    }
    for (theirs, ours) in [("cls_head", "classificationModel"), ("box_head", "regressionModel")] {
        (0..4).for_each(|i| row(format!("{theirs}.{}.", 2 * i), format!("{ours}.conv{}.", i + 1)));
        row(format!("{theirs}.8."), format!("{ours}.output."));
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
    fn translate_knows_other_projects() {
        for (naming, theirs, ours) in [
            (Naming::Detectron2, "backbone.bottom_up.stem.conv1.norm.running_var", "bn1.running_var"),
            (Naming::Detectron2, "backbone.bottom_up.res4.22.conv3.norm.bias", "layer3.22.bn3.bias"),
            (Naming::Detectron2, "backbone.bottom_up.res2.0.shortcut.weight", "layer1.0.downsample.0.weight"),
            (Naming::Detectron2, "backbone.bottom_up.res2.0.shortcut.norm.weight", "layer1.0.downsample.1.weight"),
            (Naming::Detectron2, "backbone.top_block.p7.bias", "fpn.P7_2.bias"),
            (Naming::Detectron2, "head.bbox_subnet.6.weight", "regressionModel.conv4.weight"),
            (Naming::Mmdetection, "backbone.layer2.0.downsample.1.weight", "layer2.0.downsample.1.weight"),
            (Naming::Mmdetection, "neck.fpn_convs.3.conv.bias", "fpn.P6.bias"),
            (Naming::Mmdetection, "bbox_head.reg_convs.1.conv.weight", "regressionModel.conv2.weight"),
            (Naming::Mmdetection, "bbox_head.retina_cls.bias", "classificationModel.output.bias"),
            (Naming::Odtk, "backbones.ResNet18FPN.features.bn1.weight", "bn1.weight"),
            (Naming::Odtk, "backbones.ResNeXt50_32x4dFPN.smooth4.bias", "fpn.P4_2.bias"),
            (Naming::Odtk, "box_head.8.bias", "regressionModel.output.bias"),
        ] {
            assert_eq!(translate(&table(naming), theirs).as_deref(), Some(ours));
        }
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
        assert_eq!(translate_back(&table(Naming::Ours), "fpn.P6.bias"), "fpn.P6.bias");
    }
}
