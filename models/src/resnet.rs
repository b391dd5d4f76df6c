//! The backbone: a ResNet or ResNeXt without its classifier. <https://arxiv.org/abs/1512.03385>, table 1.

use crate::layers::{Conv2dConfig, MaxPool, NormedConv2d};
use crate::spec::BackboneSpec;
use crate::tensor::{Layer, Tensor};
use crate::weights::{Scope, WeightsError};

/// The feature maps C3, C4 and C5, at strides 8, 16 and 32.
pub(crate) struct Features<T> {
    pub(crate) c3: T,
    pub(crate) c4: T,
    pub(crate) c5: T,
}

/// A ResNet or ResNeXt.
pub(crate) struct ResNet<T> {
    conv1: NormedConv2d<T>,
    layer1: Stage<T>,
    layer2: Stage<T>,
    layer3: Stage<T>,
    layer4: Stage<T>,
}

impl<T: Tensor> ResNet<T> {
    pub(crate) fn new(scope: &Scope<T>, spec: &BackboneSpec) -> Result<Self, WeightsError> {
        let layout = spec.layout()?;
        let stem = Conv2dConfig { inputs: 3, outputs: 64, kernel: 7, stride: 2, padding: 3, groups: 1 };
        let [c2, c3, c4, _] = layout.widths();
        let stage = |index: usize, inputs: usize| {
            let size = BlockConfig { inputs, planes: 64 << index, stride: if index == 0 { 1 } else { 2 } };
            Stage::new(&scope.at(format!("layer{}", index + 1)), size, layout.blocks[index], spec)
        };
        Ok(Self {
            conv1: NormedConv2d::without_bias(scope, ["conv1", "bn1"], stem, &spec.norm)?,
            layer1: stage(0, 64)?,
            layer2: stage(1, c2)?,
            layer3: stage(2, c3)?,
            layer4: stage(3, c4)?,
        })
    }

    pub(crate) fn forward(&self, images: &T) -> Features<T> {
        let x = images.apply(&self.conv1).relu();
        let x = x.max_pool(MaxPool { kernel: 3, stride: 2, padding: 1 });
        let c2 = x.apply(&self.layer1);
        let c3 = c2.apply(&self.layer2);
        let c4 = c3.apply(&self.layer3);
        let c5 = c4.apply(&self.layer4);
        Features { c3, c4, c5 }
    }
}

/// The residual blocks at one resolution.
struct Stage<T>(Vec<Block<T>>);

impl<T: Tensor> Stage<T> {
    /// `first` is the size of the first block; the others keep the shape of its output.
    fn new(scope: &Scope<T>, first: BlockConfig, blocks: usize, spec: &BackboneSpec) -> Result<Self, WeightsError> {
        let layout = spec.layout()?;
        let others = BlockConfig { inputs: first.planes * layout.expansion(), stride: 1, ..first };
        let blocks = (0..blocks).map(|index| {
            let (scope, size) = (scope.at(index), if index == 0 { first } else { others });
            match layout.bottleneck {
                false => BasicBlock::new(&scope, size, spec).map(Block::Basic),
                true => Bottleneck::new(&scope, size, spec).map(Block::Bottleneck),
            }
        });
        Ok(Self(blocks.collect::<Result<_, _>>()?))
    }
}

impl<T: Tensor> Layer<T> for Stage<T> {
    fn forward(&self, x: &T) -> T {
        self.0.iter().fold(x.clone(), |x, block| match block {
            Block::Basic(block) => block.forward(&x),
            Block::Bottleneck(block) => block.forward(&x),
        })
    }
}

enum Block<T> {
    Basic(BasicBlock<T>),
    Bottleneck(Bottleneck<T>),
}

#[derive(Clone, Copy)]
struct BlockConfig {
    inputs: usize,
    planes: usize,
    stride: usize,
}

/// Two 3x3 convolutions with a shortcut around them.
struct BasicBlock<T> {
    conv1: NormedConv2d<T>,
    conv2: NormedConv2d<T>,
    downsample: Option<NormedConv2d<T>>,
}

impl<T: Tensor> BasicBlock<T> {
    fn new(scope: &Scope<T>, size: BlockConfig, spec: &BackboneSpec) -> Result<Self, WeightsError> {
        let BlockConfig { inputs, planes, stride } = size;
        let conv = convolutions(scope, spec);
        Ok(Self {
            conv1: conv(1, Conv2dConfig::same(inputs, planes, 3).stride(stride))?,
            conv2: conv(2, Conv2dConfig::same(planes, planes, 3))?,
            downsample: downsample(scope, size, planes, spec)?,
        })
    }

    fn forward(&self, x: &T) -> T {
        let y = x.apply(&self.conv1).relu().apply(&self.conv2);
        y.add(&shortcut(x, self.downsample.as_ref())).relu()
    }
}

/// A 3x3 convolution between two 1x1 convolutions, with a shortcut around them.
struct Bottleneck<T> {
    conv1: NormedConv2d<T>,
    conv2: NormedConv2d<T>,
    conv3: NormedConv2d<T>,
    downsample: Option<NormedConv2d<T>>,
}

impl<T: Tensor> Bottleneck<T> {
    fn new(scope: &Scope<T>, size: BlockConfig, spec: &BackboneSpec) -> Result<Self, WeightsError> {
        let BlockConfig { inputs, planes, stride } = size;
        let outputs = 4 * planes;
        let width = planes * spec.width_per_group / 64 * spec.groups;
        let (outer_stride, middle_stride) = if spec.stride_in_1x1 { (stride, 1) } else { (1, stride) };
        let middle = Conv2dConfig::same(width, width, 3).stride(middle_stride).groups(spec.groups);
        let conv = convolutions(scope, spec);
        Ok(Self {
            conv1: conv(1, Conv2dConfig::same(inputs, width, 1).stride(outer_stride))?,
            conv2: conv(2, middle)?,
            conv3: conv(3, Conv2dConfig::same(width, outputs, 1))?,
            downsample: downsample(scope, size, outputs, spec)?,
        })
    }

    fn forward(&self, x: &T) -> T {
        let y = x.apply(&self.conv1).relu().apply(&self.conv2).relu().apply(&self.conv3);
        y.add(&shortcut(x, self.downsample.as_ref())).relu()
    }
}

/// Makes the convolutions of a block, with their norms, by their numbers.
fn convolutions<T>(
    scope: &Scope<T>,
    spec: &BackboneSpec,
) -> impl Fn(usize, Conv2dConfig) -> Result<NormedConv2d<T>, WeightsError> {
    |number, config| {
        let names = [format!("conv{number}"), format!("bn{number}")];
        NormedConv2d::without_bias(scope, names.each_ref().map(String::as_str), config, &spec.norm)
    }
}

/// The 1x1 projection of a shortcut, if its input and output differ in shape.
fn downsample<T>(
    scope: &Scope<T>,
    size: BlockConfig,
    outputs: usize,
    spec: &BackboneSpec,
) -> Result<Option<NormedConv2d<T>>, WeightsError> {
    if size.stride == 1 && size.inputs == outputs {
        return Ok(None);
    }
    let config = Conv2dConfig::same(size.inputs, outputs, 1).stride(size.stride);
    NormedConv2d::without_bias(&scope.at("downsample"), ["0", "1"], config, &spec.norm).map(Some)
}

fn shortcut<T: Tensor>(x: &T, downsample: Option<&NormedConv2d<T>>) -> T {
    downsample.map_or_else(|| x.clone(), |downsample| x.apply(downsample))
}
