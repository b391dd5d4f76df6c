//! Decoded images in files.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use image::RgbImage;
use runtime::image_file::{self, ImageFileError};

use crate::progress::say;

/// Extension of the files.
const EXTENSION: &str = "pixels";

/// The beginning of every file. Another version of the program may decode otherwise.
const MARK: &str = concat!("decoded by trainer ", env!("CARGO_PKG_VERSION"));

/// After this time an unfinished file is nobody's. Writing one takes seconds, but the folder's clock may be another
/// machine's, and a run that loses a file while it writes it keeps no more.
const ABANDONED: Duration = Duration::from_secs(24 * 60 * 60);

/// A folder with a file for every image, as many as fit. Runs that use it at the same time each count what was there when
/// they began, and what they add.
#[derive(Debug)]
pub(super) struct DiskCache {
    folder: PathBuf,
    /// Bytes that the folder's files may have in all.
    limit: u64,
    /// Bytes that they have.
    used: AtomicU64,
    /// Whether it was said that an image did not fit.
    full: AtomicBool,
    /// Whether writing has failed, after which it is not tried again.
    broken: AtomicBool,
}

impl DiskCache {
    /// Makes the folder, or counts what is in it. Unfinished files go when they are a day old, since another run may be
    /// writing younger ones; the oldest finished files go if all together exceed the limit.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn open(folder: &Path, limit: u64) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let now = SystemTime::now();
        let mut used = 0;
        let mut finished = Vec::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let Some(state) = State::of(&path) else { continue };
            // Another run may just have removed it.
            let Ok(metadata) = fs::metadata(&path) else { continue };
            let (modified, length) = (metadata.modified()?, metadata.len());
            match state {
                State::Finished => finished.push((modified, length, path)),
                State::Unfinished => {
                    let abandoned = now.duration_since(modified).is_ok_and(|age| age > ABANDONED);
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
        let [full, broken] = [false, false].map(AtomicBool::new);
        Ok(Self { folder: folder.to_owned(), limit, used: used.into(), full, broken })
    }

    pub(super) fn read(&self, path: &Path) -> Result<RgbImage, ImageFileError> {
        // Looked at before it is decoded: if it changes in between, the next reader sees that it has.
        let Ok(original) = Original::of(path) else { return image_file::read(path) };
        let kept = self.folder.join(original.file_name());
        if let Some(image) = load(&kept, &original.key) {
            return Ok(image);
        }
        let image = image_file::read(path)?;
        if !self.broken.load(Ordering::Relaxed) && self.reserve(&kept, &original.key, &image) {
            self.store(&kept, &original.key, &image);
        }
        Ok(image)
    }

    /// Whether there is room for an image. If so, it is taken.
    fn reserve(&self, kept: &Path, key: &[u8], image: &RgbImage) -> bool {
        let more = (key.len() + Header::LENGTH + image.as_raw().len()) as u64;
        let less = fs::metadata(kept).map_or(0, |replaced| replaced.len());
        let with = |used: u64| Some(used.saturating_sub(less) + more).filter(|used| *used <= self.limit);
        let fits = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, with).is_ok();
        if !fits && !self.full.swap(true, Ordering::Relaxed) {
            say(&format!(
                "the cache of decoded images in {} is full; the others are decoded every time, unless you raise \
                 `data.cache.max_gigabytes`, or remove the folder if it is of other data",
                self.folder.display()
            ));
        }
        fits
    }

    fn store(&self, kept: &Path, key: &[u8], image: &RgbImage) {
        if let Err(error) = save(kept, key, image)
            && !self.broken.swap(true, Ordering::Relaxed)
        {
            say(&format!("warning: can't keep decoded images in {}: {error}; no more are kept", self.folder.display()));
        }
    }
}

/// What a file of this cache is.
#[derive(Clone, Copy)]
enum State {
    Finished,
    /// Being written, or left when a run was killed.
    Unfinished,
}

impl State {
    /// That of a file with a name that this cache gives: 16 hexadecimal digits and the extension, or that of an unfinished
    /// file. Nothing else is ever removed.
    fn of(path: &Path) -> Option<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let (state, name) = match name.strip_prefix('.') {
            Some(partial) => (Self::Unfinished, partial.strip_suffix(".partial")?.rsplit_once('.')?.0),
            None => (Self::Finished, &*name),
        };
        let digits = name.strip_suffix(EXTENSION)?.strip_suffix('.')?;
        (digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(state)
    }
}

/// An image file as it is now.
struct Original {
    path: PathBuf,
    /// Says which file it is, of what length and of when: what it is decoded to is another if this is.
    key: Vec<u8>,
}

impl Original {
    fn of(path: &Path) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let metadata = fs::metadata(&path)?;
        let modified = metadata.modified()?.duration_since(UNIX_EPOCH).map_err(io::Error::other)?.as_nanos();
        let mut key = format!("{MARK} from {} bytes of {modified}: ", metadata.len()).into_bytes();
        key.extend(path.as_os_str().as_bytes());
        Ok(Self { path, key })
    }

    /// A name for its path alone, so that a changed image replaces what it was. By FNV-1a, which stays the same from one
    /// version of the program to the next. <https://www.rfc-editor.org/rfc/rfc9923>
    fn file_name(&self) -> String {
        let bytes = self.path.as_os_str().as_bytes();
        let hash = bytes
            .iter()
            .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
        format!("{hash:016x}.{EXTENSION}")
    }
}

/// What stands between key and pixels.
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
            [0, 4, 8].map(|at| u32::from_le_bytes(std::array::from_fn(|index| bytes[at + index])));
        Self { width, height, checksum }
    }
}

/// The image in a file of this cache; nothing if there is none, or it is of another original, short or damaged.
fn load(kept: &Path, key: &[u8]) -> Option<RgbImage> {
    let mut file = File::open(kept).ok()?;
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
    // Before memory is taken for what a damaged file claims to hold.
    if u128::from(pixels) != 3 * u128::from(width) * u128::from(height) {
        return None;
    }
    let mut pixels = vec![0; pixels as usize];
    file.read_exact(&mut pixels).ok()?;
    if crc32c::crc32c(&pixels) == checksum { RgbImage::from_raw(width, height, pixels) } else { None }
}

/// Writes an image, whole or not at all. Without waiting for the disk: after a crash the checksum tells what is lost.
fn save(kept: &Path, key: &[u8], image: &RgbImage) -> io::Result<()> {
    let name = kept.file_name().unwrap_or_default().to_string_lossy();
    let folder = kept.parent().unwrap_or(Path::new("."));
    let file = tempfile::Builder::new()
        .prefix(&format!(".{name}."))
        .suffix(".partial")
        // Other users of the data may use the cache too, if the umask lets them.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)
        // Its own message names the hidden file.
        .map_err(|error| io::Error::from(error.kind()))?;
    let mut content = file.as_file();
    content.write_all(key)?;
    content.write_all(&Header::of(image).to_bytes())?;
    content.write_all(image.as_raw())?;
    file.persist(kept)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use image::Rgb;
    use tempfile::TempDir;

    use super::*;

    /// Room for everything.
    const ROOMY: u64 = 1 << 20;

    /// A folder with images, and one for the cache.
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

        /// An image of 8x8 pixels of one shade; as BMP, whose files have one length whatever they show.
        fn image(&self, name: &str, shade: u8) -> PathBuf {
            let path = self.0.path().join(name).with_extension("bmp");
            RgbImage::from_pixel(8, 8, Rgb([shade; 3])).save(&path).unwrap();
            path
        }

        /// The files of the cache, by name.
        fn kept(&self) -> Vec<PathBuf> {
            let mut files: Vec<_> = fs::read_dir(self.folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
            files.sort();
            files
        }

        /// The length of a file of the cache.
        fn length(&self) -> u64 {
            fs::metadata(&self.kept()[0]).unwrap().len()
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
    fn a_kept_image_is_not_decoded_again_in_this_run_or_the_next() {
        let fixture = Fixture::new();
        let path = fixture.image("a", 10);
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        let cache = fixture.cache(ROOMY);
        assert_eq!(shade(cache.read(&path).unwrap()), 10);
        // To path, length and date it is still the same.
        fixture.image("a", 20);
        touch(&path, modified);
        assert_eq!(shade(cache.read(&path).unwrap()), 10);
        assert_eq!(shade(fixture.cache(ROOMY).read(&path).unwrap()), 10);
    }

    #[test]
    fn a_changed_image_is_decoded_again_and_takes_the_place_of_what_it_was() {
        let fixture = Fixture::new();
        let path = fixture.image("a", 10);
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        let cache = fixture.cache(ROOMY);
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
        assert_eq!(fixture.kept().len(), 1);
        assert_eq!(cache.used.into_inner(), fixture.length());
    }

    #[test]
    fn images_of_one_name_in_two_folders_are_two() {
        let fixture = Fixture::new();
        for folder in ["x", "y"] {
            fs::create_dir(fixture.0.path().join(folder)).unwrap();
        }
        let paths = [fixture.image("x/a", 10), fixture.image("y/a", 20)];
        let cache = fixture.cache(ROOMY);
        for _ in 0..2 {
            assert_eq!(paths.each_ref().map(|path| shade(cache.read(path).unwrap())), [10, 20]);
        }
        assert_eq!(fixture.kept().len(), 2);
    }

    #[test]
    fn a_damaged_or_short_file_is_ignored_and_written_again() {
        let fixture = Fixture::new();
        let path = fixture.image("a", 10);
        let cache = fixture.cache(ROOMY);
        cache.read(&path).unwrap();
        let [kept] = fixture.kept().try_into().unwrap();
        let sound = fs::read(&kept).unwrap();
        let mut damaged: Vec<_> = (0..sound.len()).map(|length| sound[..length].to_vec()).collect();
        damaged.extend((0..sound.len()).map(|at| {
            let mut bytes = sound.clone();
            bytes[at] ^= 0x40;
            bytes
        }));
        damaged.push([&sound[..], b"more"].concat());
        for bytes in damaged {
            fs::write(&kept, &bytes).unwrap();
            assert_eq!(shade(cache.read(&path).unwrap()), 10);
            assert_eq!(fs::read(&kept).unwrap(), sound);
        }
    }

    #[test]
    fn the_limit_holds_from_run_to_run() {
        let fixture = Fixture::new();
        let paths = [("a", 10), ("b", 20), ("c", 30)].map(|(name, shade)| fixture.image(name, shade));
        fixture.cache(ROOMY).read(&paths[0]).unwrap();
        let limit = 2 * fixture.length() + 1;
        for _ in 0..3 {
            let cache = fixture.cache(limit);
            for (path, expected) in paths.iter().zip([10, 20, 30]) {
                assert_eq!(shade(cache.read(path).unwrap()), expected);
            }
            assert_eq!(fixture.kept().len(), 2);
            assert!(cache.full.into_inner());
        }
    }

    #[test]
    fn of_too_many_files_the_oldest_go_and_no_others() {
        let fixture = Fixture::new();
        let now = SystemTime::now();
        let cache = fixture.cache(ROOMY);
        let mut kept = Vec::new();
        for (name, minutes) in [("a", 10), ("b", 30), ("c", 20)] {
            let path = fixture.image(name, 10);
            cache.read(&path).unwrap();
            let file = fixture.folder().join(Original::of(&path).unwrap().file_name());
            touch(&file, now - Duration::from_secs(60 * minutes));
            kept.push(file);
        }
        let others = ["holiday.jpg", "0123.pixels", ".hidden", "0123456789abcdef.jpg"];
        for path in others.map(|name| fixture.folder().join(name)) {
            fs::write(&path, [0; 100]).unwrap();
            touch(&path, now - 2 * ABANDONED);
        }
        let length = fs::metadata(&kept[0]).unwrap().len();
        let cache = fixture.cache(2 * length);
        assert_eq!(cache.used.into_inner(), 2 * length);
        assert_eq!(kept.iter().map(|path| path.exists()).collect::<Vec<_>>(), [true, false, true]);
        assert!(others.iter().all(|name| fixture.folder().join(name).exists()));
    }

    #[test]
    fn what_is_unfinished_goes_after_a_day_and_not_before() {
        let fixture = Fixture::new();
        fixture.cache(ROOMY);
        let now = SystemTime::now();
        let paths = [now - 2 * ABANDONED, now - ABANDONED / 2, now + ABANDONED].map(|modified| {
            let place = fixture.kept().len();
            let path = fixture.folder().join(format!(".{place:016x}.pixels.abc123.partial"));
            fs::write(&path, [0; 100]).unwrap();
            touch(&path, modified);
            path
        });
        for limit in [ROOMY, 0] {
            let cache = fixture.cache(limit);
            assert_eq!(paths.each_ref().map(|path| path.exists()), [false, true, true], "limit {limit}");
            assert_eq!(cache.used.into_inner(), 200);
        }
    }

    #[test]
    fn when_writing_fails_reading_goes_on() {
        let fixture = Fixture::new();
        let paths = [fixture.image("a", 10), fixture.image("b", 20)];
        let cache = fixture.cache(ROOMY);
        fs::remove_dir(fixture.folder()).unwrap();
        for _ in 0..2 {
            assert_eq!(paths.each_ref().map(|path| shade(cache.read(path).unwrap())), [10, 20]);
        }
        assert!(cache.broken.into_inner());
    }

    #[test]
    fn threads_that_share_the_folder_read_what_is_right() {
        let fixture = Fixture::new();
        let paths: Vec<_> = (0..8).map(|index| fixture.image(&index.to_string(), index)).collect();
        let caches = [fixture.cache(ROOMY), fixture.cache(ROOMY)];
        std::thread::scope(|scope| {
            for cache in caches.iter().cycle().take(4) {
                scope.spawn(|| {
                    for (path, expected) in paths.iter().zip(0..) {
                        assert_eq!(shade(cache.read(path).unwrap()), expected);
                    }
                });
            }
        });
        assert_eq!(fixture.kept().len(), 8);
    }
}
