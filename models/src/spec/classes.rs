//! The classes of the spec.

use std::collections::HashSet;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};

use super::section::{SpecError, ensure};

/// One class of objects.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// Id in the data set of the class.
    pub id: i64,
    /// Name shown to users.
    pub name: String,
}

impl Class {
    /// Its index in `classes`, matched by id and name, or else by name alone, because ids differ between files.
    pub fn index_in(&self, classes: &[Self]) -> Option<usize> {
        let same = classes.iter().position(|known| known == self);
        same.or_else(|| classes.iter().position(|known| known.name == self.name))
    }
}

/// Checks that no two classes have the same id or name.
pub(super) fn check(classes: &[Class]) -> Result<(), SpecError> {
    let (mut ids, mut names) = (HashSet::new(), HashSet::new());
    classes.iter().try_for_each(|class| {
        ensure(ids.insert(class.id), "classes.id", format_args!("{} twice", class.id), "different ids")?;
        ensure(names.insert(&class.name), "classes.name", format_args!("`{}` twice", class.name), "different names")
    })
}

pub(super) fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Class>, D::Error> {
    let classes = Vec::deserialize(deserializer)?;
    check(&classes).map_err(de::Error::custom)?;
    Ok(classes)
}
