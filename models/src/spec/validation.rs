//! Validation of specs.

use super::{BoxScale, FORMAT, ModelSpec, NormKind, NormSpec, Resampling, ResizeFilter, SpecError};

/// Maximum number of anchors per cell: more than any network has, and a bound on the memory that a file can request.
const MAX_ANCHORS_PER_CELL: usize = 256;

impl ModelSpec {
    /// Checks that all values are in range. A spec without classes is valid: training takes them from its data.
    ///
    /// # Errors
    /// With the name of the first field that is out of range.
    pub fn validate(&self) -> Result<(), SpecError> {
        let ensure = |valid: bool, field: &'static str, found: &dyn std::fmt::Debug, expected: &'static str| {
            if valid { Ok(()) } else { Err(SpecError::Value { field, found: format!("{found:?}"), expected }) }
        };
        let positive = |values: &[f64]| !values.is_empty() && values.iter().all(|v| v.is_finite() && *v > 0.0);
        let unit = |value: f32| (0.0..=1.0).contains(&value);
        let norm = |norm: &NormSpec, channels: usize, field| {
            let groups = norm.kind != NormKind::Group || (norm.groups > 0 && channels.is_multiple_of(norm.groups));
            ensure(
                groups && norm.epsilon.is_finite() && norm.epsilon >= 0.0,
                field,
                norm,
                "an epsilon of at least 0, and groups that divide the channels",
            )
        };
        let Self { backbone, pyramid, heads, anchors, box_coder, preprocessing, postprocessing, .. } = self;

        ensure(self.format == FORMAT, "format", &self.format, "1, the version that this program supports")?;
        let depths = [18, 34, 50, 101, 152];
        ensure(depths.contains(&backbone.depth), "backbone.depth", &backbone.depth, "18, 34, 50, 101 or 152")?;
        // The channels of the stem, and of the narrowest convolutions in the blocks; all others are multiples of these.
        norm(&backbone.norm, 64, "backbone.norm")?;
        norm(&backbone.norm, backbone.width_per_group.saturating_mul(backbone.groups), "backbone.norm")?;
        let bottleneck = backbone.depth >= 50;
        let plain = backbone.groups == 1 && backbone.width_per_group == 64;
        ensure(
            bottleneck || plain,
            "backbone.groups",
            &(backbone.groups, backbone.width_per_group),
            "1 group of width 64, because depths 18 and 34 have basic blocks",
        )?;
        ensure((1..=256).contains(&backbone.groups), "backbone.groups", &backbone.groups, "1 to 256")?;
        ensure(
            (1..=1024).contains(&backbone.width_per_group),
            "backbone.width_per_group",
            &backbone.width_per_group,
            "1 to 1024",
        )?;
        ensure((1..=4096).contains(&pyramid.width), "pyramid.width", &pyramid.width, "1 to 4096")?;
        ensure((1..=4096).contains(&heads.width), "heads.width", &heads.width, "1 to 4096")?;
        ensure(heads.depth <= 64, "heads.depth", &heads.depth, "at most 64")?;
        ensure(heads.prior > 0.0 && heads.prior < 1.0, "heads.prior", &heads.prior, "between 0 and 1, both excluded")?;
        if let Some(spec) = &heads.norm {
            norm(spec, heads.width, "heads.norm")?;
        }
        ensure(positive(&anchors.sizes), "anchors.sizes", &anchors.sizes, "positive numbers")?;
        ensure(positive(&anchors.ratios), "anchors.ratios", &anchors.ratios, "one or more positive numbers")?;
        ensure(positive(&anchors.scales), "anchors.scales", &anchors.scales, "one or more positive numbers")?;
        ensure(
            self.anchors_per_cell() <= MAX_ANCHORS_PER_CELL,
            "anchors.scales",
            &anchors.scales.len(),
            "at most 256 anchors per cell (ratios times scales)",
        )?;
        ensure(
            box_coder.std.iter().all(|v| v.is_finite() && *v > 0.0),
            "box_coder.std",
            &box_coder.std,
            "positive numbers",
        )?;
        ensure(
            box_coder.clamp.is_none_or(|v| v > 0.0),
            "box_coder.clamp",
            &box_coder.clamp,
            "a positive number, or null",
        )?;
        let sides = (preprocessing.shorter_side, preprocessing.longer_side);
        ensure(
            sides.0 > 0 && sides.0 <= sides.1 && sides.1 <= 16384,
            "preprocessing.shorter_side",
            &sides,
            "(shorter_side, longer_side) with 1 <= shorter_side <= longer_side <= 16384",
        )?;
        ensure(
            preprocessing.fixed_size.is_none_or(|sides| sides.iter().all(|side| (1..=16384).contains(side))),
            "preprocessing.fixed_size",
            &preprocessing.fixed_size,
            "height and width of 1 to 16384, or null",
        )?;
        ensure(
            preprocessing.resampling == Resampling::Torch || preprocessing.filter == ResizeFilter::Bilinear,
            "preprocessing.filter",
            &preprocessing.filter,
            "bilinear, because resampling is scikit_image",
        )?;
        ensure(
            preprocessing.box_scale == BoxScale::PerAxis || preprocessing.fixed_size.is_none(),
            "preprocessing.box_scale",
            &preprocessing.box_scale,
            "per_axis, because fixed_size scales each axis separately",
        )?;
        ensure(
            preprocessing.mean.iter().all(|v| v.is_finite()),
            "preprocessing.mean",
            &preprocessing.mean,
            "finite numbers",
        )?;
        ensure(
            preprocessing.std.iter().all(|v| v.is_finite() && *v > 0.0),
            "preprocessing.std",
            &preprocessing.std,
            "positive numbers",
        )?;
        let multiple = preprocessing.pad_multiple;
        ensure(
            multiple > 0 && multiple.is_multiple_of(32) && multiple <= 4096,
            "preprocessing.pad_multiple",
            &multiple,
            "a multiple of 32 up to 4096, so that the feature levels align",
        )?;
        ensure(
            preprocessing
                .input_size
                .is_none_or(|sides| sides.iter().all(|side| *side > 0 && side.is_multiple_of(32) && *side <= 16384)),
            "preprocessing.input_size",
            &preprocessing.input_size,
            "height and width that are multiples of 32 from 32 to 16384, or null",
        )?;
        let padded = preprocessing.fixed_size.map(|sides| sides.map(|side| preprocessing.pad(side)));
        ensure(
            preprocessing.input_size.is_none() || padded.is_none() || preprocessing.input_size == padded,
            "preprocessing.input_size",
            &preprocessing.input_size,
            "the height and width of preprocessing.fixed_size after padding, or null",
        )?;
        ensure(
            unit(postprocessing.score_threshold),
            "postprocessing.score_threshold",
            &postprocessing.score_threshold,
            "0 to 1",
        )?;
        ensure(
            unit(postprocessing.nms_threshold),
            "postprocessing.nms_threshold",
            &postprocessing.nms_threshold,
            "0 to 1",
        )?;
        ensure(
            postprocessing.soft_nms.is_none_or(|sigma| sigma > 0.0 && sigma.is_finite()),
            "postprocessing.soft_nms",
            &postprocessing.soft_nms,
            "a finite number above 0, or null",
        )?;
        ensure(postprocessing.top_k != Some(0), "postprocessing.top_k", &postprocessing.top_k, "at least 1, or null")?;
        ensure(
            postprocessing.max_detections != Some(0),
            "postprocessing.max_detections",
            &postprocessing.max_detections,
            "at least 1, or null",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_of_an_invalid_value_contains_the_field() {
        for (text, field) in [
            ("format: 2", "format"),
            ("backbone: {depth: 19}", "backbone.depth"),
            ("backbone: {depth: 18, groups: 2}", "backbone.groups"),
            ("backbone: {norm: {kind: group, groups: 24}}", "backbone.norm"),
            // 32 groups do not divide the 30 channels of the blocks, only the 64 of the stem.
            ("backbone: {depth: 50, groups: 3, width_per_group: 10, norm: {kind: group}}", "backbone.norm"),
            ("heads: {norm: {kind: group, groups: 0}}", "heads.norm"),
            ("preprocessing: {shorter_side: 0}", "preprocessing.shorter_side"),
            ("preprocessing: {fixed_size: [0, 800]}", "preprocessing.fixed_size"),
            ("preprocessing: {fixed_size: [800, 16385]}", "preprocessing.fixed_size"),
            ("preprocessing: {fixed_size: [800, 800], box_scale: common}", "preprocessing.box_scale"),
            ("preprocessing: {resampling: scikit_image, filter: bicubic}", "preprocessing.filter"),
            ("preprocessing: {std: [1, 0, 1]}", "preprocessing.std"),
            ("preprocessing: {pad_multiple: 48}", "preprocessing.pad_multiple"),
            ("preprocessing: {input_size: [320, 330]}", "preprocessing.input_size"),
            ("preprocessing: {input_size: [0, 320]}", "preprocessing.input_size"),
            ("preprocessing: {input_size: [320, 32768]}", "preprocessing.input_size"),
            ("preprocessing: {input_size: [832, 800], fixed_size: [800, 800]}", "preprocessing.input_size"),
            ("postprocessing: {score_threshold: .nan}", "postprocessing.score_threshold"),
            ("postprocessing: {soft_nms: 0.0}", "postprocessing.soft_nms"),
            ("postprocessing: {top_k: 0}", "postprocessing.top_k"),
            ("anchors: {ratios: []}", "anchors.ratios"),
            (&format!("anchors: {{scales: [{}1]}}", "1, ".repeat(MAX_ANCHORS_PER_CELL / 3)), "anchors.scales"),
        ] {
            let message = ModelSpec::from_yaml(text).unwrap_err().to_string();
            assert!(message.contains(field), "{text}: {message}");
        }
        for text in ["input_size: [320, 64]", "input_size: [320, 224], fixed_size: [300, 200]"] {
            ModelSpec::from_yaml(&format!("preprocessing: {{{text}}}")).unwrap();
        }
    }
}
