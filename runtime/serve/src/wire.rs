//! What goes over the wire, as JSON. Both sides use these types, and the OpenAPI document is made from them.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// Stable code: `thex explain CODE` says more.
    pub code: String,
    /// What is wrong, why, and what to do.
    pub message: String,
}

/// How the service is.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok`, or `closing` while it shuts down.
    pub status: String,
    /// Version of thex.
    pub version: String,
    /// Circuits that it serves.
    pub circuits: usize,
    /// Jobs that wait.
    pub queued: usize,
    /// Jobs at work.
    pub running: usize,
    /// Whether requests need a bearer token.
    pub tokens: bool,
}

/// A tensor that crosses the boundary.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PortInfo {
    /// Its name.
    pub name: String,
    /// Number of ciphertexts.
    pub elements: usize,
}

/// What one layer of the model costs.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LayerCost {
    /// Name of the layer.
    pub name: String,
    /// Programmable bootstraps, look-ups and products.
    pub pbs: u64,
    /// Packing keyswitches.
    pub packs: u64,
    /// Keyswitches.
    pub keyswitches: u64,
}

/// A circuit that the service runs.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CircuitInfo {
    /// SHA-256 of the circuit's file: its name in every request.
    pub digest: String,
    /// Name of the file, without `.circuit`.
    pub name: String,
    /// File name of the model that it was compiled from.
    pub model: String,
    /// Profile that it was compiled with.
    pub profile: String,
    /// What is not computed exactly, a sentence each.
    pub approximations: Vec<String>,
    /// Modelled error of the outputs, rms.
    pub predicted_output_error: Option<f64>,
    /// Programmable bootstraps of one run.
    pub pbs_count: u64,
    /// Packing keyswitches of one run.
    pub pack_count: u64,
    /// Bits of security of keys and ciphertexts.
    pub security_bits: u32,
    /// Size of a server key for it.
    pub server_key_bytes: u64,
    /// Encrypted inputs.
    pub inputs: Vec<PortInfo>,
    /// Encrypted outputs.
    pub outputs: Vec<PortInfo>,
    /// Cost, layer by layer.
    pub layers: Vec<LayerCost>,
    /// Whether the client bundle can be fetched.
    pub bundle: bool,
    /// Whether the compiler's report can be fetched.
    pub report: bool,
}

/// A registered server key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyStatus {
    /// SHA-256 of the file.
    pub digest: String,
    /// Identity of the pair of keys.
    pub id: String,
    /// The circuit that it is for.
    pub circuit: String,
    /// Size of the file.
    pub bytes: u64,
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// It waits for its turn.
    Queued,
    /// It is at work.
    Running,
    /// Its result can be fetched.
    Done,
    /// It cannot be run; `error` says why.
    Failed,
    /// Its client does not want it any more.
    Cancelled,
}

impl JobState {
    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// The state that a word stands for.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Queued, Self::Running, Self::Done, Self::Failed, Self::Cancelled].into_iter().find(|s| s.name() == name)
    }

    /// Whether it stays so.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// How far a job is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobProgress {
    /// Programmable bootstraps done.
    pub pbs_done: u64,
    /// Of so many.
    pub pbs_total: u64,
    /// Since the job was started or resumed; 0 while unknown.
    pub pbs_per_second: f64,
    /// Seconds that are left at this rate.
    pub seconds_left: Option<f64>,
    /// The node of the model at work.
    pub step: String,
}

/// An encrypted result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResultInfo {
    /// SHA-256 of the file.
    pub digest: String,
    /// Its size.
    pub bytes: u64,
}

/// A job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobStatus {
    /// The client's own id for it.
    pub id: String,
    /// Digest of the circuit.
    pub circuit: String,
    /// Digest of the server key.
    pub key: String,
    /// SHA-256 of the encrypted input.
    pub input: String,
    /// Where it stands.
    pub state: JobState,
    /// Jobs that will be run before it, while it waits.
    pub position: Option<usize>,
    /// How far it is.
    pub progress: JobProgress,
    /// Submitted, in seconds since 1970.
    pub created: f64,
    /// First started.
    pub started: Option<f64>,
    /// Ended.
    pub finished: Option<f64>,
    /// How often it was started: more than once after a crash or a restart of the server.
    pub starts: u32,
    /// Why it failed.
    pub error: Option<ErrorBody>,
    /// What can be fetched.
    pub result: Option<ResultInfo>,
}

/// What a new job is for; the body of the request is the encrypted input.
#[derive(Clone, Debug, Serialize, Deserialize, IntoParams)]
pub struct Submission {
    /// Digest of the circuit.
    pub circuit: String,
    /// Digest of the server key.
    pub key: String,
}
