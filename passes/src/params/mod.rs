//! Which parameter sets there are, what they cost, and how noisy they are.
//!
//! A circuit has one set of parameters. What a set must give is three noises: of look-up arguments (keyswitch and modulus switch, which
//! limit precision), of look-up outputs (which limit how much linear maps may gain), and of packing. [`front`] lists the sets of a grid that no other
//! set beats in all three and in cost; `select-parameters` takes the cheapest one that the circuit's error budget allows.
//!
//! Noises are those of [`NoiseModel`], at the least secure noise of each dimension, so every set of the grid has the same security. Costs are
//! fitted to measurements and only rank sets: they are the same on every machine, so that circuits are too.

use rayon::prelude::*;
use thex_circuit::params::Decomposition;
use thex_circuit::{NoiseModel, Parameters};

/// What a circuit does, in units that have a cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// Blind rotations, 2^ν for each of extension ν.
    pub rotations: f64,
    /// Keyswitches to the small key.
    pub keyswitches: f64,
    /// Packed ciphertexts.
    pub packs: f64,
}

/// Milliseconds of one blind rotation for each unit n·N·(k+1), in batches on two threads, without any decomposition level: rotation and
/// the inverse transform. Fitted to four sets between (2, 1024, two levels) and (1, 4096, one level) to 15 %.
const ROTATION: f64 = 1.49e-6;

/// The same for each level of the decomposition: the transforms of the digits and their products with the key.
const ROTATION_LEVEL: f64 = 0.63e-6;

/// Both where bits are taken in pairs, for the same unit: measured in the same minutes as bits one by one, n = 820, one to four levels.
const PAIRED_ROTATION: f64 = 0.52e-6;

/// See [`PAIRED_ROTATION`].
const PAIRED_ROTATION_LEVEL: f64 = 0.37e-6;

/// Milliseconds of a keyswitch for each unit kN·levels·n.
const KEYSWITCH: f64 = 2.99e-8;

/// Milliseconds of packing a ciphertext for each unit kN·levels·(k+1)N.
const PACK: f64 = 2.58e-8;

/// Milliseconds of a weight of a linear map times a ciphertext, on two threads.
pub const MULTIPLY_ADD: f64 = 5.3e-5;

/// Milliseconds of one lane of a blind rotation: all of a plain one, a 2^ν-th of one of extension ν.
#[must_use]
pub fn rotation(p: &Parameters) -> f64 {
    let (n, k, size) = (p.lwe_dimension.0 as f64, p.glwe_dimension.0 as f64, p.polynomial_size.0 as f64);
    let (fixed, level) = match p.grouping_factor.0 {
        1 => (ROTATION, ROTATION_LEVEL),
        _ => (PAIRED_ROTATION, PAIRED_ROTATION_LEVEL),
    };
    n * size * (k + 1.0) * (fixed + level * p.bootstrap.level.0 as f64)
}

/// Milliseconds that a circuit takes, to rank parameter sets by.
#[must_use]
pub fn cost(p: &Parameters, work: &Work) -> f64 {
    let (n, k, size) = (p.lwe_dimension.0 as f64, p.glwe_dimension.0 as f64, p.polynomial_size.0 as f64);
    let level = |d: Decomposition| d.level.0 as f64;
    let keyswitch = k * size * level(p.keyswitch) * n * KEYSWITCH;
    let pack = k * size * level(p.packing) * (k + 1.0) * size * PACK;
    work.rotations * rotation(p) + work.keyswitches * keyswitch + work.packs * pack
}

/// A parameter set with its noise and what a circuit costs under it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Priced {
    /// The set.
    pub parameters: Parameters,
    /// See [`cost`].
    pub cost: f64,
    /// Variance of a look-up's argument, relative to the torus.
    pub argument: f64,
    /// The part of it that no extension makes less: the keyswitch's.
    pub keyswitch: f64,
    /// Of a look-up's output.
    pub bootstrap: f64,
    /// Of packing.
    pub packing: f64,
}

impl Priced {
    /// Prices a set.
    #[must_use]
    pub fn new(parameters: Parameters, work: &Work) -> Self {
        let noise = NoiseModel::new(&parameters);
        Self {
            parameters,
            cost: cost(&parameters, work),
            argument: noise.argument(),
            keyswitch: noise.keyswitch,
            bootstrap: noise.bootstrap,
            packing: noise.packing,
        }
    }

    /// Whether another set is no dearer and no noisier in any way.
    fn is_beaten_by(&self, other: &Self) -> bool {
        other.cost <= self.cost && self.is_no_quieter_than(other)
    }

    /// Whether every noise is at least the other's.
    #[must_use]
    pub fn is_no_quieter_than(&self, other: &Self) -> bool {
        self.argument >= other.argument
            && self.keyswitch >= other.keyswitch
            && self.bootstrap >= other.bootstrap
            && self.packing >= other.packing
    }
}

/// The values that each part of a set may take.
#[derive(Clone, Debug)]
pub struct Grid {
    /// (k, N).
    pub rings: Vec<(usize, usize)>,
    /// n.
    pub dimensions: Vec<usize>,
    /// (log2 of the base, levels) of the keyswitch.
    pub keyswitches: Vec<(usize, usize)>,
    /// Of the bootstrap.
    pub bootstraps: Vec<(usize, usize)>,
    /// Key bits that a blind rotation takes at once, where the other parts allow it.
    pub groupings: Vec<usize>,
    /// Of packing.
    pub packings: Vec<(usize, usize)>,
}

impl Grid {
    /// Everything that may be chosen for a circuit. Rings of less than 2048 positions have look-ups of 7 bits, too coarse for
    /// any model that was tried; larger ones the runtime cannot run, since its FFT is fixed (see `thex_runtime::keys::check_ring`).
    #[must_use]
    pub fn full() -> Self {
        let pairs = |bases: std::ops::RangeInclusive<usize>, levels: std::ops::RangeInclusive<usize>| {
            bases.flat_map(|b| levels.clone().map(move |l| (b, l))).collect()
        };
        Self {
            rings: vec![(1, 2048)],
            dimensions: (780..=1000).step_by(10).collect(),
            keyswitches: pairs(2..=5, 3..=8),
            bootstraps: pairs(7..=23, 1..=4),
            groupings: vec![1, 2],
            packings: pairs(7..=18, 2..=5),
        }
    }
}

/// The best of several ways to do one thing: those that no other beats in both cost and noise.
fn undominated(all: &[Parameters], work: &Work, noise: impl Fn(&Priced) -> f64) -> Vec<Parameters> {
    let mut priced: Vec<Priced> = all.iter().map(|p| Priced::new(*p, work)).collect();
    priced.sort_by(|a, b| a.cost.total_cmp(&b.cost).then(noise(a).total_cmp(&noise(b))));
    let mut least = f64::INFINITY;
    priced.retain(|p| {
        let better = noise(p) < least;
        least = least.min(noise(p));
        better
    });
    priced.into_iter().map(|p| p.parameters).collect()
}

/// All sets of one ring and small dimension that could be on the front. The three decompositions do not meet: each sets one noise and its own
/// part of the cost, so each may be narrowed down by itself.
fn of_dimension(grid: &Grid, (k, size): (usize, usize), n: usize, work: &Work) -> Vec<Priced> {
    let decomposition = |&(base, level): &(usize, usize)| Decomposition::new(base, level);
    let base = Parameters::standard().ungrouped().with_dimensions(n, k, size);
    let of = |choices: &[(usize, usize)], set: fn(&mut Parameters, Decomposition), noise: fn(&Priced) -> f64| {
        let with = |d: &(usize, usize)| {
            let mut p = base;
            set(&mut p, decomposition(d));
            p
        };
        undominated(&choices.iter().map(with).collect::<Vec<_>>(), work, noise)
    };
    let keyswitches = of(&grid.keyswitches, |p, d| p.keyswitch = d, |x| x.argument);
    let with = |d, grouping| Parameters { bootstrap: decomposition(d), ..base.with_grouping(grouping) };
    let bootstraps = grid.bootstraps.iter().flat_map(|d| grid.groupings.iter().map(move |&grouping| with(d, grouping)));
    let bootstraps = undominated(&bootstraps.filter(Parameters::can_group).collect::<Vec<_>>(), work, |x| x.bootstrap);
    let packings = if work.packs > 0.0 {
        of(&grid.packings, |p, d| p.packing = d, |x| x.packing)
    } else {
        // None is better than another, so the smallest key.
        let fewest = grid.packings.iter().min_by_key(|(_, levels)| *levels);
        fewest.map(|d| Parameters { packing: decomposition(d), ..base }).into_iter().collect()
    };
    let mut sets = Vec::new();
    for x in &keyswitches {
        for y in &bootstraps {
            for z in &packings {
                let parameters = Parameters { keyswitch: x.keyswitch, packing: z.packing, ..*y };
                sets.push(Priced::new(parameters, work));
            }
        }
    }
    sets
}

/// The sets of the grid that no other set beats, cheapest first.
#[must_use]
pub fn front(grid: &Grid, work: &Work) -> Vec<Priced> {
    let shapes: Vec<((usize, usize), usize)> =
        grid.rings.iter().flat_map(|&ring| grid.dimensions.iter().map(move |&n| (ring, n))).collect();
    let mut all: Vec<Priced> =
        shapes.par_iter().flat_map_iter(|&(ring, n)| of_dimension(grid, ring, n, work)).collect();
    all.retain(|p| p.parameters.check().is_ok());
    // Sets of equal cost: the quieter one first, so that it stays.
    all.sort_by(|a, b| {
        let noises = |p: &Priced| [p.cost, p.argument, p.keyswitch, p.bootstrap, p.packing];
        noises(a).partial_cmp(&noises(b)).unwrap_or(std::cmp::Ordering::Equal)
    });
    let mut front: Vec<Priced> = Vec::new();
    for candidate in all {
        if !front.iter().any(|f| candidate.is_beaten_by(f)) {
            front.push(candidate);
        }
    }
    front
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORK: Work = Work { rotations: 1000.0, keyswitches: 900.0, packs: 300.0 };

    fn small() -> Grid {
        Grid {
            rings: vec![(1, 2048), (2, 1024), (1, 4096)],
            dimensions: vec![800, 850, 900],
            keyswitches: vec![(2, 6), (3, 5), (3, 4), (4, 4)],
            bootstraps: vec![(23, 1), (15, 2), (16, 2), (11, 3)],
            groupings: vec![1, 2],
            packings: vec![(12, 3), (16, 2), (10, 2)],
        }
    }

    /// Every set of a grid, with no pruning at all.
    fn everything(grid: &Grid) -> Vec<Priced> {
        let mut all = Vec::new();
        for &(k, size) in &grid.rings {
            for &n in &grid.dimensions {
                for &(ks, ks_levels) in &grid.keyswitches {
                    for &(bs, bs_levels) in &grid.bootstraps {
                        for &(pk, pk_levels) in &grid.packings {
                            let decompositions = format!("ks={ks}x{ks_levels},bs={bs}x{bs_levels},pk={pk}x{pk_levels}");
                            for gf in &grid.groupings {
                                let p: Parameters =
                                    format!("n={n},k={k},N={size},{decompositions},gf={gf}").parse().unwrap();
                                all.extend(p.can_group().then(|| Priced::new(p, &WORK)));
                            }
                        }
                    }
                }
            }
        }
        all
    }

    #[test]
    fn the_search_finds_what_an_exhaustive_one_finds() {
        let (grid, all) = (small(), everything(&small()));
        let front = front(&grid, &WORK);
        for needs in &all {
            // A set exists that is as quiet as `needs`: itself.
            let oracle =
                all.iter().filter(|p| needs.is_no_quieter_than(p)).map(|p| p.cost).fold(f64::INFINITY, f64::min);
            let found = front.iter().find(|p| needs.is_no_quieter_than(p)).unwrap();
            assert!((found.cost / oracle - 1.0).abs() < 1e-12, "{}: {} but {oracle}", needs.parameters, found.cost);
        }
    }

    #[test]
    fn the_full_front_is_checked_and_holds_nothing_beaten() {
        let front = front(&Grid::full(), &WORK);
        assert!(front.len() > 100);
        for (i, p) in front.iter().enumerate() {
            p.parameters.check().unwrap();
            assert!(front.iter().enumerate().all(|(j, q)| i == j || !p.is_beaten_by(q)), "{}", p.parameters);
        }
    }
}
