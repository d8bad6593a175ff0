//! Look-up tables from functions and encodings.

use std::collections::BTreeMap;

use thex_circuit::{Encoding, Parameters};
use thex_ir::he::Domain;
use thex_ir::{LookUp, UnaryChain};
use thex_passes::lower::variate;

/// Tables laid end to end, equal ones once.
#[derive(Default)]
pub(super) struct TableSet {
    known: BTreeMap<Vec<u64>, u32>,
    pub(super) entries: Vec<i32>,
}

impl TableSet {
    /// The number of the table for `key`, made by `make` the first time.
    pub(super) fn get(&mut self, key: &[f64], make: impl FnOnce() -> Vec<i32>) -> u32 {
        let bits: Vec<u64> = key.iter().map(|v| v.to_bits()).collect();
        let next = self.known.len() as u32;
        *self.known.entry(bits).or_insert_with(|| {
            self.entries.extend(make());
            next
        })
    }
}

/// The value that table entry `j` stands for.
fn exact_value(j: usize, argument: &Encoding, (parameters, domain): Place<'_>) -> f64 {
    let phase = (j as f64 + 0.5) / (parameters.positions() << domain.extension) as f64;
    argument.offset + argument.scale * phase
}

/// The same, held inside the calibrated range.
fn entry_value(j: usize, argument: &Encoding, (lo, hi): (f64, f64), place: Place<'_>) -> f64 {
    exact_value(j, argument, place).clamp(lo, hi.max(lo))
}

/// The ring that a look-up turns in, and the domain of its arguments.
pub(super) type Place<'a> = (&'a Parameters, Domain);

/// An entry for each in the domain, in units of 2^-32 of the torus. Results are held inside their own calibrated range too: an exponential of an
/// argument at the end of its widened range would carry what reads it out of its domain. Over the full torus the table is that of the first half, as
/// the second half has the same with the other sign; nothing is held there, since what lies beyond the range on one side of it is within on the other.
pub(super) fn lookup_table(
    function: &LookUp,
    argument: &Encoding,
    range: (f64, f64),
    (output, (least, most)): (&Encoding, (f64, f64)),
    place: Place<'_>,
) -> Vec<i32> {
    let size = place.0.polynomial_size.0;
    let value = |j: usize| {
        if place.1.is_full(size) {
            return variate::mirrored(function, 0.5 * argument.scale, exact_value(j, argument, place));
        }
        function.apply(entry_value(j, argument, range, place)).clamp(least, most.max(least))
    };
    let entry = |j| ((value(j) - output.offset) / output.scale * 4_294_967_296.0).round() as i32;
    (0..place.1.entries(size)).map(entry).collect()
}

/// An integer for each entry of the domain: f(x)·scale(y)/scale(product).
pub(super) fn product_table(
    chain: &UnaryChain,
    argument: &Encoding,
    range: (f64, f64),
    gain: f64,
    place: Place<'_>,
) -> Vec<i32> {
    let entry = |j| (chain.apply(entry_value(j, argument, range, place)) * gain).round() as i32;
    (0..place.1.entries(place.0.polynomial_size.0)).map(entry).collect()
}
