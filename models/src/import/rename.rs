//! Renames the tensors of a file to our names.

use std::collections::BTreeMap;

use super::error::ImportError;
use super::kind::Kind;
use super::names::{NEEDLESS, Rename, is_of_backbone, parts, translate};
use super::stored::StoredTensors;

/// The tensors of a file, grouped by how they are used.
#[derive(Default)]
pub(super) struct Renamed<'a> {
    /// Names in the file, without the prefix, by our names.
    pub(super) sources: BTreeMap<String, &'a str>,
    /// Full names of tensors that are not needed, by what they are.
    pub(super) dropped: BTreeMap<String, Vec<String>>,
    /// Full names of tensors outside the network.
    pub(super) unexpected: Vec<String>,
    /// Full names of unknown tensors inside the network.
    pub(super) refused: Vec<String>,
}

pub(super) fn rename<'a>(
    tensors: &'a StoredTensors,
    prefix: &str,
    kind: Kind,
    table: &[Rename],
    drop: &[String],
) -> Result<Renamed<'a>, ImportError> {
    let mut renamed = Renamed::default();
    for full in tensors.keys() {
        let Some(key) = full.strip_prefix(prefix) else {
            renamed.unexpected.push(full.clone());
            continue;
        };
        let name = translate(table, key);
        let needless = NEEDLESS.iter().find(|(end, _)| match end.strip_prefix('.') {
            Some(_) => key.ends_with(end),
            None => name.as_deref() == Some(end),
        });
        if let Some((_, what)) = needless {
            renamed.dropped.entry((*what).to_owned()).or_default().push(full.clone());
        } else if drop.iter().any(|start| full.starts_with(start)) {
            renamed.dropped.entry("by request".to_owned()).or_default().push(full.clone());
        } else if !is_inside(kind, key) {
            renamed.unexpected.push(full.clone());
        } else if let Some(name) = name {
            if let Some(first) = renamed.sources.insert(name.clone(), key) {
                return Err(ImportError::Twice { name, first: first.to_owned(), second: key.to_owned() });
            }
        } else {
            renamed.refused.push(full.clone());
        }
    }
    Ok(renamed)
}

/// Whether a tensor of that name is inside the kind's network. Unknown tensors inside it mean that it is another network.
fn is_inside(kind: Kind, key: &str) -> bool {
    let inside = || parts(kind.naming()).iter().any(|part| key.starts_with(part));
    match kind {
        Kind::TorchvisionBackbone => is_of_backbone(key),
        Kind::Yhenon => is_of_backbone(key) || inside(),
        _ => inside(),
    }
}
