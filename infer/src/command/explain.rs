//! `infer explain`: saliency maps, activations of stages, feature vectors, nearest neighbors.

use models::ImageClassifier;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use burn::tensor::Tensor;
use image::RgbImage;
use infer::{
    Input, Model,
    explain::{Explainer, Method},
    features::{self, Nearest},
    inputs::{self, Expanded},
    picture::{self, Panel},
    stream,
};
use kernels::KernelMode;
use runtime::{
    exit::{self, ExitCode},
    files::write_atomic_bytes,
    noteln, out, outln,
    progress::{Output, Progress, Unit},
    text::printable,
};
use serde::Serialize;

use super::{open_weights, png, select, with_dtype};
use crate::cli::{ExplainArgs, Format, MethodArg};

/// Rows of a contact sheet; more images need more sheets.
const SHEET_ROWS: usize = 24;
/// The number of channels shown for a stage, and the side of each in pixels.
const CHANNELS: usize = 8;
const CHANNEL_SIDE: u32 = 96;

/// The result of one image: a line of JSON.
#[derive(Debug, Serialize)]
struct Said {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    picture: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    classes: Vec<infer::Prediction>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    neighbors: Vec<Neighbor>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct Neighbor {
    path: String,
    /// The cosine of the angle between the two vectors.
    similarity: f64,
}

pub fn run(args: &ExplainArgs, kernels: KernelMode, output: Output) -> Result<ExitCode> {
    let Expanded { inputs, notes } = inputs::expand(&args.images, args.recursive)?;
    notes.iter().for_each(|note| log::warn!("{note}"));
    let device = select(&args.run.backend, kernels)?.device().clone();
    let mut opened = open_weights(&args.weights, &args.load, &device, output)?;
    args.decoding.override_card(&mut opened.card);
    // Filters are shown as trained, not folded.
    let keep = args.run.keep_batchnorm || args.filters;
    let model = with_dtype(Model::load(&opened, keep, &device)?, args.run.dtype)?;
    let model = model.with_max_pixels(args.decoding.max_pixels).with_kernels(kernels);
    if args.filters {
        filters(args, &model)?;
    }
    let failed = match (&args.features, &args.neighbors) {
        _ if inputs.is_empty() => 0,
        (Some(path), _) => vectors(args, &model, &inputs, path, output)?,
        (None, Some(among)) => neighbors(args, &model, &inputs, among, output)?,
        (None, None) => pictures(args, &model, &inputs, output)?,
    };
    if failed > 0 && inputs.len() > 1 {
        log::warn!("{failed} of {} images could not be read", inputs.len());
    }
    Ok(match failed {
        0 => ExitCode::Success,
        n if n == inputs.len() => ExitCode::Failure,
        _ => ExitCode::SomeInputsFailed,
    })
}

fn say(args: &ExplainArgs, said: &Said) -> Result<()> {
    let text = match (args.format, &said.error) {
        (Format::Json, _) => serde_json::to_string(said)? + "\n",
        (Format::Text, Some(error)) => {
            noteln!("error: {}: {}", printable(&said.path), printable(error));
            return Ok(());
        }
        (Format::Text, None) => {
            let classes = said.classes.iter().map(|class| {
                format!("  {:>6.2} %  {:>4}  {}\n", class.probability * 100.0, class.index, printable(&class.class))
            });
            let near = |near: &Neighbor| format!("  {:.4}  {}\n", near.similarity, printable(&near.path));
            let neighbors = said.neighbors.iter().map(near);
            let picture = said.picture.iter().map(|path| format!("  picture: {}\n", printable(path)));
            format!("{}\n{}", printable(&said.path), classes.chain(neighbors).chain(picture).collect::<String>())
        }
    };
    out!("{text}")?;
    Ok(())
}

fn failed(input: &Input, error: &infer::Error) -> Said {
    Said { error: Some(exit::chain(error)), ..Said::of(input.name()) }
}

impl Said {
    fn of(path: String) -> Self {
        Self { path, picture: None, classes: vec![], neighbors: vec![], error: None }
    }
}

/// Writes the saliency maps or the stages' activations of each image. Returns the number of unreadable images.
fn pictures(args: &ExplainArgs, model: &Model, inputs: &[Input], output: Output) -> Result<usize> {
    let method = match args.method {
        MethodArg::GradCam => Method::GradCam,
        MethodArg::GradCamPlusPlus => Method::GradCamPlusPlus,
        MethodArg::Occlusion => Method::Occlusion,
        MethodArg::Smoothgrad => Method::SmoothGrad,
    };
    let explainer = Explainer::new(model, method, args.stage.as_deref(), args.batch_size as usize)?;
    let asked: Vec<usize> = args.classes.iter().map(|class| model.class(class)).collect::<infer::Result<_>>()?;
    let mut out = OutFolder::new(&args.out)?;
    let mut sheet = Sheet::new(inputs.len() > 1);
    let progress = Progress::new("explain", Unit::Items("images"), Some(inputs.len() as u64), output);
    let mut unreadable = 0;
    stream::batches(inputs, model.preprocess(), 1, threads(), |batch| -> Result<()> {
        let count = batch.len() as u64;
        for (input, image) in batch {
            let image = match &image {
                Ok(image) => image,
                Err(error) => {
                    unreadable += 1;
                    say(args, &failed(input, error))?;
                    continue;
                }
            };
            let probabilities = model.probabilities(&model.preprocess().batch(&[image]))?.remove(0);
            let classes = match asked.is_empty() {
                true => model.top(&probabilities, args.topk as usize),
                false => {
                    let all = model.top(&probabilities, usize::MAX);
                    asked.iter().filter_map(|index| all.iter().find(|class| class.index == *index).cloned()).collect()
                }
            };
            let (suffix, picture) = match args.stages {
                true => ("stages", stages(model, image, &input.name())?),
                false => {
                    let indices: Vec<usize> = classes.iter().map(|class| class.index).collect();
                    let heats = explainer.explain(image, &indices)?;
                    let mut panels = vec![Panel { image: image.clone(), text: "what the network gets".into() }];
                    panels.extend(classes.iter().zip(&heats).map(|(class, heat)| Panel {
                        image: picture::overlay(image, heat),
                        text: format!("{:.1} % {}", class.probability * 100.0, class.class),
                    }));
                    ("explained", picture::row(&input.name(), &panels))
                }
            };
            let path = out.write(&input.name(), suffix, &picture)?;
            sheet.add(picture, &mut out)?;
            say(args, &Said { picture: Some(path.display().to_string()), classes, ..Said::of(input.name()) })?;
        }
        progress.inc(count);
        Ok(())
    })?;
    sheet.finish(&mut out)?;
    progress.finish();
    Ok(unreadable)
}

/// Draws the strongest channels of each stage, with its shape.
fn stages(model: &Model, image: &RgbImage, name: &str) -> Result<RgbImage> {
    let input = model.preprocess().normalize(&model.preprocess().batch(&[image]), model.device());
    let mut maps: Vec<(String, Tensor<4>)> = Vec::new();
    let mut observe = |stage: &str, map: &Tensor<4>| {
        let [_, channels, height, width] = map.dims();
        if height > 1 || width > 1 {
            maps.push((format!("{stage}  {channels} × {height} × {width}"), map.clone()));
        }
    };
    let network = model.network()?;
    model.execution().run(|| network.forward_with_hook(input, &mut observe));
    let mut rows = Vec::with_capacity(maps.len());
    for (number, (title, map)) in maps.into_iter().enumerate() {
        let [_, _, height, width] = map.dims();
        let values: Vec<f32> = map.try_into_data().context("running the network failed")?.iter().collect();
        let mut channels: Vec<(f32, &[f32], usize)> = values
            .chunks_exact(height * width)
            .enumerate()
            .map(|(index, map)| (map.iter().sum::<f32>() / map.len() as f32, map, index))
            .collect();
        channels.sort_by(|a, b| b.0.total_cmp(&a.0));
        let panel = |(_, map, index): &(f32, &[f32], usize)| {
            let image = picture::map(map, width as u32, CHANNEL_SIDE);
            picture::Panel { image, text: format!("#{index}") }
        };
        let panels: Vec<Panel> = channels.iter().take(CHANNELS).map(panel).collect();
        let title = if number == 0 { format!("{title}   {name}") } else { title };
        rows.push(picture::small_row(&title, &panels));
    }
    Ok(picture::column(&rows))
}

fn filters(args: &ExplainArgs, model: &Model) -> Result<()> {
    let (mut weights, shape) = features::first_filters(model.network()?)?;
    if model.card().preprocess.channel_order == hub::ChannelOrder::Bgr {
        let [_, height, width] = shape;
        for filter in weights.chunks_exact_mut(3 * height * width) {
            let (blue, rest) = filter.split_at_mut(height * width);
            blue.swap_with_slice(&mut rest[height * width..]);
        }
    }
    let path = args.out.join("filters.png");
    write_atomic_bytes(&path, &png(&picture::filters(&weights, shape))?)?;
    let [filters, height, width] = shape;
    outln!("{filters} filters of {height} × {width}: {}", path.display())?;
    Ok(())
}

/// Writes the images' feature vectors. Returns the number of unreadable images.
fn vectors(args: &ExplainArgs, model: &Model, inputs: &[Input], path: &Path, output: Output) -> Result<usize> {
    ensure!(path.extension().is_some_and(|e| e == "npy"), "--features {} must be a .npy file", path.display());
    let progress = Progress::new("features", Unit::Items("images"), Some(inputs.len() as u64), output);
    let mut unreadable = 0;
    let rows = features::write_npy(path, |rows| {
        features::each(model, inputs, args.batch_size as usize, |input, vector| -> Result<()> {
            match vector {
                Ok(vector) => rows.push(input.name(), &vector)?,
                Err(error) => {
                    unreadable += 1;
                    say(args, &failed(input, &error))?;
                }
            }
            progress.inc(1);
            Ok(())
        })
    })?;
    progress.finish();
    outln!("{rows} vectors: {}", path.display())?;
    Ok(unreadable)
}

/// Finds the nearest neighbors of each image. Returns the number of unreadable images.
fn neighbors(args: &ExplainArgs, model: &Model, inputs: &[Input], among: &Path, output: Output) -> Result<usize> {
    let batch_size = args.batch_size as usize;
    let mut queries: Vec<(&Input, Vec<f32>, Nearest)> = Vec::new();
    let mut unreadable = 0;
    features::each(model, inputs, batch_size, |input, vector| -> Result<()> {
        match vector {
            Ok(vector) => queries.push((input, vector, Nearest::new(args.topk as usize))),
            Err(error) => {
                unreadable += 1;
                say(args, &failed(input, &error))?;
            }
        }
        Ok(())
    })?;
    let same = |input: &Input, path: &str| match (input, fs::canonicalize(path)) {
        (Input::File(own), Ok(path)) => fs::canonicalize(own).is_ok_and(|own| own == path),
        _ => false,
    };
    let mut see = |name: &str, vector: &[f32]| -> Result<()> {
        for (input, own, nearest) in &mut queries {
            ensure!(
                own.len() == vector.len(),
                "{} has vectors of {} values, this network has {}: were they written with other weights?",
                among.display(),
                vector.len(),
                own.len()
            );
            if !same(input, name) {
                nearest.see(features::similarity(own, vector), name);
            }
        }
        Ok(())
    };
    if among.is_file() {
        features::read_npy(among, |name, vector| see(&name, &vector))?;
    } else {
        let Expanded { inputs: candidates, notes } = inputs::expand(&[among.to_path_buf()], args.recursive)?;
        notes.iter().for_each(|note| log::warn!("{note}"));
        let progress = Progress::new("neighbors", Unit::Items("images"), Some(candidates.len() as u64), output);
        features::each(model, &candidates, batch_size, |input, vector| -> Result<()> {
            match vector {
                Ok(vector) => see(&input.name(), &vector)?,
                Err(error) => log::warn!("{}: {}", printable(&input.name()), exit::chain(&error)),
            }
            progress.inc(1);
            Ok(())
        })?;
        progress.finish();
    }
    let mut out = OutFolder::new(&args.out)?;
    let mut sheet = Sheet::new(queries.len() > 1);
    for (input, _, nearest) in queries {
        let found = nearest.into_found();
        ensure!(!found.is_empty(), "{} has no other readable image", among.display());
        let read = |path: &str| Input::File(PathBuf::from(path)).read().ok();
        let image =
            |bytes: Option<Vec<u8>>| bytes.and_then(|bytes| Some(model.preprocess().decode(&bytes).ok()?.image));
        let mut panels = Vec::new();
        // Standard input was already read, so its picture is omitted.
        if let Input::File(path) = input {
            panels.extend(image(read(&path.display().to_string())).map(|image| Panel { image, text: String::new() }));
        }
        for (similarity, path) in &found {
            let file = Path::new(path).file_name().map_or(path.clone(), |name| name.to_string_lossy().into_owned());
            let text = format!("{similarity:.3} {file}");
            panels.extend(image(read(path)).map(|image| Panel { image, text }));
        }
        let picture = picture::row(&input.name(), &panels);
        let path = out.write(&input.name(), "neighbors", &picture)?;
        sheet.add(picture, &mut out)?;
        let neighbors = found.into_iter().map(|(similarity, path)| Neighbor { path, similarity }).collect();
        say(args, &Said { picture: Some(path.display().to_string()), neighbors, ..Said::of(input.name()) })?;
    }
    sheet.finish(&mut out)?;
    Ok(unreadable)
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The output folder; every picture gets a unique name.
struct OutFolder {
    folder: PathBuf,
    taken: BTreeSet<String>,
}

impl OutFolder {
    fn new(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot create the folder {}", folder.display()))?;
        Ok(Self { folder: folder.to_path_buf(), taken: BTreeSet::new() })
    }

    /// Writes the picture of image `name`: `dog.jpg` becomes `dog.explained.png`.
    fn write(&mut self, name: &str, suffix: &str, picture: &RgbImage) -> Result<PathBuf> {
        let stem = match Path::new(name).file_stem() {
            Some(stem) if name != "-" => stem.to_string_lossy().into_owned(),
            _ => "stdin".to_string(),
        };
        let mut file = format!("{stem}.{suffix}.png");
        for number in 2.. {
            if self.taken.insert(file.clone()) {
                break;
            }
            file = format!("{stem}-{number}.{suffix}.png");
        }
        let path = self.folder.join(file);
        write_atomic_bytes(&path, &png(picture)?)?;
        Ok(path)
    }
}

/// A contact sheet that grows row by row; when it is full, a new one begins.
struct Sheet {
    wanted: bool,
    rows: Vec<RgbImage>,
}

impl Sheet {
    fn new(wanted: bool) -> Self {
        Self { wanted, rows: Vec::new() }
    }

    fn add(&mut self, row: RgbImage, out: &mut OutFolder) -> Result<()> {
        if self.wanted {
            self.rows.push(row);
            if self.rows.len() == SHEET_ROWS {
                self.finish(out)?;
            }
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut OutFolder) -> Result<()> {
        if !self.rows.is_empty() {
            let path = out.write("contact", "sheet", &picture::column(&std::mem::take(&mut self.rows)))?;
            noteln!("contact sheet: {}", path.display());
        }
        Ok(())
    }
}
