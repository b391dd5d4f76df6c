//! Writes images as this project decodes them to PNG files for `tests/golden/import.py`. JPEG decoders differ by one or
//! two levels, which would exceed the tolerance of the expected detections.

use std::path::Path;

use anyhow::{Context, Result};
use runtime::image_file;

/// The images that the script uses.
const IMAGES: [&str; 3] =
    ["bccd/JPEGImages/BloodImage_00007.jpg", "pictures/pillow__hopper.bmp", "pictures/exif__Landscape_1.jpg"];

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let [folder, data] = [(); 2].map(|()| arguments.next());
    let (folder, data) = folder.zip(data).context("usage: lossless OUTPUT_FOLDER DATA_FOLDER")?;
    std::fs::create_dir_all(&folder)?;
    for name in IMAGES {
        let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem).replace('/', "-");
        image_file::write(
            &Path::new(&folder).join(format!("{stem}.png")),
            &image_file::read(Path::new(&data).join(name))?,
        )?;
    }
    Ok(())
}
