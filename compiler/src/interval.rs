//! How sure a measured share is.
//!
//! Accuracies come from a few hundred samples, and a difference of one percent between two of them is mostly chance. Every share that is shown
//! carries its interval, so that nobody reads more into it. Wilson's score interval and not the normal one, which has no width at 0 % and
//! 100 % and leaves [0, 1] near them, where accuracies and agreements are.

use serde::Serialize;

/// Two-sided 95 % quantile of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// Lower and upper end of a share, both in [0, 1]. In JSON an array of the two.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval(pub f64, pub f64);

impl Interval {
    /// The 95 % interval of `hits` out of `trials` independent ones; [0, 1] where there is no trial.
    ///
    /// Edwin B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927.
    #[must_use]
    pub fn wilson(hits: usize, trials: usize) -> Self {
        if trials == 0 {
            return Self(0.0, 1.0);
        }
        let n = trials as f64;
        let share = hits as f64 / n;
        let scale = 1.0 / (1.0 + Z * Z / n);
        let centre = scale * (share + Z * Z / (2.0 * n));
        let half = scale * Z * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
        Self((centre - half).clamp(0.0, share), (centre + half).clamp(share, 1.0))
    }

    /// For people: `[95.6, 98.9]`, in percent.
    #[must_use]
    pub fn percent(&self) -> String {
        format!("[{:.1}, {:.1}]", 100.0 * self.0, 100.0 * self.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_values() {
        // Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I, method 3.
        for (hits, trials, lo, hi) in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)] {
            let Interval(a, b) = Interval::wilson(hits, trials);
            assert!((a - lo).abs() < 5e-5 && (b - hi).abs() < 5e-5, "{hits}/{trials}: [{a}, {b}]");
        }
        assert_eq!(Interval::wilson(0, 0), Interval(0.0, 1.0));
        assert_eq!(Interval::wilson(7, 7).1.to_bits(), 1.0_f64.to_bits());
    }
}
