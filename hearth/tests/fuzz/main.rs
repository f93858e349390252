//! Fuzzing of every reader of files and requests that others made, on stable Rust and with the program's own seeds.
//!
//! Each target runs in a process of its own, whose address space is limited: an allocation of a declared size fails the
//! test as a panic, an abort and an input that takes longer than a second do. The sequence of inputs follows from a seed.
//! An input whose outcome is new (the words of its error message, without numbers and names) joins the corpus, which
//! stands in for the coverage that instrumented fuzzers measure.
//!
//! | variable | effect | default |
//! |---|---|---|
//! | `HEARTH_FUZZ_SECONDS` | time for each target | 2 |
//! | `HEARTH_FUZZ_SEED` | another sequence of inputs | 0 |
//! | `HEARTH_FUZZ_INPUT` | a file: run this input alone | |
//!
//! ```text
//! HEARTH_FUZZ_SECONDS=600 cargo test --test fuzz -- tiff
//! HEARTH_FUZZ_INPUT=target/tmp/fuzz-tiff cargo test --test fuzz -- tiff
//! ```
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)] // What fails here fails the test.

mod mutate;
mod seeds;
mod targets;

use std::{
    collections::HashSet,
    env, fs,
    panic::PanicHookInfo,
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use libtest_mimic::{Arguments, Failed, Trial};

use mutate::{Mutator, Rng};
use targets::{TARGETS, Target};

/// The address space of a target's process: what it takes to start, and far less than a file may declare.
const ADDRESS_SPACE: u64 = 1 << 30;

/// The longest that one input may take.
const SLOW: Duration = Duration::from_secs(1);

/// The largest corpus, in inputs.
const CORPUS: usize = 1000;

fn main() {
    if let Some(name) = env::var_os("HEARTH_FUZZ_CHILD") {
        let target = TARGETS.iter().find(|target| name == target.name).unwrap();
        return fuzz(target, Path::new(&env::var_os("HEARTH_FUZZ_FOLDER").unwrap()));
    }
    let arguments = Arguments::from_args();
    let trials = TARGETS.iter().map(|target| Trial::test(target.name, move || supervise(target))).collect();
    libtest_mimic::run(&arguments, trials).exit();
}

fn number(variable: &str, default: u64) -> u64 {
    env::var(variable).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable} is not a number")))
}

/// Runs a target in a process with limits, and keeps the input that it fails on.
fn supervise(target: &Target) -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("log");
    let limit = (ADDRESS_SPACE >> 10).to_string();
    let mut command = match cfg!(target_os = "linux") {
        true => {
            let mut shell = Command::new("sh");
            shell.args(["-c", r#"ulimit -c 0 && ulimit -v "$0" && exec "$@""#, &limit]).arg(env::current_exe()?);
            shell
        }
        false => Command::new(env::current_exe()?),
    };
    let mut child = command
        .env("HEARTH_FUZZ_CHILD", target.name)
        .env("HEARTH_FUZZ_FOLDER", folder.path())
        // Each arena of the allocator and the stack of each thread take address space.
        .envs([("MALLOC_ARENA_MAX", "1"), ("RAYON_NUM_THREADS", "1"), ("RUST_BACKTRACE", "0"), ("RUST_LOG", "off")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log)?)
        .spawn()?;
    let deadline = Instant::now() + Duration::from_secs(number("HEARTH_FUZZ_SECONDS", 2)) + Duration::from_secs(60);
    let status = loop {
        match child.try_wait()? {
            Some(status) => break Some(status),
            None if Instant::now() > deadline => {
                child.kill()?;
                child.wait()?;
                break None;
            }
            None => thread::sleep(Duration::from_millis(20)),
        }
    };
    let log = String::from_utf8_lossy(&fs::read(log)?).into_owned();
    if status.is_some_and(|status| status.success()) {
        eprint!("{log}");
        return Ok(());
    }
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{}", target.name));
    let again = match fs::copy(folder.path().join("input"), &kept) {
        Ok(_) => format!("; run it again with HEARTH_FUZZ_INPUT={}", kept.display()),
        Err(_) => String::new(),
    };
    let end = status.map_or("it hangs".to_string(), |status| status.to_string());
    Err(format!("{end}{again}\n{log}").into())
}

/// Ends the process for a panic in the workspace's code. Those of other crates' decoders are caught and become errors.
fn abort_on_own_panics() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic: &PanicHookInfo<'_>| {
        if panic.location().is_none_or(|location| Path::new(location.file()).is_relative()) {
            print(panic);
            process::abort();
        }
    }));
}

/// The body of a target's process.
fn fuzz(target: &Target, folder: &Path) {
    abort_on_own_panics();
    let work = folder.join("work");
    fs::create_dir(&work).unwrap();
    let input = folder.join("input");
    let mut run = (target.open)(&work);
    if let Some(path) = env::var_os("HEARTH_FUZZ_INPUT") {
        let bytes = fs::read(&path).unwrap();
        fs::write(&input, &bytes).unwrap();
        eprintln!("{:?}", timed(&mut run, &bytes));
        return;
    }
    let mut corpus = (target.seeds)(&work);
    let mut known = HashSet::new();
    for (index, seed) in corpus.iter().enumerate() {
        fs::write(&input, seed).unwrap();
        if let Err(error) = timed(&mut run, seed) {
            panic!("seed {index} of {} is not accepted: {error}", target.name);
        }
    }
    let mut mutator =
        Mutator { rng: Rng::new(number("HEARTH_FUZZ_SEED", 0)), words: target.words, longest: target.longest };
    let end = Instant::now() + Duration::from_secs(number("HEARTH_FUZZ_SECONDS", 2));
    let mut count = 0;
    while Instant::now() < end {
        let mut bytes = mutator.mutate(&corpus);
        (target.seal)(&mut bytes);
        fs::write(&input, &bytes).unwrap();
        let outcome = timed(&mut run, &bytes);
        if known.insert(words_of(outcome)) && corpus.len() < CORPUS {
            corpus.push(bytes);
        }
        count += 1;
    }
    eprintln!("{}: {count} inputs, {} outcomes", target.name, known.len());
}

/// Runs one input. A slow one is run again, to measure the processor's time: the machine may have been busy.
fn timed(run: &mut targets::Run, bytes: &[u8]) -> Result<(), String> {
    let began = Instant::now();
    let outcome = run(bytes);
    if began.elapsed() > SLOW {
        let before = processor();
        let _ = run(bytes);
        let took = processor().zip(before).map_or(began.elapsed() / 2, |(after, before)| after - before);
        assert!(took <= SLOW, "the input takes {took:?}");
    }
    outcome
}

/// The processor's time that this process has used, where the system tells.
fn processor() -> Option<Duration> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // Fields 14 and 15, in ticks of 10 ms; the second field is a name in parentheses.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().ok()? + fields[12].parse::<u64>().ok()?;
    Some(Duration::from_millis(10 * ticks))
}

/// Reduces an outcome to its words, which distinguish inputs: a message without its numbers and quoted parts.
fn words_of(outcome: Result<(), String>) -> String {
    let Err(message) = outcome else { return String::new() };
    let unquoted = message.split(['`', '"', '\'']).step_by(2);
    unquoted.flat_map(|text| text.chars().filter(|c| c.is_ascii_alphabetic() || *c == ' ')).take(120).collect()
}

/// A file of the repository.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}
