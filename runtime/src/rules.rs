//! Rules: a caller's thresholds and limits, which override those in the model's spec.

use models::ModelSpec;
use models::dataset::format_list;
use models::spec::{Class, Suppression};

use crate::engine::Engine;

/// Overrides of the spec's post-processing settings; `None` keeps the spec's value.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    /// Minimum score, in [0, 1]; scores must exceed it.
    pub score_threshold: Option<f32>,
    /// IoU threshold of NMS, in [0, 1]: a box whose IoU with a higher-scoring kept box exceeds this is removed.
    /// Without `soft_nms`, it also replaces the spec's soft-NMS.
    pub nms_threshold: Option<f32>,
    /// Sigma of soft-NMS, above 0: every higher-scoring kept box multiplies a score by exp(-IoU² / sigma) instead of
    /// removing the box. <https://arxiv.org/abs/1704.04503>
    pub soft_nms: Option<f32>,
    /// Maximum number of candidates per feature level that enter NMS, at least 1; `usize::MAX` for no limit.
    pub top_k: Option<usize>,
    /// Maximum number of detections per image, at least 1; `usize::MAX` for no limit.
    pub max_detections: Option<usize>,
    /// Which boxes suppress each other.
    pub suppression: Option<Suppression>,
    /// Classes to detect, by name or by id in the data set. Other classes are not reported and suppress nothing. One
    /// text may contain several, separated by commas.
    pub classes: Option<Vec<String>>,
}

/// A rule is invalid, or does not fit the model.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RuleError {
    /// A value is out of range.
    #[error("{name} is {found}, expected {expected}")]
    Range {
        /// Name of the value.
        name: &'static str,
        /// The requested value.
        found: f32,
        /// What is allowed.
        expected: &'static str,
    },
    /// The file does not output scores that low.
    #[error(
        "score threshold {requested} is below {min}, and the model outputs only scores above {min}; use at least {min}, or \
         export it without --top-k and --end-to-end"
    )]
    BelowExported {
        /// The requested threshold.
        requested: f32,
        /// The file's threshold.
        min: f32,
    },
    /// The file fixes the number of candidates.
    #[error("the model fixes top-k to {fixed} candidates per level; export it without --top-k to change it")]
    TopK {
        /// The file's value.
        fixed: usize,
    },
    /// The file is end-to-end and fixes a setting of NMS.
    #[error("the model applies NMS itself and fixes {name}; export it without --end-to-end to change that")]
    EndToEnd {
        /// The setting, with its flag.
        name: &'static str,
    },
    /// The file outputs fewer detections.
    #[error(
        "maximum number of detections {requested} exceeds the model's {max}; use at most {max}, or export it with a larger \
         --max-detections"
    )]
    MaxDetections {
        /// The requested number.
        requested: usize,
        /// The file's number.
        max: usize,
    },
    /// The model does not have a class.
    #[error("the model has no class `{found}`; its classes are {known}")]
    Class {
        /// The requested class.
        found: String,
        /// Names of the model's classes, abridged.
        known: String,
    },
}

impl Rules {
    /// Overrides the settings of `spec`, for a model that runs in `engine`.
    pub(crate) fn apply(&self, spec: &mut ModelSpec, engine: &Engine) -> Result<(), RuleError> {
        if let Some(max) = engine.max_detections() {
            self.check_end_to_end(spec, max)?;
        }
        self.replace(spec, engine.top_k())
    }

    /// Refuses what an end-to-end file with at most `max` detections does not allow.
    fn check_end_to_end(&self, spec: &ModelSpec, max: usize) -> Result<(), RuleError> {
        let fixed = &spec.postprocessing;
        let is_agnostic = fixed.suppression == Suppression::ClassAgnostic;
        for (name, changes) in [
            ("the NMS threshold (--nms-iou)", self.nms_threshold.is_some_and(|own| own != fixed.nms_threshold)),
            ("the kind of NMS (--soft-nms)", self.soft_nms.is_some()),
            (
                "which boxes suppress each other (--class-agnostic)",
                self.suppression.is_some_and(|own| own != fixed.suppression),
            ),
            // Boxes of other classes have suppressed some already.
            ("the classes of its class-agnostic NMS (--classes)", is_agnostic && self.classes.is_some()),
        ] {
            if changes {
                return Err(RuleError::EndToEnd { name });
            }
        }
        match self.max_detections.filter(|requested| *requested > max) {
            Some(requested) => Err(RuleError::MaxDetections { requested, max }),
            None => Ok(()),
        }
    }

    fn replace(&self, spec: &mut ModelSpec, fixed_top_k: Option<usize>) -> Result<(), RuleError> {
        let rules = &mut spec.postprocessing;
        if let Some(requested) = self.score_threshold {
            let min = rules.score_threshold;
            rules.score_threshold = threshold("score threshold", requested)?;
            if fixed_top_k.is_some() && requested < min {
                return Err(RuleError::BelowExported { requested, min });
            }
        }
        if let Some(requested) = self.nms_threshold {
            rules.nms_threshold = threshold("NMS threshold", requested)?;
            rules.soft_nms = None;
        }
        if let Some(sigma) = self.soft_nms {
            let is_valid = sigma > 0.0 && sigma.is_finite();
            rules.soft_nms = Some(within(is_valid, "soft-NMS sigma", sigma, "a number above 0")?);
        }
        if let Some(requested) = self.top_k {
            if let Some(fixed) = fixed_top_k.filter(|fixed| *fixed != requested) {
                return Err(RuleError::TopK { fixed });
            }
            rules.top_k = limit("top-k", requested)?;
        }
        if let Some(requested) = self.max_detections {
            rules.max_detections = limit("maximum number of detections", requested)?;
        }
        if let Some(suppression) = self.suppression {
            rules.suppression = suppression;
        }
        Ok(())
    }

    /// For each class of the spec, whether it is wanted; `None` for all.
    pub(crate) fn wanted(&self, spec: &ModelSpec) -> Result<Option<Vec<bool>>, RuleError> {
        let Some(requested) = &self.classes else { return Ok(None) };
        let mut wanted = vec![false; spec.class_count()];
        let class_index = |text: &str| {
            let name = spec.classes.iter().position(|class| class.name == text);
            name.or_else(|| spec.classes.iter().position(|class| text.parse() == Ok(class.id)))
        };
        for text in requested {
            // A class name may contain commas.
            let parts = if class_index(text).is_some() {
                vec![text.as_str()]
            } else {
                text.split(',').map(str::trim).collect()
            };
            for part in parts {
                let unknown = || RuleError::Class { found: part.to_owned(), known: class_names(&spec.classes) };
                wanted[class_index(part).ok_or_else(unknown)?] = true;
            }
        }
        Ok(Some(wanted))
    }
}

/// The names of classes in a message, abridged.
pub(crate) fn class_names(classes: &[Class]) -> String {
    format_list(&classes.iter().map(|class| format!("`{}`", class.name)).collect::<Vec<_>>())
}

fn threshold(name: &'static str, found: f32) -> Result<f32, RuleError> {
    within((0.0..=1.0).contains(&found), name, found, "a number from 0 to 1")
}

fn within(is_valid: bool, name: &'static str, found: f32, expected: &'static str) -> Result<f32, RuleError> {
    if is_valid { Ok(found) } else { Err(RuleError::Range { name, found, expected }) }
}

/// A limit as the spec stores it: `None` for no limit.
fn limit(name: &'static str, max: usize) -> Result<Option<usize>, RuleError> {
    match max {
        0 => Err(RuleError::Range { name, found: 0.0, expected: "at least 1" }),
        usize::MAX => Ok(None),
        max => Ok(Some(max)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> ModelSpec {
        let classes = [(3, "cat"), (7, "dog"), (9, "3"), (11, "cow, calf")];
        let classes = classes.map(|(id, name)| Class { id, name: name.to_owned() });
        let mut spec = ModelSpec { classes: classes.to_vec(), ..ModelSpec::default() };
        spec.postprocessing.top_k = Some(1000);
        spec
    }

    #[test]
    fn absent_rules_keep_the_spec() {
        let mut changed = spec();
        Rules::default().replace(&mut changed, None).unwrap();
        assert_eq!(changed, spec());
        assert_eq!(Rules::default().wanted(&changed), Ok(None));
    }

    #[test]
    fn every_rule_overrides_the_spec() {
        let rules = Rules {
            score_threshold: Some(0.3),
            nms_threshold: Some(0.7),
            soft_nms: Some(0.4),
            top_k: Some(usize::MAX),
            max_detections: Some(5),
            suppression: Some(Suppression::ClassAgnostic),
            classes: None,
        };
        let mut changed = spec();
        rules.replace(&mut changed, None).unwrap();
        let found = changed.postprocessing.clone();
        assert_eq!((found.score_threshold, found.nms_threshold, found.soft_nms), (0.3, 0.7, Some(0.4)));
        assert_eq!((found.top_k, found.max_detections, found.suppression), (None, Some(5), Suppression::ClassAgnostic));
        Rules { nms_threshold: Some(0.6), ..Rules::default() }.replace(&mut changed, None).unwrap();
        assert_eq!((changed.postprocessing.nms_threshold, changed.postprocessing.soft_nms), (0.6, None));
    }

    #[test]
    fn invalid_rules_are_errors() {
        let error_of = |rules: Rules, fixed| rules.replace(&mut spec(), fixed).unwrap_err().to_string();
        for threshold in [-0.1, 1.1, f32::NAN] {
            let rules = Rules { nms_threshold: Some(threshold), ..Rules::default() };
            assert!(error_of(rules, None).contains("NMS threshold"));
        }
        let rules = Rules { soft_nms: Some(0.0), ..Rules::default() };
        assert!(error_of(rules, None).contains("soft-NMS sigma is 0"));
        let rules = Rules { max_detections: Some(0), ..Rules::default() };
        assert!(error_of(rules, None).contains("at least 1"));
        let rules = Rules { score_threshold: Some(0.01), ..Rules::default() };
        assert!(error_of(rules, Some(1000)).contains("below 0.05"));
        let rules = Rules { top_k: Some(10), ..Rules::default() };
        assert!(error_of(rules, Some(1000)).contains("1000 candidates per level"));
    }

    #[test]
    fn classes_are_selected_by_name_first_then_by_id() {
        let wanted = |texts: &[&str]| {
            let classes = Some(texts.iter().map(|text| (*text).to_owned()).collect());
            Rules { classes, ..Rules::default() }.wanted(&spec())
        };
        assert_eq!(wanted(&["cat"]), Ok(Some(vec![true, false, false, false])));
        assert_eq!(
            wanted(&["dog, cow, calf"]).unwrap_err().to_string().split(';').next(),
            Some("the model has no class `cow`")
        );
        assert_eq!(wanted(&["dog,cat", "cow, calf"]), Ok(Some(vec![true, true, false, true])));
        assert_eq!(wanted(&["3", "7"]), Ok(Some(vec![false, true, true, false])));
    }
}
