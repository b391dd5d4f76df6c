//! Writes frames to a video.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Stdio};

use image::RgbImage;
use models::AtomicFile;

use super::ffmpeg::{Process, file};
use super::{Rate, VideoError};

/// Writes an MP4 file without sound. The file gets its name in [`Encoder::finish`].
#[derive(Debug)]
pub struct Encoder {
    input: BufWriter<ChildStdin>,
    process: Process,
    file: AtomicFile,
    path: PathBuf,
}

impl Encoder {
    /// Starts a video at `path` with `rate` frames per second.
    ///
    /// # Errors
    /// When `ffmpeg` does not start, or the file cannot be written.
    pub fn create(path: &Path, rate: Rate) -> Result<Self, VideoError> {
        let write = |error: io::Error| VideoError::Write { path: path.to_owned(), reason: error.to_string() };
        let target = AtomicFile::create(path).map_err(write)?;
        let rate = rate.to_string();
        let input = ["-f", "image2pipe", "-c:v", "ppm", "-framerate", &rate, "-i", "pipe:0"];
        // For compatibility with players: 4:2:0 chroma subsampling, which needs even sides, and the index before the
        // frames.
        let even = "pad=ceil(iw/2)*2:ceil(ih/2)*2";
        let output = ["-vf", even, "-pix_fmt", "yuv420p", "-movflags", "+faststart", "-f", "mp4", "-y"];
        let arguments = input.into_iter().chain(output).map(Into::into).chain([file(target.path())]);
        let mut process = Process::start(arguments, Stdio::piped(), Stdio::null())?;
        let input = BufWriter::with_capacity(1 << 16, process.input());
        Ok(Self { input, process, file: target, path: path.to_owned() })
    }

    /// Appends a frame.
    ///
    /// # Errors
    /// When `ffmpeg` fails, for instance because the disk is full.
    pub fn write(&mut self, frame: &RgbImage) -> Result<(), VideoError> {
        let written = write!(self.input, "P6\n{} {}\n255\n", frame.width(), frame.height());
        written.and_then(|()| self.input.write_all(frame)).map_err(|error| self.error(&error))
    }

    /// Completes the video and gives the file its name.
    ///
    /// # Errors
    /// As [`Encoder::write`].
    pub fn finish(mut self) -> Result<(), VideoError> {
        if let Err(error) = self.input.flush() {
            return Err(self.error(&error));
        }
        let Self { input, mut process, file, path } = self;
        // Closing its input makes ffmpeg finish.
        drop(input);
        let error = |reason: String| VideoError::Write { path, reason };
        match process.finish() {
            Err(failed) => Err(error(failed.to_string())),
            Ok(()) => file.commit().map_err(|reason| error(reason.to_string())),
        }
    }

    /// The error of a failed write: ffmpeg's message if it has exited, else the I/O error.
    fn error(&mut self, error: &io::Error) -> VideoError {
        let reason = match error.kind() {
            io::ErrorKind::BrokenPipe => self.process.finish().err().map(|failed| failed.to_string()),
            _ => None,
        };
        VideoError::Write { path: self.path.clone(), reason: reason.unwrap_or_else(|| error.to_string()) }
    }
}
