//! The stages that a picture passes, each in a thread of its own, with bounded queues between them.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use image::RgbImage;
use models::Preprocessed;

use crate::output::{Found, Report};
use crate::{Detector, picture};

/// Pictures that wait between two stages: enough that no stage waits, few enough that memory stays flat.
const WAITING: usize = 2;

/// Three stages, each a thread: decoding and preprocessing, the network, and `sink`, which gets every picture in order. So
/// the network hardly ever waits. `keep` hands the pictures on, to be drawn on.
///
/// Returns the time that the network ran, and what the sink returned.
pub fn pipeline<R: Send>(
    files: &[PathBuf],
    detector: &Detector,
    keep: bool,
    sink: impl FnOnce(Receiver<Finished>) -> R + Send,
) -> (Duration, R) {
    thread::scope(|scope| {
        let (prepared_sender, prepared) = sync_channel(WAITING);
        let (sender, finished) = sync_channel(WAITING);
        scope.spawn(move || read(files, detector, &prepared_sender));
        let sunk = scope.spawn(move || sink(finished));
        let inference = infer(files, detector, keep, prepared, sender);
        let sunk = sunk.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (inference, sunk)
    })
}

/// A picture that is ready for the network.
struct Prepared {
    picture: RgbImage,
    input: Preprocessed,
}

/// A picture that the network has seen, or why it could not.
pub struct Finished {
    /// What was found, or why nothing could be.
    pub report: Report,
    /// Kept only when it is to be drawn on.
    pub picture: Option<RgbImage>,
}

/// The first stage. Ends early when nobody waits for its pictures anymore.
fn read(files: &[PathBuf], detector: &Detector, sender: &SyncSender<Result<Prepared, String>>) {
    for file in files {
        let prepared = picture::read(file).map_err(|error| error.reason.to_string()).and_then(|picture| {
            let input = detector.preprocess(&picture).map_err(|error| error.to_string())?;
            Ok(Prepared { picture, input })
        });
        if sender.send(prepared).is_err() {
            return;
        }
    }
}

/// The second stage. Ends early when the writer has stopped.
fn infer(
    files: &[PathBuf],
    detector: &Detector,
    keep: bool,
    prepared: Receiver<Result<Prepared, String>>,
    sender: SyncSender<Finished>,
) -> Duration {
    let mut inference = Duration::ZERO;
    for (file, prepared) in files.iter().zip(prepared) {
        let finished = prepared.and_then(|Prepared { picture, input }| {
            let started = Instant::now();
            let outputs = detector.run(&input);
            inference += started.elapsed();
            let detections = outputs.and_then(|outputs| detector.postprocess(&input, &outputs));
            let detections = detections.map_err(|error| error.to_string())?;
            let found = Found { width: picture.width(), height: picture.height(), detections };
            Ok((found, keep.then_some(picture)))
        });
        let finished = match finished {
            Ok((found, picture)) => Finished { report: Report { file: file.clone(), outcome: Ok(found) }, picture },
            Err(reason) => Finished { report: Report { file: file.clone(), outcome: Err(reason) }, picture: None },
        };
        if sender.send(finished).is_err() {
            break;
        }
    }
    inference
}
