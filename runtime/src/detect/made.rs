//! What is made of each picture besides lists: annotated pictures, YOLO's text, crops.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use image::{RgbImage, imageops};
use models::spec::Class;
use models::{BoundingBox, write_atomically};
use runtime::output::{self, Found, Report};
use runtime::pipeline::Finished;
use runtime::{draw, picture};

use super::source::Source;
use crate::cannot_write;

/// What is made of each picture.
#[derive(Debug, clap::Args)]
pub(crate) struct MadeArgs {
    /// Draw the detections over the pictures, into this folder.
    ///
    /// An annotated picture has its picture's name; where several have the same, the later ones are numbered: a.jpg,
    /// a-2.jpg. JPEG stays JPEG, all else becomes PNG.
    #[arg(long, value_name = "DIR")]
    draw: Option<PathBuf>,

    /// Write YOLO's text into this folder: for each picture a file with a line per detection, `class x y width height score`,
    /// the class counted from 0, center and sides in shares of the picture.
    #[arg(long, value_name = "DIR")]
    yolo: Option<PathBuf>,

    /// Cut the detections out, as JPEG files `CLASS/PICTURE-NUMBER.jpg` in this folder, the best first.
    #[arg(long, value_name = "DIR")]
    crops: Option<PathBuf>,
}

/// The files of one picture.
#[derive(Clone, Debug, Default)]
pub(super) struct Targets {
    drawn: Option<PathBuf>,
    yolo: Option<PathBuf>,
    /// The folder of crops and how their names begin.
    crops: Option<(PathBuf, String)>,
}

/// Who makes them.
pub(super) struct Made {
    names: Names,
    pictures: bool,
    nothing: bool,
}

/// Their names, for one picture after the other.
#[derive(Default)]
pub(super) struct Names {
    drawn: Option<output::Names>,
    yolo: Option<output::Names>,
    crops: Option<output::Names>,
}

impl Made {
    /// Makes the folders, so that what cannot be written is found before the work.
    pub(super) fn open(args: &MadeArgs, source: &Source) -> Result<Self> {
        let open = |folder: &Option<PathBuf>| {
            let folder = folder.as_deref();
            folder.map(|folder| output::Names::open(folder).with_context(|| cannot_write(folder))).transpose()
        };
        let names = Names { drawn: open(&args.draw)?, yolo: open(&args.yolo)?, crops: open(&args.crops)? };
        for file in source.files() {
            if let Err(reason) = names.check(file) {
                bail!("`{}`: {reason}", file.display());
            }
        }
        let pictures = args.draw.is_some() || args.crops.is_some();
        Ok(Self { names, pictures, nothing: !pictures && args.yolo.is_none() })
    }

    /// Whether nothing is.
    pub(super) fn is_nothing(&self) -> bool {
        self.nothing
    }

    /// Whether pictures are needed for it, once detected in.
    pub(super) fn needs_pictures(&self) -> bool {
        self.pictures
    }

    /// The names, to be taken once.
    pub(super) fn names(&mut self) -> Names {
        std::mem::take(&mut self.names)
    }
}

impl Names {
    /// The files of a picture; why there can be none.
    pub(super) fn next(&mut self, file: &Path) -> Result<Targets, String> {
        self.check(file)?;
        let extension = file.extension().filter(|_| picture::is_jpeg(file)).and_then(|extension| extension.to_str());
        let drawn = self.drawn.as_mut().map(|names| names.next(file, Some(extension.unwrap_or("png"))));
        let yolo = self.yolo.as_mut().map(|names| names.next(file, Some("txt")));
        let crops = self.crops.as_mut().and_then(|names| {
            let beginning = names.next(file, None);
            let name = beginning.file_name()?.to_string_lossy().into_owned();
            Some((beginning.parent()?.to_owned(), name))
        });
        Ok(Targets { drawn, yolo, crops })
    }

    fn check(&self, file: &Path) -> Result<(), String> {
        match &self.drawn {
            Some(drawn) if drawn.holds(file) => {
                Err("it lies in the folder of --draw, and would be overwritten; draw into another folder".to_owned())
            }
            _ => Ok(()),
        }
    }
}

/// Makes what is to be made of a picture, and hands on its report.
pub(super) fn make(finished: Finished<Targets>, classes: &[Class]) -> Result<Report> {
    let Finished { report, picture, tag: Targets { drawn, yolo, crops } } = finished;
    let Ok(found) = &report.outcome else { return Ok(report) };
    if let Some(path) = yolo {
        let text = output::yolo(found);
        write_atomically(&path, |file| file.write_all(text.as_bytes())).with_context(|| cannot_write(&path))?;
    }
    let Some(mut picture) = picture else { return Ok(report) };
    if let Some((folder, name)) = crops {
        crop(&picture, found, classes, &folder, &name)?;
    }
    if let Some(path) = drawn {
        draw::draw(&mut picture, &found.detections, classes);
        picture::write(&path, &picture).with_context(|| cannot_write(&path))?;
    }
    Ok(report)
}

fn crop(picture: &RgbImage, found: &Found, classes: &[Class], folder: &Path, name: &str) -> Result<()> {
    for (number, detection) in (1..).zip(&found.detections) {
        let Some([left, top, width, height]) = pixels(&detection.bounding_box, picture) else { continue };
        let folder = folder.join(output::folder_name(&classes[detection.label].name));
        std::fs::create_dir_all(&folder).with_context(|| cannot_write(&folder))?;
        let path = folder.join(format!("{name}-{number}.jpg"));
        let part = imageops::crop_imm(picture, left, top, width, height).to_image();
        picture::write(&path, &part).with_context(|| cannot_write(&path))?;
    }
    Ok(())
}

/// Left, top, width and height of the whole pixels that a box touches; none where it touches none.
fn pixels(b: &BoundingBox, picture: &RgbImage) -> Option<[u32; 4]> {
    let reach = |near: f32, far: f32, side: u32| {
        let first = near.max(0.0).floor() as u32;
        let end = (far.ceil() as u32).min(side);
        (first < end).then_some((first, end - first))
    };
    let (left, width) = reach(b.x1, b.x2, picture.width())?;
    let (top, height) = reach(b.y1, b.y2, picture.height())?;
    Some([left, top, width, height])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crop_has_all_pixels_that_its_box_touches() {
        let picture = RgbImage::new(100, 50);
        let area = |corners: [f32; 4]| pixels(&corners.into(), &picture);
        assert_eq!(area([10.2, 5.9, 20.1, 30.0]), Some([10, 5, 11, 25]));
        assert_eq!(area([-5.0, -5.0, 200.0, 200.0]), Some([0, 0, 100, 50]));
        assert_eq!(area([99.9, 49.9, 100.0, 50.0]), Some([99, 49, 1, 1]));
        for nothing in [[100.0, 0.0, 120.0, 9.0], [5.0, 5.0, 5.0, 9.0], [f32::NAN, 0.0, f32::NAN, 9.0]] {
            assert_eq!(area(nothing), None, "{nothing:?}");
        }
    }
}
