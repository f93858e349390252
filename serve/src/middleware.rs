//! Middleware: host and origin, rate limit, bearer token, the body of errors, headers of all responses, and a log line and
//! metrics for each request.
//!
//! The timeout is tower-http's. Its layers for a bearer token and for request IDs are not used: the former does not compare in
//! constant time and accepts `Bearer` in one case alone, the latter keeps any ID that a client sends.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use crate::{error::ApiError, state::AppState};

/// The peer address of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// Rejects requests of other sites' pages, and those that reach the server by a foreign host name.
pub async fn access<E: Send + Sync + 'static>(
    State(state): State<Arc<AppState<E>>>,
    request: Request,
    next: Next,
) -> Response {
    match state.access.check(request.uri(), request.headers(), request.method() == Method::POST) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

pub async fn rate<E: Send + Sync + 'static>(
    State(state): State<Arc<AppState<E>>>,
    request: Request,
    next: Next,
) -> Response {
    let address = request.extensions().get::<Peer>().map(|peer| peer.0.ip());
    match state.options.rate_limit {
        Some(rate) if !state.rates.allows(rate, address, Instant::now()) => {
            let message = format!("more than {rate} requests per second from one address");
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, message).into_response()
        }
        _ => next.run(request).await,
    }
}

pub async fn token<E: Send + Sync + 'static>(
    State(state): State<Arc<AppState<E>>>,
    request: Request,
    next: Next,
) -> Response {
    let Some(token) = &state.options.token else { return next.run(request).await };
    let given = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
    let (scheme, given) = given.split_at(given.len().min(7));
    match scheme.eq_ignore_ascii_case(b"bearer ") && equal(given, token.as_bytes()) {
        true => next.run(request).await,
        false => {
            let message = "a bearer token is required: Authorization: Bearer …";
            ApiError::new(StatusCode::UNAUTHORIZED, message).into_response()
        }
    }
}

/// Compares two tokens in a time that does not depend on where they differ.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

/// Gives error responses of layers and extractors, which have a status alone or plain text, the JSON body of all others.
pub async fn error_body<E: Send + Sync + 'static>(
    State(state): State<Arc<AppState<E>>>,
    response: Response,
) -> Response {
    let status = response.status();
    let is_error = status.is_client_error() || status.is_server_error();
    if !is_error || response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json") {
        return response;
    }
    let message = match status {
        StatusCode::REQUEST_TIMEOUT => format!("no response within {} s", state.options.request_timeout.as_secs_f64()),
        _ => status.canonical_reason().unwrap_or("the request failed").to_ascii_lowercase(),
    };
    ApiError::new(status, message).into_response()
}

const CORP: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// Records a request in the metrics and the log: `request method=POST path=/v1/classify status=200 ms=12.3 …`.
pub async fn record<E: Send + Sync + 'static>(
    State(state): State<Arc<AppState<E>>>,
    request: Request,
    next: Next,
) -> Response {
    let start = Instant::now();
    let method = request.method().to_string();
    let path = request.uri().path().to_string();
    // Unknown paths and methods share a label, so that clients cannot grow the table of metrics.
    let route = request.extensions().get::<MatchedPath>().map_or("other", |path| path.as_str()).to_string();
    let known = matches!(method.as_str(), "GET" | "POST" | "HEAD" | "OPTIONS" | "PUT" | "DELETE" | "PATCH");
    let peer = request.extensions().get::<Peer>().map_or("-".to_string(), |peer| peer.0.to_string());
    let length = request.headers().get(header::CONTENT_LENGTH);
    let bytes = length.and_then(|length| length.to_str().ok()).unwrap_or("-").to_string();
    let id = request_id(&request);
    let mut response = next.run(request).await;
    let seconds = start.elapsed().as_secs_f64();
    let status = response.status().as_u16();
    state.metrics.request(if known { &method } else { "other" }, &route, status, seconds);
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert("x-request-id", id);
    }
    // No browser takes an answer for something else, or shows it within another site's page.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CORP, HeaderValue::from_static("same-origin"));
    if state.closing.load(Ordering::Acquire) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    log::info!(
        target: "serve",
        method = shortened(&method), path = shortened(&path), status, ms = (1e4 * seconds).round() / 10.0,
        bytes = shortened(&bytes), peer:%, id:%;
        "request"
    );
    response
}

/// Returns the client's request ID if it is short and plain, else a new one.
fn request_id(request: &Request) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let own = request.headers().get("x-request-id").and_then(|id| id.to_str().ok());
    let plain = |id: &&str| (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    own.filter(plain).map_or_else(
        || {
            let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_micros() as u64);
            format!("{time:x}-{:x}", COUNT.fetch_add(1, Ordering::Relaxed))
        },
        str::to_string,
    )
}

/// Returns at most the first 200 characters of a value of a log line.
fn shortened(value: &str) -> &str {
    value.char_indices().nth(200).map_or(value, |(end, _)| &value[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_compared_and_log_values_are_shortened() {
        assert!(equal(b"abc", b"abc") && !equal(b"abc", b"abd") && !equal(b"abc", b"ab"));
        assert_eq!(shortened("/v1/model"), "/v1/model");
        assert_eq!(shortened(&"ü".repeat(300)), "ü".repeat(200));
    }
}
