//! Parameters of a request, in JSON or in the query of a URL.

use std::fmt;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::Number;

use super::error::RequestError;
use crate::{Priority, Rules};

/// How the images of a request are treated.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Parameters {
    /// Minimum score, from 0 to 1.
    pub min_score: Option<f32>,
    /// Classes to report, by name or id; a text may have several, separated by commas. A query may repeat the parameter.
    pub classes: Option<Vec<String>>,
    /// Maximum number of detections per image.
    pub max_detections: Option<usize>,
    /// 1 goes first; 0, the default, and 2 afterwards.
    pub priority: Priority,
    /// Time after which nobody waits for the response. In microseconds; 0 for no limit.
    pub timeout: Option<Duration>,
    /// Name of the model, in a query only.
    pub model: Option<String>,
    /// Whether outputs are binary that the request does not list; in JSON only.
    pub(super) binary_data_output: bool,
}

impl<'de> Deserialize<'de> for Parameters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Object)
    }
}

/// Reads parameters from a JSON object, whose values are not kept in memory before they are checked.
struct Object;

impl<'de> Visitor<'de> for Object {
    type Value = Parameters;

    fn expecting(&self, text: &mut fmt::Formatter) -> fmt::Result {
        text.write_str("an object with parameters")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parameters, A::Error> {
        let (mut parameters, mut names) = (Parameters::default(), Vec::new());
        while let Some(name) = map.next_key::<String>()? {
            if names.contains(&name) {
                return Err(A::Error::custom(format!("duplicate parameter `{name}`")));
            }
            let set = match name.as_str() {
                "min_score" | "max_detections" | "priority" | "timeout" => {
                    parameters.set(&name, &map.next_value::<Number>()?.to_string())
                }
                "classes" => parameters.set(&name, &map.next_value::<String>()?),
                "binary_data_output" => {
                    parameters.binary_data_output = map.next_value()?;
                    Ok(())
                }
                _ => Err(unknown(&name, "binary_data_output")),
            };
            set.map_err(A::Error::custom)?;
            names.push(name);
        }
        Ok(parameters)
    }
}

/// `last` is the parameter that only this form of parameters has.
fn unknown(name: &str, last: &str) -> RequestError {
    let expected = "min_score, classes, max_detections, priority, timeout and";
    RequestError::bad(format!("unknown parameter `{name}`; there are {expected} {last}"))
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
        let invalid = |expected| RequestError::bad(format!("parameter `{name}` is `{value}`: expected {expected}"));
        let number = || value.parse().map_err(|_| invalid("a whole number"));
        match name {
            "min_score" => {
                let score = value.parse().ok().filter(|score| (0.0..=1.0).contains(score));
                self.min_score = Some(score.ok_or_else(|| invalid("a number from 0 to 1"))?);
            }
            "classes" => self.classes.get_or_insert_default().push(value.to_owned()),
            "max_detections" => {
                let max = value.parse().ok().filter(|max| *max > 0);
                self.max_detections = Some(max.ok_or_else(|| invalid("a number of at least 1"))?);
            }
            "priority" => {
                self.priority = match number()? {
                    1 => Priority::High,
                    0 | 2 => Priority::Normal,
                    _ => return Err(invalid("1 (first) or 2")),
                }
            }
            "timeout" => self.timeout = Some(number()?).filter(|limit| *limit > 0).map(Duration::from_micros),
            "model" => self.model = Some(value.to_owned()),
            _ => return Err(unknown(name, "model")),
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
        for (json, part) in [
            (r#"{"score": 0.1}"#, "unknown parameter `score`; there are min_score"),
            // Before its value is read, which may be long.
            (r#"{"score": [1, ~"#, "unknown parameter `score`"),
            (r#"{"model": "a"}"#, "unknown parameter `model`"),
            (r#"{"priority": 1, "priority": 2}"#, "duplicate parameter `priority`"),
            (r#"{"min_score": 2}"#, "`min_score` is `2`: expected a number from 0 to 1"),
            (r#"{"min_score": "0.5"}"#, "string \"0.5\", expected a JSON number"),
            (r#"{"min_score": [0, ~"#, "sequence, expected a JSON number"),
            (r#"{"max_detections": 2.5}"#, "`2.5`"),
            (r#"{"priority": 3}"#, "1 (first) or 2"),
            (r#"{"timeout": "soon"}"#, "expected a JSON number"),
            (r#"{"classes": 7}"#, "integer `7`, expected a string"),
        ] {
            let error = serde_json::from_str::<Parameters>(json).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
