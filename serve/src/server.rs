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
    Engine, Options, admission::Permits, batch, metrics::Metrics, middleware::Peer, rates::Rates, routes,
    state::AppState,
};

/// The time limit for receiving a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The size of the listener's backlog.
const BACKLOG: u32 = 1024;

/// Serves until `shutdown` resolves, then stops accepting connections, answers the requests in flight and returns.
/// `ready` is called with the address once the server listens.
///
/// # Errors
/// Fails if the address cannot be bound.
pub async fn serve<E: Engine>(
    engine: Arc<E>,
    options: Options,
    ready: impl FnOnce(SocketAddr),
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let listener = listen(options.addr)?;
    let metrics = Arc::new(Metrics::new());
    let (queue, engine_thread) = batch::start(Arc::clone(&engine), &options, Arc::clone(&metrics));
    let state = Arc::new(AppState {
        engine,
        queue,
        images: Permits::new(options.max_images),
        bodies: Permits::new(options.max_bodies),
        decoders: Arc::new(Semaphore::new(options.workers.max(1))),
        rates: Rates::default(),
        closing: AtomicBool::new(false),
        metrics: Arc::clone(&metrics),
        options: options.clone(),
    });
    let router = routes::router(Arc::clone(&state));
    ready(listener.local_addr()?);

    let mut protocol = http1::Builder::new();
    protocol.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_headers(64);
    let connections = Arc::new(Semaphore::new(options.max_connections.clamp(1, Semaphore::MAX_PERMITS)));
    let graceful = GracefulShutdown::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = async {
            let permit = Arc::clone(&connections).acquire_owned().await;
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            () = &mut shutdown => break,
            accepted = accepted => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // The error concerns one connection, or too many open files, which is transient.
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
            drop(permit);
        });
    }

    drop(listener);
    state.closing.store(true, Ordering::Release);
    log::info!("shutting down: {} images in flight", state.images.taken());
    if tokio::time::timeout(options.grace, graceful.shutdown()).await.is_err() {
        log::warn!("some requests were not answered within {} s", options.grace.as_secs_f64());
    }
    drop(router);
    drop(state);
    // Idle connections may hold the queue a moment longer. An engine that hangs must not keep the process alive.
    let ended = tokio::task::spawn_blocking(move || engine_thread.join());
    let _ = tokio::time::timeout(Duration::from_secs(1), ended).await;
    Ok(())
}

fn listen(addr: SocketAddr) -> Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = socket.context("cannot open a socket")?;
    // Allows a restart while connections of the previous process are in TIME_WAIT.
    #[cfg(unix)]
    socket.set_reuseaddr(true).context("cannot prepare the socket")?;
    let bound = socket.bind(addr).and_then(|()| socket.listen(BACKLOG));
    bound.with_context(|| {
        let why = match addr.port() {
            0..1024 => "is the port in use, or reserved for the system?",
            _ => "is the port in use?",
        };
        format!("cannot listen on {addr} ({why} Choose another address with --addr; port 0 takes a free port)")
    })
}

/// Runs [`serve`] on its own threads until Ctrl-C or SIGTERM.
///
/// # Errors
/// Fails like [`serve`], and if threads or signal handlers cannot be created.
pub fn run<E: Engine>(engine: Arc<E>, options: Options, ready: impl FnOnce(SocketAddr)) -> Result<()> {
    // The blocking threads are the decoders and one that joins the engine thread.
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
