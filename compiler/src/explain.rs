//! What each error code means: the table behind `thex explain`.
//!
//! Codes are stable: a code is never given another meaning, and one that goes out of use is not used again. The error types
//! say which code a value has (`code()`, in the crate of the type, so that the small runtime prints codes without
//! this table); here is what to tell people. Codes from `TX0001` are invalid input, from `TX0101` unsupported, from
//! `TX0201` infeasible, from `TX0301` our bugs, from `TX0401` stopped on
//! request, from `TX0501` checks that failed, from `TX0601` refusals of a service.

use std::fmt::Write;

use crate::error::Kind;

/// One error code.
#[derive(Clone, Copy, Debug)]
pub struct Explanation {
    /// `TX0001`.
    pub code: &'static str,
    /// Which kind of error, and so which exit status.
    pub kind: Kind,
    /// One line.
    pub title: &'static str,
    /// What happened, common causes, what to do, an example.
    pub text: &'static str,
}

/// All codes, in order.
pub const EXPLANATIONS: &[Explanation] = &[
    Explanation {
        code: "TX0001",
        kind: Kind::Invalid,
        title: "a file cannot be read or written",
        text: "\
The operating system refused to read or to write a file; its own reason stands at the end of the message.

Common causes: a misspelled path; a folder that does not exist (thex makes only the folder of `keygen -o`); missing
permissions (`client.key` is readable for its owner alone); a full disk.

Outputs are tried before the long work starts, and are written to a temporary file that takes the name at the end: there is
never half a file under the name that you gave.

Example: `thex compile m.onnx --calibration d.npz -o results/m` needs the folder `results`: `mkdir results` first.",
    },
    Explanation {
        code: "TX0002",
        kind: Kind::Invalid,
        title: "a file is not what it should be, or is damaged",
        text: "\
A circuit, client bundle, key, ciphertext or data file could be read, but its content is not that of such a file: it is of
another kind, truncated, of a newer format version, or holds values out of bounds.

Common causes: two arguments swapped (the bundle where the circuit belongs); a copy that was interrupted; a file of a newer
thex; an .npz without the array that the model's input names, or with object arrays.

What to do: compare the file's size with the original and copy it again, or make it again with the command that wrote it.

Example: `thex run m.client …` is refused, because `run` takes `m.circuit`; `m.client` is for `encrypt` and `decrypt`.",
    },
    Explanation {
        code: "TX0003",
        kind: Kind::Invalid,
        title: "files do not belong together",
        text: "\
Circuit, client bundle, keys and ciphertexts of one compilation carry its digest, and ciphertexts that of their key. Two of the
files given carry different ones. Running them together would give noise, not an answer.

Common causes: the model was compiled again (with other options or data the digest changes) and the keys are still those of
the old circuit; files of two experiments in one folder.

What to do: use files of one compilation: `thex inspect OUT.circuit` prints its digest. After compiling again, run
`thex keygen` and `thex encrypt` again. Compiling the same model with the same data and options gives the same digest.",
    },
    Explanation {
        code: "TX0004",
        kind: Kind::Invalid,
        title: "not a usable ONNX model",
        text: "\
The file is no ONNX protobuf, is cut off, or does not describe a graph that could run.

Common causes: a Git LFS pointer or an HTML error page in place of the model; a PyTorch checkpoint (`.pt`, `.bin`) or a
safetensors file renamed; an interrupted download.

What to do: check that other tools read it, for example `python -c \"import onnx; onnx.checker.check_model('m.onnx')\"`, and
export it again if they do not.",
    },
    Explanation {
        code: "TX0005",
        kind: Kind::Invalid,
        title: "the model's weights are in another file that cannot be used",
        text: "\
Large ONNX models keep weights beside the model (\"external data\"), at a path relative to the model's folder. That file
is missing, too short, or lies outside the folder, which thex does not follow.

What to do: put the file (often `model.onnx.data` or `model.onnx_data`) beside the model under the name in the message; or put
all into one file: `onnx.save(onnx.load('m.onnx'), 'one.onnx')`, up to 2 GB.",
    },
    Explanation {
        code: "TX0006",
        kind: Kind::Invalid,
        title: "the shapes of the inputs are not known",
        text: "\
A circuit has a fixed number of ciphertexts, so every dimension of every input needs a number. The export has symbolic
dimensions (`batch`, `sequence`) and neither an option nor the calibration data say what they are.

What to do: give the shapes, batch 1 in front: `--shape input_ids=1x16`. They follow by themselves when the calibration data has an
array named after the input.",
    },
    Explanation {
        code: "TX0007",
        kind: Kind::Invalid,
        title: "a shape does not fit the model's input",
        text: "\
The shape that was given, or that of the calibration array, contradicts what the model declares: another number of
dimensions, or another size where the model fixes one.

Common causes: a missing batch dimension (write `1x16`, not `16`); calibration arrays for another sequence length; samples on
another axis than the first.

Example: a model that declares `image: 1×1×8×8` takes `--shape image=1x1x8x8` and arrays of shape (samples, 1, 8, 8).",
    },
    Explanation {
        code: "TX0008",
        kind: Kind::Invalid,
        title: "the frontend cannot analyse the model",
        text: "\
tract, which reads ONNX for thex, could not infer types and shapes of the model, or could not simplify it; the message holds
its reason. The model may be inconsistent, or use a form that tract does not know.

What to do: run the model through a simplifier (`onnxsim m.onnx simple.onnx`), export it again with fixed shapes, or with
another exporter (`torch.onnx.export(..., dynamo=False)` and `dynamo=True` write quite different graphs).",
    },
    Explanation {
        code: "TX0009",
        kind: Kind::Invalid,
        title: "calibration or evaluation data do not fit the model",
        text: "\
An .npz for `--calibration` or `--data` holds one array for each input of the model, under the input's name, the first axis
counting samples. An array is missing or has another shape, there is no sample, values are not finite, or there are fewer labels
than samples.

Calibration fixes the ranges that ciphertexts can hold, so the data must be like what will be encrypted: 500 samples or more are a
good number.

Example: `numpy.savez('data.npz', input_ids=ids, attention_mask=mask)` with `ids.shape == (500, 16)` for an input `1×16`.",
    },
    Explanation {
        code: "TX0010",
        kind: Kind::Invalid,
        title: "the data to encrypt, run or decrypt is not what the model takes",
        text: "\
An input is missing, has another shape than the circuit was compiled for, holds NaN or a value that the model's clear
prologue cannot use (an index outside an embedding table), or the sample number is beyond the data set.

What to do: compare with the inputs that `thex inspect OUT.circuit --format json` lists. Values outside the calibrated
range are no error: they are clamped, with a warning.",
    },
    Explanation {
        code: "TX0011",
        kind: Kind::Invalid,
        title: "an argument makes no sense here",
        text: "\
The command line could be parsed, but a value is out of bounds, names nothing that exists (a pass, an input of the model), or does
not go with the other arguments.

What to do: the message lists what there is. `thex passes` lists passes in pipeline order with the profiles that they belong to;
`thex COMMAND --help` explains every argument.",
    },
    Explanation {
        code: "TX0012",
        kind: Kind::Invalid,
        title: "an option of a pass does not exist, or takes other values",
        text: "\
`-x pass:option=value` sets an option of a pass. The pass does not exist, has no such option, or the
value is not in the option's domain. The message lists what there is.

What to do: `thex passes` lists every pass with its options, defaults and bounds; `thex passes NAME` shows one at length.

Example: `thex compile m.onnx --calibration d.npz -x exact-softmax:alpha=0.4 -x calibrate:headroom=2 -o m`",
    },
    Explanation {
        code: "TX0013",
        kind: Kind::Invalid,
        title: "an operation cannot be evaluated",
        text: "\
A tensor operation got operands that do not fit it: shapes that do not broadcast, an index beyond a table. For a model that
imported this is mostly data: a token id outside the vocabulary, in calibration or in the sample to encrypt.

What to do: check that ids lie below the size of the embedding table and that arrays have the declared shapes. If they do,
please report the model: passes must not make such graphs.",
    },
    Explanation {
        code: "TX0014",
        kind: Kind::Invalid,
        title: "a request cannot be fulfilled",
        text: "\
Something outside thex does not allow what was asked for: standard output is closed, there is no room for temporary files, the
model has no output to compare, or the circuit's outputs have other names than the model's.

What to do: follow the message. For `evaluate`, give the model that the circuit was compiled from.",
    },
    Explanation {
        code: "TX0015",
        kind: Kind::Invalid,
        title: "the model is faulty, or asks for more than it may",
        text: "\
The file is an ONNX model, but parts of it cannot be: a cycle, a name given twice, weights that are not finite, a missing
operand, a very old operator set. Or it asks for tensors larger than any transformer that could be encrypted: more than 2^26
elements in one, or 2^27 computed in all. The message lists every fault, and unsupported operators as well.

What to do: export the model again; check the weights for NaN (a diverged training); give smaller shapes with --shape.",
    },
    Explanation {
        code: "TX0016",
        kind: Kind::Invalid,
        title: "a node is to be computed in a form that it does not take",
        text: "\
`--approximate NODE=FORM` chooses how GELUs (exact, relu), softmaxes (exact, two-pass, row-maximum, cube, cube-network, score,
score-network) and layer norms (exact, affine, constant) are computed, for the nodes whose name in the IR or in the ONNX file matches NODE, where `*` stands for any text.
There is no such form, no node matches, or what matches does not take this form. The message lists nodes and forms. What the
client computes (embeddings and their norm, a final softmax) is exact and free, and not listed.

What to do: choose from the list; quote `*`, so that the shell leaves it alone.

Example: `thex compile m.onnx --calibration d.npz --approximate '*norm1*=constant' --approximate 'layers.0.*=exact' -o m`",
    },
    Explanation {
        code: "TX0017",
        kind: Kind::Invalid,
        title: "training diverged",
        text: "\
While a model was distilled, the loss became infinite or no number at all, so going on would train nonsense.

Common causes: a learning rate too high for the model or its batch; approximations that the model cannot follow in one step
(scores far above the cubes' range, a line in place of a norm whose input has outliers); training data with extreme values.

What to do: lower `--learning-rate` by a factor of 3; choose milder forms for single nodes with `--approximate NODE=FORM`, for
example `'*norm*=constant'`. OUT.checkpoint still has the last good epoch, but belongs to the old options: give `--restart`.

Example: `thex distill m.onnx --data train.npz --profile the-x --learning-rate 0.0005 --restart -o student`.",
    },
    Explanation {
        code: "TX0101",
        kind: Kind::Unsupported,
        title: "the model has operators that thex does not compile",
        text: "\
The message lists every such node, with its ONNX name, operator, operand shapes, the reason and what to do: all of them at
once, so that one export can mend them all.

Common causes: control flow (`If`, `Loop`); integer arithmetic on values that depend on an input (masks); data-dependent shapes
(`NonZero`, `TopK`); a decoder's key-value cache.

What to do: export only the encoder, in evaluation mode, with fixed shapes; compute what depends on shapes and masks before
the model. What comes after the last transformer layer and needs such an operator can be done on the decrypted result.",
    },
    Explanation {
        code: "TX0102",
        kind: Kind::Unsupported,
        title: "nodes cannot be lowered to homomorphic operations",
        text: "\
The model was imported, but some nodes that depend on encrypted inputs have no homomorphic form: a maximum over an axis, values
as large as those of an attention mask that is made from an input. The message lists all of them with their ONNX names.

What to do: export without them (a fixed length needs no padding mask); let the client compute them. `thex compile
--stop-after canonicalize` prints the graph as the passes see it.",
    },
    Explanation {
        code: "TX0103",
        kind: Kind::Unsupported,
        title: "parameters are refused",
        text: "\
The cryptographic parameters in a file are below 128 bits of security by tfhe's noise curve, or outside the dimensions for which
that curve was fitted and checked (runtime/circuit/security/table.csv). thex does not run them: keys made with them would protect nothing.

Common causes: a circuit or bundle that was edited, or written by another version with other parameter sets.

What to do: compile the model again with this version.",
    },
    Explanation {
        code: "TX0104",
        kind: Kind::Unsupported,
        title: "a result cannot be made safe to share",
        text: "\
`decrypt --share=BITS` hides the error of a result, which depends on the secret key, under fresh noise that is larger by about BITS
bits. This result has not that many bits between its error and its range, so nothing of it would be left.

Common causes: the outputs of a transformer have three to six bits above their noise, while 30 bits of statistical security take
more than 30.

What to do: share the decision (the class), not the numbers; ask for fewer bits, if the message names a number that fits and it is
enough for you; or keep the numbers to the key's owner.",
    },
    Explanation {
        code: "TX0110",
        kind: Kind::Unsupported,
        title: "the GPU cannot be used",
        text: "\
`--backend cuda` was asked for, and the program was built without it, no GPU is there, its driver does not answer, or it is too old
(compute capability below 8.0) or too small for the circuit.

What to do: build with `--features cuda` where NVIDIA's compiler is (the README says how); compare with `nvidia-smi`; choose among
several GPUs with CUDA_VISIBLE_DEVICES; or leave `--backend cuda` away: the processor runs the same circuit with the same keys.",
    },
    Explanation {
        code: "TX0111",
        kind: Kind::Unsupported,
        title: "the ranks of a run cannot start",
        text: "\
`mpirun` started several processes to share a run, and one of them could not read what it needs, the MPI library could not be used, the
program was built without the feature `mpi`, or `--backend cuda` was asked for, which ranks do not share.

What to do: mend what is named of the rank that is named: each rank reads circuit, server key and input for itself, under the same names on
every machine; build with `--features mpi` (docs/MPI.md says how). To run circuits apart under `mpirun`, one in each process, start them
with `env -u OMPI_COMM_WORLD_RANK -u OMPI_COMM_WORLD_SIZE -u PMIX_RANK -u PMI_RANK thex run …`.",
    },
    Explanation {
        code: "TX0201",
        kind: Kind::Infeasible,
        title: "no encoding satisfies the constraints",
        text: "\
The model can be lowered, but for some linear maps there are no scales under which both their integer weights and the noise
stay within what the parameters allow. The message lists the nodes.

Common causes: channels whose ranges differ by many orders of magnitude (outliers); weights that cancel almost completely; a
calibration set with a degenerate sample.

What to do: allow more error (`--output-error 0.1`), use a smaller margin (`--margin 0.1`), look for outliers in the calibration data;
`thex report` shows the range of every tensor and channel of a compilation that worked.",
    },
    Explanation {
        code: "TX0202",
        kind: Kind::Infeasible,
        title: "a run does not fit into memory",
        text: "\
Before a run starts, its peak of memory is predicted from the circuit: the circuit itself, the expanded keys, and the ciphertexts
that are alive at the busiest instruction, with the buffers of a batch. That peak is above `--memory`, or above what the machine (or
its control group) has. Nothing was started and nothing written.

What to do: allow more with `--memory`; use a larger machine; fewer `--threads` need smaller buffers; compile for shorter
sequences. `thex inspect OUT.circuit` prints the predicted peak.

Example: `thex run m.circuit --memory 2GB …`",
    },
    Explanation {
        code: "TX0301",
        kind: Kind::Internal,
        title: "the compiler contradicts itself",
        text: "\
A bug of thex, not of your model or data: a fact that one stage promises was missing in the next, or the imported graph does not
compute what tract computes on the same file.

What to do: please report it with the model, or a smaller one that shows it, and the output of the command with `-vv`.",
    },
    Explanation {
        code: "TX0302",
        kind: Kind::Internal,
        title: "a pass got or made a graph that the verifier rejects",
        text: "\
A bug of thex: between passes a verifier checks numbered invariants (V001 …) of the graph. The message names the pass and what was
violated; \"before\" means that an earlier pass, or the frontend, is at fault.

What to do: please report it with the model. `--dump-ir DIR` writes the graph after every pass; `thex inspect MODEL.onnx --pass
NAME …` shows what one pass changes. With `-x` options set, try without them: it tells where to look.",
    },
    Explanation {
        code: "TX0303",
        kind: Kind::Internal,
        title: "the runtime contradicts itself",
        text: "\
A bug of thex, not of your circuit or data: a key or a step of the executor is not as it must be after all checks were passed.

What to do: please report it with the output of `thex inspect OUT.circuit --format json` and the command.",
    },
    Explanation {
        code: "TX0401",
        kind: Kind::Stopped,
        title: "a run was stopped on request and can go on",
        text: "\
The first Ctrl-C (SIGINT) or SIGTERM stops a run with `--checkpoint DIR` after the batch at work, writes a checkpoint, and exits
with status 75. A second one ends the process at once; then the last checkpoint is up to half a minute old.

What to do: give the same command again, with the same circuit, key, input and folder. The result is the same, byte for byte, as
without the interruption (on processors of the same type). To give up the run, delete the folder.",
    },
    Explanation {
        code: "TX0501",
        kind: Kind::Departure,
        title: "a node of a circuit departs from its prediction",
        text: "\
`thex verify` held every node of a circuit against its model, in up to three ways: the circuit's integers and tables without noise
(quantised), with modelled noise (simulated), and what ciphertexts decrypt to. The own error of a node, given its operands as
the circuit has them, is more than twice what was predicted, more than chance makes of it, and moves the outputs. The
table names all such nodes with `!`; the message names the first.

Common causes: data unlike the calibration data, which leave ranges (the column `outside`). If only decrypted values depart,
keys, kernels or the machine are at fault: please report it.

Example: `thex verify m --model m.onnx --data dev.npz --key keys/client.key`",
    },
    Explanation {
        code: "TX0601",
        kind: Kind::Service,
        title: "the server has no such circuit, key or job",
        text: "\
`thex serve` answers 404: a digest names no circuit in its folder, no server key that this client registered, or an id names no job of
this client. What belongs to another client is answered in the same way.

Common causes: the server was started on another folder; a circuit was compiled again, which changes its digest; the result was kept for
--keep hours and then forgotten; the token is another client's.

What to do: `thex client --server URL circuits` and `jobs` list what there is.",
    },
    Explanation {
        code: "TX0602",
        kind: Kind::Service,
        title: "the bearer token is missing, unknown or has expired",
        text: "\
`thex serve --tokens` answers 401. It takes requests with `Authorization: Bearer TOKEN` alone, for tokens whose hash is in its file and
whose time is not over.

What to do: the server's owner makes a token with `thex token NAME --tokens TOKENS.json --days 90`; the client gives it as
`--token FILE` or in the environment as THEX_TOKEN. A running server reads the file again when it changes.",
    },
    Explanation {
        code: "TX0603",
        kind: Kind::Service,
        title: "the body of a request is too large",
        text: "\
`thex serve` answers 413: the body is larger than the largest server key, or encrypted input, that its circuits can need. Their sizes
follow from the parameters, so nothing that is meant for this server is refused.

What to do: check that the file is the one that was meant (`server.key` for a key, the file that `encrypt` wrote for a job) and that
it was made for a circuit of this server.",
    },
    Explanation {
        code: "TX0604",
        kind: Kind::Service,
        title: "the client is too slow",
        text: "\
`thex serve` answers 408: no byte of the body came for --idle seconds, or it came at less than 16 kB a second. What had come is
deleted; nothing is kept of half an upload.

What to do: send it again, over a better connection; the server's owner may raise --idle. `thex client` tries again by itself.",
    },
    Explanation {
        code: "TX0605",
        kind: Kind::Service,
        title: "an upload is incomplete, or not what its digest says",
        text: "\
`thex serve` answers 400: the body ended before its announced length, or the SHA-256 of what came is not the one in the URL. Nothing is
kept.

What to do: send it again. If that does not help, compare `sha256sum server.key` with the digest in the URL: the file
may have changed since the digest was taken.",
    },
    Explanation {
        code: "TX0606",
        kind: Kind::Service,
        title: "the queue is full, or a quota is used up",
        text: "\
`thex serve` answers 429: there are --queue unfinished jobs in all, or --client-jobs of this client, or the client has --client-keys
server keys. Jobs that are queued are not affected.

What to do: wait for a job to end (`Retry-After` says how long to wait before trying again; `thex client` does so by itself), cancel
one, or delete a key with `DELETE /v1/keys/DIGEST`.",
    },
    Explanation {
        code: "TX0607",
        kind: Kind::Service,
        title: "the request contradicts what the server has",
        text: "\
`thex serve` answers 409: the id of a new job belongs to another job of the same client, with another circuit, key or input; a result is
asked of a job that has none; a job that has not ended is to be forgotten; or a key is to be deleted that unfinished jobs need.

What to do: choose another id (`thex client predict` without --id takes one that cannot clash); wait for the job, or cancel it. The
same id with the same input is no conflict: it is the same job, and is not run twice.",
    },
    Explanation {
        code: "TX0608",
        kind: Kind::Service,
        title: "the server has no room",
        text: "\
`thex serve` answers 507: its disk is full, or the --storage gigabytes granted to it are used up by keys, inputs and results. Nothing was
kept of this request. Jobs that are queued stay so, and a job whose result does not fit is tried again.

What to do: delete results and keys that are needed no longer (`DELETE /v1/jobs/ID`, `DELETE /v1/keys/DIGEST`); the server's
owner may free the disk, raise --storage, or lower --keep.",
    },
    Explanation {
        code: "TX0609",
        kind: Kind::Service,
        title: "the server is shutting down",
        text: "\
`thex serve` answers 503: it got SIGTERM or SIGINT and takes no new work. Jobs that were submitted are kept, and go on when it is started
again on the same --data folder.

What to do: try again in a minute; `thex client` does so by itself, for --patience seconds.",
    },
    Explanation {
        code: "TX0610",
        kind: Kind::Service,
        title: "the server cannot be reached, or does not answer as thex does",
        text: "\
`thex client` got no connection, lost it again and again, could not verify the server's certificate, or got an answer that is not one of
`thex serve`.

Common causes: a misspelled URL or port; http in place of https or the other way round; a proxy in between; a certificate of a private
authority.

What to do: `curl URL/v1/health` shows whether the server is there; `--ca CA.pem` trusts a private authority; `--patience` lets the
client wait longer for a server that restarts.",
    },
];

/// The explanation of a code, however it is capitalised.
#[must_use]
pub fn find(code: &str) -> Option<&'static Explanation> {
    EXPLANATIONS.iter().find(|e| e.code.eq_ignore_ascii_case(code))
}

/// All codes, a line each, by kind.
#[must_use]
pub fn list() -> String {
    let mut out = String::new();
    let kinds = [
        Kind::Invalid,
        Kind::Unsupported,
        Kind::Infeasible,
        Kind::Internal,
        Kind::Stopped,
        Kind::Departure,
        Kind::Service,
    ];
    for kind in kinds {
        let _ = writeln!(out, "{} (exit status {})", kind.name(), kind.exit_status());
        for e in EXPLANATIONS.iter().filter(|e| e.kind == kind) {
            let _ = writeln!(out, "  {}  {}", e.code, e.title);
        }
    }
    out
}

impl Explanation {
    /// At length.
    #[must_use]
    pub fn page(&self) -> String {
        let Self { code, kind, title, text } = self;
        format!("{code}: {title}\n{}, exit status {}\n\n{text}\n", kind.name(), kind.exit_status())
    }
}
