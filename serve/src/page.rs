//! The web page: three files without external resources.

use axum::{
    http::{HeaderName, header},
    response::{IntoResponse, Response},
};

/// The content security policy: the page may load its own files only.
const POLICY: &str = "default-src 'none'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'; \
                      connect-src 'self'; media-src 'self' blob:; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

pub async fn html() -> Response {
    file("text/html; charset=utf-8", include_str!("page/index.html"))
}

pub async fn css() -> Response {
    file("text/css; charset=utf-8", include_str!("page/page.css"))
}

pub async fn js() -> Response {
    file("text/javascript; charset=utf-8", include_str!("page/page.js"))
}

fn file(kind: &'static str, content: &'static str) -> Response {
    let headers: [(HeaderName, &str); 4] = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, content).into_response()
}
