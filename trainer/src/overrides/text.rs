//! Sets values in commented YAML in block style, with two spaces per level.

use std::ops::Range;

use serde_yaml::Value;

use super::{Override, set};

/// A line with a key.
struct Entry<'a> {
    /// The value on this line; empty if it is on the lines below.
    value: &'a str,
    /// The comment, with the spaces before it.
    comment: &'a str,
}

impl Override {
    /// Sets the value in the lines of a document.
    pub(super) fn edit(&self, lines: &mut Vec<String>) -> anyhow::Result<()> {
        // The lines of the section that contains the key.
        let mut section = 0..lines.len();
        for (depth, key) in self.key.iter().enumerate() {
            let rest = &self.key[depth + 1..];
            let indent = "  ".repeat(depth);
            let found = |commented: &str| {
                let prefix = format!("{indent}{commented}{key}:");
                section.clone().find(|line| lines[*line].strip_prefix(&prefix).is_some_and(is_end_of_key))
            };
            // A key may be listed in a comment, with its default.
            let Some(line) = found("").or_else(|| found("# ")) else {
                let mut value = Value::Null;
                set(&mut value, rest, &self.value)?;
                let end = if depth == 0 { section.end } else { section.start };
                lines.insert(end, format!("{indent}{key}: {}", flow(&value)));
                return Ok(());
            };
            let block = block(lines, line, indent.len());
            let Entry { value, comment } = entry(&lines[line]);
            let mut values =
                lines[block.clone()].iter().map(|line| line.trim_start()).filter(|line| !line.starts_with('#'));
            let is_list = values.next().is_some_and(|line| line.starts_with("- "));
            if !rest.is_empty() && value.is_empty() && !is_list && lines[line].starts_with(&format!("{indent}{key}")) {
                section = block;
                continue;
            }
            let mut parsed = match rest {
                [] => Value::Null,
                _ if value.is_empty() => serde_yaml::from_str(&lines[block.clone()].join("\n"))?,
                _ => serde_yaml::from_str(value)?,
            };
            set(&mut parsed, rest, &self.value)?;
            let is_block = value.is_empty();
            lines[line] = format!("{indent}{key}: {}{comment}", flow(&parsed));
            if is_block {
                lines.drain(block);
            }
            return Ok(());
        }
        Ok(())
    }
}

fn is_end_of_key(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with(' ')
}

fn entry(line: &str) -> Entry<'_> {
    let (text, comment) = match line.rfind(" # ") {
        Some(start) if !line[..start].trim().is_empty() => line.split_at(line[..start].trim_end().len()),
        _ => (line.trim_end(), ""),
    };
    let value = text.split_once(':').map_or("", |(_, value)| value.trim());
    Entry { value, comment }
}

/// The lines below `line` that belong to its key, which is indented by `indent` spaces.
fn block(lines: &[String], line: usize, indent: usize) -> Range<usize> {
    let belongs = |line: &&String| {
        let text = line.trim_start();
        let spaces = line.len() - text.len();
        !text.is_empty() && (spaces > indent || (spaces == indent && text.starts_with("- ")))
    };
    let below = line + 1;
    below..below + lines[below..].iter().take_while(belongs).count()
}

/// A value on one line.
fn flow(value: &Value) -> String {
    match value {
        Value::Mapping(mapping) => {
            let entry = |(key, value): (&Value, &Value)| format!("{}: {}", flow(key), flow(value));
            format!("{{{}}}", mapping.iter().map(entry).collect::<Vec<_>>().join(", "))
        }
        Value::Sequence(items) => format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Value::String(text) if !is_plain(text) => serde_json::Value::from(text.as_str()).to_string(),
        Value::String(text) => text.clone(),
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.to_string(),
        Value::Tagged(tagged) => format!("{} {}", tagged.tag, flow(&tagged.value)),
    }
}

/// Whether YAML reads this text as itself without quotes, also in a list.
fn is_plain(text: &str) -> bool {
    let harmless = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
    text.starts_with(|c: char| c.is_alphanumeric() || c == '/')
        && text.chars().all(harmless)
        && serde_yaml::from_str::<Value>(text).is_ok_and(|value| value == Value::String(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::Overrides;
    use super::*;

    const TEXT: &str = "\
# Header

data:
  train:
    annotations: train.json       # a file
    # list: train.txt             # names, one
                                  # per line
  kind: none                      # none or disk

scale: {probability: 0.0, max: 1.25}      # factor
run:
  epochs: 50
  # workers: 8                    # threads
model:
  classes:
  - id: 1
    name: cell
  width: 256
";

    #[test]
    fn values_replace_those_of_the_text_and_comments_stay() {
        let cases = [
            ("run.epochs=3", "  epochs: 3\n", "epochs: 50"),
            ("run.workers=4", "  workers: 4                    # threads\n", "# workers"),
            ("run.seed=4", "run:\n  seed: 4\n", "never"),
            ("data.kind=disk", "  kind: disk                      # none or disk\n", "kind: none"),
            ("data.train.annotations='a #b'", "    annotations: \"a #b\"       # a file\n", "train.json"),
            ("data.train.list=l.txt", "    list: l.txt             # names, one\n", "# list"),
            ("scale.max=2", "scale: {probability: 0.0, max: 2}      # factor\n", "1.25"),
            ("model.classes=[{id: 2, name: '3'}]", "  classes: [{id: 2, name: \"3\"}]\n  width", "cell"),
            ("model.classes.0.name=disk", "  classes: [{id: 1, name: disk}]\n  width", "cell"),
            ("model={width: 1}", "model: {width: 1}\n", "256"),
            ("loss.gamma=1.5", "  width: 256\nloss: {gamma: 1.5}\n", "never"),
        ];
        for (argument, expected, gone) in cases {
            let overrides = Overrides { list: vec![argument.parse().unwrap()] };
            let edited = overrides.edit(TEXT).unwrap();
            assert!(edited.contains(expected) && !edited.contains(gone), "{argument}: {edited}");
            let parse = |text: &str| Ok(serde_yaml::from_str::<Value>(text)?);
            assert_eq!(parse(&edited).unwrap(), overrides.parse(TEXT, "", parse).unwrap(), "{argument}");
            assert!(edited.starts_with("# Header\n\n"), "{edited}");
        }
    }
}
