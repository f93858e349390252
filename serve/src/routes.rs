//! What is answered where.

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
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use image::RgbImage;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::{
    Engine, Options,
    admission::Places,
    batch::Queue,
    error::{self, Failure},
    limits::{self, Rates},
    metrics::Metrics,
    page,
    upload::{self, Uploads},
};

/// The routes of the interface, as the OpenAPI document lists them.
pub const ROUTES: [(&str, &str); 7] = [
    ("post", "/v1/classify"),
    ("post", "/v1/explain"),
    ("get", "/v1/model"),
    ("get", "/healthz"),
    ("get", "/readyz"),
    ("get", "/metrics"),
    ("get", "/openapi.json"),
];

/// What every request needs.
pub struct House<E> {
    pub engine: Arc<E>,
    pub queue: Queue,
    pub options: Options,
    pub metrics: Arc<Metrics>,
    /// Places for images.
    pub images: Places,
    /// Places for the bytes of bodies.
    pub bodies: Places,
    /// One decodes at a time for each.
    pub decoders: Arc<Semaphore>,
    pub rates: Rates,
    pub closing: AtomicBool,
}

impl<E> House<E> {
    fn is_ready(&self) -> bool {
        self.queue.is_ready() && !self.closing.load(Ordering::Acquire)
    }
}

pub fn router<E: Engine>(house: Arc<House<E>>) -> Router {
    let interface = Router::new()
        .route("/v1/classify", post(classify::<E>))
        .route("/v1/explain", post(explain::<E>))
        .route("/v1/model", get(model::<E>))
        .layer(middleware::from_fn_with_state(Arc::clone(&house), limits::token::<E>))
        .layer(middleware::from_fn_with_state(Arc::clone(&house), limits::rate::<E>));
    let router = Router::new()
        .merge(interface)
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready::<E>))
        .route("/metrics", get(metrics::<E>))
        .route("/openapi.json", get(openapi))
        .route("/", get(page::html))
        .route("/page.css", get(page::css))
        .route("/page.js", get(page::js))
        .fallback(async || Failure::new(StatusCode::NOT_FOUND, "there is nothing here: /openapi.json lists what is"))
        .method_not_allowed_fallback(async || {
            Failure::new(StatusCode::METHOD_NOT_ALLOWED, "not by this method: /openapi.json lists which")
        })
        .layer(DefaultBodyLimit::disable()); // `upload` has its own.
    let router = match cors(&house.options) {
        Some(layer) => router.layer(layer),
        None => router,
    };
    router
        .layer(middleware::from_fn_with_state(Arc::clone(&house), limits::timeout::<E>))
        .layer(middleware::from_fn_with_state(Arc::clone(&house), limits::record::<E>))
        .with_state(house)
}

/// Pages of the origins that were named may call, and no others.
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

/// One image's part of an answer.
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

async fn classify<E: Engine>(State(house): State<Arc<House<E>>>, query: Asked, request: Request) -> Response {
    match classified(&house, &query, request).await {
        Ok(response) => response,
        Err(failure) => failure.into_response(),
    }
}

async fn classified<E: Engine>(house: &Arc<House<E>>, query: &Asked, request: Request) -> Result<Response, Failure> {
    let k = match query.get("topk").map(|k| k.parse::<usize>()) {
        None => 5,
        Some(Ok(k)) if k > 0 => k,
        Some(_) => return Err(Failure::bad_request("topk is a number from 1")),
    };
    let (headers, body) = split(request);
    let Uploads { files, place } = upload::read(&headers, body, &house.options, &house.bodies).await?;
    let count = files.len();
    let mut places = house.images.take(count)?;
    // All decode and run at the same time, and are answered in their order.
    let mut running = Vec::with_capacity(count);
    for file in files {
        let place = places.split(1).ok_or_else(Failure::busy)?;
        let house = Arc::clone(house);
        running.push((file.name, tokio::spawn(async move { one(&house, file.bytes, place).await })));
    }
    let mut watch = Abort(running.iter().map(|(_, task)| task.abort_handle()).collect());
    let mut outcomes = Vec::with_capacity(count);
    for (name, task) in running {
        let panicked = || Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "decoding ended early; the log says why");
        outcomes.push((name, task.await.unwrap_or_else(|_| Err(panicked()))));
    }
    watch.0.clear();
    drop(place);
    for (_, outcome) in &outcomes {
        if let Err(failure) = outcome {
            house.metrics.refused(failure.status.as_u16());
        }
    }
    if let Some((_, Err(first))) = outcomes.iter().find(|(_, outcome)| outcome.is_err())
        && outcomes.iter().all(|(_, outcome)| outcome.is_err())
    {
        return Err(first.clone());
    }
    let classes = house.engine.classes();
    let answers: Vec<Answer<'_>> = outcomes
        .into_iter()
        .map(|(name, outcome)| {
            let outcome = match outcome {
                Ok(probabilities) => Outcome::Top(top(classes, &probabilities, k)),
                Err(failure) => Outcome::Error(json!(failure.told())),
            };
            Answer { name, outcome }
        })
        .collect();
    Ok(error::json(&json!({ "model": house.engine.name(), "results": answers })))
}

/// The work of a request whose client has gone is not done.
struct Abort(Vec<tokio::task::AbortHandle>);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.iter().for_each(tokio::task::AbortHandle::abort);
    }
}

async fn one<E: Engine>(
    house: &Arc<House<E>>,
    bytes: Vec<u8>,
    place: OwnedSemaphorePermit,
) -> Result<Vec<f64>, Failure> {
    let image = prepared(house, bytes).await?;
    house.queue.classify(image, place).await
}

/// Decodes on a thread that may block, as many at a time as there are workers.
async fn prepared<E: Engine>(house: &Arc<House<E>>, bytes: Vec<u8>) -> Result<RgbImage, Failure> {
    let gone = |_| Failure::new(StatusCode::SERVICE_UNAVAILABLE, "the server is shutting down");
    let turn = Arc::clone(&house.decoders).acquire_owned().await.map_err(gone)?;
    let engine = Arc::clone(&house.engine);
    let decoded = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        engine.prepare(&bytes)
    });
    match decoded.await {
        Ok(image) => Ok(image?),
        Err(error) => {
            log::error!("decoding an image panicked: {error}");
            Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "the image could not be decoded; the log says why"))
        }
    }
}

fn top<'a>(classes: &'a [String], probabilities: &[f64], k: usize) -> Vec<Class<'a>> {
    let mut order: Vec<usize> = (0..probabilities.len().min(classes.len())).collect();
    order.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]));
    let class = |index: usize| Class { class: &classes[index], index, probability: probabilities[index] };
    order.into_iter().take(k).map(class).collect()
}

async fn explain<E: Engine>(State(house): State<Arc<House<E>>>, query: Asked, request: Request) -> Response {
    match explained(&house, &query, request).await {
        Ok(response) => response,
        Err(failure) => failure.into_response(),
    }
}

async fn explained<E: Engine>(house: &Arc<House<E>>, query: &Asked, request: Request) -> Result<Response, Failure> {
    let classes = house.engine.classes();
    let class = query.get("class").map(|asked| wanted(classes, asked)).transpose()?;
    let (headers, body) = split(request);
    let Uploads { mut files, place: _place } = upload::read(&headers, body, &house.options, &house.bodies).await?;
    let (Some(file), true) = (files.pop(), files.is_empty()) else {
        return Err(Failure::bad_request("one image is explained at a time"));
    };
    let place = house.images.take(1)?;
    let image = prepared(house, file.bytes).await.inspect_err(|failure| {
        house.metrics.refused(failure.status.as_u16());
    })?;
    let explanation = house.queue.explain(image, class, place).await?;
    // A header holds visible ASCII: other letters of a name are left out.
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

/// A class by its index or name.
fn wanted(classes: &[String], asked: &str) -> Result<usize, Failure> {
    let found = match asked.parse::<usize>() {
        Ok(index) => Some(index).filter(|&index| index < classes.len()),
        Err(_) => classes.iter().position(|class| class.eq_ignore_ascii_case(asked)),
    };
    found.ok_or_else(|| {
        Failure::bad_request(format!("no class {asked}: give an index from 0 to {} or a name", classes.len() - 1))
    })
}

fn split(request: Request) -> (HeaderMap, Body) {
    let (parts, body) = request.into_parts();
    (parts.headers, body)
}

async fn model<E: Engine>(State(house): State<Arc<House<E>>>) -> Response {
    error::json(&house.engine.model())
}

async fn ready<E: Engine>(State(house): State<Arc<House<E>>>) -> Response {
    match house.is_ready() {
        true => "ready\n".into_response(),
        false => Failure::new(StatusCode::SERVICE_UNAVAILABLE, "not ready").into_response(),
    }
}

async fn metrics<E: Engine>(State(house): State<Arc<House<E>>>) -> Response {
    let text = house.metrics.text(house.images.taken(), house.bodies.taken(), house.is_ready());
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response()
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], include_str!("openapi.json")).into_response()
}
