//! Errors as people see them: a code, what, why, what to do, and an exit status by kind.

use std::process::ExitCode;

use miette::{GraphicalReportHandler, GraphicalTheme, MietteDiagnostic, Severity};
use thex::error::CompileError;

/// Prints an error on standard error and gives the exit status of its kind.
pub(crate) fn show(error: &CompileError) -> ExitCode {
    eprint!("{}", render(error, GraphicalTheme::default()));
    ExitCode::from(error.kind().exit_status())
}

fn render(error: &CompileError, theme: GraphicalTheme) -> String {
    let code = error.code();
    let diagnostic = MietteDiagnostic::new(error.to_string())
        .with_severity(Severity::Error)
        .with_code(code)
        .with_help(error.advice());
    let mut text = String::new();
    let handler = GraphicalReportHandler::new_themed(theme).with_width(120);
    if handler.render_report(&mut text, &diagnostic).is_err() {
        text = format!("error[{code}]: {error}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use thex::error::Kind;
    use thex::explain::{self, EXPLANATIONS};
    use thex::import::{ImportError, UnsupportedNode};
    use thex_circuit::CircuitError;
    use thex_passes::PassError;
    use thex_passes::error::Problem;
    use thex_runtime::RuntimeError;
    use thex_serve::ServeError;

    fn denied() -> std::io::Error {
        std::io::Error::new(std::io::ErrorKind::PermissionDenied, "permission denied")
    }

    fn import_errors() -> Vec<ImportError> {
        let path = || "model.onnx".into();
        let nodes = [("/encoder/TopK", "TopK"), ("/encoder/Loop", "Loop")].map(|(node, op)| UnsupportedNode {
            node: node.into(),
            op: op.into(),
            shapes: vec![vec![1, 16, 128], vec![1]],
            why: "its result depends on the order of encrypted values".into(),
            help: "do it on the decrypted result".into(),
        });
        vec![
            ImportError::Io { path: path(), source: denied() },
            ImportError::NotOnnx { path: path(), reason: "it is no protobuf".into() },
            ImportError::Faulty {
                path: path(),
                faults: vec!["nodes a and b form a cycle".into()],
                unsupported: Vec::new(),
            },
            ImportError::ExternalData {
                path: path(),
                tensor: "encoder.weight".into(),
                location: "model.onnx.data".into(),
                reason: "is not there; put it beside the model".into(),
            },
            ImportError::MissingShapes {
                missing: vec!["input_ids[batch,sequence]".into()],
                example: "--shape input_ids=1x16".into(),
            },
            ImportError::BadShape {
                input: "image".into(),
                given: vec![1, 7, 8],
                reason: "the model takes 4 dimensions".into(),
            },
            ImportError::Unsupported(nodes.to_vec()),
            ImportError::Analysis { path: path(), reason: "shapes of `Add_3` do not agree".into() },
            ImportError::Internal("`Add_3` differs from tract".into()),
        ]
    }

    fn pass_errors() -> Vec<PassError> {
        let problem = || Problem {
            node: "l.0.Softmax".into(),
            onnx: vec!["/encoder/layer.0/Softmax".into()],
            op: "reduce".into(),
            shape: vec![1, 2, 16, 16],
            why: "no lowering to homomorphic operations".into(),
            help: "export the model without it".into(),
        };
        let (setting, reason) = ("exact-softmax:beta=1".into(), "pass `exact-softmax` has no option `beta`".into());
        vec![
            PassError::Unsupported(vec![problem(), problem()]),
            PassError::Infeasible(vec![problem()]),
            PassError::Invalid("calibration needs at least one sample".into()),
            PassError::Option { setting, reason },
            PassError::Choice { request: "*=cubes".into(), reason: "there is no form `cubes`".into() },
            PassError::Eval(CircuitError::Eval { op: "gather".into(), reason: "index 40000 of 30522".into() }),
            PassError::Internal { pass: "fold-affine".into(), when: "after", violations: "\n  - V003 at `x`".into() },
        ]
    }

    fn circuit_errors() -> Vec<CircuitError> {
        vec![
            CircuitError::Io { action: "read", path: "model.circuit".into(), source: denied() },
            CircuitError::Malformed { path: "model.circuit".into(), kind: "circuit", reason: "it is truncated".into() },
            CircuitError::Mismatch {
                left: "`a.circuit`".into(),
                right: "`b.client`".into(),
                reason: "they come from different compilations; compile the model again".into(),
            },
            CircuitError::Parameters("n = 512 is below 128 bits of security".into()),
            CircuitError::Eval { op: "reshape".into(), reason: "6 elements do not fill [2, 4]".into() },
        ]
    }

    fn runtime_errors() -> Vec<RuntimeError> {
        vec![
            RuntimeError::Input("input `image` contains NaN".into()),
            RuntimeError::NotShareable("30 bits leave nothing of the values".into()),
            RuntimeError::Mismatch { left: "a".into(), right: "b".into(), reason: "other keys".into() },
            RuntimeError::Malformed { path: "in.ct".into(), kind: "ciphertext", reason: "it is truncated".into() },
            RuntimeError::Io { action: "write to", path: "out.ct".into(), source: denied() },
            RuntimeError::Device("no GPU can be used: there is none".into()),
            RuntimeError::Ranks("rank 1 has another circuit than rank 0".into()),
            RuntimeError::Memory { needed: 1_200_000_001, limit: 1 << 30, given: true, advice: "use less".into() },
            RuntimeError::Stopped { done: 1000, total: 4518, checkpoint: Some("kept".into()) },
            RuntimeError::Internal("a batch is empty".into()),
        ]
    }

    fn service_errors() -> Vec<ServeError> {
        let of = |make: fn(String) -> ServeError, text: &str| make(text.into());
        vec![
            of(ServeError::NotFound, "you have no job with this id"),
            of(ServeError::Denied, "the bearer token has expired"),
            of(ServeError::TooLarge, "the body is larger than 1000 bytes"),
            of(ServeError::TooSlow, "the body stalled after 100 bytes"),
            of(ServeError::BadUpload, "the body ended early"),
            of(ServeError::Busy, "the queue is full with 1024 jobs"),
            of(ServeError::Conflict, "id `a` belongs to another job of yours"),
            of(ServeError::Full, "the server's disk is full"),
            of(ServeError::Closing, "the server is shutting down"),
            of(ServeError::Usage, "`x` is no URL"),
            of(ServeError::Unreachable, "the server cannot be reached"),
            of(ServeError::Internal, "a table is gone"),
            ServeError::Runtime(RuntimeError::Input("the input has other tensors".into())),
            ServeError::Remote { status: 429, code: "TX0606", message: "the queue is full".into() },
        ]
    }

    /// One error of every variant of every type.
    fn all() -> Vec<CompileError> {
        let own = vec![
            CompileError::Usage("there is no pass `fold`".into()),
            CompileError::Data("`data.npz` holds no sample to calibrate on".into()),
            CompileError::Invalid("cannot write to standard output: closed".into()),
            CompileError::Diverged { phase: "GELU and softmax".into(), epoch: 2, rate: 0.1 },
            CompileError::Departure {
                node: "l.0.Softmax.exp.pbs".into(),
                lane: "simulated",
                reason: "its own error leaves 5.10 bits of its range, where 8.20 were modelled".into(),
            },
            CompileError::Internal("`x` has no ranges".into()),
        ];
        let own = own.into_iter();
        own.chain(import_errors().into_iter().map(CompileError::Import))
            .chain(pass_errors().into_iter().map(CompileError::Pass))
            .chain(circuit_errors().into_iter().map(CompileError::Circuit))
            .chain(runtime_errors().into_iter().map(CompileError::Runtime))
            .chain(circuit_errors().into_iter().map(|e| CompileError::Runtime(RuntimeError::Circuit(e))))
            .chain(service_errors().into_iter().map(CompileError::Serve))
            .collect()
    }

    /// The matches in `code()` name every variant; here every code is explained, as the kind that it exits with.
    #[test]
    fn every_error_has_a_code_and_every_code_an_explanation() {
        let errors = all();
        for error in &errors {
            let explanation =
                explain::find(error.code()).unwrap_or_else(|| panic!("{} is not explained", error.code()));
            assert_eq!(explanation.kind, error.kind(), "{}: {error}", error.code());
        }
        for explanation in EXPLANATIONS {
            assert!(errors.iter().any(|e| e.code() == explanation.code), "{} is never given", explanation.code);
            assert!(explanation.text.len() > 150 && explanation.title.len() < 80, "{}", explanation.code);
        }
        assert!(EXPLANATIONS.windows(2).all(|w| w[0].code < w[1].code), "codes are sorted and unique");
    }

    #[test]
    fn exit_statuses_follow_the_kind() {
        let kinds = [
            Kind::Invalid,
            Kind::Unsupported,
            Kind::Infeasible,
            Kind::Departure,
            Kind::Service,
            Kind::Stopped,
            Kind::Internal,
        ];
        assert_eq!(kinds.map(Kind::exit_status), [3, 4, 5, 6, 7, 75, 70]);
        for error in service_errors().into_iter().map(CompileError::Serve) {
            let CompileError::Serve(inner) = &error else { continue };
            assert_eq!(inner.exit_status(), error.kind().exit_status(), "{error}");
        }
    }

    #[test]
    fn rendered() {
        let shown: Vec<String> = all().iter().map(|e| render(e, GraphicalTheme::unicode_nocolor())).collect();
        insta::assert_snapshot!(shown.join("\n"));
    }

    #[test]
    fn explained() {
        insta::assert_snapshot!("list", explain::list());
        insta::assert_snapshot!("page", explain::find("tx0012").unwrap().page());
    }
}
