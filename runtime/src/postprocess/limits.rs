//! How many detections NMS may keep.

use models::spec::Suppression;

/// Counts the detections kept by NMS.
pub(super) struct Limits {
    /// Maximum number of detections, including those that exceed `max_per_class`.
    max: usize,
    max_per_class: usize,
    /// Whether further candidates of a class that has `max_per_class` affect nothing: they suppress no boxes of other
    /// classes, and do not count towards `max`.
    skip: bool,
    kept: usize,
    kept_of_class: Vec<usize>,
    /// Number of classes that have `max_per_class`.
    full_classes: usize,
}

impl Limits {
    /// Without limits where they are `None`.
    pub(super) fn new(
        max: Option<usize>,
        max_per_class: Option<usize>,
        suppression: Suppression,
        class_count: usize,
    ) -> Self {
        Self {
            max: max.unwrap_or(usize::MAX),
            max_per_class: max_per_class.unwrap_or(usize::MAX),
            skip: max.is_none() && suppression == Suppression::PerClass,
            kept: 0,
            kept_of_class: vec![0; class_count],
            full_classes: 0,
        }
    }

    /// Whether no further detection can follow.
    pub(super) fn are_reached(&self) -> bool {
        self.kept >= self.max || self.full_classes == self.kept_of_class.len()
    }

    /// Whether the candidates of a class need not be considered.
    pub(super) fn skips(&self, class_index: usize) -> bool {
        self.skip && self.kept_of_class[class_index] >= self.max_per_class
    }

    /// Counts a box; whether it is a detection.
    pub(super) fn take(&mut self, class_index: usize) -> bool {
        self.kept += 1;
        let count = &mut self.kept_of_class[class_index];
        *count += 1;
        self.full_classes += usize::from(*count == self.max_per_class);
        *count <= self.max_per_class
    }
}
