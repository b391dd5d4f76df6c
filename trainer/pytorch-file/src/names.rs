//! The names of tensors: the keys and attributes that lead to them, joined by dots, as in a state dict.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::iter;

use serde_json::{Map, Number, Value as Json};

use super::error::Error;
use super::pickle::{MAX_NAME, Pickle, text};
use super::value::{Global, Id, Object, Tensor, Value};

/// Bounds, which stop pickles whose parts refer to each other so often that walking through them would never end.
const MAX_DEPTH: usize = 64;
const MAX_VISITS: usize = 1 << 20;
const MAX_NAMES: usize = 16 << 20;

/// Bound on the bytes of a value that is returned as JSON.
const MAX_JSON: usize = 16 << 20;

/// The tables in which PyTorch's modules keep tensors and other modules.
const TABLES: [&str; 3] = ["_parameters", "_buffers", "_modules"];

/// All tensors that the root of a pickle leads to, by name.
pub(crate) fn tensors<'a>(pickle: &'a Pickle, bytes: &'a [u8]) -> Result<BTreeMap<String, &'a Tensor>, Error> {
    let mut walk =
        Walk { pickle, bytes, found: BTreeMap::new(), path: Vec::new(), name: String::new(), visits: 0, names: 0 };
    walk.visit(pickle.root)?;
    Ok(walk.found)
}

struct Walk<'a> {
    pickle: &'a Pickle,
    bytes: &'a [u8],
    found: BTreeMap<String, &'a Tensor>,
    /// The values that are being visited.
    path: Vec<Id>,
    /// The name of the value that is being visited.
    name: String,
    visits: usize,
    names: usize,
}

impl Walk<'_> {
    fn visit(&mut self, id: Id) -> Result<(), Error> {
        let len = len(self.pickle, id);
        self.visits += 1 + len;
        if self.visits > MAX_VISITS {
            return Err(Error::Limit { what: "more than 1048576 entries, counted as often as others refer to them" });
        }
        if let Value::Tensor(tensor) = &self.pickle.values[id] {
            self.names += self.name.len();
            if self.names > MAX_NAMES {
                return Err(Error::Limit { what: "more than 16 MiB of names" });
            }
            self.found.insert(self.name.clone(), tensor);
            return Ok(());
        }
        // A module may know its parent.
        if len == 0 || self.path.contains(&id) {
            return Ok(());
        }
        if self.path.len() == MAX_DEPTH {
            return Err(Error::Limit { what: "more than 64 levels" });
        }
        self.path.push(id);
        for (key, value) in entries(self.pickle, self.bytes, id) {
            let end = self.name.len();
            // What is in a module's tables is part of the module.
            if !self.name.is_empty() && !key.is_empty() {
                self.name.push('.');
            }
            self.name.push_str(&key);
            self.visit(value)?;
            self.name.truncate(end);
        }
        self.path.pop();
        Ok(())
    }
}

/// The parts of a value with their names, which are made one by one: many entries may have one long key. The tables of
/// a module have none.
fn entries<'a>(pickle: &'a Pickle, bytes: &'a [u8], id: Id) -> Box<dyn Iterator<Item = (Cow<'a, str>, Id)> + 'a> {
    let named = move |items: &'a [(Id, Id)]| {
        items.iter().filter_map(move |(name, value)| Some((key(pickle, bytes, *name)?, *value)))
    };
    match &pickle.values[id] {
        Value::Dict(items) => Box::new(named(items)),
        Value::List(elements) | Value::Tuple(elements) => {
            let index = |(index, element): (usize, &Id)| (Cow::Owned(index.to_string()), *element);
            Box::new(elements.iter().enumerate().map(index))
        }
        Value::Object(Object { state, items }) => {
            let attributes = match state.map(|state| &pickle.values[state]) {
                Some(Value::Dict(attributes)) => attributes.as_slice(),
                _ => &[],
            };
            let is = move |id: Id, name: &str| match &pickle.values[id] {
                Value::Text(range) | Value::Bytes(range) => bytes.get(range.clone()) == Some(name.as_bytes()),
                _ => false,
            };
            if attributes.iter().any(|(name, _)| is(*name, TABLES[2])) {
                let tables = attributes.iter().filter(move |(name, _)| TABLES.iter().any(|table| is(*name, table)));
                return Box::new(tables.map(|(_, table)| (Cow::Borrowed(""), *table)));
            }
            Box::new(named(attributes).chain(named(items)))
        }
        _ => Box::new(iter::empty()),
    }
}

/// Number of all parts of a value, also of those without a name.
fn len(pickle: &Pickle, id: Id) -> usize {
    match &pickle.values[id] {
        Value::Dict(items) => items.len(),
        Value::List(elements) | Value::Tuple(elements) => elements.len(),
        Value::Object(Object { state, items }) => match state.map(|state| &pickle.values[state]) {
            Some(Value::Dict(attributes)) => items.len() + attributes.len(),
            _ => items.len(),
        },
        _ => 0,
    }
}

/// The name of an entry; none if it is neither a short text nor a number.
fn key<'a>(pickle: &Pickle, bytes: &'a [u8], id: Id) -> Option<Cow<'a, str>> {
    match &pickle.values[id] {
        Value::Text(range) if range.len() <= MAX_NAME => Some(text(bytes, range).into()),
        Value::Bytes(range) if range.len() <= MAX_NAME => {
            Some(bytes.get(range.clone())?.iter().map(|byte| char::from(*byte)).collect())
        }
        Value::Int(number) => Some(number.to_string().into()),
        _ => None,
    }
}

/// The value below the root to which these names lead, as JSON. Tensors are null. None if there is no such value, or if it
/// and the keys before it are larger than descriptions of weights are.
pub(crate) fn json(pickle: &Pickle, bytes: &[u8], path: &[&str]) -> Option<Json> {
    let mut rest = MAX_JSON;
    let mut id = pickle.root;
    for name in path {
        let mut keys = entries(pickle, bytes, id).take_while(|(key, _)| {
            rest = rest.saturating_sub(key.len());
            rest > 0
        });
        (_, id) = keys.find(|(key, _)| key == name)?;
    }
    convert(pickle, bytes, id, MAX_DEPTH, &mut rest)
}

fn convert(pickle: &Pickle, bytes: &[u8], id: Id, depth: usize, rest: &mut usize) -> Option<Json> {
    let value = &pickle.values[id];
    let length = if let Value::Text(range) = value { range.len() } else { len(pickle, id) };
    *rest = rest.checked_sub(64 + length)?;
    let depth = depth.checked_sub(1)?;
    Some(match value {
        Value::Bool(value) => Json::Bool(*value),
        Value::Int(number) => Json::from(*number),
        Value::Float(number) => Number::from_f64(*number).map_or(Json::Null, Json::Number),
        Value::Text(range) => Json::from(text(bytes, range)),
        Value::List(elements) | Value::Tuple(elements) => {
            let elements = elements.iter().map(|element| convert(pickle, bytes, *element, depth, rest));
            Json::Array(elements.collect::<Option<_>>()?)
        }
        Value::Dict(_) | Value::Object(_) => {
            let mut map = Map::new();
            for (name, value) in entries(pickle, bytes, id) {
                *rest = rest.checked_sub(name.len())?;
                map.insert(name.into_owned(), convert(pickle, bytes, value, depth, rest)?);
            }
            Json::Object(map)
        }
        _ => Json::Null,
    })
}

/// The classes and functions to which a pickle refers: a few of them, as text.
pub(crate) fn globals(pickle: &Pickle, bytes: &[u8]) -> String {
    const SHOWN: usize = 5;
    let names = pickle.values.iter().filter_map(|value| match value {
        Value::Global(Global { module, name }) if module.len() + name.len() <= 200 => {
            Some(format!("`{}.{}`", text(bytes, module), text(bytes, name)))
        }
        _ => None,
    });
    names.take(SHOWN).collect::<Vec<_>>().join(", ")
}
