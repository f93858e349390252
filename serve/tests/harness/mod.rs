//! A server with a fake engine, and a client that sends arbitrary bytes.
#![allow(dead_code)] // Each test file uses a part.

use std::{
    io::{Cursor, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use image::{ImageFormat, ImageReader, Limits, Rgb, RgbImage, imageops::FilterType};
use serde_json::Value;
use serve::{Engine, EngineError, Explanation, Options, RejectReason};
use tokio::sync::oneshot;

/// An engine with three classes: red, green and blue. It panics on a black image.
pub struct Colors {
    classes: Vec<String>,
    /// The time that a batch takes.
    pub delay: Duration,
    /// The sizes of the batches so far.
    pub batches: Mutex<Vec<usize>>,
    pub prepared: AtomicUsize,
    /// Whether decoding takes until it is cancelled.
    pub hang: AtomicBool,
    /// The number of images whose decoding was cancelled.
    pub cancelled: AtomicUsize,
}

impl Colors {
    pub fn new(delay: Duration) -> Self {
        let classes = ["red", "green, the \"grass\"", "blue"].map(String::from).to_vec();
        Self {
            classes,
            delay,
            batches: Mutex::default(),
            prepared: AtomicUsize::new(0),
            hang: AtomicBool::new(false),
            cancelled: AtomicUsize::new(0),
        }
    }

    fn mean(image: &RgbImage) -> Vec<f64> {
        let mut sums = [1.0; 3];
        image.pixels().for_each(|pixel| (0..3).for_each(|channel| sums[channel] += f64::from(pixel.0[channel])));
        let all: f64 = sums.iter().sum();
        sums.iter().map(|sum| sum / all).collect()
    }
}

impl Engine for Colors {
    fn decoded_bytes(&self, bytes: &[u8]) -> Result<u64, RejectReason> {
        let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().expect("memory is read");
        let (width, height) = reader.into_dimensions().unwrap_or_default();
        Ok(u64::from(width) * u64::from(height) * 6)
    }

    fn prepare(&self, bytes: &[u8], cancel: &Arc<AtomicBool>) -> Result<RgbImage, RejectReason> {
        if self.hang.load(Ordering::SeqCst) {
            while !cancel.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
            }
            self.cancelled.fetch_add(1, Ordering::SeqCst);
            return Err(RejectReason::Damaged("cancelled".into()));
        }
        self.prepared.fetch_add(1, Ordering::SeqCst);
        let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().expect("memory is read");
        if reader.format().is_none() {
            return Err(RejectReason::Unsupported("no image".into()));
        }
        let (mut limits, most) = (Limits::default(), 4096);
        (limits.max_image_width, limits.max_image_height) = (Some(most), Some(most));
        reader.limits(limits);
        match reader.decode() {
            Ok(image) => Ok(image.resize_exact(16, 16, FilterType::Triangle).to_rgb8()),
            Err(image::ImageError::Limits(error)) => Err(RejectReason::TooLarge(error.to_string())),
            Err(error) => Err(RejectReason::Damaged(error.to_string())),
        }
    }

    fn classify(&self, images: &[RgbImage]) -> Result<Vec<Vec<f64>>, EngineError> {
        std::thread::sleep(self.delay);
        self.batches.lock().expect("no panic").push(images.len());
        assert!(!images.iter().any(|image| image.pixels().all(|pixel| pixel.0 == [0, 0, 0])), "black");
        Ok(images.iter().map(Self::mean).collect())
    }

    fn explain(&self, image: &RgbImage, class: Option<usize>) -> Result<Explanation, EngineError> {
        let probabilities = Self::mean(image);
        let best = (0..3).max_by(|&a, &b| probabilities[a].total_cmp(&probabilities[b])).unwrap_or(0);
        let class = class.unwrap_or(best);
        Ok(Explanation { class, probability: probabilities[class], png: encoded(image, ImageFormat::Png) })
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn blank(&self) -> RgbImage {
        RgbImage::from_pixel(16, 16, Rgb([128; 3]))
    }

    fn name(&self) -> String {
        "colors".into()
    }

    fn model(&self) -> Value {
        serde_json::json!({
            "name": "colors", "parameters": 0, "backend": "none", "hearth": "0",
            "card": {
                "architecture": "colors", "classes": self.classes, "origin": "a test",
                "preprocess": {
                    "resize": { "squash": [16, 16] }, "input_size": [16, 16], "interpolation": "bilinear",
                    "antialias": true, "channel_order": "rgb", "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]
                }
            }
        })
    }
}

pub fn encoded(image: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).expect("encoded");
    bytes.into_inner()
}

/// A JPEG of one color.
pub fn photo(color: [u8; 3]) -> Vec<u8> {
    encoded(&RgbImage::from_pixel(40, 30, Rgb(color)), ImageFormat::Jpeg)
}

/// A server on a free port; it is shut down when dropped.
pub struct Harness {
    pub addr: SocketAddr,
    pub engine: Arc<Colors>,
    stop: Option<oneshot::Sender<()>>,
    /// Dropped, it drops the requests in flight once the server stops.
    pub abort: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), serve::Error>>>,
}

impl Harness {
    pub fn new() -> Self {
        Self::with(Duration::ZERO, |options| options)
    }

    pub fn with(delay: Duration, options: impl FnOnce(Options) -> Options) -> Self {
        let engine = Arc::new(Colors::new(delay));
        let options = options(Options { addr: ([127, 0, 0, 1], 0).into(), ..Options::default() });
        let (stop, stopped) = oneshot::channel::<()>();
        let (abort, aborted) = oneshot::channel::<()>();
        let (tell, told) = mpsc::channel();
        let served = Arc::clone(&engine);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            let runtime = runtime.expect("threads");
            runtime.block_on(serve::serve(
                served,
                options,
                |addr| tell.send(addr).expect("somebody waits"),
                async move {
                    let _ = stopped.await;
                },
                async move {
                    let _ = aborted.await;
                },
            ))
        });
        let addr = told.recv_timeout(Duration::from_secs(10)).expect("it listens");
        let server = Self { addr, engine, stop: Some(stop), abort: Some(abort), thread: Some(thread) };
        for _ in 0..500 {
            if server.get("/readyz").status == 200 {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        server.engine.batches.lock().expect("no panic").clear();
        server
    }

    pub fn stop(&mut self) -> Result<(), serve::Error> {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        self.thread.take().map_or(Ok(()), |thread| thread.join().expect("the server does not panic"))
    }

    /// Requests shutdown without waiting for it.
    pub fn begin_to_stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }

    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], b"")
    }

    pub fn classify(&self, kind: &str, body: &[u8]) -> Answer {
        self.ask("POST", "/v1/classify", &[("content-type", kind)], body)
    }

    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
        headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        head += &format!("content-length: {}\r\n\r\n", body.len());
        self.raw(&[head.as_bytes(), body].concat())
    }

    /// Sends raw bytes and reads the response to its end.
    pub fn raw(&self, bytes: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.addr).expect("it accepts");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        // A server that rejects a request may close the connection early.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        Answer::parse(&answer)
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

#[derive(Debug)]
pub struct Answer {
    /// The status, or 0 if there was no response.
    pub status: u16,
    head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").map_or(bytes.len(), |at| at + 4);
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Self { status, head, body: bytes[end..].to_vec() }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// Asserts that this is an error response of the documented form; returns its message.
    #[track_caller]
    pub fn fails_with(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", self.text());
        let error = &self.json()["error"];
        assert_eq!(error["status"], status);
        error["message"].as_str().expect("a message").to_string()
    }
}

/// Encodes files as a multipart form; returns its content type and body.
pub fn form(files: &[(&str, &[u8])]) -> (String, Vec<u8>) {
    let mut body = Vec::new();
    for (name, bytes) in files {
        body.extend(
            format!("--line\r\ncontent-disposition: form-data; name=\"f\"; filename=\"{name}\"\r\n\r\n").bytes(),
        );
        body.extend_from_slice(bytes);
        body.extend(b"\r\n");
    }
    body.extend(b"--line--\r\n");
    ("multipart/form-data; boundary=line".into(), body)
}
