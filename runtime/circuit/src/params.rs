//! Cryptographic parameters: one set for a circuit.
//!
//! Every LWE ciphertext of a circuit lives under the *big* key, the flattening of the GLWE key, of
//! dimension `k·N`. A keyswitch brings it to the *small* key of dimension `n`, whose binary key the
//! bootstrap key encrypts. All moduli are 2^64. Noises are not free: they are the least Gaussian noise
//! that tfhe's own curve (`minimal_lwe_variance_for_132_bits_security_gaussian`, fitted to the lattice
//! estimator at 132 bits) asks for at the dimension, so a parameter set cannot state a weaker one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tfhe::core_crypto::commons::noise_formulas::secure_noise::minimal_lwe_variance_for_132_bits_security_gaussian;
use tfhe::core_crypto::prelude::{
    CiphertextModulus, DecompositionBaseLog, DecompositionLevelCount, GlweDimension, LweBskGroupingFactor,
    LweDimension, PolynomialSize, Variance,
};

use crate::error::{CircuitError, Result};
use crate::external::key_rows;
use crate::security;

/// 2^64 as a float, the modulus that the noise formulas take.
pub const MODULUS_F64: f64 = 18_446_744_073_709_551_616.0;

/// The security level of tfhe's noise curve, in bits.
pub const SECURITY_BITS: u32 = 132;

/// No evaluation key may have more 64-bit words than this (4 GiB): a hostile file could ask for 63 levels of everything.
const MAX_KEY_WORDS: usize = 1 << 29;

/// Levels of a bootstrap that takes two key bits at once.
pub const MAX_GROUPED_LEVELS: usize = 4;

/// Base (log2) and levels of a gadget decomposition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decomposition {
    /// log2 of the base.
    pub base_log: DecompositionBaseLog,
    /// Number of levels.
    pub level: DecompositionLevelCount,
}

impl Decomposition {
    /// A decomposition in `level` digits of `base_log` bits.
    #[must_use]
    pub const fn new(base_log: usize, level: usize) -> Self {
        Self { base_log: DecompositionBaseLog(base_log), level: DecompositionLevelCount(level) }
    }
}

impl fmt::Display for Decomposition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.base_log.0, self.level.0)
    }
}

/// One set of TFHE parameters. As text, `n=850,k=1,N=2048,ks=3x5,bs=15x2,pk=12x3,gf=2`: dimensions, then log2 of the base and the levels of
/// keyswitch, bootstrap and packing, then the grouping factor, which is 1 where it is not said, and `ex=1` where there is a conversion key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameters {
    /// n: dimension of the small key.
    pub lwe_dimension: LweDimension,
    /// k: number of mask polynomials of a GLWE.
    pub glwe_dimension: GlweDimension,
    /// N: coefficients of a polynomial.
    pub polynomial_size: PolynomialSize,
    /// Keyswitch big → small.
    pub keyswitch: Decomposition,
    /// Blind rotation.
    pub bootstrap: Decomposition,
    /// Packing keyswitch, LWE under the big key → GLWE.
    pub packing: Decomposition,
    /// Bits of the small key that a blind rotation takes at once: 1 or 2. With 2, the bootstrap key has their products besides.
    #[serde(default = "one_by_one", skip_serializing_if = "is_one_by_one")]
    pub grouping_factor: LweBskGroupingFactor,
    /// Whether there is a [conversion key](crate::external), for products by external products.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub external: bool,
}

fn one_by_one() -> LweBskGroupingFactor {
    LweBskGroupingFactor(1)
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_one_by_one(factor: &LweBskGroupingFactor) -> bool {
    factor.0 == 1
}

impl Parameters {
    /// The set used where nothing else is asked for: n = 850, k = 1, N = 2048, two bootstrap levels, two key bits at once.
    ///
    /// Chosen in the measurements that the design starts from: LUT arguments keep about 8.2 bits of
    /// the half torus, outputs 22 bits, so linear maps between look-ups may gain about 2^12.
    #[must_use]
    pub fn standard() -> Self {
        Self {
            lwe_dimension: LweDimension(850),
            glwe_dimension: GlweDimension(1),
            polynomial_size: PolynomialSize(2048),
            keyswitch: Decomposition::new(3, 5),
            bootstrap: Decomposition::new(15, 2),
            packing: Decomposition::new(12, 3),
            grouping_factor: LweBskGroupingFactor(2),
            external: false,
        }
    }

    /// The same set with a conversion key, or without one.
    #[must_use]
    pub fn with_external(self, external: bool) -> Self {
        Self { external, ..self }
    }

    /// The same set with so many key bits taken at once.
    #[must_use]
    pub fn with_grouping(self, factor: usize) -> Self {
        Self { grouping_factor: LweBskGroupingFactor(factor), ..self }
    }

    /// The same set with key bits taken one by one.
    #[must_use]
    pub fn ungrouped(self) -> Self {
        self.with_grouping(1)
    }

    /// The same decompositions at other dimensions n, k and N.
    #[must_use]
    pub fn with_dimensions(self, n: usize, k: usize, size: usize) -> Self {
        Self {
            lwe_dimension: LweDimension(n),
            glwe_dimension: GlweDimension(k),
            polynomial_size: PolynomialSize(size),
            ..self
        }
    }

    /// Dimension k·N of the big key.
    #[must_use]
    pub fn big_lwe_dimension(&self) -> LweDimension {
        self.glwe_dimension.to_equivalent_lwe_dimension(self.polynomial_size)
    }

    /// Words of one LWE ciphertext under the big key.
    #[must_use]
    pub fn big_lwe_size(&self) -> usize {
        self.big_lwe_dimension().to_lwe_size().0
    }

    /// Words of one GLWE ciphertext.
    #[must_use]
    pub fn glwe_words(&self) -> usize {
        (self.glwe_dimension.0 + 1) * self.polynomial_size.0
    }

    /// Number of positions of a blind rotation, 2N.
    #[must_use]
    pub fn positions(&self) -> usize {
        2 * self.polynomial_size.0
    }

    /// Noise of a fresh encryption under the small key.
    #[must_use]
    pub fn small_noise(&self) -> Variance {
        minimal_lwe_variance_for_132_bits_security_gaussian(self.lwe_dimension, MODULUS_F64)
    }

    /// Noise of a fresh encryption under the big key (LWE or GLWE).
    #[must_use]
    pub fn big_noise(&self) -> Variance {
        minimal_lwe_variance_for_132_bits_security_gaussian(self.big_lwe_dimension(), MODULUS_F64)
    }

    /// The ciphertext modulus, 2^64.
    #[must_use]
    pub fn ciphertext_modulus(&self) -> CiphertextModulus<u64> {
        CiphertextModulus::new_native()
    }

    /// Whether blind rotations can take as many key bits at once as the grouping factor says.
    #[must_use]
    pub fn can_group(&self) -> bool {
        match self.grouping_factor.0 {
            1 => true,
            2 => {
                let (even, one) = (self.lwe_dimension.0.is_multiple_of(2), self.glwe_dimension.0 == 1);
                even && one && self.bootstrap.level.0 <= MAX_GROUPED_LEVELS
            }
            _ => false,
        }
    }

    /// Bits that the bootstrap key encrypts: those of the small key and, with a grouping factor of 2, the product of each pair of them.
    #[must_use]
    pub fn bootstrap_key_bits(&self) -> usize {
        let n = self.lwe_dimension.0;
        if self.grouping_factor.0 == 2 { n + n / 2 } else { n }
    }

    /// Words of the seeded keyswitch, bootstrap, packing and conversion keys.
    #[must_use]
    pub fn key_words(&self) -> [usize; 4] {
        let (big, glwe) = (self.big_lwe_dimension().0, self.glwe_words());
        let size = self.polynomial_size.0;
        [
            big * self.keyswitch.level.0,
            self.bootstrap_key_bits() * self.bootstrap.level.0 * glwe,
            big * self.packing.level.0 * size,
            if self.external { key_rows(size) * size } else { 0 },
        ]
    }

    /// Refuses parameters whose dimensions are not in the [table](crate::security), that tfhe cannot run, or whose keys would be
    /// huge. Everything that reads a circuit, bundle or key calls this, and so does the compiler before it writes one.
    ///
    /// # Errors
    /// [`CircuitError::Parameters`] names the offending quantity and its bounds.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(CircuitError::Parameters(what));
        let (n, k, size) = (self.lwe_dimension.0, self.glwe_dimension.0, self.polynomial_size.0);
        if n > 1024 || security::level(n).is_none_or(|l| l.bits < security::LEAST_BITS) {
            return refuse(format!(
                "small LWE dimension {n} is not in the table of dimensions with 128 bits (600 to 1024)"
            ));
        }
        // Bounds first, so that no product overflows.
        let small_enough = size.is_power_of_two() && (512..=8192).contains(&size) && (1..=8).contains(&k);
        if !small_enough || security::level(k * size).is_none_or(|l| l.bits < security::LEAST_BITS || k * size <= 1024)
        {
            return refuse(format!(
                "GLWE dimension {k} with polynomial size {size}: k·N is not in the table of dimensions with 128 bits (1536 to \
                 8192), or N no power of two of 512 to 8192"
            ));
        }
        for (name, d) in [("keyswitch", self.keyswitch), ("bootstrap", self.bootstrap), ("packing", self.packing)] {
            let (base, level) = (d.base_log.0, d.level.0);
            if base == 0 || level == 0 || base.saturating_mul(level) > 63 {
                return refuse(format!("{name} decomposition 2^{base} × {level} is not within 1..=63 bits"));
            }
        }
        if !self.can_group() {
            return refuse(format!(
                "grouping factor {}: it is 1, or 2 where n is even, k is 1 and the bootstrap has at most {MAX_GROUPED_LEVELS} levels",
                self.grouping_factor.0
            ));
        }
        if self.external && k != 1 {
            return refuse(format!("external products with GLWE dimension {k}: they are made with 1"));
        }
        match self.key_words().iter().sum::<usize>() {
            words if words > MAX_KEY_WORDS => refuse(format!(
                "evaluation keys of {words} words, more than {MAX_KEY_WORDS}: the decompositions have too many levels"
            )),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Parameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (n, k, size) = (self.lwe_dimension.0, self.glwe_dimension.0, self.polynomial_size.0);
        write!(f, "n={n},k={k},N={size},ks={},bs={},pk={}", self.keyswitch, self.bootstrap, self.packing)?;
        if self.grouping_factor.0 != 1 {
            write!(f, ",gf={}", self.grouping_factor.0)?;
        }
        if self.external { write!(f, ",ex=1") } else { Ok(()) }
    }
}

impl FromStr for Parameters {
    type Err = CircuitError;

    /// Reads what `Display` writes: its parts, in any order; only the last two may be missing. Does not [`check`](Self::check).
    fn from_str(text: &str) -> Result<Self> {
        let wrong =
            || CircuitError::Parameters(format!("`{text}` is no parameter set: write it like `{}`", Self::standard()));
        let parts: Vec<(&str, &str)> =
            text.split(',').map(|p| p.split_once('=').ok_or_else(wrong)).collect::<Result<_>>()?;
        let one = |name: &str| {
            let mut found = parts.iter().filter(|(n, _)| *n == name).map(|(_, value)| *value);
            found.next().filter(|_| found.next().is_none()).ok_or_else(wrong)
        };
        let number = |text: &str| text.parse::<usize>().map_err(|_| wrong());
        let dimension = |name: &str| number(one(name)?);
        let decomposition = |name: &str| {
            let (base, level) = one(name)?.split_once('x').ok_or_else(wrong)?;
            Ok(Decomposition::new(number(base)?, number(level)?))
        };
        let said = |name: &str| parts.iter().any(|(n, _)| *n == name);
        let (grouped, external) = (said("gf"), said("ex"));
        if parts.len() != 6 + usize::from(grouped) + usize::from(external) {
            return Err(wrong());
        }
        if external && one("ex")? != "1" {
            return Err(wrong());
        }
        Ok(Self {
            lwe_dimension: LweDimension(dimension("n")?),
            glwe_dimension: GlweDimension(dimension("k")?),
            polynomial_size: PolynomialSize(dimension("N")?),
            keyswitch: decomposition("ks")?,
            bootstrap: decomposition("bs")?,
            packing: decomposition("pk")?,
            grouping_factor: LweBskGroupingFactor(if grouped { dimension("gf")? } else { 1 }),
            external,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn with(change: impl Fn(&mut Parameters)) -> Result<()> {
        let mut p = Parameters::standard();
        change(&mut p);
        p.check()
    }

    #[test]
    fn only_dimensions_of_the_table_pass() {
        for (n, k, size) in [(600, 1, 2048), (1024, 1, 4096), (850, 2, 1024), (700, 3, 512), (900, 1, 8192)] {
            let set = |p: &mut Parameters| {
                *p = p.ungrouped();
                (p.lwe_dimension, p.glwe_dimension, p.polynomial_size) =
                    (LweDimension(n), GlweDimension(k), PolynomialSize(size));
            };
            assert!(with(set).is_ok(), "{n} {k} {size}");
        }
        for (n, k, size) in [
            (599, 1, 2048),
            (1025, 1, 2048),
            (2048, 1, 2048),
            (0, 1, 2048),
            (850, 1, 1024),
            (850, 2, 512),
            (850, 0, 2048),
            (850, 9, 2048),
            (850, 1, 3000),
            (850, 1, 16384),
            (850, usize::MAX, 2),
            (usize::MAX, 1, usize::MAX),
        ] {
            let set = |p: &mut Parameters| {
                (p.lwe_dimension, p.glwe_dimension, p.polynomial_size) =
                    (LweDimension(n), GlweDimension(k), PolynomialSize(size));
            };
            let error = with(set).unwrap_err();
            assert_eq!(error.code(), "TX0103", "{n} {k} {size}");
        }
    }

    #[test]
    fn decompositions_are_bounded() {
        for d in [Decomposition::new(0, 5), Decomposition::new(3, 0), Decomposition::new(8, 8)] {
            assert!(with(|p| p.keyswitch = d).is_err(), "{d:?}");
        }
        assert!(with(|p| p.bootstrap = Decomposition::new(usize::MAX, 2)).is_err());
        let error = with(|p| {
            p.polynomial_size = PolynomialSize(8192);
            p.packing = Decomposition::new(1, 63);
        });
        assert!(error.unwrap_err().to_string().contains("too many levels"));
    }

    #[test]
    fn grouping_takes_pairs_of_bits_in_one_ring() {
        assert!(with(|p| *p = p.ungrouped()).is_ok());
        for text in [
            "n=851,k=1,N=2048,bs=15x2,gf=2",
            "n=850,k=2,N=1024,bs=15x2,gf=2",
            "n=850,k=1,N=2048,bs=7x5,gf=2",
            "n=850,k=1,N=2048,bs=15x2,gf=3",
        ] {
            let p: Parameters = format!("{text},ks=3x5,pk=12x3").parse().unwrap();
            assert!(p.check().unwrap_err().to_string().contains("grouping factor"), "{text}");
        }
        let (grouped, plain) = (Parameters::standard(), Parameters::standard().ungrouped());
        assert_eq!(2 * grouped.key_words()[1], 3 * plain.key_words()[1]);
    }

    #[test]
    fn files_from_before_grouping_take_bits_one_by_one() {
        let plain = Parameters::standard().ungrouped();
        let json = serde_json::to_value(plain).unwrap();
        assert!(json.get("grouping_factor").is_none());
        assert_eq!(serde_json::from_value::<Parameters>(json).unwrap(), plain);
    }

    #[test]
    fn a_file_cannot_state_its_own_noise() {
        let mut json = serde_json::to_value(Parameters::standard()).unwrap();
        json["small_noise"] = serde_json::json!(0.0);
        json["noise"] = serde_json::json!({ "variance": 0.0 });
        let p: Parameters = serde_json::from_value(json).unwrap();
        assert_eq!(p, Parameters::standard());
        assert!((0.5 * p.small_noise().0.log2() + 18.5004).abs() < 1e-3);
    }

    #[test]
    fn text_form_is_read_back() {
        let standard = Parameters::standard();
        assert_eq!(standard.to_string(), "n=850,k=1,N=2048,ks=3x5,bs=15x2,pk=12x3,gf=2");
        assert_eq!(standard.to_string().parse::<Parameters>().unwrap(), standard);
        assert_eq!("gf=2,N=2048,k=1,n=850,pk=12x3,ks=3x5,bs=15x2".parse::<Parameters>().unwrap(), standard);
        assert_eq!("N=2048,k=1,n=850,pk=12x3,ks=3x5,bs=15x2".parse::<Parameters>().unwrap(), standard.ungrouped());
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "n=850",
            "n=850,k=1,N=2048,ks=3x5,bs=15x2,pk=12",
            "n=850,n=850,N=2048,ks=3x5,bs=15x2,pk=12x3",
            "n=850,k=1,N=2048,ks=3x5,bs=15x2,pk=12x3,q=64",
            "n=850,k=1,N=2048,ks=3x5,bs=15x2,pk=12x3,gf=",
            "n=850,k=1,N=2048,ks=3x5,bs=15x2,pk=12x3,gf=2,gf=2",
        ] {
            assert!(text.parse::<Parameters>().is_err(), "{text}");
        }
    }
}
