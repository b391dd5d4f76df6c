//! Images as this project decodes them, in PNG files: decoders of JPEG differ by a level or two, which is more than
//! `tests/golden/import.py` may err.

use std::path::Path;

use anyhow::{Context, Result};
use runtime::image_file;

/// The images that the script reads.
const IMAGES: [&str; 3] =
    ["bccd/JPEGImages/BloodImage_00007.jpg", "pictures/pillow__hopper.bmp", "pictures/exif__Landscape_1.jpg"];

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let [folder, data] = [(); 2].map(|()| arguments.next());
    let (folder, data) = folder.zip(data).context("give a folder to write to, and the folder of the data")?;
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
