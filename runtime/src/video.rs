//! Videos, by the program `ffmpeg`: from a file to its frames, and from frames to a file. <https://ffmpeg.org/ffmpeg.html>

mod encoder;
mod ffmpeg;
mod frames;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub use encoder::Encoder;
pub use ffmpeg::check;
pub use frames::Frames;

/// Files that end in these are videos; letters may be large.
pub const EXTENSIONS: [&str; 15] =
    ["3gp", "avi", "flv", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "ogv", "ts", "webm", "wmv"];

/// Whether a file is a video, told by its name.
pub fn is_video(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    EXTENSIONS.iter().any(|known| extension == *known)
}

/// A frame among those of a video.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Frame {
    /// Its number, from 0.
    pub number: u64,
    /// Seconds from the beginning of the video to it.
    pub time: f64,
}

/// Frames per second, as a fraction: 30000/1001 is common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    numerator: u32,
    denominator: u32,
}

impl Rate {
    /// So many frames in so many seconds; none when either is zero.
    pub fn new(frames: u32, seconds: u32) -> Option<Self> {
        (frames > 0 && seconds > 0).then_some(Self { numerator: frames, denominator: seconds })
    }

    fn is_plausible(self) -> bool {
        /// Slow motion of telephones.
        const MOST: u64 = 240;
        u64::from(self.numerator) <= MOST * u64::from(self.denominator)
    }

    /// Seconds from the beginning to a frame.
    fn time(self, number: u64) -> f64 {
        number as f64 * f64::from(self.denominator) / f64::from(self.numerator)
    }
}

/// A text that says no rate.
#[derive(Debug, thiserror::Error)]
#[error("expected frames per second, such as 25, 0.5 or 30000/1001")]
pub struct ParseRateError;

impl FromStr for Rate {
    type Err = ParseRateError;

    fn from_str(text: &str) -> Result<Self, ParseRateError> {
        /// Of a number with a point so many digits count.
        const DECIMALS: u32 = 1000;
        let rate = match text.split_once('/') {
            Some((frames, seconds)) => frames.parse().ok().zip(seconds.parse().ok()),
            None => {
                let frames = text.parse::<f64>().ok().filter(|frames| (0.0..=1e5).contains(frames));
                frames.map(|frames| ((frames * f64::from(DECIMALS)).round() as u32, DECIMALS))
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
pub enum VideoError {
    /// There is no `ffmpeg`.
    #[error("videos need the program `ffmpeg`, which is not on the PATH; install it (on Debian: apt install ffmpeg)")]
    NoFfmpeg,
    /// The file cannot be read.
    #[error(transparent)]
    Read(std::io::Error),
    /// It does not start.
    #[error("cannot start `ffmpeg`: {0}")]
    Start(std::io::Error),
    /// It fails.
    #[error("ffmpeg: {words}")]
    Failed {
        /// Its words.
        words: String,
    },
    /// It says no rate, but how finely it tells times.
    #[error(
        "its frames come at uneven times, told in {rate} of a second, which is no rate; say with --fps how many to look at"
    )]
    Uneven {
        /// Parts of a second.
        rate: Rate,
    },
    /// A frame is too large.
    #[error("frames of {width} x {height} pixels are more than the limit of {limit}")]
    Large {
        /// Pixels that there may be.
        limit: u64,
        /// Pixels.
        width: u32,
        /// Pixels.
        height: u32,
    },
    /// The annotated video cannot be written.
    #[error("cannot write `{}`: {reason}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}
