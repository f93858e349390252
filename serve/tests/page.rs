//! End-to-end tests of the page in headless Chromium through the DevTools protocol. They are skipped with a message if
//! there is no Chromium.
//!
//! `HEARTH_SCREENSHOTS=DIR` saves screenshots; `HEARTH_PAGE=http://…` and `HEARTH_PHOTO=FILE` use a running server and
//! another photograph.
#![allow(clippy::unwrap_used)]

mod harness;

use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use harness::{Harness, photo};
use serde_json::{Value, json};
use serve::Options;
use tungstenite::{Message, WebSocket};

/// A child process that is killed when the test ends.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A browser with one page.
struct Browser {
    _process: Process,
    socket: WebSocket<TcpStream>,
    next: u64,
    /// URLs that the page requested, and errors that it logged.
    requested: Vec<String>,
    errors: Vec<String>,
    _profile: tempfile::TempDir,
}

impl Browser {
    fn start() -> Option<Self> {
        let program = ["chromium", "chromium-browser", "google-chrome"]
            .into_iter()
            .find(|name| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success()))?;
        let profile = tempfile::tempdir().unwrap();
        let process = Command::new(program)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0"])
            .args(["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--no-first-run"])
            .args(["--disable-dev-shm-usage", "--disable-background-networking", "about:blank"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map(Process)
            .unwrap();
        let port = wait("a port of Chromium's", || {
            let text = fs::read_to_string(profile.path().join("DevToolsActivePort")).ok()?;
            text.lines().next()?.parse::<u16>().ok()
        });
        let target = wait("a page of Chromium's", || {
            let targets = http_get(port, "/json/list")?;
            let page = targets.as_array()?.iter().find(|target| target["type"] == "page")?;
            page["webSocketDebuggerUrl"].as_str().map(str::to_string)
        });
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (socket, _) = tungstenite::client(target.as_str(), stream).unwrap();
        socket.get_ref().set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let (requested, errors) = (Vec::new(), Vec::new());
        let mut browser = Self { _process: process, socket, next: 0, requested, errors, _profile: profile };
        for domain in ["Page", "Runtime", "Network", "Log", "DOM"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        Some(browser)
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        self.next += 1;
        let id = self.next;
        let message = json!({ "id": id, "method": method, "params": params }).to_string();
        self.socket.send(Message::text(message)).unwrap();
        loop {
            let message = self.socket.read().unwrap();
            let Ok(text) = message.to_text() else { continue };
            let Ok(mut answer) = serde_json::from_str::<Value>(text) else { continue };
            if answer["id"] == id {
                assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return answer["result"].take();
            }
            match answer["method"].as_str() {
                Some("Network.requestWillBeSent") => {
                    self.requested.extend(answer["params"]["request"]["url"].as_str().map(str::to_string));
                }
                Some("Runtime.exceptionThrown") => self.errors.push(answer["params"].to_string()),
                Some("Log.entryAdded") if answer["params"]["entry"]["level"] == "error" => {
                    self.errors.push(answer["params"]["entry"].to_string());
                }
                _ => {}
            }
        }
    }

    /// Evaluates an expression in the page.
    fn eval(&mut self, expression: &str) -> Value {
        let asked =
            json!({ "expression": expression, "returnByValue": true, "awaitPromise": true, "userGesture": true });
        let mut answer = self.call("Runtime.evaluate", asked);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {}", answer["exceptionDetails"]);
        answer["result"]["value"].take()
    }

    #[track_caller]
    fn until(&mut self, expression: &str) {
        let start = Instant::now();
        while self.eval(expression) != true {
            let page = self.eval("document.body.innerText");
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "never came true: {expression}\n{page}\n{:?}",
                self.errors
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn open(&mut self, url: &str) {
        self.call("Page.navigate", json!({ "url": url }));
        self.until("document.readyState === 'complete' && !!document.getElementById('files')");
    }

    fn choose(&mut self, files: &[&Path]) {
        let document = self.call("DOM.getDocument", json!({}));
        let asked = json!({ "nodeId": document["root"]["nodeId"], "selector": "#files" });
        let node = self.call("DOM.querySelector", asked)["nodeId"].take();
        self.call("DOM.setFileInputFiles", json!({ "files": files, "nodeId": node }));
    }

    fn press(&mut self, key: &str, code: u32) {
        let text = if key == "Enter" { "\r" } else { "" };
        for kind in ["keyDown", "keyUp"] {
            let event = json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text });
            self.call("Input.dispatchKeyEvent", event);
        }
    }

    fn size(&mut self, width: u32, height: u32) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500 });
        self.call("Emulation.setDeviceMetricsOverride", size);
    }

    fn scheme(&mut self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": features }));
    }

    fn screenshot(&mut self, name: &str) {
        let Some(folder) = std::env::var_os("HEARTH_SCREENSHOTS").map(PathBuf::from) else { return };
        let shot = self.call("Page.captureScreenshot", json!({ "captureBeyondViewport": true }));
        // Decodes base64 by hand, to avoid a dependency.
        let letters = shot["data"].as_str().unwrap().bytes().filter(|&letter| letter != b'=');
        let (mut bits, mut held, mut bytes) = (0u32, 0, Vec::new());
        for letter in letters {
            let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
            bits = bits << 6 | alphabet.iter().position(|&known| known == letter).unwrap() as u32;
            held += 6;
            if held >= 8 {
                held -= 8;
                bytes.push((bits >> held) as u8);
            }
        }
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(name), bytes).unwrap();
    }
}

fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "{what} did not appear");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn http_get(port: u16, path: &str) -> Option<Value> {
    use std::io::{Read, Write};
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    // Chromium may keep the connection open, so a timeout ends the response.
    let _ = stream.read_to_end(&mut answer);
    serde_json::from_slice(&harness::Answer::parse(&answer).body).ok()
}

fn browser() -> Option<Browser> {
    let browser = Browser::start();
    if browser.is_none() {
        eprintln!("skipped: no chromium, chromium-browser or google-chrome");
    }
    browser
}

#[test]
fn a_chosen_photograph_is_classified_and_explained() {
    let Some(mut browser) = browser() else { return };
    let server = Harness::new();
    let folder = tempfile::tempdir().unwrap();
    let [red, blue, broken] = ["red.jpg", "blue.jpg", "broken.jpg"].map(|name| folder.path().join(name));
    fs::write(&red, photo([250, 10, 10])).unwrap();
    fs::write(&blue, photo([10, 10, 250])).unwrap();
    fs::write(&broken, &photo([10, 10, 250])[..150]).unwrap();
    let url = std::env::var("HEARTH_PAGE").unwrap_or_else(|_| format!("http://{}/", server.addr));
    let own = std::env::var_os("HEARTH_PHOTO").map(PathBuf::from);

    browser.size(1100, 900);
    browser.open(&url);
    browser.until("document.getElementById('model').textContent !== ''");
    browser.screenshot("empty.png");
    if let Some(own) = own {
        browser.choose(&[&own]);
        browser.until("document.querySelectorAll('.bar').length === 5");
        browser.eval("document.querySelector('.why').click()");
        browser.until("document.querySelector('.overlay').naturalWidth > 0");
        browser.screenshot("own.png");
        browser.scheme("dark");
        browser.screenshot("own-dark.png");
        browser.size(360, 740);
        browser.screenshot("own-phone.png");
        return;
    }

    browser.choose(&[&red, &blue]);
    browser.until("document.querySelectorAll('.bar').length === 6");
    // The newest card is the first.
    browser.until("document.querySelector('.card h3').textContent === 'blue.jpg'");
    assert_eq!(browser.eval("document.querySelector('.card .name').textContent"), "blue");
    let percent = browser.eval("document.querySelector('.card .percent').textContent");
    assert!(percent.as_str().unwrap().ends_with(" %"), "{percent}");
    assert!(browser.eval("document.getElementById('said').textContent").as_str().unwrap().contains(", "));

    browser.eval("document.querySelector('.card .why').click()");
    browser
        .until("!document.querySelector('.overlay').hidden && document.querySelector('.overlay').naturalWidth === 16");
    assert_eq!(browser.eval("document.querySelector('.photo').hidden"), true);
    browser.screenshot("light.png");
    browser.eval("document.querySelector('.back').click()");
    assert_eq!(browser.eval("document.querySelector('.overlay').hidden"), true);

    browser.choose(&[&broken]);
    browser.until("document.querySelector('.state').textContent === 'The picture is damaged.'");
    browser.eval("document.getElementById('card').open = true");
    browser.until("document.querySelectorAll('#classes li').length === 3");
    browser.scheme("dark");
    browser.screenshot("dark.png");
    browser.size(360, 740);
    let overflow = browser.eval("document.documentElement.scrollWidth - innerWidth");
    assert!(overflow.as_i64().unwrap() <= 0, "it is wider than the phone by {overflow}");
    browser.screenshot("phone.png");

    browser.eval("document.getElementById('clear').click()");
    assert_eq!(browser.eval("document.querySelectorAll('.card').length"), 0);
    let origin = format!("http://{}", server.addr);
    let outside = |url: &&String| !url.starts_with(&origin) && !url.starts_with("blob:") && !url.starts_with("data:");
    assert_eq!(browser.requested.iter().find(outside), None, "it asks nobody else");
    // The damaged photograph's 422 is logged by the browser itself.
    let errors: Vec<&String> = browser.errors.iter().filter(|error| !error.contains("422")).collect();
    assert!(errors.is_empty(), "{errors:?}");
}

#[test]
fn the_page_works_by_keyboard_and_with_the_camera() {
    let Some(mut browser) = browser() else { return };
    let server = Harness::new();
    browser.open(&format!("http://{}/", server.addr));
    let active = "document.activeElement.id || document.activeElement.className";
    browser.press("Tab", 9);
    assert_eq!(browser.eval(active), "files");
    browser.press("Tab", 9);
    assert_eq!(browser.eval(active), "camera");
    browser.press("Enter", 13);
    browser.until("document.activeElement.id === 'shoot' && document.getElementById('video').videoWidth > 0");
    browser.press("Enter", 13);
    browser.until("document.querySelectorAll('.bar').length === 3");
    browser.press("Tab", 9);
    assert_eq!(browser.eval(active), "shut");
    browser.press("Enter", 13);
    browser.until("document.getElementById('viewfinder').hidden");
    // Every control has an accessible name.
    let named = "[...document.querySelectorAll('button, input, img, summary')].every(e => e.labels?.length || \
                 e.textContent.trim() || e.ariaLabel || e.alt || e.closest('[hidden]') || e.hidden)";
    assert_eq!(browser.eval(named), true);
}

#[test]
fn the_page_asks_for_a_token_once() {
    let Some(mut browser) = browser() else { return };
    let server = Harness::with(Duration::ZERO, |options| Options { token: Some("s3cret".into()), ..options });
    let folder = tempfile::tempdir().unwrap();
    let red = folder.path().join("red.jpg");
    fs::write(&red, photo([250, 10, 10])).unwrap();
    browser.open(&format!("http://{}/", server.addr));
    browser.until("!document.getElementById('entry').hidden");
    browser.choose(&[&red]);
    browser.until("!document.querySelector('.again').hidden");
    browser.eval("document.getElementById('token').value = 's3cret'");
    browser.eval("document.querySelector('#entry button').click()");
    browser.until("document.querySelectorAll('.bar').length === 3 && document.getElementById('entry').hidden");
    assert_eq!(browser.eval("document.getElementById('model').textContent"), "colors");
}
