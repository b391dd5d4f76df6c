//! Naming files that are not images, or images of formats that are not supported.

use std::fmt;

use memchr::memmem::find;

/// What a file is, and what to do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsupported {
    kind: &'static str,
    advice: &'static str,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "it is {}; {}", self.kind, self.advice)
    }
}

const TO_JPEG: &str = "convert it to JPEG";
const TO_PNG: &str = "convert it to PNG";
const DEVELOP: &str = "develop it to JPEG or TIFF";
const VIDEO: &str = "give it the extension of a video, such as .mp4";

/// A camera's RAW file that is a TIFF whose first image is a preview.
pub(super) const RAW: Unsupported = Unsupported { kind: "a camera RAW file", advice: DEVELOP };

/// Offset, bytes there, what the file is, and what to do.
const SIGNATURES: [(usize, &[u8], &str, &str); 25] = [
    (0, b"\xFF\x0A", "a JPEG XL image", TO_JPEG),
    (4, b"JXL ", "a JPEG XL image", TO_JPEG),
    (4, b"jP  ", "a JPEG 2000 image", TO_PNG),
    (0, b"\xFF\x4F\xFF\x51", "a JPEG 2000 image", TO_PNG),
    (0, b"8BPS", "a Photoshop (PSD) file", "export it as PNG"),
    (0, b"%PDF", "a PDF file", "convert its pages to PNG, for example with `pdftoppm -png`"),
    (128, b"DICM", "a DICOM file", "export its image as PNG, for example with `dcm2img` of DCMTK"),
    (0, b"FUJIFILMCCD-RAW", "a camera RAW file (RAF)", DEVELOP),
    (0, b"IIU\0", "a camera RAW file (RW2)", DEVELOP),
    (0, b"IIRO", "a camera RAW file (ORF)", DEVELOP),
    (0, b"IIRS", "a camera RAW file (ORF)", DEVELOP),
    (4, b"ftypcrx ", "a camera RAW file (CR3)", DEVELOP),
    (4, b"ftypavi", "an AVIF image", TO_PNG),
    (4, b"ftyphe", "a HEIC image", TO_JPEG),
    (4, b"ftypmif1", "a HEIC image", TO_JPEG),
    (4, b"ftypmsf1", "a HEIC image", TO_JPEG),
    (4, b"ftyp", "a video (MP4 or MOV)", VIDEO),
    (4, b"moov", "a video (MOV)", VIDEO),
    (4, b"mdat", "a video (MOV)", VIDEO),
    (8, b"AVI ", "a video (AVI)", VIDEO),
    (0, b"\x1A\x45\xDF\xA3", "a video (Matroska or WebM)", VIDEO),
    (0, b"\0\0\x01\xBA", "a video (MPEG)", VIDEO),
    (0, b"FLV\x01", "a video (FLV)", VIDEO),
    (0, b"\x76\x2F\x31\x01", "an OpenEXR image", "convert it to PNG, or to TIFF with values from 0 to 1"),
    (0, b"version https://git-lfs", "a Git LFS pointer instead of the image", "run `git lfs pull`"),
];

/// What a file with these first bytes is, if it is known and not supported.
pub(super) fn recognize(start: &[u8]) -> Option<Unsupported> {
    let start = &start[..start.len().min(1024)];
    let named = |kind, advice| Some(Unsupported { kind, advice });
    if start.get(4..8) == Some(b"ftyp") && find(start, b"avif").is_some() {
        return named("an AVIF image", TO_PNG);
    }
    let matches = |offset: usize, bytes: &[u8]| start.get(offset..).is_some_and(|rest| rest.starts_with(bytes));
    if let Some((.., kind, advice)) = SIGNATURES.iter().find(|(offset, bytes, ..)| matches(*offset, bytes)) {
        return named(kind, advice);
    }
    let text = start.to_ascii_lowercase();
    let text = text.trim_ascii_start();
    match () {
        () if find(text, b"<svg").is_some() => named("an SVG drawing", "convert it to PNG"),
        () if text.starts_with(b"<!doctype html") || text.starts_with(b"<html") => {
            named("a web page instead of the image", "download the image itself")
        }
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_formats_are_named_with_what_to_do() {
        let mut dicom = vec![0; 200];
        dicom[128..132].copy_from_slice(b"DICM");
        let cases: [(&[u8], &str); 16] = [
            (b"\0\0\0\x24ftypheic\0\0\0\0mif1heic", "it is a HEIC image; convert it to JPEG"),
            (b"\0\0\0\x24ftypmif1\0\0\0\0mif1heic", "it is a HEIC image"),
            (b"\0\0\0\x1Cftypavif\0\0\0\0avifmif1", "it is an AVIF image"),
            (b"\0\0\0\x1Cftypmif1\0\0\0\0mif1avif", "it is an AVIF image"),
            (b"\0\0\0\x18ftypisom\0\0\0\0isom", "it is a video (MP4 or MOV); give it the extension of a video"),
            (b"\0\0\0\x18ftypcrx \0\0\0\0crx ", "it is a camera RAW file (CR3)"),
            (b"\0\0\0\x0CJXL \r\n\x87\n", "it is a JPEG XL image"),
            (b"\xFF\x0A\0\0", "it is a JPEG XL image"),
            (b"\0\0\0\x0CjP  \r\n\x87\n", "it is a JPEG 2000 image"),
            (b"8BPS\0\x01", "it is a Photoshop (PSD) file"),
            (b"%PDF-1.7", "it is a PDF file"),
            (&dicom, "it is a DICOM file"),
            (b"\xEF\xBB\xBF<?xml version='1.0'?>\n<svg xmlns", "it is an SVG drawing"),
            (b"\n<!DOCTYPE HTML><html>", "it is a web page instead of the image; download the image itself"),
            (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer"),
            (b"RIFF\0\0\0\0AVI LIST", "it is a video (AVI)"),
        ];
        for (start, expected) in cases {
            let text = recognize(start).unwrap().to_string();
            assert!(text.starts_with(expected), "{text}");
        }
        assert!([&b""[..], b"GIMP", b"ftyp", &[0; 4096]].iter().all(|start| recognize(start).is_none()));
    }
}
