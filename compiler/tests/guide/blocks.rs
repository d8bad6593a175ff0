//! Chapters taken apart: fenced blocks, their commands, links.

use std::path::Path;

/// A fenced block of a chapter.
#[derive(Clone, Debug)]
pub struct Block {
    /// What follows the opening fence.
    pub info: String,
    /// Line of the opening fence, from 1.
    pub line: usize,
    /// Its lines.
    pub text: Vec<String>,
}

/// A command of a `console` block.
#[derive(Clone, Debug)]
pub struct Command {
    /// For the shell; several lines where the block continues them with `\`.
    pub text: String,
    /// What the block shows of its output, by lines; nothing if it shows none.
    pub shown: Vec<String>,
    /// Exit status that the block states, else 0.
    pub status: i32,
    /// What it needs besides thex.
    pub needs: Option<String>,
    /// Line of the block in its chapter.
    pub line: usize,
}

/// All fenced blocks, in order.
pub fn blocks(chapter: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut open = false;
    for (number, line) in chapter.lines().enumerate() {
        match (line.trim_start().strip_prefix("```"), open) {
            (Some(info), false) => {
                blocks.push(Block { info: info.trim().to_owned(), line: number + 1, text: Vec::new() });
                open = true;
            }
            (Some(_), true) => open = false,
            (None, true) => blocks.last_mut().unwrap().text.push(line.to_owned()),
            (None, false) => {}
        }
    }
    assert!(!open, "the last block is not closed");
    blocks
}

/// Value of `key=` in an info string.
pub fn attribute(info: &str, key: &str) -> Option<String> {
    info.split(',').find_map(|part| part.strip_prefix(key)?.strip_prefix('=')).map(str::to_owned)
}

/// Commands of a `console` block: lines that start with `$ `, continued while they end with `\`, and their output.
pub fn commands(block: &Block) -> Vec<Command> {
    let (mut commands, mut continues): (Vec<Command>, bool) = (Vec::new(), false);
    let status = attribute(&block.info, "status").map_or(0, |s| s.parse().unwrap());
    for line in &block.text {
        if let Some(text) = line.strip_prefix("$ ") {
            let (text, shown) = (text.to_owned(), Vec::new());
            commands.push(Command { text, shown, status: 0, needs: attribute(&block.info, "needs"), line: block.line });
        } else {
            let command = commands.last_mut().expect("a console block starts with a command");
            if continues {
                command.text.push('\n');
                command.text.push_str(line);
            } else {
                command.shown.push(line.clone());
            }
        }
        continues = (continues || line.starts_with("$ ")) && line.ends_with('\\');
    }
    commands.last_mut().expect("a console block has a command").status = status;
    commands
}

/// Targets of links and pictures outside fenced blocks.
pub fn links(chapter: &str) -> Vec<String> {
    let mut open = false;
    let prose = chapter.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        open ^= fence;
        !open && !fence
    });
    let text = prose.collect::<Vec<_>>().join("\n");
    text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())).collect()
}

/// File and anchor of the one `{{#include …}}` that a block consists of.
pub fn included(block: &Block) -> Option<(String, Option<String>)> {
    let [line] = block.text.as_slice() else { return None };
    let target = line.strip_prefix("{{#include ")?.strip_suffix("}}")?;
    Some(target.split_once(':').map_or((target.to_owned(), None), |(f, a)| (f.to_owned(), Some(a.to_owned()))))
}

/// What a heading's link is called, as mdBook and GitHub make it.
pub fn anchors(chapter: &str) -> Vec<String> {
    let slug = |title: &str| {
        let kept = |c: char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
        title.trim().to_lowercase().chars().filter(|&c| kept(c)).collect::<String>().replace(' ', "-")
    };
    chapter.lines().filter(|l| l.starts_with('#')).map(|l| slug(l.trim_start_matches('#'))).collect()
}

/// Reads a file of the repository.
pub fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
