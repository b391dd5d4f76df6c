//! Multipart forms: `curl -F image=@street.jpg`.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::{FutureExt, stream};
use multer::{Constraints, Multipart};

use super::error::RequestError;
use super::parameters::Parameters;

/// A form with an image.
#[derive(Clone, Debug, PartialEq)]
pub struct Form {
    /// The image file.
    pub image: Bytes,
    /// The other fields.
    pub parameters: Parameters,
}

/// The boundary that a `Content-Type` declares, if it is that of a form.
///
/// # Errors
/// 400 if it is that of a form without a boundary.
pub fn form_boundary(content_type: Option<&str>) -> Result<Option<String>, RequestError> {
    let is_form = |text: &&str| text.trim_start().to_ascii_lowercase().starts_with("multipart/form-data");
    let Some(content_type) = content_type.filter(is_form) else { return Ok(None) };
    let boundary = multer::parse_boundary(content_type);
    boundary.map(Some).map_err(|error| RequestError::bad(format!("`Content-Type: {content_type}`: {error}")))
}

impl Form {
    /// Parses a form whose field `image` is the image; other fields are parameters.
    ///
    /// # Errors
    /// 400 for damaged forms, and as [`Parameters::set`].
    pub fn parse(body: Bytes, boundary: &str, mut parameters: Parameters) -> Result<Self, RequestError> {
        let parts = stream::iter([Ok::<_, Infallible>(body)]);
        let mut form = Multipart::with_constraints(parts, boundary, Constraints::new());
        // The bytes are all there, so nothing waits.
        let parsed = async {
            let mut image = None;
            while let Some(field) = form.next_field().await.map_err(damaged)? {
                let name = field.name().unwrap_or_default().to_owned();
                if name == "image" || field.file_name().is_some() {
                    let previous = image.replace(field.bytes().await.map_err(damaged)?);
                    if previous.is_some() {
                        let message =
                            "the form has more than one image; send a request for each, or POST /v2/models/MODEL/infer";
                        return Err(RequestError::bad(message));
                    }
                } else {
                    parameters.set(&name, &field.text().await.map_err(damaged)?)?;
                }
            }
            let image = image.ok_or_else(|| RequestError::bad("the form has no field `image` with an image file"))?;
            Ok(Self { image, parameters })
        };
        parsed.now_or_never().unwrap_or_else(|| Err(RequestError::bad("the form is incomplete")))
    }
}

fn damaged(error: multer::Error) -> RequestError {
    RequestError::bad(format!("the form cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str) -> Result<Form, RequestError> {
        Form::parse(Bytes::from(body.replace('\n', "\r\n")), "b", Parameters::default())
    }

    #[test]
    fn the_image_and_parameters_of_a_form_are_read() {
        let form = "--b\nContent-Disposition: form-data; name=\"min_score\"\n\n0.5\n\
                    --b\nContent-Disposition: form-data; name=\"image\"; filename=\"x.jpg\"\nContent-Type: image/jpeg\n\nJPEG\n--b--\n";
        let form = parse(form).unwrap();
        assert_eq!((&form.image[..], form.parameters.min_score), (&b"JPEG"[..], Some(0.5)));
    }

    #[test]
    fn bad_forms_are_errors() {
        let image = "--b\nContent-Disposition: form-data; name=\"image\"; filename=\"x.jpg\"\n\nJPEG\n";
        for (body, part) in [
            ("--b--\n".to_owned(), "no field `image`"),
            (format!("{image}{image}--b--\n"), "more than one image"),
            (image.to_owned(), "cannot be read"),
            (String::new(), "cannot be read"),
            (
                "--b\nContent-Disposition: form-data; name=\"score\"\n\n1\n--b--\n".to_owned(),
                "unknown parameter `score`",
            ),
        ] {
            let error = parse(&body).unwrap_err();
            assert!(error.status == 400 && error.message.contains(part), "{body:?}: {error}");
        }
    }

    #[test]
    fn a_form_needs_a_boundary() {
        assert_eq!(form_boundary(None), Ok(None));
        assert_eq!(form_boundary(Some("image/jpeg")), Ok(None));
        assert_eq!(form_boundary(Some("multipart/form-data; boundary=b")), Ok(Some("b".to_owned())));
        assert_eq!(form_boundary(Some("multipart/form-data")).unwrap_err().status, 400);
    }
}
