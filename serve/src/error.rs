//! The errors of a server that cannot run, and error responses, which are always JSON:
//! `{"error": {"status", "message"}}`.

use std::{io, net::SocketAddr};

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use crate::RejectReason;

/// The error of an engine that cannot run its network. It is logged; the response says only that the network failed.
pub type EngineError = Box<dyn std::error::Error + Send + Sync>;

/// The error of a server that cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be bound.
    #[error("cannot listen on {addr} ({hint}; port 0 takes a free one)")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// A possible cause.
        hint: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// A part of the system that the server needs is not available.
    #[error("cannot {action}")]
    System {
        /// The action that failed.
        action: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// An allowed origin that no browser sends.
    #[error("`{origin}` is no origin; expected a scheme and a host, such as https://example.org, or `*`")]
    Origin {
        /// The origin.
        origin: String,
    },
    /// An allowed host that no client sends.
    #[error("`{host}` is no host name; expected a name without scheme, port and path, such as example.org")]
    Host {
        /// The host.
        host: String,
    },
}

/// An error response: a status and a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    pub status: StatusCode,
    pub message: String,
}

/// The JSON form of an [`ApiError`].
#[derive(Debug, Serialize)]
pub struct ErrorBody<'a> {
    status: u16,
    message: &'a str,
}

impl ApiError {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// No permit is available; retrying may succeed.
    pub fn busy() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the server is busy: try again in a second")
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub fn body(&self) -> ErrorBody<'_> {
        ErrorBody { status: self.status.as_u16(), message: &self.message }
    }
}

impl From<RejectReason> for ApiError {
    fn from(refusal: RejectReason) -> Self {
        match refusal {
            RejectReason::TooLarge(message) => Self::new(StatusCode::PAYLOAD_TOO_LARGE, message),
            RejectReason::Unsupported(message) => Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message),
            RejectReason::Damaged(message) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, message),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, json(&serde_json::json!({ "error": self.body() }))).into_response();
        let headers = response.headers_mut();
        match self.status {
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            // The rest of the body is not read, so the connection cannot be reused.
            StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}

/// Returns a value as a JSON response.
pub fn json(value: &impl Serialize) -> Response {
    match serde_json::to_string(value) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
