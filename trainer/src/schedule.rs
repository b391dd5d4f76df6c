//! Learning rate schedules and early stopping.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The learning rate schedule: linear warm-up, then `kind`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleConfig {
    /// Number of warm-up steps.
    pub warmup_steps: u64,
    /// The schedule after warm-up.
    pub kind: ScheduleKind,
    /// Cosine: final learning rate as a fraction of the learning rate, in [0, 1].
    pub final_lr_ratio: f64,
    /// Step: epochs after which the learning rate is multiplied by `factor`.
    pub milestones: Vec<u32>,
    /// Step and plateau: factor on the learning rate, in (0, 1).
    pub factor: f64,
    /// Plateau: the learning rate is multiplied by `factor` after more than this many validations without a better AP.
    pub patience: u32,
    /// The run ends after this many validations without a better AP. `None`: never.
    pub early_stop: Option<u32>,
}

/// Schedules after warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// Half a cosine. <https://arxiv.org/abs/1608.03983>
    Cosine,
    /// Reduction at given epochs.
    Step,
    /// Reduction when AP no longer improves.
    Plateau,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self {
            warmup_steps: 100,
            kind: ScheduleKind::Cosine,
            final_lr_ratio: 0.01,
            milestones: Vec::new(),
            factor: 0.1,
            patience: 3,
            early_stop: None,
        }
    }
}

/// The position of a run in its schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchedulePosition {
    /// Number of finished steps.
    pub step: u64,
    /// Number of steps of the whole run.
    pub steps: u64,
    /// Number of finished epochs.
    pub epoch: u32,
    /// Validations without a better AP.
    pub patience: Patience,
}

/// Numbers of validations without a better AP; part of a run's state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patience {
    /// Since the best one.
    pub stale: u32,
    /// Since the best one or the last reduction of the learning rate.
    pub waiting: u32,
    /// Number of reductions of the learning rate on a plateau.
    pub reductions: u32,
}

impl ScheduleConfig {
    /// Factor on the learning rate for the step at position `at`.
    pub fn lr_multiplier(&self, at: &SchedulePosition) -> f64 {
        if at.step < self.warmup_steps {
            return (at.step as f64 + 1.0) / (self.warmup_steps as f64 + 1.0);
        }
        let reduced = |times: usize| self.factor.powi(times.min(1000) as i32);
        match self.kind {
            ScheduleKind::Cosine => {
                let span = at.steps.saturating_sub(self.warmup_steps).max(1);
                let progress = ((at.step - self.warmup_steps) as f64 / span as f64).min(1.0);
                let cosine = (1.0 + (std::f64::consts::PI * progress).cos()) / 2.0;
                self.final_lr_ratio + (1.0 - self.final_lr_ratio) * cosine
            }
            ScheduleKind::Step => reduced(self.milestones.iter().filter(|milestone| at.epoch >= **milestone).count()),
            ScheduleKind::Plateau => reduced(at.patience.reductions as usize),
        }
    }

    /// The state after a validation; `best`: whether its AP is the best so far.
    pub fn after_validation(&self, patience: Patience, best: bool) -> Patience {
        if best {
            return Patience { reductions: patience.reductions, ..Patience::default() };
        }
        let Patience { stale, waiting, reductions } = patience;
        if self.kind == ScheduleKind::Plateau && waiting + 1 > self.patience {
            Patience { stale: stale + 1, waiting: 0, reductions: reductions + 1 }
        } else {
            Patience { stale: stale + 1, waiting: waiting + 1, reductions }
        }
    }

    /// Whether early stopping ends the run.
    pub fn is_over(&self, patience: Patience) -> bool {
        self.early_stop.is_some_and(|limit| patience.stale >= limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(step: u64, steps: u64) -> SchedulePosition {
        SchedulePosition { step, steps, epoch: 0, patience: Patience::default() }
    }

    #[test]
    fn cosine_schedule_warms_up_and_decays() {
        let schedule = ScheduleConfig { warmup_steps: 10, final_lr_ratio: 0.1, ..ScheduleConfig::default() };
        let multipliers: Vec<_> = (0..=100).map(|step| schedule.lr_multiplier(&at(step, 100))).collect();
        assert!(multipliers[..11].is_sorted() && multipliers[0] > 0.0);
        assert_eq!(multipliers[10], 1.0);
        assert!(multipliers[10..].iter().rev().is_sorted());
        assert!((multipliers[55] - 0.55).abs() < 1e-12);
        assert!((multipliers[100] - 0.1).abs() < 1e-12);
        assert!(
            ScheduleConfig { warmup_steps: 50, final_lr_ratio: 0.0, ..schedule }.lr_multiplier(&at(20, 10)).is_finite()
        );
    }

    #[test]
    fn step_schedule_reduces_the_learning_rate_at_milestones() {
        let milestones = vec![8, 11];
        let schedule =
            ScheduleConfig { kind: ScheduleKind::Step, milestones, warmup_steps: 0, ..ScheduleConfig::default() };
        for (epoch, expected) in [(0, 1.0), (7, 1.0), (8, 0.1), (10, 0.1), (11, 0.01), (30, 0.01)] {
            let multiplier = schedule.lr_multiplier(&SchedulePosition { epoch, ..at(5, 10) });
            assert!((multiplier - expected).abs() < 1e-12, "epoch {epoch}: {multiplier}");
        }
    }

    // torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=2, threshold=0) with these
    // metrics reduces after the fourth, eighth and eleventh.
    #[test]
    fn plateau_schedule_matches_pytorch() {
        let schedule = ScheduleConfig {
            kind: ScheduleKind::Plateau,
            factor: 0.5,
            patience: 2,
            warmup_steps: 0,
            ..ScheduleConfig::default()
        };
        let metrics = [0.1, 0.1, 0.1, 0.1, 0.2, 0.1, 0.2, 0.1, 0.1, 0.1, 0.1];
        let (mut best, mut patience) = (f64::NEG_INFINITY, Patience::default());
        let multipliers = metrics.map(|metric| {
            patience = schedule.after_validation(patience, metric > best);
            best = best.max(metric);
            schedule.lr_multiplier(&SchedulePosition { patience, ..at(5, 10) })
        });
        assert_eq!(multipliers, [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125]);
    }

    #[test]
    fn early_stop_ends_the_run_after_validations_without_a_better_ap() {
        let schedule = ScheduleConfig { early_stop: Some(2), ..ScheduleConfig::default() };
        let mut patience = Patience::default();
        let over = [true, false, true, false, false].map(|best| {
            patience = schedule.after_validation(patience, best);
            schedule.is_over(patience)
        });
        assert_eq!(over, [false, false, false, false, true]);
        assert!(!ScheduleConfig::default().is_over(Patience { stale: 1000, ..patience }));
    }
}
