//! Classification in an axum application: `cargo run -p hearth-vision --example axum_app -- artifacts/digits-resnet20-001`,
//! then `curl --data-binary @digit.png http://127.0.0.1:8080/classify`.
//!
//! The argument is a run folder or a weight file. Without it, trains ResNet-20 on digits first.

use std::{env, error::Error, future::Future, sync::Arc};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::post,
};
use hearth::{Classifier, Trainer, models::Architecture};
use tokio::net::TcpListener;

/// Serves the weights of the command line, or a network for digits.
pub fn main() -> Result<(), Box<dyn Error>> {
    let classifier = match env::args().nth(1) {
        Some(weights) => Classifier::open(weights)?,
        None => digits()?,
    };
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:8080").await?;
        println!("http://{}/classify", listener.local_addr()?);
        serve(listener, classifier, std::future::pending()).await
    })
}

/// Trains for two epochs.
pub fn digits() -> Result<Classifier, Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    Ok(Trainer::pretrain(Architecture::ResNet20, "digits").epochs(2).artifacts(folder.path()).run()?.classifier()?)
}

/// Serves until `stop` is ready.
pub async fn serve(
    listener: TcpListener,
    classifier: Classifier,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), Box<dyn Error>> {
    let app = Router::new().route("/classify", post(classify)).with_state(Arc::new(classifier));
    Ok(axum::serve(listener, app).with_graceful_shutdown(stop).await?)
}

async fn classify(State(classifier): State<Arc<Classifier>>, body: Bytes) -> impl IntoResponse {
    // The network computes for a while: not on a thread that answers requests.
    let classes = tokio::task::spawn_blocking(move || classifier.classify(&body[..])).await;
    let json = |value| serde_json::to_string(&value).map_err(|error| error.to_string());
    match classes.map_err(|error| error.to_string()).and_then(|classes| classes.map_err(|error| error.to_string())) {
        Ok(classes) => {
            (StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], json(classes).unwrap_or_default())
        }
        Err(error) => (StatusCode::BAD_REQUEST, [(header::CONTENT_TYPE, "text/plain")], error),
    }
}
