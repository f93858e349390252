//! A folder with a tiny network in it, and the binary run there.
#![allow(dead_code)] // Each test file uses a part.

use std::{
    fs,
    io::Write,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use burn::tensor::Device;
use image::{ImageFormat, Rgb, RgbImage};
use models::{Architecture, Card, NetworkConfig, weights::save};
use serde_json::Value;
use tempfile::TempDir;

/// The `infer` binary, on the CPU whatever the build and the machine have.
pub fn infer() -> Command {
    on_the_cpu(Command::new(env!("CARGO_BIN_EXE_infer")))
}

/// Pins the backend that `--backend auto` would choose.
fn on_the_cpu(mut command: Command) -> Command {
    command.env("HEARTH_BACKEND", "flex");
    command
}

/// A folder with a tiny network (`run/weights.safetensors`), its weights without a card are those of `bare`.
pub struct Desk {
    folder: TempDir,
}

impl Desk {
    pub fn new() -> Self {
        let desk = Self { folder: tempfile::tempdir().expect("a folder") };
        let device = Device::flex();
        device.seed(7);
        let mut card = Card::of(Architecture::ResNet20, 3, "a test");
        card.classes = vec!["ant".into(), "bee, \"honey\"".into(), "cat".into()];
        let network = NetworkConfig::new(Architecture::ResNet20).with_num_classes(3).init(&device);
        save(&network, &card, desk.path("run/weights.safetensors")).expect("saved");
        desk
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes an image whose pixels depend on its name, in the format of its extension.
    pub fn image(&self, name: &str) -> &Self {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("created");
        let shade = name.bytes().fold(0u8, u8::wrapping_add);
        let image = RgbImage::from_fn(40, 36, |x, y| Rgb([shade, (x * 6) as u8, (y * 7) as u8]));
        let format = ImageFormat::from_path(&path).expect("a known extension");
        image.save_with_format(path, format).expect("written");
        self
    }

    pub fn broken(&self, name: &str) -> &Self {
        fs::write(self.path(name), b"\xff\xd8\xff\xe0 this is no JPEG").expect("written");
        self
    }

    /// Runs `infer` in the folder.
    pub fn infer(&self, args: &[&str]) -> Ran {
        self.infer_with(args, b"")
    }

    /// Runs `infer` as so many processes.
    pub fn processes(&self, processes: usize, args: &[&str]) -> Ran {
        let mut command = on_the_cpu(Command::new("mpirun"));
        command.args(["--oversubscribe", "-n", &processes.to_string(), env!("CARGO_BIN_EXE_infer")]).args(args);
        // In a container everybody is root.
        command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        Ran::from(command.current_dir(self.folder.path()).output().expect("mpirun starts"))
    }

    pub fn infer_with(&self, args: &[&str], stdin: &[u8]) -> Ran {
        let mut child = infer()
            .args(args)
            .current_dir(self.folder.path())
            .env("XDG_CACHE_HOME", self.folder.path().join("cache"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("infer starts");
        // A child that does not read has closed the pipe, which is no failure.
        let _ = child.stdin.take().expect("it is piped").write_all(stdin);
        Ran::from(child.wait_with_output().expect("infer ends"))
    }
}

#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Ran {
    #[track_caller]
    pub fn ends_with(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    #[track_caller]
    pub fn says(self, words: &str) -> Self {
        assert!(self.stderr.contains(words), "{words}: {self:#?}");
        self
    }

    pub fn json_lines(&self) -> Vec<Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).expect("a JSON object a line")).collect()
    }
}
