//! Reads the frames of a video.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{ChildStdout, Stdio};

use image::RgbImage;

use super::ffmpeg::{Process, file};
use super::{Frame, Rate, VideoError};

/// Iterator over the upright frames of a video, which decodes them on demand. Ends after the last frame or an error.
#[derive(Debug)]
pub struct Frames {
    process: Process,
    output: BufReader<ChildStdout>,
    rate: Rate,
    number: u64,
    /// Maximum pixels of a frame.
    max_pixels: u64,
    ended: bool,
}

impl Frames {
    /// The frames of the first video stream in a file. Frames with more than `max_pixels` pixels are errors. With
    /// `rate`, frames are dropped or repeated to get this many per second; without, the video's own rate is used.
    ///
    /// # Errors
    /// When `ffmpeg` does not start or cannot read the file. Without `rate`, also when the video has a variable frame
    /// rate: the rate that `ffmpeg` reports would repeat every frame many times.
    pub fn open(path: &Path, rate: Option<Rate>, max_pixels: u64) -> Result<Self, VideoError> {
        // The operating system's error is clearer than ffmpeg's.
        File::open(path).map_err(VideoError::Read)?;
        let rate = match rate {
            Some(rate) => rate,
            None => match rate_of(path)? {
                rate if rate.is_plausible() => rate,
                rate => return Err(VideoError::VariableRate { rate }),
            },
        };
        let mut arguments = input(path);
        let filter = format!("fps={rate}");
        // Frames are converted to 8 bits per channel. In this format every frame declares its size.
        let output = ["-vf", &filter, "-pix_fmt", "rgb24", "-f", "image2pipe", "-c:v", "ppm", "pipe:1"];
        arguments.extend(output.map(Into::into));
        let mut process = Process::start(arguments, Stdio::null(), Stdio::piped())?;
        let output = BufReader::with_capacity(1 << 16, process.output());
        Ok(Self { process, output, rate, number: 0, max_pixels, ended: false })
    }

    /// Frames per second.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// The warnings of ffmpeg, in one line. Complete only after the last frame.
    pub fn warnings(&mut self) -> Option<String> {
        self.process.messages()
    }

    fn read(&mut self) -> Result<Option<RgbImage>, VideoError> {
        let Some((width, height)) = self.header() else {
            self.process.finish()?;
            let empty = || VideoError::Failed { message: "the video has no frames".to_owned() };
            return if self.number == 0 { Err(empty()) } else { Ok(None) };
        };
        if u64::from(width) * u64::from(height) > self.max_pixels {
            return Err(VideoError::Large { width, height, limit: self.max_pixels });
        }
        let mut image = RgbImage::new(width, height);
        if self.output.read_exact(&mut image).is_ok() {
            return Ok(Some(image));
        }
        self.process.finish()?;
        Err(VideoError::Failed { message: "the video ends within a frame".to_owned() })
    }

    /// Width and height from the header of a frame; `None` at the end. <https://netpbm.sourceforge.net/doc/ppm.html>
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

/// The container formats that ffmpeg may detect. Playlists are excluded, since they make ffmpeg open other files and
/// URLs.
const CONTAINERS: &str = "mov,matroska,avi,flv,mpegts,mpeg,mpegvideo,m4v,ogg,asf";

/// The arguments that make ffmpeg read the first video stream of a file.
fn input(path: &Path) -> Vec<std::ffi::OsString> {
    let mut arguments = ["-protocol_whitelist", "file", "-format_whitelist", CONTAINERS, "-i"].map(Into::into).to_vec();
    arguments.extend([file(path), "-map".into(), "0:v:0".into()]);
    arguments
}

/// The frame rate of a video, from the header that ffmpeg writes when it converts the first frame to YUV4MPEG2.
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
    Err(VideoError::Failed { message: "the video has no frames".to_owned() })
}

/// The rate in a header such as `YUV4MPEG2 W64 H48 F30000:1001 Ip A1:1`.
fn rate_in(header: &str) -> Option<Rate> {
    let rate = header.strip_prefix("YUV4MPEG2 ")?.split(' ').find_map(|word| word.strip_prefix('F'))?;
    let (numerator, denominator) = rate.split_once(':')?;
    Rate::new(numerator.parse().ok()?, denominator.parse().ok()?)
}

/// The next line of a header, without its line feed; `None` if there is no complete line.
fn line(output: &mut impl BufRead) -> Option<String> {
    const MAX_BYTES: u64 = 1024;
    let mut line = Vec::new();
    output.take(MAX_BYTES).read_until(b'\n', &mut line).ok()?;
    let line = line.strip_suffix(b"\n")?;
    String::from_utf8(line.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_read_from_the_header() {
        let rate = |header| rate_in(header).map(|rate| rate.to_string());
        assert_eq!(rate("YUV4MPEG2 W64 H48 F30000:1001 Ip A1:1 C420jpeg").as_deref(), Some("30000/1001"));
        for header in ["YUV4MPEG2 W64 H48 F0:0", "YUV4MPEG2 W64", "P6", "YUV4MPEG2 F25", ""] {
            assert_eq!(rate(header), None, "{header}");
        }
    }

    #[test]
    fn incomplete_lines_are_none() {
        let mut text = &b"P6\n64 48\n255"[..];
        assert_eq!(line(&mut text).as_deref(), Some("P6"));
        assert_eq!(line(&mut text).as_deref(), Some("64 48"));
        assert_eq!(line(&mut text), None);
    }
}
