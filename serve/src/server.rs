//! Accepting connections, their limits, and graceful shutdown.

use std::{
    future::Future,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_io_timeout::TimeoutStream;
use tower::ServiceExt;

use crate::{
    Engine, Options, access::Access, admission::Permits, batch, error::Error, metrics::Metrics, middleware::Peer,
    rates::Rates, routes, state::AppState,
};

/// The time limit for receiving a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The time after which a client that accepts no byte of its response is disconnected.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// The time for which connections are still accepted once shutdown begins, so that clients that are just connecting get an answer.
const DRAIN: Duration = Duration::from_millis(300);
/// The size of the listener's backlog.
const BACKLOG: u32 = 1024;

/// Serves until `shutdown` resolves, then stops accepting connections, answers the requests in flight and returns.
/// `ready` is called with the address once the server listens. Once `abort` resolves too, requests in flight are dropped.
///
/// # Errors
/// Fails if the options are wrong, or the address cannot be bound.
pub async fn serve<E: Engine>(
    engine: Arc<E>,
    options: Options,
    ready: impl FnOnce(SocketAddr),
    shutdown: impl Future<Output = ()>,
    abort: impl Future<Output = ()>,
) -> Result<(), Error> {
    let access = Access::new(&options)?;
    let listener = listen(options.addr)?;
    let addr = listener.local_addr().map_err(system("read the server's own address"))?;
    let metrics = Arc::new(Metrics::new());
    let (queue, engine_thread) = batch::start(Arc::clone(&engine), &options, Arc::clone(&metrics));
    let state = Arc::new(AppState {
        engine,
        queue,
        images: Permits::new(options.max_images),
        bodies: Permits::new(options.max_bodies),
        decoders: Arc::new(Semaphore::new(options.workers.clamp(1, Semaphore::MAX_PERMITS))),
        decoding: Arc::new(Semaphore::new(routes::decoding_kib(&options))),
        rates: Rates::default(),
        closing: AtomicBool::new(false),
        metrics: Arc::clone(&metrics),
        access,
        options: options.clone(),
    });
    let connections = Connections {
        router: routes::router(Arc::clone(&state)),
        graceful: GracefulShutdown::new(),
        permits: Arc::new(Semaphore::new(options.max_connections.clamp(1, Semaphore::MAX_PERMITS))),
        metrics,
    };
    ready(addr);

    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            accepted = connections.accept(&listener) => connections.serve(accepted).await,
        }
    }

    state.closing.store(true, Ordering::Release);
    log::info!("shutting down: {} images in flight", state.images.taken());
    let finish = async {
        // Those that are connecting, or sit in the backlog, are answered. Each response says that it is the last of its
        // connection.
        let _ = timeout(DRAIN, async {
            loop {
                connections.serve(connections.accept(&listener).await).await;
            }
        })
        .await;
        drop(listener);
        let Connections { router, graceful, .. } = connections;
        if timeout(options.grace, graceful.shutdown()).await.is_err() {
            log::warn!("some requests were not answered within {} s", options.grace.as_secs_f64());
        }
        drop(router);
    };
    tokio::select! {
        () = finish => {}
        () = abort => log::warn!("stopped at once: {} images in flight were dropped", state.images.taken()),
    }
    drop(state);
    // Idle connections may hold the queue a moment longer. An engine that hangs must not keep the process alive.
    let ended = tokio::task::spawn_blocking(move || engine_thread.join());
    let _ = timeout(Duration::from_secs(1), ended).await;
    Ok(())
}

/// The open connections and their shared state.
struct Connections {
    router: axum::Router,
    graceful: GracefulShutdown,
    permits: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

type Accepted = (std::io::Result<(TcpStream, SocketAddr)>, Option<OwnedSemaphorePermit>);

impl Connections {
    /// Waits for a permit and then for a connection.
    async fn accept(&self, listener: &TcpListener) -> Accepted {
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
        (listener.accept().await, permit)
    }

    /// Serves a connection on a task of its own.
    async fn serve(&self, (accepted, permit): Accepted) {
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // The error concerns one connection, or too many open files, which is transient.
                log::warn!("a connection could not be accepted: {error}");
                return sleep(Duration::from_millis(50)).await;
            }
        };
        let _ = stream.set_nodelay(true);
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(WRITE_TIMEOUT));
        let service = self.router.clone().map_request(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(Peer(peer));
            request.map(axum::body::Body::new)
        });
        let mut protocol = http1::Builder::new();
        protocol.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_headers(64);
        let stream = TokioIo::new(Box::pin(stream));
        let connection = self.graceful.watch(protocol.serve_connection(stream, TowerToHyperService::new(service)));
        let metrics = Arc::clone(&self.metrics);
        metrics.connections().inc();
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                log::debug!("{peer}: {error}");
            }
            metrics.connections().dec();
            drop(permit);
        });
    }
}

fn system(action: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::System { action, source }
}

fn listen(addr: SocketAddr) -> Result<TcpListener, Error> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = socket.map_err(system("open a socket"))?;
    // Allows a restart while connections of the previous process are in TIME_WAIT.
    #[cfg(unix)]
    socket.set_reuseaddr(true).map_err(system("prepare the socket"))?;
    let bound = socket.bind(addr).and_then(|()| socket.listen(BACKLOG));
    bound.map_err(|source| {
        let hint = match addr.port() {
            1..1024 => "the port may be in use, or reserved for the system",
            _ => "the port may be in use, or the address not one of this machine",
        };
        Error::Listen { addr, hint, source }
    })
}

/// Runs [`serve`] on its own threads until Ctrl-C or SIGTERM. A second one drops the requests in flight.
///
/// # Errors
/// Fails like [`serve`], and if threads or signal handlers cannot be created.
pub fn run<E: Engine>(engine: Arc<E>, options: Options, ready: impl FnOnce(SocketAddr)) -> Result<(), Error> {
    // The blocking threads are the decoders and one that joins the engine thread.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(options.workers.max(1).saturating_add(1))
        .enable_all()
        .build()
        .map_err(system("start the server's threads"))?;
    let outcome = runtime.block_on(async {
        let mut signals = Signals::new()?;
        let (stop, abort) = (Notify::new(), Notify::new());
        let watch = async {
            signals.next().await;
            stop.notify_one();
            signals.next().await;
            abort.notify_one();
            std::future::pending().await
        };
        tokio::select! {
            served = serve(engine, options, ready, stop.notified(), abort.notified()) => served,
            () = watch => Ok(()),
        }
    });
    // An image that is being decoded need not be waited for.
    runtime.shutdown_timeout(Duration::from_millis(100));
    outcome
}

/// Ctrl-C and, on Unix, SIGTERM.
struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    #[cfg(unix)]
    fn new() -> Result<Self, Error> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(system("wait for SIGTERM"))?,
            interrupt: signal(SignalKind::interrupt()).map_err(system("wait for Ctrl-C"))?,
        })
    }

    #[cfg(not(unix))]
    fn new() -> Result<Self, Error> {
        Ok(Self {})
    }

    /// Waits for the next one.
    async fn next(&mut self) {
        #[cfg(unix)]
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        #[cfg(not(unix))]
        let _ = tokio::signal::ctrl_c().await;
    }
}
