//! Import of weights of other projects: key maps made from names and shapes of the original networks, which
//! `tests/golden/import.py` and `import_projects.py` printed.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::collections::BTreeMap;

use models::import::{
    Assumption, Background, ClassSource, Hints, ImportError, KeyMap, Kind, Labels, Network, Stored, StoredTensors,
    Thresholds,
};
use models::spec::{BackboneSpec, Class, NormKind, P6From};
use models::{ModelSpec, Parameter, backbone_parameters, parameters};
use ndarray::{ArrayD, IxDyn};

const V1: &str = include_str!("../../tests/golden/names-torchvision-v1-coco.txt");
const V2: &str = include_str!("../../tests/golden/names-torchvision-v2.txt");
const YHENON: &str = include_str!("../../tests/golden/names-yhenon.txt");
const MLPERF: &str = include_str!("../../tests/golden/names-mlperf.txt");
const DETECTRON2: &str = include_str!("../../tests/golden/names-detectron2.txt");
const MMDETECTION: &str = include_str!("../../tests/golden/names-mmdetection-caffe.txt");
const ODTK: &str = include_str!("../../tests/golden/names-odtk.txt");

/// Parses lines of a name and a shape.
fn stored(text: &str) -> StoredTensors {
    let lines = text.lines().map(|line| line.split_once(' ').unwrap());
    lines.map(|(name, shape)| (name.to_owned(), float32(serde_json::from_str(shape).unwrap()))).collect()
}

fn float32(shape: Vec<usize>) -> Stored {
    Stored { shape, dtype: "F32".to_owned() }
}

/// The same tensors under other names.
fn renamed(tensors: &StoredTensors, rename: impl Fn(&str) -> String) -> StoredTensors {
    tensors.iter().map(|(name, stored)| (rename(name), stored.clone())).collect()
}

/// The tensors of our network with these parameters.
fn of_parameters(parameters: Vec<Parameter>) -> StoredTensors {
    parameters.into_iter().map(|parameter| (parameter.name, float32(parameter.shape))).collect()
}

/// The names of torchvision before 0.13 and of MLPerf: a convolution's index counts convolutions and activations.
fn old_names(tensors: &StoredTensors) -> StoredTensors {
    renamed(tensors, |name| {
        let name = ["inner_blocks.", "layer_blocks."].iter().fold(name.to_owned(), |name, part| {
            (0..3).fold(name, |name, i| name.replace(&format!("{part}{i}.0."), &format!("{part}{i}.")))
        });
        (0..4).fold(name, |name, i| name.replace(&format!("_head.conv.{i}.0."), &format!("_head.conv.{}.", 2 * i)))
    })
}

fn key_map(tensors: &StoredTensors) -> KeyMap {
    KeyMap::new(tensors, &Hints::default()).unwrap()
}

fn detector(key_map: &KeyMap) -> &ModelSpec {
    match &key_map.network {
        Network::Detector(spec) => spec,
        Network::Backbone(_) => panic!("a backbone"),
    }
}

fn error_of(tensors: &StoredTensors, hints: &Hints) -> String {
    KeyMap::new(tensors, hints).unwrap_err().to_string()
}

#[test]
fn every_kind_is_recognized_by_names_and_shapes() {
    for (text, kind, norm, p6, head_norm, classes, (groups, width)) in [
        (V1, Kind::TorchvisionV1, NormKind::FrozenBatch, P6From::P5, false, 80, (1, 64)),
        (V2, Kind::TorchvisionV2, NormKind::Batch, P6From::C5, true, 80, (1, 64)),
        (YHENON, Kind::Yhenon, NormKind::FrozenBatch, P6From::C5, false, 80, (1, 64)),
        (MLPERF, Kind::Mlperf, NormKind::FrozenBatch, P6From::P5, false, 264, (32, 4)),
    ] {
        let key_map = key_map(&stored(text));
        let spec = detector(&key_map);
        assert_eq!((key_map.kind, spec.backbone.norm.kind, spec.pyramid.p6_from), (kind, norm, p6));
        assert_eq!((spec.heads.norm.is_some(), spec.classes.len(), spec.backbone.depth), (head_norm, classes, 50));
        assert_eq!((spec.backbone.groups, spec.backbone.width_per_group), (groups, width));
        let mut expected = kind.spec().unwrap();
        (expected.backbone.norm.kind, expected.classes) = (norm, spec.classes.clone());
        assert_eq!(spec, &expected, "{kind}");
        assert!(key_map.lines().iter().any(|line| line.starts_with("missing: none")));
    }
}

#[test]
fn only_torchvisions_published_coco_weights_have_an_epsilon_of_zero() {
    let tensors = stored(V1);
    let epsilon = |hints: Hints| {
        let key_map = KeyMap::new(&tensors, &hints).unwrap();
        (key_map.kind, detector(&key_map).backbone.norm.epsilon)
    };
    assert_eq!(epsilon(Hints::default()), (Kind::TorchvisionV1, 1e-5));
    let file = "retinanet_resnet50_fpn_coco-eeacb38b.pth".to_owned();
    assert_eq!(epsilon(Hints { file, ..Hints::default() }), (Kind::TorchvisionV1Coco, 0.0));
    let sha256 = "eeacb38b7cec8cf93c57867c5af7a2e0f5ad5b0d1b6b5d0d5ad0b1b1b1b1b1b1".to_owned();
    assert_eq!(epsilon(Hints { sha256, ..Hints::default() }), (Kind::TorchvisionV1Coco, 0.0));
    let kind = Some(Kind::TorchvisionV1Coco);
    assert_eq!(epsilon(Hints { kind, ..Hints::default() }), (Kind::TorchvisionV1Coco, 0.0));
    let with_epsilon = Hints { epsilon: Some(1e-3), ..Hints::default() };
    assert_eq!(epsilon(with_epsilon), (Kind::TorchvisionV1, 1e-3));
    assert!(key_map(&tensors).assumptions.contains(&Assumption::Epsilon));
    let given = Hints { epsilon: Some(1e-3), ..Hints::default() };
    assert!(!KeyMap::new(&tensors, &given).unwrap().assumptions.contains(&Assumption::Epsilon));
}

#[test]
fn old_and_new_names_give_the_same_network() {
    for text in [V1, MLPERF] {
        let (new, old) = (stored(text), old_names(&stored(text)));
        assert_ne!(new, old);
        assert_eq!(key_map(&new).network, key_map(&old).network);
    }
    let mut both = stored(V1);
    both.extend(old_names(&both));
    assert!(matches!(KeyMap::new(&both, &Hints::default()), Err(ImportError::Twice { .. })));
}

#[test]
fn prefixed_weights_are_found_and_other_tensors_are_listed() {
    let bare = stored(YHENON);
    for prefix in ["module.", "model.", "state_dict.module.", "_orig_mod."] {
        let mut prefixed = renamed(&bare, |name| format!("{prefix}{name}"));
        prefixed.insert("optimizer.state.0.momentum_buffer".to_owned(), float32(vec![2]));
        let key_map = key_map(&prefixed);
        assert_eq!(key_map.network, self::key_map(&bare).network);
        assert!(
            key_map.lines().contains(&"unexpected 1 (ignored): optimizer.state".to_owned()),
            "{:?}",
            key_map.lines()
        );
    }
    let mut two = renamed(&bare, |name| format!("model.{name}"));
    two.extend(renamed(&bare, |name| format!("ema.{name}")));
    let error = error_of(&two, &Hints::default());
    assert!(error.contains("`ema`, `model`") && !error.contains("--"), "{error}");
    let key = Some("ema".to_owned());
    assert!(KeyMap::new(&two, &Hints { key, ..Hints::default() }).is_ok());
}

#[test]
fn error_lists_missing_unexpected_and_wrongly_shaped_tensors() {
    let mut wrong = stored(V1);
    wrong.remove("head.regression_head.conv.2.0.bias");
    wrong.insert("backbone.body.conv1.weight".to_owned(), float32(vec![64, 1, 7, 7]));
    wrong.insert("backbone.body.layer1.0.se.fc1.weight".to_owned(), float32(vec![4]));
    wrong.insert("head.ctrness.weight".to_owned(), float32(vec![9]));
    let error = error_of(&wrong, &Hints::default());
    for line in [
        "(299 do):",
        "missing: head.regression_head.conv.2.0.bias",
        "wrong shape: tensor `backbone.body.conv1.weight` has shape [64, 1, 7, 7], expected [64, 3, 7, 7]",
        "unexpected: backbone.body.layer1.0.se.fc1.weight",
        "unexpected: head.ctrness.weight",
    ] {
        assert!(error.contains(line), "{line} is not in: {error}");
    }
    let mut more = stored(V1);
    more.insert("head.ctrness.weight".to_owned(), float32(vec![9]));
    let drop = vec!["head.ctrness.".to_owned()];
    assert!(KeyMap::new(&more, &Hints { drop, ..Hints::default() }).is_ok());
}

#[test]
fn error_of_an_unknown_kind_lists_tensor_names() {
    for (name, part) in [
        ("backbone.bottom_up.res2.0.conv1.weight", "Detectron2"),
        ("bbox_head.atss_cls.weight", "an MMDetection model, but not its RetinaNet"),
        ("encoder.weight", "`encoder.weight`; kinds: torchvision-backbone"),
    ] {
        let tensors = StoredTensors::from([(name.to_owned(), float32(vec![1]))]);
        let error = error_of(&tensors, &Hints::default());
        assert!(error.contains(part), "{error}");
        let error = error_of(&tensors, &Hints { kind: Some(Kind::Yhenon), ..Hints::default() });
        assert!(error.contains("it has no tensor `classificationModel.output.weight`"), "{error}");
    }
    assert!(error_of(&StoredTensors::new(), &Hints::default()).contains("kinds"));
    // One block more than the third stage of a ResNet-50.
    let mut deeper = stored(YHENON);
    deeper.extend(renamed(&stored(YHENON), |name| name.replace("layer3.5.", "layer3.6.")));
    assert!(error_of(&deeper, &Hints::default()).contains("[3, 4, 7, 3] bottleneck blocks"));
    let mut other_anchors = stored(V1);
    other_anchors.insert("head.regression_head.bbox_reg.weight".to_owned(), float32(vec![60, 256, 3, 3]));
    assert!(error_of(&other_anchors, &Hints::default()).contains("15 anchors per cell, torchvision-v1 has 9"));
    for (rows, part) in [(usize::MAX, "outputs per anchor"), (0, "0 outputs per anchor")] {
        let mut outputs = stored(V1);
        outputs.insert("head.classification_head.cls_logits.weight".to_owned(), float32(vec![rows, 0, 3, 3]));
        assert!(error_of(&outputs, &Hints::default()).contains(part), "{rows}");
    }
    for name in ["backbone.fpn.layer_blocks.0.0.weight", "head.regression_head.conv.0.0.weight"] {
        let mut wide = stored(V1);
        wide.insert(name.to_owned(), float32(vec![usize::MAX, 0, 3, 3]));
        assert!(error_of(&wide, &Hints::default()).contains("1 to 2048"), "{name}");
    }
    let mut integers = stored(V1);
    integers.get_mut("backbone.body.bn1.weight").unwrap().dtype = "I64".to_owned();
    assert!(matches!(KeyMap::new(&integers, &Hints::default()), Err(ImportError::Dtype { .. })));
}

#[test]
fn resnets_become_backbones_without_classifier() {
    let body = |text: &str| -> StoredTensors {
        let tensors = stored(text).into_iter();
        tensors.filter_map(|(name, stored)| Some((name.strip_prefix("backbone.body.")?.to_owned(), stored))).collect()
    };
    for (text, groups, width) in [(V2, 1, 64), (MLPERF, 32, 4)] {
        let mut tensors = body(text);
        tensors.insert("fc.weight".to_owned(), float32(vec![1000, 2048]));
        tensors.insert("fc.bias".to_owned(), float32(vec![1000]));
        let key_map = key_map(&tensors);
        let Network::Backbone(spec) = &key_map.network else { panic!("not a backbone") };
        assert_eq!((key_map.kind, spec.backbone.depth), (Kind::TorchvisionBackbone, 50));
        assert_eq!((spec.backbone.groups, spec.backbone.width_per_group), (groups, width));
        assert_eq!(spec.mean, [0.485, 0.456, 0.406]);
        assert!(key_map.lines().contains(&"dropped 2 (the image classifier): fc.bias, fc.weight".to_owned()));
    }
    // The backbone of a detector, if hintsed by kind.
    let kind = Some(Kind::TorchvisionBackbone);
    let key_map = KeyMap::new(&stored(V2), &Hints { kind, ..Hints::default() }).unwrap();
    assert!(matches!(key_map.network, Network::Backbone(_)));
    // A detector without its classification output is not a backbone.
    let mut damaged = stored(YHENON);
    damaged.remove("classificationModel.output.weight");
    assert!(matches!(KeyMap::new(&damaged, &Hints::default()), Err(ImportError::Unknown { .. })));
}

#[test]
fn background_is_dropped_and_all_other_values_are_kept() {
    let mut tensors = stored(V2);
    for (name, rows) in [("weight", 27), ("bias", 27)] {
        tensors.get_mut(&format!("head.classification_head.cls_logits.{name}")).unwrap().shape[0] = rows;
    }
    tensors.get_mut("backbone.body.bn1.weight").unwrap().dtype = "F16".to_owned();
    let classes = [(3, "cell"), (4, "platelet")].map(|(id, name)| Class { id, name: name.to_owned() }).to_vec();
    let key_map = KeyMap::new(&tensors, &Hints { classes: Some(classes), ..Hints::default() }).unwrap();
    assert_eq!(detector(&key_map).classes[1].name, "platelet");
    let lines = key_map.lines();
    assert!(
        lines.contains(&"converted 2 (3 outputs to 2 classes): classificationModel.output (2)".to_owned()),
        "{lines:?}"
    );
    assert!(lines.contains(&"converted 1 (F16 to F32): bn1.weight".to_owned()), "{lines:?}");

    // The value of every element is the index of its row.
    let read = |name: &str| -> Result<ArrayD<f32>, ImportError> {
        let shape = &tensors[name].shape;
        let row = shape[1..].iter().product::<usize>();
        let numbers = (0..shape.iter().product::<usize>()).map(|index| (index / row) as f32).collect();
        Ok(ArrayD::from_shape_vec(IxDyn(shape), numbers).unwrap())
    };
    let imported: BTreeMap<_, _> = key_map.apply(read).unwrap();
    let expected: Vec<_> = (0..27).filter(|row| row % 3 != 0).map(|row| row as f32).collect();
    assert_eq!(imported["classificationModel.output.bias"].as_slice().unwrap(), expected);
    assert_eq!(imported["classificationModel.output.weight"][[17, 5, 2, 1]], 26.0);
    assert_eq!(imported["regressionModel.output.bias"].len(), 36);
    assert!(imported["regressionModel.conv1.bias"].iter().all(|number| *number == 0.0));
    assert!(parameters(detector(&key_map)).unwrap().iter().all(|p| imported[&p.name].shape() == p.shape));
}

#[test]
fn depth_and_widths_are_read_from_shapes() {
    for depth in [18, 34, 50, 101, 152] {
        // ResNeXt-50 32x4d, -101 32x8d and 64x4d; wide ResNet.
        let widths = [(1, 64), (32, 4), (32, 8), (64, 4), (1, 128)];
        for (groups, width_per_group) in widths.into_iter().take(if depth < 50 { 1 } else { 5 }) {
            let backbone = BackboneSpec { depth, groups, width_per_group, ..BackboneSpec::default() };
            let key_map = key_map(&of_parameters(backbone_parameters(&backbone).unwrap()));
            assert_eq!(key_map.network.backbone(), &backbone);
        }
        let mut spec = Kind::Yhenon.spec().unwrap();
        (spec.backbone.depth, spec.pyramid.width, spec.heads.width) = (depth, 128, 64);
        spec.classes = (0..3).map(|id| Class { id, name: format!("class {id}") }).collect();
        assert_eq!(detector(&key_map(&of_parameters(parameters(&spec).unwrap()))), &spec);
    }
}

#[test]
fn error_of_an_unusable_value_contains_the_tensor() {
    let tensors = stored(V1);
    let epsilon = |epsilon| Hints { epsilon: Some(epsilon), ..Hints::default() };
    for (hints, bad, number, part) in [
        (epsilon(1e-5), "backbone.body.conv1.weight", f32::NAN, "a value that is not finite"),
        (epsilon(1e-5), "backbone.body.bn1.running_var", -1.0, "a negative variance"),
        (epsilon(0.0), "backbone.body.bn1.running_var", 0.0, "a variance of zero"),
    ] {
        let key_map = KeyMap::new(&tensors, &hints).unwrap();
        let read = |name: &str| -> Result<ArrayD<f32>, ImportError> {
            let value = if name == bad { number } else { 1.0 };
            Ok(ArrayD::from_elem(IxDyn(&tensors[name].shape), value))
        };
        let error = key_map.apply(read).unwrap_err().to_string();
        assert!(error.contains(bad) && error.contains(part), "{error}");
    }
}

#[test]
fn detectron2_mmdetection_and_odtk_are_recognized_and_mapped_to_the_same_network() {
    for (text, kind, depth) in
        [(DETECTRON2, Kind::Detectron2, 50), (MMDETECTION, Kind::Mmdetection, 50), (ODTK, Kind::Odtk, 18)]
    {
        let key_map = key_map(&stored(text));
        let spec = detector(&key_map);
        let mut expected = kind.spec().unwrap();
        (expected.backbone.depth, expected.classes) = (depth, spec.classes.clone());
        assert_eq!((key_map.kind, spec), (kind, &expected));
        assert_eq!((spec.class_count(), key_map.class_source.clone()), (80, Some(ClassSource::Published)));
        let lines = key_map.lines();
        assert!(
            lines.contains(&"missing: none".to_owned()) && lines.contains(&"unexpected: none".to_owned()),
            "{lines:?}"
        );
    }
    // A Faster R-CNN has no P7.
    let mut other = stored(DETECTRON2);
    other.retain(|name, _| !name.contains("top_block"));
    assert!(error_of(&other, &Hints::default()).contains("a Detectron2 model, but not its RetinaNet"));
}

#[test]
fn style_of_mmdetections_backbone_is_read_from_its_configuration() {
    let tensors = stored(MMDETECTION);
    let kind = |configuration: Option<&str>| {
        let hints = Hints { configuration: configuration.map(str::to_owned), ..Hints::default() };
        let key_map = KeyMap::new(&tensors, &hints).unwrap();
        (key_map.kind, key_map.assumptions.contains(&Assumption::PytorchStyle))
    };
    assert_eq!(kind(Some("backbone=dict(depth=50, style='caffe', type='ResNet')")), (Kind::MmdetectionCaffe, false));
    assert_eq!(kind(Some("style=\"pytorch\"")), (Kind::Mmdetection, false));
    assert_eq!(kind(None), (Kind::Mmdetection, true));
    assert_eq!(kind(Some("no style")), (Kind::Mmdetection, true));
}

#[test]
fn first_convolution_of_bgr_networks_is_reversed() {
    let tensors = stored(DETECTRON2);
    // The value of every element is the index of its input channel.
    let read = |name: &str| -> Result<ArrayD<f32>, ImportError> {
        let shape = &tensors[name].shape;
        let (channels, size) = (shape.get(1).copied().unwrap_or(1), shape.iter().skip(2).product::<usize>());
        let numbers = (0..shape.iter().product::<usize>()).map(|index| (index / size % channels) as f32).collect();
        Ok(ArrayD::from_shape_vec(IxDyn(shape), numbers).unwrap())
    };
    for (kind, expected) in [(Kind::Detectron2, [2.0, 1.0, 0.0]), (Kind::Detectron2Rgb, [0.0, 1.0, 2.0])] {
        let key_map = KeyMap::new(&tensors, &Hints { kind: Some(kind), ..Hints::default() }).unwrap();
        let swapped = "converted 1 (BGR to RGB): conv1.weight".to_owned();
        assert_eq!(key_map.lines().contains(&swapped), kind == Kind::Detectron2);
        let imported = key_map.apply(read).unwrap();
        assert_eq!([0, 1, 2].map(|channel| imported["conv1.weight"][[63, channel, 0, 6]]), expected);
        assert_eq!(imported["layer1.0.conv1.weight"][[0, 5, 0, 0]], 5.0);
    }
}

#[test]
fn labels_and_thresholds_beside_the_weights_are_used() {
    let mut tensors = stored(V1);
    for name in ["weight", "bias"] {
        tensors.get_mut(&format!("head.classification_head.cls_logits.{name}")).unwrap().shape[0] = 18;
    }
    assert!(matches!(KeyMap::new(&tensors, &Hints::default()), Err(ImportError::Background { outputs: 2 })));
    let labels =
        Labels { names: BTreeMap::from([(0, "Alive".to_owned()), (1, "Dead".to_owned())]), place: "label_dict".into() };
    let thresholds = Thresholds { score: Some(0.1), nms: Some(0.05), top_k: Some(7), max_detections: None };
    let hints = Hints { labels: Some(labels), thresholds, ..Hints::default() };
    let key_map = KeyMap::new(&tensors, &hints).unwrap();
    let spec = detector(&key_map);
    let rules = &spec.postprocessing;
    assert_eq!((rules.score_threshold, rules.nms_threshold, rules.top_k), (0.1, 0.05, Some(7)));
    assert_eq!(rules.max_detections, Some(300));
    assert_eq!(spec.classes[0], Class { id: 0, name: "Alive".to_owned() });
    assert!(key_map.lines().contains(&"2 classes: Alive, Dead (from label_dict)".to_owned()));
    let first = Hints { background: Some(Background::First), ..Hints::default() };
    assert_eq!(detector(&KeyMap::new(&tensors, &first).unwrap()).classes[0].id, 1);
}
