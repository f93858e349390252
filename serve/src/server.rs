//! Connections: how many, how slow, and how they end.

use std::{
    future::Future,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::Semaphore,
};
use tower::ServiceExt;

use crate::{
    Engine, Options,
    admission::Places,
    batch,
    limits::{Peer, Rates},
    metrics::Metrics,
    routes::{self, House},
};

/// How long a client may take for a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that the system holds before they are accepted.
const BACKLOG: u32 = 1024;

/// Serves until `shutdown` resolves; then takes no more connections, answers what is in flight and returns. `ready` is
/// called with the address once it listens.
///
/// # Errors
/// Where the address cannot be bound.
pub async fn serve<E: Engine>(
    engine: Arc<E>,
    options: Options,
    ready: impl FnOnce(SocketAddr),
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let listener = listen(options.addr)?;
    let metrics = Arc::new(Metrics::new());
    let (queue, engine_thread) = batch::start(Arc::clone(&engine), &options, Arc::clone(&metrics));
    let house = Arc::new(House {
        engine,
        queue,
        images: Places::new(options.max_images),
        bodies: Places::new(options.max_bodies),
        decoders: Arc::new(Semaphore::new(options.workers.max(1))),
        rates: Rates::default(),
        closing: AtomicBool::new(false),
        metrics: Arc::clone(&metrics),
        options: options.clone(),
    });
    let router = routes::router(Arc::clone(&house));
    ready(listener.local_addr()?);

    let mut protocol = http1::Builder::new();
    protocol.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_headers(64);
    let connections = Arc::new(Semaphore::new(options.max_connections.clamp(1, Semaphore::MAX_PERMITS)));
    let graceful = GracefulShutdown::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = async {
            let place = Arc::clone(&connections).acquire_owned().await;
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            () = &mut shutdown => break,
            accepted = accepted => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Of one connection, or of too many open files, which passes.
                log::warn!("a connection could not be accepted: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let service = router.clone().map_request(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(Peer(peer));
            request.map(axum::body::Body::new)
        });
        let connection = protocol.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
        let connection = graceful.watch(connection);
        metrics.connections().inc();
        let metrics = Arc::clone(&metrics);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                log::debug!("{peer}: {error}");
            }
            metrics.connections().dec();
            drop(place);
        });
    }

    drop(listener);
    house.closing.store(true, Ordering::Release);
    log::info!("shutting down: {} images in flight", house.images.taken());
    if tokio::time::timeout(options.grace, graceful.shutdown()).await.is_err() {
        log::warn!("some requests were not answered within {} s", options.grace.as_secs_f64());
    }
    drop(router);
    drop(house);
    // Idle connections may hold the queue for a moment more; an engine that hangs does not keep the program.
    let ended = tokio::task::spawn_blocking(move || engine_thread.join());
    let _ = tokio::time::timeout(Duration::from_secs(1), ended).await;
    Ok(())
}

fn listen(addr: SocketAddr) -> Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = socket.context("cannot open a socket")?;
    // A server that restarts need not wait for the connections of the last.
    #[cfg(unix)]
    socket.set_reuseaddr(true).context("cannot prepare the socket")?;
    let bound = socket.bind(addr).and_then(|()| socket.listen(BACKLOG));
    bound.with_context(|| {
        let why = match addr.port() {
            0..1024 => "is the port taken, or reserved for the system?",
            _ => "does another program use the port?",
        };
        format!("cannot listen on {addr} ({why} --addr takes another address, port 0 any free one)")
    })
}

/// [`serve`] on threads of its own, until Ctrl-C or SIGTERM.
///
/// # Errors
/// Those of [`serve`], and where the system gives no threads or signals.
pub fn run<E: Engine>(engine: Arc<E>, options: Options, ready: impl FnOnce(SocketAddr)) -> Result<()> {
    // Blocking threads are those that decode, and one that waits for the engine's end.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(options.workers.max(1) + 1)
        .enable_all()
        .build()
        .context("cannot start the server's threads")?;
    let outcome = runtime.block_on(async {
        let shutdown = signals()?;
        serve(engine, options, ready, shutdown).await
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

/// Resolves at Ctrl-C or, on Unix, SIGTERM.
fn signals() -> Result<impl Future<Output = ()>> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for Ctrl-C")?;
        Ok(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
    }
    #[cfg(not(unix))]
    Ok(async {
        let _ = tokio::signal::ctrl_c().await;
    })
}
