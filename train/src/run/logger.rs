//! The log of a run: the files that grow with it, `experiment.log`, and its reports to an observer.
//!
//! Notes and warnings go to `experiment.log` and the observer directly. Their records, with the target [`RUN_LOG_TARGET`],
//! are for the loggers of other programs; [`runtime::logging`] leaves them out.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use log::Level;
use report::format::{EPOCHS, EXPERIMENT_LOG, EpochRow, METRICS, MetricRow, csv_header, csv_line};
use runtime::{
    files,
    logging::{LogFile, OpenLogFile, RUN_LOG_TARGET},
};
use serde_json::json;

use crate::{
    Error, Result,
    evaluation::Metrics,
    observer::{EpochReport, Observer, Silent, StepReport},
    progress::{EpochRecord, Interval, State},
    run::tensorboard,
};

const EVENTS: &str = "events.out.tfevents.hearth";

/// The files of a run that grow, and its observer.
pub struct RunLogger {
    metrics: AppendFile,
    epochs: AppendFile,
    events: AppendFile,
    observer: Arc<dyn Observer>,
    num_epochs: usize,
    steps_per_epoch: u64,
    /// None where another process writes it, and where it could not be opened.
    log: Option<OpenLogFile>,
    /// Whether this process reports.
    speaks: bool,
    /// Whether it was already said that a file cannot be written.
    complained: bool,
}

/// A file that grows by whole records.
struct AppendFile {
    name: &'static str,
    path: PathBuf,
    /// None where another process writes it.
    file: Option<File>,
    length: u64,
}

impl AppendFile {
    /// Opens the file and cuts off what stands after `length`: it was written after the checkpoint that the run
    /// resumes from. A new file begins with `header`. A file that was shortened or changed since is cut off after its last
    /// whole record, as `whole` finds it, with a warning.
    fn open(
        run: &Path,
        name: &'static str,
        length: Option<u64>,
        header: &[u8],
        whole: fn(&[u8]) -> usize,
        warnings: &mut Vec<String>,
    ) -> io::Result<Self> {
        let path = run.join(name);
        files::check_regular(&path)?;
        let file = OpenOptions::new().create(true).truncate(false).write(true).read(true).open(&path)?;
        let there = file.metadata()?.len();
        let noted = length.unwrap_or(0);
        let mut length = noted.min(there);
        file.set_len(length)?;
        if noted > 0 {
            let text = files::read(&path)?;
            let kept = whole(&text) as u64;
            if kept < noted {
                warnings.push(format!(
                    "{} is not as the last checkpoint left it: {kept} of {noted} bytes are whole records, and the rest \
                     is missing from it and from the report",
                    path.display()
                ));
                length = kept;
                file.set_len(length)?;
            }
        }
        let mut file = Self { name, path, file: Some(file), length };
        if length == 0 {
            file.append(header)?;
        }
        Ok(file)
    }

    /// Appends a record, whole or not at all.
    fn append(&mut self, record: &[u8]) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        file.seek(SeekFrom::Start(self.length))?;
        match file.write_all(record) {
            Ok(()) => {
                self.length += record.len() as u64;
                Ok(())
            }
            Err(error) => {
                let _ = file.set_len(self.length);
                Err(error)
            }
        }
    }
}

/// The length of the whole lines at the beginning of a text.
fn whole_lines(text: &[u8]) -> usize {
    text.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1)
}

impl RunLogger {
    /// Opens the files of a run, at the lengths that `state` tells.
    pub fn open(
        run: &Path,
        state: &State,
        observer: Arc<dyn Observer>,
        num_epochs: usize,
        steps_per_epoch: u64,
    ) -> Result<Self> {
        let length = |name: &str| state.file_lengths.get(name).copied();
        let path = run.join(EXPERIMENT_LOG);
        let log = LogFile::open(&path);
        if let Err(error) = &log {
            observer.on_warning(&format!("cannot write {}: {error}; training goes on without it", path.display()));
        }
        let mut warnings = Vec::new();
        let mut open = |name, header: &[u8], whole| {
            let file = AppendFile::open(run, name, length(name), header, whole, &mut warnings);
            file.map_err(Error::io("write", run.join(name)))
        };
        let metrics = open(METRICS, csv_header::<MetricRow>().as_bytes(), whole_lines)?;
        let epochs = open(EPOCHS, csv_header::<EpochRow>().as_bytes(), whole_lines)?;
        let events = open(EVENTS, &tensorboard::header(wall_time()), tensorboard::whole_records)?;
        let logger = Self {
            metrics,
            epochs,
            events,
            observer,
            num_epochs,
            steps_per_epoch,
            log: log.ok(),
            speaks: true,
            complained: false,
        };
        warnings.iter().for_each(|warning| logger.warn(warning));
        Ok(logger)
    }

    /// Of a process that writes nothing.
    pub fn silent(num_epochs: usize, steps_per_epoch: u64) -> Self {
        let nothing = |name| AppendFile { name, path: PathBuf::new(), file: None, length: 0 };
        Self {
            metrics: nothing(METRICS),
            epochs: nothing(EPOCHS),
            events: nothing(EVENTS),
            observer: Arc::new(Silent),
            num_epochs,
            steps_per_epoch,
            log: None,
            speaks: false,
            complained: false,
        }
    }

    /// The lengths of the files, for a checkpoint; what they hold is on the disk from then on.
    pub fn lengths(&mut self) -> BTreeMap<String, u64> {
        let mut lengths = BTreeMap::new();
        for file in [&self.metrics, &self.epochs, &self.events] {
            if let Some(Err(error)) = file.file.as_ref().map(File::sync_data) {
                log::warn!("cannot sync {}: {error}", file.path.display());
            }
            lengths.insert(file.name.to_string(), file.length);
        }
        lengths
    }

    /// A step was made; `row` says that the interval since the last row is full.
    pub fn step(&mut self, state: &State, rate: f64, row: Option<Interval>) {
        if let Some(interval) = row {
            let score = interval.reading.score();
            let norm = interval.norms / interval.steps.max(1) as f64;
            let speed = interval.reading.images as f64 / interval.seconds.max(1e-9);
            self.row(state.epoch + 1, state.step, "train_step", &score, Some(rate), Some(norm), Some(speed));
            self.scalars(
                state.step,
                &[
                    ("train/loss", score.loss),
                    ("train/top1", score.top1),
                    ("train/learning_rate", rate),
                    ("train/gradient_norm", norm),
                    ("train/images_per_second", speed),
                ],
            );
        }
        let score = state.sums.score();
        self.observer.on_step(&StepReport {
            epoch: state.epoch + 1,
            epochs: self.num_epochs,
            step: state.step,
            step_in_epoch: (state.step.max(1) - 1) % self.steps_per_epoch.max(1) + 1,
            steps_per_epoch: self.steps_per_epoch,
            loss: score.loss,
            top1: score.top1,
            learning_rate: rate,
            images_per_second: state.sums.images as f64 / state.times.training().max(1e-9),
            time_left: state.time_left(self.num_epochs, self.steps_per_epoch),
        });
    }

    /// An epoch ended; `state` has its record already.
    pub fn epoch(&mut self, state: &State, record: &EpochRecord) {
        self.record(record);
        let scores = json!({ "train": record.train, "valid": record.valid });
        self.write_log(Level::Info, &format!("epoch {}: {scores}", record.epoch));
        self.observer.on_epoch(&EpochReport {
            record,
            epochs: self.num_epochs,
            time_left: state.time_left(self.num_epochs, self.steps_per_epoch),
        });
    }

    /// Writes an epoch down, without a line.
    pub fn record(&mut self, record: &EpochRecord) {
        let (epoch, step) = (record.epoch, record.step);
        let rate = Some(record.learning_rate);
        // A probe reads no images after its first epoch.
        let speed = Some(record.images_per_second).filter(|speed| *speed > 0.0);
        // Epoch 0 is before the first step.
        if epoch > 0 {
            self.row(epoch, step, "train", &record.train, rate, None, speed);
        }
        self.row(epoch, step, "valid", &record.valid, None, None, None);
        let mut scalars = vec![
            ("valid/loss", record.valid.loss),
            ("valid/top1", record.valid.top1),
            ("valid/top5", record.valid.top5),
        ];
        if let Some(average) = &record.average {
            self.row(epoch, step, "valid_ema", average, None, None, None);
            scalars.extend([
                ("valid_ema/loss", average.loss),
                ("valid_ema/top1", average.top1),
                ("valid_ema/top5", average.top5),
            ]);
        }
        self.scalars(step, &scalars);

        let times = &record.times;
        let row = EpochRow {
            epoch: Some(epoch),
            seconds: Some(times.total()),
            waiting: Some(times.waiting),
            transfer: Some(times.transfer),
            compute: Some(times.compute),
            waiting_for_ranks: Some(times.ranks),
            all_reduce: Some(times.all_reduce),
            validation: Some(times.validation),
            checkpointing: Some(times.checkpointing),
            reading: Some(times.reading),
            decoding: Some(times.decoding),
            transforming: Some(times.transforming),
            collating: Some(times.collating),
            idle: Some(times.idle),
            bad_samples: Some(times.bad_samples),
            skipped_steps: Some(times.skipped_steps),
            advice: times.advice().unwrap_or_default(),
        };
        self.append(|logger| &mut logger.epochs, csv_line(&row).as_bytes());
    }

    /// Reports a fact about the run.
    pub fn info(&self, text: &str) {
        if self.speaks {
            self.write_log(Level::Info, text);
            log::info!(target: RUN_LOG_TARGET, "{text}");
            self.observer.on_note(text);
        }
    }

    /// Reports a warning.
    pub fn warn(&self, text: &str) {
        self.warn_in_log(text);
        self.observer.on_warning(text);
    }

    /// Writes a warning to the log alone.
    fn warn_in_log(&self, text: &str) {
        if self.speaks {
            self.write_log(Level::Warn, text);
            log::warn!(target: RUN_LOG_TARGET, "{text}");
        }
    }

    fn write_log(&self, level: Level, text: &str) {
        if let Some(log) = &self.log {
            log.write(level, "train", text);
        }
    }

    /// Appends a record. A log that cannot be written does not end a training: the first failure is reported, later
    /// ones are logged.
    fn append(&mut self, file: fn(&mut Self) -> &mut AppendFile, record: &[u8]) {
        let file = file(self);
        if let Err(error) = file.append(record) {
            let text = format!("cannot write {}: {error}; training goes on", file.path.display());
            self.warn_in_log(&text);
            if !std::mem::replace(&mut self.complained, true) {
                self.observer.on_warning(&text);
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn row(
        &mut self,
        epoch: usize,
        step: u64,
        split: &str,
        score: &Metrics,
        rate: Option<f64>,
        norm: Option<f64>,
        speed: Option<f64>,
    ) {
        let row = MetricRow {
            epoch: Some(epoch),
            step: Some(step),
            split: split.to_string(),
            loss: Some(score.loss),
            top1: Some(score.top1),
            top5: Some(score.top5),
            learning_rate: rate,
            gradient_norm: norm,
            images_per_second: speed,
        };
        self.append(|logger| &mut logger.metrics, csv_line(&row).as_bytes());
    }

    fn scalars(&mut self, step: u64, values: &[(&str, f64)]) {
        self.append(|logger| &mut logger.events, &tensorboard::scalars(wall_time(), step, values));
    }
}

fn wall_time() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::StepTimes;

    #[test]
    fn a_resumed_run_cuts_off_what_came_after_its_checkpoint() {
        let run = tempfile::tempdir().unwrap();
        let record = |epoch: usize| EpochRecord {
            epoch,
            step: epoch as u64,
            learning_rate: 0.1,
            train: Metrics::default(),
            valid: Metrics::default(),
            average: Some(Metrics::default()),
            images_per_second: 1.0,
            times: StepTimes { waiting: 9.0, decoding: 3.0, ..StepTimes::default() },
        };
        let mut state = State::default();
        let mut logger = RunLogger::open(run.path(), &state, Arc::new(Silent), 3, 1).unwrap();
        logger.epoch(&state, &record(1));
        state.file_lengths = logger.lengths();
        let read = |name: &str| std::fs::read(run.path().join(name)).unwrap();
        let (metrics, epochs) = (read(METRICS), read(EPOCHS));
        logger.epoch(&state, &record(2));
        assert!(read(METRICS).len() > metrics.len());

        let _resumed = RunLogger::open(run.path(), &state, Arc::new(Silent), 3, 1).unwrap();
        assert_eq!((read(METRICS), read(EPOCHS)), (metrics.clone(), epochs));
        let text = String::from_utf8(metrics).unwrap();
        assert_eq!(text.lines().count(), 4, "{text}");
        assert!(text.lines().all(|line| line.split(',').count() == 9), "{text}");

        std::fs::remove_file(run.path().join(METRICS)).unwrap();
        let _resumed = RunLogger::open(run.path(), &state, Arc::new(Silent), 3, 1).unwrap();
        assert_eq!(read(METRICS), csv_header::<MetricRow>().as_bytes());
    }

    #[test]
    fn files_that_were_shortened_are_cut_off_after_a_whole_record_and_named() {
        #[derive(Default)]
        struct Warnings(std::sync::Mutex<Vec<String>>);
        impl Observer for Warnings {
            fn on_warning(&self, text: &str) {
                self.0.lock().unwrap().push(text.to_string());
            }
        }
        let run = tempfile::tempdir().unwrap();
        let mut state = State::default();
        let open = |state: &State| {
            let warnings = Arc::new(Warnings::default());
            let logger = RunLogger::open(run.path(), state, warnings.clone(), 3, 1).unwrap();
            (logger, std::mem::take(&mut *warnings.0.lock().unwrap()))
        };
        let (mut logger, warnings) = open(&state);
        assert!(warnings.is_empty());
        for step in 1..4 {
            logger.row(1, step, "train_step", &Metrics::default(), None, None, None);
            logger.scalars(step, &[("train/loss", 0.5)]);
        }
        state.file_lengths = logger.lengths();
        drop(logger);
        assert!(open(&state).1.is_empty(), "nothing was changed");
        let read = |name: &str| std::fs::read(run.path().join(name)).unwrap();
        let whole = [METRICS, EVENTS].map(read);
        for (name, bytes) in [METRICS, EVENTS].iter().zip(&whole) {
            std::fs::write(run.path().join(name), &bytes[..bytes.len() - 3]).unwrap();
        }
        let (_, warnings) = open(&state);
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].contains("metrics.csv is not as the last checkpoint left it"), "{warnings:?}");
        assert_eq!(String::from_utf8(read(METRICS)).unwrap().lines().count(), 3);
        assert!(read(METRICS).ends_with(b"\n"));
        assert_eq!(tensorboard::whole_records(&read(EVENTS)), read(EVENTS).len());
        assert!(read(EVENTS).len() < whole[1].len() - 3);
        let log = String::from_utf8(read(EXPERIMENT_LOG)).unwrap();
        assert!(log.contains("metrics.csv is not as"), "{log}");
    }
}
