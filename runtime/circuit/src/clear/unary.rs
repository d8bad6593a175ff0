//! Functions of one real variable, as chains, so that what one bootstrap evaluates is one object.

use serde::{Deserialize, Serialize};

/// A function ℝ → ℝ.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnaryFn {
    /// scale·x + shift.
    Affine {
        /// Factor.
        scale: f64,
        /// Summand.
        shift: f64,
    },
    /// min(max(x, lo), hi).
    Clamp {
        /// Lower bound.
        lo: f64,
        /// Upper bound.
        hi: f64,
    },
    /// x·Φ(x), exact.
    Gelu,
    /// GELU by tanh (GPT-2).
    GeluTanh,
    /// max(x, 0).
    Relu,
    /// tanh x.
    Tanh,
    /// 1/(1 + e^-x).
    Sigmoid,
    /// x·sigmoid(x).
    Silu,
    /// error function.
    Erf,
    /// e^x.
    Exp,
    /// ln x.
    Log,
    /// 1/x.
    Reciprocal,
    /// 1/√x.
    Rsqrt,
    /// √x.
    Sqrt,
    /// |x|.
    Abs,
    /// x^n.
    Power {
        /// n.
        exponent: i32,
    },
}

impl UnaryFn {
    /// f(x).
    #[must_use]
    pub fn apply(self, x: f64) -> f64 {
        match self {
            Self::Affine { scale, shift } => scale * x + shift,
            Self::Clamp { lo, hi } => x.max(lo).min(hi),
            Self::Gelu => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
            Self::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
                0.5 * x * (1.0 + inner.tanh())
            }
            Self::Relu => x.max(0.0),
            Self::Tanh => x.tanh(),
            Self::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Self::Silu => x / (1.0 + (-x).exp()),
            Self::Erf => erf(x),
            Self::Exp => x.exp(),
            Self::Log => x.ln(),
            Self::Reciprocal => 1.0 / x,
            Self::Rsqrt => 1.0 / x.sqrt(),
            Self::Sqrt => x.sqrt(),
            Self::Abs => x.abs(),
            Self::Power { exponent } => x.powi(exponent),
        }
    }

    /// Kebab-case name with its arguments, as the text form prints it.
    #[must_use]
    pub fn label(self) -> String {
        match self {
            Self::Affine { scale, shift } => format!("affine({scale:?},{shift:?})"),
            Self::Clamp { lo, hi } => format!("clamp({lo:?},{hi:?})"),
            Self::Power { exponent } => format!("power({exponent})"),
            Self::Gelu => "gelu".into(),
            Self::GeluTanh => "gelu-tanh".into(),
            Self::Relu => "relu".into(),
            Self::Tanh => "tanh".into(),
            Self::Sigmoid => "sigmoid".into(),
            Self::Silu => "silu".into(),
            Self::Erf => "erf".into(),
            Self::Exp => "exp".into(),
            Self::Log => "log".into(),
            Self::Reciprocal => "reciprocal".into(),
            Self::Rsqrt => "rsqrt".into(),
            Self::Sqrt => "sqrt".into(),
            Self::Abs => "abs".into(),
        }
    }

    /// The inverse of [`label`](Self::label).
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (name, arguments) = match text.split_once('(') {
            Some((name, rest)) => (name, rest.strip_suffix(')')?),
            None => (text, ""),
        };
        let mut numbers = arguments.split(',').map(str::parse::<f64>);
        let mut number = || numbers.next().and_then(std::result::Result::ok);
        Some(match name {
            "affine" => Self::Affine { scale: number()?, shift: number()? },
            "clamp" => Self::Clamp { lo: number()?, hi: number()? },
            "power" => Self::Power { exponent: arguments.parse().ok()? },
            "gelu" => Self::Gelu,
            "gelu-tanh" => Self::GeluTanh,
            "relu" => Self::Relu,
            "tanh" => Self::Tanh,
            "sigmoid" => Self::Sigmoid,
            "silu" => Self::Silu,
            "erf" => Self::Erf,
            "exp" => Self::Exp,
            "log" => Self::Log,
            "reciprocal" => Self::Reciprocal,
            "rsqrt" => Self::Rsqrt,
            "sqrt" => Self::Sqrt,
            "abs" => Self::Abs,
            _ => return None,
        })
    }
}

/// Functions applied one after another, the first first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnaryChain(pub Vec<UnaryFn>);

impl UnaryChain {
    /// f(x).
    #[must_use]
    pub fn apply(&self, x: f64) -> f64 {
        self.0.iter().fold(x, |x, f| f.apply(x))
    }

    /// `affine(0.5,0.0)|exp`.
    #[must_use]
    pub fn label(&self) -> String {
        let labels: Vec<String> = self.0.iter().map(|f| f.label()).collect();
        labels.join("|")
    }

    /// The inverse of [`label`](Self::label).
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self::default());
        }
        text.split('|').map(UnaryFn::parse).collect::<Option<_>>().map(Self)
    }
}

impl From<UnaryFn> for UnaryChain {
    fn from(function: UnaryFn) -> Self {
        Self(vec![function])
    }
}

/// erf to about 1e-15, by its Taylor series near 0 and the continued fraction of erfc beyond
/// (Abramowitz & Stegun 7.1.5 and 7.1.14).
fn erf(x: f64) -> f64 {
    let a = x.abs();
    if a < 2.5 {
        let (mut term, mut sum) = (a, a);
        let mut n = 0.0;
        while term.abs() > 1e-17 * sum.abs() {
            n += 1.0;
            term *= -a * a / n;
            sum += term / (2.0 * n + 1.0);
        }
        return (std::f64::consts::FRAC_2_SQRT_PI * sum).copysign(x);
    }
    if a > 6.0 {
        return 1.0_f64.copysign(x);
    }
    let fraction = (1..=60).rev().fold(0.0, |tail, k| 0.5 * f64::from(k) / (a + tail));
    let erfc = (-a * a).exp() / (std::f64::consts::PI.sqrt() * (a + fraction));
    (1.0 - erfc).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_matches_published_values() {
        for (x, expected) in [
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (2.4, 0.999_311_486_103_355),
            (3.0, 0.999_977_909_503_001_4),
            (-1.5, -0.966_105_146_475_310_7),
        ] {
            assert!((erf(x) - expected).abs() < 1e-13, "erf({x}) = {}", erf(x));
        }
    }

    #[test]
    fn labels_parse_back() {
        let chain = UnaryChain(vec![
            UnaryFn::Affine { scale: 0.5, shift: 1.0 },
            UnaryFn::Relu,
            UnaryFn::Power { exponent: 3 },
            UnaryFn::Clamp { lo: -1e-9, hi: 4.25 },
        ]);
        assert_eq!(UnaryChain::parse(&chain.label()), Some(chain));
        assert_eq!(UnaryChain::parse("nonsense"), None);
    }
}
