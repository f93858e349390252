//! Load test of a running server: requests per second, latency, and whether the server survives malformed requests.
//!
//! ```text
//! cargo bench -p serve --bench load -- http://127.0.0.1:8080 photo.jpg --clients 8 --requests 1000
//! cargo bench -p serve --bench load -- http://127.0.0.1:8080 photo.jpg --malformed 1000
//! ```

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

const USAGE: &str =
    "usage: load http://HOST:PORT PHOTO [--clients N] [--requests N] [--malformed N] [--path /v1/classify]";

fn main() {
    let mut positional = Vec::new();
    let (mut clients, mut requests, mut malformed, mut path) = (8, 1000, 0, "/v1/classify".to_string());
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|text| text.parse().ok()).unwrap_or_else(|| usage());
        match argument.as_str() {
            "--clients" => clients = number(),
            "--requests" => requests = number(),
            "--malformed" => malformed = number(),
            "--path" => path = arguments.next().unwrap_or_else(|| usage()),
            _ if argument.starts_with('-') => usage(),
            _ => positional.push(argument),
        }
    }
    let [url, photo] = &positional[..] else { usage() };
    let addr = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
    let photo = std::fs::read(photo).unwrap_or_else(|error| {
        eprintln!("cannot read {photo}: {error}");
        std::process::exit(1);
    });
    match malformed {
        0 => load(addr, &path, &photo, clients.max(1), requests),
        count => nonsense(addr, &photo, count),
    }
}

fn usage() -> ! {
    eprintln!("{USAGE}");
    std::process::exit(2);
}

/// A keep-alive connection.
struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    fn connect(addr: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends a request and reads the whole response. Returns its status and whether the server closes the connection.
    fn ask(&mut self, head: &str, body: &[u8]) -> io::Result<(u16, bool)> {
        let request = [format!("{head}content-length: {}\r\n\r\n", body.len()).as_bytes(), body].concat();
        self.stream.get_mut().write_all(&request)?;
        self.read()
    }

    fn read(&mut self) -> io::Result<(u16, bool)> {
        let (mut line, mut status, mut length, mut closes) = (String::new(), 0, 0, false);
        loop {
            line.clear();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let text = line.trim_end().to_ascii_lowercase();
            if text.is_empty() {
                break;
            }
            if let Some(rest) = text.strip_prefix("http/1.1 ") {
                status = rest.get(..3).and_then(|code| code.parse().ok()).unwrap_or(0);
            } else if let Some(rest) = text.strip_prefix("content-length:") {
                length = rest.trim().parse().unwrap_or(0);
            } else if text == "connection: close" {
                closes = true;
            }
        }
        io::copy(&mut self.stream.by_ref().take(length), &mut io::sink())?;
        Ok((status, closes))
    }
}

fn head(path: &str, kind: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: load\r\ncontent-type: {kind}\r\n")
}

fn load(addr: &str, path: &str, photo: &[u8], clients: usize, requests: usize) {
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    let all: Vec<(u16, f64)> = thread::scope(|scope| {
        let work = || {
            let (mut done, mut client) = (Vec::new(), None);
            while next.fetch_add(1, Ordering::Relaxed) < requests {
                let begin = Instant::now();
                let asked = match &mut client {
                    Some(client) => Ok(client),
                    None => Client::connect(addr).map(|new| client.insert(new)),
                };
                let answer = asked.and_then(|client: &mut Client| client.ask(&head(path, "image/jpeg"), photo));
                done.push((answer.as_ref().map_or(0, |answer| answer.0), begin.elapsed().as_secs_f64()));
                if !matches!(answer, Ok((_, false))) {
                    client = None;
                }
            }
            done
        };
        let threads: Vec<_> = (0..clients).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
    });
    let seconds = start.elapsed().as_secs_f64();
    let mut statuses: BTreeMap<u16, usize> = BTreeMap::new();
    all.iter().for_each(|(status, _)| *statuses.entry(*status).or_default() += 1);
    let mut times: Vec<f64> = all.iter().filter(|(status, _)| *status == 200).map(|(_, time)| 1e3 * time).collect();
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times.get(((times.len() as f64 * share).ceil() as usize).saturating_sub(1)).copied();
    let ms = |share| at(share).map_or("-".to_string(), |time| format!("{time:.1} ms"));
    println!(
        "{clients} clients: {:.1} requests/s answered, p50 {}, p90 {}, p99 {}, longest {}; by status (0: no answer): {statuses:?}",
        times.len() as f64 / seconds,
        ms(0.5),
        ms(0.9),
        ms(0.99),
        ms(1.0)
    );
}

/// Sends truncated and corrupted photographs, wrong content types, false lengths, decompression bombs, protocol errors
/// and bodies that never arrive.
fn nonsense(addr: &str, photo: &[u8], count: usize) {
    let mut statuses: BTreeMap<u16, usize> = BTreeMap::new();
    let mut dripping = Vec::new();
    for n in 0..count {
        let classify = |kind: &str, body: &[u8]| {
            Client::connect(addr).and_then(|mut client| client.ask(&head("/v1/classify", kind), body))
        };
        let raw = |bytes: &[u8]| {
            Client::connect(addr).and_then(|mut client| {
                let _ = client.stream.get_mut().write_all(bytes);
                client.read()
            })
        };
        let answer = match n % 9 {
            0 => classify("image/jpeg", &photo[..photo.len() * (n % 97) / 97]),
            1 => {
                let mut bytes = photo.to_vec();
                (0..50).for_each(|i| {
                    let at = 100 + (n * 7919 + i * 104_729) % (bytes.len() - 100);
                    bytes[at] = bytes[at].wrapping_add((n + i) as u8 | 1);
                });
                classify("image/jpeg", &bytes)
            }
            2 => classify("application/json", b"{\"image\": 1}"),
            3 => classify("multipart/form-data; boundary=x", photo),
            4 => raw(b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n"),
            // A 54-byte header that declares 60,000 × 60,000 pixels.
            5 => {
                let mut bomb = b"BM\x36\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\x60\xea\0\0\x60\xea\0\0\x01\0\x18\0".to_vec();
                bomb.resize(54, 0);
                classify("image/bmp", &bomb)
            }
            6 => raw(photo),
            7 => raw(b"GET /v1/explain HTTP/1.1\r\nhost: x\r\n\r\n"),
            _ => {
                // A body that never arrives.
                if let Ok(mut stream) = TcpStream::connect(addr) {
                    let _ = stream.write_all(b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n\r\nx");
                    dripping.push(stream);
                }
                continue;
            }
        };
        *statuses.entry(answer.map_or(0, |answer| answer.0)).or_default() += 1;
    }
    println!("{count} malformed requests, {} of them dripping: {statuses:?}", dripping.len());
    let good = Client::connect(addr).and_then(|mut client| client.ask(&head("/v1/classify", "image/jpeg"), photo));
    println!("a good one after them: {}", good.map_or_else(|error| error.to_string(), |answer| answer.0.to_string()));
}
