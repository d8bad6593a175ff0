//! Widens the ranges of look-up arguments by the errors that reach them.
//!
//! Calibration sees real numbers; ciphertexts carry the errors of everything before them, and what these carry past the edge of its half torus
//! comes back with the wrong sign. A fixed margin is too much for most channels and too little for those that hardly vary. So the graph is
//! placed and simulated on calibration samples (by the [`Probe`] of the context), and every class of elements gets room for the errors
//! that it was seen to have, as far as its margin does not hold them already. What overflows spoils what follows it, so errors are
//! measured by a quantile, not by their squares, and measured again once the first ranges have grown.
//!
//! Alternative rejected: to propagate modelled variances. Errors of one token's channels come from the same sources, and what residual
//! connections add up is neither independent nor equal; the simulator knows.
//!
//! Without a probe, as when passes run by themselves, there is nothing to do.

use std::collections::BTreeMap;
use std::sync::Arc;

use thex_ir::graph::Ranges;
use thex_ir::he::Purpose;
use thex_ir::{Graph, HeOp, NodeId, Op};

use super::InsertRescale;
use crate::error::{PassError, Result};
use crate::options::PassOption;
use crate::pass::{Errors, Measured, Pass, PassCx};

/// See the module.
pub struct WidenForNoise {
    /// Standard deviations of the error that a range must have room for.
    pub deviations: f64,
    /// How often errors are measured.
    pub rounds: usize,
}

impl Default for WidenForNoise {
    fn default() -> Self {
        Self { deviations: 4.0, rounds: 2 }
    }
}

/// Part of a calibrated margin that is taken for errors; the rest stays for data beyond the calibration's.
const SHARED_MARGIN: f64 = 0.5;

/// Simulated over modelled output error from which on the model is not to be trusted: it is 1.0 to 1.5 for the digits and the BERTs, and 2.8 for
/// a circuit that errs by six times the model on held-out data.
const MISLEADING: f64 = 2.5;

/// Most that a range grows on each side in one round, in widths.
const MOST_GROWTH: f64 = 1.0;

impl Pass for WidenForNoise {
    fn name(&self) -> &'static str {
        "widen-for-noise"
    }

    fn description(&self) -> &'static str {
        "simulate the circuit on calibration data and widen ranges by the errors that reach them"
    }

    fn source(&self) -> &'static str {
        include_str!("widen_for_noise.rs")
    }

    fn options(&mut self) -> Vec<PassOption<'_>> {
        let deviations = "standard deviations of the error that a range must have room for";
        vec![
            PassOption::number("deviations", &mut self.deviations, 0.0..=12.0, deviations),
            PassOption::count("rounds", &mut self.rounds, 0..=8, "how often errors are measured"),
        ]
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<bool> {
        let Some(probe) = cx.probe.clone() else { return Ok(false) };
        let (mut grown, mut seen) = (0, None);
        for _ in 0..self.rounds {
            let (mut placed, mut scratch) = (graph.clone(), cx.clone());
            // Weights are rounded one by one here: together takes much longer, and changes errors little.
            let place = InsertRescale { nearest_plane: false, ..InsertRescale::default() };
            place.run(&mut placed, &mut scratch)?;
            let measured = probe.measure(&placed, &scratch).map_err(PassError::Invalid)?;
            let now = self.widen(graph, &measured.arguments, cx);
            cx.analysis = scratch.analysis.map(|a| Arc::new(a.with_widths_of(graph)));
            seen = scratch.predicted_output_error.map(|modelled| (measured, modelled));
            grown += now;
            if now == 0 {
                break;
            }
        }
        if let Some((Measured { outputs, samples, .. }, modelled)) = seen {
            tell(outputs, samples, modelled, cx);
        }
        cx.count("ranges", grown);
        Ok(grown > 0)
    }
}

/// Notes what the last simulation says of the outputs, and warns where that is not what the model says.
fn tell(simulated: f64, samples: usize, modelled: f64, cx: &mut PassCx) {
    cx.note(format!(
        "outputs err by {simulated:.4} rms in simulations of {samples} calibration samples, modelled {modelled:.4}"
    ));
    if simulated > MISLEADING * modelled {
        cx.note(format!(
            "warning: simulated outputs err {:.1} times as much as the noise model says: judge this circuit by `thex evaluate --mode simulate` on \
             data of your own, not by its modelled error; a smaller --output-error, or other forms of its functions, may help",
            simulated / modelled
        ));
    }
}

impl WidenForNoise {
    /// Returns how many ranges grew.
    fn widen(&self, graph: &mut Graph, errors: &Errors, cx: &mut PassCx) -> u64 {
        let mut grown = 0;
        for (&id, of_elements) in errors {
            let Op::He(HeOp::Linear { purpose: Purpose::Argument { .. }, .. }) = graph.node(id).op else { continue };
            let Some(ranges) = graph.node(id).facts.ranges.clone() else { continue };
            let (wider, count, most) = self.widened(&ranges, of_elements, cx.precision.margin);
            if count > 0 {
                cx.note(format!(
                    "{}: {count} of {} ranges widened for errors, at most {most:.2} times",
                    graph.node(id).name,
                    ranges.lo.len()
                ));
                graph.node_mut(id).facts.ranges = Some(Arc::new(wider));
                grown += count;
            }
        }
        copy_to_keyswitches(graph);
        grown
    }

    /// The ranges with room, how many grew, and by what factor at most.
    fn widened(&self, ranges: &Ranges, errors: &[Vec<f64>], margin: f64) -> (Ranges, u64, f64) {
        let mut of_class: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
        for (class, errors) in ranges.class.iter().zip(errors) {
            of_class.entry(*class).or_default().extend(errors.iter().map(|e| e.abs()));
        }
        let mut wider = ranges.clone();
        let (mut count, mut most) = (0, 1.0_f64);
        for (class, mut errors) in of_class {
            let c = class as usize;
            let width = ranges.hi[c] - ranges.lo[c];
            let slack = SHARED_MARGIN * margin / (1.0 + 2.0 * margin) * width;
            let lack = (self.deviations * deviation(&mut errors) - slack).clamp(0.0, MOST_GROWTH * width);
            if width > 0.0 && lack > 0.0 {
                wider.lo[c] -= lack;
                wider.hi[c] += lack;
                count += 1;
                most = most.max(1.0 + 2.0 * lack / width);
            }
        }
        (wider, count, most)
    }
}

/// Standard deviation of a normal distribution with the median of these magnitudes.
fn deviation(magnitudes: &mut [f64]) -> f64 {
    if magnitudes.is_empty() {
        return 0.0;
    }
    let middle = magnitudes.len() / 2;
    let (_, median, _) = magnitudes.select_nth_unstable_by(middle, f64::total_cmp);
    *median / 0.6745
}

/// Keyswitches have the ranges of the arguments that they gather.
fn copy_to_keyswitches(graph: &mut Graph) {
    let keyswitches: Vec<NodeId> =
        graph.ids().filter(|id| matches!(graph.node(*id).op, Op::He(HeOp::Keyswitch { .. }))).collect();
    for id in keyswitches {
        let Op::He(HeOp::Keyswitch { gather, .. }) = &graph.node(id).op else { continue };
        let operands = graph.operands(id);
        let of = |a: &thex_ir::Address| {
            let ranges = graph.node(operands[a.port as usize]).facts.ranges.as_ref();
            ranges.map_or((0.0, 0.0), |r| r.of(a.index as usize))
        };
        let ranges = super::insert_bootstraps::ranges_of(&gather.iter().map(of).collect::<Vec<_>>());
        graph.node_mut(id).facts.ranges = Some(Arc::new(ranges));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_grows_by_what_its_margin_lacks() {
        let ranges = Ranges { class: vec![0, 0, 1], lo: vec![0.0, -1.0], hi: vec![10.0, 1.0], rms: vec![5.0, 0.5] };
        // Median magnitude 0.6745·0.5 is a deviation of 0.5: four of them are 2, of which half a margin of 1 (0.1 of the width) is there.
        let half = 0.6745 * 0.5;
        let errors = vec![vec![half, -half], vec![half, half, 100.0], vec![0.0]];
        let (wider, count, most) = WidenForNoise::default().widened(&ranges, &errors, 0.125);
        assert_eq!(count, 1);
        assert!((wider.lo[0] + 1.5).abs() < 1e-9 && (wider.hi[0] - 11.5).abs() < 1e-9, "{wider:?}");
        assert!((most - 1.3).abs() < 1e-9);
        assert_eq!((wider.lo[1], wider.hi[1]), (-1.0, 1.0));
    }

    #[test]
    fn a_model_that_misleads_is_warned_of() {
        let told = |simulated| {
            let mut cx = PassCx::new(crate::Profile::Exact, Arc::default());
            tell(simulated, 16, 0.1, &mut cx);
            cx.log
        };
        assert_eq!(told(0.2), ["outputs err by 0.2000 rms in simulations of 16 calibration samples, modelled 0.1000"]);
        let [_, warning] = &told(0.3)[..] else { panic!("no warning") };
        assert!(warning.starts_with("warning: simulated outputs err 3.0 times as much"), "{warning}");
    }

    #[test]
    fn growth_is_bounded() {
        let ranges = Ranges { class: vec![0], lo: vec![0.0], hi: vec![1.0], rms: vec![1.0] };
        let (wider, ..) = WidenForNoise::default().widened(&ranges, &[vec![50.0; 3]], 0.125);
        assert_eq!((wider.lo[0], wider.hi[0]), (-1.0, 2.0));
    }
}
