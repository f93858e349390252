//! `infer evaluate` and `infer merge`: accuracy on labeled images.

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, bail, ensure};
use datasets::{BadSamples, OpenOptions, OrientationPolicy, Quarantine, Source, Split};
use image::ImageFormat;
use infer::{
    Model,
    evaluation::{self, Evaluation, Settings},
    labels::{ClassMap, ClassMapFile},
    picture,
    protocol::{Crops, Protocol},
};
use kernels::KernelMode;
use report::{
    chart::{Chart, Scale, Series},
    format::{
        CARD, DataInfo, EvaluationSpec, EvaluationSummary, FORMAT, Mean, Metrics, PREDICTIONS, PrecisionRecall,
        PredictionRow, Proportion, RUN, RunInfo, RunKind, RunResult, RunStatus, read_csv, write_json,
    },
    scores::{self, McNemar},
    stats,
};
use runtime::{
    backend::{self, Selected},
    communicator::Communicator,
    exit::ExitCode,
    files::write_atomic_bytes,
    noteln, out,
    progress::{Output, Progress, Unit, thousands},
    text::{escape_cell, printable},
};

use super::{announce, open_weights, print_json, select, with_dtype};
use crate::cli::{
    AnswerFormat, BadSamplesArg, CompareArgs, CropsArg, Dtype, EvaluateArgs, Format, MergeArgs, SplitArg,
};

/// The largest number of classes printed; the worst are printed first.
const PRINTED_CLASSES: usize = 20;

pub fn evaluate(args: &EvaluateArgs, kernels: KernelMode, output: Output, world: &Communicator) -> Result<ExitCode> {
    ensure!(
        world.is_alone() || args.num_shards == 1,
        "{} processes divide the work: omit --shard-index and --num-shards",
        world.size()
    );
    ensure!(
        !args.classification_report || args.format == AnswerFormat::Text,
        "--classification-report is text: omit --format, or --out DIR writes it to classification_report.txt"
    );
    ensure!(
        args.run.dtype != Dtype::Auto || world.is_alone() && args.num_shards == 1,
        "each process would measure for itself which type is faster: give all of them the same --dtype"
    );
    if let Some(out) = args.out.as_ref().filter(|_| world.is_root()) {
        ensure_empty(out)?;
    }
    let (source, split) = open(args)?;
    let own = device(args, kernels, world)?;
    let device = own.device().clone();
    let names: Vec<&str> = args.weights.iter().chain(&args.ensemble).map(String::as_str).collect();
    let load = |name: &&str| -> Result<Model> {
        let mut opened = open_weights(name, &args.load, &device, output)?;
        args.decoding.override_card(&mut opened.card);
        let model = Model::load(&opened, args.run.keep_batchnorm, &device)?.with_kernels(kernels);
        let model = model.with_max_pixels(args.decoding.max_pixels);
        with_dtype(model, args.run.dtype)
    };
    let models = names.iter().map(load).collect::<Result<Vec<Model>>>()?;
    let (class_map, mapped_by) = match models.first() {
        Some(model) => class_map(args, &*source, model, world)?,
        None => bail!("no weights to evaluate"),
    };
    let settings = Settings {
        protocol: Protocol {
            crops: match args.crops {
                CropsArg::One => Crops::One,
                CropsArg::Ten => Crops::Ten,
                CropsArg::All => Crops::All144,
            },
            scales: args.scales.clone(),
            flip: args.flip,
            dense: args.dense,
        },
        batch_size: args.batch_size as usize,
        workers: args.workers,
        bad_samples: match args.bad_samples {
            BadSamplesArg::Strict => BadSamples::Strict,
            BadSamplesArg::Warn => BadSamples::Warn,
            BadSamplesArg::Skip => BadSamples::Skip,
        },
        shard: if world.is_alone() { (args.shard_index, args.num_shards) } else { (world.rank(), world.size()) },
        class_map: Some(class_map),
    };
    let spec = EvaluationSpec {
        weights: names.iter().map(|name| name.to_string()).collect(),
        architectures: models.iter().map(|model| model.card().architecture.to_string()).collect(),
        origins: models.iter().map(|model| model.card().origin.clone()).collect(),
        data: args.data.clone(),
        split: split.to_string(),
        images: source.len(),
        classes: models.first().map_or(0, |model| model.card().classes.len()),
        data_classes: source.classes().len(),
        class_map: mapped_by,
        // Shards that read pixels differently must not be merged.
        protocol: match models.iter().any(|model| model.preprocess().options().orientation == OrientationPolicy::Ignore)
        {
            true => format!("{}, orientation ignored", settings.protocol),
            false => settings.protocol.to_string(),
        },
        hearth: env!("CARGO_PKG_VERSION").to_string(),
        commit: runtime::environment::commit(),
        // The same on every process, regardless of its device.
        backend: if args.devices.is_some() { own.spec().backend().to_string() } else { own.spec().to_string() },
    };
    let crops = evaluation::num_crops(&models, source.len(), &settings)?;
    let progress = Progress::new("evaluate", Unit::Items("crops"), Some(crops), output);
    let evaluation = evaluation::evaluate(&models, &source, &settings, spec, &progress)?;
    progress.finish();
    let evaluation = gather(world, evaluation)?;
    if !world.is_root() {
        return Ok(if evaluation.bad.is_empty() { ExitCode::Success } else { ExitCode::SomeInputsFailed });
    }
    let card = models.first().map(|model| model.card().to_json());
    let code = conclude(&evaluation, args.format, args.out.as_deref(), card)?;
    if args.classification_report {
        out!("\n{}", scores::classification_report(&evaluation.rows, &evaluation.class_names))?;
    }
    Ok(code)
}

/// Compares two evaluations of the same images by McNemar's test.
pub fn compare(args: &CompareArgs) -> Result<ExitCode> {
    let read = |folder: &PathBuf| -> Result<Vec<PredictionRow>> {
        let path = folder.join(PREDICTIONS);
        ensure!(
            path.is_file(),
            "{} has no {PREDICTIONS}; give folders of `infer evaluate --out` or runs",
            printable(&folder.display().to_string())
        );
        let rows: Vec<PredictionRow> = read_csv(&path)?;
        let mut keys = HashSet::new();
        if let Some(row) = rows.iter().find(|row| !keys.insert(row.key.as_str())) {
            bail!("{} has `{}` twice: its images cannot be paired", path.display(), printable(&row.key));
        }
        Ok(rows)
    };
    let (first, second) = (read(&args.first)?, read(&args.second)?);
    let test = McNemar::new(&first, &second).with_context(|| {
        format!(
            "{} and {} have no image in common: evaluate both on the same data",
            args.first.display(),
            args.second.display()
        )
    })?;
    if test.unpaired > 0 {
        log::warn!("{} images are in one of the evaluations alone and do not count", test.unpaired);
    }
    if args.format == Format::Json {
        print_json(&test)?;
        return Ok(ExitCode::Success);
    }
    let McNemar { images, both_right, only_first, only_second, p, exact, .. } = test;
    let (difference, low, high) = test.difference();
    let name = |folder: &PathBuf| printable(&folder.display().to_string()).into_owned();
    let (first, second) = (name(&args.first), name(&args.second));
    let accuracy = |right: usize| 100.0 * right as f64 / images as f64;
    out!(
        "{} images\n{:6.2} %  {first}\n{:6.2} %  {second}\n{difference:+6.2} points  {low:+.2} to {high:+.2}\n\nboth right {both_right}, \
         only {first} {only_first}, only {second} {only_second}, neither {}\nMcNemar's test ({}): p = {}\n",
        thousands(images as u64),
        accuracy(both_right + only_first),
        accuracy(both_right + only_second),
        images - both_right - only_first - only_second,
        if exact { "exact" } else { "χ² with continuity correction" },
        if p < 1e-4 { format!("{p:.2e}") } else { format!("{p:.4}") },
    )?;
    Ok(ExitCode::Success)
}

/// Matches the data's classes to the network's: by --class-map, else by name, else by index. Returns the map, and what it
/// is by if not by name.
fn class_map(
    args: &EvaluateArgs,
    source: &dyn Source,
    model: &Model,
    world: &Communicator,
) -> Result<(ClassMap, Option<String>)> {
    let (classes, card) = (source.classes(), model.card());
    if let Some(path) = &args.class_map {
        return Ok((ClassMapFile::read(path)?.map(classes, card)?, Some(path.display().to_string())));
    }
    let by_name = ClassMap::new(classes, card);
    if by_name.is_err()
        && let Some(by_index) = ClassMap::by_index(classes, card)
    {
        if world.is_root() {
            let example = (&classes[0], &card.classes[by_index.0[0] as usize]);
            log::warn!(
                "the data's classes are numbers and are taken as indices of the network's: {} is {}, for instance; \
                 --class-map FILE maps them otherwise",
                printable(&example.0.id),
                printable(example.1)
            );
        }
        return Ok((by_index, Some("index".to_string())));
    }
    Ok((by_name?, None))
}

/// Opens the device of this process.
fn device(args: &EvaluateArgs, kernels: KernelMode, world: &Communicator) -> Result<Selected> {
    let Some(devices) = &args.devices else { return select(&args.run.backend, kernels) };
    let own = devices.of(world.local_rank(), world.local_size())?;
    ensure!(
        own.len() == 1,
        "--devices names {n} devices for one process, which evaluates on one; build with `--features mpi` and start one \
         process per device: mpirun -n {n} infer evaluate …",
        n = own.len()
    );
    let selected = backend::select_named(&own)?;
    announce(&selected, kernels);
    selected.into_iter().next().context("no device is named")
}

/// Gathers the shards of all processes into one evaluation.
fn gather(world: &Communicator, own: Evaluation) -> Result<Evaluation> {
    if world.is_alone() {
        return Ok(own);
    }
    let mut parts = Vec::new();
    let mut seconds = 0f64;
    for (rank, bytes) in world.gather(serde_json::to_vec(&own)?).iter().enumerate() {
        let part: Evaluation =
            serde_json::from_slice(bytes).with_context(|| format!("invalid data from process {rank}"))?;
        seconds = seconds.max(part.seconds);
        parts.push((format!("process {rank}"), part));
    }
    // The processes ran concurrently.
    Ok(Evaluation { seconds, ..evaluation::merge(parts)? })
}

pub fn merge(args: &MergeArgs) -> Result<ExitCode> {
    ensure_empty(&args.out)?;
    let read = |folder: &PathBuf| Ok((folder.display().to_string(), Evaluation::read(folder)?));
    let merged = evaluation::merge(args.parts.iter().map(read).collect::<Result<_>>()?)?;
    let card = args.parts.first().and_then(|part| std::fs::read_to_string(part.join("card.json")).ok());
    conclude(&merged, args.format, Some(&args.out), card)
}

fn ensure_empty(folder: &Path) -> Result<()> {
    let occupied = std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
    ensure!(!occupied, "the folder {} is not empty; choose another --out", folder.display());
    ensure!(!folder.is_file(), "--out {} is a file; it must be a folder, new or empty", folder.display());
    Ok(())
}

fn open(args: &EvaluateArgs) -> Result<(Arc<dyn Source>, Split)> {
    let split = match args.split {
        SplitArg::Val => Split::Val,
        SplitArg::Train => Split::Train,
        SplitArg::All => Split::All,
    };
    let open = |split| {
        let table = args.table.clone();
        datasets::open(&args.data, &OpenOptions { allow_empty_classes: true, table, ..OpenOptions::split(split) })
    };
    let (opened, split) = match open(split) {
        // Data without splits is evaluated as a whole.
        Err(datasets::Error::MissingSplit { .. }) if split == Split::Val => (open(Split::All)?, Split::All),
        opened => (opened?, split),
    };
    for note in &opened.notes {
        log::warn!("{note}");
    }
    let mut source = opened.source;
    if let Some(path) = &args.exclude {
        let (kept, left_out) = Quarantine::load(path)?.apply(source)?;
        log::info!("{}: {left_out} images are left out", path.display());
        source = kept;
    }
    if source.classes().is_empty() || source.label(0).is_none() {
        bail!("{} has no labels; use `infer classify` for unlabeled images", args.data);
    }
    Ok((source, split))
}

fn conclude(
    evaluation: &Evaluation,
    format: AnswerFormat,
    out: Option<&Path>,
    card: Option<String>,
) -> Result<ExitCode> {
    let summary = evaluation.summary();
    match format {
        AnswerFormat::Text => out!("{}", text(evaluation, &summary))?,
        AnswerFormat::Json => print_json(&summary)?,
        AnswerFormat::Csv => out!("{}", csv_line(&summary)?)?,
    }
    if let Some(out) = out {
        write(evaluation, &summary, out, card)?;
        noteln!("result: {}", out.display());
    }
    if !evaluation.bad.is_empty() {
        log::warn!("{} images could not be read or decoded and do not count", evaluation.bad.len());
        return Ok(ExitCode::SomeInputsFailed);
    }
    Ok(ExitCode::Success)
}

fn text(evaluation: &Evaluation, summary: &EvaluationSummary) -> String {
    let EvaluationSummary { spec, top1, top5, loss, .. } = summary;
    let mut text = format!(
        "{} on {} {} images of {} ({}), {}\n",
        spec.architectures.join(" + "),
        thousands(top1.of as u64),
        spec.split,
        spec.data,
        if summary.num_shards > 1 {
            format!("shard {} of {}", summary.shard_index, summary.num_shards)
        } else {
            "all".into()
        },
        spec.protocol,
    );
    let rate = |name: &str, rate: &Proportion| {
        format!(
            "{name:26} {:6.2} %   {:.2} to {:.2} %   {} of {}\n",
            rate.percent,
            rate.low,
            rate.high,
            thousands(rate.right as u64),
            thousands(rate.of as u64)
        )
    };
    text += &rate("top-1", top1);
    // It is always 100 % with up to five classes.
    if spec.classes > 5 {
        text += &rate("top-5", top5);
    }
    if let Some(top1) = &summary.top1_among_data_classes {
        text += &rate(&format!("top-1 among {} classes", spec.data_classes), top1);
    }
    if let Some(top5) = summary.top5_among_data_classes.as_ref().filter(|_| spec.data_classes > 5) {
        text += &rate(&format!("top-5 among {} classes", spec.data_classes), top5);
    }
    if let Some(real) = &summary.top1_real {
        text += &rate("top-1 by ReaL labels", real);
    }
    let Mean { mean, low, high } = loss;
    text += &format!("{:26} {mean:6.4}     {low:.4} to {high:.4}\n", "loss");
    if let Some(ece) = summary.ece {
        text += &format!("{:26} {ece:6.2} points\n", "calibration error");
    }
    if let Some(scores) = &summary.scores {
        text += &format!("{:26} {:6.2} %\n", "balanced accuracy", 100.0 * scores.balanced_accuracy);
        for (name, PrecisionRecall { precision, recall, f1 }) in
            [("macro", scores.macro_average), ("weighted", scores.weighted)]
        {
            text += &format!("{:26} {precision:6.4}   {recall:.4}   {f1:.4}\n", format!("{name} P, R, F1"));
        }
        if let Some(kappa) = scores.kappa {
            text += &format!("{:26} {kappa:6.4}\n", "Cohen's kappa");
        }
        if let Some(auroc) = scores.auroc {
            text += &format!("{:26} {auroc:6.4}\n", "AUROC (mean, one vs rest)");
        }
    }
    text += &format!("{:26} {:6.1} images/s\n", "throughput", summary.images_per_second);
    let classes = stats::classes(&evaluation.rows);
    if classes.len() > 1 {
        let shown = classes.len().min(PRINTED_CLASSES);
        let which = if shown < classes.len() {
            format!("the worst {shown} of {} classes", classes.len())
        } else {
            "classes".into()
        };
        text += &format!("\n{which}\n");
        for class in classes.iter().take(shown) {
            let name = printable(&evaluation.class_names[class.label]);
            let taken = class.taken_for.map_or(String::new(), |(other, count)| {
                format!("   {count} mistaken for {}", printable(&evaluation.class_names[other]))
            });
            text += &format!(
                "  {:6.2} %  {:>4} of {:<4} {name}{taken}\n",
                class.top1.percent(),
                class.top1.hits,
                class.top1.of
            );
        }
    }
    text
}

/// Formats a header and a row.
fn csv_line(summary: &EvaluationSummary) -> Result<String> {
    let EvaluationSummary { spec, top1, top5, loss, .. } = summary;
    let cell = |rate: &Option<Proportion>| rate.as_ref().map_or(String::new(), |rate| format!("{:.3}", rate.percent));
    let number = |value: f64| format!("{value:.4}");
    let mut table = csv::Writer::from_writer(Vec::new());
    table.write_record([
        "weights",
        "architecture",
        "data",
        "split",
        "protocol",
        "images",
        "top1",
        "top1_low",
        "top1_high",
        "top5",
        "top5_low",
        "top5_high",
        "loss",
        "loss_low",
        "loss_high",
        "top1_among_data_classes",
        "top5_among_data_classes",
        "top1_real",
        "ece",
        "bad_samples",
        "images_per_second",
        "precision_macro",
        "recall_macro",
        "f1_macro",
        "f1_micro",
        "precision_weighted",
        "recall_weighted",
        "f1_weighted",
        "balanced_accuracy",
        "kappa",
        "auroc",
    ])?;
    let scores = summary.scores.unwrap_or_default();
    let some = |value: Option<f64>| value.map_or(String::new(), number);
    table.write_record([
        escape_cell(&spec.weights.join(" ")).into_owned(),
        spec.architectures.join(" "),
        escape_cell(&spec.data).into_owned(),
        spec.split.clone(),
        spec.protocol.clone(),
        top1.of.to_string(),
        number(top1.percent),
        number(top1.low),
        number(top1.high),
        number(top5.percent),
        number(top5.low),
        number(top5.high),
        number(loss.mean),
        number(loss.low),
        number(loss.high),
        cell(&summary.top1_among_data_classes),
        cell(&summary.top5_among_data_classes),
        cell(&summary.top1_real),
        summary.ece.map_or(String::new(), number),
        summary.bad_samples.to_string(),
        format!("{:.1}", summary.images_per_second),
        number(scores.macro_average.precision),
        number(scores.macro_average.recall),
        number(scores.macro_average.f1),
        number(scores.micro.f1),
        number(scores.weighted.precision),
        number(scores.weighted.recall),
        number(scores.weighted.f1),
        number(scores.balanced_accuracy),
        some(scores.kappa),
        some(scores.auroc),
    ])?;
    Ok(String::from_utf8(table.into_inner()?)?)
}

/// Writes the tables, pictures and report page of an evaluation.
fn write(evaluation: &Evaluation, summary: &EvaluationSummary, out: &Path, card: Option<String>) -> Result<()> {
    evaluation.write(out)?;
    let predictions = &evaluation.rows;
    let names = &evaluation.class_names;
    let confusion = stats::confusion(predictions);
    let cell = |class: usize| escape_cell(&names[class]).into_owned();
    let bytes = |write: &dyn Fn(&mut csv::Writer<Vec<u8>>) -> csv::Result<()>| -> Result<Vec<u8>> {
        let mut table = csv::Writer::from_writer(Vec::new());
        write(&mut table)?;
        Ok(table.into_inner()?)
    };
    let per_class = bytes(&|table| {
        let header = ["class", "name", "images", "top1", "top5", "most_often_taken_for", "times", "precision", "f1"];
        table.write_record(header)?;
        let scores: BTreeMap<usize, PrecisionRecall> =
            scores::classes(predictions).into_iter().map(|class| (class.class, class.scores)).collect();
        for class in stats::classes(predictions) {
            let PrecisionRecall { precision, f1, .. } = scores.get(&class.label).copied().unwrap_or_default();
            let (other, count) = class.taken_for.unzip();
            table.write_record([
                class.label.to_string(),
                cell(class.label),
                class.top1.of.to_string(),
                format!("{:.3}", class.top1.percent()),
                format!("{:.3}", class.top5.percent()),
                other.map_or(String::new(), cell),
                count.map_or(String::new(), |count| count.to_string()),
                format!("{precision:.6}"),
                format!("{f1:.6}"),
            ])?;
        }
        Ok(())
    })?;
    write_atomic_bytes(&out.join("per_class.csv"), &per_class)?;
    let table = scores::classification_report(predictions, names);
    write_atomic_bytes(&out.join("classification_report.txt"), table.as_bytes())?;
    let pairs = bytes(&|table| {
        table.write_record(["class", "name", "predicted", "predicted_name", "count"])?;
        for (&(label, predicted), count) in &confusion {
            let (name, other) = (cell(label), cell(predicted));
            table.write_record([&label.to_string(), &name, &predicted.to_string(), &other, &count.to_string()])?;
        }
        Ok(())
    })?;
    write_atomic_bytes(&out.join("confusion.csv"), &pairs)?;

    // The picture shows only the classes that occur.
    let mut occurring: Vec<usize> = confusion.keys().flat_map(|&(label, predicted)| [label, predicted]).collect();
    occurring.sort_unstable();
    occurring.dedup();
    let place: BTreeMap<usize, usize> = occurring.iter().enumerate().map(|(place, &class)| (class, place)).collect();
    let shown: Vec<String> = occurring.iter().map(|&class| names[class].clone()).collect();
    let counts = confusion.iter().map(|(&(label, predicted), &n)| ((place[&label], place[&predicted]), n)).collect();
    let mut png = std::io::Cursor::new(Vec::new());
    picture::confusion(&shown, &counts).write_to(&mut png, ImageFormat::Png).context("cannot draw confusion.png")?;
    write_atomic_bytes(&out.join("confusion.png"), png.get_ref())?;
    if let Some(chart) = calibration(predictions) {
        write_atomic_bytes(&out.join("calibration.svg"), chart.to_svg().as_bytes())?;
    }

    // The files that the report reads besides the predictions.
    if let Some(card) = card {
        write_atomic_bytes(&out.join(CARD), card.as_bytes())?;
    }
    let spec = &summary.spec;
    let info = RunInfo {
        format: FORMAT,
        name: format!("{} on {}", spec.architectures.join(" + "), spec.data),
        command: vec!["evaluate".to_string(), spec.protocol.clone()],
        kind: RunKind::Evaluation,
        status: Some(RunStatus::Finished),
        hearth: spec.hearth.clone(),
        commit: spec.commit.clone(),
        backend: spec.backend.clone(),
        data: DataInfo {
            valid: Some(spec.data.clone()),
            kind: spec.split.clone(),
            valid_images: spec.images,
            classes: spec.data_classes,
            ..DataInfo::default()
        },
        result: Some(RunResult {
            best: Metrics { loss: summary.loss.mean, top1: summary.top1.percent, top5: summary.top5.percent },
            images_per_second: summary.images_per_second,
            seconds: summary.seconds,
            bad_samples: summary.bad_samples as u64,
            ..RunResult::default()
        }),
        ..RunInfo::default()
    };
    write_json(&out.join(RUN), &info)?;
    report::write(out)?;
    Ok(())
}

/// Returns the calibration chart: accuracy of the first prediction by its probability.
fn calibration(predictions: &[PredictionRow]) -> Option<Chart> {
    let calibration = stats::calibration(predictions)?;
    let filled = calibration.bins.iter().filter(|bin| bin.right.of > 0);
    let points = filled.map(|bin| (bin.mean_confidence(), bin.right.percent())).collect();
    Some(Chart {
        title: format!("Calibration: expected error {:.2} points", calibration.ece),
        x_label: "probability of the first prediction, %".into(),
        y_label: "right, %".into(),
        x_scale: Scale::Linear,
        y_scale: Scale::Linear,
        series: vec![
            Series::new("the network", points),
            Series::new("perfect", vec![(0.0, 0.0), (100.0, 100.0)]).dashed(),
        ],
        marker: None,
    })
}
