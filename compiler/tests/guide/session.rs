//! A chapter's commands, run one after another by one shell, so that `cd`, variables and jobs in the background last.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::blocks;
use super::shown;

/// Longest time for a chapter, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(900);

/// Evaluates a command in this shell, keeps what it prints and its status, and ends the session if that is another than stated.
const STEP: &str = r#"
step() {
    eval "$(cat "$STEPS/$1.command")" > "$STEPS/$1.printed" 2>&1 < /dev/null
    status=$?
    echo "$status" > "$STEPS/$1.status"
    [ "$status" = "$2" ] || exit 1
}
"#;

/// A folder as the guide asks for: empty but for `tests`, and beside it the steps.
pub struct Session {
    folder: tempfile::TempDir,
}

impl Session {
    /// Makes the folder.
    pub fn new(repository: &Path) -> Self {
        let session = Self { folder: tempfile::tempdir().unwrap() };
        std::fs::create_dir(session.steps()).unwrap();
        std::fs::create_dir(session.work()).unwrap();
        for name in ["tests", "docs"] {
            std::os::unix::fs::symlink(repository.join(name), session.work().join(name)).unwrap();
        }
        session
    }

    fn steps(&self) -> PathBuf {
        self.folder.path().join("steps")
    }

    fn work(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    /// Runs the commands and panics at the first that ends or prints otherwise than the guide says.
    pub fn run(&self, chapter: &str, commands: &[blocks::Command], programs: &Path) {
        let mut script = STEP.to_owned();
        for (number, command) in commands.iter().enumerate() {
            std::fs::write(self.steps().join(format!("{number}.command")), &command.text).unwrap();
            script.push_str(&format!("step {number} {}\n", command.status));
        }
        let start = Instant::now();
        let mut shell = self.shell(&script, programs);
        while shell.try_wait().unwrap().is_none() && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(20));
        }
        end(&mut shell);
        for (number, command) in commands.iter().enumerate() {
            self.check(number, command, chapter);
        }
        println!("{chapter}: {} commands in {:.1} s", commands.len(), start.elapsed().as_secs_f64());
    }

    fn shell(&self, script: &str, programs: &Path) -> Child {
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(self.work()).stdin(Stdio::null());
        command.env("STEPS", self.steps()).env("PATH", path).env("HOME", self.work()).env("NO_COLOR", "1");
        for name in ["RUST_LOG", "THEX_TOKEN", "RUST_BACKTRACE"] {
            command.env_remove(name);
        }
        // A group of its own, so that what it left in the background can be ended.
        command.process_group(0).spawn().unwrap()
    }

    fn check(&self, number: usize, command: &blocks::Command, chapter: &str) {
        let read = |what: &str| std::fs::read_to_string(self.steps().join(format!("{number}.{what}")));
        let printed = read("printed").unwrap_or_default();
        let at = format!("{chapter}, block of line {}: `{}`", command.line, command.text);
        let status = read("status").unwrap_or_else(|_| panic!("{at} did not end; it printed\n{printed}"));
        assert_eq!(status.trim(), command.status.to_string(), "{at}: exit status; it printed\n{printed}");
        let lines: Vec<&str> = printed.lines().map(str::trim_end).collect();
        let lines: Vec<&str> = lines.iter().copied().skip_while(|l| l.is_empty()).collect();
        let last = lines.iter().rposition(|l| !l.is_empty()).map_or(0, |i| i + 1);
        let same = command.shown.is_empty() || shown::matches(&command.shown, &lines[..last]);
        assert!(same, "{at} shows\n{}\nbut it printed\n{printed}", command.shown.join("\n"));
    }
}

/// Ends the shell's group, whatever is left of it.
fn end(shell: &mut Child) {
    let group = format!("-{}", shell.id());
    let signal = |name: &str| Command::new("kill").args([name, "--", &group]).stderr(Stdio::null()).status().unwrap();
    // A service takes a moment to keep its jobs.
    if signal("-TERM").success() {
        let start = Instant::now();
        while signal("-0").success() && start.elapsed() < Duration::from_secs(10) {
            let _ = shell.try_wait();
            std::thread::sleep(Duration::from_millis(20));
        }
        signal("-KILL");
    }
    let _ = shell.wait();
}
