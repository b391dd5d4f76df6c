//! Named pipes.

use std::io;
use std::path::Path;

/// Refuses a path whose opening would block until another process writes to it. Pipes in /dev, such as stdin, are already
/// open.
#[cfg(unix)]
pub(super) fn refuse_named_pipe(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    let is_pipe = !path.starts_with("/dev") && std::fs::metadata(path).is_ok_and(|file| file.file_type().is_fifo());
    if is_pipe { Err(io::Error::other("it is a named pipe; pass a regular file")) } else { Ok(()) }
}

#[cfg(not(unix))]
pub(super) fn refuse_named_pipe(_path: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use super::super::{TiffReader, read};

    #[test]
    fn a_named_pipe_is_an_error_and_does_not_block() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe.jpg");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        assert!(read(&path).unwrap_err().to_string().contains("it is a named pipe"));
        let error = TiffReader::open(&path).err().unwrap();
        assert!(error.to_string().contains("it is a named pipe"));
    }
}
