//! Import of weights of other projects: recognizes the network, renames its tensors, and converts them.
//!
//! A [`KeyMap`] is made from names and shapes alone. Values are read one tensor at a time when it is applied, so no large
//! tensor is in memory twice, and a file that does not match is rejected before any of its values are read.

mod kind;
mod stored;
mod hints;
mod error;
mod names;
mod recognition;
mod rename;
mod classes;
mod architecture;
mod key_map;
mod report;

pub use architecture::Network;
pub use classes::ClassSource;
pub use error::ImportError;
pub use hints::{Background, Hints, Labels, Thresholds};
pub use key_map::KeyMap;
pub use kind::Kind;
pub use recognition::Assumption;
pub use stored::{Stored, StoredTensors};
