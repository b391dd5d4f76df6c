//! Cache of decoded images in files.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use image::RgbImage;
use runtime::image_file::{self, ImageFileError};
use runtime::progress::{say, warn};

/// Extension of the cache files.
const EXTENSION: &str = "pixels";

/// First bytes of every cache file. It contains the version, since another one may decode differently.
const MAGIC: &str = concat!("decoded by trainer ", env!("CARGO_PKG_VERSION"));

/// Age from which an unfinished file is considered abandoned. Writing one takes seconds, but the folder may be on a machine
/// with another clock, and a run stops caching if its unfinished file is removed.
const ABANDONED_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// A folder with one file per image, up to a limit. Concurrent runs can share it; toward the limit, each counts the files at
/// its start and those it adds.
#[derive(Debug)]
pub(super) struct DiskCache {
    folder: PathBuf,
    /// Maximum size of all files, in bytes.
    limit: u64,
    /// Size of all files, in bytes.
    used: AtomicU64,
    /// Whether the message that the cache is full was printed.
    reported_full: AtomicBool,
    /// Whether a write has failed; nothing is written after that.
    write_failed: AtomicBool,
}

impl DiskCache {
    /// Creates the folder, or sums up the files in it. Removes unfinished files that are more than a day old (another run
    /// may be writing younger ones), and the oldest finished files while the total exceeds the limit.
    ///
    /// # Errors
    /// When the folder cannot be created or read.
    pub(super) fn open(folder: &Path, limit: u64) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let now = SystemTime::now();
        let mut used = 0;
        let mut finished = Vec::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let Some(state) = State::from_name(&path) else { continue };
            // Another run may have removed the file.
            let Ok(metadata) = fs::metadata(&path) else { continue };
            let (modified, length) = (metadata.modified()?, metadata.len());
            match state {
                State::Finished => finished.push((modified, length, path)),
                State::Unfinished => {
                    let abandoned = now.duration_since(modified).is_ok_and(|age| age > ABANDONED_AGE);
                    if abandoned && fs::remove_file(&path).is_ok() {
                        continue;
                    }
                }
            }
            used += length;
        }
        finished.sort();
        for (_, length, path) in finished {
            if used > limit && fs::remove_file(path).is_ok() {
                used -= length;
            }
        }
        let [reported_full, write_failed] = [false, false].map(AtomicBool::new);
        Ok(Self { folder: folder.to_owned(), limit, used: used.into(), reported_full, write_failed })
    }

    pub(super) fn read(&self, path: &Path) -> Result<RgbImage, ImageFileError> {
        // The metadata is read before decoding: if the file changes in between, the next read finds a different key.
        let Ok(source) = SourceFile::new(path) else { return image_file::read(path) };
        let file = self.folder.join(source.cache_file_name());
        if let Some(image) = load(&file, &source.key) {
            return Ok(image);
        }
        let image = image_file::read(path)?;
        if !self.write_failed.load(Ordering::Relaxed) && self.reserve(&file, &source.key, &image) {
            self.store(&file, &source.key, &image);
        }
        Ok(image)
    }

    /// Reserves space for an image; returns whether it fits.
    fn reserve(&self, file: &Path, key: &[u8], image: &RgbImage) -> bool {
        let added = (key.len() + Header::LENGTH + image.as_raw().len()) as u64;
        let replaced = fs::metadata(file).map_or(0, |replaced| replaced.len());
        let update = |used: u64| Some(used.saturating_sub(replaced) + added).filter(|used| *used <= self.limit);
        let fits = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update).is_ok();
        if !fits && !self.reported_full.swap(true, Ordering::Relaxed) {
            say(format_args!(
                "image cache `{}` is full; the remaining images are decoded in every epoch; raise \
                 `data.cache.max_gigabytes`, or remove the folder if it contains other data",
                self.folder.display()
            ));
        }
        fits
    }

    fn store(&self, file: &Path, key: &[u8], image: &RgbImage) {
        if let Err(error) = save(file, key, image)
            && !self.write_failed.swap(true, Ordering::Relaxed)
        {
            warn(format_args!(
                "cannot write to the image cache `{}`: {error}; no more images are cached",
                self.folder.display()
            ));
        }
    }
}

/// State of a cache file.
#[derive(Clone, Copy)]
enum State {
    Finished,
    /// Being written, or left by a killed run.
    Unfinished,
}

impl State {
    /// The state of a cache file, by its name: 16 hexadecimal digits and the extension, or the name of an unfinished file.
    /// `None` for all other files, which are never removed.
    fn from_name(path: &Path) -> Option<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let (state, name) = match name.strip_prefix('.') {
            Some(partial) => (Self::Unfinished, partial.strip_suffix(".partial")?.rsplit_once('.')?.0),
            None => (Self::Finished, &*name),
        };
        let digits = name.strip_suffix(EXTENSION)?.strip_suffix('.')?;
        (digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(state)
    }
}

/// The current state of an image file.
struct SourceFile {
    path: PathBuf,
    /// Path, length and modification time. A different key means that the image must be decoded again.
    key: Vec<u8>,
}

impl SourceFile {
    fn new(path: &Path) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let metadata = fs::metadata(&path)?;
        let modified = metadata.modified()?.duration_since(UNIX_EPOCH).map_err(io::Error::other)?.as_nanos();
        let mut key = format!("{MAGIC} from {} bytes of {modified}: ", metadata.len()).into_bytes();
        key.extend(path.as_os_str().as_bytes());
        Ok(Self { path, key })
    }

    /// Name of its cache file: the FNV-1a hash of its path only, so that a changed image replaces its old cache file.
    /// Unlike `DefaultHasher`, FNV-1a never changes. <https://www.rfc-editor.org/rfc/rfc9923>
    fn cache_file_name(&self) -> String {
        let bytes = self.path.as_os_str().as_bytes();
        let hash = bytes
            .iter()
            .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
        format!("{hash:016x}.{EXTENSION}")
    }
}

/// Header of a cache file, between the key and the pixels.
struct Header {
    width: u32,
    height: u32,
    /// CRC-32 of the pixels.
    checksum: u32,
}

impl Header {
    const LENGTH: usize = 12;

    fn of(image: &RgbImage) -> Self {
        Self { width: image.width(), height: image.height(), checksum: crc32c::crc32c(image.as_raw()) }
    }

    fn to_bytes(&self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        for (bytes, number) in bytes.chunks_exact_mut(4).zip([self.width, self.height, self.checksum]) {
            bytes.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: [u8; Self::LENGTH]) -> Self {
        let [width, height, checksum] =
            [0, 4, 8].map(|offset| u32::from_le_bytes(std::array::from_fn(|index| bytes[offset + index])));
        Self { width, height, checksum }
    }
}

/// Reads a cache file; `None` if it does not exist, has a different key, or is truncated or damaged.
fn load(file: &Path, key: &[u8]) -> Option<RgbImage> {
    let mut file = File::open(file).ok()?;
    let length = file.metadata().ok()?.len();
    let mut found = vec![0; key.len()];
    file.read_exact(&mut found).ok()?;
    if found != key {
        return None;
    }
    let mut header = [0; Header::LENGTH];
    file.read_exact(&mut header).ok()?;
    let Header { width, height, checksum } = Header::from_bytes(header);
    let pixels = length.checked_sub((key.len() + Header::LENGTH) as u64)?;
    // Checked before memory is allocated for the size that a damaged file declares.
    if u128::from(pixels) != 3 * u128::from(width) * u128::from(height) {
        return None;
    }
    let mut pixels = vec![0; pixels as usize];
    file.read_exact(&mut pixels).ok()?;
    if crc32c::crc32c(&pixels) == checksum { RgbImage::from_raw(width, height, pixels) } else { None }
}

/// Writes a cache file atomically. There is no fsync: after a crash the checksum reveals damaged files.
fn save(path: &Path, key: &[u8], image: &RgbImage) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let folder = path.parent().unwrap_or(Path::new("."));
    let file = tempfile::Builder::new()
        .prefix(&format!(".{name}."))
        .suffix(".partial")
        // Other users may share the cache if the umask allows it.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)
        // Drops the message, which contains the name of the hidden file.
        .map_err(|error| io::Error::from(error.kind()))?;
    let mut content = file.as_file();
    content.write_all(key)?;
    content.write_all(&Header::of(image).to_bytes())?;
    content.write_all(image.as_raw())?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use image::Rgb;
    use tempfile::TempDir;

    use super::*;

    /// More than all images of a test.
    const AMPLE: u64 = 1 << 20;

    /// A folder with images and a folder for the cache.
    struct Fixture(TempDir);

    impl Fixture {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn cache(&self, limit: u64) -> DiskCache {
            DiskCache::open(&self.folder(), limit).unwrap()
        }

        fn folder(&self) -> PathBuf {
            self.0.path().join("cache")
        }

        /// An image of 8x8 pixels in one shade. A BMP file, whose length does not depend on the pixels.
        fn image(&self, name: &str, shade: u8) -> PathBuf {
            let path = self.0.path().join(name).with_extension("bmp");
            RgbImage::from_pixel(8, 8, Rgb([shade; 3])).save(&path).unwrap();
            path
        }

        /// The cache files, sorted by name.
        fn cache_files(&self) -> Vec<PathBuf> {
            let mut files: Vec<_> = fs::read_dir(self.folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
            files.sort();
            files
        }

        /// Length of a cache file.
        fn length(&self) -> u64 {
            fs::metadata(&self.cache_files()[0]).unwrap().len()
        }
    }

    fn shade(image: RgbImage) -> u8 {
        assert_eq!(image.dimensions(), (8, 8));
        image.get_pixel(7, 7).0[0]
    }

    fn touch(path: &Path, modified: SystemTime) {
        File::options().write(true).open(path).unwrap().set_modified(modified).unwrap();
    }

    #[test]
    fn a_cached_image_is_not_decoded_again_in_this_run_or_the_next() {
        let fixture = Fixture::new();
        let path = fixture.image("a", 10);
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        let cache = fixture.cache(AMPLE);
        assert_eq!(shade(cache.read(&path).unwrap()), 10);
        // Same path, length and modification time.
        fixture.image("a", 20);
        touch(&path, modified);
        assert_eq!(shade(cache.read(&path).unwrap()), 10);
        assert_eq!(shade(fixture.cache(AMPLE).read(&path).unwrap()), 10);
    }

    #[test]
    fn a_changed_image_is_decoded_again_and_replaces_its_cache_file() {
        let fixture = Fixture::new();
        let path = fixture.image("a", 10);
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        let cache = fixture.cache(AMPLE);
        assert_eq!(shade(cache.read(&path).unwrap()), 10);
        fixture.image("a", 20);
        touch(&path, modified + Duration::from_nanos(1));
        for _ in 0..2 {
            assert_eq!(shade(cache.read(&path).unwrap()), 20);
        }
        let mut longer = fs::read(fixture.image("a", 30)).unwrap();
        longer.push(0);
        fs::write(&path, longer).unwrap();
        touch(&path, modified + Duration::from_nanos(1));
        assert_eq!(shade(cache.read(&path).unwrap()), 30);
        assert_eq!(fixture.cache_files().len(), 1);
        assert_eq!(cache.used.into_inner(), fixture.length());
    }

    #[test]
    fn images_with_the_same_name_in_different_folders_are_distinct() {
        let fixture = Fixture::new();
        for folder in ["x", "y"] {
            fs::create_dir(fixture.0.path().join(folder)).unwrap();
        }
        let paths = [fixture.image("x/a", 10), fixture.image("y/a", 20)];
        let cache = fixture.cache(AMPLE);
        for _ in 0..2 {
            assert_eq!(paths.each_ref().map(|path| shade(cache.read(path).unwrap())), [10, 20]);
        }
        assert_eq!(fixture.cache_files().len(), 2);
    }

    #[test]
    fn damaged_or_truncated_files_are_ignored_and_rewritten() {
        let fixture = Fixture::new();
        let path = fixture.image("a", 10);
        let cache = fixture.cache(AMPLE);
        cache.read(&path).unwrap();
        let [file] = fixture.cache_files().try_into().unwrap();
        let intact = fs::read(&file).unwrap();
        let mut damaged: Vec<_> = (0..intact.len()).map(|length| intact[..length].to_vec()).collect();
        damaged.extend((0..intact.len()).map(|index| {
            let mut bytes = intact.clone();
            bytes[index] ^= 0x40;
            bytes
        }));
        damaged.push([&intact[..], b"more"].concat());
        for bytes in damaged {
            fs::write(&file, &bytes).unwrap();
            assert_eq!(shade(cache.read(&path).unwrap()), 10);
            assert_eq!(fs::read(&file).unwrap(), intact);
        }
    }

    #[test]
    fn the_limit_holds_across_runs() {
        let fixture = Fixture::new();
        let paths = [("a", 10), ("b", 20), ("c", 30)].map(|(name, shade)| fixture.image(name, shade));
        fixture.cache(AMPLE).read(&paths[0]).unwrap();
        let limit = 2 * fixture.length() + 1;
        for _ in 0..3 {
            let cache = fixture.cache(limit);
            for (path, expected) in paths.iter().zip([10, 20, 30]) {
                assert_eq!(shade(cache.read(path).unwrap()), expected);
            }
            assert_eq!(fixture.cache_files().len(), 2);
            assert!(cache.reported_full.into_inner());
        }
    }

    #[test]
    fn the_oldest_cache_files_above_the_limit_are_removed() {
        let fixture = Fixture::new();
        let now = SystemTime::now();
        let cache = fixture.cache(AMPLE);
        let mut files = Vec::new();
        for (name, minutes) in [("a", 10), ("b", 30), ("c", 20)] {
            let path = fixture.image(name, 10);
            cache.read(&path).unwrap();
            let file = fixture.folder().join(SourceFile::new(&path).unwrap().cache_file_name());
            touch(&file, now - Duration::from_secs(60 * minutes));
            files.push(file);
        }
        let others = ["holiday.jpg", "0123.pixels", ".hidden", "0123456789abcdef.jpg"];
        for path in others.map(|name| fixture.folder().join(name)) {
            fs::write(&path, [0; 100]).unwrap();
            touch(&path, now - 2 * ABANDONED_AGE);
        }
        let length = fs::metadata(&files[0]).unwrap().len();
        let cache = fixture.cache(2 * length);
        assert_eq!(cache.used.into_inner(), 2 * length);
        assert_eq!(files.iter().map(|path| path.exists()).collect::<Vec<_>>(), [true, false, true]);
        assert!(others.iter().all(|name| fixture.folder().join(name).exists()));
    }

    #[test]
    fn unfinished_files_are_removed_after_a_day() {
        let fixture = Fixture::new();
        fixture.cache(AMPLE);
        let now = SystemTime::now();
        let paths = [now - 2 * ABANDONED_AGE, now - ABANDONED_AGE / 2, now + ABANDONED_AGE].map(|modified| {
            let number = fixture.cache_files().len();
            let path = fixture.folder().join(format!(".{number:016x}.pixels.abc123.partial"));
            fs::write(&path, [0; 100]).unwrap();
            touch(&path, modified);
            path
        });
        for limit in [AMPLE, 0] {
            let cache = fixture.cache(limit);
            assert_eq!(paths.each_ref().map(|path| path.exists()), [false, true, true], "limit {limit}");
            assert_eq!(cache.used.into_inner(), 200);
        }
    }

    #[test]
    fn images_are_read_after_a_failed_write() {
        let fixture = Fixture::new();
        let paths = [fixture.image("a", 10), fixture.image("b", 20)];
        let cache = fixture.cache(AMPLE);
        fs::remove_dir(fixture.folder()).unwrap();
        for _ in 0..2 {
            assert_eq!(paths.each_ref().map(|path| shade(cache.read(path).unwrap())), [10, 20]);
        }
        assert!(cache.write_failed.into_inner());
    }

    #[test]
    fn threads_sharing_a_cache_folder_read_the_right_images() {
        let fixture = Fixture::new();
        let paths: Vec<_> = (0..8).map(|index| fixture.image(&index.to_string(), index)).collect();
        let caches = [fixture.cache(AMPLE), fixture.cache(AMPLE)];
        std::thread::scope(|scope| {
            for cache in caches.iter().cycle().take(4) {
                scope.spawn(|| {
                    for (path, expected) in paths.iter().zip(0..) {
                        assert_eq!(shade(cache.read(path).unwrap()), expected);
                    }
                });
            }
        });
        assert_eq!(fixture.cache_files().len(), 8);
    }
}
