//! Files on servers and in object stores: `http(s)://`, `s3://`, `gs://`, `az://`.
//!
//! Every read is a request for a range of bytes, with [`READ_AHEAD`] bytes of read-ahead for sequential reads. Failed
//! requests are retried with growing pauses, except for missing or forbidden objects. Credentials and regions come from
//! the environment variables that the stores' own tools use.
//!
//! A folder can be given where the store can list it, which a plain web server cannot: there the official archives'
//! names are tried.

use std::{
    fs,
    future::Future,
    io,
    path::{Path as FilePath, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc},
    time::Duration,
};

use ::runtime::files::write_atomic_at;
use object_store::{
    ClientOptions, ObjectStore, ObjectStoreExt, RetryConfig, aws::AmazonS3Builder, azure::MicrosoftAzureBuilder,
    gcp::GoogleCloudStorageBuilder, http::HttpBuilder, path::Path,
};
use tokio::runtime::Runtime;

use super::{ReadAt, archive::OFFICIAL_NAMES, index::fnv, options::RemoteOptions, pattern};
use crate::{Error, Result};

/// The read-ahead for sequential reads, in bytes.
pub const READ_AHEAD: u64 = 4 << 20;

/// The largest gap between sequential reads, in bytes.
const NEAR: u64 = 8 << 10;

/// The number of read-ahead windows per file.
const WINDOWS: usize = 8;

/// The first pause before a request is repeated; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(20);

/// Whether a specification is a URL that this module reads.
pub(super) fn is_remote(spec: &str) -> bool {
    ["http://", "https://", "s3://", "gs://", "az://"].iter().any(|scheme| spec.starts_with(scheme))
}

/// One store: all objects below a scheme and a host or bucket.
#[derive(Clone)]
struct Store {
    store: Arc<dyn ObjectStore>,
    /// The scheme and the host or bucket.
    base: String,
    options: RemoteOptions,
}

/// An object in a store.
pub struct RemoteFile {
    store: Store,
    path: Path,
    url: String,
    version: String,
    len: u64,
    windows: Mutex<Vec<Window>>,
    cache: Option<Arc<DiskCache>>,
}

/// Bytes that were fetched ahead, those used last at the back of the list.
struct Window {
    start: u64,
    bytes: Arc<[u8]>,
}

impl std::fmt::Debug for RemoteFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteFile").field("url", &self.url).field("version", &self.version).finish_non_exhaustive()
    }
}

/// The threads that wait for servers, for the whole process.
fn runtime() -> io::Result<&'static Runtime> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    Ok(RUNTIME.get_or_init(|| runtime))
}

/// Runs a request to its end; the calling thread may itself belong to another runtime.
fn wait<T: Send + 'static>(request: impl Future<Output = T> + Send + 'static) -> io::Result<T> {
    let (sender, receiver) = mpsc::sync_channel(1);
    runtime()?.spawn(async move {
        // The receiver waits below, so sending cannot fail.
        let _ = sender.send(request.await);
    });
    receiver.recv().map_err(|_| io::Error::other("the request was given up"))
}

impl Store {
    /// Returns the store of a URL, and the path in the store.
    fn of(url: &str, options: &RemoteOptions) -> Result<(Self, String)> {
        let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        if path.contains('?') {
            return Err(Error::layout(url, "a URL with a query cannot be read by ranges of a store"));
        }
        let base = format!("{scheme}://{host}");
        let client = ClientOptions::new().with_allow_http(true);
        // Requests are repeated here, where a body that breaks off counts too.
        let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
        let store: object_store::Result<Arc<dyn ObjectStore>> = match scheme {
            "s3" => AmazonS3Builder::from_env()
                .with_url(&base)
                .with_client_options(client)
                .with_retry(retry)
                .build()
                .map(|s| Arc::new(s) as _),
            "gs" => GoogleCloudStorageBuilder::from_env()
                .with_url(&base)
                .with_client_options(client)
                .with_retry(retry)
                .build()
                .map(|s| Arc::new(s) as _),
            "az" => MicrosoftAzureBuilder::from_env()
                .with_url(&base)
                .with_client_options(client)
                .with_retry(retry)
                .build()
                .map(|s| Arc::new(s) as _),
            _ => HttpBuilder::new()
                .with_url(&base)
                .with_client_options(client)
                .with_retry(retry)
                .build()
                .map(|s| Arc::new(s) as _),
        };
        let store = store.map_err(|error| Error::io(url, io::Error::other(error)))?;
        Ok((Self { store, base, options: options.clone() }, path.to_owned()))
    }

    fn path(&self, path: &str) -> Result<Path> {
        Path::from_url_path(path).map_err(|error| Error::layout(format!("{}/{path}", self.base), error.to_string()))
    }

    /// Makes a request until it succeeds, fails for good, or was made once and `retries` times more.
    fn request<T, F>(&self, request: impl Fn(Arc<dyn ObjectStore>) -> F) -> io::Result<T>
    where
        T: Send + 'static,
        F: Future<Output = object_store::Result<T>> + Send + 'static,
    {
        let mut pause = FIRST_PAUSE;
        let mut attempt = 1;
        loop {
            let error = match wait(request(self.store.clone()))? {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            use object_store::Error as E;
            let kind = match &error {
                E::NotFound { .. } => io::ErrorKind::NotFound,
                E::PermissionDenied { .. } | E::Unauthenticated { .. } => io::ErrorKind::PermissionDenied,
                E::NotSupported { .. } | E::NotImplemented { .. } => io::ErrorKind::Unsupported,
                _ => io::ErrorKind::Other,
            };
            if kind != io::ErrorKind::Other || attempt > self.options.retries {
                return Err(io::Error::new(kind, format!("{error} (attempt {attempt})")));
            }
            log::debug!("{}: attempt {attempt} failed, next in {pause:?}: {error}", self.base);
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
            attempt += 1;
        }
    }

    fn open(&self, path: &str, cache: Option<Arc<DiskCache>>) -> Result<RemoteFile> {
        let url = format!("{}/{path}", self.base);
        let path = self.path(path)?;
        let meta = self.request({
            let path = path.clone();
            move |store| {
                let path = path.clone();
                async move { store.head(&path).await }
            }
        });
        let meta = meta.map_err(|error| Error::io(&url, error))?;
        let version = format!("{} bytes, {:?}, {}", meta.size, meta.e_tag, meta.last_modified.timestamp_millis());
        Ok(RemoteFile { store: self.clone(), path, url, version, len: meta.size, windows: Mutex::default(), cache })
    }

    /// The names of the objects below a prefix.
    fn list(&self, prefix: &str) -> Result<Vec<String>> {
        let path = self.path(prefix)?;
        let listed = self.request(move |store| {
            let path = path.clone();
            async move { store.list_with_delimiter(Some(&path)).await }
        });
        let listed = listed.map_err(|error| {
            let hint = "cannot be listed; name the shards, as in `shard-{0000..0099}.tar`";
            Error::io(format!("{}/{prefix}", self.base), io::Error::new(error.kind(), format!("{hint}: {error}")))
        })?;
        let mut names: Vec<String> = listed.objects.into_iter().map(|meta| meta.location.to_string()).collect();
        names.sort_unstable();
        Ok(names)
    }
}

impl RemoteFile {
    /// Opens one object by its URL.
    ///
    /// # Errors
    /// [`Error::Io`] where it is not there, not allowed, or the server does not answer.
    pub fn open(url: &str, options: &RemoteOptions) -> Result<Self> {
        let (store, path) = Store::of(url, options)?;
        store.open(&path, DiskCache::open(options)?)
    }

    fn windows(&self) -> MutexGuard<'_, Vec<Window>> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fetch(&self, start: u64, end: u64) -> io::Result<Arc<[u8]>> {
        let key = format!("{}\n{}\n{start}-{end}", self.url, self.version);
        if let Some(bytes) = self.cache.as_ref().and_then(|cache| cache.get(&key)) {
            return Ok(bytes.into());
        }
        let path = self.path.clone();
        let bytes = self.store.request(move |store| {
            let path = path.clone();
            async move {
                let bytes = store.get_range(&path, start..end).await?;
                if bytes.len() as u64 == end - start {
                    return Ok(bytes);
                }
                let source = format!("{} bytes came instead of {}", bytes.len(), end - start).into();
                Err(object_store::Error::Generic { store: "remote", source })
            }
        })?;
        if let Some(cache) = &self.cache {
            cache.put(&key, &bytes);
        }
        Ok(Arc::from(&bytes[..]))
    }
}

impl ReadAt for RemoteFile {
    fn name(&self) -> &str {
        &self.url
    }
    fn identity(&self) -> &str {
        &self.url
    }
    fn version(&self) -> &str {
        &self.version
    }
    fn len(&self) -> u64 {
        self.len
    }
    fn parallel_reads(&self) -> usize {
        32
    }
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|&end| end <= self.len);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        if buffer.is_empty() {
            return Ok(());
        }
        let follows = {
            let mut windows = self.windows();
            let window_end = |window: &Window| window.start + window.bytes.len() as u64;
            if let Some(at) = windows.iter().position(|w| w.start <= offset && end <= window_end(w)) {
                let window = windows.remove(at);
                let skip = (offset - window.start) as usize;
                buffer.copy_from_slice(&window.bytes[skip..skip + buffer.len()]);
                windows.push(window);
                return Ok(());
            }
            let before = windows.iter().position(|w| w.start < offset && offset <= window_end(w) + NEAR);
            // A consumed window is replaced by the next one.
            before.map(|at| windows.remove(at)).is_some()
        };
        let wanted = if follows { end.max((offset + READ_AHEAD).min(self.len)) } else { end };
        let bytes = self.fetch(offset, wanted)?;
        buffer.copy_from_slice(&bytes[..buffer.len()]);
        let mut windows = self.windows();
        windows.push(Window { start: offset, bytes });
        if windows.len() > WINDOWS {
            windows.remove(0);
        }
        Ok(())
    }
}

/// A disk cache of fetched ranges with a size limit and least-recently-used eviction.
struct DiskCache {
    folder: PathBuf,
    limit: u64,
    /// File name and length, those used last at the back.
    kept: Mutex<Vec<(String, u64)>>,
}

impl DiskCache {
    /// Opens the cache folder of the options with the entries of earlier runs, the oldest first.
    fn open(options: &RemoteOptions) -> Result<Option<Arc<Self>>> {
        let Some(folder) = &options.cache_folder else { return Ok(None) };
        let failed = |error| Error::io(folder, error);
        fs::create_dir_all(folder).map_err(failed)?;
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // Another process may remove what was listed.
            if let (true, Ok(metadata)) = (name.ends_with(".range"), entry.metadata()) {
                found.push((metadata.modified().ok(), name, metadata.len()));
            }
        }
        found.sort_unstable();
        let kept = found.into_iter().map(|(_, name, bytes)| (name, bytes)).collect();
        let cache = Self { folder: folder.clone(), limit: options.cache_bytes, kept: Mutex::new(kept) };
        cache.shrink();
        Ok(Some(Arc::new(cache)))
    }

    fn kept(&self) -> MutexGuard<'_, Vec<(String, u64)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(key: &str) -> String {
        format!("{:016x}.range", fnv(key.as_bytes()))
    }

    fn get(&self, key: &str) -> Option<Vec<u8>> {
        let name = Self::file(key);
        let mut bytes = fs::read(self.folder.join(&name)).ok()?;
        // The key and a checksum follow the bytes.
        let (body, sum) = bytes.split_last_chunk::<4>()?;
        let length = body.strip_suffix(key.as_bytes())?.len();
        if crc32fast::hash(body) != u32::from_le_bytes(*sum) {
            return None;
        }
        bytes.truncate(length);
        let mut kept = self.kept();
        if let Some(at) = kept.iter().position(|(kept, _)| *kept == name) {
            let entry = kept.remove(at);
            kept.push(entry);
        }
        Some(bytes)
    }

    fn put(&self, key: &str, bytes: &[u8]) {
        let name = Self::file(key);
        let mut body = [bytes, key.as_bytes()].concat();
        let sum = crc32fast::hash(&body);
        body.extend(sum.to_le_bytes());
        if body.len() as u64 > self.limit {
            return;
        }
        match write_atomic_at(&self.folder.join(&name), |temporary| fs::write(temporary, &body)) {
            Ok(()) => {
                let mut kept = self.kept();
                kept.retain(|(kept, _)| *kept != name);
                kept.push((name, body.len() as u64));
                drop(kept);
                self.shrink();
            }
            Err(error) => log::debug!("{}: cannot keep {key}: {error}", self.folder.display()),
        }
    }

    fn shrink(&self) {
        let mut kept = self.kept();
        let mut total: u64 = kept.iter().map(|(_, bytes)| bytes).sum();
        let mut gone = 0;
        while total > self.limit && gone < kept.len() {
            total -= kept[gone].1;
            // Another process may have removed it already.
            let _ = fs::remove_file(self.folder.join(&kept[gone].0));
            gone += 1;
        }
        kept.drain(..gone);
    }
}

/// The objects that a URL, a pattern of URLs or a folder in a store denotes, and the `manifest.json` beside them.
pub(super) fn files(spec: &str, options: &RemoteOptions) -> Result<(Vec<Arc<dyn ReadAt>>, Option<Vec<u8>>)> {
    let urls = pattern::expand_braces(spec)?;
    let first = urls.first().map(String::as_str).unwrap_or(spec);
    let (store, first_path) = Store::of(first, options)?;
    let cache = DiskCache::open(options)?;
    let mut paths = Vec::new();
    for url in &urls {
        let path = url.strip_prefix(&store.base).and_then(|path| path.strip_prefix('/'));
        let path = path.ok_or_else(|| Error::layout(url, "a pattern must stay in one store"))?;
        let is_file = FilePath::new(path).extension().is_some_and(|ext| ext == "tar" || ext == "parquet");
        if path.contains(['*', '?', '[']) {
            let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
            let wanted = glob::Pattern::new(path).map_err(|e| Error::layout(url, format!("bad pattern: {e}")))?;
            paths.extend(store.list(folder)?.into_iter().filter(|name| wanted.matches(name)));
        } else if is_file {
            paths.push(path.to_owned());
        } else {
            let folder = path.trim_end_matches('/');
            if store.base.starts_with("http") {
                return official(&store, folder, &cache).map(|files| (files, None));
            }
            let names = store.list(folder)?;
            let is_data = |name: &String| name.ends_with(".tar") || name.ends_with(".parquet");
            paths.extend(names.into_iter().filter(is_data));
        }
    }
    if paths.is_empty() {
        return Err(Error::layout(spec, "no .tar or .parquet there"));
    }
    let open = |at: usize| store.open(&paths[at], cache.clone()).map(|file| Arc::new(file) as Arc<dyn ReadAt>);
    let files = super::parallel(paths.len(), 32, open)?;
    let beside =
        first_path.rsplit_once('/').map_or("manifest.json".to_owned(), |(folder, _)| format!("{folder}/manifest.json"));
    let manifest = match store.open(&beside, None) {
        Ok(file) => {
            let mut bytes = vec![0; usize::try_from(file.len().min(64 << 20)).unwrap_or_default()];
            file.read_exact_at(&mut bytes, 0).map_err(|error| Error::io(file.name(), error))?;
            Some(bytes)
        }
        // Some servers answer otherwise than "not found" for what they do not show.
        Err(error) => {
            log::debug!("no manifest: {error}");
            None
        }
    };
    Ok((files, manifest))
}

/// The official archives in a folder of a web server.
fn official(store: &Store, folder: &str, cache: &Option<Arc<DiskCache>>) -> Result<Vec<Arc<dyn ReadAt>>> {
    let mut files: Vec<Arc<dyn ReadAt>> = Vec::new();
    for name in OFFICIAL_NAMES {
        let path = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
        match store.open(&path, cache.clone()) {
            Ok(file) => files.push(Arc::new(file)),
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    if files.is_empty() {
        let cause = "holds neither ILSVRC2012_img_train.tar nor ILSVRC2012_img_val.tar, and a web server lists nothing; \
                     name the shards, as in `shard-{0000..0099}.tar`";
        return Err(Error::layout(format!("{}/{folder}", store.base), cause));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashMap,
        io::{BufRead, BufReader, Write},
        net::{TcpListener, TcpStream},
        sync::atomic::{AtomicUsize, Ordering},
        thread,
    };

    use super::{
        super::{OpenOptions, Source, SourceKind, Split, open, tar::testing::archive},
        *,
    };

    /// A faulty server of a few files: of each `badness` requests one gets 503, one is cut off inside the body and one
    /// is slow.
    struct Server {
        address: String,
        requests: Arc<AtomicUsize>,
    }

    impl Server {
        fn new(files: &[(&str, Vec<u8>)], badness: usize) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = format!("http://{}", listener.local_addr().unwrap());
            let files: HashMap<String, Vec<u8>> =
                files.iter().map(|(name, bytes)| (format!("/{name}"), bytes.clone())).collect();
            let (files, requests) = (Arc::new(files), Arc::new(AtomicUsize::new(0)));
            let counter = requests.clone();
            // Ends with the process.
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (files, counter) = (files.clone(), counter.clone());
                    thread::spawn(move || answer(stream, &files, &counter, badness));
                }
            });
            Self { address, requests }
        }
    }

    fn answer(
        mut stream: TcpStream,
        files: &HashMap<String, Vec<u8>>,
        counter: &AtomicUsize,
        badness: usize,
    ) -> Option<()> {
        let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
        let request = lines.next()?.ok()?;
        let mut range = None;
        for line in lines.map_while(std::result::Result::ok).take_while(|line| !line.is_empty()) {
            let line = line.to_lowercase();
            range = range.or(line.strip_prefix("range: bytes=").map(str::to_owned));
        }
        let mut words = request.split(' ');
        let (method, path) = (words.next()?, words.next()?);
        let number = counter.fetch_add(1, Ordering::Relaxed);
        let bad = (badness > 0).then(|| number % badness);
        if bad == Some(0) {
            let _ =
                stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            return None;
        }
        let Some(file) = files.get(path) else {
            let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            return None;
        };
        let (status, extra, body) = match range.as_ref().and_then(|range| range.split_once('-')) {
            Some((from, to)) => {
                let (from, to): (usize, usize) = (from.parse().ok()?, to.parse::<usize>().ok()?.min(file.len() - 1));
                (
                    "206 Partial Content",
                    format!("Content-Range: bytes {from}-{to}/{}\r\n", file.len()),
                    &file[from..=to],
                )
            }
            None => ("200 OK", String::new(), &file[..]),
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\n{extra}Accept-Ranges: bytes\r\nETag: \"1\"\r\n\
             Last-Modified: Tue, 15 Nov 1994 12:45:26 GMT\r\nConnection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).ok()?;
        if method == "HEAD" {
            return None;
        }
        match bad {
            Some(1) => stream.write_all(&body[..body.len() / 2]).ok(),
            Some(2) => {
                for part in body.chunks(body.len() / 3 + 1) {
                    stream.write_all(part).ok()?;
                    thread::sleep(Duration::from_millis(30));
                }
                Some(())
            }
            _ => stream.write_all(body).ok(),
        }
    }

    fn options(folder: &FilePath, split: Split) -> OpenOptions {
        OpenOptions { split, index_cache: Some(folder.join("index")), ..Default::default() }
    }

    fn texts(source: &dyn Source) -> Vec<(String, Option<u32>)> {
        let mut bytes = Vec::new();
        let mut text = |index| {
            source.read(index, &mut bytes).unwrap();
            (String::from_utf8(bytes.clone()).unwrap(), source.label(index))
        };
        (0..source.len()).map(&mut text).collect()
    }

    #[test]
    fn shards_and_archives_are_read_from_a_server_that_fails_drops_and_dawdles() {
        let folder = tempfile::tempdir().unwrap();
        let shard =
            |text: &str, label: &str| archive(&[("a.jpg", text), ("a.cls", label), ("b.jpg", "b"), ("b.cls", "0")]);
        let class = archive(&[("n01751748_1.JPEG", "snake")]);
        let server = Server::new(
            &[
                ("set/s-train-0.tar", shard("one", "1")),
                ("set/s-train-1.tar", shard("two", "2")),
                (
                    "set/manifest.json",
                    br#"{"classes":[{"id":"x","name":"X"},{"id":"y","name":"Y"},{"id":"z","name":"Z"}]}"#.to_vec(),
                ),
                ("net/ILSVRC2012_img_train.tar", archive(&[("n01751748.tar", class)])),
                ("net/ILSVRC2012_img_val.tar", archive(&[("ILSVRC2012_val_00000001.JPEG", "val")])),
            ],
            4,
        );
        let shards = format!("{}/set/s-train-{{0..1}}.tar", server.address);
        let opened = open(&shards, &options(folder.path(), Split::Train)).unwrap();
        assert_eq!((opened.kind, opened.source.classes()[2].name.as_str()), (SourceKind::WebDataset, "Z"));
        let expected = [("one", 1), ("b", 0), ("two", 2), ("b", 0)].map(|(text, label)| (text.to_owned(), Some(label)));
        assert_eq!(texts(&opened.source), expected);
        assert_eq!(opened.source.key(2), "s-train-1/a.jpg");

        let net = format!("{}/net/", server.address);
        let train = open(&net, &options(folder.path(), Split::Train)).unwrap();
        assert_eq!((train.kind, texts(&train.source)), (SourceKind::Archive, vec![("snake".to_owned(), Some(0))]));
        let val = open(&net, &options(folder.path(), Split::Val)).unwrap();
        assert_eq!(texts(&val.source), [("val".to_owned(), Some(0))]);
    }

    /// Shards in a store, three ranks: each requests its own samples only; together they load each sample once, in
    /// every epoch and after a start within one.
    #[test]
    fn ranks_share_shards_in_a_store() {
        use crate::{ImageBatch, ImageLoader, loader::testing::Paint};
        const PER_SHARD: u64 = 20;
        const RANKS: usize = 3;
        // A sample is its own number, as `Paint` wants it.
        let shard = |shard: u64| {
            let numbers = shard * PER_SHARD..(shard + 1) * PER_SHARD;
            let names: Vec<_> = numbers
                .flat_map(|number| {
                    let bytes = String::from_utf8(number.to_le_bytes().to_vec()).unwrap();
                    [(format!("{number:03}.jpg"), bytes), (format!("{number:03}.cls"), "0".to_owned())]
                })
                .collect();
            archive(&names.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect::<Vec<_>>())
        };
        let files: Vec<(String, Vec<u8>)> = (0..3).map(|i| (format!("set/s-train-{i}.tar"), shard(i))).collect();
        let files: Vec<(&str, Vec<u8>)> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
        let server = Server::new(&files, 0);
        let folder = tempfile::tempdir().unwrap();
        let url = format!("{}/set/s-train-{{0..2}}.tar", server.address);
        // As three processes: each has a source of its own.
        let loader = |rank, ranks| {
            let source = open(&url, &options(folder.path(), Split::Train)).unwrap().source;
            let builder = ImageLoader::builder(source, Arc::new(Paint::default())).batch_size(8).workers(2).shuffle();
            builder.part_of_batches(rank, ranks).build().unwrap()
        };
        let epoch = |loader: &ImageLoader| loader.batches().collect::<Result<Vec<ImageBatch>>>().unwrap();
        let alone = loader(0, 1);
        let whole = [epoch(&alone), epoch(&alone)];
        let loaders: Vec<ImageLoader> = (0..RANKS).map(|rank| loader(rank, RANKS)).collect();
        for whole in &whole {
            let mut parts = Vec::new();
            for loader in &loaders {
                let before = server.requests.load(Ordering::Relaxed);
                let part = epoch(loader);
                let samples: usize = part.iter().map(ImageBatch::len).sum();
                let asked = server.requests.load(Ordering::Relaxed) - before;
                assert!(asked <= samples, "{asked} requests for {samples} samples of {} in all", 3 * PER_SHARD);
                parts.push(part);
            }
            for (number, batch) in whole.iter().enumerate() {
                let together: Vec<usize> = parts.iter().flat_map(|part| part[number].indices.clone()).collect();
                assert_eq!(together, batch.indices, "no sample twice, none lost, in the order of one process");
            }
        }
        // Another number of ranks continues from the middle of the second epoch.
        let mut indices = vec![Vec::new(); whole[1].len() - 4];
        for rank in 0..2 {
            let loader = loader(rank, 2);
            loader.start_at(1, 4).unwrap();
            for (number, batch) in epoch(&loader).into_iter().enumerate() {
                indices[number].extend(batch.indices);
            }
        }
        let expected: Vec<_> = whole[1][4..].iter().map(|batch| batch.indices.clone()).collect();
        assert_eq!(indices, expected);
    }

    #[test]
    fn what_is_not_there_is_not_asked_for_twice_and_what_always_fails_ends() {
        let server = Server::new(&[], 0);
        let error = open(&format!("{}/x.tar", server.address), &OpenOptions::default()).unwrap_err();
        assert!(error.to_string().contains("/x.tar"), "{error}");
        assert_eq!(server.requests.load(Ordering::Relaxed), 1);
        let failing = Server::new(&[], 1);
        let mut options = OpenOptions::default();
        options.remote.retries = 2;
        let error = open(&format!("{}/x.tar", failing.address), &options).unwrap_err();
        assert!(error.to_string().contains("attempt 3"), "{error}");
        assert_eq!(failing.requests.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn reads_in_order_are_fetched_ahead_and_a_bounded_cache_spares_the_next_run() {
        let bytes: Vec<u8> = (0..200_000_u32).map(|at| (at * 7 % 251) as u8).collect();
        let server = Server::new(&[("f.tar", bytes.clone())], 0);
        let folder = tempfile::tempdir().unwrap();
        let options = RemoteOptions {
            cache_folder: Some(folder.path().join("ranges")),
            cache_bytes: 150_000,
            ..Default::default()
        };
        let url = format!("{}/f.tar", server.address);
        let read = |file: &RemoteFile, offset: usize, count: usize| {
            let mut buffer = vec![0; count];
            file.read_exact_at(&mut buffer, offset as u64).unwrap();
            assert_eq!(buffer, bytes[offset..offset + count]);
            server.requests.load(Ordering::Relaxed)
        };
        let file = RemoteFile::open(&url, &options).unwrap();
        let requests: Vec<_> = (0..20).map(|step| read(&file, step * 1000, 1000)).collect();
        assert_eq!(requests[19], 3, "the head, the first read, and one for all that follow: {requests:?}");
        assert!(file.read_exact_at(&mut [0; 10], 199_995).is_err());

        let scattered = |file: &RemoteFile| [150_000, 20_000, 90_000].map(|offset| read(file, offset, 30_000));
        let file = RemoteFile::open(&url, &options).unwrap();
        assert_eq!(scattered(&file), [5, 6, 7]);
        let again = RemoteFile::open(&url, &options).unwrap();
        assert_eq!(scattered(&again), [8, 8, 8], "only the head is asked for");
        let size: u64 = fs::read_dir(folder.path().join("ranges"))
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert!(size <= 150_000);
        for offset in [10_000, 45_000, 125_000] {
            read(&again, offset, 40_000);
        }
        let size: u64 = fs::read_dir(folder.path().join("ranges"))
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert!(size <= 150_000, "the oldest went: {size}");
    }
}
