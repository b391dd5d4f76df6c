//! The outputs of one image: annotated images, YOLO text files and crops.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Error, Result, bail};
use image::{RgbImage, imageops};
use models::spec::Class;
use models::{BoundingBox, write_unsynced};
use runtime::output::{self, Found, ImageIds, Report};
use runtime::video::{self, Frame, Rate};
use runtime::{Reservation, draw, image_file};

use super::ids::Ids;
use crate::paths::cannot_write;

/// Arguments of the output folders.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct ImageOutputArgs {
    /// Write images with the detections drawn on them into this folder.
    ///
    /// An annotated image is named as its original; repeated names are numbered: a.jpg, a-2.jpg. JPEG stays JPEG, other
    /// formats become PNG, videos become MP4 without sound.
    #[arg(long, value_name = "DIR")]
    draw: Option<PathBuf>,

    /// Write YOLO labels into this folder: a text file per image with a line per detection, `class x y width height`, and
    /// data.yaml with the classes.
    ///
    /// Classes count from 0, center and sides are fractions of the image. Existing files are not overwritten.
    #[arg(long, value_name = "DIR")]
    yolo: Option<PathBuf>,

    /// Add the score as a sixth column to YOLO labels; Ultralytics refuses such labels for training.
    #[arg(long, requires = "yolo")]
    yolo_scores: bool,

    /// Write each detection's part of the image as `CLASS/IMAGE-NUMBER.jpg` into this folder, highest score first.
    #[arg(long, value_name = "DIR")]
    crops: Option<PathBuf>,
}

/// The output files of one image.
#[derive(Clone, Debug, Default)]
pub(super) struct Targets {
    drawn: Option<Drawn>,
    yolo: Option<Labels>,
    /// The folder of the crops, and the prefix of their names.
    crops: Option<(PathBuf, String)>,
}

impl Targets {
    /// Whether the image's pixels are needed after the detection.
    pub(super) fn need_pixels(&self) -> bool {
        self.drawn.is_some() || self.crops.is_some()
    }

    /// Refuses what would overwrite labels.
    fn check(self) -> Result<Self, String> {
        self.yolo.as_ref().map_or(Ok(()), Labels::check)?;
        Ok(self)
    }

    /// Whether the annotated image and the labels exist.
    pub(super) fn exist(&self) -> bool {
        let drawn = match &self.drawn {
            Some(Drawn::Image(path)) => path.exists(),
            Some(Drawn::Frame(_)) => false,
            None => true,
        };
        drawn && self.yolo.as_ref().is_none_or(|labels| labels.path.exists())
    }
}

/// A file of YOLO labels.
#[derive(Clone, Debug)]
struct Labels {
    path: PathBuf,
    /// Whether they have scores.
    scores: bool,
    /// Whether labels of an earlier run are kept. Otherwise they must not exist.
    keep_existing: bool,
}

impl Labels {
    /// Refuses to overwrite labels, which may be the work of a person.
    fn check(&self) -> Result<(), String> {
        if self.keep_existing || !self.path.exists() {
            return Ok(());
        }
        let path = self.path.display();
        Err(format!("`{path}` exists already and would be overwritten; choose another folder for --yolo"))
    }

    fn write(&self, found: &Found) -> Result<()> {
        if self.path.exists() {
            return self.check().map_err(Error::msg);
        }
        let text = if self.scores { output::yolo_with_scores(found) } else { output::yolo(found) };
        write_unsynced(&self.path, |file| file.write_all(text.as_bytes())).with_context(|| cannot_write(&self.path))
    }
}

/// The target of an annotated image.
#[derive(Clone, Debug)]
enum Drawn {
    /// An image file.
    Image(PathBuf),
    /// The annotated video of a frame.
    Frame(Arc<AnnotatedVideo>),
}

/// An annotated video to write.
#[derive(Debug)]
pub(super) struct AnnotatedVideo {
    pub(super) path: PathBuf,
    pub(super) rate: Rate,
}

/// A processed image.
pub(super) struct ImageDone {
    pub(super) report: Report,
    /// The annotated video of a frame, and the frame unless it failed.
    pub(super) drawn: Option<(Arc<AnnotatedVideo>, Option<Pixels>)>,
}

/// A decoded image, upright, and its part of the pixels that may be in memory.
pub(super) type Pixels = (RgbImage, Reservation);

/// The outputs per image that are requested.
pub(super) struct ImageOutputs {
    names: TargetNames,
    /// The classes of YOLO labels.
    data_yaml: Option<PathBuf>,
}

/// Assigns names to the output files of one image after the other.
#[derive(Clone)]
pub(super) struct TargetNames {
    drawn: Option<output::UniqueNames>,
    yolo: Option<output::UniqueNames>,
    yolo_scores: bool,
    crops: Option<output::UniqueNames>,
    /// Whether labels may exist already, which are kept.
    keep_labels: bool,
    ids: Ids,
}

impl ImageOutputs {
    /// Creates the folders and checks the names, so that errors are found before the work starts. `files` are those that are
    /// known by then, and whether this job processes them.
    pub(super) fn open<'a>(
        args: &ImageOutputArgs,
        ids: Option<ImageIds>,
        files: impl Iterator<Item = (&'a Path, bool)>,
        skip_existing: bool,
    ) -> Result<Self> {
        let open = |folder: &Option<PathBuf>| {
            let folder = folder.as_deref();
            folder.map(|folder| output::UniqueNames::open(folder).with_context(|| cannot_write(folder))).transpose()
        };
        let names = TargetNames {
            drawn: open(&args.draw)?,
            yolo: open(&args.yolo)?,
            yolo_scores: args.yolo_scores,
            crops: open(&args.crops)?,
            keep_labels: skip_existing,
            ids: Ids::new(ids),
        };
        let data_yaml = args.yolo.as_ref().map(|folder| folder.join("data.yaml"));
        let mut trial = names.clone();
        for (file, is_own) in files {
            if !is_own {
                trial.skip(file);
                continue;
            }
            let checked = if video::is_video(file) { trial.video(file).map(drop) } else { trial.next(file).map(drop) };
            if let Err(reason) = checked {
                bail!("`{}`: {reason}", file.display());
            }
        }
        Ok(Self { names, data_yaml })
    }

    /// Writes the classes of YOLO labels.
    pub(super) fn write_classes(&self, classes: &[Class]) -> Result<()> {
        let Some(path) = &self.data_yaml else { return Ok(()) };
        let folder = path.parent().and_then(|folder| folder.canonicalize().ok()).unwrap_or_default();
        let text = output::yolo_data(classes, &folder);
        match std::fs::read_to_string(path) {
            Ok(existing) if existing == text => Ok(()),
            Ok(_) => bail!("`{}` exists already with other classes; choose another folder for --yolo", path.display()),
            Err(_) => write_unsynced(path, |file| file.write_all(text.as_bytes())).with_context(|| cannot_write(path)),
        }
    }

    /// Whether no such outputs are requested.
    pub(super) fn is_empty(&self) -> bool {
        let TargetNames { drawn, yolo, crops, .. } = &self.names;
        drawn.is_none() && yolo.is_none() && crops.is_none()
    }

    /// The names of the output files.
    pub(super) fn into_names(self) -> TargetNames {
        self.names
    }
}

/// The names of a video's outputs.
pub(super) struct VideoNames {
    /// The annotated video, if requested.
    pub(super) drawn: Option<PathBuf>,
    /// What the names of its frames' outputs begin with.
    frames: OsString,
}

/// Whatever is wrong with a file, it gets its names first: in other jobs of an array, which do not look at it, it has them too.
impl TargetNames {
    /// The output files of an image. The error is the reason why there are none.
    pub(super) fn next(&mut self, file: &Path) -> Result<Targets, String> {
        let targets = self.name(file);
        self.check(file)?;
        targets.check()
    }

    /// The names of a video's outputs. The error is the reason why there are none.
    pub(super) fn video(&mut self, file: &Path) -> Result<VideoNames, String> {
        let names = self.name_video(file);
        self.check(file).map(|()| names)
    }

    /// Takes the names and the id of a file that another job processes, so that all jobs name their outputs as a single one
    /// would.
    pub(super) fn skip(&mut self, file: &Path) {
        if video::is_video(file) {
            self.name_video(file);
        } else {
            self.name(file);
        }
        // What is wrong with it is an error of its own job.
        let _ = self.ids.take(file);
    }

    /// Names the output files of an image.
    fn name(&mut self, file: &Path) -> Targets {
        let extension = file.extension().filter(|_| image_file::is_jpeg(file)).and_then(|extension| extension.to_str());
        let drawn = self.drawn.as_mut().map(|names| names.next(file, Some(extension.unwrap_or("png"))));
        Targets { drawn: drawn.map(Drawn::Image), ..self.beside(file) }
    }

    fn name_video(&mut self, file: &Path) -> VideoNames {
        let drawn = self.drawn.as_mut().map(|names| names.next(file, Some("mp4")));
        // Videos of one name have frames of one number, of which other jobs do not know.
        let folders = [&mut self.yolo, &mut self.crops].into_iter().flatten();
        let names = folders.map(|names| names.next(file, Some("frames"))).last();
        let frames = names.as_deref().unwrap_or(file).file_stem().unwrap_or_default().to_owned();
        VideoNames { drawn, frames }
    }

    /// The output files of a frame. The error is the reason why there are none.
    pub(super) fn frame(
        &mut self,
        names: &VideoNames,
        frame: Frame,
        video: Option<Arc<AnnotatedVideo>>,
    ) -> Result<Targets, String> {
        let mut name = names.frames.clone();
        // `.frame` is removed like the extension of any image.
        name.push(format!("-{:06}.frame", frame.number));
        Targets { drawn: video.map(Drawn::Frame), ..self.beside(Path::new(&name)) }.check()
    }

    /// The output files of an image other than its annotated image.
    fn beside(&mut self, file: &Path) -> Targets {
        let yolo = self.yolo.as_mut().map(|names| names.next(file, Some("txt")));
        let crops = self.crops.as_mut().and_then(|names| {
            let prefix = names.next(file, None);
            let name = prefix.file_name()?.to_string_lossy().into_owned();
            Some((prefix.parent()?.to_owned(), name))
        });
        let yolo = yolo.map(|path| Labels { path, scores: self.yolo_scores, keep_existing: self.keep_labels });
        Targets { drawn: None, yolo, crops }
    }

    /// Takes the image id of a file, and checks that it is not in the folder of annotated images.
    fn check(&mut self, file: &Path) -> Result<(), String> {
        self.ids.take(file)?;
        match &self.drawn {
            Some(drawn) if drawn.contains(file) => {
                Err("it is in the folder of --draw and would be overwritten; choose another folder".to_owned())
            }
            _ => Ok(()),
        }
    }
}

/// Writes the output files of an image; `pixels` are there if it could be read and they are needed.
pub(super) fn write(
    report: Report,
    mut pixels: Option<Pixels>,
    targets: Targets,
    classes: &[Class],
) -> Result<ImageDone> {
    let _span = tracing::debug_span!("write").entered();
    let Targets { drawn, yolo, crops } = targets;
    if let (Ok(found), Some(labels)) = (&report.outcome, yolo) {
        labels.write(found)?;
    }
    if let (Ok(found), Some((image, _))) = (&report.outcome, &mut pixels) {
        if let Some((folder, name)) = crops {
            crop(image, found, classes, &folder, &name)?;
        }
        if drawn.is_some() {
            draw::draw(image, &found.detections, classes);
        }
    }
    let drawn = match (drawn, pixels) {
        (Some(Drawn::Frame(video)), pixels) => Some((video, pixels)),
        (Some(Drawn::Image(path)), Some((image, _))) if report.outcome.is_ok() => {
            image_file::write(&path, &image).with_context(|| cannot_write(&path))?;
            None
        }
        _ => None,
    };
    Ok(ImageDone { report, drawn })
}

fn crop(image: &RgbImage, found: &Found, classes: &[Class], folder: &Path, name: &str) -> Result<()> {
    for (number, detection) in (1..).zip(&found.detections) {
        let Some([left, top, width, height]) = pixels(&detection.bounding_box, image) else { continue };
        let folder = folder.join(output::folder_name(&classes[detection.class_index].name));
        std::fs::create_dir_all(&folder).with_context(|| cannot_write(&folder))?;
        let path = folder.join(format!("{name}-{number}.jpg"));
        let part = imageops::crop_imm(image, left, top, width, height).to_image();
        image_file::write(&path, &part).with_context(|| cannot_write(&path))?;
    }
    Ok(())
}

/// Left, top, width and height of the whole pixels that a box (in pixels of the upright original image) touches; `None`
/// if it touches none.
fn pixels(b: &BoundingBox, image: &RgbImage) -> Option<[u32; 4]> {
    let reach = |near: f32, far: f32, side: u32| {
        let first = near.max(0.0).floor() as u32;
        let end = (far.ceil() as u32).min(side);
        (first < end).then_some((first, end - first))
    };
    let (left, width) = reach(b.x1, b.x2, image.width())?;
    let (top, height) = reach(b.y1, b.y2, image.height())?;
    Some([left, top, width, height])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crop_contains_all_pixels_that_its_box_touches() {
        let image = RgbImage::new(100, 50);
        let area = |corners: [f32; 4]| pixels(&corners.into(), &image);
        assert_eq!(area([10.2, 5.9, 20.1, 30.0]), Some([10, 5, 11, 25]));
        assert_eq!(area([-5.0, -5.0, 200.0, 200.0]), Some([0, 0, 100, 50]));
        assert_eq!(area([99.9, 49.9, 100.0, 50.0]), Some([99, 49, 1, 1]));
        for nothing in [[100.0, 0.0, 120.0, 9.0], [5.0, 5.0, 5.0, 9.0], [f32::NAN, 0.0, f32::NAN, 9.0]] {
            assert_eq!(area(nothing), None, "{nothing:?}");
        }
    }
}
