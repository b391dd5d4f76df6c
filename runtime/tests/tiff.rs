//! TIFF files of every kind are read as Pillow reads them, whole and by regions.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

#[path = "cli/orthomosaic.rs"]
mod orthomosaic;

use std::fs;
use std::path::{Path, PathBuf};

use image::RgbImage;
use image::imageops::crop_imm;
use orthomosaic::{SIZE, pixel, write_orthomosaic};
use runtime::PixelBudget;
use runtime::image_file::{DecodeError, Limits, Region, TiffReader, decode, read, read_reserved, size};

/// Made by `fixtures/tiff.py`, which also says where Pillow is not the norm.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tiff");

/// JPEG decoders round differently, and interpolate subsampled chroma differently at the sides of tiles.
const JPEG_TOLERANCE: u8 = 3;

/// Conversion from YCbCr rounds differently.
const YCBCR_TOLERANCE: u8 = 1;

/// The TIFF files whose name has or has not the prefix `refused.`.
fn files(refused: bool) -> Vec<PathBuf> {
    let paths = fs::read_dir(FOLDER).unwrap().map(|entry| entry.unwrap().path());
    let is_refused = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("refused.");
    let mut paths: Vec<_> = paths.filter(|path| path.extension().is_some_and(|extension| extension == "tif")).collect();
    paths.retain(|path| is_refused(path) == refused);
    paths.sort();
    paths
}

fn difference(a: &RgbImage, b: &RgbImage) -> u8 {
    assert_eq!(a.dimensions(), b.dimensions());
    a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0)
}

#[test]
fn every_kind_of_tiff_is_read_as_pillow_reads_it() {
    let mut wrong = Vec::new();
    let files = files(false);
    assert!(files.len() > 60);
    for path in files {
        let name = path.file_name().unwrap().to_str().unwrap();
        let expected = name.split('.').next().unwrap();
        let tolerance = match expected {
            _ if expected.starts_with("jpeg") => JPEG_TOLERANCE,
            "ycbcr" => YCBCR_TOLERANCE,
            _ => 0,
        };
        let expected = image::open(Path::new(FOLDER).join(format!("{expected}.png"))).unwrap().into_rgb8();
        match read(&path) {
            Err(error) => wrong.push(error.to_string()),
            Ok(image) => {
                let difference = difference(&image, &expected);
                if difference > tolerance {
                    wrong.push(format!("{name} differs by {difference}"));
                }
                assert_eq!(size(&path).unwrap(), expected.dimensions(), "{name}");
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_region_equals_that_part_of_the_whole() {
    for path in files(false) {
        let whole = read(&path).unwrap();
        let reader = match TiffReader::open(&path) {
            Err(error) if error.to_string().contains("CCITT") => continue,
            reader => reader.unwrap(),
        };
        let (width, height) = reader.size();
        assert_eq!((width, height), whole.dimensions());
        for (x, y, w, h) in
            [(0, 0, width, height), (3, 2, 5, 4), (9, 11, width - 9, height - 11), (15, 15, 2, 2), (4, 5, 0, 0)]
        {
            let region = reader.read_region(Region { x, y, width: w, height: h }).unwrap();
            assert_eq!(region, crop_imm(&whole, x, y, w, h).to_image(), "{} at {x},{y}", path.display());
        }
        for (x, y, w, h) in [(width, 0, 1, 1), (0, 1, 1, height), (u32::MAX, 0, 2, 1)] {
            let error = reader.read_region(Region { x, y, width: w, height: h }).unwrap_err();
            assert!(error.to_string().contains(".tif`: the region of"), "{error}");
        }
    }
}

#[test]
fn what_is_refused_says_why_and_what_to_do() {
    let cases = [
        ("dng", "it is a camera RAW file; develop it to JPEG or TIFF"),
        ("group3", "unsupported compression: unknown (3); convert it"),
        ("inks", "its inks are not CMYK; convert it, for example with"),
        ("jpeg2000", "unsupported compression: unknown (34712); convert it"),
        ("large", "values from 0 to 1402.5 are neither from 0 to 1 nor from 0 to 255; scale them to bytes"),
        ("negative", "values from -3 to 252 are"),
        ("old-jpeg", "unsupported compression: OldJpeg (6); convert it"),
        ("preview", "it is a camera RAW file"),
        ("uint32", "values from 0 to 4278190080 are"),
    ];
    let files = files(true);
    assert_eq!(files.len(), cases.len());
    for (path, (name, expected)) in files.iter().zip(cases) {
        let text = read(path).unwrap_err().to_string();
        assert!(text.contains(&format!("refused.{name}.tif")) && text.contains(expected), "{text}");
    }
}

#[test]
fn damaged_files_are_errors_and_never_crash_the_decoder() {
    for path in files(false) {
        let bytes = fs::read(&path).unwrap();
        for length in (1..bytes.len()).step_by(1 + bytes.len() / 40) {
            let result = decode(&bytes[..length]);
            assert!(!matches!(result, Err(DecodeError::Panicked)), "{} truncated to {length}", path.display());
        }
        for at in (0..bytes.len()).step_by(1 + bytes.len() / 500) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0xFF;
            let result = decode(&damaged);
            assert!(!matches!(result, Err(DecodeError::Panicked)), "{} damaged at {at}", path.display());
        }
    }
}

#[test]
fn a_truncated_file_says_so_and_a_large_image_names_the_flag() {
    let path = Path::new(FOLDER).join("rgb.deflate-tiled.tif");
    let bytes = fs::read(&path).unwrap();
    assert!(matches!(decode(&bytes[..bytes.len() - 1]), Err(DecodeError::Truncated)));
    let limits = Limits { pixels: 100, ..Limits::DEFAULT };
    let text = read_reserved(&path, &limits, &PixelBudget::new(100)).unwrap_err().to_string();
    assert!(text.ends_with("24x17 pixels exceed the limit of 100 pixels (--max-pixels)"), "{text}");
}

/// The file with another number in an entry of its first directory.
fn with_entry(mut bytes: Vec<u8>, tag: u16, value: u32) -> Vec<u8> {
    let is_entry = |entry: &[u8]| entry[..2] == tag.to_le_bytes() && [[3, 0], [4, 0]].contains(&[entry[2], entry[3]]);
    let at = bytes.windows(12).position(|entry| is_entry(entry) && entry[4..8] == [1, 0, 0, 0]).unwrap();
    bytes[at + 2] = 4;
    bytes[at + 8..at + 12].copy_from_slice(&value.to_le_bytes());
    bytes
}

#[test]
fn a_strip_that_does_not_fit_in_memory_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("strip.tif");
    let plain = fs::read(Path::new(FOLDER).join("rgb.plain.tif")).unwrap();
    let large = [(256, 60_000), (257, 40_000), (278, 40_000)];
    fs::write(&path, large.iter().fold(plain, |bytes, (tag, value)| with_entry(bytes, *tag, *value))).unwrap();
    let reader = TiffReader::open(&path).unwrap();
    let text = reader.read_region(Region { x: 0, y: 0, width: 10, height: 10 }).unwrap_err().to_string();
    assert!(text.contains("strips or tiles of 7200000000 bytes exceed") && text.contains("TILED=YES"), "{text}");
}

#[test]
fn images_of_the_field_are_read() {
    let Some(data) = std::env::var_os("RETINANET_DATA") else {
        eprintln!("skipped: RETINANET_DATA is not set");
        return;
    };
    // Pillow 13: `ImageStat.Stat(Image.open(file).convert("RGB")).mean`, and NumPy for float_255, which Pillow cannot read
    let expected = [
        ("bigtiff", [78.88, 79.17, 77.88]),
        ("float_255", [78.88, 79.17, 77.88]),
        ("int16", [79.23; 3]),
        ("jpegin", [13.49, 126.72, 35.7]),
        ("palette", [4.11; 3]),
    ];
    for (name, means) in expected {
        let image = read(Path::new(&data).join(format!("cases/14-pictures/{name}.tif"))).unwrap();
        assert_eq!(image.dimensions(), (96, 64), "{name}");
        for (channel, mean) in means.iter().enumerate() {
            let sum: f64 = image.pixels().map(|pixel| f64::from(pixel.0[channel])).sum();
            assert!((sum / (96.0 * 64.0) - mean).abs() < 0.3, "{name}: {}", sum / (96.0 * 64.0));
        }
    }
}

/// Maximum memory of this process so far, in bytes.
#[cfg(target_os = "linux")]
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// The decoded image would have 7.2 GB. The other tests of this file run beside this one and need some MB.
#[cfg(target_os = "linux")]
#[test]
fn an_orthomosaic_larger_than_memory_is_read_by_regions() {
    const MAX_MEMORY: u64 = 600 << 20;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("orthomosaic.tif");
    write_orthomosaic(&path, SIZE, 1).unwrap();
    assert!(read(&path).unwrap_err().to_string().contains("(--max-pixels)"));
    let reader = TiffReader::open(&path).unwrap();
    assert_eq!(reader.size(), SIZE);
    let across = (0..SIZE.0 - 1024).step_by(896).map(|x| (x, 20_000));
    let corners = [(0, 0), (SIZE.0 - 1024, 0), (0, SIZE.1 - 1024), (SIZE.0 - 1024, SIZE.1 - 1024)];
    for (x, y) in across.chain(corners) {
        let region = reader.read_region(Region { x, y, width: 1024, height: 1024 }).unwrap();
        assert!(region.enumerate_pixels().all(|(i, j, found)| found.0 == pixel(x + i, y + j)), "at {x},{y}");
    }
    let memory = peak_memory();
    assert!(memory < MAX_MEMORY, "{memory} bytes");
}

#[test]
fn several_threads_read_regions_of_one_file() {
    let path = Path::new(FOLDER).join("rgb.planar-tiled.tif");
    let (reader, whole) = (TiffReader::open(&path).unwrap(), read(&path).unwrap());
    std::thread::scope(|scope| {
        for x in 0..8 {
            let (reader, whole) = (&reader, &whole);
            scope.spawn(move || {
                let region = reader.read_region(Region { x, y: x, width: 9, height: 9 }).unwrap();
                assert_eq!(region, crop_imm(whole, x, x, 9, 9).to_image());
            });
        }
    });
}
