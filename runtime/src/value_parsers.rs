//! Parsers of values on the command line.

use std::num::NonZeroUsize;

use clap::builder::{RangedU64ValueParser, TypedValueParser};

/// Parses a number from 1 to `max`.
pub(crate) fn up_to(max: u64) -> impl TypedValueParser<Value = NonZeroUsize> {
    RangedU64ValueParser::<usize>::new().range(1..=max).try_map(NonZeroUsize::try_from)
}

/// Parses pixels such as 1280x960; each side is between these two.
pub(crate) fn size(text: &str, [min, max]: [u32; 2]) -> Result<(u32, u32), String> {
    let side = |text: &str| text.parse().ok().filter(|side| (min..=max).contains(side));
    let size = text.split_once('x').and_then(|(width, height)| side(width).zip(side(height)));
    size.ok_or_else(|| format!("expected pixels such as 1280x960, from {min} to {max}"))
}
