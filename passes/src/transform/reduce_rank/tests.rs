use ndarray::Array2;

use super::rewrite::mixing;

#[test]
fn mixing_is_orthogonal_and_spreads_evenly() {
    for n in [1, 2, 7, 24, 96] {
        let mix = mixing(n);
        let unit: Array2<f64> = mix.dot(&mix.t());
        let off = (&unit - &Array2::<f64>::eye(n)).iter().fold(0.0_f64, |m, v| m.max(v.abs()));
        assert!(off < 1e-12, "{n}: {off}");
        let most = mix.iter().fold(0.0_f64, |m, v| m.max(v * v));
        assert!(most * n as f64 <= 2.0 + 1e-9, "{n}: {most}");
    }
}
