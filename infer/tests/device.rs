//! Which device `infer` computes on, and what it says of it.
#![allow(clippy::unwrap_used)] // Helpers of tests fail as tests do.

use fixture::Fixture;
use serde_json::Value;

mod fixture;

/// Returns the first line of Hearth. The libraries of graphics drivers print this one while adapters are listed.
fn first_line(stderr: &str) -> &str {
    const OF_DRIVERS: &str = "error: XDG_RUNTIME_DIR is invalid or not set in the environment.";
    stderr.lines().find(|&line| line != OF_DRIVERS).unwrap_or_default()
}

#[test]
fn a_command_that_computes_names_the_cpu_first() {
    let fixture = Fixture::new();
    fixture.image("a.png");
    let ran = fixture.infer(&["classify", "a.png", "-w", "run"]).ends_with(0);
    let line = first_line(&ran.stderr);
    assert!(line.starts_with("device: CPU (flex, ") && line.contains(" thread") && line.ends_with(')'), "{ran:#?}");
    // Results are not mixed with it, and `--quiet` leaves it out.
    assert!(!ran.stdout.contains("device:"), "{ran:#?}");
    let quiet = fixture.infer(&["-q", "classify", "a.png", "-w", "run"]).ends_with(0);
    assert_eq!(quiet.stderr, "");
    let ran = fixture.infer(&["bench", "resnet20", "--batch-sizes", "1", "--iters", "1", "--warmup", "1"]).ends_with(0);
    assert!(first_line(&ran.stderr).starts_with("device: CPU (flex, "), "{ran:#?}");
}

#[test]
fn auto_picks_a_gpu_or_else_the_cpu_and_never_a_software_adapter() {
    let devices = |environment: &str| -> Value {
        let output = fixture::infer().args(["devices", "--format", "json"]).env("HEARTH_BACKEND", environment).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let list = devices("");
    let of = |backend: &Value| backend["devices"].as_array().unwrap().clone();
    let backends = list["backends"].as_array().unwrap();
    let gpus: Vec<String> = backends
        .iter()
        .filter(|backend| backend["backend"] != "webgpu")
        .flat_map(of)
        .filter(|device| !device["software"].as_bool().unwrap() && device["problem"].is_null())
        .filter(|device| !["flex", "ndarray", "tch"].contains(&device["device"].as_str().unwrap()))
        .map(|device| device["device"].as_str().unwrap().to_string())
        .collect();
    let auto = list["auto"]["device"].as_str().unwrap();
    let description = list["auto"]["description"].as_str().unwrap();
    let compiled: Vec<&str> = list["compiled"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    let tried = ["cuda", "rocm", "metal", "vulkan", "wgpu"].into_iter().filter(|name| compiled.contains(name));
    if gpus.is_empty() {
        assert_eq!(auto, "flex", "{list:#}");
        assert!(description.starts_with("CPU (flex, "), "{list:#}");
        // Each GPU backend of the build has its reason, also in the first line of a command.
        let skipped = list["auto"]["skipped"].as_array().unwrap();
        assert_eq!(skipped.len(), tried.clone().count(), "{list:#}");
        let arguments = ["bench", "resnet20", "--batch-sizes", "1", "--iters", "1", "--warmup", "1"];
        let output = fixture::infer().args(arguments).env_remove("HEARTH_BACKEND").output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && first_line(&stderr).starts_with("device: CPU (flex, "), "{stderr}");
        assert_eq!(first_line(&stderr).contains("no GPU was found: "), tried.clone().count() > 0, "{stderr}");
        assert!(tried.into_iter().all(|name| first_line(&stderr).contains(&format!("{name}: "))), "{stderr}");
    } else {
        let backend = auto.split(':').next().unwrap();
        assert!(gpus.iter().any(|device| device.split(':').next() == Some(backend)), "{list:#}");
    }
    // A software adapter is listed as one where the driver has it.
    let software = backends.iter().flat_map(of).filter(|device| device["software"] == true);
    assert!(software.into_iter().all(|device| device["device"].as_str().unwrap().ends_with(":cpu")), "{list:#}");
    assert_eq!(devices("flex")["environment"], "flex");
}

#[test]
fn a_backend_that_is_named_must_open() {
    let fixture = Fixture::new();
    fixture.image("a.png");
    let list = fixture.infer(&["devices"]).ends_with(0).stdout;
    assert!(list.contains("\nauto: ") && list.contains("HEARTH_BACKEND=flex takes the place of auto"), "{list}");
    let compiled = list.lines().find_map(|line| line.strip_prefix("compiled: ")).unwrap();
    let compiled = compiled.split(';').next().unwrap();
    for absent in ["cuda", "vulkan"].into_iter().filter(|name| !compiled.split(", ").any(|other| other == *name)) {
        let ran = fixture.infer(&["classify", "a.png", "-w", "run", "--backend", absent]).ends_with(1);
        if !cfg!(target_os = "macos") {
            ran.says(&format!("`cargo run -p infer --features {absent} -- …`"));
        }
    }
    fixture
        .infer(&["classify", "a.png", "-w", "run", "--backend", "vulcan"])
        .ends_with(2)
        .says("did you mean `vulkan`");
    let output = fixture::infer().args(["bench", "resnet20"]).env("HEARTH_BACKEND", "vulcan").output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.contains("HEARTH_BACKEND=vulcan") && stderr.contains("did you mean `vulkan`"), "{stderr}");
}
