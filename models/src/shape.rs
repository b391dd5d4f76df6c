//! Shape inference: output shapes and costs of a forward pass, without computing any values.

use std::cell::RefCell;
use std::rc::Rc;

use crate::layers::{BatchNorm, Conv2d, GroupNorm, MaxPool};
use crate::resnet::ResNet;
use crate::retinanet::RetinaNet;
use crate::spec::{BackboneSpec, ModelSpec, Section};
use crate::tensor::Tensor;
use crate::weights::{Parameter, Role, Scope, Weights, WeightsError};

/// A tensor of which only the shape is known.
#[derive(Clone, Debug)]
pub struct Shape {
    sizes: Vec<usize>,
    /// For a weight, the name of its layer: the tensor's name without the last part.
    layer: Rc<str>,
    /// For a weight, its number of trainable elements.
    trainable: usize,
    costs: Costs,
}

/// Costs of the layers used, in the order of the forward pass. Shared by all tensors of one pass.
type Costs = Rc<RefCell<Vec<LayerCost>>>;

/// Output shape and cost of one use of a layer. A layer that runs on several feature levels appears once for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerCost {
    /// Dotted name of the layer: `layer1.0.conv1`.
    pub name: String,
    /// Shape of the output.
    pub output: Vec<usize>,
    /// Number of trainable parameters of the layer; zero from its second use on.
    pub parameters: usize,
    /// Number of multiply-add operations.
    pub multiply_adds: u64,
}

impl Shape {
    /// A tensor of these sizes.
    pub fn of(sizes: &[usize]) -> Self {
        Self { sizes: sizes.to_vec(), layer: "".into(), trainable: 0, costs: Costs::default() }
    }

    /// The sizes, outermost first.
    pub fn sizes(&self) -> &[usize] {
        &self.sizes
    }

    fn len(&self) -> usize {
        self.sizes.iter().product()
    }

    fn with(&self, sizes: Vec<usize>) -> Self {
        Self { sizes, ..self.clone() }
    }

    /// The output of a layer with these weights. Records its cost.
    fn layer_output(&self, sizes: Vec<usize>, weights: &[&Shape], multiply_adds: usize) -> Self {
        let output = self.with(sizes);
        let name = weights[0].layer.to_string();
        let mut costs = self.costs.borrow_mut();
        let counted = costs.iter().any(|cost| cost.name == name);
        let parameters = if counted { 0 } else { weights.iter().map(|weight| weight.trainable).sum() };
        let multiply_adds = multiply_adds as u64;
        costs.push(LayerCost { name, output: output.sizes.clone(), parameters, multiply_adds });
        output
    }
}

impl Tensor for Shape {
    fn conv2d(&self, layer: &Conv2d<Self>) -> Self {
        let config = &layer.config;
        let [n, height, width] = [self.sizes[0], config.output_side(self.sizes[2]), config.output_side(self.sizes[3])];
        let weights: Vec<_> = [Some(&layer.weight), layer.bias.as_ref()].into_iter().flatten().collect();
        self.layer_output(vec![n, config.outputs, height, width], &weights, n * height * width * layer.weight.len())
    }

    fn conv2d_batch_norm(&self, conv: &Conv2d<Self>, norm: &BatchNorm<Self>) -> Self {
        let y = self.conv2d(conv);
        y.layer_output(y.sizes.clone(), &[&norm.weight, &norm.bias], 0)
    }

    fn group_norm(&self, layer: &GroupNorm<Self>) -> Self {
        self.layer_output(self.sizes.clone(), &[&layer.weight, &layer.bias], 0)
    }

    fn relu(&self) -> Self {
        self.clone()
    }

    fn sigmoid(&self) -> Self {
        self.clone()
    }

    fn add(&self, other: &Self) -> Self {
        assert_eq!(self.sizes, other.sizes, "terms of a sum must have the same shape");
        self.clone()
    }

    fn max_pool(&self, window: MaxPool) -> Self {
        let side = |n: usize| (n + 2 * window.padding - window.kernel) / window.stride + 1;
        self.with(vec![self.sizes[0], self.sizes[1], side(self.sizes[2]), side(self.sizes[3])])
    }

    fn upsample2x(&self) -> Self {
        self.with(vec![self.sizes[0], self.sizes[1], self.sizes[2] * 2, self.sizes[3] * 2])
    }

    fn per_anchor(&self, width: usize) -> Self {
        let [n, channels, height, columns] = [self.sizes[0], self.sizes[1], self.sizes[2], self.sizes[3]];
        self.with(vec![n, height * columns * (channels / width), width])
    }

    fn concat(parts: &[Self]) -> Self {
        let rows = parts.iter().map(|part| part.sizes[1]).sum();
        parts[0].with(vec![parts[0].sizes[0], rows, parts[0].sizes[2]])
    }
}

/// Weights without values, which record what is requested.
#[derive(Default)]
struct Recorder(RefCell<Vec<Parameter>>);

impl Weights<Shape> for Recorder {
    fn tensor(&self, parameter: Parameter) -> Result<Shape, WeightsError> {
        let layer = parameter.name.rsplit_once('.').map_or("", |(layer, _)| layer);
        let trainable = if parameter.role == Role::Parameter { parameter.len() } else { 0 };
        let shape = Shape { layer: layer.into(), trainable, ..Shape::of(&parameter.shape) };
        self.0.borrow_mut().push(parameter);
        Ok(shape)
    }
}

/// The layers used by a forward pass over one image of `height` by `width` pixels, both multiples of 32, in order.
///
/// # Errors
/// When the spec is invalid or has no classes.
pub fn summarize(spec: &ModelSpec, height: usize, width: usize) -> Result<Vec<LayerCost>, WeightsError> {
    let images = Shape::of(&[1, 3, height, width]);
    RetinaNet::new(spec, &Recorder::default())?.forward(&images);
    Ok(images.costs.take())
}

/// Every tensor of the spec's network, in the order in which the network is built.
///
/// # Errors
/// When the spec is invalid or has no classes.
pub fn parameters(spec: &ModelSpec) -> Result<Vec<Parameter>, WeightsError> {
    let recorder = Recorder::default();
    RetinaNet::new(spec, &recorder)?;
    Ok(recorder.0.into_inner())
}

/// Every tensor of the spec's backbone, in the order in which it is built.
///
/// # Errors
/// When the spec is invalid.
pub fn backbone_parameters(spec: &BackboneSpec) -> Result<Vec<Parameter>, WeightsError> {
    spec.check()?;
    let recorder = Recorder::default();
    ResNet::new(&Scope::root(&recorder), spec)?;
    Ok(recorder.0.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Affine, Class, NormSpec, preset_names};

    fn spec(preset: &str, classes: usize) -> ModelSpec {
        let classes = (0..classes).map(|id| Class { id: id as i64, name: format!("class {id}") }).collect();
        ModelSpec { classes, ..ModelSpec::preset(preset).unwrap() }
    }

    /// yhenon/pytorch-retinanet 0348a9d: a batch of two images of 640x832, ResNet-50, 20 classes.
    #[test]
    fn all_shapes_match_yhenon() {
        let images = Shape::of(&[2, 3, 640, 832]);
        let predictions = RetinaNet::new(&spec("resnet50", 20), &Recorder::default()).unwrap().forward(&images);
        let costs = images.costs.borrow();
        let output = |name: &str, nth: usize| {
            costs.iter().filter(|cost| cost.name == name).nth(nth).unwrap_or_else(|| panic!("{name}")).output.clone()
        };

        assert_eq!(output("bn1", 0), [2, 64, 320, 416]);
        assert_eq!(output("layer1.0.conv1", 0), [2, 64, 160, 208], "after the max pooling");
        assert_eq!(output("layer1.2.bn3", 0), [2, 256, 160, 208], "C2");
        assert_eq!(output("layer2.3.bn3", 0), [2, 512, 80, 104], "C3");
        assert_eq!(output("layer3.5.bn3", 0), [2, 1024, 40, 52], "C4");
        assert_eq!(output("layer4.2.bn3", 0), [2, 2048, 20, 26], "C5");

        let levels = [[80, 104], [40, 52], [20, 26], [10, 13], [5, 7]];
        let names = ["fpn.P3_2", "fpn.P4_2", "fpn.P5_2", "fpn.P6", "fpn.P7_2"];
        for (level, ([height, width], name)) in levels.into_iter().zip(names).enumerate() {
            assert_eq!(output(name, 0), [2, 256, height, width], "{name}");
            assert_eq!(output("regressionModel.output", level), [2, 36, height, width]);
            assert_eq!(output("classificationModel.output", level), [2, 180, height, width]);
        }
        let rows: Vec<_> = levels.iter().map(|[height, width]| height * width * 9).collect();
        assert_eq!(rows, [74880, 18720, 4680, 1170, 315]);
        for ([height, width], rows) in levels.into_iter().zip(rows) {
            assert_eq!(Shape::of(&[2, 36, height, width]).per_anchor(4).sizes(), [2, rows, 4]);
            assert_eq!(Shape::of(&[2, 180, height, width]).per_anchor(20).sizes(), [2, rows, 20]);
        }
        assert_eq!(predictions.offsets.sizes(), [2, 99765, 4]);
        assert_eq!(predictions.scores().sizes(), [2, 99765, 20]);
    }

    /// yhenon/pytorch-retinanet 0348a9d, 80 classes.
    #[test]
    fn all_depths_have_the_number_of_parameters_of_yhenon() {
        let published = [21_410_100, 31_518_260, 37_968_692, 56_960_820, 72_604_468];
        for (preset, published) in preset_names().into_iter().zip(published) {
            let mut spec = spec(preset, 80);
            let frozen = trainable_elements(&spec);
            spec.backbone.norm.affine = Some(Affine::Trainable);
            assert_eq!(trainable_elements(&spec), published, "{preset}");
            let parameters = parameters(&spec).unwrap();
            let affine = parameters.iter().filter(|parameter| {
                parameter.role == Role::Parameter
                    && (parameter.name.contains("bn") || parameter.name.contains("downsample.1"))
            });
            assert_eq!(published - frozen, affine.map(Parameter::len).sum::<usize>(), "{preset}");
        }
    }

    /// Number of trainable elements of the network, which the list of parameters and the costs agree on.
    fn trainable_elements(spec: &ModelSpec) -> usize {
        let parameters = parameters(spec).unwrap();
        let trainable = parameters.iter().filter(|parameter| parameter.role == Role::Parameter);
        let trainable = trainable.map(Parameter::len).sum();
        let costs = summarize(spec, 64, 64).unwrap();
        assert_eq!(costs.iter().map(|cost| cost.parameters).sum::<usize>(), trainable);
        trainable
    }

    #[test]
    fn frozen_batch_norms_have_buffers_and_the_same_names() {
        let mut spec = spec("resnet18", 1);
        spec.heads.norm = Some(NormSpec::default());
        let frozen = parameters(&spec).unwrap();
        for norm in [&mut spec.backbone.norm, spec.heads.norm.as_mut().unwrap()] {
            norm.affine = Some(Affine::Trainable);
        }
        for (frozen, trainable) in frozen.iter().zip(parameters(&spec).unwrap()) {
            assert_eq!(frozen.name, trainable.name);
            let layer = frozen.name.rsplit_once('.').unwrap().0;
            let norm = layer.contains("bn") || layer.contains("norm") || layer.ends_with("downsample.1");
            assert_eq!(frozen.role == Role::Buffer, norm, "{}", frozen.name);
            assert_eq!(trainable.role == Role::Buffer, trainable.name.contains("running_"), "{}", frozen.name);
        }
    }

    #[test]
    fn names_are_unique_and_match_yhenon() {
        let parameters = parameters(&spec("resnet50", 20)).unwrap();
        let mut names: Vec<_> = parameters.iter().map(|parameter| parameter.name.as_str()).collect();
        for name in [
            "conv1.weight",
            "bn1.running_mean",
            "layer1.0.conv1.weight",
            "layer1.0.downsample.0.weight",
            "layer1.0.downsample.1.running_var",
            "fpn.P5_1.weight",
            "regressionModel.conv1.weight",
            "classificationModel.output.bias",
        ] {
            assert!(names.contains(&name), "{name}");
        }
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn unsupported_depths_and_missing_classes_are_errors() {
        let mut unsupported = spec("resnet50", 1);
        unsupported.backbone.depth = 20;
        assert_eq!(
            parameters(&unsupported).unwrap_err(),
            WeightsError::Spec("`backbone.depth` is 20, expected one of [18, 34, 50, 101, 152]".to_owned())
        );
        assert!(matches!(parameters(&spec("resnet50", 0)), Err(WeightsError::Spec(_))));
    }

    /// torchvision.models.resnet50: 4.09 billion multiply-adds at 224x224, including 2 million of its classifier.
    #[test]
    fn backbone_multiply_adds_match_torchvision() {
        let costs = summarize(&spec("resnet50", 80), 224, 224).unwrap();
        let backbone = costs.iter().filter(|cost| !cost.name.contains("Model") && !cost.name.starts_with("fpn"));
        let billions = backbone.map(|cost| cost.multiply_adds).sum::<u64>() as f64 / 1e9;
        assert!((billions - 4.087).abs() < 0.001, "{billions}");
    }
}
