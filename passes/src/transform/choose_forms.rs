//! Resolves `--approximate NODE=FORM` against the nodes of the model.
//!
//! It runs before anything is replaced, so that requests can use the names of the model's own nodes, and so that an encrypted mask is
//! bounded for the softmax that reads it. What the client computes in the clear is exact at no cost and not up for choice.

use thex_ir::Graph;

use super::client_work;
use crate::choice;
use crate::error::{PassError, Result};
use crate::pass::{Pass, PassCx};

/// See the module.
pub struct ChooseForms;

impl Pass for ChooseForms {
    fn name(&self) -> &'static str {
        "choose-forms"
    }

    fn description(&self) -> &'static str {
        "choose exact or approximated forms for the nodes that --approximate names"
    }

    fn source(&self) -> &'static str {
        include_str!("choose_forms.rs")
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<bool> {
        if !cx.approximate.is_empty() {
            cx.forms = choice::resolve(graph, &client_work(graph), &cx.approximate)
                .map_err(|(request, reason)| PassError::Choice { request, reason })?;
        }
        let notes: Vec<String> =
            cx.forms.iter().map(|(node, form)| format!("{node}: {} (--approximate)", form.name())).collect();
        cx.count("chosen", notes.len() as u64);
        notes.into_iter().for_each(|note| cx.note(note));
        Ok(false)
    }
}
