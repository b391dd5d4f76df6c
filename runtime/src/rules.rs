//! Rules: what a caller wants otherwise than the model's spec says, from which scores count to how many detections remain.

use models::ModelSpec;
use models::spec::Suppression;

use crate::engine::Engine;

/// What replaces the spec's rules of post-processing; what is absent stays as the spec has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    /// A score must exceed this, in [0, 1].
    pub score_threshold: Option<f32>,
    /// A box goes when its IoU with a better one exceeds this, in [0, 1].
    pub nms_threshold: Option<f32>,
    /// Every better box multiplies a score by exp(-IoU² / this), above 0, in place of removing boxes.
    /// <https://arxiv.org/abs/1704.04503>
    pub soft_nms: Option<f32>,
    /// Best candidates kept per level before suppression, at least 1; `usize::MAX` keeps all.
    pub top_k: Option<usize>,
    /// Best detections kept per image, at least 1; `usize::MAX` keeps all.
    pub max_detections: Option<usize>,
    /// Which boxes suppress each other.
    pub suppression: Option<Suppression>,
    /// The classes that are looked for, by name or by id in the data set; others neither appear nor suppress. Commas
    /// separate several in one text.
    pub classes: Option<Vec<String>>,
}

/// Why a rule cannot be followed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RuleError {
    /// A threshold is out of its range.
    #[error("{name} threshold {found} is not between 0 and 1")]
    Threshold {
        /// Which one.
        name: &'static str,
        /// What was asked for.
        found: f32,
    },
    /// Not a number above 0.
    #[error("sigma of soft suppression is {0}, expected a number above 0")]
    Sigma(f32),
    /// Nothing would be kept.
    #[error("{0} of 0 would keep nothing; ask for at least 1")]
    Nothing(&'static str),
    /// The file has dropped lower scores already.
    #[error(
        "score threshold {asked} is below {least}, and the model hands over only candidates above that; ask for {least} or \
         more, or export it without --top-k"
    )]
    Dropped {
        /// The threshold that was asked for.
        asked: f32,
        /// The file's own.
        least: f32,
    },
    /// The file has chosen its candidates already.
    #[error(
        "the model itself hands over the best {fixed} candidates of each level; export it without --top-k to choose here"
    )]
    TopK {
        /// The file's own.
        fixed: usize,
    },
    /// A class is none of the model's.
    #[error("the model has no class `{found}`; its classes are {known}")]
    Class {
        /// What was asked for.
        found: String,
        /// The model's, in part.
        known: String,
    },
}

impl Rules {
    /// Puts the rules in place of the spec's own; `engine` is what will run.
    pub(crate) fn apply(&self, spec: &mut ModelSpec, engine: &Engine) -> Result<(), RuleError> {
        self.replace(spec, engine.top_k())
    }

    fn replace(&self, spec: &mut ModelSpec, fixed_top_k: Option<usize>) -> Result<(), RuleError> {
        let rules = &mut spec.postprocessing;
        if let Some(asked) = self.score_threshold {
            let least = rules.score_threshold;
            rules.score_threshold = within("score", asked)?;
            if fixed_top_k.is_some() && asked < least {
                return Err(RuleError::Dropped { asked, least });
            }
        }
        if let Some(asked) = self.nms_threshold {
            rules.nms_threshold = within("NMS", asked)?;
        }
        if let Some(sigma) = self.soft_nms {
            if !(sigma > 0.0 && sigma.is_finite()) {
                return Err(RuleError::Sigma(sigma));
            }
            rules.soft_nms = Some(sigma);
        }
        if let Some(asked) = self.top_k {
            if let Some(fixed) = fixed_top_k.filter(|fixed| *fixed != asked) {
                return Err(RuleError::TopK { fixed });
            }
            rules.top_k = cap("top-k", asked)?;
        }
        if let Some(asked) = self.max_detections {
            rules.max_detections = cap("a maximum of detections", asked)?;
        }
        if let Some(suppression) = self.suppression {
            rules.suppression = suppression;
        }
        Ok(())
    }

    /// For each class of the spec whether it is looked for; all are if absent.
    pub(crate) fn wanted(&self, spec: &ModelSpec) -> Result<Option<Vec<bool>>, RuleError> {
        let Some(asked) = &self.classes else { return Ok(None) };
        let mut wanted = vec![false; spec.class_count()];
        let place = |text: &str| {
            let name = spec.classes.iter().position(|class| class.name == text);
            name.or_else(|| spec.classes.iter().position(|class| text.parse() == Ok(class.id)))
        };
        for text in asked {
            // A name may contain a comma itself.
            let parts =
                if place(text).is_some() { vec![text.as_str()] } else { text.split(',').map(str::trim).collect() };
            for part in parts {
                let known = || {
                    let names: Vec<_> = spec.classes.iter().map(|class| format!("`{}`", class.name)).collect();
                    models::dataset::named(&names)
                };
                let at = place(part).ok_or_else(|| RuleError::Class { found: part.to_owned(), known: known() })?;
                wanted[at] = true;
            }
        }
        Ok(Some(wanted))
    }
}

fn within(name: &'static str, threshold: f32) -> Result<f32, RuleError> {
    if (0.0..=1.0).contains(&threshold) { Ok(threshold) } else { Err(RuleError::Threshold { name, found: threshold }) }
}

/// A cap as the spec has it.
fn cap(name: &'static str, most: usize) -> Result<Option<usize>, RuleError> {
    match most {
        0 => Err(RuleError::Nothing(name)),
        usize::MAX => Ok(None),
        most => Ok(Some(most)),
    }
}

#[cfg(test)]
mod tests {
    use models::spec::Class;

    use super::*;

    fn spec() -> ModelSpec {
        let classes = [(3, "cat"), (7, "dog"), (9, "3"), (11, "cow, calf")];
        let classes = classes.map(|(id, name)| Class { id, name: name.to_owned() });
        let mut spec = ModelSpec { classes: classes.to_vec(), ..ModelSpec::default() };
        spec.postprocessing.top_k = Some(1000);
        spec
    }

    #[test]
    fn what_is_absent_stays() {
        let mut changed = spec();
        Rules::default().replace(&mut changed, None).unwrap();
        assert_eq!(changed, spec());
        assert_eq!(Rules::default().wanted(&changed), Ok(None));
    }

    #[test]
    fn every_rule_replaces_the_specs() {
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
        let found = changed.postprocessing;
        assert_eq!((found.score_threshold, found.nms_threshold, found.soft_nms), (0.3, 0.7, Some(0.4)));
        assert_eq!((found.top_k, found.max_detections, found.suppression), (None, Some(5), Suppression::ClassAgnostic));
    }

    #[test]
    fn what_cannot_be_followed_is_an_error() {
        let refused = |rules: Rules, fixed| rules.replace(&mut spec(), fixed).unwrap_err().to_string();
        for threshold in [-0.1, 1.1, f32::NAN] {
            let rules = Rules { nms_threshold: Some(threshold), ..Rules::default() };
            assert!(refused(rules, None).contains("NMS threshold"));
        }
        let rules = Rules { soft_nms: Some(0.0), ..Rules::default() };
        assert!(refused(rules, None).contains("sigma of soft suppression is 0"));
        let rules = Rules { max_detections: Some(0), ..Rules::default() };
        assert!(refused(rules, None).contains("at least 1"));
        let rules = Rules { score_threshold: Some(0.01), ..Rules::default() };
        assert!(refused(rules, Some(1000)).contains("below 0.05"));
        let rules = Rules { top_k: Some(10), ..Rules::default() };
        assert!(refused(rules, Some(1000)).contains("best 1000 candidates"));
    }

    #[test]
    fn classes_are_found_by_name_first_then_by_id() {
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
