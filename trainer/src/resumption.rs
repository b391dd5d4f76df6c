//! What may change when a run is resumed, and what that means for it.

use anyhow::{bail, ensure};

use crate::config::TrainConfig;
use crate::differences::{differences, is_within};
use crate::run::{EpochSize, RunState};
use crate::schedule::ScheduleKind;

/// The keys that may change. They affect neither the data nor the meaning of the weights and of the optimizer's state.
const CHANGEABLE: [&str; 10] = [
    "run.epochs",
    "run.workers",
    "run.validate_every",
    "run.keep_checkpoints",
    "run.save_every_minutes",
    "schedule.milestones",
    "schedule.patience",
    "schedule.early_stop",
    "augmentation.close_mosaic",
    "data.cache",
];

/// Checks that a run may go on with the configuration `after`.
///
/// # Errors
/// When a key differs that must not.
pub(crate) fn ensure_resumable(before: &TrainConfig, after: &TrainConfig) -> anyhow::Result<()> {
    if let Some(key) = differences(before, after)?.iter().find(|key| !is_within(key, &CHANGEABLE)) {
        bail!(
            "`{key}` cannot change when a run is resumed: its weights and steps so far depend on it; what can change is {}; \
             or start a new run from the weights of this one with --weights",
            CHANGEABLE.join(", ")
        );
    }
    Ok(())
}

/// Why a run has nothing left to do, and how to continue it with `command`; `None` if it has not ended.
pub(crate) fn end(state: &RunState, config: &TrainConfig, command: &str) -> Option<String> {
    let (done, epochs) = (state.epochs, config.run.epochs);
    if done >= epochs {
        let counted = if done == 1 { "epoch".to_owned() } else { format!("{done} epochs") };
        Some(format!(
            "the run has finished its {counted}; to continue: {command} --set run.epochs={}",
            done.saturating_mul(2)
        ))
    } else if config.schedule.is_over(state.patience) {
        Some(format!(
            "the run has stopped early, after {done} of {epochs} epochs; to continue: {command} --set \
             schedule.early_stop=null"
        ))
    } else {
        None
    }
}

/// Checks that a run whose length changes has epochs left.
///
/// # Errors
/// When it has not.
pub(crate) fn ensure_epochs_left(state: &RunState, before: &TrainConfig, after: &TrainConfig) -> anyhow::Result<()> {
    ensure!(
        after.run.epochs == before.run.epochs || after.run.epochs > state.epochs,
        "`run.epochs` is {}, but the run has finished {} epochs already",
        after.run.epochs,
        state.epochs
    );
    Ok(())
}

/// What a new number of epochs means for the learning rate of the next step.
pub(crate) fn new_length(state: &RunState, size: EpochSize, before: &TrainConfig, after: &TrainConfig) -> String {
    let done = state.epochs;
    let rate = |config: &TrainConfig| {
        let position = state.position(size, config.run.epochs);
        config.optimizer.learning_rate(state.world_size) * config.schedule.lr_multiplier(&position)
    };
    let (old, new) = (rate(before), rate(after));
    let change = if new > old {
        format!("rises from {old:.3e} to {new:.3e}")
    } else if new < old {
        format!("falls from {old:.3e} to {new:.3e}")
    } else {
        format!("stays {new:.3e}")
    };
    let schedule = match after.schedule.kind {
        ScheduleKind::Cosine => "the cosine schedule is now that of the new length".to_owned(),
        ScheduleKind::Step => format!("the milestones are {:?}", after.schedule.milestones),
        ScheduleKind::Plateau => "the plateau schedule does not depend on it".to_owned(),
    };
    format!(
        "{} epochs instead of {}, of which {done} are done; {schedule}: the learning rate {change}",
        after.run.epochs, before.run.epochs
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Patience;

    fn config(more: &str) -> TrainConfig {
        let data = "data: {train: {annotations: train.json}, validation: {annotations: val.json}}";
        TrainConfig::parse(&format!("{data}\n{more}")).unwrap()
    }

    #[test]
    fn only_some_keys_may_change() {
        let before = config("");
        for text in [
            "",
            "run: {epochs: 60, validate_every: 2 steps, keep_checkpoints: 3, save_every_minutes: null, workers: 3}",
            "schedule: {early_stop: 3, milestones: [40], patience: 9}",
            "augmentation: {close_mosaic: 5}",
        ] {
            ensure_resumable(&before, &config(text)).unwrap();
        }
        let mut cached = before.clone();
        cached.data.cache.max_gigabytes = 1.0;
        ensure_resumable(&before, &cached).unwrap();
        for (text, key) in [
            ("run: {seed: 1}", "run.seed"),
            ("run: {epochs: 60, ema_decay: 0.9}", "run.ema_decay"),
            ("model: {pyramid: {width: 8}}", "model.pyramid.width"),
            ("model: {classes: [{id: 1, name: a}]}", "model.classes"),
            ("augmentation: {mosaic: {probability: 0.5}}", "augmentation.mosaic.probability"),
        ] {
            let error = ensure_resumable(&before, &config(text)).unwrap_err().to_string();
            assert!(error.starts_with(&format!("`{key}` cannot change")), "{error}");
        }
    }

    #[test]
    fn end_says_how_to_continue() {
        let state = |epochs, stale| RunState {
            epochs,
            patience: Patience { stale, ..Patience::default() },
            ..RunState::default()
        };
        let config = config("run: {epochs: 30}\nschedule: {early_stop: 4}");
        let text = end(&state(30, 4), &config, "fit").unwrap();
        assert_eq!(text, "the run has finished its 30 epochs; to continue: fit --set run.epochs=60");
        let text = end(&state(12, 4), &config, "fit").unwrap();
        assert!(text.contains("12 of 30") && text.ends_with("fit --set schedule.early_stop=null"), "{text}");
        assert_eq!(end(&state(12, 3), &config, "fit"), None);
    }

    #[test]
    fn effect_of_a_new_length_on_the_learning_rate_is_said() {
        let state = RunState { steps: 300, epochs: 30, world_size: 1, ..RunState::default() };
        let text = |kind: &str| {
            let of = |epochs| {
                let schedule =
                    format!("schedule: {{kind: {kind}, warmup_steps: 0, milestones: [20], final_lr_ratio: 0.0}}");
                config(&format!("run: {{epochs: {epochs}}}\noptimizer: {{learning_rate: 0.01}}\n{schedule}"))
            };
            new_length(&state, EpochSize { images: 10, images_per_step: 1 }, &of(30), &of(60))
        };
        let cosine = text("cosine");
        assert!(cosine.starts_with("60 epochs instead of 30, of which 30 are done; the cosine schedule"), "{cosine}");
        assert!(cosine.ends_with("rises from 0.000e0 to 5.000e-3"), "{cosine}");
        assert!(
            text("step").ends_with("the milestones are [20]: the learning rate stays 1.000e-3"),
            "{}",
            text("step")
        );
        assert!(text("plateau").ends_with("the learning rate stays 1.000e-2"));
    }

    #[test]
    fn a_new_length_must_leave_epochs() {
        let state = RunState { epochs: 30, ..RunState::default() };
        let of = |epochs| config(&format!("run: {{epochs: {epochs}}}"));
        for (epochs, valid) in [(20, false), (30, false), (31, true), (50, true)] {
            assert_eq!(ensure_epochs_left(&state, &of(50), &of(epochs)).is_ok(), valid, "{epochs}");
        }
    }
}
