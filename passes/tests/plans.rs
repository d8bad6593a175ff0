//! Where a pass has an alternative, both are planned, and the better plan is kept.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "tests fail by panicking, and share a module")]

mod common;

use std::sync::{Arc, Mutex};

use common::{Shape, transformer};
use thex_ir::Graph;
use thex_passes::error::Result;
use thex_passes::{Outlook, Pass, PassCx, PassManager, Profile, options, registry};

/// Notes which way it went, and has another.
struct Fork(&'static str);

impl Pass for Fork {
    fn name(&self) -> &'static str {
        "fork"
    }

    fn description(&self) -> &'static str {
        "goes left or right"
    }

    fn run(&self, _: &mut Graph, cx: &mut PassCx) -> Result<bool> {
        cx.note(self.0.to_owned());
        Ok(true)
    }

    fn alternative(&self, _: &Graph) -> Option<(Box<dyn Pass>, &'static str)> {
        (self.0 == "left").then(|| (Box::new(Self("right")) as Box<dyn Pass>, "right"))
    }
}

/// Counts how often it ran.
struct Between;

impl Pass for Between {
    fn name(&self) -> &'static str {
        "between"
    }

    fn description(&self) -> &'static str {
        "comes before the plan"
    }

    fn run(&self, _: &mut Graph, cx: &mut PassCx) -> Result<bool> {
        cx.count("ran", 1);
        Ok(false)
    }
}

/// Plans: (cost, error) on the left, and on the right.
struct Plan([(f64, f64); 2]);

impl Pass for Plan {
    fn name(&self) -> &'static str {
        "plan"
    }

    fn description(&self) -> &'static str {
        "tells what each way costs"
    }

    fn run(&self, _: &mut Graph, cx: &mut PassCx) -> Result<bool> {
        let (cost, error) = self.0[usize::from(cx.log.contains(&"right".to_owned()))];
        cx.outlook = Some(Outlook { cost, error, goal: 1.0 });
        Ok(false)
    }
}

/// Which way was kept, what the log says, the passes that were recorded, and the passes that an observer saw.
fn run(ways: [(f64, f64); 2], stop_after: Option<&str>) -> (String, Vec<String>, Vec<&'static str>, Vec<&'static str>) {
    let (mut graph, samples) = transformer(Shape::TINY, 1, 2);
    let mut cx = PassCx::new(Profile::Exact, samples);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let keep = seen.clone();
    let manager = PassManager {
        stop_after: stop_after.map(str::to_owned),
        observer: Some(Box::new(move |name, _| keep.lock().unwrap().push(name))),
        ..PassManager::default()
    };
    let passes: Vec<Box<dyn Pass>> =
        vec![Box::new(Between), Box::new(Fork("left")), Box::new(Between), Box::new(Plan(ways))];
    let records = manager.run(&passes, &mut graph, &mut cx).unwrap();
    let fork = &records[1];
    assert_eq!(fork.notes, cx.log);
    let seen = seen.lock().unwrap().clone();
    (fork.notes[0].clone(), fork.notes[1..].to_vec(), records.iter().map(|r| r.pass).collect(), seen)
}

#[test]
fn the_cheaper_plan_is_kept_where_both_keep_to_the_error() {
    let (way, notes, records, seen) = run([(2.0, 0.5), (3.0, 0.1)], None);
    assert_eq!(way, "left");
    assert_eq!(
        notes,
        [
            "right: rejected, a plan with 1.50 times the work and a modelled error of 0.1000 in place of 0.5000, of 1.0000 allowed"
        ]
    );
    assert_eq!(records, ["between", "fork", "between", "plan"]);
    assert_eq!(seen, records);

    let (way, notes, records, seen) = run([(2.0, 0.1), (1.0, 0.5)], None);
    assert_eq!(way, "right");
    assert_eq!(
        notes,
        [
            "right: kept, a plan with 0.50 times the work and a modelled error of 0.5000 in place of 0.1000, of 1.0000 allowed"
        ]
    );
    assert_eq!(records, ["between", "fork", "between", "plan"]);
    // Everything from the fork on is done again.
    assert_eq!(seen, ["between", "fork", "between", "fork", "between", "plan"]);
}

#[test]
fn a_plan_that_keeps_to_the_error_is_better_than_a_cheap_one() {
    assert_eq!(run([(1.0, 1.5), (3.0, 0.9)], None).0, "right");
    assert_eq!(run([(3.0, 0.9), (1.0, 1.5)], None).0, "left");
    // Neither keeps to it.
    assert_eq!(run([(1.0, 1.5), (3.0, 1.2)], None).0, "right");
    assert_eq!(run([(3.0, 1.2), (1.0, 1.5)], None).0, "left");
}

#[test]
fn who_stops_before_the_plan_sees_what_will_be_kept() {
    for stop in ["fork", "between"] {
        let stopped = run_to(stop);
        assert_eq!(stopped, "right", "{stop}");
    }
}

/// The way that is shown after the last pass of this name.
fn run_to(stop: &str) -> String {
    let (mut graph, samples) = transformer(Shape::TINY, 1, 2);
    let mut cx = PassCx::new(Profile::Exact, samples);
    let manager = PassManager { stop_after: Some(stop.to_owned()), ..PassManager::default() };
    let passes: Vec<Box<dyn Pass>> =
        vec![Box::new(Fork("left")), Box::new(Between), Box::new(Plan([(2.0, 0.5), (1.0, 0.5)]))];
    let records = manager.run(&passes, &mut graph, &mut cx).unwrap();
    assert_eq!(records.last().unwrap().pass, stop);
    records[0].notes[0].clone()
}

/// With real passes: no fixed choice has a better outlook than the one that was made.
#[test]
fn contexts_are_normalised_where_that_makes_the_better_circuit() {
    let outlook = |profile, settings: &[&str]| {
        let shape = Shape { tokens: 3, width: 16, heads: 2, class_token: false, ..Shape::TINY };
        let (mut graph, samples) = transformer(shape, 3, 64);
        let mut cx = PassCx::new(profile, samples);
        let mut passes = registry::pipeline();
        options::apply(&mut passes, &settings.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()).unwrap();
        let records = PassManager::default().run(&passes, &mut graph, &mut cx).unwrap();
        let notes = records.into_iter().find(|r| r.pass == "defer-normalization").unwrap().notes;
        (cx.outlook.unwrap(), notes.iter().any(|n| n.contains("a plan with")))
    };
    for profile in [Profile::Exact, Profile::TheX] {
        let (chosen, tried) = outlook(profile, &[]);
        assert!(tried, "the context has more elements than there are probabilities");
        let (never, tried) = outlook(profile, &["defer-normalization:most-extra=1"]);
        assert!(!tried && !never.is_better_than(&chosen), "{never:?} {chosen:?}");
    }
}
