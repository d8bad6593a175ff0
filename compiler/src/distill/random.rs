//! Reproducible randomness for training: shuffles and noise.
//!
//! Every draw comes from a stream of its own that the seed and a place (phase, epoch, step) name, so a distillation that
//! was interrupted goes on with the numbers that it would have had. SplitMix64 (Steele, Lea, Flood 2014) is plenty: nothing
//! secret depends on it, unlike on the generators of keys, which are tfhe's.

/// A stream of numbers.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    /// The stream of a seed and a place.
    pub(super) fn new(seed: u64, place: &[u64]) -> Self {
        let mut stream = Self(seed);
        for &coordinate in place {
            stream = Self(stream.next().wrapping_add(coordinate.wrapping_mul(0xD134_2543_DE82_EF95)));
        }
        stream.next();
        stream
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Between 0 and 1, neither included.
    fn unit(&mut self) -> f32 {
        ((self.next() >> 41) as f32 + 0.5) / (1_u32 << 23) as f32
    }

    /// `count` independent standard normal numbers (Box–Muller).
    pub(super) fn normals(&mut self, count: usize) -> Vec<f32> {
        let mut numbers = Vec::with_capacity(count + 1);
        while numbers.len() < count {
            let (radius, angle) = ((-2.0 * self.unit().ln()).sqrt(), std::f32::consts::TAU * self.unit());
            numbers.extend([radius * angle.cos(), radius * angle.sin()]);
        }
        numbers.truncate(count);
        numbers
    }

    /// The numbers below `count` in random order (Fisher–Yates).
    pub(super) fn permutation(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for i in (1..count).rev() {
            order.swap(i, (self.next() % (i as u64 + 1)) as usize);
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normals_are_normal_and_streams_differ() {
        let draw = |place: &[u64]| Random::new(7, place).normals(40_001);
        let numbers = draw(&[1, 2]);
        let moment = |n: i32| numbers.iter().map(|x| x.powi(n)).sum::<f32>() / numbers.len() as f32;
        assert!(moment(1).abs() < 0.02 && (moment(2) - 1.0).abs() < 0.03 && (moment(4) - 3.0).abs() < 0.2);
        assert_eq!(numbers, draw(&[1, 2]));
        let other = draw(&[2, 1]);
        let correlation = numbers.iter().zip(&other).map(|(a, b)| a * b).sum::<f32>() / numbers.len() as f32;
        assert!(correlation.abs() < 0.02);
    }

    #[test]
    fn a_permutation_has_every_number() {
        let mut order = Random::new(3, &[]).permutation(100);
        assert!(order.windows(2).any(|w| w[0] > w[1]));
        order.sort_unstable();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
    }
}
