//! The examples, each of which is run as a user runs it.
#![allow(clippy::unwrap_used)] // Helpers of tests fail as tests do.

#[path = "../examples/axum_app.rs"]
#[allow(dead_code)] // Its `main` listens on a fixed port until it is killed.
mod axum_app;
#[path = "../examples/burn_loop.rs"]
mod burn_loop;
#[path = "../examples/classify.rs"]
mod classify;
#[path = "../examples/custom_network.rs"]
mod custom_network;
#[path = "../examples/embedding_search.rs"]
mod embedding_search;
#[path = "../examples/finetune_folder.rs"]
mod finetune_folder;

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use hearth::{
    ImageDataset,
    datasets::{Source, Split},
};

#[test]
fn classify_runs() {
    classify::main().unwrap();
}

#[test]
fn finetune_folder_runs() {
    finetune_folder::main().unwrap();
}

#[test]
fn custom_network_runs() {
    custom_network::main().unwrap();
}

#[test]
fn burn_loop_runs() {
    burn_loop::main().unwrap();
}

#[test]
fn embedding_search_runs() {
    embedding_search::main().unwrap();
}

/// Posts to `/classify` and returns the response.
fn request(address: std::net::SocketAddr, body: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let length = body.len();
    write!(stream, "POST /classify HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n")
        .unwrap();
    stream.write_all(body).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response
}

#[test]
fn axum_app_starts_answers_and_stops() {
    let classifier = axum_app::digits().unwrap();
    let digits = ImageDataset::open("digits", Split::Val).unwrap();
    let mut bytes = Vec::new();
    digits.source().read(0, &mut bytes).unwrap();
    let expected = serde_json::to_string(&classifier.classify(&bytes).unwrap()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let client = std::thread::spawn(move || {
        let answers = (request(address, &bytes), request(address, b"no image"));
        stop.send(()).unwrap();
        answers
    });
    let stop = async { stopped.await.unwrap_or_default() };
    runtime.block_on(axum_app::serve(listener, classifier, stop)).unwrap();
    let (classes, refusal) = client.join().unwrap();
    assert!(classes.starts_with("HTTP/1.1 200") && classes.ends_with(&expected), "{classes}");
    assert!(refusal.starts_with("HTTP/1.1 400") && refusal.contains("cannot decode"), "{refusal}");
    assert!(TcpStream::connect(address).is_err(), "the server is stopped");
}
