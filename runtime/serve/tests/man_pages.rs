//! Man pages and completions of `thex-runtime`.

#![allow(clippy::unwrap_used, clippy::print_stdout, unreachable_pub, reason = "tests, which share a module")]

mod manual;

const PROGRAM: &str = env!("CARGO_BIN_EXE_thex-runtime");

#[test]
fn every_command_has_a_page() {
    manual::pages(PROGRAM, "thex-runtime");
}

#[test]
fn completions_know_every_command() {
    manual::completions(PROGRAM);
    let offered = manual::offered(PROGRAM, "thex-runtime", &["thex-runtime", "dec"]);
    assert!(offered.is_none_or(|o| o == ["decrypt"]));
}

#[test]
fn a_folder_that_cannot_be_made_is_an_error() {
    let output = std::process::Command::new(PROGRAM).args(["man", "-o", "/dev/null/man1"]).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{message}");
    assert!(message.contains("TX0001") && message.contains("/dev/null/man1"), "{message}");
}
