//! What transformers of any size cost, on paper: closed formulas for what the passes emit, so that models need neither exist nor compile.
//!
//! One layer of T tokens, width W, h heads of d = W/h, hidden width F, of which R rows are read (R = T, but for the last layer of a model
//! whose head reads one token, where R = 1). Post-norm, every token private, no mask, one product box of m slots:
//!
//! * **Scores** q·kᵀ (`passes/src/lower/products.rs`): for each head, one rotation multiplies up to m packed values by one. Rotating the R·W
//!   elements of q over packs of the T keys takes R·W·⌈T/m⌉ rotations and packs T·W; rotating k over packs of q takes T·W·⌈R/m⌉ and R·W.
//! * **Softmax**, exact: two exponentials a score and two look-ups a row, 2·R·T·h + 2·R·h. THE-X: the cube and one reciprocal, R·T·h + R·h.
//! * **Context** e·V: rotating e over packed v takes R·T·h·⌈d/m⌉ rotations and packs T·W; rotating v over packed e takes T·W·⌈R/m⌉, R·T·h.
//! * **Normalisation** (`defer-normalization`): of the context, R·W rotations, if d ≤ 4·T; else of the numerators, R·T·h. Packs R·h.
//! * **Two layer norms**, exact: a square and a product for each element, one 1/√ a row, 2·(2·R·W + R), and 2·R packs. THE-X: nothing.
//! * **Feed-forward**: one look-up a hidden element, R·F.
//!
//! Of the two ways to do a product the cheaper one is taken, a pack at 0.07 of a rotation, as `insert-bootstraps` does. Keyswitches: one for each
//! look-up argument and each distinct rotating element; a square and the product that follows share theirs.
//!
//! Weights of linear maps are rows × atoms (ciphertexts of look-ups) that they merge over. Exact: q, v, the output projection and its residual, both
//! of the feed-forward maps and theirs, and T²·W² for keys centred over the tokens, which are one dense map. THE-X: norms are linear, so
//! the stream of layer l is a map over A = W + l·(W + F) atoms a token, and q, k, v, the hidden elements and what the head reads are A wide or more.
//!
//! **External products.** A GGSW of an element of q takes 1, 2 or 4 rotations, and gives its products with all T keys: R·W rotations or so, packs as before. Contexts
//! likewise with e or v as GGSW, whichever is fewer. So scores and contexts stop growing with T²·d; exponentials are R·T·h either way. A single row that is read stays with rotations. The table has
//! [`ROTATIONS`], which the planner takes for BERT-tiny.
//!
//! `compiler/tests/scale.rs` holds the formulas to compiled circuits.

use std::fmt::Write;

use serde::Serialize;
use thex_circuit::Parameters;
use thex_passes::Profile;
use thex_runtime::KernelTimes;
use thex_runtime::ranks::Kind;
use thex_runtime::ranks::volume::{self, Network, ScalingRow, Step};

/// Rotations of a GGSW in scores and in contexts, in the table.
pub const ROTATIONS: [u64; 2] = [1, 4];

/// What making a GGSW costs beside its rotations, in rotations (as in `insert-bootstraps`).
const CONVERSION: f64 = 0.2;

/// What packing one ciphertext counts as, in rotations (as in `insert-bootstraps`).
const PACK_COST: f64 = 0.07;

/// `defer-normalization` defers at up to this many times the bootstraps.
const MOST_EXTRA: u64 = 4;

/// The size of a post-norm encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Size {
    /// T.
    pub tokens: u64,
    /// W.
    pub width: u64,
    /// h.
    pub heads: u64,
    /// F.
    pub hidden: u64,
    /// Layers.
    pub layers: u64,
    /// Whether the head reads one token only.
    pub one_row: bool,
    /// m: products that share a rotation, at most.
    pub slots: u64,
    /// Rotations of a GGSW in scores and in contexts, where these are external products.
    pub external: Option<[u64; 2]>,
}

/// Work of a layer or a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Counts {
    /// Rotations of plain look-ups.
    pub look_ups: u64,
    /// Rotations of products.
    pub products: u64,
    /// Those of them that are scores or contexts, before normalisation.
    pub attention: u64,
    /// Packed ciphertexts.
    pub packs: u64,
    /// Keyswitches.
    pub keyswitches: u64,
    /// Weights times ciphertexts.
    pub multiply_adds: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, x: Self) {
        self.look_ups += x.look_ups;
        self.products += x.products;
        self.attention += x.attention;
        self.packs += x.packs;
        self.keyswitches += x.keyswitches;
        self.multiply_adds += x.multiply_adds;
    }
}

impl Counts {
    /// Blind rotations.
    #[must_use]
    pub fn pbs(&self) -> u64 {
        self.look_ups + self.products
    }

    /// The part of the rotations that scores and contexts take.
    #[must_use]
    pub fn attention_share(&self) -> f64 {
        self.attention as f64 / self.pbs().max(1) as f64
    }

    /// Seconds at kernel times in full batches.
    #[must_use]
    pub fn seconds(&self, times: &KernelTimes) -> f64 {
        let ns = self.look_ups as f64 * times.pbs_ns
            + self.products as f64 * times.lut_product_ns
            + self.packs as f64 * times.pack_ns
            + self.keyswitches as f64 * times.keyswitch_ns
            + self.multiply_adds as f64 * times.multiply_add_ns;
        ns * 1e-9
    }
}

/// Rotations, packs and keyswitches of one product.
#[derive(Clone, Copy)]
struct Product {
    rotations: u64,
    packs: u64,
    rotating: u64,
    /// Whether each rotating element is a GGSW.
    external: bool,
}

impl Product {
    fn by_rotation(rotating: u64, each: u64, packs: u64) -> Self {
        Self { rotations: rotating * each, packs, rotating, external: false }
    }

    fn external(rotating: u64, each: u64, packs: u64) -> Self {
        Self { rotations: rotating * each, packs, rotating, external: true }
    }

    fn cheaper(self, other: Self) -> Self {
        let conversions = |p: &Self| if p.external { CONVERSION * p.rotating as f64 } else { 0.0 };
        let cost = |p: &Self| p.rotations as f64 + conversions(p) + PACK_COST * p.packs as f64;
        if cost(&other) < cost(&self) { other } else { self }
    }
}

impl Size {
    /// R of a layer.
    fn rows(&self, layer: u64) -> u64 {
        if self.one_row && layer + 1 == self.layers { 1 } else { self.tokens }
    }

    fn scores(&self, r: u64) -> Product {
        let (t, w, m) = (self.tokens, self.width, self.slots);
        let q = Product::by_rotation(r * w, t.div_ceil(m), t * w);
        let by_rotation = q.cheaper(Product::by_rotation(t * w, r.div_ceil(m), r * w));
        let Some([each, _]) = self.external.filter(|_| r == t) else { return by_rotation };
        let external = Product::external(r * w, each, t * w).cheaper(Product::external(t * w, each, r * w));
        by_rotation.cheaper(external)
    }

    fn contexts(&self, r: u64) -> Product {
        let (t, w, h, m) = (self.tokens, self.width, self.heads, self.slots);
        let e = Product::by_rotation(r * t * h, (w / h).div_ceil(m), t * w);
        let by_rotation = e.cheaper(Product::by_rotation(t * w, r.div_ceil(m), r * t * h));
        let Some([_, each]) = self.external.filter(|_| r == t) else { return by_rotation };
        let external = Product::external(r * t * h, each, t * w).cheaper(Product::external(t * w, each, r * t * h));
        by_rotation.cheaper(external)
    }

    fn attention(&self, r: u64, profile: Profile) -> Counts {
        let (t, w, h) = (self.tokens, self.width, self.heads);
        let (scores, contexts) = (self.scores(r), self.contexts(r));
        // Exact softmax looks at the scores twice.
        let looks = if profile == Profile::Exact { 2 } else { 1 };
        let look_ups = looks * (r * t * h + r * h);
        let normalised = if r * w <= MOST_EXTRA * r * t * h { r * w } else { r * t * h };
        let attention = scores.rotations + contexts.rotations;
        Counts {
            look_ups,
            products: attention + normalised,
            attention,
            packs: scores.packs + contexts.packs + r * h,
            keyswitches: look_ups + scores.rotating + contexts.rotating + normalised,
            // Scores are sums of d products, contexts of T, unless external products have summed them; the rest are sums over a row, and its shift.
            multiply_adds: if scores.external { looks * r * t * h } else { looks * r * t * w }
                + if contexts.external { r * w } else { r * t * w }
                + (2 * looks - 1) * r * t * h,
        }
    }

    /// Two exact layer norms of a row.
    fn norms(&self, r: u64) -> Counts {
        let w = self.width;
        Counts {
            look_ups: 2 * (r * w + r),
            products: 2 * r * w,
            packs: 2 * r,
            keyswitches: 2 * (r * w + r),
            multiply_adds: 2 * r * w,
            ..Counts::default()
        }
    }

    /// Weights of the maps between look-ups.
    fn maps(&self, layer: u64, profile: Profile) -> u64 {
        let (t, w, f, r) = (self.tokens, self.width, self.hidden, self.rows(layer));
        if profile == Profile::Exact {
            return t * w * t * w + (r + t) * w * w + r * w * (2 * w) + r * f * w + r * w * (f + w);
        }
        let stream = w + layer * (w + f);
        (r + 2 * t) * w * stream + r * f * (stream + w)
    }

    /// One layer, counted from 0.
    #[must_use]
    pub fn layer(&self, layer: u64, profile: Profile) -> Counts {
        let r = self.rows(layer);
        let mut counts = self.attention(r, profile);
        if profile == Profile::Exact {
            counts += self.norms(r);
        }
        let hidden = r * self.hidden;
        let multiply_adds = self.maps(layer, profile);
        counts += Counts { look_ups: hidden, keyswitches: hidden, multiply_adds, ..Counts::default() };
        counts
    }

    /// All layers; without the head's look-ups, but with the map that it reads the stream of THE-X by.
    #[must_use]
    pub fn counts(&self, profile: Profile) -> Counts {
        let mut counts = Counts::default();
        (0..self.layers).for_each(|layer| counts += self.layer(layer, profile));
        if profile == Profile::TheX {
            let stream = self.width + self.layers * (self.width + self.hidden);
            counts.multiply_adds += self.rows(self.layers.saturating_sub(1)) * self.width * stream;
        }
        counts
    }
}

/// Batches of one layer of a compiled exact circuit, by kind: how often ranks have to wait for each other.
const BATCHES: [(Kind, u64); 4] = [(Kind::Pbs, 9), (Kind::LutProduct, 5), (Kind::Keyswitch, 12), (Kind::Pack, 5)];

impl Size {
    /// The batches that ranks would share and their bytes, of an exact circuit under these parameters.
    #[must_use]
    pub fn steps(&self, p: &Parameters) -> Vec<Step> {
        let (big, m) = (p.big_lwe_size() as u64, self.slots);
        let of_layer = |layer: u64| {
            let counts = self.layer(layer, Profile::Exact);
            let step = move |(kind, batches): (Kind, u64)| {
                let (count, words) = match kind {
                    Kind::Pbs => (counts.look_ups, counts.look_ups * big),
                    Kind::LutProduct => (counts.products, counts.products * (big - 1 + m)),
                    Kind::Keyswitch => (counts.keyswitches, counts.keyswitches * (p.lwe_dimension.0 as u64 + 1)),
                    Kind::Pack => (counts.packs, counts.packs.div_ceil(m) * p.glwe_words() as u64),
                };
                let batch = Step { kind, extension: 0, count: count.div_ceil(batches), bytes: words * 8 / batches };
                std::iter::repeat_n(batch, batches as usize)
            };
            BATCHES.into_iter().flat_map(step)
        };
        (0..self.layers).flat_map(of_layer).collect()
    }

    /// On 1 to 256 machines as the one that was measured, exact, all of them repeating the linear maps.
    #[must_use]
    pub fn scaling(&self, p: &Parameters, times: &KernelTimes, network: &Network) -> Vec<ScalingRow> {
        let repeated = 1e-9 * self.counts(Profile::Exact).multiply_adds as f64 * times.multiply_add_ns;
        volume::scaling(&self.steps(p), repeated, times, network)
    }
}

/// The tokens of the models that are put on many machines.
const RANKED_TOKENS: u64 = 16;

/// The models of the table on 1 to 256 machines, for people.
#[must_use]
pub fn ranked_text(slots: u64, p: &Parameters, times: &KernelTimes, network: &Network) -> String {
    let mut out = String::new();
    for (width, heads, layers) in MODELS {
        let tokens = RANKED_TOKENS;
        let size = Size { tokens, width, heads, hidden: 4 * width, layers, one_row: true, slots, external: None };
        let rows = size.scaling(p, times, network);
        let _ = writeln!(out, "\nwidth {width}, {layers} layers, {tokens} tokens, exact, on paper");
        out += &volume::text(&rows, times.threads, network);
    }
    out
}

/// A line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ScaleRow {
    /// The model.
    pub size: Size,
    /// `exact` or `the-x`.
    pub profile: &'static str,
    /// Blind rotations.
    pub pbs: u64,
    /// Packed ciphertexts.
    pub packs: u64,
    /// Part of the rotations in scores and contexts, 0 to 1.
    pub attention_share: f64,
    /// Hours on two cores.
    pub hours_2: f64,
    /// Hours on 64 cores, if time falls with the number of cores.
    pub hours_64: f64,
    /// Blind rotations with scores and contexts as external products, where that is less.
    pub pbs_external: u64,
    /// Hours on two cores with them.
    pub hours_2_external: f64,
}

/// Sequence lengths of the table.
const TOKENS: [u64; 5] = [8, 16, 32, 64, 128];

/// (width, heads, layers): BERT-tiny, BERT-mini, MiniLM-L6, BERT-base.
const MODELS: [(u64, u64, u64); 4] = [(128, 2, 2), (256, 4, 4), (384, 12, 6), (768, 12, 12)];

/// Slots of a product where nothing else is asked for. For BERT-tiny the planner takes 4 to 9; MiniLM's count is that of 4.
pub const SLOTS: u64 = 8;

fn row(size: Size, profile: Profile, times: &KernelTimes) -> ScaleRow {
    let counts = size.counts(profile);
    let external = Size { external: Some(ROTATIONS), ..size }.counts(profile);
    // One core's hours, all threads of the measurement together.
    let hours = |counts: &Counts| counts.seconds(times) * times.threads as f64 / 3600.0;
    ScaleRow {
        size,
        profile: profile.name(),
        pbs: counts.pbs(),
        packs: counts.packs,
        attention_share: counts.attention_share(),
        hours_2: hours(&counts) / 2.0,
        hours_64: hours(&counts) / 64.0,
        pbs_external: external.pbs(),
        hours_2_external: hours(&external) / 2.0,
    }
}

/// Models of BERT's shape, 8 to 128 tokens long and 128 to 768 wide, whose head reads one token.
#[must_use]
pub fn table(slots: u64, times: &KernelTimes) -> Vec<ScaleRow> {
    let mut rows = Vec::new();
    for (width, heads, layers) in MODELS {
        for tokens in TOKENS {
            let size = Size { tokens, width, heads, hidden: 4 * width, layers, one_row: true, slots, external: None };
            rows.extend([Profile::Exact, Profile::TheX].map(|profile| row(size, profile, times)));
        }
    }
    rows
}

/// The table for people, with what it rests on.
#[must_use]
pub fn text(rows: &[ScaleRow], slots: u64, times: &KernelTimes) -> String {
    let mut out = format!(
        "on paper: BERT-like models whose head reads one token, up to {slots} products a rotation; a PBS of {:.2} ms on {} threads,\n\
         and time that falls with the number of cores. `attention`: part of the PBS in scores and contexts. `external`: PBS\n\
         and hours on 2 cores where those are external products, in {} and {} rotations a GGSW.\n\n",
        times.pbs_ns * 1e-6,
        times.threads,
        ROTATIONS[0],
        ROTATIONS[1]
    );
    let _ = writeln!(
        out,
        "{:>5} {:>6} {:>5} {:>6} {:<6} {:>12} {:>11} {:>10} {:>10} {:>10} {:>12} {:>10}",
        "width", "layers", "heads", "tokens", "form", "PBS", "packs", "attention", "h, 2", "h, 64", "external", "h, 2"
    );
    for r in rows {
        let _ = writeln!(
            out,
            "{:>5} {:>6} {:>5} {:>6} {:<6} {:>12} {:>11} {:>8.0} % {:>10.2} {:>10.3} {:>12} {:>10.2}",
            r.size.width,
            r.size.layers,
            r.size.heads,
            r.size.tokens,
            r.profile,
            r.pbs,
            r.packs,
            100.0 * r.attention_share,
            r.hours_2,
            r.hours_64,
            r.pbs_external,
            r.hours_2_external
        );
    }
    out
}
