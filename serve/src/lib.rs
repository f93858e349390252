//! An HTTP server for image classifiers: a JSON API, metrics and a web page over any [`Engine`].
//!
//! ```text
//! connection (bounded) → host and origin → limits: time, rate, token → body (bounded, and all bodies together)
//!   → admission (bounded: at once 503) → decode on a few threads → queue → one engine thread: batches → answer
//! ```
//!
//! Everything that could grow under load is bounded; a request that exceeds a bound is rejected immediately, with a
//! status by which the client knows how to react.

#![forbid(unsafe_code)]
#![deny(clippy::print_stderr, clippy::print_stdout)]

mod access;
mod admission;
mod batch;
mod drain;
mod error;
mod metrics;
mod middleware;
mod page;
mod rates;
mod routes;
mod server;
mod state;
mod upload;

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use image::RgbImage;

pub use access::check_origin;
pub use error::{EngineError, Error};
pub use routes::ROUTES;
pub use server::{run, serve};

/// The model behind the server. [`prepare`](Engine::prepare) is called from several threads at once, the other methods
/// from one.
pub trait Engine: Send + Sync + 'static {
    /// Returns about how many bytes decoding the image takes, from its header.
    ///
    /// # Errors
    /// Fails with the reason for rejecting the image.
    fn decoded_bytes(&self, bytes: &[u8]) -> Result<u64, RejectReason>;

    /// Decodes an image, resizes and crops it to the network's input. The result no longer matters once `cancel` is
    /// set.
    ///
    /// # Errors
    /// Fails with the reason for rejecting the image.
    fn prepare(&self, bytes: &[u8], cancel: &Arc<AtomicBool>) -> Result<RgbImage, RejectReason>;

    /// Returns the probability of each class for each image.
    ///
    /// # Errors
    /// Fails if the network cannot be run.
    fn classify(&self, images: &[RgbImage]) -> Result<Vec<Vec<f64>>, EngineError>;

    /// Returns a saliency map of a class; of the most probable class if `class` is `None`.
    ///
    /// # Errors
    /// Fails if the network cannot be run.
    fn explain(&self, image: &RgbImage, class: Option<usize>) -> Result<Explanation, EngineError>;

    /// Returns the class names, in the order of the probabilities.
    fn classes(&self) -> &[String];

    /// Returns a blank image of the size that [`prepare`](Engine::prepare) returns, for warming up.
    fn blank(&self) -> RgbImage;

    /// Returns the model's name.
    fn name(&self) -> String;

    /// Returns the JSON object that `GET /v1/model` responds with.
    fn model(&self) -> serde_json::Value;
}

/// The reason for rejecting an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RejectReason {
    /// More pixels or bytes than allowed (413).
    TooLarge(String),
    /// Not a supported format (415).
    Unsupported(String),
    /// Damaged (422).
    Damaged(String),
}

/// An explanation of one class.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// The class's index.
    pub class: usize,
    /// Its probability.
    pub probability: f64,
    /// The image with the saliency map over it, as a PNG file.
    pub png: Vec<u8>,
}

/// Settings of the server.
#[derive(Debug, Clone)]
pub struct Options {
    /// The address to listen on; port 0 takes a free port.
    pub addr: SocketAddr,
    /// The largest number of images in a batch.
    pub max_batch: usize,
    /// The longest time that the first image of a batch waits for others.
    pub max_wait: Duration,
    /// The largest number of images in flight: decoding, queued or running. More are rejected with 503.
    pub max_images: usize,
    /// The largest size of a request body in bytes.
    pub max_body: usize,
    /// The largest size of all request bodies together in bytes.
    pub max_bodies: usize,
    /// The largest number of images in a request.
    pub max_images_per_request: usize,
    /// The time limit from a request's head to its response.
    pub request_timeout: Duration,
    /// The largest number of open connections; others wait to be accepted.
    pub max_connections: usize,
    /// The largest number of requests per second from one address. Default: no limit.
    pub rate_limit: Option<u32>,
    /// The bearer token that `/v1/` requires. Default: none.
    pub token: Option<String>,
    /// Origins whose pages may call the API, such as `https://example.org`, or `*`. Default: none.
    pub cors_origins: Vec<String>,
    /// Host names under which clients may reach the server, besides IP addresses and the names of this machine's
    /// loopback interface. A server on a loopback address, or without a token, answers other names with 421, so that no
    /// web page can reach it by DNS rebinding. Default: none.
    pub allowed_hosts: Vec<String>,
    /// The number of decoding threads.
    pub workers: usize,
    /// The largest memory of all images that are being decoded, in bytes, as their headers declare it. Others wait; one
    /// that needs more alone is rejected.
    pub max_decoding: usize,
    /// The time limit for requests in flight once shutdown begins.
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
            allowed_hosts: Vec::new(),
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            max_decoding: 1 << 30,
            grace: Duration::from_secs(30),
        }
    }
}
