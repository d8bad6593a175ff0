//! The noise that each instruction adds, by tfhe's own formulas.
//!
//! All figures are standard deviations or variances *relative to the torus* (the torus has length 1).
//! The formulas are those of `tfhe::core_crypto::commons::noise_formulas` (generated from the
//! analysis of Bergerat et al., "Parameter Optimization & Larger Precision for (T)FHE", J. Cryptology
//! 2023); nothing is rewritten here, only composed:
//!
//! * a look-up's *argument* carries keyswitch and modulus-switch noise (`argument`);
//! * its *output* carries blind-rotation noise (`bootstrap`), whatever the input's noise was;
//! * a packed slot carries the input's noise and packing noise (`packing_slot`), and every other
//!   coefficient of the GLWE packing noise alone;
//! * a `lut_product` with table P adds, to each product, `|P(x)|·ε_y` from the packed operand,
//!   `σ_pack·√m·‖P‖₂` from the coefficients between the slots, and a fresh `bootstrap`.

use tfhe::core_crypto::commons::noise_formulas::centered_mean_shifted_modulus_switch::centered_binary_shifted_modulus_switch_additive_variance;
use tfhe::core_crypto::commons::noise_formulas::lwe_keyswitch::keyswitch_additive_variance_132_bits_security_gaussian;
use tfhe::core_crypto::commons::noise_formulas::lwe_packing_keyswitch::packing_keyswitch_additive_variance_132_bits_security_gaussian;
use tfhe::core_crypto::commons::noise_formulas::lwe_programmable_bootstrap::pbs_variance_132_bits_security_gaussian_fft_mul;

use crate::instruction::MAX_EXTENSION;
use crate::params::{MODULUS_F64, Parameters};

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
            bootstrap: pbs_variance_132_bits_security_gaussian_fft_mul(
                parameters.lwe_dimension,
                parameters.glwe_dimension,
                parameters.polynomial_size,
                parameters.bootstrap.base_log,
                parameters.bootstrap.level,
                FFT_MANTISSA_BITS,
                MODULUS_F64,
            )
            .0,
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
        }
    }
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
        assert!((log2_sd(noise.bootstrap) + 22.19).abs() < 0.02);
        assert!((log2_sd(noise.packing) + 31.65).abs() < 0.02);
    }
}
