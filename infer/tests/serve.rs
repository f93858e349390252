//! Tests of `infer serve` with a real network.
#![cfg(all(unix, feature = "serve"))]

mod fixture;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
};

use fixture::Fixture;
use serde_json::Value;

struct Server {
    child: Child,
    addr: String,
}

impl Server {
    fn start(fixture: &Fixture, args: &[&str]) -> Self {
        let mut child = fixture::infer()
            .args(["serve", "-w", "run", "--addr", "127.0.0.1:0"])
            .args(args)
            .current_dir(fixture.path(""))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("infer starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut line).expect("a line");
        let addr = line.trim().strip_prefix("serving resnet20: http://").expect("an address").to_string();
        Self { child, addr }
    }

    /// Returns status, head and body of a response.
    fn ask(&self, method: &str, path: &str, body: &[u8]) -> (u16, String, Vec<u8>) {
        let mut stream = TcpStream::connect(&self.addr).expect("it listens");
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body].concat()).expect("sent");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("answered");
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        (head[9..12].parse().expect("a status"), head, answer[end..].to_vec())
    }

    /// Stops the server. Returns its exit code and standard error.
    fn end(mut self) -> (Option<i32>, String) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs").success());
        let mut said = String::new();
        self.child.stderr.take().expect("it is piped").read_to_string(&mut said).expect("text");
        (self.child.wait().expect("it ends").code(), said)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn json(body: &[u8]) -> Value {
    serde_json::from_slice(body).expect("JSON")
}

#[test]
fn served_results_equal_classify() {
    let fixture = Fixture::new();
    fixture.image("a.png");
    let photo = fs::read(fixture.path("a.png")).expect("a file");
    let server = Server::start(&fixture, &[]);
    while server.ask("GET", "/readyz", b"").0 != 200 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }

    let (status, _, body) = server.ask("POST", "/v1/classify", &photo);
    assert_eq!(status, 200);
    let line = fixture.infer(&["classify", "a.png", "-w", "run", "--format", "json"]).ends_with(0).json_lines();
    let (served, classified) = (&json(&body)["results"][0]["top"], &line[0]["top"]);
    for rank in 0..3 {
        assert_eq!(served[rank]["class"], classified[rank]["class"]);
        let probability = |top: &Value| top[rank]["probability"].as_f64().expect("a number");
        assert!((probability(served) - probability(classified)).abs() < 1e-6);
    }
    let (status, head, picture) = server.ask("POST", "/v1/explain?class=cat", &photo);
    assert!(status == 200 && head.contains("x-class: cat") && head.contains("x-class-index: 2"), "{head}");
    assert_eq!(image::load_from_memory(&picture).expect("a PNG").width(), 32);
    let (_, _, model) = server.ask("GET", "/v1/model", b"");
    assert_eq!((&json(&model)["name"], &json(&model)["card"]["classes"][0]), (&"resnet20".into(), &"ant".into()));

    for (body, status) in [(&photo[..photo.len() / 2], 422), (b"no image at all", 415)] {
        assert_eq!(server.ask("POST", "/v1/classify", body).0, status);
    }
    let mut bomb = b"BM\x36\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\x60\xea\0\0\x60\xea\0\0\x01\0\x18\0".to_vec();
    bomb.resize(54, 0);
    assert_eq!(server.ask("POST", "/v1/classify", &bomb).0, 413, "60,000 × 60,000 pixels, announced");

    let addr = server.addr.clone();
    fixture.infer(&["serve", "-w", "run", "--addr", &addr]).ends_with(1).says(&format!("cannot listen on {addr}"));
    let (code, said) = server.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("method=POST path=/v1/classify status=200 ms="), "{said}");
    assert!(said.trim_end().ends_with("stopped"), "{said}");
}

#[test]
fn the_token_is_read_from_the_environment_or_a_flag() {
    let fixture = Fixture::new();
    let server = Server::start(&fixture, &["--token", "s3cret"]);
    assert_eq!(server.ask("GET", "/v1/model", b"").0, 401);
    assert_eq!(server.ask("GET", "/healthz", b"").0, 200);
    assert_eq!(server.end().0, Some(0));
    fixture.infer(&["serve", "-w", "run", "--token", ""]).ends_with(1).says("the token is empty");
    fixture.infer(&["serve", "-w", "run", "--addr", "here"]).ends_with(2);
}
