//! From a video to its frames.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{ChildStdout, Stdio};

use image::RgbImage;

use super::ffmpeg::{Process, file};
use super::{Frame, Rate, VideoError};

/// The frames of a video, upright and one after the other, decoded while they are asked for. The iterator ends behind the last,
/// or behind an error.
#[derive(Debug)]
pub struct Frames {
    process: Process,
    output: BufReader<ChildStdout>,
    rate: Rate,
    number: u64,
    /// Pixels that a frame may have.
    most: u64,
    ended: bool,
}

impl Frames {
    /// The frames of the first video stream in a file, each of at most so many pixels. Where a rate is given, frames are left out or
    /// repeated so that there are so many per second; without it so many as the video says.
    ///
    /// # Errors
    /// When there is no `ffmpeg`, or it cannot read the file, and without a rate when the video says none that can be meant: every frame
    /// would be repeated many times.
    pub fn open(path: &Path, rate: Option<Rate>, most: u64) -> Result<Self, VideoError> {
        // The system says more plainly than ffmpeg what is wrong.
        File::open(path).map_err(VideoError::Read)?;
        let rate = match rate {
            Some(rate) => rate,
            None => match rate_of(path)? {
                rate if rate.is_plausible() => rate,
                rate => return Err(VideoError::Uneven { rate }),
            },
        };
        let mut arguments = input(path);
        let regular = format!("fps={rate}");
        // Eight bits whatever the video has; an image with a size of its own for every frame.
        let output = ["-vf", &regular, "-pix_fmt", "rgb24", "-f", "image2pipe", "-c:v", "ppm", "pipe:1"];
        arguments.extend(output.map(Into::into));
        let mut process = Process::start(arguments, Stdio::null(), Stdio::piped())?;
        let output = BufReader::with_capacity(1 << 16, process.output());
        Ok(Self { process, output, rate, number: 0, most, ended: false })
    }

    /// How many frames there are in a second.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// What ffmpeg complained of, although it went on. To be asked at the end.
    pub fn complaints(&mut self) -> Option<String> {
        self.process.complaints()
    }

    fn read(&mut self) -> Result<Option<RgbImage>, VideoError> {
        let Some((width, height)) = self.header() else {
            self.process.finish()?;
            // A video that lasts no time is none.
            let empty = || VideoError::Failed { words: "there are no frames in it".to_owned() };
            return if self.number == 0 { Err(empty()) } else { Ok(None) };
        };
        if u64::from(width) * u64::from(height) > self.most {
            return Err(VideoError::Large { width, height, limit: self.most });
        }
        let mut image = RgbImage::new(width, height);
        if self.output.read_exact(&mut image).is_ok() {
            return Ok(Some(image));
        }
        self.process.finish()?;
        Err(VideoError::Failed { words: "it ended within a frame".to_owned() })
    }

    /// Width and height, from the header of an image; none at the end. <https://netpbm.sourceforge.net/doc/ppm.html>
    fn header(&mut self) -> Option<(u32, u32)> {
        let mut header = [(); 3].map(|()| line(&mut self.output));
        let [magic, sides, depth] = &mut header;
        let (width, height) = sides.as_deref()?.split_once(' ')?;
        let sizes = (width.parse().ok()?, height.parse().ok()?);
        (magic.as_deref() == Some("P6") && depth.as_deref() == Some("255")).then_some(sizes)
    }
}

impl Iterator for Frames {
    type Item = Result<(Frame, RgbImage), VideoError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        match self.read() {
            Ok(Some(image)) => {
                let number = self.number;
                self.number += 1;
                Some(Ok((Frame { number, time: self.rate.time(number) }, image)))
            }
            Ok(None) => {
                self.ended = true;
                None
            }
            Err(error) => {
                self.ended = true;
                Some(Err(error))
            }
        }
    }
}

/// What ffmpeg may take a file for: containers of video. A playlist, by whatever name, is none of them, because it would make ffmpeg
/// open other files and addresses.
const CONTAINERS: &str = "mov,matroska,avi,flv,mpegts,mpeg,mpegvideo,m4v,ogg,asf";

/// ffmpeg's arguments for the first video stream of a file.
fn input(path: &Path) -> Vec<std::ffi::OsString> {
    let mut arguments = ["-protocol_whitelist", "file", "-format_whitelist", CONTAINERS, "-i"].map(Into::into).to_vec();
    arguments.extend([file(path), "-map".into(), "0:v:0".into()]);
    arguments
}

/// The rate of a video: that in the header of its first frame in the format of YUV4MPEG2.
fn rate_of(path: &Path) -> Result<Rate, VideoError> {
    let mut arguments = input(path);
    arguments.extend(["-frames:v", "1", "-pix_fmt", "yuv420p", "-f", "yuv4mpegpipe", "pipe:1"].map(Into::into));
    let mut process = Process::start(arguments, Stdio::null(), Stdio::piped())?;
    let mut output = BufReader::new(process.output());
    if let Some(rate) = line(&mut output).as_deref().and_then(rate_in) {
        return Ok(rate);
    }
    drop(output);
    process.finish()?;
    Err(VideoError::Failed { words: "there are no frames in it".to_owned() })
}

/// Such as `YUV4MPEG2 W64 H48 F30000:1001 Ip A1:1`.
fn rate_in(header: &str) -> Option<Rate> {
    let rate = header.strip_prefix("YUV4MPEG2 ")?.split(' ').find_map(|word| word.strip_prefix('F'))?;
    let (numerator, denominator) = rate.split_once(':')?;
    Rate::new(numerator.parse().ok()?, denominator.parse().ok()?)
}

/// The next line without its end. A header's lines are short.
fn line(output: &mut impl BufRead) -> Option<String> {
    const MOST: u64 = 1024;
    let mut line = Vec::new();
    output.take(MOST).read_until(b'\n', &mut line).ok()?;
    let line = line.strip_suffix(b"\n")?;
    String::from_utf8(line.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_stands_in_the_header() {
        let rate = |header| rate_in(header).map(|rate| rate.to_string());
        assert_eq!(rate("YUV4MPEG2 W64 H48 F30000:1001 Ip A1:1 C420jpeg").as_deref(), Some("30000/1001"));
        for header in ["YUV4MPEG2 W64 H48 F0:0", "YUV4MPEG2 W64", "P6", "YUV4MPEG2 F25", ""] {
            assert_eq!(rate(header), None, "{header}");
        }
    }

    #[test]
    fn lines_end_where_they_end() {
        let mut text = &b"P6\n64 48\n255"[..];
        assert_eq!(line(&mut text).as_deref(), Some("P6"));
        assert_eq!(line(&mut text).as_deref(), Some("64 48"));
        assert_eq!(line(&mut text), None);
    }
}
