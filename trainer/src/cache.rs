//! Decoded images, kept from one epoch to the next.
//!
//! What is kept is never thrown out for another image. Every epoch reads every image once, so whatever had to go would be
//! read again before what took its place: a cache that forgets the oldest would forget each image just before its turn.

mod disk;
mod memory;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, ensure};
use image::RgbImage;
use runtime::image_file::ImageFileError;
use serde::{Deserialize, Serialize};

use disk::DiskCache;
use memory::MemoryCache;

/// Whether decoded images are kept, where, and how many. Training and validation share them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheConfig {
    /// Where they are.
    pub kind: CacheKind,
    /// The room that they may take, in units of 10^9 bytes; three bytes per pixel.
    pub max_gigabytes: f64,
    /// Folder for those on disk. Later runs find them there.
    pub folder: PathBuf,
}

/// Where decoded images are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheKind {
    /// Nowhere: they are decoded every time.
    #[default]
    None,
    /// In memory, as long as the run lasts. An image that changes meanwhile stays what it was.
    Memory,
    /// In files. An image that has changed is decoded anew.
    Disk,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { kind: CacheKind::None, max_gigabytes: 4.0, folder: PathBuf::from("image-cache") }
    }
}

impl CacheConfig {
    /// Whether every value makes sense.
    ///
    /// # Errors
    /// When one does not; the message names its key and what it may be.
    pub fn validate(&self) -> anyhow::Result<()> {
        let gigabytes = self.max_gigabytes;
        ensure!(
            gigabytes.is_finite() && gigabytes > 0.0,
            "`data.cache.max_gigabytes` is {gigabytes}, expected more than zero; for no cache, set `data.cache.kind: none`"
        );
        Ok(())
    }
}

/// Reads images, and remembers some. Threads share it.
#[derive(Debug, Default)]
pub struct Cache(Store);

#[derive(Debug, Default)]
enum Store {
    #[default]
    None,
    Memory(MemoryCache),
    Disk(DiskCache),
}

impl Cache {
    /// A cache as configured.
    ///
    /// # Errors
    /// When the folder of a cache on disk can't be made or read.
    pub fn open(config: &CacheConfig) -> anyhow::Result<Self> {
        let limit = (config.max_gigabytes * 1e9) as u64;
        Ok(Self(match config.kind {
            CacheKind::None => Store::None,
            CacheKind::Memory => Store::Memory(MemoryCache::new(limit)),
            CacheKind::Disk => {
                let open = DiskCache::open(&config.folder, limit);
                Store::Disk(open.with_context(|| format!("can't use `data.cache.folder` {}", config.folder.display()))?)
            }
        }))
    }

    /// The image in a file, upright.
    ///
    /// # Errors
    /// When it has to be decoded and can't be.
    pub fn read(&self, path: &Path) -> Result<Arc<RgbImage>, ImageFileError> {
        match &self.0 {
            Store::None => Ok(Arc::new(runtime::image_file::read(path)?)),
            Store::Memory(cache) => cache.read(path),
            Store::Disk(cache) => Ok(Arc::new(cache.read(path)?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_reads_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.png");
        let image = RgbImage::from_fn(5, 3, |x, y| image::Rgb([x as u8, y as u8, 9]));
        image.save(&path).unwrap();
        for kind in [CacheKind::None, CacheKind::Memory, CacheKind::Disk] {
            let config = CacheConfig { kind, folder: folder.path().join("cache"), ..Default::default() };
            let cache = Cache::open(&config).unwrap();
            for _ in 0..2 {
                assert_eq!(*cache.read(&path).unwrap(), image, "{kind:?}");
            }
            let error = cache.read(&folder.path().join("gone.png")).unwrap_err();
            assert!(error.to_string().contains("gone.png"), "{error}");
        }
    }

    #[test]
    fn without_a_cache_an_image_is_decoded_every_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.png");
        let cache = Cache::default();
        for shade in [10, 20] {
            RgbImage::from_pixel(2, 2, image::Rgb([shade; 3])).save(&path).unwrap();
            assert_eq!(cache.read(&path).unwrap().get_pixel(0, 0).0, [shade; 3]);
        }
    }

    #[test]
    fn a_folder_that_cannot_be_used_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let config = CacheConfig { kind: CacheKind::Disk, folder: file.join("cache"), ..Default::default() };
        let error = format!("{:#}", Cache::open(&config).unwrap_err());
        assert!(error.contains("data.cache.folder") && error.contains("file/cache"), "{error}");
    }

    #[test]
    fn room_that_makes_no_sense_is_refused() {
        for max_gigabytes in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = CacheConfig { max_gigabytes, ..Default::default() }.validate().unwrap_err().to_string();
            assert!(error.contains("data.cache.max_gigabytes") && error.contains("kind: none"), "{error}");
        }
        CacheConfig::default().validate().unwrap();
    }
}
