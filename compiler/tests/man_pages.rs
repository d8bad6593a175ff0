//! Man pages and completions of `thex`.

#![allow(clippy::unwrap_used, clippy::print_stdout, unreachable_pub, reason = "tests, which share a module")]

#[path = "../../runtime/serve/tests/manual/mod.rs"]
mod manual;

const PROGRAM: &str = env!("CARGO_BIN_EXE_thex");

#[test]
fn every_command_has_a_page() {
    manual::pages(PROGRAM, "thex");
}

#[test]
fn completions_know_every_command() {
    manual::completions(PROGRAM);
    let offered = |words: &[&str]| manual::offered(PROGRAM, "thex", words);
    assert!(offered(&["thex", "comp"]).is_none_or(|o| o == ["compile", "compare", "completions"]));
    assert!(offered(&["thex", "client", "pre"]).is_none_or(|o| o == ["predict"]));
}
