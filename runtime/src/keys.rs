//! Client and server keys: generation, files, and the expanded form that the kernels use.
//!
//! A pair of keys has a random id, and is bound to the circuit (by digest) that it was generated for.
//! Secret keys are uniform binary; all noise is Gaussian with the variance that the parameters' security
//! curve asks for. On disk the server key is *seeded* (masks from a seed, 150 to 190 MB); in memory it is expanded
//! and laid out for the kernels (400 to 490 MB).

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tfhe::core_crypto::commons::generators::DeterministicSeeder;
use tfhe::core_crypto::commons::math::random::{CompressionSeed, Seed, Uniform};
use tfhe::core_crypto::prelude::*;
use thex_circuit::file::{EXTERNAL_VERSION, IN_MEMORY, version_of};
use thex_circuit::{ClientBundle, Parameters};
use zeroize::Zeroize;

use crate::checkpoint::digest_words;
use crate::container::{Body, Secrecy, check_writable, contradiction, file_bytes, from_bytes, read, to_bytes, write};
use crate::error::{Result, RuntimeError};
use crate::kernels::external::{ConversionKey, conversion_messages};
use crate::kernels::matrix::TiledMatrix;
use crate::kernels::rotate::BootstrapKey;

const CLIENT_KEY: &str = "client key";
const SERVER_KEY: &str = "server key";

/// What a pair of keys says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyInfo {
    /// Random identity of the pair, 128 bits in hex.
    pub id: String,
    /// Digest of the circuit that the pair was generated for.
    pub circuit: String,
    /// Parameters of the pair.
    pub parameters: Parameters,
}

/// The secret keys. Whoever has them reads every ciphertext.
///
/// They are in no `Debug` output, never cloned, and wiped from memory when dropped. (tfhe wipes its own key types under none of its
/// features; what its key generation and encryption leave on the stack is out of reach.)
pub struct ClientKey {
    /// Identity and parameters.
    pub info: KeyInfo,
    small: LweSecretKeyOwned<u64>,
    glwe: GlweSecretKeyOwned<u64>,
}

impl Drop for ClientKey {
    fn drop(&mut self) {
        self.small.as_mut().zeroize();
        self.glwe.as_mut().zeroize();
    }
}

impl std::fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientKey").field("info", &self.info).field("secrets", &"not shown").finish()
    }
}

/// The evaluation keys, seeded: what a server needs, and nothing that decrypts.
#[derive(Clone)]
pub struct ServerKey {
    /// Identity and parameters.
    pub info: KeyInfo,
    seeds: Seeds,
    keyswitch: SeededLweKeyswitchKeyOwned<u64>,
    bootstrap: SeededLweBootstrapKeyOwned<u64>,
    packing: SeededLwePackingKeyswitchKeyOwned<u64>,
    /// Where the parameters have external products.
    conversion: Option<SeededGlweCiphertextListOwned<u64>>,
}

/// The evaluation keys as the kernels want them.
pub struct ExpandedServerKey {
    /// Identity and parameters.
    pub info: KeyInfo,
    pub(crate) keyswitch: TiledMatrix,
    pub(crate) bootstrap: BootstrapKey,
    pub(crate) packing: TiledMatrix,
    pub(crate) conversion: Option<ConversionKey>,
}

/// The evaluation keys with their masks, in standard (not Fourier) form.
#[cfg(feature = "cuda")]
pub(crate) struct StandardServerKey {
    pub(crate) info: KeyInfo,
    pub(crate) keyswitch: LweKeyswitchKeyOwned<u64>,
    pub(crate) bootstrap: LweBootstrapKeyOwned<u64>,
    pub(crate) packing: LwePackingKeyswitchKeyOwned<u64>,
}

/// Public seeds of the masks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Seeds {
    keyswitch: String,
    bootstrap: String,
    packing: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    conversion: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct ServerBody {
    info: KeyInfo,
    seeds: Seeds,
}

impl Body for KeyInfo {
    const NEWEST: u32 = EXTERNAL_VERSION;

    fn version(&self) -> u32 {
        version_of(&self.parameters)
    }
}

impl Body for ServerBody {
    const NEWEST: u32 = EXTERNAL_VERSION;

    fn version(&self) -> u32 {
        self.info.version()
    }
}

impl ServerBody {
    /// Words of a file with this header, if this build runs keys of its parameters.
    fn words(&self) -> Result<usize> {
        self.info.parameters.check()?;
        check_ring(&self.info.parameters)?;
        Ok(self.info.parameters.key_words().iter().sum())
    }
}

/// Makes a folder for a pair of keys: where the client key goes, and the server key.
///
/// # Errors
/// The folder cannot be written, or has a client key already.
pub fn new_folder(folder: &Path) -> Result<(PathBuf, PathBuf)> {
    let io = |action, path: &Path, source| RuntimeError::Io { action, path: path.to_owned(), source };
    std::fs::create_dir_all(folder).map_err(|source| io("make folder", folder, source))?;
    let (secret, public) = (folder.join("client.key"), folder.join("server.key"));
    if secret.exists() {
        let reason = "it is there already, and whatever is encrypted under it would be lost; \
                      move it away or choose another folder";
        return Err(io("write to", &secret, std::io::Error::other(reason)));
    }
    check_writable(&secret)?;
    check_writable(&public)?;
    Ok((secret, public))
}

/// Where randomness comes from.
///
/// `seed` makes keys reproducible and therefore **worthless as secrets**: for tests only. Without it, tfhe's
/// seeder asks the processor or the operating system.
fn seeder(seed: Option<u128>) -> Box<dyn Seeder> {
    match seed {
        Some(seed) => Box::new(DeterministicSeeder::<DefaultRandomGenerator>::new(Seed(seed))),
        None => new_seeder(),
    }
}

pub(crate) fn seed_to_hex(seed: Seed) -> String {
    format!("{:032x}", seed.0)
}

pub(crate) fn seed_from_hex(hex: &str) -> Option<CompressionSeed> {
    (hex.len() == 32).then(|| u128::from_str_radix(hex, 16).ok()).flatten().map(|s| Seed(s).into())
}

fn gaussian(variance: Variance) -> DynamicDistribution<u64> {
    DynamicDistribution::new_gaussian(variance)
}

/// Noise of fresh encryptions under the big key.
pub(crate) fn big_noise(parameters: &Parameters) -> DynamicDistribution<u64> {
    gaussian(parameters.big_noise())
}

/// The largest ring that this build runs: with its FFT fixed, so that runs end with the same bytes, tfhe transforms up to 1024 points.
pub const LARGEST_RING: usize = 2048;

/// Refuses parameters that can be compiled for and simulated, but not run.
///
/// # Errors
/// Says what the largest ring is.
pub fn check_ring(parameters: &Parameters) -> Result<()> {
    let size = parameters.polynomial_size.0;
    if size <= LARGEST_RING {
        return Ok(());
    }
    Err(RuntimeError::Input(format!(
        "the circuit has polynomials of N = {size} coefficients, and this build runs up to {LARGEST_RING} (its FFT is fixed, so that runs end \
         with the same bytes): it can be simulated; compile without --parameters to run it"
    )))
}

/// Generates a pair of keys for the circuit of `bundle`.
///
/// With `seed`, keys are reproducible and **offer no security**: only for tests.
///
/// # Errors
/// The bundle's parameters are refused.
pub fn generate(bundle: &ClientBundle, seed: Option<u128>) -> Result<(ClientKey, ServerKey)> {
    check_ring(&bundle.parameters)?;
    let mut seeder = seeder(seed);
    let client = ClientKey::generate_from(bundle, seeder.as_mut())?;
    let server = ServerKey::new(&client, seeder.as_mut());
    Ok((client, server))
}

impl ClientKey {
    /// Generates the secret half alone: [`generate`] with the same seed gives the same.
    ///
    /// # Errors
    /// The bundle's parameters are refused.
    pub fn generate(bundle: &ClientBundle, seed: Option<u128>) -> Result<Self> {
        Self::generate_from(bundle, seeder(seed).as_mut())
    }

    fn generate_from(bundle: &ClientBundle, seeder: &mut dyn Seeder) -> Result<Self> {
        bundle.parameters.check()?;
        let info =
            KeyInfo { id: seed_to_hex(seeder.seed()), circuit: bundle.circuit.clone(), parameters: bundle.parameters };
        Ok(Self::new(info, seeder))
    }

    fn new(info: KeyInfo, seeder: &mut dyn Seeder) -> Self {
        let mut generator = SecretRandomGenerator::<DefaultRandomGenerator>::new(seeder.seed());
        let p = &info.parameters;
        let small = allocate_and_generate_new_binary_lwe_secret_key(p.lwe_dimension, &mut generator);
        let glwe =
            allocate_and_generate_new_binary_glwe_secret_key(p.glwe_dimension, p.polynomial_size, &mut generator);
        Self { info, small, glwe }
    }

    /// The big LWE key: the flattening of the GLWE key.
    pub(crate) fn big(&self) -> LweSecretKey<&[u64]> {
        LweSecretKey::from_container(self.glwe.as_ref())
    }

    /// The small LWE key.
    #[cfg(test)]
    pub(crate) fn small(&self) -> LweSecretKey<&[u64]> {
        self.small.as_view()
    }

    /// The GLWE key.
    #[cfg(test)]
    pub(crate) fn glwe(&self) -> &GlweSecretKeyOwned<u64> {
        &self.glwe
    }

    /// Writes the key, readable by its owner alone (mode 0600).
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        write(path, CLIENT_KEY, &self.info, &[self.small.as_ref(), self.glwe.as_ref()], Secrecy::Secret)
    }

    /// Reads a key.
    ///
    /// # Errors
    /// The file is missing, truncated, altered, or no client key; others than its owner can read it; its parameters are refused.
    pub fn load(path: &Path) -> Result<Self> {
        let (info, words) = read(path, CLIENT_KEY, Secrecy::Secret, |info: &KeyInfo| {
            info.parameters.check()?;
            Ok(info.parameters.lwe_dimension.0 + info.parameters.big_lwe_dimension().0)
        })?;
        let p = info.parameters;
        let (small, glwe) = words.split_at(p.lwe_dimension.0);
        if !uniform_binary(small) || !uniform_binary(glwe) {
            return Err(contradiction(path, CLIENT_KEY, "its secrets are not uniform bits: generate it again"));
        }
        Ok(Self {
            info,
            small: LweSecretKey::from_container(small.to_vec()),
            glwe: GlweSecretKey::from_container(glwe.to_vec(), p.polynomial_size),
        })
    }
}

/// Whether these can be uniform bits: 0 and 1 only, and about as many of each (within 10 standard deviations, √n/2 each). A sparse
/// secret would void the security level, and every other check would pass.
fn uniform_binary(secret: &[u64]) -> bool {
    let ones = secret.iter().filter(|&&w| w == 1).count();
    let binary = secret.iter().all(|&w| w <= 1);
    let half = secret.len() as f64 / 2.0;
    binary && (ones as f64 - half).abs() <= 10.0 * (half / 2.0).sqrt()
}

/// Exact size of the `server.key` that these parameters give, without generating one.
///
/// # Errors
/// Only if its header cannot be represented.
pub fn server_key_bytes(parameters: &Parameters) -> Result<u64> {
    let seed = seed_to_hex(Seed(0));
    let info = KeyInfo { id: seed.clone(), circuit: "0".repeat(64), parameters: *parameters };
    let conversion = parameters.external.then(|| seed.clone());
    let seeds = Seeds { keyswitch: seed.clone(), bootstrap: seed.clone(), packing: seed, conversion };
    let words = parameters.key_words().iter().sum();
    file_bytes(SERVER_KEY, &ServerBody { info, seeds }, words)
}

/// Bytes of a server key in memory.
pub(crate) struct KeyMemory {
    /// At the peak of loading and expanding.
    pub(crate) loading: u64,
    /// Expanded.
    pub(crate) expanded: u64,
}

/// What loading a key of these parameters takes: [`ServerKey::load`] and [`ServerKey::expand`], step by step.
pub(crate) fn key_memory(p: &Parameters) -> KeyMemory {
    let [ksk, bsk, pksk, conversion] = p.key_words().map(|words| words as u64 * 8);
    let file = ksk + bsk + pksk + conversion;
    // Seeded and in the Fourier domain, held throughout.
    let converted = conversion * (p.glwe_dimension.0 + 1) as u64;
    let big = p.big_lwe_dimension().0;
    let keyswitch = TiledMatrix::bytes(big * p.keyswitch.level.0, p.lwe_dimension.to_lwe_size().0);
    let packing = TiledMatrix::bytes(big * p.packing.level.0, p.glwe_words());
    let bootstrap = bsk * (p.glwe_dimension.0 + 1) as u64;
    let steps = [
        // The words, read from the file one by one.
        file,
        // The words are split: the part in front keeps its room until it is expanded.
        file + bsk + pksk + keyswitch,
        bsk + pksk + 2 * keyswitch,
        // Standard and tiled form of the packing key.
        keyswitch + bsk + pksk + packing,
        keyswitch + bsk + 2 * packing,
        // Standard and Fourier form of the bootstrap key.
        keyswitch + packing + bsk + bootstrap,
        keyswitch + packing + 2 * bootstrap,
    ];
    KeyMemory {
        loading: steps.into_iter().max().unwrap_or(0) + converted,
        expanded: keyswitch + packing + bootstrap + converted,
    }
}

impl ServerKey {
    fn new(client: &ClientKey, seeder: &mut dyn Seeder) -> Self {
        let p = client.info.parameters;
        let [ksk, bsk, pksk, _] = p.key_words();
        let mut seed = || seeder.seed();
        let (a, b, c) = (seed(), seed(), seed());
        let d = p.external.then(seed);
        let seeds = Seeds {
            keyswitch: seed_to_hex(a),
            bootstrap: seed_to_hex(b),
            packing: seed_to_hex(c),
            conversion: d.map(seed_to_hex),
        };
        let mut keyswitch = seeded_keyswitch(&p, vec![0; ksk], a.into());
        generate_seeded_lwe_keyswitch_key(
            &client.big(),
            &client.small,
            &mut keyswitch,
            gaussian(p.small_noise()),
            seeder,
        );
        let mut bootstrap = seeded_bootstrap(&p, vec![0; bsk], b.into());
        let mut bits = bootstrap_bits(&client.small, &p);
        par_generate_seeded_lwe_bootstrap_key(&bits, &client.glwe, &mut bootstrap, gaussian(p.big_noise()), seeder);
        bits.as_mut().zeroize();
        let mut packing = seeded_packing(&p, vec![0; pksk], c.into());
        generate_packing(client, &mut packing, seeder);
        let conversion = d.map(|seed| generate_conversion(client, seed.into(), seeder));
        Self { info: client.info.clone(), seeds, keyswitch, bootstrap, packing, conversion }
    }

    /// Writes the key.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        write(path, SERVER_KEY, &self.body(), &self.words(), Secrecy::Public)
    }

    /// The bytes of the file.
    ///
    /// # Errors
    /// Only if its header cannot be represented.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        Ok(std::mem::take(&mut *to_bytes(SERVER_KEY, &self.body(), &self.words())?))
    }

    fn body(&self) -> ServerBody {
        ServerBody { info: self.info.clone(), seeds: self.seeds.clone() }
    }

    fn words(&self) -> [&[u64]; 4] {
        let conversion = self.conversion.as_ref().map_or(&[][..], |list| list.as_ref());
        [self.keyswitch.as_ref(), self.bootstrap.as_ref(), self.packing.as_ref(), conversion]
    }

    /// Reads a key; its dimensions are those of its parameters, or it is refused.
    ///
    /// # Errors
    /// The file is missing, truncated, altered, or no server key.
    pub fn load(path: &Path) -> Result<Self> {
        let (body, mut words) = read(path, SERVER_KEY, Secrecy::Public, ServerBody::words)?;
        Self::from_words(body, std::mem::take(&mut *words), path)
    }

    /// Reads the bytes of a file.
    ///
    /// # Errors
    /// They are truncated, altered, or no server key.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let (body, mut words) = from_bytes(bytes, SERVER_KEY, ServerBody::words)?;
        Self::from_words(body, std::mem::take(&mut *words), Path::new(IN_MEMORY))
    }

    /// `words` are as many as the parameters want; `path` is what errors call the file.
    fn from_words(body: ServerBody, mut words: Vec<u64>, path: &Path) -> Result<Self> {
        let seed =
            |hex: &str| seed_from_hex(hex).ok_or_else(|| contradiction(path, SERVER_KEY, "its seeds are damaged"));
        let p = body.info.parameters;
        let [ksk, bsk, pksk, _] = p.key_words();
        let d = body.seeds.conversion.as_deref().map(seed).transpose()?;
        if d.is_some() != p.external {
            return Err(contradiction(path, SERVER_KEY, "it has seeds for other parameters than its own"));
        }
        let (a, b, c) = (seed(&body.seeds.keyswitch)?, seed(&body.seeds.bootstrap)?, seed(&body.seeds.packing)?);
        let conversion = words.split_off(ksk + bsk + pksk);
        let packing = words.split_off(ksk + bsk);
        let bootstrap = words.split_off(ksk);
        Ok(Self {
            info: body.info,
            seeds: body.seeds,
            keyswitch: seeded_keyswitch(&p, words, a),
            bootstrap: seeded_bootstrap(&p, bootstrap, b),
            packing: seeded_packing(&p, packing, c),
            conversion: d.map(|seed| seeded_conversion(&p, conversion, seed)),
        })
    }

    /// The key with its masks, in standard form: of the bootstrap key, the bits of the small key alone.
    #[cfg(feature = "cuda")]
    pub(crate) fn into_standard(self) -> StandardServerKey {
        let p = self.info.parameters;
        let mut bootstrap = self.bootstrap.par_decompress_into_lwe_bootstrap_key().into_container();
        bootstrap.truncate(bootstrap.len() / p.bootstrap_key_bits() * p.lwe_dimension.0);
        StandardServerKey {
            info: self.info,
            keyswitch: self.keyswitch.par_decompress_into_lwe_keyswitch_key(),
            bootstrap: LweBootstrapKey::from_container(
                bootstrap,
                p.glwe_dimension.to_glwe_size(),
                p.polynomial_size,
                p.bootstrap.base_log,
                p.bootstrap.level,
                p.ciphertext_modulus(),
            ),
            packing: self.packing.decompress_into_lwe_packing_keyswitch_key(),
        }
    }

    /// Digest of seeds and bodies, for the identity of a run.
    #[must_use]
    pub fn digest(&self) -> String {
        let mut seeds =
            [&self.seeds.keyswitch, &self.seeds.bootstrap, &self.seeds.packing].map(String::as_str).concat();
        seeds.extend(self.seeds.conversion.as_deref());
        digest_words(seeds.as_bytes(), self.words())
    }

    /// The key with its masks, in standard (not Fourier) form, as tfhe's own functions take it.
    #[cfg(test)]
    pub(crate) fn standard(&self) -> (LweKeyswitchKeyOwned<u64>, LwePackingKeyswitchKeyOwned<u64>) {
        (
            self.keyswitch.clone().par_decompress_into_lwe_keyswitch_key(),
            self.packing.clone().decompress_into_lwe_packing_keyswitch_key(),
        )
    }

    /// The conversion key with its masks, in standard form.
    #[cfg(test)]
    pub(crate) fn standard_conversion(&self) -> Option<GlweCiphertextListOwned<u64>> {
        self.conversion.clone().map(SeededGlweCiphertextList::decompress_into_glwe_ciphertext_list)
    }

    /// The bootstrap key with its masks, in standard form.
    #[cfg(test)]
    pub(crate) fn standard_bootstrap(&self) -> LweBootstrapKeyOwned<u64> {
        self.bootstrap.clone().par_decompress_into_lwe_bootstrap_key()
    }

    /// Expands the key for the kernels.
    #[must_use]
    pub fn expand(self) -> ExpandedServerKey {
        let p = self.info.parameters;
        let ksk = self.keyswitch.par_decompress_into_lwe_keyswitch_key();
        let keyswitch = TiledMatrix::new(ksk.as_ref(), p.lwe_dimension.to_lwe_size().0);
        drop(ksk);
        let pksk = self.packing.decompress_into_lwe_packing_keyswitch_key();
        let packing = TiledMatrix::new(pksk.as_ref(), p.glwe_words());
        drop(pksk);
        let standard = self.bootstrap.par_decompress_into_lwe_bootstrap_key();
        let fft = Fft::new(p.polynomial_size);
        let bootstrap = BootstrapKey::new(&standard, &p, fft.as_view());
        let conversion = self.conversion.map(|seeded| {
            let rows = seeded.decompress_into_glwe_ciphertext_list();
            ConversionKey::new(&rows, fft.as_view())
        });
        ExpandedServerKey { info: self.info, keyswitch, bootstrap, packing, conversion }
    }
}

fn seeded_keyswitch(p: &Parameters, words: Vec<u64>, seed: CompressionSeed) -> SeededLweKeyswitchKeyOwned<u64> {
    SeededLweKeyswitchKey::from_container(
        words,
        p.keyswitch.base_log,
        p.keyswitch.level,
        p.lwe_dimension.to_lwe_size(),
        seed,
        p.ciphertext_modulus(),
    )
}

/// What the bootstrap key encrypts: the bits of the small key and, where rotations take two at once, the product of each pair.
fn bootstrap_bits(small: &LweSecretKeyOwned<u64>, p: &Parameters) -> LweSecretKeyOwned<u64> {
    // All the room at once, so that no copy is left behind.
    let mut bits = Vec::with_capacity(p.bootstrap_key_bits());
    bits.extend_from_slice(small.as_ref());
    if p.grouping_factor.0 == 2 {
        bits.extend(small.as_ref().chunks_exact(2).map(|pair| pair[0] * pair[1]));
    }
    LweSecretKey::from_container(bits)
}

fn seeded_bootstrap(p: &Parameters, words: Vec<u64>, seed: CompressionSeed) -> SeededLweBootstrapKeyOwned<u64> {
    SeededLweBootstrapKey::from_container(
        words,
        p.glwe_dimension.to_glwe_size(),
        p.polynomial_size,
        p.bootstrap.base_log,
        p.bootstrap.level,
        seed,
        p.ciphertext_modulus(),
    )
}

fn seeded_packing(p: &Parameters, words: Vec<u64>, seed: CompressionSeed) -> SeededLwePackingKeyswitchKeyOwned<u64> {
    SeededLwePackingKeyswitchKey::from_container(
        words,
        p.packing.base_log,
        p.packing.level,
        p.glwe_dimension.to_glwe_size(),
        p.polynomial_size,
        seed,
        p.ciphertext_modulus(),
    )
}

fn seeded_conversion(p: &Parameters, words: Vec<u64>, seed: CompressionSeed) -> SeededGlweCiphertextListOwned<u64> {
    let (glwe_size, size) = (p.glwe_dimension.to_glwe_size(), p.polynomial_size);
    SeededGlweCiphertextList::from_container(words, glwe_size, size, seed, p.ciphertext_modulus())
}

/// Encrypts the images of the key under the trace's automorphisms, and its square.
fn generate_conversion(
    client: &ClientKey,
    seed: CompressionSeed,
    seeder: &mut dyn Seeder,
) -> SeededGlweCiphertextListOwned<u64> {
    let p = &client.info.parameters;
    let mut messages = PlaintextList::from_container(conversion_messages(client.glwe.as_ref()));
    let mut list = seeded_conversion(p, vec![0; messages.as_ref().len()], seed);
    encrypt_seeded_glwe_ciphertext_list(&client.glwe, &mut list, &messages, big_noise(p), seeder);
    messages.as_mut().zeroize();
    list
}

/// tfhe's `generate_seeded_lwe_packing_keyswitch_key`, with its loop over input key bits in parallel: each
/// bit gets a fork of the generator, bounded to just the masks and noise that it uses, so that decompression
/// by tfhe reads the same stream.
fn generate_packing(client: &ClientKey, key: &mut SeededLwePackingKeyswitchKeyOwned<u64>, seeder: &mut dyn Seeder) {
    let p = &client.info.parameters;
    let (level, size) = (p.packing.level.0, p.polynomial_size.0);
    let noise = big_noise(p);
    let mut generator = EncryptionRandomGenerator::<DefaultRandomGenerator>::new(key.compression_seed(), seeder);
    // The kind of key whose forks are just these; its words are never touched, so never allocated by the system.
    let shape = LwePrivateFunctionalPackingKeyswitchKey::new(
        0_u64,
        p.packing.base_log,
        p.packing.level,
        p.big_lwe_dimension(),
        p.glwe_dimension.to_glwe_size(),
        p.polynomial_size,
        p.ciphertext_modulus(),
    );
    let config = shape.encryption_fork_config(Uniform, noise);
    let Ok(forks) = generator.par_try_fork_from_config(config) else {
        // The parent generator is unbounded, so a fork cannot fail; the sequential form is the same key.
        generate_seeded_lwe_packing_keyswitch_key(&client.big(), &client.glwe, key, noise, seeder);
        return;
    };
    let big = client.big();
    key.as_mut().par_chunks_mut(level * size).zip(big.as_ref().par_iter()).zip(forks).for_each(
        |((words, &bit), mut fork)| {
            let mut messages = PlaintextListOwned::new(0_u64, PlaintextCount(level * size));
            for (row, message) in messages.as_mut().chunks_exact_mut(size).enumerate() {
                // Levels are stored from the last (least significant) to the first.
                message[0] = bit << (64 - p.packing.base_log.0 * (level - row));
            }
            let mut list = SeededGlweCiphertextList::from_container(
                words,
                p.glwe_dimension.to_glwe_size(),
                p.polynomial_size,
                CompressionSeed::from(Seed(0)),
                p.ciphertext_modulus(),
            );
            encrypt_seeded_glwe_ciphertext_list_with_pre_seeded_generator(
                &client.glwe,
                &mut list,
                &messages,
                noise,
                &mut fork,
            );
        },
    );
}

/// Refuses a key or ciphertext made for another circuit. `left` and `right` name the two files.
pub(crate) fn same_circuit(left: &str, a: &str, right: &str, b: &str, advice: &str) -> Result<()> {
    if a == b {
        return Ok(());
    }
    let short = |digest: &str| digest.chars().take(12).collect::<String>();
    Err(RuntimeError::Mismatch {
        left: left.to_owned(),
        right: right.to_owned(),
        reason: format!("the first is of circuit {}…, the second of circuit {}…; {advice}", short(a), short(b)),
    })
}

/// Refuses a ciphertext under another pair of keys. `left` and `right` name the two files.
pub(crate) fn same_key(left: &str, a: &str, right: &str, b: &str, advice: &str) -> Result<()> {
    if a == b {
        return Ok(());
    }
    Err(RuntimeError::Mismatch {
        left: left.to_owned(),
        right: right.to_owned(),
        reason: format!("the first has key id {a}, the second {b}; {advice}"),
    })
}
