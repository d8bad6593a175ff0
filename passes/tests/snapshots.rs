//! The IR after every pass that changes it, for a small vision transformer in both profiles. What stands before a pass is
//! the snapshot of the pass before it.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "tests fail by panicking, and share a module")]

mod common;

use std::cell::RefCell;
use std::rc::Rc;

use common::{Shape, transformer};
use thex_passes::{PassCx, PassManager, Profile, registry};

fn snapshots(profile: Profile) {
    let (mut graph, samples) = transformer(Shape::TINY, 3, 16);
    let mut cx = PassCx::new(profile, samples);
    let stages = Rc::new(RefCell::new(vec![("input", thex_ir::print::print(&graph))]));
    let seen = stages.clone();
    let observer = move |pass: &'static str, graph: &thex_ir::Graph| {
        let text = thex_ir::print::print(graph);
        let mut seen = seen.borrow_mut();
        if seen.last().is_none_or(|(_, before)| *before != text) {
            seen.push((pass, text));
        }
    };
    let manager = PassManager { observer: Some(Box::new(observer)), ..PassManager::default() };
    manager.run(&registry::pipeline(), &mut graph, &mut cx).unwrap();
    for (number, (pass, text)) in stages.borrow().iter().enumerate() {
        insta::assert_snapshot!(format!("{}-{number:02}-{pass}", profile.name()), text);
    }
    insta::assert_snapshot!(format!("{}-approximations", profile.name()), cx.approximations.join("\n"));
}

#[test]
fn exact() {
    snapshots(Profile::Exact);
}

#[test]
fn the_x() {
    snapshots(Profile::TheX);
}
