//! Why a run stops before its end.

use crate::group::Halt;

/// Why a run stops before its end.
pub(super) enum Stop {
    /// By a signal.
    Interrupted,
    /// The weights are intact, so the run is saved.
    Intact(anyhow::Error),
    /// The group has failed. The weights are those of the last step, so the run is saved.
    Lost(anyhow::Error),
    /// The run cannot be saved, but resumed from its last save.
    Unsaved(anyhow::Error),
    /// Resuming would end the same way.
    Final(anyhow::Error),
}

impl Stop {
    /// That of a failed exchange of errors that leave the run unsaved.
    pub(super) fn lost_or_unsaved(error: anyhow::Error) -> Self {
        if error.is::<process_group::Error>() { Self::Lost(error) } else { Self::Unsaved(error) }
    }

    /// Whether a signal has stopped this rank.
    pub(super) fn is_interrupted(&self) -> bool {
        matches!(self, Self::Interrupted)
    }
}

impl From<Halt> for Stop {
    fn from(halt: Halt) -> Self {
        match halt {
            Halt::Interrupted => Self::Interrupted,
            Halt::Others(_) => Self::Intact(halt.into()),
            // `Trainer` knows whether the weights are intact, and asks first.
            Halt::Torch(_) => Self::Unsaved(halt.into()),
            Halt::Amid(_) | Halt::Group(_) => Self::Lost(halt.into()),
        }
    }
}
