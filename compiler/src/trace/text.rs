//! A trace for people.

use std::fmt::Write;

use super::{NodeTrace, Trace};

/// Names of ONNX nodes that are shown; the rest are counted.
const SHOWN_ORIGINS: usize = 2;

fn bits(bits: Option<f64>) -> String {
    bits.map_or_else(|| "-".to_owned(), |b| format!("{b:.2}"))
}

fn origins(names: &[String]) -> String {
    let shown = names.iter().take(SHOWN_ORIGINS).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN_ORIGINS) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

impl Trace {
    /// The table, and what it says.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = format!(
            "{} samples, {}. Errors in bits of the node's range (more is better); effects in units of the outputs.\n\n",
            self.samples, self.mode
        );
        out += "accumulated   local  modelled  outside    effect  elements  op           node  (ONNX)\n";
        self.nodes.iter().for_each(|node| out += &node.text());
        out + &self.findings()
    }

    fn findings(&self) -> String {
        let predicted = self.predicted_rms_error.map_or_else(String::new, |e| format!(" (noise model: {e:.4})"));
        let mut out = format!(
            "\nrms error of the outputs: the circuit's {:.4}{predicted}, the approximations' {:.4}\n",
            self.output_rms_error, self.approximation_rms_error
        );
        out += &match &self.first_departure {
            Some(name) => format!("first node that departs from its prediction: {name}\n"),
            None => "no node that matters departs from its prediction\n".to_owned(),
        };
        out += "nodes whose local errors move the outputs most:\n";
        for name in &self.largest_effects {
            let effect = self.nodes.iter().find(|n| n.name == *name).map_or(0.0, |n| n.effect);
            // Writing to a string cannot fail.
            let _ = writeln!(out, "  {effect:.4}  {name}");
        }
        out
    }
}

impl NodeTrace {
    fn text(&self) -> String {
        format!(
            "{:>11} {:>7} {:>8}{} {:>8} {:>9.4} {:>9}  {:<11}  {}  ({})\n",
            bits(self.accumulated_bits),
            bits(self.local_bits),
            bits(self.modelled_bits),
            if self.departs() { "!" } else { " " },
            self.outside,
            self.effect,
            self.elements,
            self.op,
            self.name,
            origins(&self.onnx),
        )
    }
}
