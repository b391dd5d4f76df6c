//! The rules of one call.

use std::borrow::Cow;

use models::ModelSpec;

use crate::engine::Engine;
use crate::rules::{RuleError, Rules};

/// The rules of a call.
pub(super) struct CallRules<'a> {
    pub(super) spec: Cow<'a, ModelSpec>,
    /// For each class, whether it is wanted; `None` for all.
    pub(super) wanted: Option<Cow<'a, [bool]>>,
}

impl<'a> CallRules<'a> {
    /// The detector's own rules.
    pub(super) fn new(spec: &'a ModelSpec, wanted: Option<&'a [bool]>) -> Self {
        Self { spec: Cow::Borrowed(spec), wanted: wanted.map(Cow::Borrowed) }
    }

    /// These rules, overridden by those of a call.
    ///
    /// # Errors
    /// When a rule is invalid or does not fit the model.
    pub(super) fn overridden(self, rules: &Rules, engine: &Engine) -> Result<Self, RuleError> {
        if *rules == Rules::default() {
            return Ok(self);
        }
        let mut spec = self.spec.into_owned();
        if rules.score_threshold.is_some() {
            // The file's threshold is the lowest possible one, not the detector's.
            spec.postprocessing.score_threshold = engine.spec().postprocessing.score_threshold;
        }
        rules.apply(&mut spec, engine)?;
        let wanted = match (rules.wanted(&spec)?, self.wanted) {
            (None, own) => own,
            (Some(wanted), None) => Some(Cow::Owned(wanted)),
            (Some(wanted), Some(own)) => {
                Some(wanted.iter().zip(own.iter()).map(|(wanted, own)| *wanted && *own).collect())
            }
        };
        Ok(Self { spec: Cow::Owned(spec), wanted })
    }
}
