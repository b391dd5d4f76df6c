//! Cache of decoded images in memory, from one epoch to the next.
//!
//! A full cache does not evict images. Every epoch reads every image once, so an LRU cache would evict each image shortly
//! before it is read again.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::ensure;
use image::RgbImage;
use runtime::image_file::{self, ImageFileError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::progress::say;

/// Cache of decoded images. Training and validation share it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CacheConfig {
    /// Where images are cached.
    pub kind: CacheKind,
    /// Maximum size, in units of 10^9 bytes. An image takes three bytes per pixel.
    pub max_gigabytes: f64,
}

/// Where decoded images are cached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CacheKind {
    /// No cache: images are decoded in every epoch.
    #[default]
    None,
    /// In memory, until the run ends. Changes to image files during the run have no effect.
    Memory,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { kind: CacheKind::None, max_gigabytes: 4.0 }
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
pub struct Cache {
    /// Maximum size of all cached pixels, in bytes.
    limit: u64,
    /// None if there is no cache.
    content: Option<Mutex<Content>>,
}

#[derive(Debug, Default)]
struct Content {
    images: HashMap<PathBuf, Arc<RgbImage>>,
    bytes: u64,
    /// Whether the message that the cache is full was printed.
    reported_full: bool,
}

impl Cache {
    /// An empty cache.
    pub fn new(config: &CacheConfig) -> Self {
        let content = (config.kind == CacheKind::Memory).then(Mutex::default);
        Self { limit: (config.max_gigabytes * 1e9) as u64, content }
    }

    /// Reads an image file (upright, after EXIF rotation).
    ///
    /// # Errors
    /// When the image is not cached and cannot be decoded.
    pub fn read(&self, path: &Path) -> Result<Arc<RgbImage>, ImageFileError> {
        const NOT_POISONED: &str = "no thread panics while it holds the lock";
        let Some(content) = &self.content else { return Ok(Arc::new(image_file::read(path)?)) };
        if let Some(image) = content.lock().expect(NOT_POISONED).images.get(path) {
            return Ok(image.clone());
        }
        // Without the lock, so that threads decode in parallel. Two of them may decode the same image, which is rare.
        let image = Arc::new(image_file::read(path)?);
        content.lock().expect(NOT_POISONED).insert(path, &image, self.limit);
        Ok(image)
    }
}

impl Content {
    fn insert(&mut self, path: &Path, image: &Arc<RgbImage>, limit: u64) {
        let bytes = image.as_raw().len() as u64;
        if self.bytes + bytes <= limit {
            if self.images.insert(path.to_owned(), image.clone()).is_none() {
                self.bytes += bytes;
            }
        } else if !self.reported_full {
            self.reported_full = true;
            say(format_args!(
                "image cache is full, with {} images; the remaining images are decoded in every epoch; raise \
                 `data.cache.max_gigabytes`",
                self.images.len()
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    /// Writes images of 2x2 pixels, each in one shade, and returns their paths.
    fn images(folder: &Path, shades: &[u8]) -> Vec<PathBuf> {
        let write = |shade: &u8| {
            let path = folder.join(format!("{shade}.png"));
            RgbImage::from_pixel(2, 2, Rgb([*shade; 3])).save(&path).unwrap();
            path
        };
        shades.iter().map(write).collect()
    }

    fn memory_cache(limit: u64) -> Cache {
        Cache { limit, content: Some(Mutex::default()) }
    }

    #[test]
    fn a_cached_image_is_shared_and_needs_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let paths = images(folder.path(), &[1, 2]);
        let cache = memory_cache(1000);
        let first = cache.read(&paths[0]).unwrap();
        assert_eq!(cache.read(&paths[1]).unwrap().get_pixel(0, 0).0, [2; 3]);
        std::fs::remove_file(&paths[0]).unwrap();
        assert!(Arc::ptr_eq(&cache.read(&paths[0]).unwrap(), &first));
    }

    #[test]
    fn images_above_the_limit_are_read_but_not_cached() {
        let folder = tempfile::tempdir().unwrap();
        let paths = images(folder.path(), &[1, 2, 3]);
        // Room for two images of 12 bytes.
        let cache = memory_cache(35);
        for _ in 0..2 {
            for (path, shade) in paths.iter().zip(1..) {
                assert_eq!(cache.read(path).unwrap().get_pixel(0, 0).0, [shade; 3]);
            }
        }
        let content = cache.content.unwrap().into_inner().unwrap();
        assert_eq!((content.bytes, content.images.len(), content.reported_full), (24, 2, true));
        assert!(content.images.contains_key(&paths[0]) && content.images.contains_key(&paths[1]));
    }

    #[test]
    fn threads_reading_the_same_images_cache_each_once() {
        let folder = tempfile::tempdir().unwrap();
        let paths = images(folder.path(), &[1, 2, 3, 4]);
        let cache = memory_cache(1000);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| paths.iter().for_each(|path| drop(cache.read(path).unwrap())));
            }
        });
        assert_eq!(cache.content.unwrap().into_inner().unwrap().bytes, 4 * 12);
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
    fn kinds_are_parsed_and_others_are_refused() {
        let config = |text: &str| serde_yaml::from_str::<CacheConfig>(text);
        let memory = CacheConfig { kind: CacheKind::Memory, ..CacheConfig::default() };
        assert_eq!(config("{kind: memory}").unwrap(), memory);
        assert_eq!(config("{kind: none}").unwrap(), CacheConfig::default());
        assert_eq!(config(&serde_yaml::to_string(&memory).unwrap()).unwrap(), memory);
        let error = config("{kind: tape}").unwrap_err().to_string();
        assert!(error.contains("unknown variant `tape`, expected `none` or `memory`"), "{error}");
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
