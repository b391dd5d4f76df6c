//! The network of a training model, with the losses of batches.

use std::rc::Rc;

use models::spec::{BoxCoderSpec, NormKind, PreprocessingSpec};
use models::{ModelSpec, Parameter, RetinaNet, Role, WeightsError};
use process_group::ProcessGroup;
use tch::{Device, Kind, Tensor};

use crate::config::TrainConfig;
use crate::loader::Batch;
use crate::loss::{Loss, LossConfig};
use crate::parameters::Parameters;
use crate::part::Part;
use crate::sync_batch_norm::synchronized;
use crate::torch::{Torch, Training};

/// A network whose weights are views of the [`Parameters`] in training.
pub(crate) struct TrainingNetwork {
    network: RetinaNet<Training>,
    device: Device,
    preprocessing: PreprocessingSpec,
    box_coder: BoxCoderSpec,
    loss: LossConfig,
    /// The data type of the images, and so of the computation.
    kind: Kind,
    channels_last: bool,
    /// Whether there are batch norms whose running statistics training updates.
    pub(crate) has_live_norms: bool,
    sync_batch_norm: bool,
    /// The ranks whose live norms use common statistics, if they do.
    pub(crate) synchronized: Option<Rc<ProcessGroup>>,
}

impl TrainingNetwork {
    /// `list` has the parameters of the spec.
    pub(crate) fn new(
        spec: &ModelSpec,
        config: &TrainConfig,
        list: &[Parameter],
        parameters: &Parameters,
    ) -> Result<Self, WeightsError> {
        Ok(Self {
            network: RetinaNet::new(spec, parameters)?,
            device: parameters.trainable.device(),
            preprocessing: spec.preprocessing.clone(),
            box_coder: spec.box_coder.clone(),
            loss: config.loss.clone(),
            kind: config.run.precision.kind(),
            channels_last: config.run.channels_last,
            has_live_norms: has_live_norms(spec, list, config.run.freeze),
            sync_batch_norm: config.run.sync_batch_norm,
            synchronized: None,
        })
    }

    /// Lets live norms use the statistics of a group, if so configured.
    pub(crate) fn synchronize_norms(&mut self, group: &Rc<ProcessGroup>) {
        self.synchronized = (self.sync_batch_norm && self.has_live_norms).then(|| group.clone());
    }

    /// The loss of a batch.
    pub(crate) fn loss(&self, batch: &Batch) -> Loss {
        let input = batch.images_on(self.device, self.channels_last, &self.preprocessing);
        // Before the forward pass, because a copy to a GPU waits for what was started before it.
        let targets = batch.targets_on(self.device);
        let [logits, offsets] = self.forward(&input, 1.0);
        Loss::new(&logits, &offsets, &targets, &self.loss, &self.box_coder)
    }

    /// A loss of zero, for a rank without a batch: takes part in synchronized norms with an image that does not count.
    pub(crate) fn loss_of_nothing(&self) -> Tensor {
        const SIDE: i64 = 64;
        let input = Tensor::zeros([1, 3, SIDE, SIDE], (Kind::Float, self.device));
        let [logits, offsets] = self.forward(&input, 0.0);
        (logits.sum(Kind::Float) + offsets.sum(Kind::Float)) * 0.0
    }

    /// Logits and offsets. If norms are synchronized, `weight` is how often the images count in them.
    fn forward(&self, images: &Tensor, weight: f64) -> [Tensor; 2] {
        let forward = || self.network.forward(&Torch(images.to_kind(self.kind)));
        let predictions = match &self.synchronized {
            Some(group) => synchronized(group, weight, forward),
            None => forward(),
        };
        [predictions.logits.0, predictions.offsets.0].map(|tensor| tensor.to_kind(Kind::Float))
    }
}

/// Whether a norm with the statistics of its batch is in the part of the network that is trained.
fn has_live_norms(spec: &ModelSpec, list: &[Parameter], frozen: Option<Part>) -> bool {
    let is_live = |parameter: &&Parameter| {
        let part = Part::of(&parameter.name);
        let norm = if part.is_backbone() { Some(&spec.backbone.norm) } else { spec.heads.norm.as_ref() };
        norm.is_some_and(|norm| norm.kind == NormKind::Batch) && frozen.is_none_or(|frozen| part > frozen)
    };
    list.iter().filter(|parameter| parameter.role == Role::Buffer).any(|parameter| is_live(&parameter))
}
