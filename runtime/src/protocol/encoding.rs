//! Compressed request bodies.

use std::io::Read;

use flate2::read::{MultiGzDecoder, ZlibDecoder};
use hyper::StatusCode;

use super::error::RequestError;

/// How a body is compressed: the header `Content-Encoding`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// gzip.
    Gzip,
    /// zlib, which HTTP calls deflate.
    Deflate,
}

/// Bytes that are decompressed at a time.
const STEP: usize = 1 << 16;

impl Encoding {
    /// The encoding that the header names; `None` for uncompressed bodies.
    ///
    /// # Errors
    /// 415 for other encodings.
    pub fn parse(header: Option<&str>) -> Result<Option<Self>, RequestError> {
        let Some(name) = header else { return Ok(None) };
        match name.trim().to_ascii_lowercase().as_str() {
            "" | "identity" => Ok(None),
            "gzip" | "x-gzip" => Ok(Some(Self::Gzip)),
            "deflate" => Ok(Some(Self::Deflate)),
            _ => {
                let message = format!("content encoding `{name}` is not supported; send gzip, deflate or none");
                Err(RequestError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message))
            }
        }
    }

    /// Decompresses a body to at most `max_bytes`. Calls `reserve` before memory is allocated, with its number of bytes.
    ///
    /// # Errors
    /// 400 for damaged bodies, 413 for larger ones, and errors of `reserve`.
    pub fn decompress(
        self,
        body: &[u8],
        max_bytes: u64,
        reserve: impl FnMut(usize) -> Result<(), RequestError>,
    ) -> Result<Vec<u8>, RequestError> {
        match self {
            Self::Gzip => read(MultiGzDecoder::new(body), max_bytes, reserve),
            Self::Deflate => read(ZlibDecoder::new(body), max_bytes, reserve),
        }
    }
}

fn read(
    mut decoder: impl Read,
    max_bytes: u64,
    mut reserve: impl FnMut(usize) -> Result<(), RequestError>,
) -> Result<Vec<u8>, RequestError> {
    let mut bytes = Vec::new();
    let mut step = vec![0; STEP];
    loop {
        let read = decoder
            .read(&mut step)
            .map_err(|error| RequestError::bad(format!("the body cannot be decompressed: {error}")))?;
        if read == 0 {
            return Ok(bytes);
        }
        let length = bytes.len() + read;
        if length as u64 > max_bytes {
            let message = format!("the decompressed body exceeds the limit of {max_bytes} bytes (--max-bytes)");
            return Err(RequestError::too_large(message));
        }
        if length > bytes.capacity() {
            let additional = length.next_power_of_two() - bytes.capacity();
            reserve(additional)?;
            bytes.reserve_exact(length.next_power_of_two() - bytes.len());
        }
        bytes.extend_from_slice(&step[..read]);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{GzEncoder, ZlibEncoder};

    use super::*;

    #[test]
    fn compressed_bodies_are_read_within_the_limit() {
        let content: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&content).unwrap();
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
        zlib.write_all(&content).unwrap();
        for (encoding, body) in [(Encoding::Gzip, gzip.finish().unwrap()), (Encoding::Deflate, zlib.finish().unwrap())]
        {
            let mut reserved = 0;
            let reserve = |bytes| {
                reserved += bytes;
                Ok(())
            };
            assert!(encoding.decompress(&body, 1 << 21, reserve).unwrap() == content);
            assert!((content.len()..=2 * content.len()).contains(&reserved), "{reserved}");
            assert_eq!(encoding.decompress(&body, 1 << 20, |_| Ok(())).unwrap_err().status, 413);
            let full = |_| Err(RequestError::busy("full"));
            assert_eq!(encoding.decompress(&body, 1 << 21, full).unwrap_err().status, 429);
            assert_eq!(encoding.decompress(&body[..body.len() / 2], 1 << 21, |_| Ok(())).unwrap_err().status, 400);
            assert_eq!(encoding.decompress(b"no image", 1 << 21, |_| Ok(())).unwrap_err().status, 400);
        }
    }

    #[test]
    fn unknown_encodings_are_named() {
        assert_eq!(Encoding::parse(None), Ok(None));
        assert_eq!(Encoding::parse(Some("GZIP")), Ok(Some(Encoding::Gzip)));
        assert_eq!(Encoding::parse(Some("deflate")), Ok(Some(Encoding::Deflate)));
        let error = Encoding::parse(Some("br")).unwrap_err();
        assert!(error.status == 415 && error.message.contains("`br`"), "{error}");
    }
}
