//! The loss scaler of training in float16, which keeps small gradients from becoming zero: the loss is multiplied by a
//! scale, and the gradient divided by it. <https://arxiv.org/abs/1710.03740>, section 3.2; the rules and numbers are those
//! of PyTorch's `GradScaler`.

use serde::{Deserialize, Serialize};

const INITIAL: f64 = 65_536.0;
const GROWTH: f64 = 2.0;
const BACKOFF: f64 = 0.5;

/// The scale grows after this many consecutive steps with finite gradients.
const GROWTH_INTERVAL: u32 = 2000;

/// At a lower scale, gradients are not finite for another reason than the scale.
const MIN: f64 = 1.0;

/// A scale that adapts to the gradients; part of a run's state.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScaler {
    /// Factor on the loss of the next step, a power of two.
    pub scale: f64,
    /// Steps with finite gradients since the scale has changed.
    pub finite_steps: u32,
    /// Number of steps that were skipped because their gradients were not finite.
    pub skipped: u64,
}

impl Default for LossScaler {
    fn default() -> Self {
        Self { scale: INITIAL, finite_steps: 0, skipped: 0 }
    }
}

impl LossScaler {
    /// Whether a step may be skipped at the scale `scale`, because a lower scale may make its gradients finite.
    pub(crate) fn may_skip(scale: f64) -> bool {
        scale > MIN
    }

    /// The scaler after a step, whose gradients were finite or not.
    #[must_use]
    pub fn after_step(self, is_finite: bool) -> Self {
        let Self { scale, finite_steps, skipped } = self;
        if !is_finite {
            return Self { scale: scale * BACKOFF, finite_steps: 0, skipped: skipped + 1 };
        }
        if finite_steps + 1 < GROWTH_INTERVAL {
            return Self { finite_steps: finite_steps + 1, ..self };
        }
        // The scale multiplies float32 numbers, so it stays within their range.
        let grown = scale * GROWTH;
        Self { scale: if grown <= f32::MAX.into() { grown } else { scale }, finite_steps: 0, skipped }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // tests/golden/loss_scaler.py, PyTorch 2.11.0: the scale and the growth tracker after steps 1, 1999, 2000, 2001 (which
    // is not finite), 2002, 4001 and 4002
    const GRAD_SCALER: [(u32, f64, u32); 7] = [
        (1, 65536.0, 1),
        (1999, 65536.0, 1999),
        (2000, 131072.0, 0),
        (2001, 65536.0, 0),
        (2002, 65536.0, 1),
        (4001, 131072.0, 0),
        (4002, 131072.0, 1),
    ];

    #[test]
    fn scale_is_that_of_pytorchs_grad_scaler() {
        let mut scaler = LossScaler::default();
        let mut found = Vec::new();
        for step in 1..=4002 {
            scaler = scaler.after_step(step != 2001);
            if GRAD_SCALER.iter().any(|(listed, ..)| *listed == step) {
                found.push((step, scaler.scale, scaler.finite_steps));
            }
        }
        assert_eq!((found.as_slice(), scaler.skipped), (&GRAD_SCALER[..], 1));
    }

    #[test]
    fn scale_stays_in_the_range_of_float32() {
        let mut scaler = LossScaler { scale: 2f64.powi(127), finite_steps: 1999, skipped: 0 };
        scaler = scaler.after_step(true);
        assert_eq!((scaler.scale, scaler.finite_steps), (2f64.powi(127), 0));
    }
}
