//! Numbers and ids in JSON, as many programs write them: with decimals, as text, as truth values.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Unexpected, Visitor};

/// A number, also as text or truth value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Number(pub(crate) f64);

/// A whole number, also as text or with decimals.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Whole(pub(crate) i64);

/// A whole number as [`Whole`] takes it, or else any text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Id {
    Whole(i64),
    Text(String),
}

/// Four numbers, or how many there are instead.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Four {
    Numbers([f64; 4]),
    Other(usize),
}

impl Four {
    /// The numbers of a box.
    pub(crate) fn bbox(self) -> Result<[f64; 4], String> {
        match self {
            Self::Numbers(numbers) => Ok(numbers),
            Self::Other(count) => Err(format!("bbox: {count} numbers, expected x, y, width, height")),
        }
    }
}

impl Id {
    /// The number, unless it is another text.
    pub(crate) fn whole(&self) -> Option<i64> {
        match self {
            Self::Whole(number) => Some(*number),
            Self::Text(_) => None,
        }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Whole(number) => write!(formatter, "{number}"),
            Self::Text(text) => write!(formatter, "`{text}`"),
        }
    }
}

/// The whole number equal to `number`.
fn whole(number: f64) -> Option<i64> {
    /// From here on, not every whole number is a float.
    const EXACT: f64 = (1u64 << 53) as f64;
    (number.fract() == 0.0 && number.abs() <= EXACT).then_some(number as i64)
}

/// Takes what `T` is made of.
struct Lenient<T>(PhantomData<T>);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Lenient::<Self>(PhantomData))
    }
}

impl Visitor<'_> for Lenient<Number> {
    type Value = Number;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a number")
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Number, E> {
        Ok(Number(number))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Number, E> {
        Ok(Number(number as f64))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Number, E> {
        Ok(Number(number as f64))
    }

    fn visit_bool<E: Error>(self, truth: bool) -> Result<Number, E> {
        Ok(Number(f64::from(u8::from(truth))))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Number, E> {
        text.trim().parse().map(Number).map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Lenient::<Self>(PhantomData))
    }
}

impl Visitor<'_> for Lenient<Id> {
    type Value = Id;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a whole number or a text")
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Id, E> {
        Ok(Id::Whole(number))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Id, E> {
        i64::try_from(number).map(Id::Whole).map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &self))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Id, E> {
        whole(number).map(Id::Whole).ok_or_else(|| E::invalid_value(Unexpected::Float(number), &self))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Id, E> {
        self.visit_string(text.to_owned())
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Id, E> {
        let trimmed = text.trim();
        let number = trimmed.parse().ok().or_else(|| trimmed.parse().ok().and_then(whole));
        Ok(number.map_or_else(|| Id::Text(text), Id::Whole))
    }
}

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Id::deserialize(deserializer)? {
            Id::Whole(number) => Ok(Self(number)),
            Id::Text(text) => Err(D::Error::invalid_value(Unexpected::Str(&text), &"a whole number")),
        }
    }
}

impl<'de> Deserialize<'de> for Four {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Lenient::<Self>(PhantomData))
    }
}

impl<'de> Visitor<'de> for Lenient<Four> {
    type Value = Four;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a list of four numbers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Four, A::Error> {
        let (mut numbers, mut count) = ([0.0; 4], 0);
        while let Some(Number(number)) = list.next_element()? {
            if let Some(slot) = numbers.get_mut(count) {
                *slot = number;
            }
            count += 1;
        }
        Ok(if count == numbers.len() { Four::Numbers(numbers) } else { Four::Other(count) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_ids_are_read_in_any_notation() {
        for (text, number) in [("1", 1.0), ("-1.5", -1.5), ("\" 2.5\"", 2.5), ("true", 1.0), ("1e3", 1000.0)] {
            assert_eq!(serde_json::from_str::<Number>(text).unwrap(), Number(number), "{text}");
        }
        for text in ["\"x\"", "null", "[]", "{}", "\"\""] {
            serde_json::from_str::<Number>(text).unwrap_err();
        }
        for (text, number) in [("7", 7), ("-7", -7), ("7.0", 7), ("\"7\"", 7), ("\"7.0\"", 7), ("7e0", 7)] {
            assert_eq!(serde_json::from_str::<Whole>(text).unwrap(), Whole(number), "{text}");
            assert_eq!(serde_json::from_str::<Id>(text).unwrap(), Id::Whole(number), "{text}");
        }
        for text in ["1.5", "1e300", "18446744073709551615", "true", "null"] {
            serde_json::from_str::<Id>(text).unwrap_err();
        }
        assert_eq!(serde_json::from_str::<Id>("\"p0.jpg\"").unwrap(), Id::Text("p0.jpg".to_owned()));
        let error = serde_json::from_str::<Whole>("\"p0.jpg\"").unwrap_err().to_string();
        assert!(error.contains("\"p0.jpg\", expected a whole number"), "{error}");
        for (text, four) in [("[1, \"2\", 3.0, 4]", Four::Numbers([1.0, 2.0, 3.0, 4.0])), ("[]", Four::Other(0))] {
            assert_eq!(serde_json::from_str::<Four>(text).unwrap(), four);
        }
        assert_eq!(serde_json::from_str::<Four>("[1, 2, 3, 4, 5]").unwrap(), Four::Other(5));
    }
}
