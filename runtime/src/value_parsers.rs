//! Parsers of values on the command line.

use std::num::NonZeroUsize;

use clap::builder::{RangedU64ValueParser, TypedValueParser};

/// Parses a number from 1 to `max`.
pub(crate) fn up_to(max: u64) -> impl TypedValueParser<Value = NonZeroUsize> {
    RangedU64ValueParser::<usize>::new().range(1..=max).try_map(NonZeroUsize::try_from)
}
