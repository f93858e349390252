//! Small inputs of each format that its reader accepts, and the checksums of formats that have them.

#[path = "../../../hub/tests/checkpoint/mod.rs"]
mod checkpoint;

use std::{fs, io::Cursor, path::Path};

use burn::tensor::{Device, Distribution, Tensor as BurnTensor};
use burn_pack::{Bytes, DType, Tensor as PackTensor, Writer};
use datasets::{OpenOptions, Split, source::tar_header};
use hearth::models::{Architecture, NetworkConfig, QuantizedNetwork};
use hub::Card;
use image::{DynamicImage, GrayImage, ImageFormat, Rgb, RgbImage};
use train::recipe::{Overrides, SHIPPED};

use crate::{
    repository,
    targets::{cached_index, files},
};
use checkpoint::{Tensor, Value};

/// The images of the decoder's tests of one format, by the extension of its files, and some that are encoded here.
pub fn images(extension: &str) -> Vec<Vec<u8>> {
    let photo = RgbImage::from_fn(24, 17, |x, y| Rgb([(x * 9) as u8, (y * 13) as u8, (x * y) as u8]));
    let photo = DynamicImage::ImageRgb8(photo);
    let gray = DynamicImage::ImageLuma8(GrayImage::from_fn(19, 9, |x, y| image::Luma([(x * 7 + y * 11) as u8])));
    let encoded = |format| {
        // Not every format has gray images.
        [&photo, &gray].into_iter().filter_map(move |image| {
            let mut bytes = Cursor::new(Vec::new());
            image.write_to(&mut bytes, format).ok().map(|()| bytes.into_inner())
        })
    };
    if extension == "ppm" {
        let text = [&b"P3\n# a comment\n2 2 255\n1 2 3 4 5 6 7 8 9 255 0 1\n"[..], b"P2 3 1\n65535 1 2 3\n"];
        let packed = [
            &b"P1\n3 2\n1 0 1 0 1 0\n"[..],
            b"P4\n9 2\n\x80\x80\x7f\0",
            b"P6 2 1 255\n\x01\x02\x03\xff\0\x80",
            b"P5 2 2 1000\n\0\x01\x03\xe7\0\0\x01\0",
        ];
        return text.into_iter().chain(packed).map(<[u8]>::to_vec).collect();
    }
    let mut paths: Vec<_> = fs::read_dir(repository("datasets/tests/fixtures/decode")).unwrap().collect();
    paths.sort_by_key(|entry| entry.as_ref().unwrap().path());
    let is_seed = |path: &Path| {
        path.extension().is_some_and(|found| found == extension) && !path.to_string_lossy().contains(".expected.")
    };
    let paths = paths.into_iter().map(|entry| entry.unwrap().path()).filter(|path| is_seed(path));
    let format = ImageFormat::from_extension(extension).unwrap();
    paths.map(|path| fs::read(path).unwrap()).chain(encoded(format)).collect()
}

/// Writes the checksum of each chunk of a PNG.
pub fn seal_png(bytes: &mut [u8]) {
    let mut at = 8;
    while let Some(length) = bytes.get(at..).and_then(|rest| rest.first_chunk()) {
        let end = (at + 8).saturating_add(u32::from_be_bytes(*length) as usize);
        if end > bytes.len().saturating_sub(4) {
            break;
        }
        let sum = crc32fast::hash(&bytes[at + 4..end]);
        bytes[end..end + 4].copy_from_slice(&sum.to_be_bytes());
        at = end + 4;
    }
}

/// A tar archive.
fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, content) in members {
        bytes.extend(tar_header(name, content.len() as u64).unwrap());
        bytes.extend(*content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

/// Changes the kind of the archive's member whose header is at `at`.
fn of_kind(mut bytes: Vec<u8>, at: usize, kind: u8) -> Vec<u8> {
    bytes[at + 156] = kind;
    seal_tar(&mut bytes);
    bytes
}

/// Writes the checksum of each block that looks like a header.
pub fn seal_tar(bytes: &mut [u8]) {
    for block in bytes.as_chunks_mut::<512>().0 {
        if &block[257..262] == b"ustar" {
            block[148..156].fill(b' ');
            let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}

pub fn shards() -> Vec<Vec<u8>> {
    let numbers = tar(&[("a.jpg", b"one"), ("a.cls", b"0\n"), ("b/c.png", b"two"), ("b/c.json", br#"{"label": 2}"#)]);
    let names = tar(&[
        ("a.jpg", b"one"),
        ("a.json", br#"{"label": "cat"}"#),
        ("b.jpg", b"two"),
        ("b.txt", b"x"),
        ("b.json", br#"{"label": "dog"}"#),
    ]);
    // A long name as GNU's tar writes it, and one as POSIX does.
    let long = tar(&[("././@LongLink", b"folder/name.jpg\0"), ("short.jpg", b"one")]);
    let pax = tar(&[("PaxHeaders/a", b"24 path=folder/name.jpg\n10 size=3\n"), ("short.jpg", b"one")]);
    vec![numbers, names, of_kind(long, 0, b'L'), of_kind(pax, 0, b'x')]
}

pub fn imagenet_train() -> Vec<Vec<u8>> {
    let first = tar(&[("n01440764_1.JPEG", b"first"), ("n01440764_2.JPEG", b"second")]);
    let second = tar(&[("n01443537_7.JPEG", b"third")]);
    vec![tar(&[("n01440764.tar", &first), ("n01443537.tar", &second)])]
}

pub fn imagenet_val() -> Vec<Vec<u8>> {
    vec![tar(&[("ILSVRC2012_val_00000001.JPEG", b"a sea snake"), ("ILSVRC2012_val_00000003.JPEG", b"a dog")])]
}

/// Tables that another program wrote; `tables/make.py` is that.
#[cfg(feature = "parquet")]
pub fn tables() -> Vec<Vec<u8>> {
    let folder = repository("hearth/tests/fuzz/tables");
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "parquet"));
    paths.sort();
    assert!(!paths.is_empty());
    paths.into_iter().map(|path| fs::read(path).unwrap()).collect()
}

/// The cached index of the archive `x.tar` in `work`, which is written too.
pub fn index(work: &Path) -> Vec<Vec<u8>> {
    let (path, cache) = (work.join("x.tar"), work.join("cache"));
    // Once: the index is of this state of the archive.
    if !path.exists() {
        fs::write(&path, shards().remove(0)).unwrap();
        let options = OpenOptions { index_cache: Some(cache.clone()), ..OpenOptions::split(Split::All) };
        datasets::open(&path.to_string_lossy(), &options).unwrap();
    }
    vec![fs::read(cached_index(&cache)).unwrap()]
}

/// Writes the checksum of an index: its last four bytes.
pub fn seal_index(bytes: &mut [u8]) {
    if let Some((body, sum)) = bytes.split_last_chunk_mut::<4>() {
        *sum = crc32fast::hash(body).to_le_bytes();
    }
}

pub fn manifests() -> Vec<Vec<u8>> {
    vec![br#"{"classes":[{"id":"a","name":"A"},{"id":"b","name":"B"},{"id":"c","name":"C"}],"more":[1]}"#.to_vec()]
}

pub fn kaggle() -> Vec<Vec<u8>> {
    let rows = "ImageId,PredictionString\nILSVRC2012_val_00000001,n01751748 1 2 3 4 \nILSVRC2012_val_00000002,n09193705 1\n\
                ILSVRC2012_val_00000003,n02105855 1 2 3 4 n02105855 5 6 7 8\n";
    vec![rows.into(), rows.replace('\n', "\r\n").into_bytes(), Vec::new()]
}

/// Tables of the images `a.jpg`, `b.jpg` and `images/c.jpg`.
pub fn tables_of_files() -> Vec<Vec<u8>> {
    let text = "image,label,split\na.jpg,x,train\n\"b.jpg\",\"x\",val\nc,\"y, z\",train\n";
    let wide = format!("\u{feff}{text}").encode_utf16().flat_map(u16::to_le_bytes).collect();
    let crlf = text.replace('\n', "\r\n");
    vec![
        text.into(),
        crlf.into_bytes(),
        wide,
        b"a.jpg;1\nb.jpg;2\n".to_vec(),
        b"a.jpg 1\nb.jpg 2\n".to_vec(),
        b"sep=;\npath;is_valid;breed\na.jpg;0;cat\nb.jpg;1;cat\n".to_vec(),
    ]
}

pub fn json_lines() -> Vec<Vec<u8>> {
    let text = "{\"file_name\":\"a.jpg\",\"label\":3,\"box\":[1,2]}\n{\"label\":null,\"file_name\":\"b\"}\n";
    vec![text.replace("null", "4").into_bytes(), text.replace("\"label\":3,", "\"label\":null,").into_bytes()]
}

pub fn quarantine() -> Vec<Vec<u8>> {
    vec![b"# a comment\na/b.jpg\tit is damaged\n\\#c\\td.jpg\t\n\\\\e\\n\\r\n".to_vec(), b"\n".to_vec()]
}

/// A `state_dict` with a linear layer that ResNet-20 has, and one of another shape and type.
fn state() -> Value {
    let tensor = |key: &str, shape: &[usize]| Value::Tensor(Tensor::dense(key, shape));
    let transposed = Tensor { strides: vec![1, 2], ..Tensor::dense("1", &[2, 3]) };
    Value::Dict(vec![
        ("epoch".into(), Value::Int(3)),
        ("arch".into(), Value::Text("resnet20".into())),
        (
            "state_dict".into(),
            Value::Dict(vec![
                ("module.linear.weight".into(), tensor("0", &[4, 64])),
                ("module.linear.bias".into(), Value::Tensor(Tensor { numel: 6, ..Tensor::dense("1", &[4]) })),
                ("module.other".into(), Value::Tensor(transposed)),
            ]),
        ),
    ])
}

fn storages() -> [(&'static str, Vec<u8>); 2] {
    [("0", vec![0; 4 * 64 * 4]), ("1", vec![1; 24])]
}

pub fn pytorch() -> Vec<Vec<u8>> {
    let module = Value::Object(
        "torch.nn.modules.linear",
        "Linear",
        vec![
            ("_parameters".into(), Value::Dict(vec![("weight".into(), Value::Tensor(Tensor::dense("1", &[2, 3])))])),
            ("_buffers".into(), Value::Dict(vec![])),
            ("_modules".into(), Value::Dict(vec![])),
        ],
    );
    vec![
        checkpoint::checkpoint(&state(), &storages()),
        checkpoint::checkpoint(&module, &storages()),
        deflated(),
        legacy(),
        old_tar(),
    ]
}

fn deflated() -> Vec<u8> {
    let pickle = checkpoint::Entry::deflated("archive/data.pkl", checkpoint::pickle(&state()));
    let order = checkpoint::Entry::stored("archive/byteorder", b"little".to_vec());
    let storages = storages().map(|(key, bytes)| checkpoint::Entry::stored(&format!("archive/data/{key}"), bytes));
    checkpoint::zip(&[pickle, order].into_iter().chain(storages).collect::<Vec<_>>())
}

/// The format of PyTorch before 1.6: pickles of a magic number, a version, the system, the object and the storages' keys.
fn legacy() -> Vec<u8> {
    let mut bytes = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.".to_vec();
    bytes.extend(b"\x80\x02}q\0(X\x10\0\0\0protocol_versionM\xe9\x03X\x0d\0\0\0little_endian\x88u.");
    bytes.extend(checkpoint::pickle(&state()));
    bytes.extend(b"\x80\x02](X\x01\0\0\x000X\x01\0\0\x001e.");
    for (_, storage) in storages() {
        bytes.extend((storage.len() as u64 / 4).to_le_bytes());
        bytes.extend(storage);
    }
    bytes
}

/// The format of PyTorch before 0.1.10: a tar of the system, the object, tensors and storages.
fn old_tar() -> Vec<u8> {
    let int = |number: i64| number.to_le_bytes();
    let mut storages = checkpoint::pickle(&Value::Int(1));
    storages.extend(b"\x80\x02(X\x01\0\0\0sX\x03\0\0\0cpuctorch\nFloatStorage\nt.");
    storages.extend(int(6));
    storages.extend([0; 24]);
    storages.extend(b"\x80\x02].");
    let mut tensors = checkpoint::pickle(&Value::Int(1));
    tensors.extend(b"\x80\x02(X\x01\0\0\0aX\x01\0\0\0sNt.");
    tensors.extend([2, 2, 3, 3, 1, 0].into_iter().flat_map(int));
    tar(&[
        ("sys_info", b"\x80\x02}X\x0d\0\0\0little_endian\x88s."),
        ("pickle", b"\x80\x02}(X\x01\0\0\0xX\x01\0\0\0aQu."),
        ("tensors", &tensors),
        ("storages", &storages),
    ])
}

pub fn safetensors() -> Vec<Vec<u8>> {
    let file = |header: &str, length: usize| {
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; length]].concat()
    };
    let card = serde_json::to_string(&Card::of(Architecture::ResNet20, 2, "a test").to_json()).unwrap();
    vec![
        file(
            r#"{"linear.weight":{"dtype":"F32","shape":[2,64],"data_offsets":[0,512]},"x":{"dtype":"BF16","shape":[3],"data_offsets":[512,518]}}"#,
            518,
        ),
        file(
            &format!(
                r#"{{"__metadata__":{{"hearth.card":{card}}},"linear.weight":{{"dtype":"F64","shape":[2,64],"data_offsets":[0,1024]}}}}"#
            ),
            1024,
        ),
    ]
}

pub fn burn_record(_: &Path) -> Vec<Vec<u8>> {
    let tensor = |name: &str, shape: Vec<usize>| {
        let bytes = Bytes::from_bytes_vec(vec![0; 4 * shape.iter().product::<usize>()]);
        PackTensor::new(name.to_string(), DType::F32, shape, Some(7), bytes)
    };
    let writer = Writer::new(vec![tensor("linear.weight", vec![64, 2]), tensor("linear.bias", vec![2])]);
    let card = Card::of(Architecture::ResNet20, 2, "a test").to_json();
    vec![writer.with_metadata("hearth.card", &card).into_bytes().unwrap().to_vec()]
}

pub fn caffemodel() -> Vec<Vec<u8>> {
    // Shorter than 128 bytes each, so that a length is one byte.
    let bytes = |field: u8, value: &[u8]| [&[field << 3 | 2, value.len() as u8][..], value].concat();
    let floats = |count: usize| bytes(5, &vec![0; 4 * count]);
    let old_blob = [&[8, 2, 16, 1, 24, 1, 32, 3][..], &floats(6)].concat();
    let layer = [bytes(4, b"conv1/7x7_s2"), vec![5 << 3, 4], bytes(6, &old_blob)].concat();
    let new_blob = [floats(3), bytes(7, &bytes(1, &[1, 3]))].concat();
    let newer = [bytes(1, b"fc"), bytes(2, b"InnerProduct"), bytes(7, &new_blob)].concat();
    vec![
        [bytes(1, b"GoogleNet"), bytes(2, &layer)].concat(),
        [&[0xa2, 0x06, newer.len() as u8], newer.as_slice()].concat(),
    ]
}

pub fn cards() -> Vec<Vec<u8>> {
    let card = |architecture, classes| Card::of(architecture, classes, "a test").to_json().into_bytes();
    vec![card(Architecture::ResNet20, 3), card(Architecture::GoogLeNet2014, 2), card(Architecture::InceptionV3, 2)]
}

/// A quantized ResNet-20, with operations in f32 in its shortcuts.
pub fn quantized() -> QuantizedNetwork {
    let device = Device::flex();
    let network = NetworkConfig::new(Architecture::ResNet20).init(&device);
    let images = BurnTensor::random([1, 3, 32, 32], Distribution::Normal(0.0, 1.0), &device);
    let normalization = [[0.5; 3], [0.25; 3]];
    QuantizedNetwork::calibrate(Architecture::ResNet20, network, normalization, &[images], &[]).unwrap().0
}

pub fn programs() -> Vec<Vec<u8>> {
    vec![serde_json::to_vec(quantized().program()).unwrap()]
}

pub fn recipes() -> Vec<Vec<u8>> {
    let written = train::recipe::load("digits", &Overrides::default()).unwrap().to_toml();
    let shipped = SHIPPED.iter().map(|recipe| recipe.text.to_string());
    // Some shipped ones lack the weights to start from.
    let is_whole = |text: &String| {
        train::recipe::parse(text, "a recipe", &Overrides::default()).is_ok_and(|recipe| recipe.check().is_ok())
    };
    shipped.chain([written]).filter(is_whole).map(String::into_bytes).collect()
}

pub fn overrides() -> Vec<Vec<u8>> {
    vec![b"epochs=3\nseed=7".to_vec(), b"schedule.learning_rate=0.5\n".to_vec(), b"architecture=\"resnet20\"".to_vec()]
}

const PREDICTIONS: &str = "key,label,p_label,loss,pred1,p1,pred2,p2,pred3,p3,pred4,p4,pred5,p5\n\
    a.jpg,0,0.9,0.1,0,0.9,1,0.1,,,,,,\n\"b,c\",1,0.1,2.3,0,0.9,1,0.1,,,,,,\n";

pub fn run_files() -> Vec<Vec<u8>> {
    let run = r#"{"name":"a run","command":["train","x"],"status":"finished","kind":"pretrain","data":{"train":"x","valid_images":2,"classes":6},"result":{"best_epoch":2,"seconds":61.0,"best":{"loss":0.5,"top1":75.0,"top5":100.0}}}"#;
    let metrics = "epoch,step,split,loss,top1,top5,learning_rate,gradient_norm,images_per_second\n\
        1,10,train_step,2.0,10,50,0.1,3.5,500\n1,10,train,2.0,10,50,,,\n1,10,valid,1.9,20,60,,,\n\
        2,20,train,1.0,60,90,,,\n2,20,valid,NaN,75,100,,,\n2,20,valid_ema,1.0,75,100,,,\n";
    let epochs = "epoch,seconds,waiting,compute,validation,checkpointing,reading,decoding,transforming,collating,idle,\
        bad_samples,skipped_steps,advice\n1,10,1,7,1,1,2,3,1,1,1,1,0,more threads\n2,9,1,6,1,1,2,3,1,1,1,1,0,\n";
    let card = r#"{"architecture":"resnet20","classes":["a","b","c","d","e","f"],"origin":"x"}"#;
    let recipe = "architecture = \"resnet20\"\n[schedule]\nlearning_rate = 0.1\n";
    let mistakes = "file,key,label,pred1,p1\n1.jpg,a.jpg,0,1,0.9\n";
    vec![
        files(&[
            ("run.json", run),
            ("recipe.toml", recipe),
            ("card.json", card),
            ("metrics.csv", metrics),
            ("epochs.csv", epochs),
            ("predictions.csv", PREDICTIONS),
            ("mistakes/index.csv", mistakes),
        ]),
        files(&[("run.json", r#"{"name":"a","kind":"probe","status":"failed"}"#), ("metrics.csv", metrics)]),
        files(&[("predictions.csv", PREDICTIONS), ("card.json", card)]),
    ]
}

pub fn evaluation_files() -> Vec<Vec<u8>> {
    let proportion = r#"{"right":1,"of":2,"percent":50.0,"low":9.0,"high":90.0}"#;
    let result = format!(
        r#"{{"format":1,"weights":["w"],"architectures":["resnet20"],"origins":["x"],"data":"d","split":"val","images":2,"classes":2,"data_classes":2,"protocol":"1 crop","hearth":"0","commit":null,"backend":"flex","rank":0,"of":1,"top1":{proportion},"top5":{proportion},"loss":{{"mean":1.0,"low":0.5,"high":1.5}},"top1_among_data_classes":null,"top5_among_data_classes":null,"top1_real":null,"ece":1.5,"bad_samples":0,"seconds":1.0,"images_per_second":2.0}}"#
    );
    let named = [("result.json", result.as_str()), ("classes.json", r#"["a","b"]"#), ("predictions.csv", PREDICTIONS)];
    vec![files(&named)]
}

pub fn class_maps() -> Vec<Vec<u8>> {
    let maps = [
        "folder,class\n0,class 1\n1,2\ncat,class 0\n",
        r#"{"0": "class 1", "1": 2, "cat": 0}"#,
        "\u{feff}0,0\r\n1,1\r\ncat,\"class 2\"\r\n",
    ];
    maps.map(|map| map.as_bytes().to_vec()).to_vec()
}

pub fn features() -> Vec<Vec<u8>> {
    let mut header = b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }".to_vec();
    header.resize(127, b' ');
    header.push(b'\n');
    vec![[&b"path\na.jpg\n\"b,c.jpg\"\n\0"[..], &header, &[0; 24]].concat()]
}

pub fn requests() -> Vec<Vec<u8>> {
    let photo = images("jpg").pop().unwrap();
    let post = |path: &str, headers: &str, body: &[u8]| {
        let length = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}content-length: {length}\r\n\r\n"
        );
        [head.as_bytes(), body].concat()
    };
    let part =
        b"--line\r\ncontent-disposition: form-data; name=\"f\"; filename=\"a.jpg\"\r\ncontent-type: image/jpeg\r\n\r\n";
    let form = [&part[..], &photo, b"\r\n", part, &photo, b"\r\n--line--\r\n"].concat();
    let chunked = format!(
        "POST /v1/classify HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n",
        photo.len()
    );
    vec![
        b"GET /v1/model HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".to_vec(),
        b"GET /metrics HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\nGET /healthz HTTP/1.1\r\nhost: [::1]\r\nconnection: close\r\n\r\n".to_vec(),
        post("/v1/classify?topk=2", "content-type: image/jpeg\r\n", &photo),
        post("/v1/explain?class=1", "", &photo),
        post("/v1/classify", "content-type: multipart/form-data; boundary=line\r\n", &form),
        [chunked.as_bytes(), &photo, b"\r\n0\r\n\r\n"].concat(),
    ]
}
