//! An image classifier over HTTP: JSON, metrics and a page for people, over anything that is an [`Engine`].
//!
//! ```text
//! connection (bounded) → limits: time, rate, token → body (bounded, and all bodies together)
//!   → admission (bounded: at once 503) → decode on a few threads → queue → one engine thread: batches → answer
//! ```
//!
//! Nothing grows under load: what does not fit is refused at once, with a status that says what to do.

#![forbid(unsafe_code)]

mod admission;
mod batch;
mod error;
mod limits;
mod metrics;
mod page;
mod routes;
mod server;
mod upload;

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use image::RgbImage;

pub use routes::ROUTES;
pub use server::{run, serve};

/// What is served. [`prepare`](Engine::prepare) is called on several threads at once, the rest on one.
pub trait Engine: Send + Sync + 'static {
    /// Decodes an encoded image and prepares it as the network wants it: resized, cropped, small.
    ///
    /// # Errors
    /// What is wrong with the image.
    fn prepare(&self, bytes: &[u8]) -> Result<RgbImage, Refusal>;

    /// The probability of each class, for each image.
    ///
    /// # Errors
    /// Where the network cannot be run.
    fn classify(&self, images: &[RgbImage]) -> Result<Vec<Vec<f64>>>;

    /// A picture of where a class is seen; of the most probable one if `class` is `None`.
    ///
    /// # Errors
    /// Where the network cannot be run.
    fn explain(&self, image: &RgbImage, class: Option<usize>) -> Result<Explanation>;

    /// The names of the classes, in the order of the probabilities.
    fn classes(&self) -> &[String];

    /// A blank image as [`prepare`](Engine::prepare) gives them, to warm up with.
    fn blank(&self) -> RgbImage;

    /// The model's name.
    fn name(&self) -> String;

    /// What `GET /v1/model` answers, an object.
    fn model(&self) -> serde_json::Value;
}

/// Why an image is not classified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// More pixels or bytes than any image may have (413).
    TooLarge(String),
    /// Of no format that is read (415).
    Unsupported(String),
    /// Damaged (422).
    Damaged(String),
}

/// Where a class is seen.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// The class's index.
    pub class: usize,
    /// Its probability.
    pub probability: f64,
    /// The picture, a PNG file.
    pub png: Vec<u8>,
}

/// How it is served.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to listen; port 0 takes a free one.
    pub addr: SocketAddr,
    /// Images that the network takes at a time, at most.
    pub max_batch: usize,
    /// How long the first image of a batch waits for others.
    pub max_wait: Duration,
    /// Images in the house at once: decoding, waiting, running. More are refused with 503.
    pub max_images: usize,
    /// Bytes of a request's body.
    pub max_body: usize,
    /// Bytes of all bodies together.
    pub max_bodies: usize,
    /// Images of one request.
    pub max_images_per_request: usize,
    /// From a request's head to its answer.
    pub request_timeout: Duration,
    /// Connections at once; others wait to be accepted.
    pub max_connections: usize,
    /// Requests a second from one address; none by default.
    pub rate_limit: Option<u32>,
    /// A bearer token that `/v1/` asks for; none by default.
    pub token: Option<String>,
    /// Origins whose pages may call; none by default.
    pub cors_origins: Vec<String>,
    /// Threads that decode.
    pub workers: usize,
    /// How long requests in flight may take after a shutdown began.
    pub grace: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            addr: SocketAddr::from(([127, 0, 0, 1], 8080)),
            max_batch: 16,
            max_wait: Duration::from_millis(2),
            max_images: 256,
            max_body: 20 << 20,
            max_bodies: 256 << 20,
            max_images_per_request: 64,
            request_timeout: Duration::from_secs(30),
            max_connections: 1024,
            rate_limit: None,
            token: None,
            cors_origins: Vec::new(),
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            grace: Duration::from_secs(30),
        }
    }
}
