//! The readers, each with its seeds and words.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock, atomic::AtomicBool, mpsc},
    thread,
    time::Duration,
};

use burn::tensor::{Device, Tensor};
use datasets::{
    DecodeError, DecodeOptions, Limits, OpenOptions, OrientationPolicy, Quarantine, Split, decode,
    decode::decode_region, probe, transforms::Rect,
};
use hearth::models::{Architecture, QuantizedNetwork, quantized::Program};
use hub::{Card, Preprocessor, Weights};
use image::RgbImage;
use infer::{evaluation::Evaluation, features, labels::ClassMapFile};
use serve::{Engine, EngineError, Explanation, Options, RejectReason};
use train::recipe::Overrides;

use crate::seeds;

/// Runs one input; an error is what the reader says of it.
pub type Run = Box<dyn FnMut(&[u8]) -> Result<(), String>>;

/// A reader of untrusted bytes.
pub struct Target {
    pub name: &'static str,
    /// Prepares the reader; the folder is empty and its own.
    pub open: fn(&Path) -> Run,
    /// Inputs that it accepts.
    pub seeds: fn(&Path) -> Vec<Vec<u8>>,
    /// Words of the format.
    pub words: &'static [&'static [u8]],
    /// Corrects checksums, without which most inputs would end at them.
    pub seal: fn(&mut [u8]),
    /// The longest input in bytes.
    pub longest: usize,
}

const fn target(
    name: &'static str,
    open: fn(&Path) -> Run,
    seeds: fn(&Path) -> Vec<Vec<u8>>,
    words: &'static [&'static [u8]],
) -> Target {
    Target { name, open, seeds, words, seal: |_| {}, longest: 256 << 10 }
}

pub const TARGETS: &[Target] = &[
    target(
        "jpeg",
        |_| Box::new(image),
        |_| seeds::images("jpg"),
        &[
            b"\xff\xd8",
            b"\xff\xd9",
            b"\xff\xc0\0\x11\x08",
            b"\xff\xc2\0\x11\x08",
            b"\xff\xc9\0\x11\x08",
            b"\xff\xda",
            b"\xff\xc4",
            b"\xff\xdb",
            b"\xff\xdd\0\x04\0\x01",
            b"\xff\xd0",
            b"\xff\xd7",
            b"\xff\xfe\0\x04",
            b"\xff\xe1\0\x22Exif\0\0",
            b"\xff\xee\0\x0eAdobe",
            b"\xff\xda\0\x08\x01\x01\0\x01\x3f\0",
            b"MM\0*",
            b"\xff",
        ],
    ),
    Target {
        seal: seeds::seal_png,
        ..target(
            "png",
            |_| Box::new(image),
            |_| seeds::images("png"),
            &[
                b"IHDR",
                b"IDAT",
                b"PLTE",
                b"tRNS",
                b"IEND",
                b"iCCP",
                b"eXIf",
                b"iTXt",
                b"zTXt",
                b"tEXt",
                b"acTL",
                b"fcTL",
                b"fdAT",
                b"\x10\x06",
                b"\x10\x02",
                b"\x01\0\0",
                b"XML:com.adobe.xmp\0",
            ],
        )
    },
    target(
        "gif",
        |_| Box::new(image),
        |_| seeds::images("gif"),
        &[b"GIF89a", b"\x21\xf9\x04", b"\x21\xff\x0bNETSCAPE2.0", b"\x2c\0\0\0\0", b"\x3b", b"\x0c", b"\xff\xff"],
    ),
    target(
        "webp",
        |_| Box::new(image),
        |_| seeds::images("webp"),
        &[b"RIFF", b"WEBP", b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"EXIF", b"XMP ", b"ICCP", b"\x2f"],
    ),
    target(
        "tiff",
        |_| Box::new(image),
        |_| seeds::images("tiff"),
        &[
            b"II*\0",
            b"MM\0*",
            b"II+\0\x08\0\0\0",
            b"\0\x01\x03\0",
            b"\x01\x01\x03\0",
            b"\x02\x01\x03\0",
            b"\x03\x01\x03\0",
            b"\x06\x01\x03\0",
            b"\x11\x01\x04\0",
            b"\x15\x01\x03\0",
            b"\x16\x01\x04\0",
            b"\x17\x01\x04\0",
            b"\x1c\x01\x03\0",
            b"\x40\x01\x03\0",
            b"\x42\x01\x04\0",
            b"\x43\x01\x04\0",
            b"\x44\x01\x04\0",
            b"\x45\x01\x04\0",
            b"\x52\x01\x03\0",
            b"\x53\x01\x03\0",
            b"\x5b\x01\x07\0",
            b"\x12\x01\x03\0",
            b"\xbc\x02\x01\0",
            b"\x05\0",
            b"\x07\0",
            b"\x08\0",
            b"\x03\0",
            b"\x04\0",
            b"\x50\xc3",
        ],
    ),
    target("bmp", |_| Box::new(image), |_| seeds::images("bmp"), &[b"BM", b"\x28\0\0\0", b"\x7c\0\0\0", b"\x0c\0\0\0"]),
    target(
        "pnm",
        |_| Box::new(image),
        |_| seeds::images("ppm"),
        &[b"P1\n", b"P2\n", b"P3\n", b"P4\n", b"P5\n", b"P6\n", b"# a\n", b" ", b"\n", b"65535"],
    ),
    Target { seal: seeds::seal_tar, ..target("webdataset", |work| opened(work, "x.tar"), |_| seeds::shards(), TAR) },
    Target {
        seal: seeds::seal_tar,
        ..target("imagenet_train", |work| opened(work, "ILSVRC2012_img_train.tar"), |_| seeds::imagenet_train(), TAR)
    },
    Target {
        seal: seeds::seal_tar,
        ..target("imagenet_val", |work| opened(work, "ILSVRC2012_img_val.tar"), |_| seeds::imagenet_val(), TAR)
    },
    #[cfg(feature = "parquet")]
    target(
        "parquet",
        |work| opened(work, "x.parquet"),
        |_| seeds::tables(),
        &[b"PAR1", b"\x15\0", b"\x15\x02", b"\x19\x1c", b"\x26", b"huggingface", b"image", b"bytes", b"label"],
    ),
    Target { seal: seeds::seal_index, ..target("index_cache", index, seeds::index, &[b"\xff\xff\xff\xff"]) },
    target("manifest", manifest, |_| seeds::manifests(), JSON),
    target("kaggle_csv", kaggle, |_| seeds::kaggle(), &[b"ImageId,PredictionString\n", b"\"", b",", b"\r\n"]),
    target("table_csv", |work| table(work, "t.csv"), |_| seeds::tables_of_files(), TABLE),
    target("table_jsonl", |work| table(work, "t.jsonl"), |_| seeds::json_lines(), JSON),
    target(
        "quarantine",
        |work| quarantine(&work.join("x.txt")),
        |_| seeds::quarantine(),
        &[b"\t", b"\\n", b"\\", b"#"],
    ),
    target("pytorch", |work| weights(work.join("x.pth")), |_| seeds::pytorch(), PICKLE),
    target(
        "safetensors",
        |work| weights(work.join("x.safetensors")),
        |_| seeds::safetensors(),
        &[
            b"F32",
            b"F64",
            b"BF16",
            b"I64",
            b"BOOL",
            b"F8_E4M3",
            b"\"dtype\":",
            b"\"shape\":[",
            b"\"data_offsets\":[",
            b"__metadata__",
            b"hearth.card",
            b"[0,0]",
            b"{",
            b"}",
            b"linear.weight",
            b"\\u0000",
        ],
    ),
    target(
        "burn_record",
        |work| weights(work.join("x.bpk")),
        seeds::burn_record,
        &[b"\x82", b"\x9f", b"\xbf", b"\xff"],
    ),
    target(
        "caffemodel",
        |work| weights(work.join("x.caffemodel")),
        |_| seeds::caffemodel(),
        &[
            b"\xa2\x06",
            b"\x12",
            b"\x3a",
            b"\x2a",
            b"\x32",
            b"\xff\xff\xff\xff\x0f",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        ],
    ),
    target("card", |_| Box::new(card), |_| seeds::cards(), JSON),
    target("quantized", |_| quantized(), |_| seeds::programs(), JSON),
    target(
        "recipe",
        |_| Box::new(recipe),
        |_| seeds::recipes(),
        &[
            b"[a]\n",
            b"[[a]]\n",
            b" = ",
            b"\"",
            b"'''",
            b"\n",
            b"true",
            b"inf",
            b"nan",
            b"{",
            b"}",
            b"0x7fffffffffffffff",
        ],
    ),
    target("overrides", |_| Box::new(overrides), |_| seeds::overrides(), &[b"=", b"[", b"]", b"\"", b".", b","]),
    target("run_folder", run_folder, |_| seeds::run_files(), JSON),
    target("evaluation", evaluation, |_| seeds::evaluation_files(), JSON),
    target("class_map", |work| class_map(work.join("x")), |_| seeds::class_maps(), JSON),
    target(
        "features",
        |work| feature_vectors(work.join("x.npy")),
        |_| seeds::features(),
        &[b"'descr'", b"'<f4'", b"'shape': (", b"True", b"\n", b"\"", b","],
    ),
    target(
        "http",
        |_| http(),
        |_| seeds::requests(),
        &[
            b"\r\n\r\n",
            b"\r\n",
            b"GET ",
            b"POST ",
            b"/v1/classify",
            b"/v1/explain",
            b"/v1/model",
            b"/metrics",
            b"?topk=",
            b"&class=",
            b"content-length: 0\r\n",
            b"transfer-encoding: chunked\r\n",
            b"0\r\n\r\n",
            b"ffffffffffffffff\r\n",
            b"content-type: application/json\r\n",
            b"content-type: multipart/form-data; boundary=line\r\n",
            b"--line\r\n",
            b"--line--\r\n",
            b"content-disposition: form-data; name=\"f\"; filename=\"a\"\r\n",
            b"expect: 100-continue\r\n",
            b"%00",
            b"%ff",
            b"content-encoding: gzip\r\n",
            b"connection: upgrade\r\n",
            b"HTTP/1.0",
        ],
    ),
];

const TAR: &[&[u8]] = &[
    b"ustar\x0000",
    b"ustar  \0",
    b"././@LongLink",
    b"00000000144\0",
    b"77777777777\0",
    b"\x80\0\0\0\0\0\0\0\0\0\0\x10",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    b"15 path=a/b.jpg\n",
    b"20 size=4000000000\n",
    b".jpg",
    b".cls",
    b".json",
    b".txt",
    b"n01440764.tar",
    b"ILSVRC2012_val_00000001.JPEG",
    b"manifest.json",
    b"{\"label\": 3}",
    b"GNU.sparse.size=9",
    b"\0\0\0\0\0\0\0\0",
];

const PICKLE: &[&[u8]] = &[
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_tensor_v3\n",
    b"ctorch\nFloatStorage\n",
    b"ctorch\nUntypedStorage\n",
    b"ccollections\nOrderedDict\n",
    b"c__builtin__\nset\n",
    b"\x8a\x08",
    b"\x8b\xff\xff\xff\x7f",
    b"X\xff\xff\xff\xff",
    b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"(",
    b")",
    b"t",
    b"}",
    b"]",
    b"a",
    b"e",
    b"s",
    b"u",
    b"R",
    b"b",
    b"Q",
    b"q\0",
    b"h\0",
    b"r\xff\xff\xff\xff",
    b"j\xff\xff\xff\xff",
    b"\x94",
    b"\x93",
    b"\x81",
    b"\x92",
    b"\x85",
    b"\x86",
    b"\x87",
    b"0",
    b"1",
    b"2",
    b".",
    b"PK\x03\x04",
    b"PK\x01\x02",
    b"PK\x05\x06",
    b"PK\x06\x06",
    b"PK\x06\x07",
    b"\x01\0\x10\0",
    b"archive/data.pkl",
    b"archive/data/0",
    b"byteorder",
    b"storages",
    b"tensors",
    b"sys_info",
];

const JSON: &[&[u8]] = &[
    b"{", b"}", b"[", b"]", b"\"", b":", b",", b"null", b"true", b"\\ud800", b"\\u0000", b"\n", b"\r\n", b"-",
    b"1e999", b"NaN", b"\xff", b"=",
];

/// Small limits, so that the process's own tells a declared size from a real one.
fn limits() -> DecodeOptions {
    DecodeOptions::from(Limits { max_pixels: 1 << 20, max_bytes: 64 << 20 })
}

/// Decodes an image whole, a part of it, and without its orientation; all three agree on whether they can.
fn image(bytes: &[u8]) -> Result<(), String> {
    let options = limits();
    let header = probe(bytes).map_err(text)?;
    let whole = decode(bytes, &options);
    let (width, height) = match &whole {
        Ok(decoded) => decoded.image.dimensions(),
        Err(_) => (header.width, header.height),
    };
    let crop = Rect { left: width / 3, top: height / 3, width: width.div_ceil(2), height: height.div_ceil(2) };
    for target in [(4, 4), (width, height)] {
        let _ = decode_region(bytes, crop, target, &options);
    }
    let stored = DecodeOptions { orientation: OrientationPolicy::Ignore, ..options };
    assert_eq!(decode(bytes, &stored).is_ok(), whole.is_ok(), "the orientation decides whether it decodes");
    whole.map(drop).map_err(text)
}

fn text(error: DecodeError) -> String {
    error.to_string()
}

/// Opens a data set that consists of the input alone, and reads its samples.
fn opened(work: &Path, name: &'static str) -> Run {
    let path = work.join(name);
    let cache = work.join("cache");
    Box::new(move |bytes| {
        fs::write(&path, bytes).unwrap();
        let options = OpenOptions { index_cache: Some(cache.clone()), ..OpenOptions::split(Split::All) };
        read_samples(&path, &options)
    })
}

fn read_samples(path: &Path, options: &OpenOptions) -> Result<(), String> {
    let opened = datasets::open(&path.to_string_lossy(), options).map_err(|error| error.to_string())?;
    let source = opened.source;
    let mut bytes = Vec::new();
    for index in 0..source.len().min(64) {
        assert!(source.label(index).is_none_or(|label| (label as usize) < source.classes().len()));
        let _ = (source.key(index), source.location(index).to_string());
        source.read(index, &mut bytes).map_err(|error| error.to_string())?;
    }
    assert!(source.read(source.len(), &mut bytes).is_err(), "there is no such sample");
    Ok(())
}

/// Opens a fixed archive whose cached index is the input.
fn index(work: &Path) -> Run {
    let (path, cache) = (work.join("x.tar"), work.join("cache"));
    let seed = seeds::index(work).remove(0);
    let kept = cached_index(&cache);
    fs::write(&kept, seed).unwrap();
    Box::new(move |bytes| {
        fs::write(&kept, bytes).unwrap();
        read_samples(&path, &OpenOptions { index_cache: Some(cache.clone()), ..OpenOptions::split(Split::All) })
    })
}

/// The one file of an index cache.
pub fn cached_index(cache: &Path) -> PathBuf {
    fs::read_dir(cache).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.is_file()).unwrap()
}

/// Opens shards with the input as `manifest.json`.
fn manifest(work: &Path) -> Run {
    let folder = work.join("shards");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("x.tar"), seeds::shards().remove(0)).unwrap();
    let cache = work.join("cache");
    Box::new(move |bytes| {
        fs::write(folder.join("manifest.json"), bytes).unwrap();
        let options = OpenOptions { index_cache: Some(cache.clone()), ..OpenOptions::split(Split::All) };
        read_samples(&folder, &options)
    })
}

/// What tables are made of.
const TABLE: &[&[u8]] = &[
    b"image,label,split\n",
    b",",
    b";",
    b"\t",
    b"\"",
    b"\r\n",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xfe\xff",
    b"sep=;\n",
    b"../",
    b"a.jpg",
    b"train",
    b"is_valid",
];

/// Opens a table of the images beside it.
fn table(work: &Path, name: &'static str) -> Run {
    let photo = seeds::images("jpg").remove(0);
    for image in ["a.jpg", "b.jpg", "images/c.jpg"] {
        let path = work.join(image);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, &photo).unwrap();
    }
    opened(work, name)
}

/// Opens Kaggle's layout of ImageNet with the input as `LOC_val_solution.csv`.
fn kaggle(work: &Path) -> Run {
    let table = work.join("LOC_val_solution.csv");
    let images = work.join("ILSVRC/Data/CLS-LOC/val");
    fs::create_dir_all(&images).unwrap();
    let photo = seeds::images("jpg").remove(0);
    (1..=3).for_each(|n| fs::write(images.join(format!("ILSVRC2012_val_0000000{n}.JPEG")), &photo).unwrap());
    let work = work.to_path_buf();
    Box::new(move |bytes| {
        fs::write(&table, bytes).unwrap();
        read_samples(&work, &OpenOptions::split(Split::Val))
    })
}

/// Reads a list of samples to leave out; writing it keeps what it says.
fn quarantine(path: &Path) -> Run {
    let path = path.to_path_buf();
    Box::new(move |bytes| {
        fs::write(&path, bytes).unwrap();
        let list = Quarantine::load(&path).map_err(|error| error.to_string())?;
        let mut written = Vec::new();
        list.write(&mut written).unwrap();
        fs::write(&path, written).unwrap();
        assert_eq!(Quarantine::load(&path).unwrap().len(), list.len(), "the list is not what was written");
        Ok(())
    })
}

/// Opens a file of weights, asks which network it has, and reads its small tensors.
fn weights(path: PathBuf) -> Run {
    let device = Device::flex();
    Box::new(move |bytes| {
        fs::write(&path, bytes).unwrap();
        let open = || -> hub::Result<()> {
            let weights = Weights::open(&path)?;
            let shapes: Vec<(String, Vec<usize>)> = weights.shapes().collect();
            // A file has at most this many values: no tensor that opens may have more.
            for (name, shape) in shapes.iter().take(16) {
                let values: usize = shape.iter().product();
                if let Some(read) = weights.values(name)? {
                    assert_eq!(read.len(), values, "{name}");
                }
            }
            weights.has_head(Architecture::ResNet20, &device)?;
            weights.config(Architecture::ResNet20, &device).map(drop)
        };
        open().map_err(|error| error.to_string())
    })
}

/// Reads a card and prepares an image by it.
fn card(bytes: &[u8]) -> Result<(), String> {
    let text = str::from_utf8(bytes).map_err(|error| error.to_string())?;
    let card = Card::from_json(text, Path::new("card.json")).map_err(|error| error.to_string())?;
    let prepared = Preprocessor::new(&card).map_err(|error| error.to_string())?.prepare(&RgbImage::new(7, 5));
    assert_eq!([prepared.height() as usize, prepared.width() as usize], card.preprocess.input_size);
    assert_eq!(Card::from_json(&card.to_json(), Path::new("card.json")).unwrap(), card, "a card as it is written");
    Ok(())
}

/// Reads the program of a quantized network, with the layers of the seed's, and runs it on a small image.
fn quantized() -> Run {
    let device = Device::flex();
    let layers = seeds::quantized().layers().clone();
    Box::new(move |bytes| {
        let program: Program = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let [height, width] = program.input_size;
        let network = QuantizedNetwork::new(program, layers.clone(), &device).map_err(|error| error.to_string())?;
        for size in [[height, width], [32, 32]] {
            if size[0].saturating_mul(size[1]) <= 1 << 12 {
                let images = Tensor::zeros([1, 3, size[0], size[1]], &device);
                network.forward(images).map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    })
}

/// Reads and checks a recipe; one that is right is written and read the same.
fn recipe(bytes: &[u8]) -> Result<(), String> {
    let text = str::from_utf8(bytes).map_err(|error| error.to_string())?;
    let read = |text: &str| train::recipe::parse(text, "the recipe", &Overrides::default());
    let recipe = read(text).map_err(|error| error.to_string())?;
    recipe.check().map_err(|error| error.to_string())?;
    assert_eq!(read(&recipe.to_toml()).unwrap(), recipe, "a recipe as it is written");
    Ok(())
}

/// Reads a list of changes to a recipe, as `--set` has them, one a line.
fn overrides(bytes: &[u8]) -> Result<(), String> {
    let text = str::from_utf8(bytes).map_err(|error| error.to_string())?;
    let mut overrides = Overrides::default();
    text.lines().try_for_each(|line| overrides.parse(line)).map_err(|error| error.to_string())?;
    let recipe = train::recipe::load("digits", &overrides).map_err(|error| error.to_string())?;
    recipe.check().map_err(|error| error.to_string())
}

/// The files that an input of several files has: each begins with a line of its name.
const NAME: &str = "file: ";

fn write_files(folder: &Path, bytes: &[u8], names: &[&str]) {
    let text = String::from_utf8_lossy(bytes);
    for part in text.split(NAME) {
        let (name, content) = part.split_once('\n').unwrap_or((part, ""));
        // Names that the mutations made lead nowhere.
        if names.contains(&name) {
            fs::write(folder.join(name), content).unwrap();
        }
    }
}

pub fn files(files: &[(&str, &str)]) -> Vec<u8> {
    files.iter().map(|(name, content)| format!("{NAME}{name}\n{content}")).collect::<String>().into_bytes()
}

const RUN_FILES: [&str; 7] =
    ["run.json", "recipe.toml", "card.json", "metrics.csv", "epochs.csv", "predictions.csv", "mistakes/index.csv"];

/// Writes the report of a run folder, and the page that compares it with itself.
fn run_folder(work: &Path) -> Run {
    let work = work.to_path_buf();
    Box::new(move |bytes| {
        let folder = work.join("run");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("mistakes")).unwrap();
        write_files(&folder, bytes, &RUN_FILES);
        report::write(&folder).map_err(|error| format!("{error:#}"))?;
        report::compare(&[folder.clone(), folder], &work.join("compare.html")).map_err(|error| format!("{error:#}"))
    })
}

/// Reads an evaluation, summarizes it, and merges it with itself.
fn evaluation(work: &Path) -> Run {
    let folder = work.join("evaluation");
    Box::new(move |bytes| {
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        write_files(&folder, bytes, &["result.json", "classes.json", "predictions.csv", "bad_samples.csv"]);
        let evaluation = Evaluation::read(&folder).map_err(|error| format!("{error:#}"))?;
        evaluation.summary();
        infer::evaluation::merge(vec![("a".into(), evaluation)]).map(drop).map_err(|error| format!("{error:#}"))
    })
}

fn class_map(path: PathBuf) -> Run {
    let card = Card::of(Architecture::ResNet20, 3, "a test");
    let class = |id: &str| datasets::Class { id: id.into(), name: id.into() };
    let data = ["0", "1", "cat"].map(class);
    Box::new(move |bytes| {
        fs::write(&path, bytes).unwrap();
        let map = ClassMapFile::read(&path).map_err(|error| format!("{error:#}"))?;
        map.map(&data, &card).map(drop).map_err(|error| format!("{error:#}"))
    })
}

/// Reads vectors; the input is the list of their names, a zero, and the vectors.
fn feature_vectors(path: PathBuf) -> Run {
    Box::new(move |bytes| {
        let (names, vectors) = bytes.split_at(bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len()));
        fs::write(&path, vectors.get(1..).unwrap_or_default()).unwrap();
        fs::write(path.with_extension("csv"), names).unwrap();
        features::read_npy(&path, |_, _| Ok::<_, infer::Error>(())).map_err(|error| format!("{error:#}"))
    })
}

/// A model for the server, which decodes as `infer` does.
struct Model(Vec<String>);

impl Model {
    fn reject(error: DecodeError) -> RejectReason {
        RejectReason::Damaged(error.to_string())
    }
}

impl Engine for Model {
    fn decoded_bytes(&self, bytes: &[u8]) -> Result<u64, RejectReason> {
        let header = probe(bytes).map_err(Self::reject)?;
        Ok(u64::from(header.width) * u64::from(header.height) * 6)
    }

    fn prepare(&self, bytes: &[u8], cancel: &Arc<AtomicBool>) -> Result<RgbImage, RejectReason> {
        let options = DecodeOptions { cancel: Some(Arc::clone(cancel)), ..limits() };
        decode(bytes, &options).map_err(Self::reject)?;
        Ok(self.blank())
    }

    fn classify(&self, images: &[RgbImage]) -> Result<Vec<Vec<f64>>, EngineError> {
        Ok(vec![vec![0.5, 0.25, 0.25]; images.len()])
    }

    fn explain(&self, _: &RgbImage, class: Option<usize>) -> Result<Explanation, EngineError> {
        let class = class.unwrap_or(0);
        assert!(class < 3, "the server passes classes of the network alone");
        Ok(Explanation { class, probability: 0.5, png: Vec::new() })
    }

    fn classes(&self) -> &[String] {
        &self.0
    }

    fn blank(&self) -> RgbImage {
        RgbImage::new(8, 8)
    }

    fn name(&self) -> String {
        "a test".into()
    }

    fn model(&self) -> serde_json::Value {
        serde_json::json!({})
    }
}

/// Starts a server for the life of the process; an input is what a client sends, and all of it.
fn http() -> Run {
    static ADDRESS: OnceLock<SocketAddr> = OnceLock::new();
    let address = *ADDRESS.get_or_init(|| {
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            let engine = Model(["red", "green", "blue"].map(String::from).to_vec());
            let options = Options { addr: ([127, 0, 0, 1], 0).into(), workers: 1, ..Options::default() };
            let options = Options { request_timeout: Duration::from_millis(500), max_body: 1 << 20, ..options };
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let never = std::future::pending::<()>;
            let ready = move |address| tell.send(address).unwrap();
            runtime.block_on(serve::serve(Arc::new(engine), options, ready, never(), never())).unwrap();
        });
        told.recv_timeout(Duration::from_secs(10)).unwrap()
    });
    Box::new(move |bytes| {
        let mut stream = TcpStream::connect(address).unwrap();
        // A server that rejects a request may close the connection early.
        let _ = stream.write_all(bytes);
        let mut response = Vec::new();
        // The end of the stream ends a server that waits for more.
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        if stream.read_to_end(&mut response).is_err() {
            let _ = stream.shutdown(Shutdown::Write);
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let _ = stream.read_to_end(&mut response);
        }
        let text = String::from_utf8_lossy(&response);
        let status: u16 = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        assert!(!matches!(status, 500..=502), "{text}");
        match status {
            200..=299 => Ok(()),
            _ => Err(text.into_owned()),
        }
    })
}
