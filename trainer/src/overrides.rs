//! `--set KEY=VALUE`: values of the configuration from the command line.

mod text;

use std::str::FromStr;

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde_yaml::{Mapping, Value};

/// Values of the configuration from the command line.
#[derive(Args, Clone, Debug, Default)]
pub struct Overrides {
    /// Set a key of the configuration, for example run.epochs=30; VALUE is YAML. May be repeated; the last value of a key
    /// counts.
    #[arg(long = "set", value_name = "KEY=VALUE", help_heading = "Input")]
    list: Vec<Override>,
}

/// A value and its place in the configuration.
#[derive(Clone, Debug, PartialEq)]
struct Override {
    /// The argument.
    argument: String,
    /// The keys from the outermost section to the value; in a list, its index.
    key: Vec<String>,
    value: Value,
}

impl FromStr for Override {
    type Err = String;

    fn from_str(argument: &str) -> Result<Self, String> {
        let (key, value) = argument.split_once('=').ok_or("expected KEY=VALUE, for example run.epochs=30")?;
        let key: Vec<_> = key.trim().split('.').map(str::to_owned).collect();
        if key.iter().any(String::is_empty) {
            return Err("expected a key of the configuration before `=`, for example run.epochs".to_owned());
        }
        let value = serde_yaml::from_str(value).map_err(|error| format!("VALUE is not YAML: {error}"))?;
        Ok(Self { argument: argument.to_owned(), key, value })
    }
}

impl Overrides {
    /// Parses `text`, the content of `source`, with these values set. `parse` gets YAML.
    ///
    /// # Errors
    /// Those of `parse`. The message names the override that caused the error, or else `source`.
    pub(crate) fn parse<T: PartialEq>(
        &self,
        text: &str,
        source: &str,
        parse: impl Fn(&str) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let of_source = || format!("invalid configuration `{source}`");
        if self.list.is_empty() {
            return parse(text).with_context(of_source);
        }
        let document: Value = serde_yaml::from_str(text).with_context(of_source)?;
        // Written as YAML again, so that values are checked as in a file.
        let with_first = |count: usize| {
            let mut merged = document.clone();
            self.list[..count].iter().try_for_each(|item| item.apply(&mut merged))?;
            parse(&serde_yaml::to_string(&merged)?)
        };
        let message = |count: usize| with_first(count).err().map(|error| without_location(&format!("{error:#}")));
        let count = self.list.len();
        if let Some(last) = message(count) {
            // The override that caused the error is the last one without which the result would have been another.
            if let Some(cause) = (0..count).rev().find(|count| message(*count).as_ref() != Some(&last)) {
                bail!("invalid `--set {}`: {last}", self.list[cause].argument);
            }
            parse(text).with_context(of_source)?;
        }
        if let (Ok(exact), Ok(parsed)) = (parse(text), with_first(0)) {
            ensure!(
                exact == parsed,
                "`{source}` has text that looks like a number, such as a class named 1.10; quote it to use `--set`"
            );
        }
        with_first(count)
    }

    /// Sets these values in commented YAML, and keeps its comments.
    ///
    /// # Errors
    /// When a key leads into a value without keys.
    pub(crate) fn edit(&self, text: &str) -> anyhow::Result<String> {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        for (index, item) in self.list.iter().enumerate() {
            if self.list[index + 1..].iter().all(|later| later.key != item.key) {
                item.edit(&mut lines)?;
            }
        }
        Ok(lines.into_iter().map(|line| line + "\n").collect())
    }
}

impl Override {
    fn apply(&self, config: &mut Value) -> anyhow::Result<()> {
        set(config, &self.key, &self.value).with_context(|| format!("cannot set `{}`", self.key.join(".")))
    }
}

/// Sets the value at `key`, and creates sections that are missing.
fn set(config: &mut Value, key: &[String], value: &Value) -> anyhow::Result<()> {
    let mut place = config;
    for (depth, part) in key.iter().enumerate() {
        if place.is_null() {
            *place = Value::Mapping(Mapping::new());
        }
        let section = || key[..depth].join(".");
        place = match place {
            Value::Mapping(section) => section.entry(part.as_str().into()).or_insert(Value::Null),
            Value::Sequence(items) => {
                let count = items.len();
                let item = part.parse().ok().and_then(|index: usize| items.get_mut(index));
                item.with_context(|| format!("`{}` is a list of {count}, which has no entry `{part}`", section()))?
            }
            _ => bail!("`{}` is a value without keys", section()),
        };
    }
    *place = value.clone();
    Ok(())
}

/// A message of `serde_yaml` without the line, which is not one of a file.
fn without_location(message: &str) -> String {
    let digits = |text: &str| text.chars().all(|c| c.is_ascii_digit());
    match message.rsplit_once(" at line ") {
        Some((text, location)) if location.split(" column ").all(digits) => text.to_owned(),
        _ => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn overrides(arguments: &[&str]) -> Overrides {
        Overrides { list: arguments.iter().map(|argument| argument.parse().unwrap()).collect() }
    }

    fn parse_value(text: &str) -> anyhow::Result<Value> {
        Ok(serde_yaml::from_str(text)?)
    }

    #[test]
    fn values_are_set_and_the_last_one_counts() {
        let cases: [(&[&str], &str); 8] = [
            (&["a.b=2"], "{a: {b: 2, c: [x, {d: 4}]}}"),
            (&["a.b=2", "a.b=3"], "{a: {b: 3, c: [x, {d: 4}]}}"),
            (&["a.c=[]"], "{a: {b: 1, c: []}}"),
            (&["a.c.0=y", "a.c.1.d=5"], "{a: {b: 1, c: [y, {d: 5}]}}"),
            (&["new.x.y={z: 1}"], "{a: {b: 1, c: [x, {d: 4}]}, new: {x: {y: {z: 1}}}}"),
            (&["a=null", "a.b=5"], "{a: {b: 5}}"),
            (&["a.b="], "{a: {b: null, c: [x, {d: 4}]}}"),
            (&["a.b=p=q"], "{a: {b: p=q, c: [x, {d: 4}]}}"),
        ];
        for (arguments, expected) in cases {
            let found = overrides(arguments).parse("{a: {b: 1, c: [x, {d: 4}]}}", "f", parse_value).unwrap();
            assert_eq!(found, parse_value(expected).unwrap(), "{arguments:?}");
        }
    }

    #[test]
    fn arguments_without_key_or_yaml_are_refused() {
        for (argument, message) in
            [("run.epochs", "KEY=VALUE"), ("=3", "key"), ("run..epochs=3", "key"), ("a=[", "YAML")]
        {
            let error = argument.parse::<Override>().unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn errors_name_the_override_or_the_file_that_caused_them() {
        let parse = |text: &str| -> anyhow::Result<BTreeMap<String, u8>> {
            let values: BTreeMap<String, u8> = serde_yaml::from_str(text)?;
            ensure!(values.contains_key("a"), "`a` is missing");
            Ok(values)
        };
        let error = |arguments: &[&str], text: &str| {
            format!("{:#}", overrides(arguments).parse(text, "f.yaml", parse).unwrap_err())
        };
        let invalid = "invalid type: string \"x\", expected u8";
        assert_eq!(error(&["b=1", "a=x", "c=1"], "a: 1"), format!("invalid `--set a=x`: a: {invalid}"));
        assert_eq!(
            error(&["b=1"], "a: 1\nc: x"),
            format!("invalid configuration `f.yaml`: c: {invalid} at line 2 column 4")
        );
        assert_eq!(error(&["b=1"], "c: 1"), "invalid configuration `f.yaml`: `a` is missing");
        assert_eq!(error(&["a.x=1"], "a: 1"), "invalid `--set a.x=1`: cannot set `a.x`: `a` is a value without keys");
        // An override may supply what the file lacks, and correct an earlier one.
        assert!(overrides(&["a=x", "a=2"]).parse("c: 1", "f.yaml", parse).is_ok());
    }

    #[test]
    fn text_that_would_change_is_refused() {
        let parse = |text: &str| Ok(serde_yaml::from_str::<BTreeMap<String, String>>(text)?);
        let error = overrides(&["b=x"]).parse("a: 1.10", "f.yaml", parse).unwrap_err();
        assert!(error.to_string().contains("quote"), "{error}");
        assert_eq!(overrides(&["b=x"]).parse("a: \"1.10\"", "f.yaml", parse).unwrap()["a"], "1.10");
    }
}
