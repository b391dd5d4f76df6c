//! Renames the tensors of a file to our names.

use std::collections::BTreeMap;

use super::kind::is_of_backbone;
use super::names::{NEEDLESS, translate};
use super::{ForeignError, Kind, StoredTensors};

/// The tensors of a file, grouped by how they are used.
pub(super) struct Renamed<'a> {
    /// Names in the file, without the prefix, by our names.
    pub(super) sources: BTreeMap<String, &'a str>,
    /// Full names of tensors that are not needed, by what they are.
    pub(super) dropped: BTreeMap<String, Vec<String>>,
    /// Full names of tensors outside the network.
    pub(super) outside: Vec<String>,
    /// Full names of unknown tensors inside the network.
    pub(super) refused: Vec<String>,
}

pub(super) fn rename<'a>(
    tensors: &'a StoredTensors,
    prefix: &str,
    kind: Kind,
    drop: &[String],
) -> Result<Renamed<'a>, ForeignError> {
    let mut renamed =
        Renamed { sources: BTreeMap::new(), dropped: BTreeMap::new(), outside: Vec::new(), refused: Vec::new() };
    let names = kind.names();
    for full in tensors.keys() {
        let Some(key) = full.strip_prefix(prefix) else {
            renamed.outside.push(full.clone());
            continue;
        };
        let name = translate(&names, key);
        let needless = NEEDLESS.iter().find(|(end, _)| match end.strip_prefix('.') {
            Some(_) => key.ends_with(end),
            None => name.as_deref() == Some(end),
        });
        if let Some((_, what)) = needless {
            renamed.dropped.entry((*what).to_owned()).or_default().push(full.clone());
        } else if drop.iter().any(|start| full.starts_with(start)) {
            renamed.dropped.entry("by --drop".to_owned()).or_default().push(full.clone());
        } else if !is_inside(kind, key) {
            renamed.outside.push(full.clone());
        } else if let Some(name) = name {
            if let Some(first) = renamed.sources.insert(name.clone(), key) {
                return Err(ForeignError::Twice { name, first: first.to_owned(), second: key.to_owned() });
            }
        } else {
            renamed.refused.push(full.clone());
        }
    }
    Ok(renamed)
}

/// Whether a tensor of that name is inside the kind's network. Unknown tensors inside it mean that it is another network.
fn is_inside(kind: Kind, key: &str) -> bool {
    match kind {
        Kind::TorchvisionBackbone => is_of_backbone(key),
        Kind::Yhenon => {
            is_of_backbone(key)
                || ["fpn.", "regressionModel.", "classificationModel."].iter().any(|s| key.starts_with(s))
        }
        Kind::TorchvisionV1 | Kind::TorchvisionV1Coco | Kind::TorchvisionV2 | Kind::Mlperf => {
            key.starts_with("backbone.") || key.starts_with("head.")
        }
    }
}
