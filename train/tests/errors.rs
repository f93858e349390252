//! Wrong command lines and what they print. `TRYCMD=overwrite cargo test --test errors` writes it anew.
#![cfg(target_os = "linux")] // The system's words are part of the errors.

#[test]
fn wrong_commands_name_the_thing_the_cause_and_the_remedy() {
    trycmd::TestCases::new().env("HEARTH_BACKEND", "flex").env("NO_COLOR", "1").case("tests/errors/*.trycmd");
}
