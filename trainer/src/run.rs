//! A training run: epochs of steps, each followed by validation and a save.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, anyhow, bail, ensure};
use models::dataset::Dataset;
use models::evaluation::{ScoredBox, evaluate};
use models::{Checkpoint, Provenance};
use runtime::progress::{say, warn};

use crate::annotated::annotated;
use crate::config::TrainConfig;
use crate::device::Device;
use crate::failure::{TorchError, catch};
use crate::journal::{Journal, Learned, Seconds, Validated};
use crate::learner::{Learner, Step};
use crate::loader::{Batch, Loader, Sampler};
use crate::loss::LossConfig;
use crate::predictor::{Predictor, validation_batches};
use crate::progress::{Count, EpochProgress, counted, print};
use crate::report::{self, Material};
use crate::resumption;
use crate::run_folder::{Progress, RunFolder};
use crate::schedule::SchedulePosition;

/// Number of validation images in TensorBoard after each validation.
const SAMPLES: usize = 4;

/// A training run.
pub(crate) struct Run {
    folder: RunFolder,
    config: TrainConfig,
    data: RunData,
    learner: Learner,
    progress: Progress,
    /// Set to stop the run after the current step.
    interrupted: Arc<AtomicBool>,
    /// The command that resumes the run.
    resumption: String,
}

/// The data of a run.
pub(crate) struct RunData {
    pub(crate) train: Loader,
    pub(crate) validation: Loader,
    /// Chooses the training images of every epoch.
    pub(crate) sampler: Sampler,
    /// Fingerprints of the image files of both splits if all of them can be read.
    pub(crate) checked_images: [Option<u64>; 2],
}

impl Run {
    /// A run on `device` that writes to `folder`. It stops when `interrupted` is
    /// set; `resumption` is the command that resumes it, for messages.
    pub(crate) fn new(
        folder: RunFolder,
        config: TrainConfig,
        data: RunData,
        learner: Learner,
        device: Device,
        interrupted: Arc<AtomicBool>,
        resumption: String,
    ) -> Self {
        let progress = Progress { device, checked_images: data.checked_images, ..Progress::default() };
        Self { folder, config, data, learner, progress, interrupted, resumption }
    }

    /// Runs all epochs.
    ///
    /// # Errors
    /// When the folder cannot be written, an image cannot be read, libtorch fails, the loss is not finite, or the run
    /// is interrupted.
    pub(crate) fn begin(mut self) -> anyhow::Result<()> {
        self.progress.data = self.checksums();
        self.save(None, false)?;
        self.folder.begin(&self.config)?;
        self.finish()
    }

    /// Runs the remaining steps and epochs. The configuration was `before` until now; the changed one is written first.
    ///
    /// # Errors
    /// Like [`Self::begin`], and when the folder's state does not match the configuration or the data.
    pub(crate) fn resume(mut self, before: &TrainConfig) -> anyhow::Result<()> {
        let Progress { device, checked_images, .. } = self.progress;
        self.progress = Progress { device, checked_images, ..self.folder.restore(&mut self.learner)? };
        ensure!(
            self.progress.data == self.checksums(),
            "images, boxes or classes have changed since the run in `{}` was started; start a new run",
            self.folder.path().display()
        );
        if self.config != *before {
            self.folder.write_config(&self.config)?;
        }
        if self.config.run.epochs != before.run.epochs {
            let steps_per_epoch = self.steps_per_epoch() as u64;
            say(format_args!("{}", resumption::new_length(&self.progress, steps_per_epoch, before, &self.config)));
        }
        self.finish()
    }

    /// Checksums of the training and the validation data.
    fn checksums(&self) -> [u32; 2] {
        let RunData { train, validation, sampler, .. } = &self.data;
        [checksum(&train.recipe().dataset, sampler.repeats()), checksum(&validation.recipe().dataset, &[])]
    }

    fn steps_per_epoch(&self) -> usize {
        let batches = self.data.sampler.images_per_epoch().div_ceil(self.config.run.batch_size);
        batches.div_ceil(self.config.optimizer.gradient_accumulation_steps)
    }

    fn finish(mut self) -> anyhow::Result<()> {
        let images = self.data.train.recipe().dataset.images().len();
        let drawn = self.data.sampler.images_per_epoch();
        let steps_per_epoch = self.steps_per_epoch();
        let steps = steps_per_epoch as u64 * u64::from(self.config.run.epochs);
        self.config.warnings(steps).iter().for_each(|text| warn(format_args!("{text}")));
        say(format_args!(
            "{}{}, {}, {}; {} of {}; writing to {}",
            counted(images, "training image", "training images"),
            if drawn == images { String::new() } else { format!(" ({drawn} in an epoch)") },
            counted(self.data.validation.recipe().dataset.images().len(), "validation image", "validation images"),
            counted(self.learner.spec.class_count(), "class", "classes"),
            counted(self.config.run.epochs as usize, "epoch", "epochs"),
            counted(steps_per_epoch, "step", "steps"),
            self.folder.path().display()
        ));
        let mut journal = Journal::open(self.folder.path(), &self.progress)?;
        while self.progress.epochs < self.config.run.epochs {
            if self.config.schedule.is_over(self.progress.patience) {
                say(format_args!("stopping early: no better AP in {} validations", self.progress.patience.stale));
                break;
            }
            let learned = self.learn(steps, &mut journal)?;
            let epoch = self.progress.epochs + 1;
            let due = epoch == self.config.run.epochs || epoch.is_multiple_of(self.config.run.validate_every);
            let scored = due.then(|| self.validate(epoch)).transpose()?;
            let finished = self.finish_epoch(&learned, scored, &mut journal);
            finished.map_err(|error| self.halt(error))?;
        }
        self.report()?;
        print_result(&self.folder, &self.progress)
    }

    /// Runs the remaining steps of the current epoch; `steps` is the number of steps in the run.
    fn learn(&mut self, steps: u64, journal: &mut Journal) -> anyhow::Result<Learned> {
        let (epoch, epochs) = (self.progress.epochs, self.config.run.epochs);
        let all = self.data.sampler.images_per_epoch();
        let requests = self.data.sampler.batches(epoch);
        let per_step = self.config.optimizer.gradient_accumulation_steps;
        let steps_per_epoch = requests.len().div_ceil(per_step) as u64;
        let made = self.progress.steps.checked_sub(u64::from(epoch) * steps_per_epoch);
        let made = made.filter(|made| *made <= steps_per_epoch).with_context(|| {
            let steps = self.progress.steps;
            format!("the run's state has {steps} steps, which are not in epoch {}; start a new run", epoch + 1)
        })?;
        // The last step of an epoch may have fewer batches than the others.
        let requests = &requests[requests.len().min(made as usize * per_step)..];
        let count = requests.iter().map(|request| request.indices.len() as u64).sum();
        let later = u64::from(epochs - epoch - 1) * all as u64;
        let mut shown = EpochProgress::new(format!("epoch {}/{epochs}", epoch + 1), count, later);
        let mut spent = Seconds::default();
        let mut saved = Instant::now();
        let augmentation = self.config.augmentation.of_epoch(epoch, epochs);
        let mut batches = self.data.train.batches_with(augmentation, requests.iter().cloned());
        loop {
            let start = Instant::now();
            let together = batches.by_ref().take(per_step).collect::<anyhow::Result<Vec<_>>>();
            let waited = start.elapsed().as_secs_f64();
            self.stop_if_interrupted()?;
            let together = together.map_err(|error| self.stop(error))?;
            if together.is_empty() {
                break;
            }
            let Progress { steps: step, patience, .. } = self.progress;
            let step = self.learner.step(&together, &SchedulePosition { step, steps, epoch, patience });
            let step = step.map_err(|error| self.fail(error))?;
            if !step.is_finite() {
                bail!(not_finite(&step, &together, &self.data.train.recipe().dataset));
            }
            let count: usize = together.iter().map(|batch| batch.indices.len()).sum();
            self.progress.steps += 1;
            journal.step(&self.progress, &step).map_err(|error| self.halt(error))?;
            for (sum, loss) in self.progress.losses.iter_mut().zip([step.classification_loss, step.box_loss]) {
                *sum += loss * count as f64;
            }
            shown.step(count, &step);
            spent.add(waited, &step.seconds);
            if self.config.run.save_every_minutes.is_some_and(|minutes| saved.elapsed().as_secs_f64() >= minutes * 60.0)
            {
                self.save(None, false).map_err(|error| self.halt(error))?;
                saved = Instant::now();
            }
        }
        let [classification_loss, box_loss] = self.progress.losses.map(|sum| sum / all.max(1) as f64);
        let (seconds, images_per_second) = (shown.elapsed().as_secs_f64(), shown.images_per_second());
        Ok(Learned { classification_loss, box_loss, seconds, images_per_second, spent })
    }

    /// Writes the report on the best checkpoint.
    fn report(&self) -> anyhow::Result<()> {
        let best = Checkpoint::open(&self.folder.best_path())?;
        let predictor = Predictor::from_checkpoint(&best, self.learner.device)?;
        let scored = self.detect("report", |batch| predictor.detect(batch))?;
        let material = Material {
            folder: self.folder.path(),
            recipe: self.data.validation.recipe(),
            scored: &scored,
            best_epoch: best.provenance.epoch,
            command: &std::env::args().collect::<Vec<_>>().join(" "),
        };
        say(format_args!("wrote `{}`", report::write(&material)?.display()));
        Ok(())
    }

    /// The detections of the network in the validation images, and its loss, which is that of one large batch.
    fn validate(&self, epoch: u32) -> anyhow::Result<(Vec<ScoredBox>, [f64; 2])> {
        let LossConfig { normalizer, .. } = self.config.loss;
        let (mut sums, mut divisor) = ([0.0; 2], 0);
        let scored = self.detect(&format!("validation {epoch}"), |batch| {
            let (scored, loss) = self.learner.predictor.validate(batch, &self.config.loss);
            let batch_divisor = batch.loss_divisor(normalizer);
            divisor += batch_divisor;
            sums.iter_mut().zip(loss).for_each(|(sum, loss)| *sum += loss * batch_divisor.max(1) as f64);
            scored
        })?;
        Ok((scored, sums.map(|sum| sum / divisor.max(1) as f64)))
    }

    /// What `find` detects in the validation images.
    fn detect(&self, title: &str, mut find: impl FnMut(&Batch) -> Vec<ScoredBox>) -> anyhow::Result<Vec<ScoredBox>> {
        let count = Count::new(title, self.data.validation.recipe().dataset.images().len() as u64);
        let mut scored = Vec::new();
        for batch in validation_batches(&self.data.validation, self.config.run.batch_size) {
            self.stop_if_interrupted()?;
            let batch = batch.map_err(|error| self.stop(error))?;
            scored.extend(catch(|| find(&batch)).map_err(|error| self.fail(error))?);
            batch.indices.iter().for_each(|_| count.advance());
        }
        Ok(scored)
    }

    /// Writes a few validation images with their detections to TensorBoard, always the same ones.
    fn show_samples(&self, scored: &[ScoredBox], journal: &mut Journal) -> anyhow::Result<()> {
        let recipe = self.data.validation.recipe();
        let images = recipe.dataset.images().len();
        for index in (0..images).step_by(images.div_ceil(SAMPLES).max(1)) {
            let image = annotated(recipe, index, scored)?;
            journal.image(&self.progress, &recipe.dataset.images()[index].file_name, &image)?;
        }
        Ok(())
    }

    /// Ends an epoch: evaluates the detections of its validation, if it had one, then logs and saves. `validation` also has
    /// the loss.
    fn finish_epoch(
        &mut self,
        learned: &Learned,
        validation: Option<(Vec<ScoredBox>, [f64; 2])>,
        journal: &mut Journal,
    ) -> anyhow::Result<()> {
        let dataset = &self.data.validation.recipe().dataset;
        let validated = validation.as_ref().map(|(scored, [classification_loss, box_loss])| Validated {
            classification_loss: *classification_loss,
            box_loss: *box_loss,
            summary: evaluate(dataset.annotations(), scored, dataset.classes().len()).summary,
        });
        let ap = validated.map(|validated| validated.summary.ap);
        let reductions = self.progress.patience.reductions;
        let mut best = false;
        self.progress.epochs += 1;
        self.progress.losses = [0.0; 2];
        if let Some(ap) = ap {
            best = self.progress.best_ap.is_none_or(|best| ap > best);
            self.progress.last_ap = Some(ap);
            self.progress.patience = self.config.schedule.after_validation(self.progress.patience, best);
            if best {
                self.progress.best_ap = Some(ap);
            }
        }
        journal.epoch(&self.progress, learned, validated.as_ref())?;
        self.save(ap, best)?;
        if let Some((scored, _)) = &validation
            && let Err(error) = self.show_samples(scored, journal)
        {
            warn(format_args!("cannot write images of epoch {} for TensorBoard: {error:#}", self.progress.epochs));
        }
        let Learned { classification_loss, box_loss, seconds, images_per_second, .. } = learned;
        let found = validated.map_or_else(String::new, |validated| format!("; validation: {validated}"));
        say(format_args!(
            "epoch {}/{}: classification loss {classification_loss:.4}, box loss {box_loss:.4}{found}{}; \
             {seconds:.1} s, {images_per_second:.1} images/s{}",
            self.progress.epochs,
            self.config.run.epochs,
            if best { " (best so far)" } else { "" },
            if self.progress.patience.reductions > reductions { "; learning rate reduced" } else { "" },
        ));
        Ok(())
    }

    fn save(&self, ap: Option<f64>, best: bool) -> anyhow::Result<()> {
        let program = concat!("trainer ", env!("CARGO_PKG_VERSION")).to_owned();
        let checkpoint =
            self.learner.checkpoint(Provenance { program, epoch: Some(self.progress.epochs), ap, origin: None })?;
        self.folder.save(&self.learner, &self.progress, &checkpoint, best)
    }

    fn stop_if_interrupted(&self) -> anyhow::Result<()> {
        if self.interrupted.load(Ordering::SeqCst) { Err(self.stop(anyhow!("interrupted"))) } else { Ok(()) }
    }

    /// Saves the run after a failure of libtorch, if the weights are intact, and returns the error message.
    fn fail(&self, error: TorchError) -> anyhow::Error {
        let (run, model) = (&self.config.run, &self.config.model);
        let advice = if error.is_out_of_memory() {
            format!(
                "; start a new run with a lower `run.batch_size` ({}) and a higher \
                 `optimizer.gradient_accumulation_steps` ({}), a lower `model.preprocessing.longer_side` ({}), or \
                 `run.precision: bfloat16`",
                run.batch_size, self.config.optimizer.gradient_accumulation_steps, model.preprocessing.longer_side
            )
        } else {
            String::new()
        };
        let reason = anyhow!("libtorch failed on {}: {error}{advice}", self.progress.device);
        if self.learner.is_torn() { self.halt(reason) } else { self.stop(reason) }
    }

    /// The error message of a run that stops without being saved.
    fn halt(&self, reason: anyhow::Error) -> anyhow::Error {
        anyhow!("{reason:#}; to resume from the last save: {}", self.resumption)
    }

    /// Saves the run, so that it can be resumed, and returns the error message.
    fn stop(&self, reason: anyhow::Error) -> anyhow::Error {
        let steps = self.progress.steps;
        match catch(|| self.save(None, false)).map_err(Into::into).flatten() {
            Ok(()) => anyhow!("{reason:#}; saved after step {steps}; to resume: {}", self.resumption),
            Err(error) => self.halt(anyhow!("{reason:#}; saving the run failed too: {error:#}")),
        }
    }
}

/// Prints the result of a finished run.
///
/// # Errors
/// When stdout cannot be written.
pub(crate) fn print_result(folder: &RunFolder, progress: &Progress) -> anyhow::Result<()> {
    let (best, last) = (progress.best_ap.unwrap_or_default(), progress.last_ap.unwrap_or_default());
    print(&format!("best AP {best:.4}, last AP {last:.4}; {}", folder.best_path().display()))
}

/// A checksum of the data set's images, boxes and classes, and of how often each image is in an epoch; independent of its folder.
fn checksum(dataset: &Dataset, repeats: &[f64]) -> u32 {
    struct Sum(u32);
    impl fmt::Write for Sum {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0 = crc32c::crc32c_append(self.0, text.as_bytes());
            Ok(())
        }
    }
    let (images, annotations, classes) = (dataset.images(), dataset.annotations(), dataset.classes());
    let mut sum = Sum(0);
    write!(sum, "{images:?}{annotations:?}{classes:?}{repeats:?}").expect("writing to a checksum cannot fail");
    sum.0
}

/// The error message of a step whose loss or gradient is not finite.
fn not_finite(step: &Step, batches: &[Batch], dataset: &Dataset) -> String {
    let mut text = format!(
        "the loss is not finite: classification loss {}, box loss {}, gradient norm {}, learning rate {}; lower \
         `optimizer.learning_rate`, raise `schedule.warmup_steps`, or check the boxes of this batch:",
        step.classification_loss, step.box_loss, step.gradient_norm, step.learning_rate
    );
    for &image in batches.iter().flat_map(|batch| &batch.indices) {
        let boxes = dataset.annotations_of(image).iter().map(|annotation| {
            let corners: [f32; 4] = annotation.rectangle.bounding_box().into();
            format!("{} {corners:?}", dataset.classes()[annotation.class_index].name)
        });
        let boxes = boxes.collect::<Vec<_>>().join(", ");
        let _ = write!(text, "\n  {}: {boxes}", dataset.images()[image].file_name);
    }
    text
}

#[cfg(test)]
mod tests {
    use models::dataset::{Annotation, Image, Rectangle};
    use models::spec::Class;

    use super::*;

    #[test]
    fn checksum_depends_on_images_boxes_classes_and_repeats_only() {
        let image = Image { id: 1, file_name: "a.png".to_owned(), width: 8, height: 8 };
        let rectangle = Rectangle { x: 0.5, y: 1.0, width: 2.0, height: 3.0 };
        let annotation =
            Annotation { id: 1, image: 0, class_index: 0, rectangle, area: 6.0, crowd: false, difficult: false };
        let class = Class { id: 1, name: "cell".to_owned() };
        let dataset = |folder: &str, image: &Image, annotation: &Annotation, class: &Class| {
            let (images, annotations) = (vec![image.clone()], vec![annotation.clone()]);
            Dataset::new(folder, images, annotations, vec![class.clone()]).unwrap()
        };
        let repeated = checksum(&dataset("here", &image, &annotation, &class), &[2.0]);
        let sum = |folder, image, annotation, class| checksum(&dataset(folder, image, annotation, class), &[1.0]);
        let expected = sum("here", &image, &annotation, &class);
        assert_eq!(sum("there", &image, &annotation, &class), expected);
        let moved = Annotation { rectangle: Rectangle { x: 0.25, ..rectangle }, ..annotation.clone() };
        let renamed = Class { id: 1, name: "disk".to_owned() };
        let wider = Image { width: 9, ..image.clone() };
        for other in [
            sum("here", &wider, &annotation, &class),
            sum("here", &image, &moved, &class),
            sum("here", &image, &annotation, &renamed),
            repeated,
        ] {
            assert_ne!(other, expected);
        }
    }
}
