//! The security level of every dimension that thex accepts, as data: `security/table.csv`, made by `security/estimate.py`.
//!
//! A dimension that is not in the table is refused, here and by the compiler, so nothing runs on an interpolated or
//! extrapolated level. Two independent sources stand behind a row: the noise is that of tfhe's curve, fitted by its authors to
//! the lattice estimator at 132 bits; the costs are our own estimate of two attacks under two cost models (the head of the script
//! says which, and what is not covered), which reproduces the estimator's published figures to a tenth of a bit.

use std::sync::LazyLock;

use crate::params::Parameters;

/// The least that any dimension of the table has, in bits; the table's script fails below it.
pub const LEAST_BITS: f64 = 128.0;

/// Where the levels come from, for people.
pub const SOURCE: &str = "table.csv, our estimate of usvp and dual hybrid under BDGL16 and MATZOV";

const TABLE: &str = include_str!("../security/table.csv");

/// One dimension and what it withstands. Secrets are binary, errors Gaussian, q = 2^64.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level {
    /// n or k·N.
    pub dimension: usize,
    /// log2 of the error's standard deviation, relative to the torus.
    pub sigma_log2: f64,
    /// log2 of the cost of the best attack that was estimated.
    pub bits: f64,
}

fn parse(line: &str) -> Option<Level> {
    let fields: Vec<&str> = line.split(',').collect();
    let number = |i: usize| fields.get(i)?.parse::<f64>().ok();
    Some(Level { dimension: fields.first()?.parse().ok()?, sigma_log2: number(1)?, bits: number(7)? })
}

static LEVELS: LazyLock<Vec<Level>> = LazyLock::new(|| TABLE.lines().filter_map(parse).collect());

/// All rows, by ascending dimension.
#[must_use]
pub fn levels() -> &'static [Level] {
    &LEVELS
}

/// The row of a dimension.
#[must_use]
pub fn level(dimension: usize) -> Option<Level> {
    let at = LEVELS.binary_search_by_key(&dimension, |l| l.dimension).ok()?;
    LEVELS.get(at).copied()
}

/// The estimated level of a parameter set: the lesser of its two dimensions'. `None` for dimensions outside the table.
#[must_use]
pub fn bits(parameters: &Parameters) -> Option<f64> {
    let small = level(parameters.lwe_dimension.0)?.bits;
    Some(small.min(level(parameters.big_lwe_dimension().0)?.bits))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::params::MODULUS_F64;
    use tfhe::core_crypto::commons::noise_formulas::secure_noise::minimal_lwe_variance_for_132_bits_security_gaussian;
    use tfhe::core_crypto::prelude::LweDimension;

    #[test]
    fn noise_of_the_table_is_that_of_tfhe_s_curve() {
        for level in levels() {
            let variance =
                minimal_lwe_variance_for_132_bits_security_gaussian(LweDimension(level.dimension), MODULUS_F64);
            let sigma_log2 = 0.5 * variance.0.log2();
            assert!((sigma_log2 - level.sigma_log2).abs() < 1e-4, "{level:?} {sigma_log2}");
        }
    }

    #[test]
    fn every_row_has_128_bits_and_rows_ascend() {
        assert!(levels().iter().all(|l| l.bits >= LEAST_BITS));
        assert!(levels().windows(2).all(|w| w[0].dimension < w[1].dimension));
        // 600..=1024, and the big dimensions that polynomials of 512 to 4096 coefficients make.
        assert_eq!(levels().len(), TABLE.lines().count() - 2);
        assert!((600..=1024).chain([1536, 2048, 3072, 4096, 6144, 8192]).all(|n| level(n).is_some()));
        assert!([0, 599, 1025, 2047, 16384].iter().all(|&n| level(n).is_none()));
    }

    #[test]
    fn a_set_is_as_strong_as_its_weaker_dimension() {
        let p = Parameters::standard();
        let (small, big) = (level(850).unwrap().bits, level(2048).unwrap().bits);
        assert!((bits(&p).unwrap() - small.min(big)).abs() < 1e-9);
    }
}
