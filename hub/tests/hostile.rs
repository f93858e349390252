//! Files that declare more than they hold: an error that names the file, and no memory for what is not there.

mod checkpoint;

use std::{fs, path::PathBuf, time::Instant};

use burn::tensor::Device;
use checkpoint::{Entry, Tensor, Value, checkpoint, pickle, zip};
use hub::{Card, Error, LoadOptions, Weights, weights};
use models::{Architecture, ImageClassifier, NetworkConfig};

/// The peak of this process's memory in bytes, where the system tells.
fn peak() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()? * 1024)
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, bytes).expect("written");
        path
    }

    /// Opens the file as `--weights FILE --arch resnet20` does, up to the network, and expects an error that names it.
    fn refused(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.write(name, bytes);
        let options = LoadOptions { architecture: Some(Architecture::ResNet20), ..LoadOptions::default() };
        let device = Device::flex();
        let (before, started) = (peak(), Instant::now());
        let error = hub::open(&path.display().to_string(), &options, &device)
            .and_then(|opened| opened.network(false, &device))
            .map(|_| ())
            .expect_err(name)
            .to_string();
        if let (Some(before), Some(after)) = (before, peak()) {
            // Other tests run at the same time; what is refused asked for gigabytes.
            assert!(after < before + (600 << 20), "{name} took {} MB", (after - before) >> 20);
        }
        assert!(started.elapsed().as_secs() < 30, "{name} took {:?}", started.elapsed());
        assert!(error.contains(name), "{error}");
        error
    }
}

/// The tensors of a ResNet-20 with another last layer, all in one storage of zeros.
fn with_head(head: Tensor) -> Value {
    let network = NetworkConfig::new(Architecture::ResNet20).init(&Device::flex());
    let entries = network.entries().into_iter().map(|entry| {
        let tensor = match entry.key == "linear.weight" {
            true => head.clone(),
            false => Tensor { key: "0".to_string(), numel: 36_864, ..Tensor::dense("0", &entry.shape) },
        };
        (entry.key, Value::Tensor(tensor))
    });
    Value::Dict(entries.collect())
}

fn zeros() -> Vec<u8> {
    vec![0; 36_864 * 4]
}

#[test]
fn a_head_of_more_classes_than_values_is_refused() {
    let folder = Folder::new();
    let head = |shape: &[i64], strides: &[i64], numel| Tensor {
        key: "0".to_string(),
        numel,
        shape: shape.to_vec(),
        strides: strides.to_vec(),
    };
    let cases = [
        ("empty.pth", head(&[1_000_000_000_000, 0], &[0, 1], 0), "no outputs"),
        ("flat.pth", head(&[100_000_000, 0], &[1, 1], 0), "no outputs"),
        ("none.pth", head(&[0, 64], &[64, 1], 0), "no outputs"),
        ("broadcast.pth", head(&[10_000_000, 64], &[0, 0], 36_864), "the file holds"),
        ("rows.pth", head(&[10_000_000, 64], &[0, 1], 36_864), "the file holds"),
        ("lying.pth", head(&[10_000, 64], &[64, 1], 640_000), "the file holds"),
        ("far.pth", head(&[10, 64], &[i64::MAX, 1], 36_864), "exceeds its storage"),
        ("huge.pth", head(&[i64::MAX, i64::MAX], &[0, 0], 36_864), "larger than any file"),
        ("minus.pth", head(&[-10, 64], &[64, 1], 640), "-10"),
        ("rank.pth", head(&[1; 40], &[1; 40], 1), "at most 8"),
    ];
    for (name, head, expected) in cases {
        let error = folder.refused(name, &checkpoint(&with_head(head), &[("0", zeros())]));
        assert!(error.contains(expected), "{name}: {error}");
    }
    // The same network with a head that the file has.
    let right = checkpoint(&with_head(head(&[10, 64], &[64, 1], 36_864)), &[("0", zeros())]);
    let path = folder.write("right.pth", &right);
    assert_eq!(Weights::open(path).unwrap().config(Architecture::ResNet20, &Device::flex()).unwrap().num_classes, 10);
}

#[test]
fn a_head_of_no_classes_is_refused_in_safetensors_too() {
    let folder = Folder::new();
    let header = |shape: &str| {
        let json = format!(r#"{{"linear.weight":{{"dtype":"F32","shape":{shape},"data_offsets":[0,0]}}}}"#);
        [&(json.len() as u64).to_le_bytes()[..], json.as_bytes()].concat()
    };
    for shape in ["[0,64]", "[1000000000000,0]"] {
        let error = folder.refused("none.safetensors", &header(shape));
        assert!(error.contains("no outputs"), "{error}");
    }
    let error = folder.refused("large.safetensors", &header("[1000000000000,64]"));
    assert!(error.contains("is stored at bytes 0 to 0"), "{error}");
}

#[test]
fn a_pickle_of_more_objects_than_a_network_has_is_refused() {
    let folder = Folder::new();
    let archive = |pickle: Vec<u8>| zip(&[Entry::deflated("archive/data.pkl", pickle)]);
    // 10 kB that inflate to 10 MB of empty tuples, say; a reader may take 72 bytes for each.
    for (name, opcode) in [("tuples.pth", b')'), ("dicts.pth", b'}'), ("nones.pth", b'N'), ("marks.pth", b'(')] {
        let bytes = archive([&[0x80, 2][..], &vec![opcode; 10 << 20], b"."].concat());
        assert!(bytes.len() < 100_000, "{}", bytes.len());
        let error = folder.refused(name, &bytes);
        assert!(error.contains("pickle") || error.contains("declares"), "{name}: {error}");
        // The legacy format and a bare pickle have no archive around it.
        let plain = [&[0x80, 2][..], &vec![opcode; 4 << 20], b"."].concat();
        folder.refused("plain.pth", &plain);
    }
    // Nested without end, and a list that contains itself.
    folder.refused("nested.pth", &archive([&[0x80, 2, b')'][..], &vec![0x85; 1 << 20], b"."].concat()));
    folder.refused("cyclic.pth", &archive(b"\x80\x02]q\x00h\x00a.".to_vec()));
    // Each list holds the one before twice: 2^30 paths.
    let doubling = [&b"\x80\x02}X\x01\0\0\0a]q\x00"[..], &b"]h\x00h\x00\x86q\x00"[..].repeat(30), b"s."].concat();
    folder.refused("doubling.pth", &archive(doubling));
    // One long key before many tensors.
    let tensor = Value::Tensor(Tensor { key: "0".into(), numel: 1, shape: vec![], strides: vec![] });
    let inner = Value::Dict((0..2000).map(|index| (index.to_string(), tensor.clone())).collect());
    let long = Value::Dict(vec![("k".repeat(10 << 20), inner)]);
    let error = folder.refused("long.pth", &checkpoint(&long, &[("0", vec![0; 4])]));
    assert!(error.contains("longer than"), "{error}");
}

#[test]
fn an_archive_that_declares_more_than_it_stores_is_refused() {
    let folder = Folder::new();
    let value = with_head(Tensor::dense("1", &[10, 64]));
    let entry = |declared| Entry { declared, ..Entry::stored("archive/data/0", zeros()) };
    let bytes = zip(&[Entry::stored("archive/data.pkl", pickle(&value)), entry(Some(4_000_000_000))]);
    let error = folder.refused("stored.pth", &bytes);
    assert!(error.contains("declares 4000000000 bytes"), "{error}");
    // 20 MB of zeros in 20 kB.
    let deflated = Entry::deflated("archive/data/0", vec![0; 20 << 20]);
    let error = folder.refused("zeros.pth", &zip(&[Entry::stored("archive/data.pkl", pickle(&value)), deflated]));
    assert!(error.contains("declares"), "{error}");

    let whole = checkpoint(&with_head(Tensor::dense("0", &[10, 64])), &[("0", zeros())]);
    let error = folder.refused("half.pth", &whole[..whole.len() / 2]);
    assert!(error.contains("only a part of the file"), "{error}");
    // Any byte of the directory and of the end may lie.
    let path = folder.0.path().join("changed.pth");
    for at in (whole.len() - 300..whole.len()).chain(0..60) {
        for value in [0, 1, 0x7f, 0xff] {
            let mut changed = whole.clone();
            changed[at] = value;
            fs::write(&path, &changed).unwrap();
            let _ = Weights::open(&path);
        }
    }
}

/// A tar of one entry with a header of its own making.
fn tar_entry(name: &str, kind: u8, size: u64, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_path(name).expect("a short name");
    header.set_size(size);
    header.set_mode(0o644);
    header.set_entry_type(tar::EntryType::new(kind));
    if kind == b'S' {
        // A hole of 4 GB, then the content.
        let gnu = header.as_gnu_mut().expect("it is GNU's");
        let octal = |number: u64| {
            let mut field = [0; 12];
            field[..11].copy_from_slice(format!("{number:011o}").as_bytes());
            field
        };
        gnu.sparse[0].offset = octal(4 << 30);
        gnu.sparse[0].numbytes = octal(content.len() as u64);
        gnu.realsize = octal((4 << 30) + content.len() as u64);
    }
    header.set_cksum();
    let padding = vec![0; content.len().next_multiple_of(512) - content.len()];
    [header.as_bytes().as_slice(), content, &padding].concat()
}

#[test]
fn a_sparse_member_of_a_tar_is_refused() {
    let folder = Folder::new();
    let end = vec![0; 1024];
    for (name, kind, size) in [("sparse.pth", b'S', 8), ("long.pth", b'0', 1 << 40)] {
        let bytes = [tar_entry("storages", kind, size, b"12345678"), end.clone()].concat();
        folder.refused(name, &bytes);
    }
}

#[test]
fn old_tar_archives_are_read() {
    // As PyTorch before 0.1.10 wrote them: two tensors of one storage, the second transposed.
    let int = |out: &mut Vec<u8>, number: i64| out.extend(number.to_le_bytes());
    let mut storages = pickle(&Value::Int(1));
    storages.extend(b"\x80\x02(X\x01\0\0\0sX\x03\0\0\0cpuctorch\nFloatStorage\nt.");
    int(&mut storages, 6);
    storages.extend((0..6).flat_map(|value| (value as f32).to_le_bytes()));
    storages.extend(b"\x80\x02].");
    let mut tensors = pickle(&Value::Int(2));
    for (key, offset, shape, strides) in [("a", 0, [2i64, 3], [3i64, 1]), ("b", 0, [3, 2], [1, 3])] {
        tensors.extend(format!("\x02(X\x01\0\0\0{key}X\x01\0\0\0sN").bytes().fold(vec![0x80], |mut all, byte| {
            all.push(byte);
            all
        }));
        tensors.extend(b"t.");
        int(&mut tensors, 2);
        shape.iter().chain(&strides).for_each(|number| int(&mut tensors, *number));
        int(&mut tensors, offset);
    }
    let object = b"\x80\x02}(X\x01\0\0\0xX\x01\0\0\0aQX\x01\0\0\0yX\x01\0\0\0bQu.";
    let system = b"\x80\x02}X\x0d\0\0\0little_endian\x88s.";
    let file = |name: &str, content: &[u8]| tar_entry(name, b'0', content.len() as u64, content);
    let bytes = [
        file("sys_info", system),
        file("pickle", object),
        file("tensors", &tensors),
        file("storages", &storages),
        vec![0; 1024],
    ]
    .concat();
    let folder = Folder::new();
    let path = folder.write("old.pth", &bytes);
    let weights = Weights::open(&path).unwrap();
    let shapes: Vec<(String, Vec<usize>)> = weights.shapes().collect();
    assert_eq!(shapes, [("x".to_string(), vec![2, 3]), ("y".to_string(), vec![3, 2])]);
    let read = |name: &str| weights.values(name).unwrap().unwrap();
    assert_eq!(read("x"), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(read("y"), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    for end in (0..bytes.len()).step_by(101) {
        let _ = Weights::open(folder.write("cut.pth", &bytes[..end]));
    }
}

#[test]
fn a_file_that_becomes_shorter_while_it_is_read_is_an_error() {
    let folder = Folder::new();
    let network = NetworkConfig::new(Architecture::ResNet20).init(&Device::flex());
    let card = Card::of(Architecture::ResNet20, 10, "a test");
    let safetensors = folder.0.path().join("w.safetensors");
    weights::save(&network, &card, &safetensors).unwrap();
    let pth = folder.write(
        "w.pth",
        &checkpoint(&with_head(Tensor::dense("1", &[10, 64])), &[("0", zeros()), ("1", vec![0; 2560])]),
    );
    for path in [safetensors, pth] {
        let weights = Weights::open(&path).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_len(5000).unwrap();
        let network = NetworkConfig::new(Architecture::ResNet20).init(&Device::flex());
        let error = weights.load(network, Architecture::ResNet20, weights::Strictness::Exact).unwrap_err();
        assert!(matches!(error, Error::Format { .. }), "{error}");
    }
}

#[test]
fn any_changed_byte_of_a_safetensors_header_is_no_panic() {
    let folder = Folder::new();
    let json = r#"{"linear.weight":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}}"#;
    let whole = [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &[0; 8]].concat();
    let path = folder.write("w.safetensors", &whole);
    Weights::open(&path).unwrap();
    for at in 0..whole.len() {
        for value in (0..=255).step_by(3) {
            let mut changed = whole.clone();
            changed[at] = value;
            fs::write(&path, &changed).unwrap();
            let _ = Weights::open(&path);
        }
    }
}

#[cfg(unix)]
#[test]
fn a_pipe_is_no_file_of_weights() {
    let folder = Folder::new();
    let path = folder.0.path().join("pipe.pth");
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    if made.is_ok_and(|status| status.success()) {
        assert!(Weights::open(&path).unwrap_err().to_string().contains("it is a pipe"));
        assert!(Card::read(&path).unwrap_err().to_string().contains("not a file"));
    }
}

#[test]
fn a_card_of_impossible_sizes_or_classes_is_refused() {
    let card = Card::of(Architecture::ResNet20, 10, "a test").to_json();
    let path = std::path::Path::new("card.json");
    let cases = [
        ("\"shorter_side\": 32", "\"shorter_side\": 4294967312".to_string()),
        ("\"shorter_side\": 32", "\"squash\": [1000000, 32]".to_string()),
        ("\"shorter_side\": 32", "\"squash\": [16384, 16384]".to_string()),
        ("class 3", "x".repeat(5000)),
    ];
    for (good, bad) in cases {
        assert!(card.contains(good), "{good} is not in {card}");
        let error = Card::from_json(&card.replace(good, &bad), path).unwrap_err().to_string();
        assert!(error.contains("card.json"), "{error}");
    }
}
