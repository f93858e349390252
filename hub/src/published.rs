//! Published weights by name: `resnet50`, `resnet50.IMAGENET1K_V1`, `googlenet_2014.BVLC`.
//!
//! The table [`published`] lists every weight that torchvision publishes for Hearth's networks, and BVLC's GoogLeNet:
//! where the file is, its hash, its accuracy, and how an image must be prepared for it. A [`Hub`] downloads a file
//! into the user's cache folder and returns its path:
//!
//! ```no_run
//! use hub::{Hub, find};
//!
//! let path = Hub::new().fetch(find("resnet50")?, &mut |progress| eprintln!("{} bytes", progress.done))?;
//! # Ok::<(), hub::Error>(())
//! ```
//!
//! # The cache folder
//! `$XDG_CACHE_HOME/hearth/weights`, or else `~/.cache/hearth/weights`:
//! - `FILE`: whole and checked. It is hashed again on each use, which costs far less than loading it, so that a file
//!   that was put there by hand, or that decayed, is held to the same check; there is no other state to go stale.
//! - `FILE.sha256`: the SHA-256 of the file that was first accepted, where the publisher gives its first digits alone
//!   (32 bits, which damage does not meet by chance, but a forger can). The file is held to all of it from then on.
//! - `FILE.part`: an unfinished download, from which the next one resumes. The publisher's file names contain the
//!   hash, so their content never changes; should the pieces not fit, the file is fetched once more from its start.
//! - `FILE.lock`: empty; held by the process that downloads. Others wait for it and report its progress.
//!
//! # Proxies
//! `https_proxy`, `http_proxy`, `all_proxy` and `no_proxy` are respected, in either case, with curl's meaning: the
//! scheme of the URL decides, and `example.com` in `no_proxy` covers its subdomains.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use data_encoding::HEXLOWER;
use models::Architecture;
use runtime::text::similar;
use serde::Deserialize;
use sha1::{Digest, Sha1};
use sha2::Sha256;
use ureq::Agent;

use crate::{Card, Error, Preprocess, error::cache_error};

/// How far a published size, rounded to 0.001 MiB, may be from the true one, in bytes.
const SIZE_TOLERANCE: u64 = 1024;

/// The largest file whose size is not published: five times BVLC's GoogLeNet.
const MAX_UNPUBLISHED_SIZE: u64 = 256 << 20;

/// How many tries in a row may bring nothing new before a download fails.
const MAX_FAILURES: u32 = 5;

/// A published file of weights, as `hub/data/published.json` lists it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// The network.
    pub architecture: Architecture,
    /// Which of its weights: `IMAGENET1K_V2`.
    pub weights: String,
    /// Whether the bare name of the architecture means these weights.
    pub default: bool,
    /// Where the publisher has the file.
    pub url: String,
    /// The publisher's checksum.
    pub checksum: Checksum,
    /// The file's size in MiB, rounded to 0.001, if it is published.
    pub size_mib: Option<f64>,
    /// The number of parameters as published: auxiliary heads count for Inception v3, and not for GoogLeNet.
    pub num_params: Option<u64>,
    /// Multiply-adds of one forward pass, in 10⁹, as published.
    pub gmacs: Option<f64>,
    /// Top-1 accuracy on ImageNet's validation images in percent, as published.
    pub acc1: Option<f64>,
    /// Top-5 accuracy, likewise.
    pub acc5: Option<f64>,
    /// In which type the file stores the values.
    pub stored: Stored,
    /// The smallest height and width that the publisher allows, in pixels.
    pub min_size: [usize; 2],
    /// Whether the network itself maps its input from ImageNet's normalisation to ±1.
    pub transform_input: bool,
    /// Whether only the features are valid and the classifier is not.
    pub features_only: bool,
    /// How an image becomes the network's input.
    pub preprocess: Preprocess,
    /// What else a user should know.
    pub notes: Vec<String>,
}

/// A publisher's checksum, in lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Checksum {
    /// The first digits of the file's SHA-256.
    Sha256Prefix(String),
    /// The file's SHA-1.
    Sha1(String),
}

/// The type of a file's stored values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stored {
    /// 32-bit floats.
    F32,
    /// 16-bit floats, which loading widens.
    F16,
}

impl Published {
    /// `ARCHITECTURE.WEIGHTS`, as [`find`] takes it.
    pub fn name(&self) -> String {
        format!("{}.{}", self.architecture.name(), self.weights)
    }

    /// The built-in model card: ImageNet's classes, and the preprocessing that the publisher's accuracy was got with.
    pub fn card(&self) -> Card {
        let origin = format!("{} ({})", self.name(), self.url);
        Card {
            preprocess: self.preprocess.clone(),
            transform_input: self.transform_input,
            ..Card::of(self.architecture, 1000, origin)
        }
    }

    /// The file's name, which is the end of its URL.
    pub fn file(&self) -> &str {
        self.url.rsplit('/').next().unwrap_or(&self.url)
    }

    /// The file's size in bytes, to within half a KiB, if it is published.
    pub fn size(&self) -> Option<u64> {
        self.size_mib.map(|mib| (mib * 1048576.0).round() as u64)
    }

    /// What a right file is like, for messages.
    fn description(&self) -> String {
        let checksum = match &self.checksum {
            Checksum::Sha256Prefix(digits) => format!("SHA-256 {digits}…"),
            Checksum::Sha1(digits) => format!("SHA-1 {digits}"),
        };
        match self.size_mib {
            Some(mib) => format!("{checksum}, {mib} MiB"),
            None => checksum,
        }
    }

    /// Whether this number of bytes is too small for the whole file.
    fn is_short(&self, len: u64) -> bool {
        self.size().is_some_and(|size| len + SIZE_TOLERANCE < size)
    }

    /// Whether this number of bytes is too large for the whole file.
    fn is_long(&self, len: u64) -> bool {
        len > self.size().map_or(MAX_UNPUBLISHED_SIZE, |size| size + SIZE_TOLERANCE)
    }
}

/// Every published file of weights that Hearth knows, in the order of the architectures.
pub fn published() -> &'static [Published] {
    static TABLE: LazyLock<Vec<Published>> = LazyLock::new(|| {
        serde_json::from_str(include_str!("../data/published.json")).expect("the embedded table is well-formed")
    });
    &TABLE
}

/// The published weights of that name, whatever its case: `ARCHITECTURE` for its default ones, or
/// `ARCHITECTURE.WEIGHTS`.
///
/// # Errors
/// [`Error::UnknownName`], with the nearest names.
pub fn find(name: &str) -> Result<&'static Published, Error> {
    let wanted = name.to_ascii_lowercase();
    let is_wanted = |entry: &&Published| match wanted.split_once('.') {
        Some((model, weights)) => entry.architecture.name() == model && entry.weights.eq_ignore_ascii_case(weights),
        None => entry.default && entry.architecture.name() == wanted,
    };
    published()
        .iter()
        .find(is_wanted)
        .ok_or_else(|| Error::UnknownName { name: name.to_string(), nearest: nearest(&wanted) })
}

/// The published weights that a file holds, recognized by its size and checksum, not by its name: a file that a user
/// downloaded by other means gets its card. A file whose size the publisher does not tell must have its name.
///
/// # Errors
/// [`Error::Cache`] where the file cannot be read.
pub fn identify(path: &Path) -> Result<Option<&'static Published>, Error> {
    identify_among(published(), path)
}

fn identify_among<'a>(entries: &'a [Published], path: &Path) -> Result<Option<&'a Published>, Error> {
    let len = path.metadata().map_err(cache_error("read", path))?.len();
    let is_named = |entry: &Published| path.file_name().is_some_and(|name| name == entry.file());
    let is_sized = |entry: &Published| !entry.is_short(len) && !entry.is_long(len);
    let possible = entries.iter().filter(|entry| match entry.size_mib {
        Some(_) => is_sized(entry),
        None => is_named(entry),
    });
    for entry in possible {
        if matches!(Cached::look(path, entry)?, Cached::Right(_)) {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

/// Up to three names most like `wanted`; of a known model all its weights.
fn nearest(wanted: &str) -> Vec<String> {
    let (model, has_version) = match wanted.split_once('.') {
        Some((model, _)) => (model, true),
        None => (wanted, false),
    };
    let of_model: Vec<String> =
        published().iter().filter(|entry| entry.architecture.name() == model).map(Published::name).collect();
    if !of_model.is_empty() {
        return of_model;
    }
    let name = |entry: &Published| if has_version { entry.name() } else { entry.architecture.name().to_string() };
    let mut names: Vec<String> = published().iter().map(name).collect();
    names.dedup();
    similar(wanted, names.iter().map(String::as_str), 3).into_iter().map(str::to_string).collect()
}

/// How far a download is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that are on disk.
    pub done: u64,
    /// Bytes in all, if known.
    pub total: Option<u64>,
    /// Of `done`, the bytes that an earlier download had left: no part of a rate.
    pub resumed: u64,
}

/// The cache of published weights, and how it is filled.
#[derive(Debug, Clone)]
pub struct Hub {
    cache_dir: Option<PathBuf>,
    offline: bool,
    mirror: Option<String>,
    timeout: Duration,
    backoff: Duration,
    /// The proxy variables as they were when the hub was made.
    variables: BTreeMap<String, String>,
}

impl Default for Hub {
    fn default() -> Self {
        Self::new()
    }
}

impl Hub {
    /// The user's cache folder, online, by the proxies that the environment names.
    pub fn new() -> Self {
        Self {
            cache_dir: datasets::cache_folder("weights"),
            offline: false,
            mirror: None,
            timeout: Duration::from_secs(30),
            backoff: Duration::from_millis(500),
            variables: std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
                .filter(|(name, _)| name.to_ascii_lowercase().ends_with("_proxy"))
                .collect(),
        }
    }

    /// Another cache folder; it is created when it is needed.
    #[must_use]
    pub fn with_cache_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache_dir = Some(folder.into());
        self
    }

    /// Whether downloads are off: [`fetch`](Self::fetch) then only finds what the cache folder holds.
    #[must_use]
    pub fn with_offline(mut self, offline: bool) -> Self {
        self.offline = offline;
        self
    }

    /// Downloads `BASE/FILE` instead of the publisher's URL, for a mirror that has the same files: the checksums are
    /// the same, so it need not be trusted.
    #[must_use]
    pub fn with_mirror(mut self, base: impl Into<String>) -> Self {
        self.mirror = Some(base.into());
        self
    }

    /// How long connecting, or waiting for the next bytes, may take before it counts as a failure (30 s).
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The path of these weights in the cache, whether or not they were downloaded.
    ///
    /// # Errors
    /// [`Error::NoCacheFolder`].
    pub fn path(&self, published: &Published) -> Result<PathBuf, Error> {
        Ok(self.cache_dir.as_ref().ok_or(Error::NoCacheFolder)?.join(published.file()))
    }

    /// The URL that the file of these weights is downloaded from.
    pub fn url(&self, published: &Published) -> String {
        match &self.mirror {
            Some(base) => format!("{}/{}", base.trim_end_matches('/'), published.file()),
            None => published.url.clone(),
        }
    }

    /// The path of the published file, downloaded if it is not in the cache folder, and checked in either case.
    ///
    /// `progress` is called as bytes arrive, also while another process downloads the same file, and not at all if
    /// the file is there.
    ///
    /// # Errors
    /// All of [`Error`] but `UnknownName`. Whatever happens, nothing but the checked file gets the final name.
    pub fn fetch(&self, published: &Published, progress: &mut dyn FnMut(Progress)) -> Result<PathBuf, Error> {
        let path = self.path(published)?;
        let url = self.url(published);
        match (Cached::look_recorded(&path, published)?, self.offline) {
            (Cached::Right(_), _) => return Ok(path),
            (Cached::Missing, true) => return Err(Error::Offline { path, url }),
            (Cached::Wrong(got), true) => {
                return Err(Error::WrongFile {
                    origin: path.display().to_string(),
                    expected: published.description(),
                    got,
                    advice: "replace it, or let it be downloaded without --offline",
                });
            }
            (Cached::Missing, false) => {}
            (Cached::Wrong(got), false) => log::debug!("{} is replaced: it has {got}", path.display()),
        }

        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(cache_error("create folder", folder))?;
        let part = beside(&path, "part");
        let _lock = lock(&beside(&path, "lock"), &part, published, progress)?;
        // Another process may have brought it while this one waited.
        if matches!(Cached::look_recorded(&path, published)?, Cached::Right(_)) {
            return Ok(path);
        }
        let part = self.download(&url, published, Part::open(part, &published.checksum)?, progress)?;
        let digits = part.hash.digits();
        if let Some(first) = Record::of(&path, published).read().filter(|first| *first != digits) {
            part.remove()?;
            return Err(Error::WrongFile {
                origin: url,
                expected: format!("SHA-256 {first}, that of the file which was first accepted"),
                got: format!("SHA-256 {digits}"),
                advice: "the publisher's digits fit both files. If the publisher replaced the file, delete FILE.sha256 in \
                         the cache folder. The download was deleted",
            });
        }
        part.persist(&path)?;
        Record::of(&path, published).write(&digits);
        log::debug!("{} is complete", path.display());
        Ok(path)
    }

    /// Tries until the part is the published file, resuming after each failure.
    fn download(
        &self,
        url: &str,
        published: &Published,
        mut part: Part,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Part, Error> {
        let agent = self.agent(url)?;
        let mut failures = 0;
        // The longest the part ever was: what counts as progress is to get beyond it.
        let mut longest = 0;
        let mut began_again = false;
        while !part.is(&published.checksum) {
            let outcome = attempt(&agent, url, published, &mut part, progress);
            if part.is(&published.checksum) {
                break;
            }
            let advanced = part.len > longest;
            longest = longest.max(part.len);
            match outcome {
                Err(Failure::Fatal(error @ Error::WrongFile { .. })) => {
                    part.remove()?;
                    return Err(error);
                }
                Err(Failure::Fatal(error)) => return Err(error),
                Err(Failure::Transient { cause, retry_after }) => {
                    failures = if advanced { 1 } else { failures + 1 };
                    if failures >= MAX_FAILURES {
                        return Err(Error::Network { url: url.into(), cause, done: part.len, part: part.path });
                    }
                    let delay = retry_after.unwrap_or(self.backoff * 2u32.pow(failures - 1));
                    log::debug!("{url}: {cause}; {} bytes are there, next try in {delay:?}", part.len);
                    std::thread::sleep(delay);
                }
                // The server says that this was all, but it is too little: it may have lied about the length.
                Ok(()) if advanced && published.is_short(part.len) => {
                    log::debug!("{url}: ended after {} bytes, which is too short", part.len);
                }
                // The pieces don't fit together.
                Ok(()) if part.is_spliced && !began_again => {
                    log::debug!("{url}: the resumed file has {}; it is fetched again", part.description());
                    began_again = true;
                    part.clear()?;
                    longest = 0;
                }
                Ok(()) => {
                    let got = part.description();
                    part.remove()?;
                    return Err(Error::WrongFile {
                        origin: url.to_string(),
                        expected: published.description(),
                        got,
                        advice: "does a proxy, a login page or a stale mirror answer in the publisher's place? The \
                                 download was deleted",
                    });
                }
            }
        }
        Ok(part)
    }

    /// An HTTP client for `url`.
    fn agent(&self, url: &str) -> Result<Agent, Error> {
        let config = Agent::config_builder()
            .proxy(self.proxy(url)?)
            .http_status_as_error(false)
            .user_agent(concat!("hearth/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(self.timeout))
            .timeout_connect(Some(self.timeout))
            .timeout_per_read(Some(self.timeout))
            .timeout_per_write(Some(self.timeout))
            .build();
        Ok(config.into())
    }

    /// The proxy for `url` and its redirects, if there is one.
    fn proxy(&self, url: &str) -> Result<Option<ureq::Proxy>, Error> {
        let variable = |name: &str| {
            [name.to_string(), name.to_ascii_uppercase()].into_iter().find_map(|name| {
                let value = self.variables.get(&name).filter(|value| !value.trim().is_empty())?;
                Some((name, value.trim()))
            })
        };
        let of_scheme = if url.starts_with("https:") { "https_proxy" } else { "http_proxy" };
        let Some((name, value)) = variable(of_scheme).or_else(|| variable("all_proxy")) else { return Ok(None) };
        let invalid = |_| Error::Proxy { variable: name.clone(), value: value.to_string() };

        let given = ureq::Proxy::new(value).map_err(invalid)?;
        let mut proxy = ureq::Proxy::builder(given.protocol()).host(given.host()).port(given.port());
        if let Some(username) = given.username() {
            proxy = proxy.username(username);
        }
        if let Some(password) = given.password() {
            proxy = proxy.password(password);
        }
        let exempt = variable("no_proxy").map_or("", |(_, hosts)| hosts);
        for host in exempt.split(',').map(str::trim).filter(|host| !host.is_empty()) {
            let bare = host.trim_start_matches('.');
            proxy = proxy.no_proxy(bare).no_proxy(&format!(".{bare}"));
        }
        proxy.build().map(Some).map_err(invalid)
    }
}

/// `path` with `.extension` after its name.
fn beside(path: &Path, extension: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(".");
    name.push(extension);
    name.into()
}

/// Opens a file of the cache folder. The name of a link or a pipe is an error: the first could lead anywhere, the second
/// would wait for its other end.
fn open_plain(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    }
    let file = options.open(path).map_err(|error| match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_symlink() => io::Error::other("it is a symbolic link; delete it"),
        _ => error,
    })?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is not a file; delete it")),
    }
}

/// The SHA-256 of the file that was first accepted; nothing where the publisher's checksum is whole.
struct Record(Option<PathBuf>);

impl Record {
    fn of(path: &Path, published: &Published) -> Self {
        match &published.checksum {
            Checksum::Sha256Prefix(digits) if digits.len() < 64 => Self(Some(beside(path, "sha256"))),
            _ => Self(None),
        }
    }

    fn read(&self) -> Option<String> {
        let path = self.0.as_ref()?;
        let mut text = String::new();
        let read = open_plain(OpenOptions::new().read(true), path)
            .and_then(|file| file.take(1024).read_to_string(&mut text))
            .inspect_err(|error| {
                if error.kind() != io::ErrorKind::NotFound {
                    log::warn!("cannot read {}: {error}", path.display());
                }
            });
        read.ok()?;
        let digits = text.split_whitespace().next().unwrap_or_default().to_ascii_lowercase();
        let is_whole = digits.len() == 64 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        if !is_whole {
            log::warn!("{} has no SHA-256, and is not used", path.display());
        }
        is_whole.then_some(digits)
    }

    /// Records the digits, in the form of `sha256sum`, unless some are recorded. A cache that cannot be written is no
    /// error.
    fn write(&self, digits: &str) {
        let Some(path) = &self.0 else { return };
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let file = OpenOptions::new().write(true).create_new(true).open(path);
        match file.and_then(|mut file| writeln!(file, "{digits}  {name}")) {
            Ok(()) => log::info!(
                "{name}: the publisher's digits of its SHA-256 are right; all of it is recorded in {}, and checked from \
                 now on",
                path.display()
            ),
            Err(error) => log::debug!("cannot record the SHA-256 in {}: {error}", path.display()),
        }
    }
}

/// What is under the final name.
enum Cached {
    Missing,
    /// The published file, with the digits of its hash.
    Right(String),
    /// Another file, which is described.
    Wrong(String),
}

impl Cached {
    fn look(path: &Path, published: &Published) -> Result<Self, Error> {
        match path.metadata() {
            // Opening a pipe would wait for its other end.
            Ok(metadata) if !metadata.is_file() => {
                return Err(cache_error("open", path)(io::Error::other("it is not a file")));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::Missing),
            Err(error) => return Err(cache_error("open", path)(error)),
        }
        let mut file = File::open(path).map_err(cache_error("open", path))?;
        let mut hash = Hash::new(&published.checksum);
        let len = hash.read(&mut file, u64::MAX).map_err(cache_error("read", path))?;
        Ok(match hash.is(&published.checksum) {
            true => Self::Right(hash.digits()),
            false => Self::Wrong(hash.description(len)),
        })
    }

    /// As [`look`](Self::look), and holds the file to the SHA-256 that is recorded, or records it.
    fn look_recorded(path: &Path, published: &Published) -> Result<Self, Error> {
        let cached = Self::look(path, published)?;
        let Self::Right(digits) = &cached else { return Ok(cached) };
        let record = Record::of(path, published);
        match record.read() {
            Some(first) if first != *digits => Ok(Self::Wrong(format!(
                "SHA-256 {digits}, and the file that was first accepted had {first} (FILE.sha256 in the cache folder)"
            ))),
            Some(_) => Ok(cached),
            None => {
                record.write(digits);
                Ok(cached)
            }
        }
    }
}

/// A hash in the making, of the kind that the publisher used.
#[derive(Clone)]
enum Hash {
    Sha256(Sha256),
    Sha1(Sha1),
}

impl Hash {
    fn new(checksum: &Checksum) -> Self {
        match checksum {
            Checksum::Sha256Prefix(_) => Self::Sha256(Sha256::new()),
            Checksum::Sha1(_) => Self::Sha1(Sha1::new()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha1(hash) => hash.update(bytes),
        }
    }

    /// Takes in up to `limit` bytes of a file and returns how many there were.
    fn read(&mut self, file: &mut File, limit: u64) -> io::Result<u64> {
        let mut buffer = vec![0; 1 << 16];
        let mut file = file.take(limit);
        let mut len = 0;
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(len),
                Ok(n) => {
                    self.update(&buffer[..n]);
                    len += n as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The hexadecimal digits for what was taken in so far.
    fn digits(&self) -> String {
        match self.clone() {
            Self::Sha256(hash) => HEXLOWER.encode(&hash.finalize()),
            Self::Sha1(hash) => HEXLOWER.encode(&hash.finalize()),
        }
    }

    fn is(&self, checksum: &Checksum) -> bool {
        let (Checksum::Sha256Prefix(expected) | Checksum::Sha1(expected)) = checksum;
        self.digits().starts_with(expected)
    }

    fn description(&self, len: u64) -> String {
        match self {
            Self::Sha256(_) => format!("SHA-256 {}…, {len} bytes", &self.digits()[..8]),
            Self::Sha1(_) => format!("SHA-1 {}, {len} bytes", self.digits()),
        }
    }
}

/// An unfinished download, with the hash of what it holds.
struct Part {
    path: PathBuf,
    file: File,
    hash: Hash,
    empty_hash: Hash,
    len: u64,
    /// Whether it was put together from more than one answer.
    is_spliced: bool,
}

impl Part {
    /// Opens what an earlier download left, or an empty part.
    fn open(path: PathBuf, checksum: &Checksum) -> Result<Self, Error> {
        let open = open_plain(OpenOptions::new().read(true).write(true).create(true).truncate(false), &path);
        let mut file = open.map_err(cache_error("open", &path))?;
        let empty_hash = Hash::new(checksum);
        let mut hash = empty_hash.clone();
        let existing = file.metadata().map_err(cache_error("read", &path))?.len();
        let len = hash.read(&mut file, existing).map_err(cache_error("read", &path))?;
        Ok(Self { path, file, hash, empty_hash, len, is_spliced: false })
    }

    fn is(&self, checksum: &Checksum) -> bool {
        self.len > 0 && self.hash.is(checksum)
    }

    fn description(&self) -> String {
        self.hash.description(self.len)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all(bytes).map_err(cache_error("write", &self.path))?;
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Empties it.
    fn clear(&mut self) -> Result<(), Error> {
        self.file.set_len(0).map_err(cache_error("write", &self.path))?;
        self.file.seek(SeekFrom::Start(0)).map_err(cache_error("write", &self.path))?;
        self.hash = self.empty_hash.clone();
        self.len = 0;
        self.is_spliced = false;
        Ok(())
    }

    fn remove(self) -> Result<(), Error> {
        drop(self.file);
        std::fs::remove_file(&self.path).map_err(cache_error("delete", &self.path))
    }

    /// Gives it its final name, for good.
    fn persist(self, path: &Path) -> Result<(), Error> {
        self.file.sync_all().map_err(cache_error("write", &self.path))?;
        drop(self.file);
        std::fs::rename(&self.path, path).map_err(cache_error("write", path))?;
        // Only Unix can open a folder, and has to, for a rename to last.
        #[cfg(unix)]
        if let Some(folder) = path.parent() {
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(cache_error("write", folder))?;
        }
        Ok(())
    }
}

/// Waits until no other process downloads this file, and keeps others waiting until the result is dropped.
fn lock(
    path: &Path,
    part: &Path,
    published: &Published,
    progress: &mut dyn FnMut(Progress),
) -> Result<Option<File>, Error> {
    let file = open_plain(OpenOptions::new().write(true).create(true).truncate(false), path)
        .map_err(cache_error("create", path))?;
    let mut waited = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) => {
                if !waited {
                    log::debug!("another process downloads {}; waiting for it", published.file());
                    waited = true;
                }
                if let Ok(part) = part.metadata() {
                    progress(Progress { done: part.len(), total: published.size(), resumed: 0 });
                }
                std::thread::sleep(Duration::from_millis(200));
            }
            Err(TryLockError::Error(error)) => {
                // Some network file systems have no locks. The checksum still guards the result.
                log::debug!("cannot lock {}: {error}", path.display());
                return Ok(None);
            }
        }
    }
}

/// Why one try did not end well.
enum Failure {
    /// It may work the next time.
    Transient { cause: String, retry_after: Option<Duration> },
    /// It will not.
    Fatal(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Fatal(error)
    }
}

fn transient(cause: impl Into<String>) -> Failure {
    Failure::Transient { cause: cause.into(), retry_after: None }
}

/// One request for what the part lacks. It ends well when the server has sent all that it said it would, or more
/// than the published file can have.
fn attempt(
    agent: &Agent,
    url: &str,
    published: &Published,
    part: &mut Part,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), Failure> {
    let mut request = agent.get(url).header("Accept-Encoding", "identity");
    if part.len > 0 {
        request = request.header("Range", format!("bytes={}-", part.len));
    }
    let response = request.call().map_err(|error| match error {
        ureq::Error::Io(_)
        | ureq::Error::Timeout(_)
        | ureq::Error::HostNotFound
        | ureq::Error::ConnectionFailed
        | ureq::Error::Protocol(_) => transient(error.to_string()),
        _ => Failure::Fatal(Error::Network {
            url: url.into(),
            cause: error.to_string(),
            done: part.len,
            part: part.path.clone(),
        }),
    })?;

    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    let announced = response.body().content_length();
    let (resumed, total) = match response.status().as_u16() {
        200 => {
            if part.len > 0 {
                log::debug!("{url}: the server cannot resume");
                part.clear()?;
            }
            (0, announced)
        }
        206 => {
            let range = header("Content-Range").and_then(parse_content_range);
            let Some((_, total)) = range.filter(|(start, _)| *start == part.len) else {
                part.clear()?;
                return Err(transient("the server sent another range than it was asked for"));
            };
            part.is_spliced = true;
            (part.len, total.or(announced.map(|rest| part.len + rest)))
        }
        416 if part.len > 0 => {
            let len = part.len;
            part.clear()?;
            return Err(transient(format!("the server has nothing after byte {len}")));
        }
        status @ (408 | 429 | 500..) => {
            let seconds = header("Retry-After").and_then(|value| value.trim().parse().ok());
            let retry_after = seconds.map(|seconds: u64| Duration::from_secs(seconds.min(60)));
            return Err(Failure::Transient { cause: format!("the server answered {status}"), retry_after });
        }
        status => return Err(Failure::Fatal(Error::Status { url: url.into(), status })),
    };

    if let Some(total) = total.filter(|total| published.is_long(*total)) {
        return Err(Failure::Fatal(Error::WrongFile {
            origin: url.to_string(),
            expected: published.description(),
            got: format!("{total} bytes, of which none were downloaded"),
            advice: "does a proxy, a login page or a stale mirror answer in the publisher's place?",
        }));
    }
    let total = total.or(published.size());
    progress(Progress { done: part.len, total, resumed });
    let expected = announced.map(|rest| part.len + rest);
    let mut body = response.into_body().into_reader();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match body.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                part.append(&buffer[..n])?;
                progress(Progress { done: part.len, total, resumed });
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(transient(error.to_string())),
        }
        if published.is_long(part.len) {
            return Ok(());
        }
    }
    match expected {
        Some(expected) if part.len < expected => Err(transient("the connection was cut")),
        _ => Ok(()),
    }
}

/// First byte and length of the whole of `bytes FIRST-LAST/LENGTH`; the length may be `*`.
fn parse_content_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = value.trim().strip_prefix("bytes")?.trim().split_once('/')?;
    let (first, _last) = range.split_once('-')?;
    Some((first.trim().parse().ok()?, total.trim().parse().ok()))
}

#[cfg(test)]
mod tests;
