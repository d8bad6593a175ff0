//! Errors of thex as Python exceptions: the classes are `thex._errors`, by kind.

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use thex::error::CompileError;
use thex::explain as explanations;

/// The exception of an error.
pub(crate) fn raise(error: impl Into<CompileError>) -> PyErr {
    let error = error.into();
    Python::attach(|py| {
        let exception = py.import("thex._errors").and_then(|module| {
            let details = (error.kind().name(), error.to_string(), error.code(), error.advice());
            module.getattr("of")?.call1(details)
        });
        exception.map_or_else(|_| PyRuntimeError::new_err(error.to_string()), PyErr::from_value)
    })
}

/// The exception of an argument that makes no sense.
pub(crate) fn usage(message: impl Into<String>) -> PyErr {
    raise(CompileError::Usage(message.into()))
}

/// The exception of values that cannot be encrypted.
pub(crate) fn unfit(message: impl Into<String>) -> PyErr {
    raise(thex_runtime::RuntimeError::Input(message.into()))
}

/// explain(code)
/// --
///
/// What an error's code means and what to do, as `thex explain CODE` prints it.
#[pyfunction]
#[pyo3(text_signature = None)]
pub(crate) fn explain(code: &str) -> PyResult<String> {
    let found = explanations::find(code);
    found
        .map(|e| e.page())
        .ok_or_else(|| usage(format!("there is no code `{code}`; there are\n{}", explanations::list())))
}
