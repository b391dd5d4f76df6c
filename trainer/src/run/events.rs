//! TensorBoard event files.
//!
//! A file is a sequence of records: length, its checksum, message, its checksum
//! (<https://github.com/tensorflow/tensorboard/blob/master/tensorboard/compat/tensorflow_stub/pywrap_tensorflow.py>). A
//! message is an `Event`
//! (<https://github.com/tensorflow/tensorboard/blob/master/tensorboard/compat/proto/event.proto>), declared by hand
//! here, so that the build needs no protoc.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::{Message, Oneof};

use super::log::named;

/// What errors call the file.
const FILE: &str = "TensorBoard file";

/// The event file of one session: of a new run, or of a resumed one.
pub(super) struct Events {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Events {
    /// Creates a new file in `folder` for a run that has made `step` steps. TensorBoard then ignores the later steps in
    /// earlier files of the folder, because a resumed run repeats them.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn create(folder: &Path, step: u64) -> anyhow::Result<Self> {
        let seconds = since_1970() as u64;
        // TensorBoard recognizes event files by `tfevents`, and reads the files of a folder in the order of their
        // names.
        let names = (0..).map(|index| folder.join(format!("events.out.tfevents.{seconds:010}.{index:03}.trainer")));
        for path in names {
            match File::options().write(true).create_new(true).open(&path) {
                Ok(file) => {
                    let mut events = Self { path, file: BufWriter::new(file) };
                    events.write(0, Content::FileVersion("brain.Event:2".to_owned()))?;
                    events.write(step + 1, Content::SessionLog(SessionLog { status: SessionLog::START }))?;
                    return Ok(events);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return named(FILE, &path, Err(error)),
            }
        }
        unreachable!("the range of file numbers is unbounded")
    }

    /// Writes numbers after `step` steps, by tag. TensorBoard groups tags by the part before the slash.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn scalars(&mut self, step: u64, scalars: &[(&str, f64)]) -> anyhow::Result<()> {
        let value = |(tag, number): &(&str, f64)| Value {
            tag: (*tag).to_owned(),
            kind: Some(ValueKind::SimpleValue(*number as f32)),
        };
        self.write(step, Content::Summary(Summary { value: scalars.iter().map(value).collect() }))
    }

    /// Writes an image after `step` steps; `file` contains a PNG or JPEG file of `width` by `height` pixels.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn image(
        &mut self,
        step: u64,
        tag: &str,
        [width, height]: [u32; 2],
        file: Vec<u8>,
    ) -> anyhow::Result<()> {
        const RGB: i32 = 3;
        let image = Image { height: height as i32, width: width as i32, colorspace: RGB, encoded: file };
        let value = Value { tag: tag.to_owned(), kind: Some(ValueKind::Image(image)) };
        self.write(step, Content::Summary(Summary { value: vec![value] }))
    }

    /// Writes what is buffered.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn flush(&mut self) -> anyhow::Result<()> {
        named(FILE, &self.path, self.file.flush())
    }

    fn write(&mut self, step: u64, content: Content) -> anyhow::Result<()> {
        let event = Event { wall_time: since_1970(), step: step as i64, content: Some(content) };
        named(FILE, &self.path, self.file.write_all(&record(&event.encode_to_vec())))
    }
}

/// A message with its length and checksums.
fn record(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    [&length[..], &checksum(&length), message, &checksum(message)].concat()
}

/// CRC-32C, masked as in TFRecord files, whose data may contain checksums.
fn checksum(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xA282_EAD8).to_le_bytes()
}

fn since_1970() -> f64 {
    // A clock set before 1970 is not an error.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "Content", tags = "3, 5, 7")]
    content: Option<Content>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Content {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Clone, PartialEq, Eq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

impl SessionLog {
    const START: i32 = 1;
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(oneof = "ValueKind", tags = "2, 4")]
    kind: Option<ValueKind>,
}

#[derive(Clone, PartialEq, Oneof)]
enum ValueKind {
    #[prost(float, tag = "2")]
    SimpleValue(f32),
    #[prost(message, tag = "4")]
    Image(Image),
}

#[derive(Clone, PartialEq, Eq, Message)]
struct Image {
    #[prost(int32, tag = "1")]
    height: i32,
    #[prost(int32, tag = "2")]
    width: i32,
    #[prost(int32, tag = "3")]
    colorspace: i32,
    #[prost(bytes = "vec", tag = "4")]
    encoded: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The events of a file; checks their checksums.
    fn read(mut bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        while !bytes.is_empty() {
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let (found, rest) = bytes.split_at(16 + length);
            let message = &found[12..12 + length];
            assert_eq!(found, record(message));
            events.push(Event::decode(message).unwrap());
            bytes = rest;
        }
        events
    }

    #[test]
    fn errors_name_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = Events::create(folder.path(), 0).unwrap();
        events.flush().unwrap();
        events.file = BufWriter::new(File::options().write(true).open("/dev/full").unwrap());
        events.scalars(1, &[("AP", 0.5)]).unwrap();
        let error = format!("{:#}", events.flush().unwrap_err());
        assert!(error.starts_with("cannot write the TensorBoard file `") && error.contains(".tfevents."), "{error}");
        let error = Events::create(&folder.path().join("missing"), 0).err().unwrap().to_string();
        assert!(error.contains("missing/events.out.tfevents."), "{error}");
    }

    // tests/golden/events.py, TensorBoard 2.21.0: the record of Event(step=3, summary: a/b = 0.5)
    const RECORD: &str = "19000000000000008bf1082809000000000000f83f10032a0c0a0a0a03612f62150000003f4431a8bc";

    #[test]
    fn record_matches_tensorboard() {
        let value = Value { tag: "a/b".to_owned(), kind: Some(ValueKind::SimpleValue(0.5)) };
        let summary = Content::Summary(Summary { value: vec![value] });
        let event = Event { wall_time: 1.5, step: 3, content: Some(summary) };
        let hex: String = record(&event.encode_to_vec()).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, RECORD);
    }

    #[test]
    fn written_events_are_read_back_and_files_are_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = Events::create(folder.path(), 0).unwrap();
        first.scalars(7, &[("train/box_loss", 0.25), ("AP", 0.5)]).unwrap();
        first.image(8, "found/a.png", [4, 2], vec![1, 2, 3]).unwrap();
        let mut second = Events::create(folder.path(), 7).unwrap();
        second.scalars(8, &[("AP", 0.75)]).unwrap();
        Events::create(folder.path(), 0).unwrap();
        first.flush().unwrap();
        second.flush().unwrap();

        let mut files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let [first, second, third] = &files[..] else { panic!("{files:?}") };
        let events = read(&std::fs::read(first).unwrap());
        assert_eq!(events[0].content, Some(Content::FileVersion("brain.Event:2".to_owned())));
        assert_eq!(events.iter().map(|event| event.step).collect::<Vec<_>>(), [0, 1, 7, 8]);
        let Some(Content::Summary(Summary { value })) = &events[2].content else { panic!("{:?}", events[2]) };
        assert_eq!(value[0], Value { tag: "train/box_loss".to_owned(), kind: Some(ValueKind::SimpleValue(0.25)) });
        for (file, step) in [(first, 1), (second, 8), (third, 1)] {
            let events = read(&std::fs::read(file).unwrap());
            assert_eq!(events[1].content, Some(Content::SessionLog(SessionLog { status: 1 })));
            assert_eq!(events[1].step, step, "later steps in earlier files are ignored");
        }
    }
}
