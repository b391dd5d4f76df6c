//! TIFF and BigTIFF images, whole or region by region.
//!
//! They are read with the crate `tiff-reader`, since the decoder of the crate `image` has no palettes
//! (<https://github.com/image-rs/image-tiff/issues/202>), no YCbCr (<https://github.com/image-rs/image/pull/2817>), no
//! regions, and panics on planes in tiles (<https://github.com/image-rs/image-tiff/issues/403>).

mod samples;

use std::io::Cursor;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use image::codecs::tiff::TiffDecoder;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, RgbImage};
use tiff_reader::source::{BytesSource, FileSource, SharedSource};
use tiff_reader::{Ifd, OpenOptions, TiffFile};

use super::decoder::{catch_panic, decode_with};
use super::error::{DecodeError, ImageFileError};
use super::limits::Limits;
use super::refuse_named_pipe;
use super::region::{Region, transposes};
use super::unsupported::RAW;
use crate::pixel_budget::{PixelBudget, Reservation};
use samples::{Samples, Scale};

/// The compression that only the decoder of the crate `image` reads.
const CCITT_GROUP_4: u16 = 4;

/// A TIFF file that is read region by region, so that it may be much larger than memory. Only the strips or tiles of a
/// region are decoded; up to 256 MiB of them are kept for the next regions. Several threads may read at once.
///
/// ```no_run
/// use runtime::image_file::{Region, TiffReader};
///
/// let orthomosaic = TiffReader::open("orthomosaic.tif")?;
/// let (width, height) = orthomosaic.size();
/// let corner = orthomosaic.read_region(Region { x: width - 1000, y: height - 1000, width: 1000, height: 1000 })?;
/// # Ok::<(), runtime::image_file::ImageFileError>(())
/// ```
pub struct TiffReader {
    path: PathBuf,
    file: TiffFile,
    samples: Samples,
    orientation: Orientation,
    scale: OnceLock<Scale>,
}

impl TiffReader {
    /// Maximum bytes of decoded strips and tiles that are kept.
    pub const CACHE_BYTES: usize = 256 << 20;

    /// Opens a TIFF file of any size. Of several pages, the first is read.
    ///
    /// # Errors
    /// When the file is not a TIFF, is damaged, or stores its pixels in a way that is not supported.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ImageFileError> {
        const MAX_BLOCK_BYTES: usize = 256 << 20;
        let path = path.as_ref();
        let open = || {
            let reader = Self::new(file_source(path)?, path, Self::CACHE_BYTES, MAX_BLOCK_BYTES)?;
            match reader.page()?.compression() == CCITT_GROUP_4 {
                true => Err(DecodeError::Encoding("regions of images with CCITT compression cannot be read".into())),
                false => Ok(reader),
            }
        };
        catch_panic(open).map_err(|reason| ImageFileError { path: path.to_owned(), reason })
    }

    /// Width and height of the upright image, in pixels.
    pub fn size(&self) -> (u32, u32) {
        let (width, height) = self.stored_size();
        if transposes(self.orientation) { (height, width) } else { (width, height) }
    }

    /// Reads a region of the upright image, with the values that [`read`](super::read) gives for the whole. Signed and
    /// float images are read once as a whole before, to find the range of their values.
    ///
    /// # Errors
    /// When the region is not inside the image, its data are damaged or missing, a strip or tile has more than 256 MiB,
    /// or the values fit neither 0 to 1 nor 0 to 255.
    pub fn read_region(&self, region: Region) -> Result<RgbImage, ImageFileError> {
        catch_panic(|| self.decode(region)).map_err(|reason| ImageFileError { path: self.path.clone(), reason })
    }

    fn new(source: SharedSource, path: &Path, cache: usize, max_block: usize) -> Result<Self, DecodeError> {
        const ORIENTATION: u16 = 274;
        // Canon's CR2 files are TIFF files with these letters after the header.
        let is_cr2 = source.read_exact_at(8, 2).is_ok_and(|bytes| bytes == b"CR");
        let options = OpenOptions {
            block_cache_bytes: cache,
            block_cache_slots: 1 << 16,
            decode_output_bytes: max_block,
            ..OpenOptions::default()
        };
        let file = TiffFile::from_source_with_options(source, options)?;
        let page = file.ifd(0)?;
        if is_cr2 || is_raw(page) {
            return Err(DecodeError::Unsupported(RAW));
        }
        let samples = Samples::new(page)?;
        let orientation = page.tag(ORIENTATION).and_then(|tag| u8::try_from(tag.value.as_u16()?).ok());
        let orientation = orientation.and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms);
        Ok(Self { path: path.to_owned(), file, samples, orientation, scale: OnceLock::new() })
    }

    fn page(&self) -> Result<&Ifd, DecodeError> {
        Ok(self.file.ifd(0)?)
    }

    fn stored_size(&self) -> (u32, u32) {
        (self.samples.layout.width as u32, self.samples.layout.height as u32)
    }

    fn decode(&self, region: Region) -> Result<RgbImage, DecodeError> {
        let size = self.size();
        let inside = |start: u32, length: u32, whole: u32| start.checked_add(length).is_some_and(|end| end <= whole);
        if !inside(region.x, region.width, size.0) || !inside(region.y, region.height, size.1) {
            return Err(DecodeError::Region { region, size });
        }
        let stored = region.stored(self.orientation, self.stored_size());
        let scale = self.scale()?;
        let mut pixels = Vec::with_capacity(3 * stored.width as usize * stored.height as usize);
        self.for_each_row(stored, |samples| self.samples.append_rgb(samples, scale, &mut pixels))?;
        let image = RgbImage::from_raw(stored.width, stored.height, pixels).ok_or(DecodeError::Truncated)?;
        let mut image = DynamicImage::from(image);
        image.apply_orientation(self.orientation);
        Ok(image.into_rgb8())
    }

    /// How samples become bytes, which may depend on the values of the whole image.
    fn scale(&self) -> Result<Scale, DecodeError> {
        if let Some(scale) = self.scale.get() {
            return Ok(*scale);
        }
        let scale = match self.samples.fixed_scale() {
            Some(scale) => scale,
            None => {
                let (width, height) = self.stored_size();
                let mut range = None;
                let whole = Region { x: 0, y: 0, width, height };
                self.for_each_row(whole, |samples| range = self.samples.extend_range(samples, range))?;
                self.samples.scale_of(range)?
            }
        };
        Ok(*self.scale.get_or_init(|| scale))
    }

    /// Bytes of a row of a region this wide, rows of a strip or tile, and rows that are decoded at a time.
    fn stripe(&self, width: u32) -> Result<(usize, usize, usize), DecodeError> {
        const STRIPE_BYTES: usize = 1 << 20;
        let page = self.page()?;
        let block = page.tile_height().filter(|_| page.is_tiled()).unwrap_or_else(|| page.rows_per_strip());
        let block = (block as usize).clamp(1, self.samples.layout.height);
        let row_bytes = (width as usize).saturating_mul(self.samples.layout.pixel_stride_bytes()).max(1);
        Ok((row_bytes, block, (STRIPE_BYTES / row_bytes / block).max(1) * block))
    }

    /// The number of pixels whose memory, of eight bytes each, decoding the whole image takes: images of many samples a pixel
    /// take more than they have.
    fn memory_pixels(&self) -> Result<u64, DecodeError> {
        let (width, height) = self.stored_size();
        let (row_bytes, _, stripe) = self.stripe(width)?;
        // The decoder holds a stripe, a block of it, and a copy.
        let bytes = 3 * (stripe.min(height as usize) as u64).saturating_mul(row_bytes as u64);
        Ok((bytes / 8).max(u64::from(width) * u64::from(height)))
    }

    /// Decodes the rows of a region of the stored image, by stripes of whole strips or tiles, so that memory stays bounded
    /// and none is decoded twice.
    fn for_each_row(&self, region: Region, mut take: impl FnMut(&[u8])) -> Result<(), DecodeError> {
        let (row_bytes, block, stripe) = self.stripe(region.width)?;
        let Range { mut start, end } = region.y as usize..region.y as usize + region.height as usize;
        while start < end {
            let next = ((start / block * block) + stripe).min(end);
            let (x, width) = (region.x as usize, region.width as usize);
            let stripe = self.file.read_decoded_window_bytes(0, start, x, next - start, width)?;
            stripe.chunks(row_bytes).for_each(&mut take);
            start = next;
        }
        Ok(())
    }
}

/// Whether a file with these first bytes is a TIFF or BigTIFF.
pub(super) fn is_tiff(start: &[u8]) -> bool {
    [b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"].iter().any(|magic| start.starts_with(*magic))
}

/// Width and height of a file's upright image.
pub(super) fn size(path: &Path, limits: &Limits) -> Result<(u32, u32), DecodeError> {
    let size = TiffReader::new(file_source(path)?, path, 0, 0)?.size();
    limits.check(size).map(|()| size)
}

/// Decodes the first page of a file.
pub(super) fn decode(
    bytes: Vec<u8>,
    limits: &Limits,
    budget: &PixelBudget,
) -> Result<(RgbImage, Reservation), DecodeError> {
    catch_panic(|| decode_page(bytes, limits, budget))
}

fn decode_page(bytes: Vec<u8>, limits: &Limits, budget: &PixelBudget) -> Result<(RgbImage, Reservation), DecodeError> {
    /// Bytes of the header of a TIFF file; BigTIFF has more.
    const HEADER: usize = 8;
    if bytes.len() < HEADER {
        return Err(DecodeError::Truncated);
    }
    let max_block = usize::try_from(limits.memory()).unwrap_or(usize::MAX);
    let reader = TiffReader::new(Arc::new(BytesSource::new(bytes)), Path::new(""), 0, max_block)?;
    let (width, height) = reader.size();
    limits.check((width, height))?;
    if let Some(bytes) = reader.file.raw_bytes()
        && reader.page()?.compression() == CCITT_GROUP_4
    {
        let mut decoder = TiffDecoder::new(Cursor::new(bytes))?;
        decoder.set_limits(limits.for_image())?;
        return decode_with(decoder, limits, budget);
    }
    let reserved = budget.reserve(reader.memory_pixels()?);
    Ok((reader.decode(Region { x: 0, y: 0, width, height })?, reserved))
}

fn file_source(path: &Path) -> Result<SharedSource, DecodeError> {
    refuse_named_pipe(path)?;
    Ok(Arc::new(FileSource::open(path)?))
}

/// Whether the first page is one of a DNG file, or a preview before the pages of other cameras' files.
fn is_raw(page: &Ifd) -> bool {
    const DNG_VERSION: u16 = 50706;
    const NEW_SUBFILE_TYPE: u16 = 254;
    const SUB_IFDS: u16 = 330;
    let reduced = page.tag(NEW_SUBFILE_TYPE).and_then(|tag| tag.value.as_u32()).is_some_and(|kind| kind & 1 == 1);
    page.tag(DNG_VERSION).is_some() || reduced && page.tag(SUB_IFDS).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A grayscale image of 8 bits whose one strip is sparse, with so many samples a pixel.
    fn sparse(side: u16, samples: u16) -> Vec<u8> {
        let entries: [(u16, u16); 9] =
            [(256, side), (257, side), (258, 8), (259, 1), (262, 1), (273, 0), (277, samples), (278, side), (279, 0)];
        let mut bytes = b"II*\0\x08\0\0\0".to_vec();
        bytes.extend((entries.len() as u16).to_le_bytes());
        for (tag, value) in entries {
            bytes.extend([tag, 3, 1, 0, value, 0].map(u16::to_le_bytes).as_flattened());
        }
        bytes.extend([0; 4]);
        bytes
    }

    #[test]
    fn many_samples_a_pixel_reserve_the_memory_that_they_take() {
        for (samples, expected) in [(1, 10_000), (500, 3 * 10_000 * 500 / 8)] {
            let budget = PixelBudget::new(u64::MAX);
            let (image, reserved) = decode(sparse(100, samples), &Limits::DEFAULT, &budget).unwrap();
            assert_eq!((image.dimensions(), reserved.pixels), ((100, 100), expected), "{samples} samples");
        }
    }
}
