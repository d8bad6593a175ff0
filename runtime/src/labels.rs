//! Decrypted scores → the names of classes.
//!
//! A name is also the safer thing to share: raw scores leak something of the key to whoever collects enough of them.

use ndarray::{ArrayD, Axis};

use crate::client::Named;

/// The output that labels name: `logits`, else the last whose last axis has as many elements as there are labels.
///
/// Works on names and shapes, so that the compiler can check labels before there is any value.
#[must_use]
pub fn labelled<'a>(outputs: impl Iterator<Item = (&'a str, &'a [usize])>, labels: usize) -> Option<&'a str> {
    let fitting: Vec<&str> =
        outputs.filter(|(_, shape)| labels > 0 && shape.last() == Some(&labels)).map(|(name, _)| name).collect();
    fitting.iter().find(|name| **name == "logits").or(fitting.last()).copied()
}

/// The scores of one row, best first. Equal scores keep the order of the classes.
fn ranked(labels: &[String], scores: impl Iterator<Item = f64>) -> Vec<(&str, f64)> {
    let mut ranked: Vec<(&str, f64)> = labels.iter().map(String::as_str).zip(scores).collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    ranked
}

/// An output with class names.
pub struct Classified<'a> {
    /// Name of the output.
    pub output: &'a str,
    /// For each row of the output, the classes and their scores, best first.
    pub rows: Vec<Vec<(&'a str, f64)>>,
}

/// Names the classes of the labelled output; `None` without labels.
#[must_use]
pub fn classify<'a>(labels: &'a [String], outputs: &'a [Named]) -> Option<Classified<'a>> {
    let output = labelled(outputs.iter().map(|(name, value)| (name.as_str(), value.shape())), labels.len())?;
    let (_, value) = outputs.iter().find(|(name, _)| name == output)?;
    Some(Classified { output, rows: rows(labels, value) })
}

fn rows<'a>(labels: &'a [String], value: &ArrayD<f64>) -> Vec<Vec<(&'a str, f64)>> {
    let last = Axis(value.ndim().saturating_sub(1));
    value.lanes(last).into_iter().map(|lane| ranked(labels, lane.iter().copied())).collect()
}

/// Classes of a row, and rows, that are printed for people.
const SHOWN: usize = 10;

impl Classified<'_> {
    /// The winners: a string for one row, else a list.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        let winners: Vec<&str> = self.rows.iter().filter_map(|row| row.first()).map(|(label, _)| *label).collect();
        match winners[..] {
            [one] => one.into(),
            _ => winners.into(),
        }
    }

    /// The winner and a table of scores for one row; for many rows a line each.
    #[must_use]
    pub fn text(&self) -> String {
        let mut lines = match &self.rows[..] {
            [row] => table(row),
            rows => rows.iter().take(SHOWN).enumerate().filter_map(|(i, row)| line(i, row)).collect(),
        };
        if self.rows.len() > SHOWN {
            lines.push(format!("… ({} more; --json has all)", self.rows.len() - SHOWN));
        }
        lines.join("\n")
    }
}

fn line(i: usize, row: &[(&str, f64)]) -> Option<String> {
    row.first().map(|(label, score)| format!("{i}: {label} ({score:.3})"))
}

fn table(row: &[(&str, f64)]) -> Vec<String> {
    let width = row.iter().take(SHOWN).map(|(label, _)| label.chars().count()).max().unwrap_or(0);
    let winner = row.first().map(|(label, _)| (*label).to_owned());
    let scores = row.iter().take(SHOWN).map(|(label, score)| format!("  {label:<width$} {score:>9.3}"));
    let more = row.len().saturating_sub(SHOWN);
    let more = (more > 0).then(|| format!("  … ({more} more; --json has all)"));
    winner.into_iter().chain(scores).chain(more).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
    use super::*;
    use ndarray::{arr1, arr2};

    fn labels(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn logits_come_before_other_outputs() {
        let shapes: [(&str, &[usize]); 4] =
            [("logits", &[1, 2]), ("pooled", &[1, 8]), ("last", &[2]), ("hidden", &[1, 3, 4])];
        let pick = |count| labelled(shapes.iter().copied(), count);
        assert_eq!(pick(2), Some("logits"));
        assert_eq!(labelled(shapes[1..].iter().copied(), 2), Some("last"));
        assert_eq!((pick(4), pick(5), pick(0)), (Some("hidden"), None, None));
    }

    #[test]
    fn one_row_gives_a_label_and_a_table() {
        let outputs = [("logits".to_owned(), arr2(&[[-1.0, 2.5, 0.25]]).into_dyn())];
        let names = labels(&["no", "yes", "perhaps"]);
        let classified = classify(&names, &outputs).unwrap();
        assert_eq!(classified.json(), serde_json::json!("yes"));
        assert_eq!(classified.text(), "yes\n  yes         2.500\n  perhaps     0.250\n  no         -1.000");
        assert!(classify(&[], &outputs).is_none());
    }

    #[test]
    fn many_rows_give_a_label_each() {
        let outputs = [("tags".to_owned(), arr2(&[[1.0, 0.0], [0.0, 1.0]]).into_dyn())];
        let names = labels(&["noun", "verb"]);
        let classified = classify(&names, &outputs).unwrap();
        assert_eq!(classified.json(), serde_json::json!(["noun", "verb"]));
        assert_eq!(classified.text(), "0: noun (1.000)\n1: verb (1.000)");
    }

    #[test]
    fn many_classes_are_shortened_for_people() {
        let names: Vec<String> = (0..14).map(|i| format!("class {i}")).collect();
        let outputs = [("logits".to_owned(), arr1(&[0.0; 14]).into_dyn())];
        let text = classify(&names, &outputs).unwrap().text();
        assert!(text.starts_with("class 0\n") && text.ends_with("(4 more; --json has all)"), "{text}");
    }
}
