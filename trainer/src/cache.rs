//! Cache of decoded images, from one epoch to the next.
//!
//! A full cache does not evict images. Every epoch reads every image once, so an LRU cache would evict each image shortly
//! before it is read again.

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

/// Cache of decoded images. Training and validation share it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheConfig {
    /// Where images are cached.
    pub kind: CacheKind,
    /// Maximum size, in units of 10^9 bytes. An image takes three bytes per pixel.
    pub max_gigabytes: f64,
    /// Folder of a cache on disk. Later runs reuse it.
    pub folder: PathBuf,
}

/// Where decoded images are cached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheKind {
    /// No cache: images are decoded in every epoch.
    #[default]
    None,
    /// In memory, until the run ends. Changes to image files during the run have no effect.
    Memory,
    /// In files. A changed image file is decoded again.
    Disk,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { kind: CacheKind::None, max_gigabytes: 4.0, folder: PathBuf::from("image-cache") }
    }
}

impl CacheConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// When a value is out of range; the message contains its key and the range.
    pub fn validate(&self) -> anyhow::Result<()> {
        let gigabytes = self.max_gigabytes;
        ensure!(
            gigabytes.is_finite() && gigabytes > 0.0,
            "`data.cache.max_gigabytes` is {gigabytes}, expected more than 0; to disable the cache, set `data.cache.kind: none`"
        );
        Ok(())
    }
}

/// Reads images and caches them. Can be shared by threads.
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
    /// Opens the cache.
    ///
    /// # Errors
    /// When the folder of a cache on disk cannot be created or read.
    pub fn open(config: &CacheConfig) -> anyhow::Result<Self> {
        let limit = (config.max_gigabytes * 1e9) as u64;
        Ok(Self(match config.kind {
            CacheKind::None => Store::None,
            CacheKind::Memory => Store::Memory(MemoryCache::new(limit)),
            CacheKind::Disk => {
                let open = DiskCache::open(&config.folder, limit);
                let context = || format!("cannot use the folder `{}` (`data.cache.folder`)", config.folder.display());
                Store::Disk(open.with_context(context)?)
            }
        }))
    }

    /// Reads an image file (upright, after EXIF rotation).
    ///
    /// # Errors
    /// When the image is not cached and cannot be decoded.
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
    fn all_cache_kinds_return_the_same_image() {
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
    fn without_cache_images_are_decoded_every_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.png");
        let cache = Cache::default();
        for shade in [10, 20] {
            RgbImage::from_pixel(2, 2, image::Rgb([shade; 3])).save(&path).unwrap();
            assert_eq!(cache.read(&path).unwrap().get_pixel(0, 0).0, [shade; 3]);
        }
    }

    #[test]
    fn an_unusable_cache_folder_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let config = CacheConfig { kind: CacheKind::Disk, folder: file.join("cache"), ..Default::default() };
        let error = format!("{:#}", Cache::open(&config).unwrap_err());
        assert!(error.contains("data.cache.folder") && error.contains("file/cache"), "{error}");
    }

    #[test]
    fn invalid_sizes_are_refused() {
        for max_gigabytes in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = CacheConfig { max_gigabytes, ..Default::default() }.validate().unwrap_err().to_string();
            assert!(error.contains("data.cache.max_gigabytes") && error.contains("kind: none"), "{error}");
        }
        CacheConfig::default().validate().unwrap();
    }
}
