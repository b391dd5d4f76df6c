//! Parameters of a request, in JSON or in the query of a URL.

use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, Deserializer};

use super::error::RequestError;
use crate::{Priority, Rules};

/// How the images of a request are treated.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Parameters {
    /// Minimum score, from 0 to 1.
    #[serde(default, deserialize_with = "min_score")]
    pub min_score: Option<f32>,
    /// Classes to report, by name or id; a text may have several, separated by commas. A query may repeat the parameter.
    #[serde(default, deserialize_with = "classes")]
    pub classes: Option<Vec<String>>,
    /// Maximum number of detections per image.
    #[serde(default, deserialize_with = "max_detections")]
    pub max_detections: Option<usize>,
    /// 1 goes first; 0, the default, and 2 afterwards.
    #[serde(default, deserialize_with = "priority")]
    pub priority: Priority,
    /// Time after which nobody waits for the response. In microseconds; 0 for no limit.
    #[serde(default, deserialize_with = "timeout")]
    pub timeout: Option<Duration>,
    /// Name of the model, in a query only.
    #[serde(skip)]
    pub model: Option<String>,
    /// Whether outputs are binary that the request does not list; in JSON only.
    #[serde(default)]
    pub(super) binary_data_output: bool,
}

fn min_score<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f32>, D::Error> {
    parse_min_score(f32::deserialize(deserializer)?).map(Some).map_err(de::Error::custom)
}

fn classes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    String::deserialize(deserializer).map(|classes| Some(vec![classes]))
}

fn max_detections<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    parse_max_detections(usize::deserialize(deserializer)?).map(Some).map_err(de::Error::custom)
}

fn priority<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Priority, D::Error> {
    parse_priority(u64::deserialize(deserializer)?).map_err(de::Error::custom)
}

fn timeout<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    u64::deserialize(deserializer).map(parse_timeout)
}

fn parse_min_score(score: f32) -> Result<f32, &'static str> {
    if (0.0..=1.0).contains(&score) { Ok(score) } else { Err("expected a number from 0 to 1") }
}

fn parse_max_detections(max: usize) -> Result<usize, &'static str> {
    if max > 0 { Ok(max) } else { Err("expected a number of at least 1") }
}

fn parse_priority(priority: u64) -> Result<Priority, &'static str> {
    match priority {
        1 => Ok(Priority::High),
        0 | 2 => Ok(Priority::Normal),
        _ => Err("expected 1 (first) or 2"),
    }
}

fn parse_timeout(microseconds: u64) -> Option<Duration> {
    (microseconds > 0).then(|| Duration::from_micros(microseconds))
}

impl Parameters {
    /// Parses the query of a URL, without `?`.
    ///
    /// # Errors
    /// 400 for unknown parameters and invalid values.
    pub fn from_query(query: &str) -> Result<Self, RequestError> {
        let mut parameters = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            parameters.set(&name, &value)?;
        }
        Ok(parameters)
    }

    /// Sets the parameter `name`.
    ///
    /// # Errors
    /// As [`Parameters::from_query`].
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), RequestError> {
        let invalid = |reason: &str| RequestError::bad(format!("parameter `{name}` is `{value}`: {reason}"));
        let number = || value.parse::<u64>().map_err(|_| "expected a whole number");
        match name {
            "min_score" => {
                let score = value.parse().map_err(|_| "expected a number from 0 to 1").and_then(parse_min_score);
                self.min_score = Some(score.map_err(invalid)?);
            }
            "classes" => self.classes.get_or_insert_default().push(value.to_owned()),
            "max_detections" => {
                let max = value.parse().map_err(|_| "expected a number of at least 1").and_then(parse_max_detections);
                self.max_detections = Some(max.map_err(invalid)?);
            }
            "priority" => self.priority = number().and_then(parse_priority).map_err(invalid)?,
            "timeout" => self.timeout = parse_timeout(number().map_err(invalid)?),
            "model" => self.model = Some(value.to_owned()),
            _ => {
                let expected = "min_score, classes, max_detections, priority, timeout and model";
                return Err(RequestError::bad(format!("unknown parameter `{name}`; there are {expected}")));
            }
        }
        Ok(())
    }

    /// The overrides of the model's thresholds and limits.
    pub fn rules(&self) -> Rules {
        Rules {
            score_threshold: self.min_score,
            max_detections: self.max_detections,
            classes: self.classes.clone(),
            ..Rules::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_and_json_give_the_same_parameters() {
        let query = "min_score=0.5&classes=cat%2Ca+b&max_detections=3&priority=1&timeout=2000";
        let json = r#"{"min_score": 0.5, "classes": "cat,a b", "max_detections": 3, "priority": 1, "timeout": 2000}"#;
        let expected = Parameters {
            min_score: Some(0.5),
            classes: Some(vec!["cat,a b".to_owned()]),
            max_detections: Some(3),
            priority: Priority::High,
            timeout: Some(Duration::from_millis(2)),
            ..Parameters::default()
        };
        assert_eq!(Parameters::from_query(query), Ok(expected.clone()));
        assert_eq!(serde_json::from_str::<Parameters>(json).unwrap(), expected);
        let rules = expected.rules();
        assert_eq!((rules.score_threshold, rules.max_detections), (Some(0.5), Some(3)));
        assert_eq!(rules.classes, Some(vec!["cat,a b".to_owned()]));
        assert_eq!(Parameters::from_query(""), Ok(Parameters::default()));
        let repeated = Parameters::from_query("classes=cow,+calf&classes=cat").unwrap();
        assert_eq!(repeated.classes, Some(vec!["cow, calf".to_owned(), "cat".to_owned()]));
    }

    #[test]
    fn unknown_parameters_and_wrong_values_are_errors_that_name_them() {
        for (query, part) in [
            ("score=0.1", "unknown parameter `score`"),
            ("min_score=1.5", "`min_score` is `1.5`: expected a number from 0 to 1"),
            ("min_score=nan", "`nan`"),
            ("max_detections=0", "at least 1"),
            ("priority=3", "expected 1 (first) or 2"),
            ("timeout=-1", "whole number"),
        ] {
            let error = Parameters::from_query(query).unwrap_err();
            assert!(error.status == 400 && error.message.contains(part), "{error}");
        }
        for json in [r#"{"score": 0.1}"#, r#"{"min_score": 2}"#, r#"{"priority": 3}"#, r#"{"timeout": "soon"}"#] {
            assert!(serde_json::from_str::<Parameters>(json).is_err(), "{json}");
        }
    }
}
