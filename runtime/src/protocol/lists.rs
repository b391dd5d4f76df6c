//! Lists in JSON of untrusted length.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, SeqAccess, Visitor};

/// A list of at most `MAX` items: JSON of a few bytes per item would otherwise take much more memory.
#[derive(Debug)]
pub(super) struct BoundedVec<T, const MAX: usize>(pub(super) Vec<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for BoundedVec<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items<T, const MAX: usize>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Items<T, MAX> {
            type Value = BoundedVec<T, MAX>;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                write!(formatter, "a list of at most {MAX} items")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
                let mut found = Vec::new();
                while let Some(item) = items.next_element()? {
                    if found.len() == MAX {
                        return Err(A::Error::custom(format!("more than {MAX} items")));
                    }
                    found.push(item);
                }
                Ok(BoundedVec(found))
            }
        }

        deserializer.deserialize_seq(Items(PhantomData))
    }
}

/// Texts in lists of any depth, flattened, as tensors in JSON have them. Appends to `texts`, at most `max`.
pub(super) struct Texts<'a, 'de> {
    pub(super) texts: &'a mut Vec<Cow<'de, str>>,
    pub(super) max: usize,
}

impl<'de> DeserializeSeed<'de> for Texts<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Texts<'_, 'de> {
    fn push<E: Error>(self, text: Cow<'de, str>) -> Result<(), E> {
        if self.texts.len() == self.max {
            return Err(E::custom(format!("more than {} elements", self.max)));
        }
        self.texts.push(text);
        Ok(())
    }
}

impl<'de> Visitor<'de> for Texts<'_, 'de> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("texts, or lists of them")
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<(), E> {
        self.push(Cow::Borrowed(text))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.push(Cow::Owned(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(Texts { texts: &mut *self.texts, max: self.max })?.is_some() {}
        Ok(())
    }
}
