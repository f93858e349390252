//! Routes and handlers.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    Router,
    body::Body,
    extract::{DefaultBodyLimit, Query, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::{from_fn, from_fn_with_state, map_response_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use image::RgbImage;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower_http::{
    cors::{AllowOrigin, CorsLayer},
    timeout::TimeoutLayer,
};

use crate::{
    Engine, Options, drain,
    error::{self, ApiError},
    middleware, page,
    state::AppState,
    upload::{self, Uploads},
};

/// The routes of the API, as the OpenAPI document lists them.
pub const ROUTES: [(&str, &str); 7] = [
    ("post", "/v1/classify"),
    ("post", "/v1/explain"),
    ("get", "/v1/model"),
    ("get", "/healthz"),
    ("get", "/readyz"),
    ("get", "/metrics"),
    ("get", "/openapi.json"),
];

pub fn router<E: Engine>(state: Arc<AppState<E>>) -> Router {
    let interface = Router::new()
        .route("/v1/classify", post(classify::<E>))
        .route("/v1/explain", post(explain::<E>))
        .route("/v1/model", get(model::<E>))
        .layer(from_fn_with_state(Arc::clone(&state), middleware::token::<E>))
        .layer(from_fn_with_state(Arc::clone(&state), middleware::rate::<E>));
    let router = Router::new()
        .merge(interface)
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready::<E>))
        .route("/metrics", get(metrics::<E>))
        .route("/openapi.json", get(openapi))
        .route("/", get(page::html))
        .route("/page.css", get(page::css))
        .route("/page.js", get(page::js))
        .fallback(async || ApiError::new(StatusCode::NOT_FOUND, "no such path; see /openapi.json"))
        .method_not_allowed_fallback(async || {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed; see /openapi.json")
        })
        .layer(DefaultBodyLimit::disable()); // `upload` has its own.
    let router = match cors(&state.options) {
        Some(layer) => router.layer(layer),
        None => router,
    };
    router
        .layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, state.options.request_timeout))
        .layer(map_response_with_state(Arc::clone(&state), middleware::error_body::<E>))
        .layer(from_fn_with_state(Arc::clone(&state), middleware::access::<E>))
        .layer(from_fn_with_state(Arc::clone(&state), middleware::record::<E>))
        .layer(from_fn(drain::rejected))
        .with_state(state)
}

/// Returns the CORS layer for the configured origins, which [`Access`](crate::access::Access) has checked.
fn cors(options: &Options) -> Option<CorsLayer> {
    let origins: Vec<HeaderValue> = options.cors_origins.iter().filter_map(|origin| origin.parse().ok()).collect();
    let allowed = match options.cors_origins.iter().any(|origin| origin == "*") {
        true => AllowOrigin::any(),
        false if origins.is_empty() => return None,
        false => AllowOrigin::list(origins),
    };
    let exposed = ["x-class", "x-class-index", "x-probability", "x-request-id"];
    Some(
        CorsLayer::new()
            .allow_origin(allowed)
            .allow_methods([axum::http::Method::GET, axum::http::Method::POST])
            .allow_headers([header::AUTHORIZATION, header::CONTENT_TYPE])
            .expose_headers(exposed.map(axum::http::HeaderName::from_static)),
    )
}

/// The result of one image.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    name: Option<String>,
    #[serde(flatten)]
    outcome: Outcome<'a>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome<'a> {
    Top(Vec<Class<'a>>),
    Error(Value),
}

#[derive(Debug, Serialize)]
struct Class<'a> {
    class: &'a str,
    index: usize,
    probability: f64,
}

type Asked = Query<HashMap<String, String>>;

async fn classify<E: Engine>(State(state): State<Arc<AppState<E>>>, query: Asked, request: Request) -> Response {
    match classified(&state, &query, request).await {
        Ok(response) => response,
        Err(failure) => failure.into_response(),
    }
}

async fn classified<E: Engine>(
    state: &Arc<AppState<E>>,
    query: &Asked,
    request: Request,
) -> Result<Response, ApiError> {
    check_query(query, &["topk"])?;
    let k = match query.get("topk").map(|k| k.parse::<usize>()) {
        None => 5,
        Some(Ok(k)) if k > 0 => k,
        Some(_) => return Err(ApiError::bad_request("`topk` must be a number of at least 1")),
    };
    let (headers, body) = split(request);
    let Uploads { files, permit } = upload::read(&headers, body, &state.options, &state.bodies).await?;
    let count = files.len();
    let mut permits = state.images.take(count)?;
    // All images are decoded and run concurrently; results keep their order.
    let mut running = Vec::with_capacity(count);
    for file in files {
        let permit = permits.split(1).ok_or_else(ApiError::busy)?;
        let state = Arc::clone(state);
        running.push((file.name, tokio::spawn(async move { one(&state, file.bytes, permit).await })));
    }
    let mut watch = Abort(running.iter().map(|(_, task)| task.abort_handle()).collect());
    let mut outcomes = Vec::with_capacity(count);
    for (name, task) in running {
        let panicked = || ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "decoding failed; see the server's log");
        outcomes.push((name, task.await.unwrap_or_else(|_| Err(panicked()))));
    }
    watch.0.clear();
    drop(permit);
    for (_, outcome) in &outcomes {
        if let Err(failure) = outcome {
            state.metrics.refused(failure.status.as_u16());
        }
    }
    if let Some((_, Err(first))) = outcomes.iter().find(|(_, outcome)| outcome.is_err())
        && outcomes.iter().all(|(_, outcome)| outcome.is_err())
    {
        return Err(first.clone());
    }
    let classes = state.engine.classes();
    let answers: Vec<Answer<'_>> = outcomes
        .into_iter()
        .map(|(name, outcome)| {
            let outcome = match outcome {
                Ok(probabilities) => Outcome::Top(top(classes, &probabilities, k)),
                Err(failure) => Outcome::Error(json!(failure.body())),
            };
            Answer { name, outcome }
        })
        .collect();
    Ok(error::json(&json!({ "model": state.engine.name(), "results": answers })))
}

/// Aborts the tasks of a request whose client has disconnected.
struct Abort(Vec<tokio::task::AbortHandle>);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.iter().for_each(tokio::task::AbortHandle::abort);
    }
}

async fn one<E: Engine>(
    state: &Arc<AppState<E>>,
    bytes: Vec<u8>,
    permit: OwnedSemaphorePermit,
) -> Result<Vec<f64>, ApiError> {
    let image = prepared(state, bytes).await?;
    state.queue.classify(image, permit).await
}

/// The KiB that images may take while they are decoded, all together.
pub fn decoding_kib(options: &Options) -> usize {
    (options.max_decoding >> 10).clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize))
}

/// Sets a flag when it is dropped: with the future of a request that has timed out or whose client has disconnected.
struct Cancel(Arc<AtomicBool>);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Decodes an image on a blocking thread, with at most `workers` at a time, and no more bytes than the options allow.
async fn prepared<E: Engine>(state: &Arc<AppState<E>>, bytes: Vec<u8>) -> Result<RgbImage, ApiError> {
    let gone = |_| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the server is shutting down");
    let kib = state.engine.decoded_bytes(&bytes)?.div_ceil(1 << 10);
    let most = decoding_kib(&state.options);
    let kib = u32::try_from(kib).ok().filter(|&kib| kib as usize <= most).ok_or_else(|| {
        let message = format!(
            "decoding the image takes about {} MiB, over the limit of {} MiB (--max-decoding)",
            kib.div_ceil(1 << 10),
            most >> 10
        );
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    })?;
    // Bytes first: who waits for them holds no thread.
    let room = Arc::clone(&state.decoding).acquire_many_owned(kib).await.map_err(gone)?;
    let turn = Arc::clone(&state.decoders).acquire_owned().await.map_err(gone)?;
    let engine = Arc::clone(&state.engine);
    let cancel = Arc::new(AtomicBool::new(false));
    let _cancel = Cancel(Arc::clone(&cancel));
    let decoded = tokio::task::spawn_blocking(move || {
        let _permits = (turn, room);
        engine.prepare(&bytes, &cancel)
    });
    match decoded.await {
        Ok(image) => Ok(image?),
        Err(error) => {
            log::error!("decoding an image panicked: {error}");
            Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "decoding failed; see the server's log"))
        }
    }
}

fn top<'a>(classes: &'a [String], probabilities: &[f64], k: usize) -> Vec<Class<'a>> {
    let mut order: Vec<usize> = (0..probabilities.len().min(classes.len())).collect();
    order.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]));
    let class = |index: usize| Class { class: &classes[index], index, probability: probabilities[index] };
    order.into_iter().take(k).map(class).collect()
}

async fn explain<E: Engine>(State(state): State<Arc<AppState<E>>>, query: Asked, request: Request) -> Response {
    match explained(&state, &query, request).await {
        Ok(response) => response,
        Err(failure) => failure.into_response(),
    }
}

async fn explained<E: Engine>(state: &Arc<AppState<E>>, query: &Asked, request: Request) -> Result<Response, ApiError> {
    check_query(query, &["class"])?;
    let classes = state.engine.classes();
    let class = query.get("class").map(|asked| wanted(classes, asked)).transpose()?;
    let (headers, body) = split(request);
    let Uploads { mut files, permit: _permit } = upload::read(&headers, body, &state.options, &state.bodies).await?;
    let (Some(file), true) = (files.pop(), files.is_empty()) else {
        return Err(ApiError::bad_request("send exactly one image"));
    };
    let permit = state.images.take(1)?;
    let image = prepared(state, file.bytes).await.inspect_err(|failure| {
        state.metrics.refused(failure.status.as_u16());
    })?;
    let explanation = state.queue.explain(image, class, permit).await?;
    // A header value must be visible ASCII; other characters of the name are dropped.
    let name = classes.get(explanation.class).map_or("", String::as_str);
    let ascii: String = name.chars().filter(|letter| (' '..='~').contains(letter)).collect();
    let mut response = explanation.png.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("image/png"));
    for (name, value) in [
        ("x-class", ascii),
        ("x-class-index", explanation.class.to_string()),
        ("x-probability", format!("{:.6}", explanation.probability)),
    ] {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
    Ok(response)
}

/// Rejects parameters that would have no effect, such as `top_k`.
fn check_query(query: &HashMap<String, String>, known: &[&str]) -> Result<(), ApiError> {
    let unknown = query.keys().filter(|name| !known.contains(&name.as_str())).min();
    unknown.map_or(Ok(()), |name| {
        let known = known.join(", ");
        Err(ApiError::bad_request(format!("unknown parameter `{name}`; this path has: {known}")))
    })
}

/// Finds a class by index or name.
fn wanted(classes: &[String], asked: &str) -> Result<usize, ApiError> {
    let found = match asked.parse::<usize>() {
        Ok(index) => Some(index).filter(|&index| index < classes.len()),
        Err(_) => classes.iter().position(|class| class.eq_ignore_ascii_case(asked)),
    };
    found.ok_or_else(|| {
        ApiError::bad_request(format!(
            "unknown class `{asked}`; give an index from 0 to {} or a name",
            classes.len() - 1
        ))
    })
}

fn split(request: Request) -> (HeaderMap, Body) {
    let (parts, body) = request.into_parts();
    (parts.headers, body)
}

async fn model<E: Engine>(State(state): State<Arc<AppState<E>>>) -> Response {
    error::json(&state.engine.model())
}

async fn ready<E: Engine>(State(state): State<Arc<AppState<E>>>) -> Response {
    match state.is_ready() {
        true => "ready\n".into_response(),
        false => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not ready").into_response(),
    }
}

async fn metrics<E: Engine>(State(state): State<Arc<AppState<E>>>) -> Response {
    let text = state.metrics.text(state.images.taken(), state.bodies.taken(), state.is_ready());
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response()
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], include_str!("openapi.json")).into_response()
}
