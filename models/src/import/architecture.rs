//! The architecture of a network, read from its kind and the shapes of its tensors.

use std::collections::{BTreeMap, BTreeSet};

use super::classes::{Outputs, outputs};
use super::error::ImportError;
use super::hints::Hints;
use super::kind::Kind;
use crate::shape::{backbone_parameters, parameters};
use crate::spec::{
    BackboneCheckpointSpec, BackboneSpec, Class, ModelSpec, NormKind, NormSpec, P6From, PreprocessingSpec, RESNETS,
};
use crate::weights::Parameter;

/// Maximum number of outputs per anchor. For comparison, Open Images has 600 classes, LVIS 1,203.
const MAX_OUTPUTS: usize = 100_000;

/// Shapes by our tensor names.
pub(super) type Shapes<'a> = BTreeMap<&'a str, &'a [usize]>;

/// An architecture, read from names and shapes.
pub(super) struct Architecture {
    pub(super) network: Network,
    /// Its tensors, with the shapes expected in the file.
    pub(super) expected: Vec<Parameter>,
    /// Outputs per anchor; none for a backbone.
    pub(super) outputs: Option<Outputs>,
}

/// Spec of imported weights.
#[derive(Clone, Debug, PartialEq)]
pub enum Network {
    /// A whole detector.
    Detector(Box<ModelSpec>),
    /// A backbone alone.
    Backbone(BackboneCheckpointSpec),
}

impl Network {
    /// The backbone section of the spec.
    pub fn backbone(&self) -> &BackboneSpec {
        match self {
            Self::Detector(spec) => &spec.backbone,
            Self::Backbone(spec) => &spec.backbone,
        }
    }
}

/// The architecture of a network with these shapes. `counted`: whether the file has counters of live batch norms.
pub(super) fn architecture(
    kind: Kind,
    shapes: &Shapes,
    counted: bool,
    hints: &Hints,
) -> Result<Architecture, ImportError> {
    let mut spec = kind.spec()?;
    read_backbone(shapes, &mut spec.backbone)?;
    let norm = &mut spec.backbone.norm;
    if let Some(norm_kind) = kind.norm_kind(counted) {
        norm.kind = norm_kind;
        norm.affine = norm.affine.filter(|_| norm_kind == NormKind::FrozenBatch);
    }
    norm.epsilon = hints.epsilon.unwrap_or(norm.epsilon);
    if kind == Kind::TorchvisionBackbone {
        let PreprocessingSpec { mean, std, .. } = spec.preprocessing;
        let backbone = BackboneCheckpointSpec { backbone: spec.backbone, mean, std };
        let expected = backbone_parameters(&backbone.backbone)?;
        return Ok(Architecture { network: Network::Backbone(backbone), expected, outputs: None });
    }
    read_pyramid_and_heads(shapes, &mut spec);
    hints.thresholds.apply_to(&mut spec.postprocessing);

    let rows = |name: &str| shapes.get(name).and_then(|shape| shape.first()).copied();
    let expected = spec.anchors_per_cell();
    let found = rows("regressionModel.output.weight").map_or(expected, |rows| rows / 4);
    if found != expected {
        return Err(ImportError::Anchors { kind, expected, found });
    }
    let all = rows("classificationModel.output.weight").map_or(1, |rows| rows / expected);
    if all == 0 || all > MAX_OUTPUTS {
        return Err(ImportError::Outputs { found: all });
    }
    let outputs = outputs(kind, all, hints)?;
    if outputs.classes.is_empty() {
        return Err(ImportError::Outputs { found: all });
    }
    spec.classes = (0..).take(all).map(|id| Class { id, name: id.to_string() }).collect();
    let expected = parameters(&spec)?;
    spec.classes = outputs.classes.iter().map(|(_, class)| class.clone()).collect();
    spec.check()?;
    Ok(Architecture { network: Network::Detector(Box::new(spec)), expected, outputs: Some(outputs) })
}

/// Reads depth, groups and width of the backbone.
fn read_backbone(shapes: &Shapes, spec: &mut BackboneSpec) -> Result<(), ImportError> {
    let blocks = [1, 2, 3, 4].map(|stage| {
        let start = format!("layer{stage}.");
        let blocks: BTreeSet<_> =
            shapes.keys().filter_map(|name| name.strip_prefix(&start)?.split('.').next()).collect();
        blocks.len()
    });
    let bottleneck = shapes.contains_key("layer1.0.conv3.weight");
    let layout = RESNETS.iter().find(|layout| (layout.blocks, layout.bottleneck) == (blocks, bottleneck));
    spec.depth = layout.ok_or(ImportError::Depth { blocks, bottleneck })?.depth;
    if let (true, Some([width, inputs, ..])) = (bottleneck, shapes.get("layer1.0.conv2.weight"))
        && *inputs > 0
    {
        (spec.groups, spec.width_per_group) = (width / inputs, *inputs);
    }
    Ok(())
}

/// Reads the widths of pyramid and heads, the input of P6, and whether the heads have norm layers. What no shape contains
/// is left unchanged.
fn read_pyramid_and_heads(shapes: &Shapes, spec: &mut ModelSpec) {
    let size = |name: &str, axis: usize| shapes.get(name).and_then(|shape| shape.get(axis)).copied();
    spec.pyramid.width = size("fpn.P3_2.weight", 0).unwrap_or(spec.pyramid.width);
    if let Some(inputs) = size("fpn.P6.weight", 1) {
        spec.pyramid.p6_from = if inputs == spec.pyramid.width { P6From::P5 } else { P6From::C5 };
    }
    let convolutions =
        (1..).take_while(|index| shapes.contains_key(format!("regressionModel.conv{index}.weight").as_str()));
    spec.heads.depth = spec.heads.depth.max(convolutions.count());
    spec.heads.width = size("regressionModel.conv1.weight", 0).unwrap_or(spec.heads.width);
    let norms = shapes.contains_key("regressionModel.norm1.weight");
    // No shape contains the number of groups; torchvision has 32.
    spec.heads.norm = norms.then(|| NormSpec { kind: NormKind::Group, ..NormSpec::default() });
}
