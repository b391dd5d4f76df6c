//! Cache of decoded images in memory.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use image::RgbImage;
use runtime::image_file::{self, ImageFileError};
use runtime::progress::say;

/// Images by path, up to a limit.
#[derive(Debug)]
pub(super) struct MemoryCache {
    /// Maximum size of all pixels, in bytes.
    limit: u64,
    content: Mutex<Content>,
}

#[derive(Debug, Default)]
struct Content {
    images: HashMap<PathBuf, Arc<RgbImage>>,
    bytes: u64,
    /// Whether the message that the cache is full was printed.
    reported_full: bool,
}

impl MemoryCache {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, content: Mutex::default() }
    }

    pub(super) fn read(&self, path: &Path) -> Result<Arc<RgbImage>, ImageFileError> {
        const NOT_POISONED: &str = "no thread panics while it holds the lock";
        if let Some(image) = self.content.lock().expect(NOT_POISONED).images.get(path) {
            return Ok(image.clone());
        }
        // Without the lock, so that threads decode in parallel. Two of them may decode the same image, which is rare.
        let image = Arc::new(image_file::read(path)?);
        self.content.lock().expect(NOT_POISONED).insert(path, &image, self.limit);
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
                "image cache in memory is full, with {} images; the remaining images are decoded in every epoch; raise \
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

    #[test]
    fn a_cached_image_is_shared_and_needs_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let paths = images(folder.path(), &[1, 2]);
        let cache = MemoryCache::new(1000);
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
        let cache = MemoryCache::new(35);
        for _ in 0..2 {
            for (path, shade) in paths.iter().zip(1..) {
                assert_eq!(cache.read(path).unwrap().get_pixel(0, 0).0, [shade; 3]);
            }
        }
        let content = cache.content.lock().unwrap();
        assert_eq!((content.bytes, content.images.len(), content.reported_full), (24, 2, true));
        assert!(content.images.contains_key(&paths[0]) && content.images.contains_key(&paths[1]));
    }

    #[test]
    fn threads_reading_the_same_images_cache_each_once() {
        let folder = tempfile::tempdir().unwrap();
        let paths = images(folder.path(), &[1, 2, 3, 4]);
        let cache = MemoryCache::new(1000);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| paths.iter().for_each(|path| drop(cache.read(path).unwrap())));
            }
        });
        assert_eq!(cache.content.lock().unwrap().bytes, 4 * 12);
    }
}
