//! Whether what a command printed is what the guide shows.
//!
//! `…` stands for any text within a line, and as a line of its own for any number of lines. What differs from run to run and machine to
//! machine is not compared: numbers before a unit of time, memory or rate, digests and ids in hex, and the width of spaces.

const UNITS: &[&str] =
    &["s", "ms", "µs", "second", "seconds", "minutes", "h", "B", "kB", "MB", "GB", "KiB", "MiB", "GiB", "PBS/s"];

fn bare(word: &str) -> &str {
    word.trim_matches(|c: char| "()[]{}`,;:\"".contains(c)).trim_end_matches('.')
}

fn is_number(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_digit()) && word.chars().all(|c| c.is_ascii_digit() || ".,".contains(c))
}

fn is_digest(word: &str) -> bool {
    word.len() >= 12 && word.chars().all(|c| c.is_ascii_hexdigit()) && word.chars().any(|c| c.is_ascii_digit())
}

/// A line with single spaces, and `#` for what is not compared.
fn canonical(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let measured =
        |i: usize| words.get(i + 1).is_some_and(|next| UNITS.contains(&bare(next))) && is_number(bare(words[i]));
    let unit = |i: usize| i > 0 && measured(i - 1);
    let glued = |word: &str| {
        let digits = word.trim_end_matches(char::is_alphabetic);
        digits.len() < word.len() && is_number(digits) && UNITS.contains(&&word[digits.len()..])
    };
    let one = |i: usize| {
        let word = words[i];
        let hide = measured(i) || unit(i) || glued(bare(word)) || is_digest(bare(word));
        if hide { word.replace(bare(word), "#") } else { word.to_owned() }
    };
    (0..words.len()).map(one).collect::<Vec<_>>().join(" ")
}

/// Whether `line` is `pattern`, in which `…` is any text.
fn line_matches(pattern: &str, line: &str) -> bool {
    let (pattern, line) = (canonical(pattern), canonical(line));
    let Some((first, rest)) = pattern.split_once('…') else { return pattern == line };
    let Some(mut left) = line.strip_prefix(first.trim_end()) else { return false };
    let mut parts: Vec<&str> = rest.split('…').map(str::trim).collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        match left.find(part) {
            Some(at) => left = &left[at + part.len()..],
            None => return false,
        }
    }
    left.ends_with(last)
}

/// Whether `printed` is what `shown` shows.
pub fn matches(shown: &[String], printed: &[&str]) -> bool {
    match shown.split_first() {
        None => printed.is_empty(),
        Some((first, rest)) if first.trim() == "…" => (0..=printed.len()).any(|skip| matches(rest, &printed[skip..])),
        Some((first, rest)) => {
            printed.split_first().is_some_and(|(line, left)| line_matches(first, line) && matches(rest, left))
        }
    }
}

#[test]
fn what_must_agree_and_what_need_not() {
    let same = |shown: &str, printed: &str| {
        let shown: Vec<String> = shown.lines().map(str::to_owned).collect();
        matches(&shown, &printed.lines().collect::<Vec<_>>())
    };
    assert!(same("24 PBS in 5 seconds (5.4 s); result", "24 PBS in 1 second (0.9 s); result"));
    assert!(same("keys 65d1a87adda56284 in 3.4 s", "keys  2ea0392ba732a58d   in 20.9 s"));
    assert!(same("a\n…\nd", "a\nb\nc\nd") && same("a\n…\nd", "a\nd") && same("…", ""));
    assert!(same("server … 12 rows", "server key of 12 rows") && same("took 20ms", "took 7ms"));
    assert!(!same("24 PBS in 5 s", "25 PBS in 5 s") && !same("a\n…\nd", "a\nb"));
    assert!(!same("server … 12 rows", "server key of 13 rows") && !same("a", "a\nb") && !same("a\nb", "a"));
    assert!(!same("positive", "negative") && !same("… x", "y") && !same("5 s", "five s"));
}
