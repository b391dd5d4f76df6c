//! Decoded images in memory.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use image::RgbImage;
use runtime::image_file::{self, ImageFileError};

use crate::progress::say;

/// Images by path, as many as fit.
#[derive(Debug)]
pub(super) struct MemoryCache {
    /// Bytes of pixels that are kept at most.
    limit: u64,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    images: HashMap<PathBuf, Arc<RgbImage>>,
    bytes: u64,
    /// Whether it was said that an image did not fit.
    said: bool,
}

impl MemoryCache {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, kept: Mutex::default() }
    }

    pub(super) fn read(&self, path: &Path) -> Result<Arc<RgbImage>, ImageFileError> {
        const WHOLE: &str = "no thread panics while it has the lock";
        if let Some(image) = self.kept.lock().expect(WHOLE).images.get(path) {
            return Ok(image.clone());
        }
        // Without the lock, so that threads decode side by side; rarely two of them the same image.
        let image = Arc::new(image_file::read(path)?);
        self.kept.lock().expect(WHOLE).keep(path, &image, self.limit);
        Ok(image)
    }
}

impl Kept {
    fn keep(&mut self, path: &Path, image: &Arc<RgbImage>, limit: u64) {
        let bytes = image.as_raw().len() as u64;
        if self.bytes + bytes <= limit {
            if self.images.insert(path.to_owned(), image.clone()).is_none() {
                self.bytes += bytes;
            }
        } else if !self.said {
            self.said = true;
            say(&format!(
                "{} decoded images fill the cache in memory; the others are decoded every time, unless you raise \
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

    /// Paths of images of 2x2 pixels in shades of their own.
    fn images(folder: &Path, shades: &[u8]) -> Vec<PathBuf> {
        let write = |shade: &u8| {
            let path = folder.join(format!("{shade}.png"));
            RgbImage::from_pixel(2, 2, Rgb([*shade; 3])).save(&path).unwrap();
            path
        };
        shades.iter().map(write).collect()
    }

    #[test]
    fn a_kept_image_is_shared_and_needs_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let paths = images(folder.path(), &[1, 2]);
        let cache = MemoryCache::new(1000);
        let first = cache.read(&paths[0]).unwrap();
        assert_eq!(cache.read(&paths[1]).unwrap().get_pixel(0, 0).0, [2; 3]);
        std::fs::remove_file(&paths[0]).unwrap();
        assert!(Arc::ptr_eq(&cache.read(&paths[0]).unwrap(), &first));
    }

    #[test]
    fn what_does_not_fit_is_read_and_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let paths = images(folder.path(), &[1, 2, 3]);
        // Two images of 12 bytes.
        let cache = MemoryCache::new(35);
        for _ in 0..2 {
            for (path, shade) in paths.iter().zip(1..) {
                assert_eq!(cache.read(path).unwrap().get_pixel(0, 0).0, [shade; 3]);
            }
        }
        let kept = cache.kept.lock().unwrap();
        assert_eq!((kept.bytes, kept.images.len(), kept.said), (24, 2, true));
        assert!(kept.images.contains_key(&paths[0]) && kept.images.contains_key(&paths[1]));
    }

    #[test]
    fn threads_that_read_the_same_images_keep_each_once() {
        let folder = tempfile::tempdir().unwrap();
        let paths = images(folder.path(), &[1, 2, 3, 4]);
        let cache = MemoryCache::new(1000);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| paths.iter().for_each(|path| drop(cache.read(path).unwrap())));
            }
        });
        assert_eq!(cache.kept.lock().unwrap().bytes, 4 * 12);
    }
}
