//! Which rank computes which units of a batch: contiguous ranges in order of rank, by cost and by threads.

use std::ops::Range;

/// Cuts units into one range for each rank, with costs that are as the ranks' threads. Unit i begins at cost `before[i]` and ends at
/// `before[i + 1]`; a unit goes to the rank that has its middle.
pub(crate) fn by_cost(before: &[u64], threads: &[usize]) -> Vec<Range<usize>> {
    let units = before.len().saturating_sub(1);
    let (first, last) = (before.first().copied().unwrap_or(0), before.last().copied().unwrap_or(0));
    let whole = u128::from(last - first);
    let all = threads.iter().sum::<usize>().max(1) as u128;
    let middle = |unit: usize| (u128::from(before[unit] - first) + u128::from(before[unit + 1] - first)) * all;
    let (mut threads_before, mut start) = (0, 0);
    let mut ranges = Vec::with_capacity(threads.len());
    for &own in threads {
        threads_before += own as u128;
        let mut end = start;
        while end < units && middle(end) <= 2 * whole * threads_before {
            end += 1;
        }
        ranges.push(start..end);
        start = end;
    }
    ranges
}

/// `before` for so many units of equal cost.
pub(crate) fn equal(units: usize) -> Vec<u64> {
    (0..=units as u64).collect()
}

/// Cuts a batch into rounds of equal cost, of which the whole of one is at most `capacity`: while one is sent, the next is computed.
pub(crate) fn rounds(before: &[u64], capacity: u64) -> Vec<Range<usize>> {
    let whole = before.last().copied().unwrap_or(0);
    by_cost(before, &vec![1; whole.div_ceil(capacity.max(1)).max(1) as usize])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::single_range_in_vec_init, reason = "one rank has one range")]
    use super::*;

    #[test]
    fn units_go_by_cost_and_threads() {
        assert_eq!(by_cost(&equal(5), &[1, 1]), [0..3, 3..5]);
        assert_eq!(by_cost(&equal(12), &[2, 1, 1]), [0..6, 6..9, 9..12]);
        assert_eq!(by_cost(&equal(1), &[1, 1, 1]), [0..0, 0..1, 1..1]);
        assert_eq!(by_cost(&equal(0), &[1, 1]), [0..0, 0..0]);
        // One unit costs as much as all others.
        assert_eq!(by_cost(&[0, 4, 5, 6, 7, 8], &[1, 1]), [0..1, 1..5]);
        // Units that cost nothing still have somebody.
        assert_eq!(by_cost(&[0, 0, 0], &[1, 1]), [0..2, 2..2]);
    }

    #[test]
    fn rounds_hold_no_more_than_they_can() {
        assert_eq!(rounds(&equal(10), 10), [0..10]);
        assert_eq!(rounds(&equal(11), 10), [0..6, 6..11]);
        assert_eq!(rounds(&equal(0), 10), [0..0]);
    }
}
