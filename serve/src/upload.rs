//! From a request's body to encoded images: the body itself, or the files of a form.

use axum::{
    body::Body,
    http::{HeaderMap, StatusCode, header},
};
use http_body_util::BodyExt;
use tokio::sync::OwnedSemaphorePermit;

use crate::{Options, admission::Places, error::Failure};

/// An encoded image, with the name that the form gives it.
#[derive(Debug)]
pub struct Upload {
    pub name: Option<String>,
    pub bytes: Vec<u8>,
}

/// The images of a request, and the place that their bytes take.
#[derive(Debug)]
pub struct Uploads {
    pub files: Vec<Upload>,
    pub place: Option<OwnedSemaphorePermit>,
}

/// Reads a body.
///
/// # Errors
/// 400 for a broken form or none of an image, 413 for too much, 415 for a type that is no image, 503 where the bodies of
/// all requests leave no room.
pub async fn read(headers: &HeaderMap, body: Body, options: &Options, room: &Places) -> Result<Uploads, Failure> {
    let kind = headers.get(header::CONTENT_TYPE).map(|kind| kind.to_str().unwrap_or("?").to_ascii_lowercase());
    let essence = kind.as_deref().map(|kind| kind.split(';').next().unwrap_or_default().trim().to_string());
    let is_form = essence.as_deref() == Some("multipart/form-data");
    match essence.as_deref() {
        // Without a type the content tells.
        None | Some("application/octet-stream" | "application/x-www-form-urlencoded") => {}
        Some(kind) if is_form || kind.starts_with("image/") => {}
        Some(kind) => {
            let message = format!("{kind} is no image: send image/…, application/octet-stream or multipart/form-data");
            return Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
        }
    }
    let (bytes, place) = collect(headers, body, options, room).await?;
    if bytes.is_empty() {
        return Err(Failure::bad_request("the body is empty: send an image, or a form with files"));
    }
    let files = match is_form {
        false => vec![Upload { name: None, bytes }],
        true => form(headers, &bytes, options).await?,
    };
    Ok(Uploads { files, place })
}

/// All of a body, its room taken as it comes: what is announced but never sent takes none.
async fn collect(
    headers: &HeaderMap,
    mut body: Body,
    options: &Options,
    room: &Places,
) -> Result<(Vec<u8>, Option<OwnedSemaphorePermit>), Failure> {
    let limit = options.max_body;
    let too_large = || Failure::new(StatusCode::PAYLOAD_TOO_LARGE, format!("a body may have {limit} bytes, not more"));
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    let mut place: Option<OwnedSemaphorePermit> = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failure::bad_request(format!("the body breaks off: {error}")))?;
        let Some(data) = frame.data_ref() else { continue };
        if bytes.len() + data.len() > limit {
            return Err(too_large());
        }
        let more = room.take(data.len())?;
        match &mut place {
            Some(place) => place.merge(more),
            None => place = Some(more),
        }
        bytes.extend_from_slice(data);
    }
    Ok((bytes, place))
}

/// The files of a form; fields that are no files are passed over.
async fn form(headers: &HeaderMap, bytes: &[u8], options: &Options) -> Result<Vec<Upload>, Failure> {
    let broken = |error: multer::Error| Failure::bad_request(format!("the form is broken: {error}"));
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let boundary = multer::parse_boundary(kind).map_err(broken)?;
    let mut form = multer::Multipart::with_reader(bytes, boundary);
    let mut files = Vec::new();
    while let Some(field) = form.next_field().await.map_err(broken)? {
        let name = field.file_name().map(str::to_string);
        if name.is_none() && field.content_type().is_none() {
            continue;
        }
        if files.len() == options.max_images_per_request {
            let message = format!("a request may have {} images, not more", options.max_images_per_request);
            return Err(Failure::new(StatusCode::PAYLOAD_TOO_LARGE, message));
        }
        files.push(Upload { name, bytes: field.bytes().await.map_err(broken)?.to_vec() });
    }
    match files.is_empty() {
        true => Err(Failure::bad_request("the form has no file")),
        false => Ok(files),
    }
}
