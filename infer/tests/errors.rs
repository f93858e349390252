//! Wrong command lines, as a newcomer types them, and what they print. `UPDATE=1 cargo test --test errors` writes it anew.
#![cfg(target_os = "linux")] // The system's words are part of the errors.

#[path = "../../runtime/tests/snapshots/mod.rs"]
mod snapshots;

use std::path::Path;

#[test]
fn wrong_commands_name_the_thing_the_cause_and_the_remedy() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/errors");
    snapshots::check(env!("CARGO_BIN_EXE_infer"), &folder.join("wrong.md"), &folder.join("input"));
}
