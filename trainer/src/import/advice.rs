//! Which option solves a problem of an import, or changes an assumption.

use anyhow::anyhow;
use models::import::{Assumption, ImportError};

/// The error with the option that solves its problem, if there is one.
pub(super) fn advised(error: anyhow::Error) -> anyhow::Error {
    let advice = match error.downcast_ref() {
        Some(ImportError::Several { .. }) => "; choose one with --key",
        Some(ImportError::Background { .. }) => {
            "; pass --background none for labels from 0 (as DeepForest has them), --background first for labels from 1 (as \
             torchvision's references have them), or the names with --classes"
        }
        Some(ImportError::Classes { background: false, .. }) => {
            "; list one class per output with --classes, or all but the first output with --background first"
        }
        Some(ImportError::Classes { background: true, .. }) => {
            "; list one class per output but the first with --classes"
        }
        Some(ImportError::Labels { .. }) => "; list the classes with --classes",
        Some(ImportError::Tensors { problems, .. }) if !problems.unexpected.is_empty() => {
            "\nif the unexpected tensors can be ignored, pass --drop PREFIX"
        }
        Some(ImportError::Values { name, .. }) if name.ends_with("running_var") => "; a larger --norm-epsilon may help",
        _ => return error,
    };
    anyhow!("{error}{advice}")
}

/// The option that changes an assumption.
pub(super) fn option(assumption: Assumption) -> &'static str {
    match assumption {
        Assumption::Epsilon => "for these pass --kind torchvision-v1-coco",
        Assumption::ClassNames => "override with --classes",
        Assumption::MsraBackbone => {
            "for a backbone of torchvision (FORMAT RGB, STRIDE_IN_1X1 False) pass --kind detectron2-rgb"
        }
        Assumption::PytorchStyle => "for a backbone of Caffe pass --kind mmdetection-caffe",
    }
}
