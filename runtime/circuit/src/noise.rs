//! The noise that each instruction adds, by tfhe's own formulas.
//!
//! All figures are standard deviations or variances *relative to the torus* (the torus has length 1).
//! The formulas are those of `tfhe::core_crypto::commons::noise_formulas` (generated from the
//! analysis of Bergerat et al., "Parameter Optimization & Larger Precision for (T)FHE", J. Cryptology
//! 2023), composed, but for one: blind rotations that take two key bits at once are none of tfhe's (see `bootstrap`). So:
//!
//! * a look-up's *argument* carries keyswitch and modulus-switch noise (`argument`);
//! * its *output* carries blind-rotation noise (`bootstrap`), whatever the input's noise was;
//! * a packed slot carries the input's noise and packing noise (`packing_slot`), and every other
//!   coefficient of the GLWE packing noise alone;
//! * a `lut_product` with table P adds, to each product, `|P(x)|·ε_y` from the packed operand,
//!   `σ_pack·√m·‖P‖₂` from the coefficients between the slots, and a fresh `bootstrap`;
//! * an `external_product` adds, for each product, `|P(x)|·ε_y`, `external` and `P(x)²·external_rounding`.

use tfhe::core_crypto::commons::noise_formulas::centered_mean_shifted_modulus_switch::centered_binary_shifted_modulus_switch_additive_variance;
use tfhe::core_crypto::commons::noise_formulas::lwe_keyswitch::keyswitch_additive_variance_132_bits_security_gaussian;
use tfhe::core_crypto::commons::noise_formulas::lwe_packing_keyswitch::packing_keyswitch_additive_variance_132_bits_security_gaussian;
use tfhe::core_crypto::commons::noise_formulas::lwe_programmable_bootstrap::pbs_variance_132_bits_security_gaussian_fft_mul;

use crate::external::{GADGET, SQUARE, TRACE};
use crate::instruction::MAX_EXTENSION;
use crate::params::{Decomposition, MODULUS_F64, Parameters};

/// Mantissa bits of the floating-point FFT that the blind rotation uses.
const FFT_MANTISSA_BITS: f64 = 53.0;

/// Noise of each instruction under one parameter set. Variances, torus-relative.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NoiseModel {
    /// Of a fresh encryption under the big key.
    pub fresh: f64,
    /// Added by a keyswitch to the small key.
    pub keyswitch: f64,
    /// Added by the centred binary modulus switch to 2N, or with extension ν to 2·2^ν·N: entry ν.
    pub modulus_switch: [f64; MAX_EXTENSION as usize + 1],
    /// Of a blind rotation's output.
    pub bootstrap: f64,
    /// Added by packing one LWE into a GLWE, on every coefficient.
    pub packing: f64,
    /// Added by the external product with a GGSW that was looked up: what the noise of its rows becomes.
    pub external: f64,
    /// Added by the same for every unit of the square of what it multiplies by: the rounding of the gadget.
    pub external_rounding: f64,
}

impl NoiseModel {
    /// The model for `parameters`.
    #[must_use]
    pub fn new(parameters: &Parameters) -> Self {
        let big = parameters.big_lwe_dimension();
        Self {
            fresh: parameters.big_noise().0,
            keyswitch: keyswitch_additive_variance_132_bits_security_gaussian(
                big,
                parameters.lwe_dimension,
                parameters.keyswitch.base_log,
                parameters.keyswitch.level,
                MODULUS_F64,
                MODULUS_F64,
            )
            .0,
            modulus_switch: std::array::from_fn(|extension| {
                centered_binary_shifted_modulus_switch_additive_variance(
                    parameters.lwe_dimension,
                    MODULUS_F64,
                    (parameters.positions() << extension) as f64,
                )
                .0
            }),
            bootstrap: bootstrap(parameters),
            packing: packing_keyswitch_additive_variance_132_bits_security_gaussian(
                big,
                parameters.glwe_dimension,
                parameters.polynomial_size,
                parameters.packing.base_log,
                parameters.packing.level,
                1.0,
                MODULUS_F64,
            )
            .0,
            external: external(parameters),
            external_rounding: rounding_of(GADGET, 1.0 + big.0 as f64 / 2.0),
        }
    }

    /// Variance that a look-up without extension adds to its argument: keyswitch and modulus switch.
    #[must_use]
    pub fn argument(&self) -> f64 {
        self.extended_argument(0)
    }

    /// Variance that a look-up of this extension (at most [`MAX_EXTENSION`]) adds to its argument.
    #[must_use]
    pub fn extended_argument(&self, extension: u32) -> f64 {
        self.keyswitch + self.modulus_switch[extension as usize]
    }

    /// The same model with no noise at all: the circuit's own integers, as `--mode clear` runs them.
    #[must_use]
    pub fn silent() -> Self {
        Self {
            fresh: 0.0,
            keyswitch: 0.0,
            modulus_switch: [0.0; MAX_EXTENSION as usize + 1],
            bootstrap: 0.0,
            packing: 0.0,
            external: 0.0,
            external_rounding: 0.0,
        }
    }
}

/// Variance of a blind rotation's output.
///
/// With a grouping factor of 2 (Joye and Paillier, "Blind Rotation in Fully Homomorphic Encryption with Extended Keys", CSCML 2022), a pair of bits
/// (s, t) with switched mask elements (a, b) adds `((X^a − 1)·S + (X^b − 1)·T + (X^a − 1)(X^b − 1)·ST)` times the accumulator, where S, T and ST
/// encrypt s, t and st. Of the terms of tfhe's formula for bits one by one, which are all linear in n,
///
/// * the noise of the key comes 2 + 2 + 4 times a pair, in place of 1 + 1, since ‖X^a − 1‖² = 2;
/// * the rounding of the decomposition, whose error is multiplied by X^e − 1 unless both bits are 0, comes ¾·2 times in place of ½ + ½;
/// * the rounding of the transform goes with what is transformed, as the key's noise does; [`ROUNDING_OF_PAIRS`] is measured.
fn bootstrap(p: &Parameters) -> f64 {
    let plain = |mantissa: f64| {
        pbs_variance_132_bits_security_gaussian_fft_mul(
            p.lwe_dimension,
            p.glwe_dimension,
            p.polynomial_size,
            p.bootstrap.base_log,
            p.bootstrap.level,
            mantissa,
            MODULUS_F64,
        )
        .0
    };
    let all = plain(FFT_MANTISSA_BITS);
    if p.grouping_factor.0 == 1 {
        return all;
    }
    // One bit more in the mantissa is a quarter of the transform's variance.
    let transform = (all - plain(FFT_MANTISSA_BITS + 1.0)) * 4.0 / 3.0;
    let decomposition = decomposition_rounding(p);
    let key = all - transform - decomposition;
    4.0 * key + 1.5 * decomposition + ROUNDING_OF_PAIRS * transform
}

/// Variance that an external product adds with a GGSW made by [`external`](crate::external), whatever it multiplies by.
///
/// For each level of the gadget, row b encrypts the message with an error e and row a the message times −s with the error −s·e + e′; e has the rotation's noise
/// and the trace's in its constant coefficient, and the trace's in all others. The digits of b − a·s multiply e, those of a multiply e′:
/// `ℓ·(B²/12)·((1 + N/2)·(ε² + τ₀² + Σ τ²) + N·κ²)` (Wang et al., EUROCRYPT 2024, section 4). What stage i of the trace adds, of variance η², the later ones
/// double in the constant coefficient: τ₀² = Σ_i 4^(log N − i)·η² ≈ N²η²/3. In others they clear it or add to it what is independent of it: those that stage v
/// clears have ≈ (N/2^(v − 1))·η² in the end, in all Σ τ² ≈ 2N²η²/3.
fn external(p: &Parameters) -> f64 {
    let size = p.polynomial_size.0 as f64;
    let key = p.big_noise().0;
    let stage = switch(TRACE, key, size, size / 2.0);
    // ‖s²‖² of a uniform binary key: its coefficients run linearly from −N/4 to N/4, give or take their own deviation.
    let square = switch(SQUARE, key, size, size.powi(3) / 48.0 + size * size / 4.0);
    let rows = bootstrap(p) + size * size * stage;
    GADGET.level.0 as f64 * digit(GADGET) * ((1.0 + size / 2.0) * rows + size * square)
}

/// Mean square of a digit.
fn digit(d: Decomposition) -> f64 {
    (2.0 * d.base_log.0 as f64).exp2() / 12.0
}

/// Variance of the rounding error of a decomposition, times what multiplies it.
fn rounding_of(d: Decomposition, norm: f64) -> f64 {
    (-2.0 * (d.base_log.0 * d.level.0) as f64).exp2() / 12.0 * norm
}

/// Variance that a keyswitch of a polynomial from a key of this square norm adds.
fn switch(d: Decomposition, key: f64, size: f64, norm: f64) -> f64 {
    d.level.0 as f64 * size * digit(d) * key + rounding_of(d, norm)
}

/// What the transform of a pair of bits adds, over what those of two single bits add.
const ROUNDING_OF_PAIRS: f64 = 6.5;

/// The part of a blind rotation's variance that is the rounding of what is decomposed: the last terms of tfhe's formula (half of the bits are 1;
/// a rounding error has variance B^-2l/12 in the body, and meets the kN/2 ones of the key, less their mean, in the mask).
fn decomposition_rounding(p: &Parameters) -> f64 {
    let bits = p.bootstrap.base_log.0 * p.bootstrap.level.0;
    let step = (-2.0 * bits as f64).exp2() / 24.0;
    let key = p.big_lwe_dimension().0 as f64 / 2.0;
    p.lwe_dimension.0 as f64 * step * (key + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_parameters_have_the_measured_noise() {
        let noise = NoiseModel::new(&Parameters::standard());
        let log2_sd = |variance: f64| 0.5 * variance.log2();
        assert!((log2_sd(noise.keyswitch) + 10.48).abs() < 0.02);
        assert!((log2_sd(noise.modulus_switch[0]) + 9.92).abs() < 0.02);
        assert!((log2_sd(noise.modulus_switch[2]) + 11.92).abs() < 0.02);
        assert!((log2_sd(noise.bootstrap) + 21.49).abs() < 0.02);
        let one_by_one = NoiseModel::new(&Parameters::standard().ungrouped());
        assert!((log2_sd(one_by_one.bootstrap) + 22.19).abs() < 0.02);
        assert!((log2_sd(noise.packing) + 31.65).abs() < 0.02);
    }

    #[test]
    fn external_products_have_the_noise_of_their_rotations() {
        let log2_sd = |variance: f64| 0.5 * variance.log2();
        for (base, level, deviation) in [(15, 2, -11.3), (12, 3, -14.4), (9, 4, -16.7)] {
            let p = Parameters { bootstrap: Decomposition::new(base, level), ..Parameters::standard() };
            let noise = NoiseModel::new(&p);
            println!(
                "{:.2} {:.2} {:.2}",
                log2_sd(noise.bootstrap),
                log2_sd(noise.external),
                log2_sd(noise.external_rounding)
            );
            assert!((log2_sd(noise.external) - deviation).abs() < 0.1, "{}", log2_sd(noise.external));
            // Without the conversion's own part, which is the lesser one.
            let levels = GADGET.level.0 as f64 * digit(GADGET) * (1.0 + p.polynomial_size.0 as f64 / 2.0);
            assert!(noise.external < 2.0 * levels * noise.bootstrap);
        }
    }

    #[test]
    fn rounding_of_the_decomposition_is_what_coarse_ones_consist_of() {
        for (base, level) in [(7, 2), (5, 3)] {
            let p = Parameters { bootstrap: Decomposition::new(base, level), ..Parameters::standard().ungrouped() };
            let ratio = decomposition_rounding(&p) / NoiseModel::new(&p).bootstrap;
            assert!((ratio - 1.0).abs() < 1e-3, "{ratio}");
            let pairs = NoiseModel::new(&Parameters { bootstrap: p.bootstrap, ..Parameters::standard() }).bootstrap
                / decomposition_rounding(&p);
            assert!((pairs - 1.5).abs() < 1e-2, "{pairs}");
        }
    }
}
