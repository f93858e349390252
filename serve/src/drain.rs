//! Reads what is left of a rejected request's body.
//!
//! A connection that is closed with unread data is reset, and the reset can discard the response that the client has not
//! read yet: many clients, and browsers, write the whole body before they read. They would see a broken connection in
//! place of the status and its reason.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::Request,
    http::{StatusCode, header},
    middleware::Next,
    response::Response,
};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::timeout;

/// The most bytes that are read and discarded.
const MAX_BYTES: usize = 64 << 20;

/// The longest time for that.
const MAX_TIME: Duration = Duration::from_secs(10);

/// The longest wait for the next bytes.
const MAX_PAUSE: Duration = Duration::from_millis(500);

/// Passes a request on, and discards the rest of its body before a response that rejects it is sent.
pub async fn rejected(request: Request, next: Next) -> Response {
    // Such a client waits for permission to send its body.
    let waits = request.headers().contains_key(header::EXPECT);
    let (parts, body) = request.into_parts();
    let body = Shared(Arc::new(Mutex::new(body)));
    let response = next.run(Request::from_parts(parts, Body::new(body.clone()))).await;
    let status = response.status();
    let is_rejected = status.is_client_error() || status == StatusCode::SERVICE_UNAVAILABLE;
    if is_rejected && status != StatusCode::REQUEST_TIMEOUT && !waits {
        let _ = timeout(MAX_TIME, discard(body)).await;
    }
    response
}

async fn discard(mut body: Shared) {
    let mut bytes = 0;
    while let Ok(Some(Ok(frame))) = timeout(MAX_PAUSE, body.frame()).await {
        bytes += frame.data_ref().map_or(0, Bytes::len);
        if bytes > MAX_BYTES {
            break;
        }
    }
}

/// A body that remains when its reader has dropped it.
#[derive(Clone)]
struct Shared(Arc<Mutex<Body>>);

impl HttpBody for Shared {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let mut body = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Pin::new(&mut *body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).size_hint()
    }
}
