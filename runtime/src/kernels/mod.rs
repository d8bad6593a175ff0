//! The six kernels on the processor, each on a batch and each using all threads of the current rayon pool.
//!
//! Keyswitch and packing keyswitch are matrix products (digits of a batch × key), so that a key of tens or
//! hundreds of megabytes streams from memory once for a batch and not once for a ciphertext; both are exact
//! and give bit for bit what tfhe's functions give. The blind rotation is tfhe's for key bits one by one, and ours for pairs of them, on
//! tfhe's transforms; external products are composed of that and of keyswitches of polynomials.

pub(crate) mod external;
pub(crate) mod linear;
pub(crate) mod matrix;
mod pairs;
pub(crate) mod rotate;
pub(crate) mod switch;

/// Length of the chunks in which `count` items are given to `threads`, at most `most` in each: all threads
/// finish at about the same time.
pub(crate) fn balanced_chunk(count: usize, threads: usize, most: usize) -> usize {
    let rounds = count.div_ceil(threads * most).max(1);
    count.div_ceil(rounds * threads).clamp(1, most)
}

#[cfg(test)]
mod tests {
    use super::balanced_chunk;

    #[test]
    fn chunks_are_even() {
        assert_eq!(balanced_chunk(32, 2, 16), 16);
        assert_eq!(balanced_chunk(33, 2, 16), 9);
        assert_eq!(balanced_chunk(5, 16, 16), 1);
        assert_eq!(balanced_chunk(0, 2, 16), 1);
        assert_eq!(balanced_chunk(100, 2, 16), 13);
    }
}
