//! Reading and writing videos with the program `ffmpeg`. <https://ffmpeg.org/ffmpeg.html>

mod encoder;
mod ffmpeg;
mod frames;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub use encoder::Encoder;
pub use ffmpeg::check;
pub use frames::Frames;

/// File name extensions of videos, in lower case; matched regardless of case.
pub const EXTENSIONS: [&str; 15] =
    ["3gp", "avi", "flv", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "ogv", "ts", "webm", "wmv"];

/// Whether a file has the extension of a video.
pub fn is_video(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    EXTENSIONS.iter().any(|known| extension == *known)
}

/// Position of a frame in its video.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Frame {
    /// Frame number, from 0.
    pub number: u64,
    /// Time since the start of the video, in seconds.
    pub time: f64,
}

/// Frames per second as a fraction, such as 30000/1001.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    numerator: u32,
    denominator: u32,
}

impl Rate {
    /// `frames` per `seconds`; `None` if either is zero.
    pub fn new(frames: u32, seconds: u32) -> Option<Self> {
        (frames > 0 && seconds > 0).then_some(Self { numerator: frames, denominator: seconds })
    }

    fn is_plausible(self) -> bool {
        /// Frames per second of slow-motion videos.
        const MAX: u64 = 240;
        u64::from(self.numerator) <= MAX * u64::from(self.denominator)
    }

    /// Time of a frame since the start of the video, in seconds.
    fn time(self, number: u64) -> f64 {
        number as f64 * f64::from(self.denominator) / f64::from(self.numerator)
    }
}

/// Error of parsing a [`Rate`].
#[derive(Debug, thiserror::Error)]
#[error("expected frames per second, such as 25, 0.5 or 30000/1001")]
pub struct ParseRateError;

impl FromStr for Rate {
    type Err = ParseRateError;

    fn from_str(text: &str) -> Result<Self, ParseRateError> {
        /// Denominator of decimal numbers: three decimal places.
        const DENOMINATOR: u32 = 1000;
        let rate = match text.split_once('/') {
            Some((frames, seconds)) => frames.parse().ok().zip(seconds.parse().ok()),
            None => {
                let frames = text.parse::<f64>().ok().filter(|frames| (0.0..=1e5).contains(frames));
                frames.map(|frames| ((frames * f64::from(DENOMINATOR)).round() as u32, DENOMINATOR))
            }
        };
        rate.and_then(|(frames, seconds)| Self::new(frames, seconds)).ok_or(ParseRateError)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}/{}", self.numerator, self.denominator)
    }
}

/// Why a video cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VideoError {
    /// `ffmpeg` is not on the PATH.
    #[error("videos need the program `ffmpeg`, which is not on the PATH; install it (on Debian: apt install ffmpeg)")]
    NoFfmpeg,
    /// The video file cannot be opened.
    #[error(transparent)]
    Read(std::io::Error),
    /// `ffmpeg` does not start.
    #[error("cannot start `ffmpeg`: {0}")]
    Start(std::io::Error),
    /// `ffmpeg` fails.
    #[error("ffmpeg: {message}")]
    Failed {
        /// What it prints to stderr, or how it ends.
        message: String,
    },
    /// The video has a variable frame rate, for which `ffmpeg` reports the resolution of its timestamps.
    #[error("the frame rate is variable (ffmpeg reports {rate} frames per second); set it with --fps")]
    VariableRate {
        /// What `ffmpeg` reports as frames per second.
        rate: Rate,
    },
    /// A frame has too many pixels.
    #[error("frames of {width}x{height} pixels exceed the limit of {limit} pixels")]
    Large {
        /// Maximum pixels.
        limit: u64,
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// The annotated video cannot be written.
    #[error("cannot write `{}`: {reason}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
}
