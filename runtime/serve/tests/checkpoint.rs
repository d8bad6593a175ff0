//! Runs that are killed, stopped and sabotaged, and go on: the result is always the same, byte for byte.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "tests")]

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use common::{INPUTS, LAYERS, bundle, circuit};
use thex_circuit::instruction::{Block, Linear, Provenance};
use thex_circuit::{Circuit, Instruction, Parameters};
use thex_runtime::progress::{Progress, Resumed, Silent};
use thex_runtime::{
    Checkpoint, CpuBackend, EncryptedInputs, Executor, Identity, Prediction, Run, RunOptions, RuntimeError, client,
    keys,
};

struct Work {
    folder: tempfile::TempDir,
    circuit: Circuit,
    input: EncryptedInputs,
    identity: Identity,
    backend: CpuBackend,
    /// What an uninterrupted run gives.
    result: Vec<u64>,
}

impl Work {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn inputs(&self) -> Vec<u64> {
        self.input.expand(&self.circuit.parameters).unwrap()
    }
}

static WORK: LazyLock<Work> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let circuit = circuit();
    let bytes = circuit.to_bytes().unwrap();
    std::fs::write(folder.path().join("m.circuit"), &bytes).unwrap();
    let digest = thex_circuit::file::digest(&bytes);
    let bundle = bundle(&digest);
    let (client, server) = keys::generate(&bundle, Some(5)).unwrap();
    server.save(&folder.path().join("server.key")).unwrap();
    let x = ndarray::ArrayD::from_shape_fn(vec![INPUTS as usize], |i| i[0] as f64 / 8.0 - 0.5);
    let (input, _) = client::encrypt(&bundle, &client, &[("x".into(), x)]).unwrap();
    input.save(&folder.path().join("in.ct")).unwrap();
    let identity = Identity { circuit: digest, key: server.digest(), input: input.digest() };
    let backend = CpuBackend::new(server.expand());
    let inputs = input.expand(&circuit.parameters).unwrap();
    let result = Executor::new(&circuit, &backend).unwrap().run(&inputs, &Silent).unwrap();
    Work { folder, circuit, input, identity, backend, result }
});

/// Stops a run after so many blind rotations, and notes what is kept and resumed.
#[derive(Default)]
struct Stopper {
    after: u64,
    done: AtomicU64,
    stop: AtomicBool,
    kept: AtomicU64,
    resumed: Mutex<Vec<Resumed>>,
}

impl Progress for Stopper {
    fn step(&self, _name: &str, _total: u64) {}
    fn advance(&self, count: u64) {
        if self.done.fetch_add(count, Ordering::SeqCst) + count >= self.after {
            self.stop.store(true, Ordering::SeqCst);
        }
    }
    fn resumed(&self, resumed: &Resumed) {
        self.resumed.lock().unwrap().push(resumed.clone());
    }
    fn kept(&self, _done: u64, _bytes: u64) {
        self.kept.fetch_add(1, Ordering::SeqCst);
    }
}

/// Goes on with what a folder has, in short parts, up to the end or until it is stopped.
fn go_on(folder: &Path, stopper: &Stopper) -> thex_runtime::Result<Vec<u64>> {
    let work = &*WORK;
    let executor = Executor::new(&work.circuit, &work.backend)?;
    let checkpoint = Checkpoint::open(folder, work.identity.clone(), Duration::ZERO)?;
    let options = RunOptions {
        stop: Some(&stopper.stop),
        checkpoint: Some(checkpoint),
        part: Duration::from_millis(1),
        ..RunOptions::new(stopper)
    };
    let mut run = Run::new(&executor, &work.inputs(), options)?;
    let outputs = run.complete()?;
    run.discard_checkpoint()?;
    Ok(outputs)
}

fn one_thread<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(f)
}

/// A folder with the checkpoint of a run that was stopped after some rotations.
fn stopped(after: u64) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let error = one_thread(|| go_on(folder.path(), &Stopper { after, ..Stopper::default() })).unwrap_err();
    assert!(matches!(error, RuntimeError::Stopped { done, .. } if done >= after), "{error}");
    assert_eq!(error.kind().exit_status(), 75);
    folder
}

/// Numbers of the files of a kind, ascending.
fn numbered(folder: &Path, kind: &str) -> Vec<PathBuf> {
    let names = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    names.filter(|p| p.extension().is_some_and(|e| e == kind)).collect::<BTreeSet<_>>().into_iter().collect()
}

#[test]
fn a_run_that_is_stopped_again_and_again_ends_with_the_same_bytes() {
    let work = &*WORK;
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("kept");
    let mut stops = 0;
    let result = loop {
        let stopper = Stopper { after: 1, ..Stopper::default() };
        match one_thread(|| go_on(&kept, &stopper)) {
            Ok(result) => break result,
            Err(RuntimeError::Stopped { .. }) => stops += 1,
            Err(error) => panic!("{error}"),
        }
        let resumed = stopper.resumed.lock().unwrap();
        assert_eq!(resumed.is_empty(), stops == 1, "{resumed:?}");
        assert!(resumed.iter().all(|r| r.damaged.is_empty()), "{resumed:?}");
        assert!(numbered(&kept, "state").len() <= 2);
    };
    // 16 rotations at a time: 3 parts of look-ups a layer, and one of products. The last one is followed by nothing to stop.
    assert_eq!(stops, 4 * LAYERS - 1);
    assert!(result == work.result, "the result differs");
    assert!(!kept.exists(), "the checkpoint is left behind");
}

#[test]
fn threads_and_parts_change_no_bit() {
    let work = &*WORK;
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let run = || Executor::new(&work.circuit, &work.backend).unwrap().run(&work.inputs(), &Silent).unwrap();
        assert!(pool.install(run) == work.result, "{threads} threads");
    }
}

fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(path, bytes).unwrap();
}

fn truncate(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    std::fs::write(path, &bytes[..bytes.len() / 3]).unwrap();
}

/// Finishes a sabotaged run; returns what it started from.
fn finish(folder: &Path) -> Resumed {
    let stopper = Stopper { after: u64::MAX, ..Stopper::default() };
    let result = go_on(folder, &stopper).unwrap();
    assert!(result == WORK.result, "the result differs");
    assert!(stopper.kept.load(Ordering::SeqCst) > 0);
    stopper.resumed.into_inner().unwrap().pop().unwrap_or_default()
}

#[test]
fn a_damaged_checkpoint_gives_way_to_the_one_before() {
    let full = finish(stopped(100).path()).done;
    assert!(full >= 96, "{full}");
    for damage in [flip, truncate, |path: &Path| std::fs::remove_file(path).unwrap()] {
        for kind in ["state", "part"] {
            let folder = stopped(100);
            damage(numbered(folder.path(), kind).last().unwrap());
            let resumed = finish(folder.path());
            // The state that is gone is missed by nobody: the one before is simply older.
            let told = usize::from(!(kind == "state" && resumed.damaged.is_empty()));
            assert!(resumed.done > 0 && resumed.done < full, "{kind}: {resumed:?}");
            assert_eq!(resumed.damaged.len(), told, "{kind}: {resumed:?}");
        }
    }
}

#[test]
fn a_checkpoint_of_which_nothing_is_left_is_told_and_started_anew() {
    for damage in [flip, truncate] {
        for kind in ["state", "part"] {
            let folder = stopped(60);
            numbered(folder.path(), kind).iter().for_each(|p| damage(p));
            let resumed = finish(folder.path());
            assert_eq!((resumed.done, resumed.damaged.len()), (0, 2), "{resumed:?}");
            assert!(resumed.damaged[0].contains(".state"), "{resumed:?}");
        }
    }
}

/// A state with a right digest that claims another place in the circuit, or blocks that are not there.
#[test]
fn a_forged_checkpoint_is_set_aside() {
    for (from, to) in
        [("\"instruction\":", "\"instruction\":9"), ("\"units\":", "\"units\":7"), ("\"words\":", "\"words\":9")]
    {
        let folder = stopped(60);
        for path in numbered(folder.path(), "state") {
            let text = String::from_utf8(std::fs::read(&path).unwrap()[72..].to_vec()).unwrap().replace(from, to);
            let sum = thex_circuit::file::digest(text.as_bytes());
            std::fs::write(&path, format!("thexckpt{sum}{text}")).unwrap();
        }
        assert_eq!(finish(folder.path()).done, 0, "{to}");
    }
}

#[test]
fn the_checkpoint_of_another_run_is_refused_and_kept() {
    let work = &*WORK;
    let folder = stopped(20);
    let before = numbered(folder.path(), "state");
    let other = |f: fn(&mut Identity)| {
        let mut identity = work.identity.clone();
        f(&mut identity);
        Checkpoint::open(folder.path(), identity, Duration::ZERO).err().unwrap().to_string()
    };
    for (error, what) in [
        (other(|i| i.circuit = "1".repeat(64)), "another circuit"),
        (other(|i| i.key = "1".repeat(64)), "another server key"),
        (other(|i| i.input = "1".repeat(64)), "another input"),
    ] {
        assert!(error.contains(what), "{error}");
    }
    assert_eq!(numbered(folder.path(), "state"), before);
    assert!(finish(folder.path()).done > 0);
}

#[test]
fn a_folder_is_for_one_run_at_a_time() {
    let work = &*WORK;
    let folder = tempfile::tempdir().unwrap();
    let open = || Checkpoint::open(folder.path(), work.identity.clone(), Duration::ZERO);
    let first = open().unwrap();
    assert!(open().err().unwrap().to_string().contains("another run is using it"));
    drop(first);
    open().unwrap();
}

/// The program, as it is called again and again.
fn arguments(checkpoint: &str, output: &str) -> Vec<String> {
    let work = &*WORK;
    let text = |name: &str| work.path(name).to_str().unwrap().to_owned();
    let paths =
        ["run".to_owned(), text("m.circuit"), "--key".into(), text("server.key"), "--input".into(), text("in.ct")];
    let kept = [
        "-o".into(),
        text(output),
        "--checkpoint".into(),
        text(checkpoint),
        "--checkpoint-every".into(),
        "0.02".into(),
        "--threads".into(),
        "1".into(),
    ];
    paths.into_iter().chain(kept).collect()
}

fn start(arguments: &[String]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thex-runtime"));
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn finish_process(arguments: &[String]) -> (Output, String) {
    let output = start(arguments).wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, text)
}

/// A state that comes after the first look-ups.
const LATE: &str = "thex-00000010.state";

/// Waits until a run has kept look-ups; false if it ended before.
fn wait_for_a_state(child: &mut Child, folder: &Path) -> bool {
    loop {
        if folder.exists()
            && numbered(folder, "state").last().is_some_and(|p| p.ends_with(LATE) || *p > folder.join(LATE))
        {
            return true;
        }
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Ten runs (or THEX_KILLS), each killed at another moment (from before its first checkpoint to near its end), and started again.
#[test]
fn killed_runs_go_on_and_end_with_the_same_bytes() {
    let work = &*WORK;
    let whole = arguments("whole", "whole.ct");
    let begin = Instant::now();
    assert!(finish_process(&whole).0.status.success());
    let span = begin.elapsed();
    let wanted = std::fs::read(work.path("whole.ct")).unwrap();
    let kills = std::env::var("THEX_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(10_u32);
    let mut resumed = 0;
    for i in 0..kills {
        let (folder, output) = (format!("killed{i}"), format!("killed{i}.ct"));
        let arguments = arguments(&folder, &output);
        let mut child = start(&arguments);
        if i % 2 == 0 {
            std::thread::sleep(span * (i + 1) / (kills + 1));
        } else if wait_for_a_state(&mut child, &work.path(&folder)) {
            std::thread::sleep(Duration::from_millis(u64::from(i % 10) * 37));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let (again, told) = finish_process(&arguments);
        assert!(again.status.success(), "{told}");
        resumed += u32::from(told.contains("resumed from the checkpoint"));
        assert!(std::fs::read(work.path(&output)).unwrap() == wanted, "kill {i}: the result differs");
        assert!(!work.path(&folder).exists(), "kill {i}: the checkpoint is left behind");
    }
    println!("{kills} kills, {resumed} of them after a checkpoint");
    assert!(resumed >= 3 * kills / 10, "only {resumed} of {kills} kills came after a checkpoint");
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_says_how_to_go_on() {
    let work = &*WORK;
    for signal in ["-INT", "-TERM"] {
        let arguments = arguments("interrupted", "interrupted.ct");
        let mut child = start(&arguments);
        assert!(wait_for_a_state(&mut child, &work.path("interrupted")));
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(75), "{text}");
        assert!(text.contains("TX0401") && text.contains("the same command goes on"), "{text}");
        assert!(!work.path("interrupted.ct").exists());
        let (again, told) = finish_process(&arguments);
        assert!(again.status.success() && told.contains("resumed from"), "{told}");
        std::fs::remove_file(work.path("interrupted.ct")).unwrap();
    }
}

/// No file may grow beyond 200 KB, as on a disk that is full: the first blocks of look-ups do not fit.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_ends_a_run_that_can_go_on() {
    let work = &*WORK;
    let arguments = arguments("full", "full.ct");
    let script = "trap '' XFSZ; ulimit -f 200; exec \"$0\" \"$@\"";
    let program = env!("CARGO_BIN_EXE_thex-runtime").to_owned();
    let output = Command::new("bash").args(["-c", script, &program]).args(&arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("TX0001") && text.contains("the same command goes on from the last one"), "{text}");
    assert!(!work.path("full.ct").exists());
    let (again, told) = finish_process(&arguments);
    assert!(again.status.success(), "{told}");
    let (_, lwes) = (told, std::fs::read(work.path("full.ct")).unwrap());
    let last: Vec<u8> = work.result.iter().flat_map(|w| w.to_le_bytes()).collect();
    assert!(lwes.ends_with(&last), "the result differs");
}

#[test]
fn what_cannot_work_is_refused_at_once() {
    let work = &*WORK;
    std::fs::write(work.path("file"), "no folder").unwrap();
    let (output, text) = finish_process(&arguments("file/kept", "refused.ct"));
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("keep checkpoints in"), "{text}");
    let mut small = arguments("small", "refused.ct");
    small.extend(["--memory".into(), "100MB".into()]);
    let begin = Instant::now();
    let (output, text) = finish_process(&small);
    assert_eq!(output.status.code(), Some(5), "{text}");
    assert!(text.contains("TX0202") && text.contains("100 MB that --memory allows"), "{text}");
    assert!(begin.elapsed() < Duration::from_secs(5) && !work.path("small").exists());
}

/// 8 ciphertexts become 40,000, which become one: memory for ciphertexts, and no time.
fn wide() -> Circuit {
    let linear = |dst: Block, outputs: u32, gather: std::ops::Range<u32>| {
        let (operands, entries) = (gather.len() as u32, outputs * gather.len() as u32);
        let (gather, set) = (gather.collect(), vec![0]);
        let weights = (0..entries as i32).map(|i| i % 5 - 2).collect();
        Instruction::Linear(Linear { dst, outputs, operands, gather, set, weights, bias: vec![0; outputs as usize] })
    };
    let (many, one) = (Block { start: INPUTS, len: 40_000 }, Block { start: INPUTS + 40_000, len: 1 });
    let circuit = Circuit {
        info: Default::default(),
        parameters: Parameters::standard(),
        inputs: vec![("x".into(), Block { start: 0, len: INPUTS })],
        outputs: vec![("y".into(), vec![one.start])],
        instructions: vec![linear(many, 40_000, 0..INPUTS), linear(one, 1, many.start..many.end())],
        provenance: vec![Provenance::default(); 2],
    };
    circuit.verify().unwrap();
    circuit
}

/// The peak of resident memory of a run of the program, in bytes.
#[cfg(target_os = "linux")]
fn peak(arguments: &[String]) -> u64 {
    let mut child = start(arguments);
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default();
        peak = peak.max(line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(child.wait().unwrap().success());
    peak
}

#[cfg(target_os = "linux")]
fn near(peak: u64, circuit: &Circuit, threads: usize) {
    let predicted = Prediction::new(circuit, threads).peak();
    let ratio = peak as f64 / predicted as f64;
    println!("measured {peak}, predicted {predicted}");
    assert!((0.85..1.05).contains(&ratio), "measured {peak}, predicted {predicted}");
}

/// One peak is that of expanding the keys, one that of ciphertexts.
#[cfg(target_os = "linux")]
#[test]
fn memory_is_predicted() {
    near(peak(&arguments("measured", "measured.ct")), &WORK.circuit, 1);
    let (folder, circuit) = (tempfile::tempdir().unwrap(), wide());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let bytes = circuit.to_bytes().unwrap();
    std::fs::write(path("w.circuit"), &bytes).unwrap();
    let bundle = bundle(&thex_circuit::file::digest(&bytes));
    let (client, server) = keys::generate(&bundle, Some(6)).unwrap();
    server.save(Path::new(&path("server.key"))).unwrap();
    let x = ndarray::ArrayD::zeros(vec![INPUTS as usize]);
    let (input, _) = client::encrypt(&bundle, &client, &[("x".into(), x)]).unwrap();
    input.save(Path::new(&path("in.ct"))).unwrap();
    let files = [path("w.circuit"), "--key".into(), path("server.key"), "--input".into(), path("in.ct")];
    let whole = [&["run".into()], &files[..], &["-o".into(), path("out.ct")]].concat();
    near(peak(&whole), &circuit, std::thread::available_parallelism().unwrap().get());
}
