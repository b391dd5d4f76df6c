//! Arbitrary requests to `runtime serve`: a method, a URL, the headers that matter and a body give a request or an error. The
//! first line is `METHOD URL`, the next ones are headers; the body follows an empty line.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use runtime::protocol::{
    Encoding, Form, HEADER_LENGTH, ImageResult, InferRequest, InferResponse, ModelRoute, Parameters, RequestError,
    Route, form_boundary,
};

const MAX_IMAGES: usize = 64;

const MAX_BYTES: u64 = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    let end = bytes.windows(2).position(|window| window == b"\n\n").unwrap_or(bytes.len());
    let (Ok(head), body) = (std::str::from_utf8(&bytes[..end]), bytes.get(end + 2..).unwrap_or_default()) else {
        return;
    };
    let mut lines = head.lines();
    let (method, url) = lines.next().and_then(|line| line.split_once(' ')).unwrap_or_default();
    let Ok(method) = method.parse() else { return };
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    let header = |name: &str| lines.clone().filter_map(|line| line.split_once(": ")).find(|(found, _)| *found == name);
    let header = |name: &str| header(name).map(|(_, value)| value);
    match parse(&method, path, query, header, body) {
        Ok(()) => {}
        Err(error) => {
            assert!(error.status.is_client_error(), "{error:?}");
            assert!(!error.message.is_empty());
        }
    }
});

fn parse<'a>(
    method: &hyper::Method,
    path: &str,
    query: &str,
    header: impl Fn(&str) -> Option<&'a str>,
    body: &[u8],
) -> Result<(), RequestError> {
    let route = Route::parse(method, path)?;
    let body = match Encoding::parse(header("content-encoding"))? {
        Some(encoding) => Bytes::from(encoding.decompress(body, MAX_BYTES, |_| Ok(()))?),
        None => Bytes::copy_from_slice(body),
    };
    match route {
        Route::Detect => {
            let parameters = Parameters::from_query(query)?;
            if let Some(boundary) = form_boundary(header("content-type"))? {
                let form = Form::parse(body.clone(), &boundary, parameters)?;
                assert!(form.image.len() <= body.len());
            }
        }
        Route::Model { route: ModelRoute::Infer, .. } => {
            let request = InferRequest::parse(&body, header(HEADER_LENGTH), MAX_IMAGES)?;
            let sum: usize = request.images.iter().map(Bytes::len).sum();
            assert!((1..=MAX_IMAGES).contains(&request.images.len()) && sum <= body.len());
            let results = vec![ImageResult::default(); request.images.len()];
            let response = InferResponse::new(["m", "1"], request.id.as_deref(), &request.outputs, &results);
            let json = &response.body[..response.header_length.unwrap_or(response.body.len())];
            serde_json::from_slice::<serde_json::Value>(json).expect("the response is JSON");
        }
        _ => {}
    }
    Ok(())
}
