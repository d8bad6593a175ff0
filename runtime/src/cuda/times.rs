//! Where the time of a run on the GPU went.

use std::fmt::{Display, Formatter};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use thex_circuit::Instruction;

/// Mnemonics, in the order of the sums.
const KINDS: [&str; 5] = ["linear", "keyswitch", "pbs", "pack", "lut_product"];

/// Nanoseconds and elements by kind of instruction, from launch to end.
#[derive(Default)]
pub struct Times {
    nanoseconds: [AtomicU64; 5],
    elements: [AtomicU64; 5],
}

impl Times {
    pub(super) fn add(&self, instruction: &Instruction, time: Duration) {
        let Some(kind) = KINDS.iter().position(|k| *k == instruction.mnemonic()) else { return };
        let elements = instruction.pbs_count()
            + instruction.pack_count()
            + instruction.keyswitch_count()
            + instruction.multiply_adds();
        self.nanoseconds[kind].fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
        self.elements[kind].fetch_add(elements, Ordering::Relaxed);
    }
}

impl Display for Times {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        for (i, kind) in KINDS.iter().enumerate() {
            let seconds = self.nanoseconds[i].load(Ordering::Relaxed) as f64 / 1e9;
            let elements = self.elements[i].load(Ordering::Relaxed);
            let separator = if i == 0 { "" } else { "; " };
            write!(f, "{separator}{kind} {seconds:.3} s for {elements}")?;
        }
        Ok(())
    }
}
