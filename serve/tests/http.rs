//! Tests of the HTTP API over loopback.
#![allow(clippy::unwrap_used)]

mod harness;

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::TcpStream,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use harness::{Harness, encoded, form, photo};
use image::{ImageFormat, Rgb, RgbImage};
use serde_json::Value;
use serve::{Options, ROUTES};

const RED: [u8; 3] = [250, 10, 10];
const BLUE: [u8; 3] = [10, 10, 250];

#[test]
fn an_image_is_classified_whatever_its_content_type() {
    let server = Harness::new();
    for kind in ["image/jpeg", "image/png", "application/octet-stream", "IMAGE/JPEG; q=1"] {
        let answer = server.classify(kind, &photo(BLUE));
        assert_eq!(answer.status, 200, "{kind}: {}", answer.text());
        let json = answer.json();
        assert_eq!((&json["model"], &json["results"][0]["name"]), (&"colors".into(), &Value::Null));
        let top = &json["results"][0]["top"];
        assert_eq!((&top[0]["class"], &top[0]["index"]), (&"blue".into(), &2.into()));
        assert!(top[0]["probability"].as_f64().unwrap() > 0.8);
        assert_eq!(top.as_array().unwrap().len(), 3, "topk is 5, but there are three");
    }
    let two = server.ask("POST", "/v1/classify?topk=2", &[], &photo(RED));
    assert_eq!(two.json()["results"][0]["top"].as_array().unwrap().len(), 2, "and without any type");
    for wrong in ["0", "-1", "many", ""] {
        server.ask("POST", &format!("/v1/classify?topk={wrong}"), &[], &photo(RED)).fails_with(400);
    }
}

#[test]
fn a_request_that_would_be_misunderstood_is_rejected_with_the_reason() {
    let server = Harness::new();
    let red = photo(RED);
    let ask = |query: &str, headers: &[(&str, &str)], body: &[u8]| {
        server.ask("POST", &format!("/v1/classify{query}"), headers, body)
    };
    let text = ask("?top_k=1", &[], &red).fails_with(400);
    assert!(text.contains("unknown parameter `top_k`") && text.contains("topk"), "{text}");
    server.ask("POST", "/v1/explain?topk=1", &[], &red).fails_with(400);
    let text = ask("", &[("content-encoding", "gzip")], &red).fails_with(415);
    assert!(text.contains("content encoding gzip"), "{text}");
    assert_eq!(ask("", &[("content-encoding", "identity")], &red).status, 200);

    let form = |disposition: &str| {
        let head = format!("--x\r\nContent-Disposition: form-data; {disposition}\r\n\r\n");
        let body = [head.as_bytes(), &red, b"\r\n--x--\r\n"].concat();
        server.classify("multipart/form-data; boundary=x", &body)
    };
    let named = form("name=\"f\"; filename*=UTF-8''h%C3%BCnd.png");
    assert_eq!((named.status, &named.json()["results"][0]["name"]), (200, &"hünd.png".into()));
    let text = form("name=\"photo\"").fails_with(400);
    assert!(text.contains("the field `photo`") && text.contains("-F photo=@FILE"), "{text}");
}

#[test]
fn a_damaged_image_in_a_form_does_not_affect_the_others() {
    let server = Harness::new();
    let (red, blue) = (photo(RED), photo(BLUE));
    let (kind, body) = form(&[("a.jpg", &red), ("b.jpg", &blue[..200]), ("c.txt", b"text"), ("d.jpg", &blue)]);
    let answer = server.classify(&kind, &body);
    assert_eq!(answer.status, 200);
    let json = answer.json();
    let results = json["results"].as_array().unwrap();
    let names: Vec<_> = results.iter().map(|result| result["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["a.jpg", "b.jpg", "c.txt", "d.jpg"]);
    assert_eq!((&results[0]["top"][0]["class"], &results[3]["top"][0]["class"]), (&"red".into(), &"blue".into()));
    assert_eq!((&results[1]["error"]["status"], &results[2]["error"]["status"]), (&422.into(), &415.into()));
    assert!(results[1]["top"].is_null());

    let (kind, body) = form(&[("b.jpg", &blue[..200]), ("c.txt", b"text")]);
    server.classify(&kind, &body).fails_with(422);
    server.classify(&kind, b"no form at all").fails_with(400);
    server.classify("multipart/form-data", &body).fails_with(400);
    server.classify(&kind, b"--line--\r\n").fails_with(400);
}

#[test]
fn unclassifiable_bodies_get_the_documented_status() {
    let small = |options: Options| Options { max_body: 50_000, max_images_per_request: 2, ..options };
    let server = Harness::with(Duration::ZERO, small);
    let red = photo(RED);
    server.classify("image/jpeg", &red[..red.len() / 2]).fails_with(422);
    server.classify("image/jpeg", b"\x00\x01 no image").fails_with(415);
    assert!(server.classify("text/html", &red).fails_with(415).contains("text/html is not an image"));
    assert!(server.classify("image/jpeg", b"").fails_with(400).contains("empty"));
    server.classify("image/jpeg", &vec![0; 50_001]).fails_with(413);
    let (kind, body) = form(&[("a", &red), ("b", &red), ("c", &red)]);
    assert!(server.classify(&kind, &body).fails_with(413).contains("2 images"));
    // A false length, and chunks without a length.
    let lie =
        b"POST /v1/classify HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 999999999999\r\n\r\nx";
    server.raw(lie).fails_with(413);
    let chunk = format!("{:x}\r\n{}\r\n", 60_000, "x".repeat(60_000));
    let head =
        "POST /v1/classify HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    server.raw(format!("{head}{chunk}0\r\n\r\n").as_bytes()).fails_with(413);
    // A decompression bomb: a header that declares 60,000 × 60,000 pixels.
    let mut bomb = encoded(&image::RgbImage::new(1, 1), ImageFormat::Bmp);
    bomb[18..26].copy_from_slice(&[0x60, 0xea, 0, 0, 0x60, 0xea, 0, 0]);
    server.classify("image/bmp", &bomb).fails_with(413);
    assert_eq!(server.classify("image/jpeg", &red).status, 200, "and it still serves");
}

#[test]
fn an_explanation_is_a_png_with_its_class_in_the_headers() {
    let server = Harness::new();
    let explain = |query: &str, body: &[u8]| server.ask("POST", &format!("/v1/explain{query}"), &[], body);
    let answer = explain("", &photo(BLUE));
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("image/png")));
    assert_eq!((answer.header("x-class"), answer.header("x-class-index")), (Some("blue"), Some("2")));
    assert_eq!(image::load_from_memory(&answer.body).unwrap().width(), 16);
    assert_eq!(explain("?class=0", &photo(BLUE)).header("x-class"), Some("red"));
    assert_eq!(explain("?class=RED", &photo(BLUE)).header("x-class-index"), Some("0"));
    assert!(explain("?class=3", &photo(BLUE)).fails_with(400).contains("from 0 to 2"));
    explain("?class=yellow", &photo(BLUE)).fails_with(400);
    explain("", b"text").fails_with(415);
    let (kind, body) = form(&[("a", &photo(RED)), ("b", &photo(RED))]);
    server.ask("POST", "/v1/explain", &[("content-type", &kind)], &body).fails_with(400);
}

#[test]
fn a_client_that_writes_all_before_it_reads_learns_why_it_is_rejected() {
    let small = |options: Options| Options { max_body: 1 << 20, token: Some("secret".into()), ..options };
    let server = Harness::with(Duration::ZERO, small);
    let body = vec![b'x'; 16 << 20];
    for (headers, status) in [
        ("authorization: Bearer secret\r\ncontent-type: image/png\r\n", 413),
        ("authorization: Bearer secret\r\ncontent-type: application/json\r\n", 415),
        ("content-type: image/png\r\n", 401),
        ("origin: https://example.org\r\n", 403),
    ] {
        let head = format!(
            "POST /v1/classify HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = TcpStream::connect(server.addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&body).unwrap_or_else(|error| panic!("{status}: {error}"));
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        harness::Answer::parse(&answer).fails_with(status);
    }
    // One that waits for permission is answered at once, and sends nothing.
    let head =
        "POST /v1/classify HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 99999999\r\n\r\n";
    let start = Instant::now();
    server.raw(head.as_bytes()).fails_with(401);
    assert!(start.elapsed() < Duration::from_millis(400), "{:?}", start.elapsed());
}

#[test]
fn the_page_works_below_a_path() {
    let server = Harness::new();
    for path in ["/", "/page.js", "/page.css"] {
        let text = server.get(path).text();
        for absolute in ["href=\"/", "src=\"/", "(\"/", "(`/", "url(/"] {
            let found = text.lines().find(|line| line.contains(absolute));
            assert_eq!(found, None, "{path} has an address that a proxy cannot move");
        }
    }
}

#[test]
fn concurrent_images_are_batched() {
    let wait = |options: Options| Options { max_batch: 8, max_wait: Duration::from_millis(200), ..options };
    let server = Harness::with(Duration::from_millis(20), wait);
    thread::scope(|scope| {
        for n in 0..16 {
            let server = &server;
            scope.spawn(move || {
                let color = if n % 2 == 0 { RED } else { BLUE };
                let json = server.classify("image/jpeg", &photo(color)).json();
                let class = &json["results"][0]["top"][0]["class"];
                assert_eq!(class, if n % 2 == 0 { "red" } else { "blue" }, "each gets its own answer");
            });
        }
    });
    let batches = server.engine.batches.lock().unwrap().clone();
    assert_eq!(batches.iter().sum::<usize>(), 16);
    assert!(batches.len() <= 6 && batches.iter().all(|&size| size <= 8), "{batches:?}");
}

#[test]
fn a_full_server_rejects_immediately_and_recovers() {
    let narrow = |options: Options| Options { max_images: 2, max_batch: 1, ..options };
    let server = Harness::with(Duration::from_millis(300), narrow);
    let start = Instant::now();
    let statuses: Vec<u16> = thread::scope(|scope| {
        let ask = || {
            let answer = server.classify("image/jpeg", &photo(RED));
            if answer.status == 503 {
                assert_eq!(answer.header("retry-after"), Some("1"));
                assert!(start.elapsed() < Duration::from_millis(290), "refused at once");
            }
            answer.status
        };
        let asked: Vec<_> = (0..10).map(|_| scope.spawn(ask)).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    let count = |wanted: u16| statuses.iter().filter(|&&status| status == wanted).count();
    assert_eq!((count(200), count(503)), (2, 8), "{statuses:?}");
    assert_eq!(server.classify("image/jpeg", &photo(RED)).status, 200);
    let (kind, body) = form(&[("a", &photo(RED)), ("b", &photo(RED)), ("c", &photo(RED))]);
    server.classify(&kind, &body).fails_with(503);
    assert!(server.get("/metrics").text().contains("hearth_images_in_flight 0\n"), "permits are given back");
}

#[test]
fn work_of_disconnected_clients_is_dropped() {
    let slow = |options: Options| Options { max_batch: 1, ..options };
    let server = Harness::with(Duration::from_millis(100), slow);
    let body = photo(RED);
    let head = format!("POST /v1/classify HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
    let streams: Vec<TcpStream> = (0..20)
        .map(|_| {
            let mut stream = TcpStream::connect(server.addr).unwrap();
            stream.write_all(&[head.as_bytes(), &body].concat()).unwrap();
            stream
        })
        .collect();
    thread::sleep(Duration::from_millis(150));
    drop(streams);
    thread::sleep(Duration::from_millis(100));
    let start = Instant::now();
    assert_eq!(server.classify("image/jpeg", &body).status, 200);
    assert!(start.elapsed() < Duration::from_secs(1), "twenty forgotten images would take two seconds");
}

#[test]
fn an_engine_panic_fails_its_batch_and_not_the_server() {
    let server = Harness::new();
    let message = server.classify("image/jpeg", &photo([0, 0, 0])).fails_with(500);
    assert!(!message.contains("black"), "what went wrong inside stays in the log: {message}");
    assert_eq!(server.classify("image/jpeg", &photo(RED)).status, 200);
}

#[test]
fn a_configured_token_is_required() {
    let with = |options: Options| Options { token: Some("s3cret".into()), ..options };
    let server = Harness::with(Duration::ZERO, with);
    let ask = |value: &str| server.ask("GET", "/v1/model", &[("authorization", value)], b"");
    assert_eq!(ask("Bearer s3cret").status, 200);
    assert_eq!(ask("bearer s3cret").status, 200);
    for wrong in ["Bearer s3cre", "Bearer s3cretx", "Basic s3cret", "s3cret", ""] {
        let answer = ask(wrong);
        answer.fails_with(401);
        assert_eq!(answer.header("www-authenticate"), Some("bearer"));
    }
    server.classify("image/jpeg", &photo(RED)).fails_with(401);
    assert_eq!(server.engine.prepared.load(std::sync::atomic::Ordering::SeqCst), 0, "nothing was decoded");
    for open in ["/", "/healthz", "/readyz", "/metrics", "/openapi.json", "/page.js"] {
        assert_eq!(server.get(open).status, 200, "{open}");
    }
}

#[test]
fn other_origins_are_rejected_unless_configured() {
    let origin = [("origin", "https://example.org")];
    let closed = Harness::new();
    assert_eq!(closed.ask("GET", "/v1/model", &origin, b"").header("access-control-allow-origin"), None);
    let named = |options: Options| Options { cors_origins: vec!["https://example.org".into()], ..options };
    let open = Harness::with(Duration::ZERO, named);
    let answer = open.ask("GET", "/v1/model", &origin, b"");
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://example.org"));
    let other = open.ask("GET", "/v1/model", &[("origin", "https://example.com")], b"");
    assert_eq!(other.header("access-control-allow-origin"), None);
    let asked = [origin[0], ("access-control-request-method", "POST")];
    let preflight = open.ask("OPTIONS", "/v1/classify", &asked, b"");
    assert_eq!(preflight.status, 200);
    assert!(preflight.header("access-control-allow-methods").unwrap().contains("post"));
}

#[test]
fn pages_reach_the_server_by_its_own_names_and_origin_only() {
    let server = Harness::new();
    let ask = |method: &str, path: &str, headers: &[(&str, &str)]| {
        let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
        headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        let body = photo(RED);
        server.raw(&[format!("{head}content-length: {}\r\n\r\n", body.len()).as_bytes(), &body].concat())
    };
    for path in ["/", "/healthz", "/v1/model", "/metrics", "/openapi.json"] {
        let message = ask("GET", path, &[("host", "rebound.example.org")]).fails_with(421);
        assert!(message.contains("--allowed-host"), "{message}");
    }
    let own = format!("127.0.0.1:{}", server.addr.port());
    assert_eq!(ask("GET", "/v1/model", &[("host", &own)]).status, 200);
    let same = format!("http://{own}");
    assert_eq!(ask("POST", "/v1/classify", &[("host", &own), ("origin", &same)]).status, 200);
    for (name, value) in [("origin", "https://example.org"), ("origin", "null"), ("sec-fetch-site", "cross-site")] {
        ask("POST", "/v1/classify", &[("host", &own), (name, value)]).fails_with(403);
    }
    let prepared = server.engine.prepared.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(prepared, 1, "nothing of other pages was decoded");
}

#[test]
fn no_response_can_be_taken_for_another_type_or_shown_by_another_site() {
    let server = Harness::new();
    let png = server.ask("POST", "/v1/explain", &[], &photo(RED));
    for answer in [png, server.get("/v1/model"), server.get("/"), server.get("/nothing"), server.classify("a/b", b"x")]
    {
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("cross-origin-resource-policy"), Some("same-origin"));
    }
}

#[test]
fn wrong_options_are_errors_and_an_endless_wait_is_none() {
    let engine = || std::sync::Arc::new(harness::Colors::new(Duration::ZERO));
    let wrong = [
        Options { cors_origins: vec!["example.org".into()], ..Options::default() },
        Options { allowed_hosts: vec!["https://example.org".into()], ..Options::default() },
    ];
    for options in wrong {
        let error = serve::run(engine(), options, |_| panic!("it does not listen")).unwrap_err().to_string();
        assert!(error.contains("example.org"), "{error}");
    }
    // An instant that far ahead cannot be represented; a full batch waits for nobody.
    let endless = |options: Options| Options { max_wait: Duration::MAX, max_batch: 1, ..options };
    assert_eq!(Harness::with(Duration::ZERO, endless).classify("image/jpeg", &photo(RED)).status, 200);
}

#[test]
fn clients_that_never_read_do_not_hold_their_connections() {
    let few = |options: Options| Options { max_connections: 4, ..options };
    let server = Harness::with(Duration::ZERO, few);
    let requests = "GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(5000);
    let _deaf: Vec<TcpStream> = (0..4)
        .map(|_| {
            let mut stream = TcpStream::connect(server.addr).unwrap();
            stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
            let _ = stream.write_all(requests.as_bytes());
            stream
        })
        .collect();
    // Their responses fill the buffers of the connections, and then nothing moves for ten seconds.
    assert_eq!(server.get("/healthz").status, 200);
}

#[test]
fn a_second_signal_drops_the_requests_in_flight() {
    let mut server = Harness::with(Duration::ZERO, |options| options);
    let mut slow = TcpStream::connect(server.addr).unwrap();
    slow.write_all(b"POST /v1/classify HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\nabc").unwrap();
    thread::sleep(Duration::from_millis(100));
    let start = Instant::now();
    server.begin_to_stop();
    drop(server.abort.take());
    server.stop().unwrap();
    assert!(start.elapsed() < Duration::from_secs(5), "the body would be waited for 30 s");
}

#[test]
fn clients_that_are_connecting_at_shutdown_are_answered() {
    let mut server = Harness::with(Duration::from_millis(50), |options| options);
    let body = photo(RED);
    let head = format!("POST /v1/classify HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
    let request = [head.as_bytes(), &body].concat();
    let mut streams: Vec<TcpStream> = (0..32).map(|_| TcpStream::connect(server.addr).unwrap()).collect();
    server.begin_to_stop();
    for stream in &mut streams {
        stream.write_all(&request).unwrap();
    }
    for mut stream in streams {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer}");
    }
    server.stop().unwrap();
}

#[test]
fn the_rate_limit_is_enforced() {
    let server = Harness::with(Duration::ZERO, |options| Options { rate_limit: Some(3), ..options });
    let answers: Vec<_> = (0..6).map(|_| server.get("/v1/model")).collect();
    assert!(answers[..3].iter().all(|answer| answer.status == 200));
    assert!(answers[3..].iter().any(|answer| answer.status == 429 && answer.header("retry-after") == Some("1")));
    assert_eq!(server.get("/healthz").status, 200, "probes are not counted");
}

#[test]
fn slow_clients_time_out_while_others_are_served() {
    let short = |options: Options| Options { request_timeout: Duration::from_millis(500), ..options };
    let server = Harness::with(Duration::ZERO, short);
    // A body that never arrives.
    let mut slow = TcpStream::connect(server.addr).unwrap();
    slow.write_all(b"POST /v1/classify HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\nabc").unwrap();
    // Request heads that never end.
    let dripping: Vec<TcpStream> = (0..50)
        .map(|_| {
            let mut stream = TcpStream::connect(server.addr).unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nx-a: ").unwrap();
            stream
        })
        .collect();
    assert_eq!(server.classify("image/jpeg", &photo(RED)).status, 200);
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    drop(dripping);
    assert_eq!(server.get("/healthz").status, 200);
}

#[test]
fn decoding_ends_with_its_request() {
    let short = |options: Options| Options { request_timeout: Duration::from_millis(300), workers: 1, ..options };
    let server = Harness::with(Duration::ZERO, short);
    server.engine.hang.store(true, Ordering::SeqCst);
    server.classify("image/jpeg", &photo(RED)).fails_with(408);
    // The only worker is free again.
    for _ in 0..200 {
        if server.engine.cancelled.load(Ordering::SeqCst) == 1 {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(server.engine.cancelled.load(Ordering::SeqCst), 1);
    server.engine.hang.store(false, Ordering::SeqCst);
    assert_eq!(server.classify("image/jpeg", &photo(RED)).status, 200);
}

#[test]
fn images_are_admitted_by_their_decoded_size() {
    // An image of 40 × 30 pixels takes 7,200 bytes, of 200 × 200 pixels 240,000.
    let narrow = |options: Options| Options { max_decoding: 100_000, ..options };
    let server = Harness::with(Duration::ZERO, narrow);
    let large = encoded(&RgbImage::from_pixel(200, 200, Rgb(RED)), ImageFormat::Png);
    let error = server.classify("image/png", &large);
    assert!(String::from_utf8_lossy(&error.body).contains("--max-decoding"));
    error.fails_with(413);
    assert_eq!(server.engine.prepared.load(Ordering::SeqCst), 0, "it was not decoded");
    // Fifty small ones at once wait for each other.
    let answers: Vec<_> = thread::scope(|scope| {
        let ask = || server.classify("image/jpeg", &photo(RED)).status;
        let running: Vec<_> = (0..50).map(|_| scope.spawn(ask)).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(answers.iter().all(|&status| status == 200), "{answers:?}");
}

#[test]
fn request_bodies_share_one_bound() {
    let narrow = |options: Options| Options { max_bodies: 100_000, ..options };
    let server = Harness::with(Duration::ZERO, narrow);
    let mut holding = TcpStream::connect(server.addr).unwrap();
    holding.write_all(b"POST /v1/classify HTTP/1.1\r\nhost: localhost\r\ncontent-length: 200000\r\n\r\n").unwrap();
    holding.write_all(&[0; 99_900]).unwrap();
    thread::sleep(Duration::from_millis(200));
    server.classify("image/jpeg", &photo(RED)).fails_with(503);
    drop(holding);
    thread::sleep(Duration::from_millis(200));
    assert_eq!(server.classify("image/jpeg", &photo(RED)).status, 200);
}

#[test]
fn the_server_survives_a_thousand_malformed_requests() {
    let server = Harness::with(Duration::ZERO, |options| Options { max_body: 100_000, ..options });
    let good = photo(RED);
    let png = encoded(&image::RgbImage::new(30, 30), ImageFormat::Png);
    let mut seen = BTreeSet::new();
    for n in 0..1000usize {
        let answer = match n % 8 {
            0 => server.classify("image/jpeg", &good[..n * 7 % good.len()]),
            1 => server.classify("image/png", &png[..8 + n % 60]),
            2 => {
                let mut bytes = good.clone();
                (0..20).for_each(|i| bytes[20 + (n * 31 + i * 17) % (good.len() - 20)] ^= (n + i) as u8);
                server.classify("image/jpeg", &bytes)
            }
            3 => server.classify("application/json", b"{}"),
            4 => server.classify("multipart/form-data; boundary=x", &vec![b'-'; n]),
            5 => server.raw(&[b"POST /v1/classify HTTP/1.1\r\ncontent-length: abc\r\n\r\n", &good[..]].concat()),
            6 => server.raw(&good),
            _ => server.ask("POST", &format!("/v1/explain?class={n}"), &[("content-type", "image/gif")], &good),
        };
        assert!(answer.status < 500, "{n}: {}", answer.text());
        seen.insert(answer.status);
    }
    assert!([400, 415, 422].iter().all(|status| seen.contains(status)), "{seen:?}");
    assert_eq!(server.classify("image/jpeg", &good).status, 200);
    let metrics = server.get("/metrics").text();
    assert!(
        metrics.contains("hearth_images_in_flight 0\n") && metrics.contains("hearth_bodies_bytes 0\n"),
        "{metrics}"
    );
}

#[test]
fn requests_in_flight_are_answered_before_shutdown() {
    let mut server = Harness::with(Duration::from_millis(500), |options| options);
    let body = photo(RED);
    let mut stream = TcpStream::connect(server.addr).unwrap();
    let head = format!("POST /v1/classify HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(&[head.as_bytes(), &body].concat()).unwrap();
    thread::sleep(Duration::from_millis(150));
    server.begin_to_stop();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"red\""), "{answer}");
    server.stop().unwrap();
    assert!(TcpStream::connect(server.addr).is_err(), "it no longer listens");
}

#[test]
fn a_port_in_use_is_an_error_with_the_address() {
    let server = Harness::new();
    let options = Options { addr: server.addr, ..Options::default() };
    let engine = std::sync::Arc::new(harness::Colors::new(Duration::ZERO));
    let error = serve::run(engine, options, |_| panic!("it cannot listen")).unwrap_err().to_string();
    assert!(error.contains(&server.addr.to_string()) && error.contains("may be in use"), "{error}");
}

#[test]
fn responses_match_the_openapi_document() {
    let server = Harness::new();
    let document = server.get("/openapi.json").json();
    let paths = document["paths"].as_object().unwrap();
    let documented: BTreeSet<(&str, &str)> = paths
        .iter()
        .flat_map(|(path, methods)| methods.as_object().unwrap().keys().map(|method| (method.as_str(), path.as_str())))
        .collect();
    assert_eq!(documented, BTreeSet::from(ROUTES));
    for (method, path) in ROUTES {
        let status = server.ask(&method.to_uppercase(), path, &[], &photo(RED)).status;
        assert_eq!(status, 200, "{method} {path}");
        let other = if method == "get" { "POST" } else { "GET" };
        server.ask(other, path, &[], b"").fails_with(405);
    }
    server.get("/v2/classify").fails_with(404);

    let model = server.get("/v1/model").json();
    for field in document["components"]["schemas"]["Model"]["required"].as_array().unwrap() {
        assert!(!model[field.as_str().unwrap()].is_null(), "{field}");
    }
    let class = &server.classify("image/jpeg", &photo(RED)).json()["results"][0]["top"][0];
    for field in document["components"]["schemas"]["Class"]["required"].as_array().unwrap() {
        assert!(!class[field.as_str().unwrap()].is_null(), "{field}");
    }
}

#[test]
fn request_ids_are_echoed_and_the_page_loads_no_outside_resource() {
    let server = Harness::new();
    let named = server.ask("GET", "/healthz", &[("x-request-id", "my-id-7")], b"");
    assert_eq!(named.header("x-request-id"), Some("my-id-7"));
    assert!(server.get("/healthz").header("x-request-id").is_some());
    let page = server.get("/");
    assert!(page.header("content-security-policy").unwrap().starts_with("default-src 'none'"));
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    for file in [page.text(), server.get("/page.css").text(), server.get("/page.js").text()] {
        // The SVG namespace is not a resource.
        let file = file.replace("http://www.w3.org/2000/svg", "");
        assert!(file.len() > 500 && !file.contains("http://") && !file.contains("https://"), "no outside resource");
    }
}
