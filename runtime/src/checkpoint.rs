//! Where a run is kept, so that it survives being killed.
//!
//! A folder holds *parts*, words of blocks of ciphertexts, each written once; and *states*, which say how far the run had got and which parts
//! its live blocks consist of. A checkpoint writes what came since the last one, so that a large memory is not written again and
//! again, and what was born and died in between is never written. Inputs are not kept: the command that goes on has them.
//!
//! ```text
//! thex-NNNNNNNN.part    words, little endian; length and SHA-256 are in the states that name it
//! thex-NNNNNNNN.state   "thexckpt", SHA-256 in hex of what follows, JSON
//! thex.lock             locked by the run at work, released by the system however that ends
//! ```
//!
//! **Atomic.** Parts and their names are on disk (fsync of files and folder) before the state that names them; the state is written under another
//! name, synced, renamed. Until then the states before it are whole: the last two are kept, and parts go when no state names them.
//! Whatever is left behind by a kill is swept by the next run. **Checked.** States and parts whose digest, length or place in
//! the circuit is wrong are set aside for the state before, or for a new start. **Bound** to the digests of circuit, key and
//! input: the checkpoint of another run is refused, not overwritten.
//!
//! Alternative rejected: one file with all memories. It would be simpler, and write a gigabyte every half a minute for BERT-tiny.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thex_circuit::file::{digest, read_limited};
use thex_circuit::{Circuit, Instruction};

use crate::error::{Result, RuntimeError};
use crate::progress::Resumed;
use crate::state::{Liveness, Space, State};

/// Version of states. Readers set any other aside.
const VERSION: u32 = 1;
const MAGIC: &[u8; 8] = b"thexckpt";
const DIGEST_CHARS: usize = 64;
/// A state larger than this is none.
const MAX_STATE_BYTES: u64 = 64 << 20;
/// States that are kept.
const STATES: usize = 2;
/// Words that are converted to bytes at a time.
const CHUNK: usize = 1 << 13;

/// Time between checkpoints if nothing else is asked for: with the part at work, well below a minute of lost work.
pub const EVERY: Duration = Duration::from_secs(20);

/// What a run is of. Two runs with the same identity have the same result (on processors of the same type).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Digest of the circuit file.
    pub circuit: String,
    /// Digest of the evaluation keys, [`ServerKey::digest`](crate::ServerKey::digest).
    pub key: String,
    /// Digest of the inputs, [`EncryptedInputs::digest`](crate::EncryptedInputs::digest).
    pub input: String,
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    /// An instruction.
    pub(crate) instruction: usize,
    /// Its units that are done.
    pub(crate) units: usize,
}

/// A run between two parts of instructions.
pub(crate) struct Snapshot<'a> {
    pub(crate) circuit: &'a Circuit,
    pub(crate) state: &'a State,
    /// Words of the instruction at work.
    pub(crate) partial: &'a [u64],
    pub(crate) position: Position,
}

/// What a run starts from.
#[derive(Default)]
pub(crate) struct Restored {
    pub(crate) position: Position,
    /// Words that are done of the instruction at work.
    pub(crate) partial: Vec<u64>,
    damaged: Vec<String>,
}

impl Restored {
    /// For whoever watches the run.
    pub(crate) fn report(self, done: u64) -> Resumed {
        Resumed { done, damaged: self.damaged }
    }
}

/// A block: its memory, and its number there.
pub(crate) type Key = (Space, usize);

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Part {
    number: u64,
    words: usize,
    sha256: String,
}

#[derive(Serialize, Deserialize)]
struct Block {
    space: Space,
    number: usize,
    parts: Vec<Part>,
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    version: u32,
    identity: Identity,
    position: Position,
    blocks: Vec<Block>,
}

impl Manifest {
    fn parts(&self) -> BTreeSet<u64> {
        self.blocks.iter().flat_map(|b| &b.parts).map(|p| p.number).collect()
    }
}

/// A state on disk.
struct Kept {
    number: u64,
    parts: BTreeSet<u64>,
}

/// The folder of a run, held by one run at a time.
pub struct Checkpoint {
    folder: PathBuf,
    identity: Identity,
    every: Duration,
    last: Instant,
    /// Number of the next file.
    next: u64,
    /// Parts of the live blocks.
    stored: BTreeMap<Key, Vec<Part>>,
    /// States on disk, oldest first.
    states: Vec<Kept>,
    /// Position of the last of them.
    position: Option<Position>,
    /// States that were found, newest first, until one is restored.
    found: Vec<(u64, Manifest)>,
    damaged: Vec<String>,
    /// Locked as long as it is open.
    _lock: File,
}

fn io(action: &'static str, path: &Path) -> impl Fn(std::io::Error) -> RuntimeError {
    move |source| RuntimeError::Io { action, path: path.to_owned(), source }
}

/// What is said when a checkpoint cannot be written.
const WRITE: &str = "write the next checkpoint (mend this, and the same command goes on from the last one) to";

const LOCK: &str = "thex.lock";

/// Number of a file of ours, and what it is.
fn parse(name: &str) -> Option<(u64, &str)> {
    let (number, kind) = name.strip_prefix("thex-")?.split_once('.')?;
    matches!(kind, "part" | "state" | "tmp").then(|| Some((number.parse().ok()?, kind)))?
}

/// SHA-256, in hex, of bytes and words.
pub(crate) fn digest_words<'a>(prefix: &[u8], words: impl IntoIterator<Item = &'a [u64]>) -> String {
    let mut hash = Sha256::new();
    hash.update(prefix);
    for chunk in words.into_iter().flat_map(|w| w.chunks(CHUNK)) {
        hash.update(chunk.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>());
    }
    hex(hash)
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// Writes words and syncs them; returns their digest.
fn write_words(path: &Path, words: &[u64]) -> std::io::Result<String> {
    let (mut file, mut hash) = (File::create(path)?, Sha256::new());
    for chunk in words.chunks(CHUNK) {
        let bytes: Vec<u8> = chunk.iter().flat_map(|w| w.to_le_bytes()).collect();
        hash.update(&bytes);
        file.write_all(&bytes)?;
    }
    file.sync_all()?;
    Ok(hex(hash))
}

/// Appends the words of a part; a sentence says what is wrong with it.
fn read_words(path: &Path, part: &Part, words: &mut Vec<u64>) -> std::result::Result<(), String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let told = |e: std::io::Error| format!("`{name}` cannot be read ({e})");
    let mut file = File::open(path).map_err(told)?;
    if Some(file.metadata().map_err(told)?.len()) != (part.words as u64).checked_mul(8) {
        return Err(format!("`{name}` has another length than it was written with"));
    }
    let (mut hash, mut bytes) = (Sha256::new(), vec![0; CHUNK * 8]);
    let mut left = part.words;
    while left > 0 {
        let bytes = &mut bytes[..left.min(CHUNK) * 8];
        file.read_exact(bytes).map_err(told)?;
        hash.update(&*bytes);
        words.extend(bytes.as_chunks::<8>().0.iter().map(|c| u64::from_le_bytes(*c)));
        left -= bytes.len() / 8;
    }
    if hex(hash) == part.sha256 { Ok(()) } else { Err(format!("`{name}` has another digest than it was written with")) }
}

fn read_manifest(path: &Path) -> std::result::Result<Manifest, String> {
    let bytes = read_limited(path, MAX_STATE_BYTES).map_err(|e| e.to_string())?;
    let content = bytes.strip_prefix(MAGIC).and_then(|rest| rest.split_at_checked(DIGEST_CHARS));
    let (sum, content) = content.ok_or("it is truncated")?;
    if digest(content).as_bytes() != sum {
        return Err("it is truncated or was altered".into());
    }
    let manifest: Manifest = serde_json::from_slice(content).map_err(|e| format!("it is damaged ({e})"))?;
    if manifest.version == VERSION {
        Ok(manifest)
    } else {
        Err(format!("its format has version {}; this program reads version {VERSION}", manifest.version))
    }
}

/// Words of each block that is alive at a position, but inputs, and of the one at work; `None` if the circuit has no such position.
pub(crate) fn alive(circuit: &Circuit, liveness: &Liveness, at: Position) -> Option<BTreeMap<Key, usize>> {
    let mut counts = [circuit.inputs.len(), 0, 0];
    let mut alive = BTreeMap::new();
    let width = |x: &Instruction| Space::of(x).width(&circuit.parameters);
    for (i, x) in circuit.instructions.get(..at.instruction)?.iter().enumerate() {
        let space = Space::of(x);
        alive.insert((space, counts[space as usize]), x.destination().len as usize * width(x));
        counts[space as usize] += 1;
        liveness.dying(i).iter().for_each(|key| _ = alive.remove(key));
    }
    if let Some(x) = circuit.instructions.get(at.instruction) {
        let space = Space::of(x);
        let words = x.unit_elements().checked_mul(at.units.min(x.units() + 1))?.checked_mul(width(x))?;
        (at.units <= x.units()).then(|| alive.insert((space, counts[space as usize]), words))?;
    } else if at.units > 0 {
        return None;
    }
    alive.retain(|_, words| *words > 0);
    Some(alive)
}

impl Checkpoint {
    /// Takes a folder, which is made if there is none, for a run of this identity, to be kept about `every` so often.
    ///
    /// # Errors
    /// The folder cannot be written, another run is using it, or it has the checkpoint of a run of something else.
    pub fn open(folder: &Path, identity: Identity, every: Duration) -> Result<Self> {
        let write = io("keep checkpoints in", folder);
        std::fs::create_dir_all(folder).map_err(&write)?;
        let lock = File::options().create(true).append(true).open(folder.join(LOCK)).map_err(&write)?;
        if lock.try_lock().is_err() {
            return Err(write(std::io::Error::other("another run is using it; give each run a folder of its own")));
        }
        let (folder, last) = (folder.to_owned(), Instant::now());
        let (stored, states, found, damaged) = (BTreeMap::new(), Vec::new(), Vec::new(), Vec::new());
        let mut checkpoint = Self {
            folder,
            identity,
            every,
            last,
            next: 0,
            stored,
            states,
            position: None,
            found,
            damaged,
            _lock: lock,
        };
        checkpoint.find()?;
        Ok(checkpoint)
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Time between checkpoints.
    #[must_use]
    pub fn every(&self) -> Duration {
        self.every
    }

    fn path(&self, number: u64, kind: &str) -> PathBuf {
        self.folder.join(format!("thex-{number:08}.{kind}"))
    }

    /// Our files in the folder.
    fn files(&self) -> Result<Vec<(u64, String)>> {
        let read = io("read", &self.folder);
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(&read)? {
            let name = entry.map_err(&read)?.file_name();
            files.extend(name.to_str().and_then(parse).map(|(number, kind)| (number, kind.to_owned())));
        }
        files.sort();
        Ok(files)
    }

    /// Reads all states.
    fn find(&mut self) -> Result<()> {
        let files = self.files()?;
        self.next = files.last().map_or(0, |(number, _)| number.saturating_add(1));
        for (number, _) in files.iter().rev().filter(|(_, kind)| kind == "state") {
            let path = self.path(*number, "state");
            match read_manifest(&path) {
                Ok(manifest) => {
                    self.check(&manifest.identity)?;
                    self.found.push((*number, manifest));
                }
                Err(reason) => self.set_aside(*number, &reason),
            }
        }
        Ok(())
    }

    fn set_aside(&mut self, number: u64, reason: &str) {
        let path = self.path(number, "state");
        self.damaged.push(format!("`{}` cannot be used: {reason}", path.display()));
    }

    /// Refuses the checkpoint of another run.
    fn check(&self, found: &Identity) -> Result<()> {
        let ours = &self.identity;
        let pairs = [
            ("circuit", &ours.circuit, &found.circuit),
            ("server key", &ours.key, &found.key),
            ("input", &ours.input, &found.input),
        ];
        let Some((what, ..)) = pairs.iter().find(|(_, a, b)| a != b) else { return Ok(()) };
        Err(RuntimeError::Mismatch {
            left: format!("the checkpoint in `{}`", self.folder.display()),
            right: "this run".into(),
            reason: format!(
                "it is of a run with another {what}; finish that run, give this one another folder, or delete the checkpoint"
            ),
        })
    }

    /// Puts the newest usable checkpoint into a state that has the inputs and nothing else; sweeps what it does not need.
    pub(crate) fn restore(&mut self, circuit: &Circuit, liveness: &Liveness, state: &mut State) -> Result<Restored> {
        let mut restored = Restored::default();
        let mut found = std::mem::take(&mut self.found);
        while let Some((number, manifest)) = found.first() {
            match self.load(circuit, liveness, manifest) {
                Ok(mut words) => {
                    restored.position = manifest.position;
                    fill(circuit, liveness, manifest.position, &mut words, state);
                    restored.partial = words.into_values().next().unwrap_or_default();
                    self.position = Some(manifest.position);
                    self.stored = manifest.blocks.iter().map(|b| ((b.space, b.number), b.parts.clone())).collect();
                    break;
                }
                Err(reason) => self.set_aside(*number, &reason),
            }
            found.remove(0);
        }
        self.states = found.iter().rev().map(|(number, m)| Kept { number: *number, parts: m.parts() }).collect();
        self.sweep()?;
        restored.damaged = std::mem::take(&mut self.damaged);
        self.last = Instant::now();
        Ok(restored)
    }

    /// The words of all blocks of a state; a sentence says why not.
    fn load(
        &self,
        circuit: &Circuit,
        liveness: &Liveness,
        manifest: &Manifest,
    ) -> std::result::Result<BTreeMap<Key, Vec<u64>>, String> {
        let unfit = "it does not fit the circuit";
        let expected = alive(circuit, liveness, manifest.position).ok_or(unfit)?;
        let size = |b: &Block| b.parts.iter().try_fold(0_usize, |sum, p| sum.checked_add(p.words));
        let found: BTreeMap<Key, Option<usize>> =
            manifest.blocks.iter().map(|b| ((b.space, b.number), size(b))).collect();
        let same = expected.iter().map(|(k, w)| (*k, Some(*w))).eq(found);
        if !same || manifest.blocks.len() != expected.len() {
            return Err(unfit.into());
        }
        let mut loaded = BTreeMap::new();
        for block in &manifest.blocks {
            let key = (block.space, block.number);
            let mut words = Vec::with_capacity(expected[&key]);
            for part in &block.parts {
                read_words(&self.path(part.number, "part"), part, &mut words)?;
            }
            loaded.insert(key, words);
        }
        Ok(loaded)
    }

    /// Removes our files that no kept state names. What cannot be removed now can be later.
    fn sweep(&self) -> Result<()> {
        let parts: BTreeSet<u64> = self.states.iter().flat_map(|s| &s.parts).copied().collect();
        for (number, kind) in self.files()? {
            let needed = match kind.as_str() {
                "state" => self.states.iter().any(|s| s.number == number),
                "part" => parts.contains(&number),
                _ => false,
            };
            if !needed {
                _ = std::fs::remove_file(self.path(number, &kind));
            }
        }
        Ok(())
    }

    /// Whether the last checkpoint is old enough.
    pub(crate) fn due(&self) -> bool {
        self.last.elapsed() >= self.every
    }

    /// Writes a checkpoint; returns the bytes that it took. If that fails, the last ones are as they were.
    pub(crate) fn keep(&mut self, snapshot: &Snapshot<'_>) -> Result<u64> {
        if self.position == Some(snapshot.position) {
            return Ok(0);
        }
        let first = self.next;
        let written = self.write(snapshot);
        if written.is_err() {
            for number in first..self.next {
                for kind in ["part", "tmp", "state"] {
                    _ = std::fs::remove_file(self.path(number, kind));
                }
            }
        }
        let bytes = written?;
        self.position = Some(snapshot.position);
        self.last = Instant::now();
        Ok(bytes)
    }

    fn take_number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    fn write(&mut self, snapshot: &Snapshot<'_>) -> Result<u64> {
        let live = snapshot.live();
        let mut stored = self.stored.clone();
        stored.retain(|key, _| live.contains_key(key));
        let mut words = 0;
        for (key, block) in live {
            let parts = stored.entry(key).or_default();
            let have: usize = parts.iter().map(|p| p.words).sum();
            let new =
                block.get(have..).ok_or_else(|| RuntimeError::Internal("a checkpoint outgrew its block".into()))?;
            if !new.is_empty() {
                let number = self.take_number();
                let path = self.path(number, "part");
                let sha256 = write_words(&path, new).map_err(io(WRITE, &path))?;
                parts.push(Part { number, words: new.len(), sha256 });
                words += new.len();
            }
        }
        let blocks = stored.iter().map(|(&(space, number), parts)| Block { space, number, parts: parts.clone() });
        let (identity, position) = (self.identity.clone(), snapshot.position);
        let bytes = self.commit(&Manifest { version: VERSION, identity, position, blocks: blocks.collect() })?;
        self.stored = stored;
        Ok(bytes + words as u64 * 8)
    }

    /// Makes a state the newest one, all of whose parts are written; returns its size.
    fn commit(&mut self, manifest: &Manifest) -> Result<u64> {
        let number = self.take_number();
        let json = serde_json::to_vec(manifest).map_err(|e| RuntimeError::Internal(e.to_string()))?;
        let bytes = [MAGIC.as_slice(), digest(&json).as_bytes(), &json].concat();
        let (temporary, path) = (self.path(number, "tmp"), self.path(number, "state"));
        let commit = || -> std::io::Result<()> {
            self.sync()?;
            let mut file = File::create(&temporary)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &path)?;
            self.sync()
        };
        commit().map_err(io(WRITE, &path))?;
        self.states.push(Kept { number, parts: manifest.parts() });
        if self.states.len() > STATES {
            self.states.remove(0);
        }
        // The checkpoint is good whether or not old files can be removed.
        _ = self.sweep();
        Ok(bytes.len() as u64)
    }

    /// Syncs the names in the folder. Only Unix can, and needs to.
    fn sync(&self) -> std::io::Result<()> {
        if cfg!(unix) { File::open(&self.folder)?.sync_all() } else { Ok(()) }
    }

    /// Removes all, and the folder if nothing else is in it.
    pub(crate) fn discard(mut self) -> Result<()> {
        self.states.clear();
        for (number, kind) in self.files()?.into_iter().rev().filter(|(_, kind)| kind == "state") {
            let path = self.path(number, &kind);
            std::fs::remove_file(&path).map_err(io("remove", &path))?;
        }
        self.sweep()?;
        _ = std::fs::remove_file(self.folder.join(LOCK));
        _ = std::fs::remove_dir(&self.folder);
        Ok(())
    }
}

impl Snapshot<'_> {
    /// The words of all live blocks but inputs, and what is done of the one at work.
    fn live(&self) -> BTreeMap<Key, &[u64]> {
        let mut live = BTreeMap::new();
        for space in Space::ALL {
            let inputs = if space == Space::Lwe { self.circuit.inputs.len() } else { 0 };
            let blocks = self.state.memory(space).blocks().iter().enumerate().skip(inputs);
            live.extend(blocks.filter(|(_, b)| !b.is_empty()).map(|(i, b)| ((space, i), b.as_slice())));
        }
        let at_work = self.circuit.instructions.get(self.position.instruction);
        if let Some(x) = at_work.filter(|_| self.position.units > 0) {
            let space = Space::of(x);
            let words = self.position.units * x.unit_elements() * space.width(&self.circuit.parameters);
            live.insert((space, self.state.memory(space).blocks().len()), &self.partial[..words]);
        }
        live
    }
}

/// Puts blocks where a run would have them at a position, and takes them out of `words`; what is left is of the instruction at work.
pub(crate) fn fill(
    circuit: &Circuit,
    liveness: &Liveness,
    at: Position,
    words: &mut BTreeMap<Key, Vec<u64>>,
    state: &mut State,
) {
    for (i, x) in circuit.instructions.iter().take(at.instruction).enumerate() {
        let space = Space::of(x);
        let number = state.memory(space).blocks().len();
        state.memory_mut(space).push(x.destination(), words.remove(&(space, number)).unwrap_or_default());
        for &(space, block) in liveness.dying(i) {
            state.memory_mut(space).free(block);
        }
    }
}
