//! Paths on the command line; `-` is stdin or stdout.

use std::path::Path;

use runtime::output::Target;

/// Error context for an output that cannot be written.
pub(crate) fn cannot_write(path: &Path) -> String {
    format!("cannot write {}", Target::name(path))
}

/// The path to read.
pub(crate) fn or_stdin(path: &Path) -> &Path {
    if path == Path::new("-") { Path::new("/dev/stdin") } else { path }
}
