//! Two hosts, as network namespaces with a virtual link between them: a run across them, over a slow link, and over one
//! that is cut.
//!
//! Needs the feature `mpi`, `mpirun`, Linux, root, and `ip` and `tc` (Debian's iproute2); says so where something is
//! missing.
#![cfg(all(feature = "mpi", target_os = "linux"))]
#![allow(clippy::unwrap_used)] // Helpers of tests fail as tests do.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

mod common;

/// A command of the system; whether it went well.
fn system(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output();
    output.is_ok_and(|output| output.status.success())
}

/// Two hosts and the link between them, for as long as it lives.
struct Hosts {
    names: [String; 2],
    folder: tempfile::TempDir,
}

impl Hosts {
    /// `None`, and a line that says so, where namespaces cannot be made.
    fn new() -> Option<Self> {
        let id = std::process::id();
        let names = [1, 2].map(|host| format!("hearth-{id}-{host}"));
        let hosts = Self { names, folder: tempfile::tempdir().unwrap() };
        let [a, b] = &hosts.names;
        let (left, right) = (format!("hl{id}"), format!("hr{id}"));
        let made = system("mpirun --version")
            && system(&format!("ip netns add {a}"))
            && system(&format!("ip netns add {b}"))
            && system(&format!("ip link add {left} type veth peer name {right}"))
            && system(&format!("ip link set {left} netns {a}"))
            && system(&format!("ip link set {right} netns {b}"))
            && [(a, &left, 1), (b, &right, 2)].into_iter().all(|(host, link, number)| {
                system(&format!("ip -n {host} link set {link} name eth0"))
                    && system(&format!("ip -n {host} addr add 10.77.0.{number}/24 dev eth0"))
                    && system(&format!("ip -n {host} link set eth0 up"))
                    && system(&format!("ip -n {host} link set lo up"))
            });
        if !made {
            eprintln!("skipped: two hosts need root, iproute2, mpirun and a kernel with network namespaces");
            return None;
        }
        // mpirun calls it as it would ssh: a host, then a command.
        let agent = hosts.folder.path().join("agent");
        let script = format!("#!/bin/sh\nshift\nexec ip netns exec {b} unshare -u sh -c \"hostname second; $*\"\n");
        fs::write(&agent, script).unwrap();
        fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).unwrap();
        Some(hosts)
    }

    /// `train` with these arguments, a rank on each host.
    fn train(&self, arguments: &[&str]) -> Command {
        let agent = self.folder.path().join("agent").display().to_string();
        let mut words = vec!["mpirun", "-n", "2", "-H", "10.77.0.1:1,10.77.0.2:1", "--mca", "plm_rsh_agent", &agent];
        // Nothing but the link.
        words.extend(["--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", "10.77.0.0/24"]);
        words.extend([
            "--mca",
            "oob_tcp_if_include",
            "10.77.0.0/24",
            "-x",
            "HEARTH_BACKEND",
            env!("CARGO_BIN_EXE_train"),
        ]);
        words.extend(arguments);
        let mut command = common::on_the_cpu(Command::new("ip"));
        let line = format!("hostname first; exec {}", words.join(" "));
        command.args(["netns", "exec", &self.names[0], "unshare", "-u", "sh", "-c", &line]);
        command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        command.env("RUST_BACKTRACE", "0").current_dir(self.folder.path());
        command
    }

    /// The processes of this program on both hosts.
    fn ranks(&self) -> Vec<u32> {
        let program = env!("CARGO_BIN_EXE_train");
        let is_rank = |id: &u32| {
            let line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            line.split(|&byte| byte == 0).next() == Some(program.as_bytes())
        };
        self.processes().into_iter().filter(is_rank).collect()
    }

    fn processes(&self) -> Vec<u32> {
        let of_host = |name: &String| Command::new("ip").args(["netns", "pids", name]).output().unwrap().stdout;
        let ids = self
            .names
            .iter()
            .flat_map(|name| of_host(name).split(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect::<Vec<_>>());
        ids.filter_map(|id| String::from_utf8(id).ok()?.parse().ok()).collect()
    }

    fn all(&self, command: impl Fn(&str) -> String) -> bool {
        self.names.iter().all(|host| system(&command(host)))
    }

    fn end_all(&self) {
        for id in self.processes() {
            system(&format!("kill -9 {id}"));
        }
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.end_all();
        for name in &self.names {
            system(&format!("ip netns del {name}"));
        }
    }
}

#[track_caller]
fn succeed(mut command: Command) -> String {
    let Output { status, stderr, .. } = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&stderr).into_owned();
    assert!(status.success(), "{stderr}");
    stderr
}

/// What each step came to, without its speed.
fn steps(run: &Path) -> Vec<String> {
    let table = fs::read_to_string(run.join("metrics.csv")).unwrap();
    let rows = table.lines().filter(|line| line.contains(",train_step,"));
    rows.map(|row| row.rsplit_once(',').unwrap().0.to_string()).collect()
}

/// Seconds of the first epoch that went into sums of gradients.
fn all_reduce(run: &Path) -> f64 {
    let table = fs::read_to_string(run.join("epochs.csv")).unwrap();
    let mut lines = table.lines();
    let column = lines.next().unwrap().split(',').position(|name| name == "all_reduce").unwrap();
    lines.next().unwrap().split(',').nth(column).unwrap().parse().unwrap()
}

fn wait_for_checkpoint(run: &Path, child: &mut Child) {
    let until = Instant::now() + Duration::from_secs(60);
    let there = || {
        fs::read_dir(run.join("checkpoints")).is_ok_and(|mut entries| {
            entries.any(|entry| entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("step-")))
        })
    };
    while !there() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before its first checkpoint");
        assert!(Instant::now() < until, "no checkpoint");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn across_two_hosts_slow_is_slow_and_a_cut_ends_cleanly() {
    let Some(hosts) = Hosts::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str| folder.path().join(name);
    let shown = |name: &str| run(name).display().to_string();

    let whole = shown("whole");
    let said = succeed(hosts.train(&["pretrain", "--epochs", "4", "--out", &whole]));
    assert!(said.contains("2 processes, 1 on this host"), "{said}");

    // 1.1 MB of gradients a step go each way, 45 steps an epoch.
    let netem = hosts.all(|host| format!("tc -n {host} qdisc add dev eth0 root netem rate 80mbit delay 1ms"));
    let slowed = netem
        || hosts.all(|host| format!("tc -n {host} qdisc add dev eth0 root tbf rate 80mbit burst 64kb latency 200ms"));
    if slowed {
        let slow = shown("slow");
        succeed(hosts.train(&["pretrain", "--epochs", "4", "--out", &slow]));
        assert_eq!(steps(&run("slow")), steps(&run("whole")), "slow is slow, and nothing else");
        let [fast, slow] = ["whole", "slow"].map(|name| all_reduce(&run(name)));
        eprintln!(
            "all-reduce of an epoch: {fast:.2} s, {slow:.2} s at 80 Mbit/s ({})",
            if netem { "netem" } else { "tbf" }
        );
        assert!(slow > 3.0, "48.6 MB at 10 MB a second take {slow} s");
        assert!(hosts.all(|host| format!("tc -n {host} qdisc del dev eth0 root")));
    } else {
        eprintln!("skipped in part: this kernel knows neither netem nor tbf, so no link is slowed");
    }

    let cut = shown("cut");
    let arguments =
        ["pretrain", "--epochs", "4", "--out", &cut, "--set", "checkpoints.every_steps=5", "--mpi-timeout", "3"];
    // The whole run's recipe but for the checkpoints, which change nothing.
    let mut child = hosts.train(&arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_checkpoint(&run("cut"), &mut child);
    assert_eq!(hosts.ranks().len(), 2);
    assert!(system(&format!("ip -n {} link set eth0 down", hosts.names[0])));
    let since = Instant::now();
    while !hosts.ranks().is_empty() {
        assert!(since.elapsed() < Duration::from_secs(30), "ranks wait for ever");
        std::thread::sleep(Duration::from_millis(100));
    }
    eprintln!("a cut link ended both ranks after {:.1} s", since.elapsed().as_secs_f64());
    // The launcher waits for its daemon on the other host, which it cannot reach.
    hosts.end_all();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("has waited for the others for 3 s") && said.contains("train resume"), "{said}");

    assert!(system(&format!("ip -n {} link set eth0 up", hosts.names[0])));
    succeed(hosts.train(&["resume", &cut]));
    assert_eq!(steps(&run("cut")), steps(&run("whole")), "as if it had never been cut");
}
