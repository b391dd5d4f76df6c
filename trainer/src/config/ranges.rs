//! The ranges of the settings.

use anyhow::{bail, ensure};
use models::Matcher;

use super::{RunConfig, TrainConfig};
use crate::batch_size::BatchSize;
use crate::loss::LossConfig;
use crate::optimizer::{OptimizerConfig, OptimizerKind};
use crate::part::Part;
use crate::schedule::{ScheduleConfig, ScheduleKind};

impl TrainConfig {
    /// Checks what types do not.
    pub(super) fn validate(&self) -> anyhow::Result<()> {
        self.data.validate()?;
        self.augmentation.validate()?;
        check_matching(&self.matching)?;
        check_loss(&self.loss)?;
        check_optimizer(&self.optimizer)?;
        check_schedule(&self.schedule, self.run.epochs)?;
        check_run(&self.run)
    }
}

fn fraction(name: &str, value: f64) -> anyhow::Result<()> {
    ensure!((0.0..=1.0).contains(&value), "`{name}` is {value}, expected 0 to 1");
    Ok(())
}

fn not_negative(name: &str, value: f64) -> anyhow::Result<()> {
    ensure!(value.is_finite() && value >= 0.0, "`{name}` is {value}, expected zero or more");
    Ok(())
}

fn check_matching(matching: &Matcher) -> anyhow::Result<()> {
    let thresholds = [matching.background_iou_threshold, matching.foreground_iou_threshold];
    if !(0.0 <= thresholds[0] && thresholds[0] <= thresholds[1] && thresholds[1] <= 1.0) {
        bail!(
            "`matching` has the IoU thresholds {thresholds:?}, expected 0 <= background_iou_threshold <= \
             foreground_iou_threshold <= 1"
        );
    }
    Ok(())
}

fn check_loss(loss: &LossConfig) -> anyhow::Result<()> {
    fraction("loss.alpha", loss.alpha)?;
    not_negative("loss.gamma", loss.gamma)?;
    not_negative("loss.box_loss_weight", loss.box_loss_weight)?;
    let beta = loss.smooth_l1_beta;
    ensure!(beta.is_finite() && beta > 0.0, "`loss.smooth_l1_beta` is {beta}, expected more than zero");
    Ok(())
}

fn check_optimizer(optimizer: &OptimizerConfig) -> anyhow::Result<()> {
    not_negative("optimizer.learning_rate", optimizer.learning_rate)?;
    not_negative("optimizer.backbone_lr_multiplier", optimizer.backbone_lr_multiplier)?;
    not_negative("optimizer.weight_decay", optimizer.weight_decay)?;
    fraction("optimizer.momentum", optimizer.momentum)?;
    for beta in optimizer.betas {
        ensure!((0.0..1.0).contains(&beta), "`optimizer.betas` contains {beta}, expected 0 to 1, 1 excluded");
    }
    if let Some(norm) = optimizer.clip_grad_norm {
        ensure!(norm > 0.0, "`optimizer.clip_grad_norm` is {norm}, expected more than zero, or null");
    }
    ensure!(
        !optimizer.nesterov || (optimizer.kind == OptimizerKind::Sgd && optimizer.momentum > 0.0),
        "`optimizer.nesterov` requires `kind: sgd` and a momentum above zero"
    );
    ensure!(
        optimizer.gradient_accumulation_steps > 0,
        "`optimizer.gradient_accumulation_steps` is 0, expected at least 1"
    );
    Ok(())
}

fn check_schedule(schedule: &ScheduleConfig, epochs: u32) -> anyhow::Result<()> {
    fraction("schedule.final_lr_ratio", schedule.final_lr_ratio)?;
    let (factor, milestones) = (schedule.factor, &schedule.milestones);
    ensure!(factor > 0.0 && factor < 1.0, "`schedule.factor` is {factor}, expected 0 to 1, both excluded");
    ensure!(
        schedule.kind != ScheduleKind::Step || !milestones.is_empty(),
        "`schedule.milestones` is empty, expected the epochs after which the learning rate is reduced"
    );
    ensure!(
        milestones.iter().all(|epoch| (1..epochs).contains(epoch)),
        "`schedule.milestones` is {milestones:?}, expected epochs within the run, from 1 to {}",
        epochs.saturating_sub(1)
    );
    ensure!(schedule.early_stop != Some(0), "`schedule.early_stop` is 0, expected at least 1, or null");
    Ok(())
}

fn check_run(run: &RunConfig) -> anyhow::Result<()> {
    ensure!(run.epochs > 0, "`run.epochs` is 0, expected at least 1");
    ensure!(run.batch_size != BatchSize::Images(0), "`run.batch_size` is 0, expected at least 1, or `auto`");
    ensure!(
        run.freeze != Some(Part::Heads),
        "`run.freeze` is `heads`, which leaves nothing to train; expected at most `pyramid`"
    );
    if let Some(decay) = run.ema_decay {
        ensure!((0.0..1.0).contains(&decay), "`run.ema_decay` is {decay}, expected 0 to 1, 1 excluded, or null");
    }
    ensure!(run.keep_checkpoints != Some(0), "`run.keep_checkpoints` is 0, expected at least 1, or null");
    if let Some(minutes) = run.save_every_minutes {
        ensure!(minutes > 0.0, "`run.save_every_minutes` is {minutes}, expected more than zero, or null");
    }
    ensure!((1..=256).contains(&run.workers), "`run.workers` is {}, expected 1 to 256", run.workers);
    Ok(())
}
