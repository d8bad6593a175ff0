//! Runs that `mpirun` shares among processes: the bytes of one process, whatever becomes of some of them.
//!
//! Skipped, saying so, where the program was built without the feature `mpi` or `mpirun` is not at hand; `.ci/mpi` has both.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests fail by panicking, and say what they skip")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use common::{INPUTS, bundle, circuit};
use thex_runtime::{client, keys};

const PROGRAM: &str = env!("CARGO_BIN_EXE_thex-runtime");

/// Within which the others are gone once a rank has died.
const SECONDS: Duration = Duration::from_secs(20);

struct Work {
    folder: tempfile::TempDir,
    /// The result file of a run that is not shared.
    result: Vec<u8>,
}

impl Work {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

static WORK: LazyLock<Work> = LazyLock::new(|| {
    let work = Work { folder: tempfile::tempdir().unwrap(), result: Vec::new() };
    let bytes = circuit().to_bytes().unwrap();
    std::fs::write(work.path("m.circuit"), &bytes).unwrap();
    let bundle = bundle(&thex_circuit::file::digest(&bytes));
    let value = |by: f64| ndarray::ArrayD::from_shape_fn(vec![INPUTS as usize], |i| i[0] as f64 / by - 0.5);
    for (seed, key, input) in [(5, "server.key", "in.ct"), (6, "other.key", "other.ct")] {
        let (client, server) = keys::generate(&bundle, Some(seed)).unwrap();
        server.save(&work.path(key)).unwrap();
        client::encrypt(&bundle, &client, &[("x".into(), value(8.0))]).unwrap().0.save(&work.path(input)).unwrap();
        if seed == 5 {
            let again = client::encrypt(&bundle, &client, &[("x".into(), value(9.0))]).unwrap().0;
            again.save(&work.path("again.ct")).unwrap();
        }
    }
    let out = work.path("alone.ct");
    let alone = Command::new(PROGRAM).args(run("m.circuit", "server.key", "in.ct", &out, &work)).output().unwrap();
    assert!(alone.status.success(), "{}", text(&alone));
    Work { result: std::fs::read(out).unwrap(), ..work }
});

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Arguments of a run by one thread.
fn run(circuit: &str, key: &str, input: &str, out: &Path, work: &Work) -> Vec<String> {
    let path = |name: &str| work.path(name).display().to_string();
    let words = ["run", &path(circuit), "--key", &path(key), "--input", &path(input), "-o", &out.display().to_string()];
    words.into_iter().chain(["--threads", "1"]).map(str::to_owned).collect()
}

/// `mpirun`; `None`, saying so, where it cannot be tried.
fn mpirun() -> Option<Command> {
    if !cfg!(feature = "mpi") {
        println!("skipped: built without the feature `mpi`");
        return None;
    }
    if Command::new("mpirun").arg("--version").output().is_err() {
        println!("skipped: there is no mpirun");
        return None;
    }
    let mut command = Command::new("mpirun");
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command.args(["--bind-to", "none", "--oversubscribe"]);
    Some(command)
}

/// So many ranks on one run.
fn ranks(ranks: usize, arguments: &[String]) -> Option<Command> {
    let mut command = mpirun()?;
    command.args(["-n", &ranks.to_string(), PROGRAM]).args(arguments);
    Some(command)
}

fn usual(out: &Path) -> Vec<String> {
    run("m.circuit", "server.key", "in.ct", out, &WORK)
}

fn kept(out: &Path, folder: &Path) -> Vec<String> {
    let more = ["--checkpoint", &folder.display().to_string(), "--checkpoint-every", "0.1"].map(str::to_owned);
    [usual(out), more.into()].concat()
}

#[test]
fn ranks_write_the_bytes_of_one_process() {
    for number in [1, 2, 4] {
        let out = WORK.path(&format!("out{number}.ct"));
        let Some(mut command) = ranks(number, &usual(&out)) else { return };
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        assert!(std::fs::read(&out).unwrap() == WORK.result, "{number} ranks");
        let told = text(&output);
        assert_eq!(told.matches("PBS on").count(), 1, "one rank speaks: {told}");
        assert!(told.contains(&format!("{number} ranks on one machine with {number} threads in all")), "{told}");
    }
}

/// State and parent of a process.
fn state(id: u32) -> Option<(String, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let mut words = stat.rsplit(')').next()?.split_whitespace();
    Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
}

/// Process ids of the ranks that `mpirun` started.
fn children(parent: u32) -> Vec<u32> {
    let ids = std::fs::read_dir("/proc").unwrap();
    let ids = ids.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut ids: Vec<u32> = ids.filter(|&id| state(id).is_some_and(|(_, of)| of == parent)).collect();
    ids.sort_unstable();
    ids
}

/// Whether a checkpoint has the first look-ups.
fn has_look_ups(folder: &Path) -> bool {
    let states = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut texts =
        states.filter(|p| p.extension().is_some_and(|e| e == "state")).filter_map(|p| std::fs::read(p).ok());
    let instruction = |text: &[u8]| {
        let text = String::from_utf8_lossy(text).into_owned();
        text.split("\"instruction\":").nth(1)?.split(',').next()?.parse::<u32>().ok()
    };
    texts.any(|text| instruction(&text).is_some_and(|at| at >= 3))
}

/// Starts ranks, and gives them once there is a checkpoint.
fn under_way(mut command: Command, folder: &Path) -> Child {
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while !has_look_ups(folder) {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it kept enough");
        assert!(start.elapsed() < Duration::from_secs(300), "no checkpoint");
        std::thread::sleep(Duration::from_millis(2));
    }
    child
}

fn signal(name: &str, id: u32) {
    assert!(Command::new("kill").args([name, &id.to_string()]).status().unwrap().success());
}

/// Ends, soon, and not well.
fn ends(child: Child) -> (Option<i32>, String) {
    let (start, ranks) = (Instant::now(), children(child.id()));
    let output = child.wait_with_output().unwrap();
    assert!(start.elapsed() < SECONDS, "{:?}: {}", start.elapsed(), text(&output));
    assert!(!output.status.success(), "{}", text(&output));
    // Those that nobody has asked after yet are dead too. `mpirun` may end a moment before those that it has killed.
    let alive = |id: &&u32| state(**id).is_some_and(|(state, _)| state != "Z");
    while let Some(left) = ranks.iter().find(alive) {
        assert!(start.elapsed() < SECONDS, "rank {left} of {ranks:?} is left");
        std::thread::sleep(Duration::from_millis(20));
    }
    (output.status.code(), text(&output))
}

/// The same bytes, from where the folder is, by `number` ranks or by one process.
fn goes_on(number: Option<usize>, out: &Path, folder: &Path) {
    let arguments = kept(out, folder);
    let mut command = match number {
        Some(number) => ranks(number, &arguments).unwrap(),
        None => Command::new(PROGRAM),
    };
    if number.is_none() {
        command.args(&arguments);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("resumed from the checkpoint at"), "{}", text(&output));
    assert!(std::fs::read(out).unwrap() == WORK.result, "{number:?} ranks");
    assert!(!folder.exists(), "the checkpoint is left behind");
}

#[test]
fn a_killed_rank_ends_all_and_any_number_goes_on() {
    for (number, then) in [(2, Some(3)), (3, Some(1)), (2, None)] {
        let folder = tempfile::tempdir().unwrap();
        let (out, kept_in) = (folder.path().join("out.ct"), folder.path().join("kept"));
        let Some(command) = ranks(number, &kept(&out, &kept_in)) else { return };
        let child = under_way(command, &kept_in);
        let last = *children(child.id()).last().unwrap();
        signal("-KILL", last);
        let (_, told) = ends(child);
        assert!(told.contains("signal 9"), "{told}");
        assert!(!out.exists());
        goes_on(then, &out, &kept_in);
    }
}

/// A signal to one rank, whichever.
#[test]
fn a_stopped_rank_stops_all_and_any_number_goes_on() {
    for (stopped, then) in [(0, None), (1, Some(3))] {
        let folder = tempfile::tempdir().unwrap();
        let (out, kept_in) = (folder.path().join("out.ct"), folder.path().join("kept"));
        let Some(command) = ranks(2, &kept(&out, &kept_in)) else { return };
        let child = under_way(command, &kept_in);
        signal("-TERM", children(child.id())[stopped]);
        let (status, told) = ends(child);
        assert_eq!(status, Some(75), "{told}");
        assert_eq!(told.matches("stopped on request after").count(), 1, "{told}");
        goes_on(then, &out, &kept_in);
    }
}

#[test]
fn a_checkpoint_that_cannot_be_written_ends_all() {
    let folder = tempfile::tempdir().unwrap();
    let (out, kept_in) = (folder.path().join("out.ct"), folder.path().join("kept"));
    let Some(command) = ranks(2, &kept(&out, &kept_in)) else { return };
    let child = under_way(command, &kept_in);
    // It may write between listing and removing.
    while std::fs::remove_dir_all(&kept_in).is_err() {}
    let (status, told) = ends(child);
    assert_eq!(status, Some(3), "{told}");
    assert!(told.contains("error[TX0001]: rank 0 on "), "{told}");
    assert!(!out.exists());
}

/// One rank has other arguments than the first, and another program if one is given.
fn refused(program: &str, arguments: &[String], status: i32, mentions: &[&str]) {
    let Some(mut command) = mpirun() else { return };
    let out = WORK.path("refused.ct");
    command.args(["-n", "2", PROGRAM]).args(usual(&out)).args([":", "-n", "1", program]).args(arguments);
    let start = Instant::now();
    let output = command.output().unwrap();
    let told = text(&output);
    assert!(start.elapsed() < SECONDS, "{told}");
    assert_eq!(output.status.code(), Some(status), "{told}");
    mentions.iter().for_each(|mention| assert!(told.contains(mention), "{mention}: {told}"));
    assert_eq!(
        told.matches("error[").count(),
        1 + usize::from(mentions[0].contains("cannot start")),
        "told once: {told}"
    );
    assert!(!out.exists());
}

#[test]
fn ranks_with_other_files_are_refused() {
    let out = WORK.path("refused.ct");
    let mut other = circuit();
    other.info.model = "other.onnx".into();
    let bytes = other.to_bytes().unwrap();
    std::fs::write(WORK.path("other.circuit"), &bytes).unwrap();
    let bundle = bundle(&thex_circuit::file::digest(&bytes));
    let (client, server) = keys::generate(&bundle, Some(5)).unwrap();
    server.save(&WORK.path("its.key")).unwrap();
    let value = ndarray::ArrayD::zeros(vec![INPUTS as usize]);
    client::encrypt(&bundle, &client, &[("x".into(), value)]).unwrap().0.save(&WORK.path("its.ct")).unwrap();
    let with = |circuit: &str, key: &str, input: &str| run(circuit, key, input, &out, &WORK);
    let same = "give all ranks the same file, on every machine";
    refused(PROGRAM, &with("other.circuit", "its.key", "its.ct"), 3, &["error[TX0003]", "the circuit of rank 0", same]);
    refused(
        PROGRAM,
        &with("m.circuit", "other.key", "other.ct"),
        3,
        &["the server key of rank 0", "that of rank 2", same],
    );
    refused(PROGRAM, &with("m.circuit", "server.key", "again.ct"), 3, &["the input of rank 0", same]);
    // What does not even belong together on one rank, and what is not there.
    let wrong = with("m.circuit", "other.key", "in.ct");
    refused(PROGRAM, &wrong, 4, &["cannot start", "error[TX0111]: rank 2 on ", "error[TX0003]"]);
    refused(PROGRAM, &with("none.circuit", "server.key", "in.ct"), 4, &["cannot start", "none.circuit"]);
}

/// The program with another version in it.
#[test]
fn ranks_of_another_version_are_refused() {
    let (ours, theirs) = (thex_runtime::ranks::start::VERSION, "thex 9.9.9, ranks 1");
    assert_eq!(ours.len(), theirs.len());
    let mut program = std::fs::read(PROGRAM).unwrap();
    let places: Vec<usize> =
        program.windows(ours.len()).enumerate().filter(|(_, w)| *w == ours.as_bytes()).map(|(at, _)| at).collect();
    places.iter().for_each(|&at| program[at..at + theirs.len()].copy_from_slice(theirs.as_bytes()));
    if cfg!(feature = "mpi") {
        assert!(!places.is_empty(), "the program says its version");
    }
    let path = WORK.path("other-thex");
    std::fs::copy(PROGRAM, &path).unwrap();
    std::fs::write(&path, program).unwrap();
    let mentions = ["the program of rank 0", "the other thex 9.9.9, ranks 1", "install the same version"];
    refused(&path.display().to_string(), &usual(&WORK.path("refused.ct")), 3, &mentions);
}

/// Without the feature, each of the processes would do the whole run.
#[test]
fn a_program_without_ranks_refuses_to_be_one_of_several() {
    if cfg!(feature = "mpi") {
        println!("skipped: built with the feature `mpi`");
        return;
    }
    let out = WORK.path("several.ct");
    let mut command = Command::new(PROGRAM);
    let output = command.args(usual(&out)).env("OMPI_COMM_WORLD_SIZE", "4").output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", text(&output));
    assert!(text(&output).contains("error[TX0111]: 4 processes were started together"), "{}", text(&output));
    assert!(!out.exists());
    let alone = Command::new(PROGRAM).args(usual(&out)).env("OMPI_COMM_WORLD_SIZE", "1").output().unwrap();
    assert!(alone.status.success() && std::fs::read(out).unwrap() == WORK.result, "{}", text(&alone));
}
