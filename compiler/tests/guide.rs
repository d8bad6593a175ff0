//! The guide (`docs/guide`): every command in it runs and prints what the chapter shows, and no block, link or chapter is left out.
//!
//! A fenced block is one of these, and a test asserts that there are no others:
//!
//! * ```` ```console ````: commands, `$ ` before each, with or without their output ([`shown`] says how it is compared). The
//!   commands of a chapter run in order, in one shell, in a folder that holds nothing but links to the repository's `tests` and `docs`. `status=3` in
//!   the info string is the exit status of the block's last command, `needs=…` says what a machine may lack: programs (`thex-runtime`, `man`, …) are
//!   looked for; `python` (PyTorch, numpy), `gpu`, `mpi`, `network`, `cargo` (builds of thex itself) and `minutes` run where `THEX_GUIDE=python,…` says that they are there.
//!   What was not run is printed. A port 7843 on this machine becomes a free one.
//! * ```` ```rust ```` and ```` ```python ````: one `{{#include}}` of a file that this test compiles, or that a command of the guide runs;
//! * ```` ```text ````: anything that is no command.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    unreachable_pub,
    reason = "tests"
)]

#[path = "guide/blocks.rs"]
mod blocks;
#[path = "guide/session.rs"]
mod session;
#[path = "guide/shown.rs"]
mod shown;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ndarray::Axis;
use thex::import::{ImportOptions, import};
use thex_ir::Stage;
use thex_passes::{PassCx, PassManager, Profile, options, registry};
use thex_runtime::npz;

use blocks::{Block, Command, attribute, included, read};

/// What is not looked for on the PATH.
const DECLARED: &[&str] = &["python", "gpu", "mpi", "network", "cargo", "minutes"];
/// Programs that are.
const PROGRAMS: &[&str] = &["thex-runtime", "man", "bash", "openssl", "curl"];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn guide() -> PathBuf {
    repository().join("docs/guide")
}

/// The folder of the programs that this test goes with.
fn programs() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_thex")).parent().unwrap().to_owned()
}

/// Chapters as SUMMARY.md lists them.
fn chapters() -> Vec<String> {
    blocks::links(&read(&guide().join("SUMMARY.md")))
}

/// Why a command cannot run here.
fn lacks(needs: Option<&str>) -> Option<String> {
    let needs = needs?;
    if DECLARED.contains(&needs) {
        let there = std::env::var("THEX_GUIDE").unwrap_or_default();
        return (!there.split(',').any(|n| n == needs))
            .then(|| format!("it needs {needs}; THEX_GUIDE={needs} runs it"));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).chain([programs()]).any(|folder| folder.join(needs).is_file());
    (!found).then(|| format!("there is no {needs} on the PATH"))
}

/// A port that is free now, in place of the one that the guide names.
fn moved(command: Command, port: &str) -> Command {
    let shown = command.shown.iter().map(|line| line.replace("127.0.0.1:7843", port)).collect();
    Command { text: command.text.replace("127.0.0.1:7843", port), shown, ..command }
}

fn console(chapter: &str) -> Vec<Command> {
    let blocks = blocks::blocks(&read(&guide().join(chapter)));
    blocks.iter().filter(|b| kind(b) == "console").flat_map(blocks::commands).collect()
}

fn kind(block: &Block) -> &str {
    block.info.split(',').next().unwrap_or_default()
}

/// Runs a chapter.
fn run(chapter: &str) {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut commands = Vec::new();
    for command in console(chapter) {
        match lacks(command.needs.as_deref()) {
            Some(why) => println!("{chapter}: not run, since {why}: {}", command.text),
            None => commands.push(moved(command, &free)),
        }
    }
    session::Session::new(&repository()).run(chapter, &commands, &programs());
}

macro_rules! chapters {
    ($($name:ident = $file:literal),* $(,)?) => {
        /// Chapters with commands, each a test.
        const TESTED: &[&str] = &[$($file),*];
        mod chapter {
            $(#[test] fn $name() { super::run($file); })*
        }
    };
}

chapters! {
    introduction = "README.md",
    quick_start = "quick-start.md",
    compiling = "compiling.md",
    reports = "reports.md",
    profiles = "profiles.md",
    checking = "checking.md",
    running = "running.md",
    deploying = "deploying.md",
    threat_model = "threat-model.md",
    adding_a_pass = "adding-a-pass.md",
    file_formats = "file-formats.md",
    command_line = "command-line.md",
    troubleshooting = "troubleshooting.md",
}

#[test]
fn every_chapter_is_listed_and_tested() {
    let files = std::fs::read_dir(guide()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let files: BTreeSet<String> = files.filter(|name| name.ends_with(".md") && name != "SUMMARY.md").collect();
    let listed = chapters();
    assert_eq!(listed.iter().cloned().collect::<BTreeSet<_>>(), files, "SUMMARY.md and the files beside it");
    assert_eq!(listed, TESTED, "SUMMARY.md and the chapters that are tested");
    let book = read(&repository().join("docs/book.toml"));
    assert!(book.contains("src = \"guide\""), "{book}");
}

#[test]
fn every_block_is_run_compiled_or_no_command() {
    let all: Vec<Command> = chapters().iter().flat_map(|chapter| console(chapter)).collect();
    assert!(all.len() > 50, "{} commands", all.len());
    for chapter in chapters() {
        for block in blocks::blocks(&read(&guide().join(&chapter))) {
            let at = format!("{chapter}, line {}: ```{}", block.line, block.info);
            match kind(&block) {
                "console" => check_console(&block, &at),
                "rust" => check_include(&block, &at, |file| COMPILED.contains(&file)),
                "python" => check_include(&block, &at, |file| all.iter().any(|c| c.text.contains(file))),
                "text" => {
                    let command = block.text.iter().find(|l| l.starts_with("$ ") || l.trim().starts_with("thex "));
                    assert!(command.is_none(), "{at} hides a command: {command:?}");
                }
                other => panic!("{at}: `{other}` is no kind of block that this test knows"),
            }
        }
    }
}

fn check_console(block: &Block, at: &str) {
    for part in block.info.split(',').skip(1) {
        let known = part.starts_with("status=") || part.starts_with("needs=");
        assert!(known, "{at}: `{part}` is not known");
    }
    if let Some(needs) = attribute(&block.info, "needs") {
        let known = DECLARED.iter().chain(PROGRAMS).any(|n| *n == needs);
        assert!(known, "{at}: what is `{needs}`?");
    }
    for command in blocks::commands(block) {
        let thex = command.text.split_whitespace().next().is_some_and(|word| word.starts_with("thex"));
        assert!(!thex || command.needs.as_deref() != Some("network"), "{at}: thex needs no network");
    }
}

/// The included file is there, has the anchor, and is in the care of a test.
fn check_include(block: &Block, at: &str, tested: impl Fn(&str) -> bool) {
    let (file, anchor) = included(block).unwrap_or_else(|| panic!("{at}: include a file instead of writing code here"));
    let text = read(&guide().join(&file));
    let has = |anchor: &String| ["ANCHOR", "ANCHOR_END"].iter().all(|w| text.contains(&format!("{w}: {anchor}\n")));
    assert!(anchor.as_ref().is_none_or(has), "{at}: no anchor {anchor:?} in {file}");
    assert!(tested(&file), "{at}: nothing compiles or runs {file}");
}

#[test]
fn every_link_leads_somewhere() {
    let mut seen = 0;
    for chapter in chapters() {
        for link in blocks::links(&read(&guide().join(&chapter))) {
            assert!(!link.contains("://"), "{chapter}: {link}: the guide is to be read without a network");
            let (file, anchor) = link.split_once('#').map_or((link.as_str(), None), |(f, a)| (f, Some(a)));
            let path = if file.is_empty() { guide().join(&chapter) } else { guide().join(file) };
            assert!(path.exists(), "{chapter}: {link} does not exist");
            let there = anchor.is_none_or(|a| blocks::anchors(&read(&path)).iter().any(|h| h == a));
            assert!(there, "{chapter}: {link}: no such heading");
            seen += 1;
        }
    }
    assert!(seen > 20, "{seen} links");
}

#[path = "../../docs/guide/examples/prune_weights.rs"]
mod prune_weights;

/// Rust files of the guide that this test compiles.
const COMPILED: &[&str] = &["examples/prune_weights.rs"];

#[test]
fn the_pass_of_the_guide_works_in_the_pipeline() {
    let shapes = [("image".to_owned(), vec![1, 1, 8, 8])].into();
    let model = repository().join("tests/models/digits_vit.onnx");
    let mut graph = import(&model, &ImportOptions { shapes }).unwrap().graph;
    let arrays = npz::read(&repository().join("tests/data/digits_calibration.npz"), &["image"]).unwrap();
    let image = |i: usize| arrays[0].1.index_axis(Axis(0), i).insert_axis(Axis(0)).to_owned();
    let mut cx = PassCx::new(Profile::TheX, Arc::new((0..64).map(|i| vec![Arc::new(image(i))]).collect()));
    let mut passes = registry::pipeline();
    passes.insert(1, Box::new(prune_weights::PruneWeights::default()));
    options::apply(&mut passes, &["prune-weights:threshold=0.02".to_owned()]).unwrap();
    let records = PassManager::default().run(&passes, &mut graph, &mut cx).unwrap();
    assert_eq!(graph.stage, Stage::Placed);
    let record = records.iter().find(|r| r.pass == "prune-weights").unwrap();
    assert!(record.changed && record.approximations.len() > 4, "{record:?}");
    assert!(options::module_docs(passes[1].source()).starts_with("Sets weights"));
}
