//! Downloads from a server of our own on the loopback interface, which misbehaves as each test requests.

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::*;

// ---- the server ----

/// What a client asked: the first line and the headers.
#[derive(Debug, Clone)]
struct Request {
    line: String,
    headers: Vec<String>,
}

impl Request {
    /// The value of a header, whatever its case.
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|header| {
            let (key, value) = header.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// The first byte that was asked for.
    fn range_start(&self) -> Option<usize> {
        self.header("Range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// A server that answers each connection with one call of its handler, which gets the number of the request.
struct Server {
    address: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    fn start(handler: impl Fn(usize, &Request, &mut TcpStream) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        let handler = Arc::new(handler);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let (seen, handler) = (Arc::clone(&seen), Arc::clone(&handler));
                std::thread::spawn(move || {
                    while let Some(request) = read_request(&stream) {
                        let number = {
                            let mut seen = seen.lock().expect("not poisoned");
                            seen.push(request.clone());
                            seen.len() - 1
                        };
                        // A client that hung up is the client's affair.
                        let _ = handler(number, &request, &mut stream);
                        // As a proxy: the tunnelled request follows on the same connection.
                        if !request.line.starts_with("CONNECT ") {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, requests }
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("not poisoned").clone()
    }
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(0) | Err(_) => return None,
            Ok(_) if line.trim().is_empty() => break,
            Ok(_) => lines.push(line.trim().to_string()),
        }
    }
    let line = lines.remove(0);
    Some(Request { line, headers: lines })
}

/// A whole answer. `length` is what the server claims.
fn answer(stream: &mut TcpStream, status: &str, headers: &str, length: usize, body: &[u8]) -> io::Result<()> {
    write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n")?;
    stream.write_all(body)?;
    stream.flush()
}

/// What a good server does, ranges included.
fn serve(stream: &mut TcpStream, request: &Request, content: &[u8]) -> io::Result<()> {
    match request.range_start() {
        None => answer(stream, "200 OK", "", content.len(), content),
        Some(start) if start >= content.len() => answer(
            stream,
            "416 Range Not Satisfiable",
            &format!("Content-Range: bytes */{}\r\n", content.len()),
            0,
            b"",
        ),
        Some(start) => {
            let range = format!("Content-Range: bytes {start}-{}/{}\r\n", content.len() - 1, content.len());
            answer(stream, "206 Partial Content", &range, content.len() - start, &content[start..])
        }
    }
}

// ---- what is served ----

/// Some 300 KB that no compression or repetition could fake.
fn content() -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..300_000).map(next).collect()
}

fn entry_of(server: &str, content: &[u8]) -> Published {
    let mut hash = Hash::Sha256(Sha256::new());
    hash.update(content);
    Published {
        url: format!("{server}/models/tiny-{}.pth", &hash.digits()[..8]),
        checksum: Checksum::Sha256Prefix(hash.digits()[..8].to_string()),
        size_mib: Some((content.len() as f64 / 1048.576).round() / 1000.0),
        ..find("resnet18").expect("it is in the table").clone()
    }
}

/// A hub without proxies that does not wait between tries.
fn hub(folder: &Path) -> Hub {
    Hub {
        backoff: Duration::from_millis(1),
        variables: BTreeMap::new(),
        ..Hub::new().with_cache_dir(folder).with_timeout(Duration::from_secs(5))
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// The names in a folder but for locks and records.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("the folder is there");
    let names = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    names.filter(|name| !name.ends_with(".lock") && !name.ends_with(".sha256")).collect()
}

fn ignore(_: Progress) {}

/// Fetches, and asserts that the cache folder then holds the right bytes and nothing else.
fn fetch_right(hub: &Hub, entry: &Published, folder: &Path, expected: &[u8]) -> Vec<Progress> {
    let mut seen = Vec::new();
    let path = hub.fetch(entry, &mut |progress| seen.push(progress)).expect("the download succeeds");
    assert!(std::fs::read(&path).expect("the file is there") == expected, "other bytes than the server's");
    assert_eq!(names(folder), [entry.file()]);
    seen
}

// ---- the table ----

#[test]
fn every_entry_is_consistent() {
    let mut names = HashSet::new();
    for entry in published() {
        assert!(names.insert(entry.name()), "{} is there twice", entry.name());
        assert_eq!(find(&entry.name()).expect("found by its name"), entry);
        match &entry.checksum {
            Checksum::Sha256Prefix(digits) => {
                assert_eq!(digits.len(), 8);
                assert!(entry.file().contains(&format!("-{digits}.")), "{}", entry.url);
            }
            Checksum::Sha1(digits) => assert_eq!(digits.len(), 40),
        }
        if let (Some(size), Some(params)) = (entry.size(), entry.num_params) {
            let bytes = if entry.stored == Stored::F16 { 2 } else { 4 };
            assert!(size > params * bytes, "{}: {size} bytes cannot hold {params} parameters", entry.name());
        }
        assert_eq!(entry.acc1.is_none(), entry.features_only);
        let json = entry.card().to_json();
        assert_eq!(Card::from_json(&json, Path::new("card")).expect("its card is valid"), entry.card());
    }
    let models: HashSet<_> = published().iter().map(|entry| entry.architecture.name()).collect();
    for model in models {
        let defaults = published().iter().filter(|entry| entry.architecture.name() == model && entry.default).count();
        assert_eq!(defaults, 1, "{model}");
        assert_eq!(find(model).expect("found by its model").architecture.name(), model);
    }
    assert_eq!(published().len(), 30);
}

#[test]
fn names_are_found_in_any_case_and_a_bare_one_means_the_default() {
    assert_eq!(find("resnet50").expect("found").name(), "resnet50.IMAGENET1K_V2");
    assert_eq!(find("resnet50.imagenet1k_v1").expect("found").file(), "resnet50-0676ba61.pth");
    assert_eq!(find("VGG16.imagenet1k_FEATURES").expect("found").acc1, None);
    assert_eq!(find("wide_resnet50_2.IMAGENET1K_V1").expect("found").stored, Stored::F16);
    assert!(find("googlenet").expect("found").transform_input);
    assert_eq!(find("googlenet_2014").expect("found").name(), "googlenet_2014.BVLC");
}

#[test]
fn an_unknown_name_suggests_near_ones() {
    let message = |name: &str| find(name).unwrap_err().to_string();
    assert!(message("resnet500").contains("resnet50 "), "{}", message("resnet500"));
    assert!(message("resnext50").contains("resnext50_32x4d"), "{}", message("resnext50"));
    let text = message("resnet50.IMAGENET1K_V3");
    assert!(text.contains("resnet50.IMAGENET1K_V1 or resnet50.IMAGENET1K_V2"), "{text}");
}

#[test]
fn a_file_is_known_by_its_checksum_whatever_its_name() {
    let (content, folder) = (content(), folder());
    let entry = entry_of("http://localhost", &content);
    let unsized_entry = Published { size_mib: None, ..entry.clone() };
    let (renamed, named) = (folder.path().join("mine.pth"), folder.path().join(entry.file()));
    std::fs::write(&renamed, &content).expect("written");
    std::fs::write(&named, &content).expect("written");
    let is_known =
        |entry: &Published, path: &Path| identify_among(std::slice::from_ref(entry), path).expect("readable").is_some();
    assert!(is_known(&entry, &renamed));
    assert!(is_known(&unsized_entry, &named) && !is_known(&unsized_entry, &renamed));
    std::fs::write(&named, [&content[1..], b"x"].concat()).expect("written");
    assert!(!is_known(&entry, &named), "the name alone proves nothing");
    assert!(matches!(identify(&folder.path().join("missing.pth")), Err(Error::Cache { .. })));
}

// ---- downloads ----

/// Bytes whose SHA-256 begins with the same two digits as that of `content`.
fn forged(content: &[u8]) -> Vec<u8> {
    let digits = |content: &[u8]| {
        let mut hash = Hash::Sha256(Sha256::new());
        hash.update(content);
        hash.digits()[..2].to_string()
    };
    let mut other = content.to_vec();
    (0..=u16::MAX)
        .find_map(|number| {
            other[..2].copy_from_slice(&number.to_le_bytes());
            (other != content && digits(&other) == digits(content)).then(|| other.clone())
        })
        .expect("one of 256 has those digits")
}

#[test]
fn the_file_that_was_first_accepted_is_recorded_and_no_other_is_accepted() {
    let (content, folder) = (content(), folder());
    let forged = forged(&content);
    let served = Arc::new(Mutex::new(content.clone()));
    let serving = Arc::clone(&served);
    let server = Server::start(move |_, request, stream| {
        let content = serving.lock().expect("not poisoned").clone();
        serve(stream, request, &content)
    });
    let mut entry = entry_of(&server.address, &content);
    let Checksum::Sha256Prefix(digits) = &mut entry.checksum else { unreachable!("a prefix") };
    digits.truncate(2);
    let hub = hub(folder.path());
    let path = hub.fetch(&entry, &mut ignore).expect("downloaded");
    let record = beside(&path, "sha256");
    let recorded = std::fs::read_to_string(&record).expect("recorded");
    assert!(recorded.starts_with(&entry_digits(&content)) && recorded.ends_with(&format!("  {}\n", entry.file())));

    // In the cache folder, another file of the same two digits is replaced, and offline refused.
    std::fs::write(&path, &forged).expect("written");
    let error = hub.clone().with_offline(true).fetch(&entry, &mut ignore).unwrap_err().to_string();
    assert!(error.contains("first accepted"), "{error}");
    hub.fetch(&entry, &mut ignore).expect("downloaded again");
    assert!(std::fs::read(&path).expect("there") == content);

    // So it is as an answer of the server.
    std::fs::remove_file(&path).expect("deleted");
    *served.lock().expect("not poisoned") = forged;
    let error = hub.fetch(&entry, &mut ignore).unwrap_err().to_string();
    assert!(error.contains("first accepted") && !path.exists(), "{error}");
    // Without a record it is the first.
    std::fs::remove_file(&record).expect("deleted");
    hub.fetch(&entry, &mut ignore).expect("downloaded");
    assert!(record.exists());
}

fn entry_digits(content: &[u8]) -> String {
    let mut hash = Hash::Sha256(Sha256::new());
    hash.update(content);
    hash.digits()
}

#[test]
fn a_file_whose_size_is_not_published_has_a_limit() {
    let folder = folder();
    let server = Server::start(|_, _, stream| answer(stream, "200 OK", "", 7 << 30, b"and so on"));
    let mut entry = entry_of(&server.address, b"what was published");
    entry.size_mib = None;
    let error = hub(folder.path()).fetch(&entry, &mut ignore).unwrap_err().to_string();
    assert!(error.contains("7516192768 bytes, of which none were downloaded"), "{error}");
    assert_eq!(server.requests().len(), 1);
    assert!(entry.is_long(MAX_UNPUBLISHED_SIZE + 1) && !entry.is_long(MAX_UNPUBLISHED_SIZE));
    assert!(find("googlenet_2014").expect("found").is_long(1 << 30));
}

#[cfg(unix)]
#[test]
fn links_and_pipes_in_the_cache_folder_are_not_followed() {
    let (content, folder) = (content(), folder());
    let served = content.clone();
    let server = Server::start(move |_, request, stream| serve(stream, request, &served));
    let entry = entry_of(&server.address, &content);
    let hub = hub(folder.path());
    let path = hub.path(&entry).expect("a path");
    let precious = folder.path().join("precious");
    std::fs::write(&precious, "not to be touched").expect("written");
    for extension in ["lock", "part"] {
        let link = beside(&path, extension);
        std::os::unix::fs::symlink(&precious, &link).expect("linked");
        let error = hub.fetch(&entry, &mut ignore).unwrap_err().to_string();
        assert!(error.contains("symbolic link"), "{error}");
        std::fs::remove_file(&link).expect("deleted");
    }
    assert_eq!(std::fs::read_to_string(&precious).expect("there"), "not to be touched");
    let _ = std::fs::remove_file(beside(&path, "lock"));
    for extension in ["lock", "part"] {
        let pipe = beside(&path, extension);
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        if made.is_ok_and(|status| status.success()) {
            assert!(hub.fetch(&entry, &mut ignore).is_err(), "{extension}");
        }
        let _ = std::fs::remove_file(&pipe);
    }
    hub.fetch(&entry, &mut ignore).expect("downloaded");
}

#[test]
fn a_file_is_downloaded_once_and_then_found() {
    let (content, folder) = (content(), folder());
    let served = content.clone();
    let server = Server::start(move |_, request, stream| serve(stream, request, &served));
    let entry = entry_of(&server.address, &content);
    let hub = hub(&folder.path().join("new"));

    let seen = fetch_right(&hub, &entry, &folder.path().join("new"), &content);
    let last = seen.last().expect("progress was reported");
    assert_eq!((last.done, last.total, last.resumed), (300_000, Some(300_000), 0));
    assert!(seen.windows(2).all(|pair| pair[0].done <= pair[1].done));

    fetch_right(&hub, &entry, &folder.path().join("new"), &content);
    assert_eq!(server.requests().len(), 1, "the second time it is in the cache");
    let offline = hub.clone().with_offline(true);
    assert!(offline.fetch(&entry, &mut ignore).is_ok());
}

#[test]
fn a_cut_connection_is_resumed_where_it_was_cut() {
    let (content, folder) = (content(), folder());
    let served = content.clone();
    let server = Server::start(move |number, request, stream| match number {
        0 => answer(stream, "200 OK", "", served.len(), &served[..100_000]),
        _ => serve(stream, request, &served),
    });
    let entry = entry_of(&server.address, &content);
    let seen = fetch_right(&hub(folder.path()), &entry, folder.path(), &content);
    assert_eq!(seen.last().map(|progress| progress.resumed), Some(100_000));

    let requests = server.requests();
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[0].header("Range"), None);
    assert_eq!(requests[1].header("Range"), Some("bytes=100000-"));
}

#[test]
fn a_server_that_cuts_every_time_still_delivers_as_long_as_it_goes_on() {
    let (content, folder) = (content(), folder());
    let served = content.clone();
    let server = Server::start(move |_, request, stream| {
        let start = request.range_start().unwrap_or(0);
        let end = (start + 30_000).min(served.len());
        let range = format!("Content-Range: bytes {start}-{}/{}\r\n", served.len() - 1, served.len());
        let status = if start == 0 { "200 OK" } else { "206 Partial Content" };
        answer(stream, status, &range, served.len() - start, &served[start..end])
    });
    fetch_right(&hub(folder.path()), &entry_of(&server.address, &content), folder.path(), &content);
    assert_eq!(server.requests().len(), 10);
}

#[test]
fn a_part_of_an_earlier_run_is_resumed() {
    let (content, folder) = (content(), folder());
    let served = content.clone();
    let server = Server::start(move |_, request, stream| serve(stream, request, &served));
    let entry = entry_of(&server.address, &content);
    std::fs::write(folder.path().join(format!("{}.part", entry.file())), &content[..123_456]).expect("written");
    fetch_right(&hub(folder.path()), &entry, folder.path(), &content);
    assert_eq!(server.requests()[0].range_start(), Some(123_456));
}

#[test]
fn a_complete_part_needs_no_request() {
    let (content, folder) = (content(), folder());
    let server = Server::start(|_, _, stream| answer(stream, "500 Internal Server Error", "", 0, b""));
    let entry = entry_of(&server.address, &content);
    std::fs::write(folder.path().join(format!("{}.part", entry.file())), &content).expect("written");
    fetch_right(&hub(folder.path()), &entry, folder.path(), &content);
    assert!(server.requests().is_empty());
}

#[test]
fn a_part_of_other_bytes_or_too_many_is_fetched_again() {
    let content = content();
    let mut longer = content.clone();
    longer.extend_from_slice(&[0; 5000]);
    for wrong in [vec![7; 50_000], vec![7; 300_000], longer] {
        let folder = folder();
        let served = content.clone();
        let server = Server::start(move |_, request, stream| serve(stream, request, &served));
        let entry = entry_of(&server.address, &content);
        std::fs::write(folder.path().join(format!("{}.part", entry.file())), &wrong).expect("written");
        fetch_right(&hub(folder.path()), &entry, folder.path(), &content);
        assert_eq!(server.requests().len(), 2);
        assert_eq!(server.requests()[1].header("Range"), None);
    }
}

#[test]
fn a_server_without_ranges_starts_over() {
    let (content, folder) = (content(), folder());
    let served = content.clone();
    let server = Server::start(move |number, _, stream| {
        let end = if number == 0 { 100_000 } else { served.len() };
        answer(stream, "200 OK", "", served.len(), &served[..end])
    });
    fetch_right(&hub(folder.path()), &entry_of(&server.address, &content), folder.path(), &content);
    assert_eq!(server.requests()[1].range_start(), Some(100_000));
}

#[test]
fn a_range_that_was_not_asked_for_is_not_believed() {
    let (content, folder) = (content(), folder());
    let served = content.clone();
    let server = Server::start(move |number, request, stream| match number {
        0 => answer(stream, "200 OK", "", served.len(), &served[..100_000]),
        1 => answer(stream, "206 Partial Content", "Content-Range: bytes 0-9/300000\r\n", 10, &served[..10]),
        _ => serve(stream, request, &served),
    });
    fetch_right(&hub(folder.path()), &entry_of(&server.address, &content), folder.path(), &content);
    assert_eq!(server.requests()[2].header("Range"), None);
}

#[test]
fn a_length_that_is_too_short_is_found_out() {
    let (content, folder) = (content(), folder());
    let served = content.clone();
    let server = Server::start(move |number, request, stream| match number {
        0 => answer(stream, "200 OK", "", 100_000, &served),
        _ => serve(stream, request, &served),
    });
    fetch_right(&hub(folder.path()), &entry_of(&server.address, &content), folder.path(), &content);
    assert_eq!(server.requests()[1].range_start(), Some(100_000));
}

#[test]
fn a_length_that_is_too_long_does_not_matter_once_all_is_there() {
    let (content, folder) = (content(), folder());
    let served = content.clone();
    let server = Server::start(move |_, _, stream| answer(stream, "200 OK", "", served.len() + 77, &served));
    fetch_right(&hub(folder.path()), &entry_of(&server.address, &content), folder.path(), &content);
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn no_length_at_all_will_do() {
    let (content, folder) = (content(), folder());
    let served = content.clone();
    let server = Server::start(move |_, _, stream| {
        write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
        stream.write_all(&served)
    });
    let seen = fetch_right(&hub(folder.path()), &entry_of(&server.address, &content), folder.path(), &content);
    let total = seen.last().and_then(|progress| progress.total).expect("the published size");
    assert!(total.abs_diff(300_000) < SIZE_TOLERANCE);
}

#[test]
fn a_wrong_file_is_deleted_and_both_hashes_are_told() {
    for wrong in [vec![1; 300_000], b"<html>Please log in</html>".to_vec(), vec![2; 3_000_000]] {
        let folder = folder();
        let served = wrong.clone();
        let server = Server::start(move |_, _, stream| answer(stream, "200 OK", "", served.len(), &served));
        let entry = entry_of(&server.address, &content());
        let error = hub(folder.path()).fetch(&entry, &mut ignore).unwrap_err();
        assert!(matches!(error, Error::WrongFile { .. }), "{error}");
        let message = error.to_string();
        let Checksum::Sha256Prefix(expected) = &entry.checksum else { panic!("the entry has a SHA-256") };
        assert!(message.contains(&format!("expected SHA-256 {expected}…")), "{message}");
        // What is announced to be too long is not downloaded.
        let got = if wrong.len() > 1_000_000 { ", got 3000000 bytes" } else { ", got SHA-256 " };
        assert!(message.contains(got), "{message}");
        assert!(names(folder.path()).is_empty(), "{:?}", names(folder.path()));
        assert!(server.requests().len() <= 2);
    }
}

#[test]
fn a_file_that_is_not_there_is_an_error_at_once() {
    let folder = folder();
    let server = Server::start(|_, _, stream| answer(stream, "404 Not Found", "", 0, b""));
    let entry = entry_of(&server.address, &content());
    let error = hub(folder.path()).fetch(&entry, &mut ignore).unwrap_err();
    assert!(matches!(error, Error::Status { status: 404, .. }), "{error}");
    assert!(error.to_string().contains(&entry.url), "{error}");
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_busy_server_is_asked_again() {
    let (content, folder) = (content(), folder());
    let served = content.clone();
    let server = Server::start(move |number, request, stream| match number {
        0 => answer(stream, "503 Service Unavailable", "", 0, b""),
        1 => answer(stream, "429 Too Many Requests", "Retry-After: 0\r\n", 0, b""),
        _ => serve(stream, request, &served),
    });
    fetch_right(&hub(folder.path()), &entry_of(&server.address, &content), folder.path(), &content);
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn a_server_that_stays_down_is_given_up_and_the_part_kept() {
    let (content, folder) = (content(), folder());
    let served = content.clone();
    let server = Server::start(move |number, _, stream| match number {
        0 => answer(stream, "200 OK", "", served.len(), &served[..100_000]),
        _ => answer(stream, "503 Service Unavailable", "", 0, b""),
    });
    let entry = entry_of(&server.address, &content);
    let error = hub(folder.path()).fetch(&entry, &mut ignore).unwrap_err();
    assert!(matches!(error, Error::Network { done: 100_000, .. }), "{error}");
    assert!(error.to_string().contains("the server answered 503"), "{error}");
    assert_eq!(server.requests().len(), MAX_FAILURES as usize);
    assert_eq!(names(folder.path()), [format!("{}.part", entry.file())]);
}

#[test]
fn a_slow_server_is_waited_for_and_a_stalled_one_is_not() {
    let (content, folder) = (content(), folder());
    let served = content.clone();
    let server = Server::start(move |number, request, stream| match number {
        // Stalls after a third.
        0 => {
            answer(stream, "200 OK", "", served.len(), &served[..100_000])?;
            std::thread::sleep(Duration::from_secs(20));
            Ok(())
        }
        // Slow: longer than the time-out in all, but never between two pieces.
        _ => {
            let start = request.range_start().unwrap_or(0);
            let range = format!("Content-Range: bytes {start}-{}/{}\r\n", served.len() - 1, served.len());
            answer(stream, "206 Partial Content", &range, served.len() - start, b"")?;
            for piece in served[start..].chunks(25_000) {
                std::thread::sleep(Duration::from_millis(100));
                stream.write_all(piece)?;
            }
            Ok(())
        }
    });
    let hub = hub(folder.path()).with_timeout(Duration::from_millis(500));
    let started = Instant::now();
    fetch_right(&hub, &entry_of(&server.address, &content), folder.path(), &content);
    assert_eq!(server.requests().len(), 2);
    assert!(started.elapsed() < Duration::from_secs(15), "the stalled connection was not given up");
    assert!(started.elapsed() > Duration::from_millis(1200), "the slow one was");
}

#[test]
fn redirects_are_followed_also_when_resuming() {
    let (content, folder) = (content(), folder());
    let served = content.clone();
    let server = Server::start(move |number, request, stream| {
        if request.line.contains("/models/") {
            return answer(stream, "302 Found", "Location: /elsewhere.pth\r\n", 0, b"");
        }
        match number {
            1 => answer(stream, "200 OK", "", served.len(), &served[..100_000]),
            _ => serve(stream, request, &served),
        }
    });
    fetch_right(&hub(folder.path()), &entry_of(&server.address, &content), folder.path(), &content);
    let requests = server.requests();
    assert_eq!(requests.len(), 4);
    assert!(requests[3].line.starts_with("GET /elsewhere.pth "), "{}", requests[3].line);
    assert_eq!(requests[3].range_start(), Some(100_000));
}

#[test]
fn a_mirror_stands_in_for_the_publisher() {
    let (content, folder) = (content(), folder());
    let served = content.clone();
    let server = Server::start(move |_, request, stream| serve(stream, request, &served));
    let entry = entry_of("https://publisher.invalid", &content);
    let hub = hub(folder.path()).with_mirror(format!("{}/weights/", server.address));
    fetch_right(&hub, &entry, folder.path(), &content);
    assert_eq!(server.requests()[0].line, format!("GET /weights/{} HTTP/1.1", entry.file()));
}

#[test]
fn two_downloads_at_once_do_not_hurt_each_other() {
    let (content, folder) = (content(), folder());
    let served = content.clone();
    let server = Server::start(move |_, request, stream| {
        std::thread::sleep(Duration::from_millis(300));
        serve(stream, request, &served)
    });
    let entry = entry_of(&server.address, &content);
    let hub = hub(folder.path());
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| hub.fetch(&entry, &mut ignore))).collect();
        for thread in threads {
            let path = thread.join().expect("no panic").expect("the download succeeds");
            assert!(std::fs::read(path).expect("the file is there") == content);
        }
    });
    assert_eq!(server.requests().len(), 1, "the others waited");
    assert_eq!(names(folder.path()), [entry.file()]);
}

// ---- the cache folder ----

#[test]
fn offline_names_the_file_its_url_and_its_place() {
    let folder = folder();
    let entry = find("resnet18").expect("it is in the table");
    let error = hub(folder.path()).with_offline(true).fetch(entry, &mut ignore).unwrap_err();
    let message = error.to_string();
    assert!(message.contains(&folder.path().join("resnet18-f37072fd.pth").display().to_string()), "{message}");
    assert!(message.contains("https://download.pytorch.org/models/resnet18-f37072fd.pth"), "{message}");
    assert!(message.contains("--offline"), "{message}");
}

#[test]
fn a_damaged_file_in_the_cache_is_replaced_or_offline_refused() {
    let (content, folder) = (content(), folder());
    let served = content.clone();
    let server = Server::start(move |_, request, stream| serve(stream, request, &served));
    let entry = entry_of(&server.address, &content);
    let mut damaged = content.clone();
    damaged[200_000] ^= 1;
    std::fs::write(folder.path().join(entry.file()), &damaged).expect("written");

    let error = hub(folder.path()).with_offline(true).fetch(&entry, &mut ignore).unwrap_err();
    assert!(matches!(error, Error::WrongFile { .. }), "{error}");
    fetch_right(&hub(folder.path()), &entry, folder.path(), &content);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_told_with_the_remedy() {
    // Every write to this device fails as one to a full disk does.
    let path = PathBuf::from("/dev/full");
    let file = OpenOptions::new().write(true).open(&path).expect("it is there");
    let hash = Hash::Sha256(Sha256::new());
    let mut part = Part { path, file, empty_hash: hash.clone(), hash, len: 0, is_spliced: false };
    let error = part.append(b"more").unwrap_err();
    assert!(matches!(&error, Error::Cache { source, .. } if source.kind() == io::ErrorKind::StorageFull), "{error}");
    assert!(error.to_string().contains("--cache-dir"), "{error}");
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let folder = folder();
    let file = folder.path().join("file");
    std::fs::write(&file, b"").expect("written");
    let entry = entry_of("http://127.0.0.1:9", &content());
    let error = hub(&file.join("weights")).fetch(&entry, &mut ignore).unwrap_err();
    assert!(error.to_string().contains(&file.display().to_string()), "{error}");
}

#[test]
fn sha1_is_checked_where_the_publisher_has_that() {
    let (content, folder) = (content(), folder());
    let served = content.clone();
    let server = Server::start(move |_, request, stream| serve(stream, request, &served));
    // `sha1sum` of "abc", from FIPS 180-4's examples.
    let mut hash = Hash::Sha1(Sha1::new());
    hash.update(b"abc");
    assert_eq!(hash.digits(), "a9993e364706816aba3e25717850c26c9cd0d89d");

    let mut hash = Hash::Sha1(Sha1::new());
    hash.update(&content);
    let mut entry = entry_of(&server.address, &content);
    entry.checksum = Checksum::Sha1(hash.digits());
    entry.size_mib = None;
    fetch_right(&hub(folder.path()), &entry, folder.path(), &content);

    entry.url = format!("{}/other.caffemodel", server.address);
    entry.checksum = Checksum::Sha1("405fc5acd08a3bb12de8ee5e23a96bec22f08204".to_string());
    let error = hub(folder.path()).fetch(&entry, &mut ignore).unwrap_err();
    assert!(error.to_string().contains(&format!("got SHA-1 {}", hash.digits())), "{error}");
}

// ---- proxies ----

/// A proxy that tunnels to itself: it plays the publisher too.
fn proxy(content: Vec<u8>) -> Server {
    Server::start(move |_, request, stream| match request.line.starts_with("CONNECT ") {
        true => write!(stream, "HTTP/1.1 200 Connection established\r\n\r\n"),
        false => serve(stream, request, &content),
    })
}

fn variables(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

#[test]
fn the_proxy_variables_of_the_environment_and_its_cache_folder_are_used() {
    const URL: &str = "HEARTH_TEST_PROXIED_URL";
    let content = content();
    // The child: a process whose environment names the proxy.
    if let Ok(url) = std::env::var(URL) {
        let path = Hub::new().fetch(&entry_of(&url, &content), &mut ignore).expect("the download succeeds");
        assert!(std::fs::read(path).expect("the file is there") == content);
        return;
    }
    let folder = folder();
    let proxy = proxy(content.clone());
    let child = std::process::Command::new(std::env::current_exe().expect("the test's own file"))
        .args([
            "--exact",
            "--nocapture",
            "published::tests::the_proxy_variables_of_the_environment_and_its_cache_folder_are_used",
        ])
        .env(URL, "http://publisher.invalid")
        .env("XDG_CACHE_HOME", folder.path())
        .env("http_proxy", &proxy.address)
        .env_remove("no_proxy")
        .env_remove("NO_PROXY")
        .output()
        .expect("the test runs itself");
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
    let entry = entry_of("http://publisher.invalid", &content);
    assert!(folder.path().join("hearth/weights").join(entry.file()).is_file());
    let requests = proxy.requests();
    assert_eq!(requests[0].line, "CONNECT publisher.invalid:80 HTTP/1.1");
    assert_eq!(requests[1].line, format!("GET /models/{} HTTP/1.1", entry.file()));
}

#[test]
fn a_host_in_no_proxy_is_asked_directly() {
    let (content, folder) = (content(), folder());
    let served = content.clone();
    let server = Server::start(move |_, request, stream| serve(stream, request, &served));
    let proxy = proxy(content.clone());
    let mut hub = hub(folder.path());
    hub.variables = variables(&[("HTTP_PROXY", &proxy.address), ("NO_PROXY", "localhost, 127.0.0.1")]);
    fetch_right(&hub, &entry_of(&server.address, &content), folder.path(), &content);
    assert_eq!((server.requests().len(), proxy.requests().len()), (1, 0));
}

#[test]
fn the_scheme_of_the_url_picks_the_proxy() {
    let folder = folder();
    let mut hub = hub(folder.path());
    let host = |hub: &Hub, url: &str| hub.proxy(url).expect("valid").map(|proxy| proxy.host().to_string());
    assert_eq!(host(&hub, "https://a.org/f"), None);
    hub.variables = variables(&[("https_proxy", "http://secure:1"), ("http_proxy", "http://plain:2")]);
    assert_eq!(host(&hub, "https://a.org/f").as_deref(), Some("secure"));
    assert_eq!(host(&hub, "http://a.org/f").as_deref(), Some("plain"));
    hub.variables = variables(&[("ALL_PROXY", "http://user:s%40cret@all:3"), ("https_proxy", "")]);
    let proxy = hub.proxy("https://a.org/f").expect("valid").expect("one");
    assert_eq!(
        (proxy.host(), proxy.port(), proxy.username(), proxy.password()),
        ("all", 3, Some("user"), Some("s@cret"))
    );
    hub.variables = variables(&[("https_proxy", "http://secure:1"), ("no_proxy", "example.com,.a.org")]);
    let proxy = hub.proxy("https://a.org/f").expect("valid").expect("one");
    let exempt = |uri: &str| proxy.is_no_proxy(&uri.parse().expect("a URI"));
    assert!(exempt("https://example.com/f") && exempt("https://www.example.com/f") && exempt("https://www.a.org/f"));
    assert!(!exempt("https://myexample.com/f"));
    hub.variables = variables(&[("https_proxy", "gopher://old:70")]);
    let error = hub.proxy("https://a.org/f").unwrap_err().to_string();
    assert!(error.contains("https_proxy") && error.contains("gopher://old:70"), "{error}");
}

#[test]
fn content_ranges_are_parsed() {
    assert_eq!(parse_content_range("bytes 5-9/10"), Some((5, Some(10))));
    assert_eq!(parse_content_range("bytes 5-9/*"), Some((5, None)));
    assert_eq!(parse_content_range("bytes */10"), None);
    assert_eq!(parse_content_range("items 5-9/10"), None);
}
