//! What `man` and `completions` write for a program, held against its own `--help`.

use std::path::Path;
use std::process::{Command, Stdio};

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The commands that `program PATH… --help` lists, and theirs, each as the words that call it.
fn commands(program: &str, path: &[String]) -> Vec<Vec<String>> {
    let arguments: Vec<&str> = path.iter().map(String::as_str).chain(["--help"]).collect();
    let help = run(program, &arguments);
    let listed = help.split("\nCommands:\n").nth(1).unwrap_or_default().split("\n\n").next().unwrap_or_default();
    let entry = |line: &str| line.strip_prefix("  ").filter(|l| !l.starts_with(' ')).map(first_word);
    let names: Vec<String> = listed.lines().filter_map(entry).filter(|name| name != "help").collect();
    let one = |name: String| {
        let command = [path, &[name]].concat();
        let below = commands(program, &command);
        [vec![command], below].concat()
    };
    names.into_iter().flat_map(one).collect()
}

fn first_word(text: &str) -> String {
    text.split_whitespace().next().unwrap_or_default().to_owned()
}

/// A page as `man` would show it, or where there is no `groff` its source without escapes, in single spaces.
fn rendered(page: &Path) -> String {
    let raw = std::fs::read_to_string(page).unwrap();
    // As `man` calls it, with all warnings and without overstrikes.
    let groff =
        Command::new("groff").args(["-K", "utf8", "-man", "-Tutf8", "-ww", "-P-c", "-P-b", "-P-u"]).arg(page).output();
    let text = match groff {
        Ok(output) => {
            let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success() && complaints.is_empty(), "{}: {complaints}", page.display());
            String::from_utf8(output.stdout).unwrap()
        }
        Err(_) => raw.replace("\\fB", "").replace("\\fI", "").replace("\\fR", "").replace('\\', ""),
    };
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Every command has a page, and there is no other; each says what it is the page of, and how the command is called.
pub fn pages(program: &str, name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let man1 = folder.path().join("man1");
    run(program, &["man", "-o", man1.to_str().unwrap()]);
    let mut wanted: Vec<Vec<String>> = vec![Vec::new()];
    wanted.extend(commands(program, &[]));
    assert!(wanted.len() > 10, "{wanted:?}");
    for command in &wanted {
        let called = [&[name.to_owned()][..], command].concat();
        let text = rendered(&man1.join(format!("{}.1", called.join("-"))));
        for part in ["NAME", "SYNOPSIS", &called.join(" "), "OPTIONS", "--help", env!("CARGO_PKG_VERSION")] {
            assert!(text.contains(part), "{called:?} does not mention {part:?}: {text}");
        }
    }
    assert_eq!(std::fs::read_dir(&man1).unwrap().count(), wanted.len());
    let predict = rendered(&man1.join(format!("{name}-client-predict.1")));
    assert!(predict.contains("--detach") && predict.contains("[default: keys]"), "{predict}");
}

/// Completions name every command and its options, and bash can read its own.
pub fn completions(program: &str) {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = run(program, &["completions", shell]);
        for command in commands(program, &[]) {
            assert!(script.contains(command.last().unwrap()), "{shell}: no {command:?}");
        }
        assert!(script.contains("checkpoint-every"), "{shell}: no option of run");
    }
    let mut bash = match Command::new("bash").arg("-n").stdin(Stdio::piped()).stderr(Stdio::piped()).spawn() {
        Ok(bash) => bash,
        Err(error) => return println!("bash is not here, so its completions were not read by it: {error}"),
    };
    let script = run(program, &["completions", "bash"]);
    std::io::Write::write_all(&mut bash.stdin.take().unwrap(), script.as_bytes()).unwrap();
    let output = bash.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What bash offers for the last of `words`, asked of the script itself.
pub fn offered(program: &str, name: &str, words: &[&str]) -> Option<Vec<String>> {
    let script = run(program, &["completions", "bash"]);
    let function = name.replace('-', "__");
    let all: Vec<String> = words.iter().map(|w| format!("'{w}'")).collect();
    let ask = format!(
        "{script}\nCOMP_WORDS=({})\nCOMP_CWORD={}\n_{function} {name} '{}' '{}'\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"",
        all.join(" "),
        words.len() - 1,
        words[words.len() - 1],
        words[words.len() - 2]
    );
    let output = Command::new("bash").args(["-c", &ask]).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).split_whitespace().map(str::to_owned).collect())
}
