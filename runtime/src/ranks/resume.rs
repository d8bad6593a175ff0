//! A run that goes on from a checkpoint, on all ranks: rank 0 has read it and sends what is alive.

use super::{Exchange, broadcast};
use crate::checkpoint::{Position, alive, fill};
use crate::error::{Result, RuntimeError};
use crate::executor::{Backend, Executor};
use crate::state::State;

/// Takes rank 0's position, and its words into a state that has the inputs and nothing else and into those of the instruction at work.
pub(crate) fn share<B: Backend + ?Sized>(
    executor: &Executor<'_, B>,
    exchange: &dyn Exchange,
    own: Position,
    (state, partial): (&mut State, &mut Vec<u64>),
) -> Result<Position> {
    let root = exchange.rank() == 0;
    let words = if root { vec![own.instruction as u64, own.units as u64] } else { Vec::new() };
    let words = broadcast(exchange, words)?;
    let at = Position { instruction: words[0] as usize, units: words[1] as usize };
    if at == Position::default() {
        return Ok(at);
    }
    let (circuit, liveness) = (executor.circuit(), executor.liveness());
    let expected = alive(circuit, liveness, at)
        .ok_or_else(|| RuntimeError::Internal("rank 0 goes on at a place that the circuit does not have".into()))?;
    let mut arrived = std::collections::BTreeMap::new();
    for key in expected.into_keys() {
        let (space, number) = key;
        let block = if root { state.memory(space).blocks().get(number).unwrap_or(partial).clone() } else { Vec::new() };
        arrived.insert(key, broadcast(exchange, block)?);
    }
    if !root {
        fill(circuit, liveness, at, &mut arrived, state);
        *partial = arrived.into_values().next().unwrap_or_default();
    }
    Ok(at)
}
