//! Says what the feature `mpi` needs where it is missing, before its binding fails with less clear words.

use std::{env, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // The places where the binding looks; on Windows it has others.
    if env::var_os("CARGO_FEATURE_MPI").is_none() || env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "windows") {
        return;
    }
    for variable in ["MPICC", "MPI_PKG_CONFIG", "PKG_CONFIG_PATH", "PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let runs = |program: &str, argument: &str| {
        Command::new(program).arg(argument).output().is_ok_and(|output| output.status.success())
    };
    let compiler = env::var("MPICC").unwrap_or_else(|_| "mpicc".into());
    let packages = |name: &str| Command::new("pkg-config").args(["--exists", name]).status().is_ok_and(|s| s.success());
    let found = runs(&compiler, "-show")
        || env::var("MPI_PKG_CONFIG").is_ok_and(|name| packages(&name))
        || ["mpich", "ompi", "ompi-c"].into_iter().any(packages);
    if !found {
        eprintln!(
            "the feature `mpi` needs an MPI with its headers, and none was found: there is no `{compiler}`. Install \
             OpenMPI or MPICH (Debian: apt-get install libopenmpi-dev openmpi-bin libclang-dev; a cluster: module load \
             its MPI), or build without the feature"
        );
        std::process::exit(1);
    }
}
