//! Extracts encoded images from a request: the body itself, or the files of a form.

use axum::{
    body::Body,
    http::{HeaderMap, StatusCode, header},
};
use http_body_util::BodyExt;
use tokio::sync::OwnedSemaphorePermit;

use crate::{Options, admission::Permits, error::ApiError};

/// An encoded image and its file name in the form.
#[derive(Debug)]
pub struct Upload {
    pub name: Option<String>,
    pub bytes: Vec<u8>,
}

/// The images of a request, and the permit for their bytes.
#[derive(Debug)]
pub struct Uploads {
    pub files: Vec<Upload>,
    pub permit: Option<OwnedSemaphorePermit>,
}

/// Reads a request body.
///
/// # Errors
/// 400 for a malformed form or one without an image, 413 for a body that is too large, 415 for a content type that is
/// not an image, 503 if too many bytes of bodies are in flight.
pub async fn read(headers: &HeaderMap, body: Body, options: &Options, room: &Permits) -> Result<Uploads, ApiError> {
    let kind = headers.get(header::CONTENT_TYPE).map(|kind| kind.to_str().unwrap_or("?").to_ascii_lowercase());
    let essence = kind.as_deref().map(|kind| kind.split(';').next().unwrap_or_default().trim().to_string());
    let is_form = essence.as_deref() == Some("multipart/form-data");
    match essence.as_deref() {
        // Without a specific type the format is detected from the content.
        None | Some("application/octet-stream" | "application/x-www-form-urlencoded") => {}
        Some(kind) if is_form || kind.starts_with("image/") => {}
        Some(kind) => {
            let message = format!(
                "content type {kind} is not an image; send image/…, application/octet-stream or multipart/form-data"
            );
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
        }
    }
    if let Some(encoding) = headers.get(header::CONTENT_ENCODING).filter(|encoding| *encoding != "identity") {
        let message =
            format!("content encoding {} is not supported; send the image as it is", encoding.to_str().unwrap_or("?"));
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    let (bytes, permit) = collect(headers, body, options, room).await?;
    if bytes.is_empty() {
        return Err(ApiError::bad_request("the body is empty; send an image, or a form with files"));
    }
    let files = match is_form {
        false => vec![Upload { name: None, bytes }],
        true => form(headers, &bytes, options).await?,
    };
    Ok(Uploads { files, permit })
}

/// Reads a whole body and takes permits for its bytes as they arrive: a declared length that is never sent takes none.
async fn collect(
    headers: &HeaderMap,
    mut body: Body,
    options: &Options,
    room: &Permits,
) -> Result<(Vec<u8>, Option<OwnedSemaphorePermit>), ApiError> {
    let limit = options.max_body;
    let too_large =
        || ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body exceeds the limit of {limit} bytes"));
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    let mut permit: Option<OwnedSemaphorePermit> = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ApiError::bad_request(format!("the body is incomplete: {error}")))?;
        let Some(data) = frame.data_ref() else { continue };
        if bytes.len() + data.len() > limit {
            return Err(too_large());
        }
        let more = room.take(data.len())?;
        match &mut permit {
            Some(permit) => permit.merge(more),
            None => permit = Some(more),
        }
        bytes.extend_from_slice(data);
    }
    Ok((bytes, permit))
}

/// Returns the files of a form; other fields are ignored.
async fn form(headers: &HeaderMap, bytes: &[u8], options: &Options) -> Result<Vec<Upload>, ApiError> {
    let broken = |error: multer::Error| ApiError::bad_request(format!("malformed form: {error}"));
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let boundary = multer::parse_boundary(kind).map_err(broken)?;
    let mut form = multer::Multipart::with_reader(bytes, boundary);
    let (mut files, mut others) = (Vec::new(), Vec::new());
    while let Some(field) = form.next_field().await.map_err(broken)? {
        let extended =
            field.headers().get(header::CONTENT_DISPOSITION).and_then(|value| extended_name(value.as_bytes()));
        let name = extended.or_else(|| field.file_name().map(str::to_string));
        if name.is_none() && field.content_type().is_none() {
            others.push(field.name().unwrap_or_default().to_string());
            continue;
        }
        if files.len() == options.max_images_per_request {
            let message = format!("a request may have at most {} images", options.max_images_per_request);
            return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message));
        }
        files.push(Upload { name, bytes: field.bytes().await.map_err(broken)?.to_vec() });
    }
    match (files.is_empty(), others.first()) {
        (false, _) => Ok(files),
        (true, None) => Err(ApiError::bad_request("the form has no files")),
        (true, Some(other)) => Err(ApiError::bad_request(format!(
            "the form has no files: the field `{other}` has neither a file name nor a content type (curl: -F {other}=@FILE)"
        ))),
    }
}

/// The file name in the extended notation of RFC 5987, which some clients use for names that are not ASCII:
/// `filename*=UTF-8''h%C3%BCnd.png`.
fn extended_name(disposition: &[u8]) -> Option<String> {
    let disposition = std::str::from_utf8(disposition).ok()?;
    let mut parameters = disposition.split(';').skip(1).filter_map(|parameter| parameter.split_once('='));
    let (_, value) = parameters.find(|(key, _)| key.trim().eq_ignore_ascii_case("filename*"))?;
    let mut parts = value.trim().splitn(3, '\'');
    let (charset, _language, name) = (parts.next()?, parts.next()?, parts.next()?);
    let (mut bytes, mut rest) = (Vec::with_capacity(name.len()), name.as_bytes());
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let code = (byte == b'%').then(|| std::str::from_utf8(after.get(..2)?).ok()).flatten();
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(decoded) => {
                bytes.push(decoded);
                rest = &after[2..];
            }
            None => bytes.push(byte),
        }
    }
    match charset.eq_ignore_ascii_case("utf-8") {
        true => String::from_utf8(bytes).ok(),
        // The other charset of the RFC, whose bytes are the first characters of Unicode.
        false => Some(bytes.into_iter().map(char::from).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extended_file_names_are_decoded() {
        let name = |value: &str| extended_name(format!("form-data; name=\"f\"; {value}").as_bytes());
        assert_eq!(name("filename*=UTF-8''h%C3%BCnd%20%E7%8A%AC.png").as_deref(), Some("hünd 犬.png"));
        assert_eq!(name("filename=\"h.png\"; FileName*=utf-8'de'h%c3%bc.png").as_deref(), Some("hü.png"));
        assert_eq!(name("filename*=iso-8859-1''%FC.png").as_deref(), Some("ü.png"));
        assert_eq!(name("filename*=UTF-8''100%.png").as_deref(), Some("100%.png"));
        assert_eq!(name("filename*=UTF-8''%FF"), None, "no UTF-8");
        assert_eq!(name("filename=\"a.png\""), None);
    }
}
