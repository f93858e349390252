//! The metrics behind `/metrics`, in OpenMetrics text.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

/// The labels of a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    method: String,
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    route: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Cause {
    status: u16,
}

/// The server's metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<Request, Counter>,
    seconds: Family<Route, Histogram>,
    batches: Histogram,
    images: Counter,
    refused: Family<Cause, Counter>,
    in_flight: Gauge,
    bodies: Gauge<i64, std::sync::atomic::AtomicI64>,
    connections: Gauge,
    engine_up: Gauge<u64, AtomicU64>,
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("hearth");
        let requests = Family::default();
        registry.register("requests", "Requests answered, by method, route and status", requests.clone());
        let seconds =
            Family::<Route, Histogram>::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 16)));
        let text = "Time from a request's head to its response, by route";
        registry.register_with_unit("request_duration", text, Unit::Seconds, seconds.clone());
        let batches = Histogram::new([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]);
        registry.register("batch_images", "Images per forward pass", batches.clone());
        let images = Counter::default();
        registry.register("images", "Images classified", images.clone());
        let refused = Family::default();
        registry.register("images_refused", "Images rejected, by status", refused.clone());
        let in_flight = Gauge::default();
        registry.register("images_in_flight", "Images that are decoded, queued or running", in_flight.clone());
        let bodies = Gauge::default();
        registry.register("bodies_bytes", "Bytes of request bodies held", bodies.clone());
        let connections = Gauge::default();
        registry.register("connections", "Open connections", connections.clone());
        let engine_up = Gauge::default();
        registry.register("ready", "1 once the network has run and until shutdown", engine_up.clone());
        Self { registry, requests, seconds, batches, images, refused, in_flight, bodies, connections, engine_up }
    }

    pub fn request(&self, method: &str, route: &str, status: u16, seconds: f64) {
        let (method, route) = (method.to_string(), route.to_string());
        self.requests.get_or_create(&Request { method, route: route.clone(), status }).inc();
        self.seconds.get_or_create(&Route { route }).observe(seconds);
    }

    pub fn batch(&self, images: usize) {
        self.batches.observe(images as f64);
        self.images.inc_by(images as u64);
    }

    pub fn refused(&self, status: u16) {
        self.refused.get_or_create(&Cause { status }).inc();
    }

    pub fn connections(&self) -> &Gauge {
        &self.connections
    }

    /// Returns the metrics as text, with the current values of the gauges.
    pub fn text(&self, in_flight: usize, bodies: usize, ready: bool) -> String {
        self.in_flight.set(in_flight as i64);
        self.bodies.set(bodies as i64);
        self.engine_up.set(u64::from(ready));
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(error) => format!("# {error}\n"),
        }
    }
}
