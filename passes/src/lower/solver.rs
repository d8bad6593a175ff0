//! Minimises a sum of terms c·Π x_v^(±2) over positive variables: a geometric program.
//!
//! In log x the sum is convex, so coordinate descent finds its global minimum. Along one variable the sum is
//! A·x² + B·x⁻² + C, least at x = (B/A)^¼, clamped to the variable's bounds.

/// One term: a coefficient and the exponents (+2 or −2) of at most two variables.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Term {
    /// c ≥ 0.
    pub(super) coefficient: f64,
    /// (variable, whether its exponent is +2 rather than −2).
    pub(super) factors: Vec<(usize, bool)>,
}

impl Term {
    pub(super) fn value(&self, x: &[f64]) -> f64 {
        self.factors.iter().fold(self.coefficient, |v, &(i, up)| if up { v * x[i] * x[i] } else { v / (x[i] * x[i]) })
    }
}

/// The minimiser; `bounds[v]` is (least, most) of variable v, and the start is the bounds' geometric mean.
pub(super) fn minimise(terms: &[Term], bounds: &[(f64, f64)]) -> Vec<f64> {
    let mut x: Vec<f64> = bounds.iter().map(|(lo, hi)| (lo * hi).sqrt()).collect();
    let mut of_variable: Vec<Vec<usize>> = vec![Vec::new(); bounds.len()];
    for (t, term) in terms.iter().enumerate() {
        term.factors.iter().for_each(|&(v, _)| of_variable[v].push(t));
    }
    for _ in 0..200 {
        let mut moved: f64 = 0.0;
        for v in 0..x.len() {
            let (mut rising, mut falling) = (0.0, 0.0);
            for &t in &of_variable[v] {
                let value = terms[t].value(&x);
                let up: i32 = terms[t].factors.iter().filter(|f| f.0 == v).map(|f| if f.1 { 1 } else { -1 }).sum();
                match up {
                    1 => rising += value / (x[v] * x[v]),
                    -1 => falling += value * x[v] * x[v],
                    _ => {}
                }
            }
            let (lo, hi) = bounds[v];
            let best = match (rising > 0.0, falling > 0.0) {
                (true, true) => (falling / rising).powf(0.25),
                (true, false) => lo,
                (false, true) => hi,
                (false, false) => x[v],
            };
            let best = best.clamp(lo, hi);
            moved = moved.max((best / x[v]).ln().abs());
            x[v] = best;
        }
        if moved < 1e-6 {
            break;
        }
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn balances_two_variables() {
        // 4x² + y²/x² + 1/y²: stationary at x⁴ = y²/4, y⁴ = x².
        let terms = [
            Term { coefficient: 4.0, factors: vec![(0, true)] },
            Term { coefficient: 1.0, factors: vec![(1, true), (0, false)] },
            Term { coefficient: 1.0, factors: vec![(1, false)] },
        ];
        let x = minimise(&terms, &[(1e-6, 1e6), (1e-6, 1e6)]);
        assert!((x[0].powi(4) - x[1].powi(2) / 4.0).abs() < 1e-4);
        assert!((x[1].powi(4) - x[0].powi(2)).abs() < 1e-4);
    }

    #[test]
    fn respects_bounds() {
        let terms = [Term { coefficient: 1.0, factors: vec![(0, true)] }];
        assert_eq!(minimise(&terms, &[(2.0, 3.0)]), vec![2.0]);
    }
}
