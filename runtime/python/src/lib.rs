//! thex for Python: the extension module `thex._thex`. Its Python half is in `python/thex`.
//!
//! The library is empty unless the feature `extension` is on, so that the workspace builds where there is no Python.
//!
//! * Long work runs on a thread of its own ([`work`]) while the calling thread, without the interpreter's lock, waits, tells progress and
//!   looks for Ctrl-C. **No panic crosses the border**: it becomes an error as any other.
//! * Errors are those of the command line, with their codes ([`errors`]); Python's own (a type, an attribute) stay Python's.
//! * Keys and ciphertexts are opaque, with the bytes of the files that the programs read.

#[cfg(feature = "extension")]
mod arrays;
#[cfg(feature = "extension")]
mod ciphertexts;
#[cfg(feature = "extension")]
mod circuit;
#[cfg(feature = "extension")]
mod client;
#[cfg(feature = "extension")]
mod compiled;
#[cfg(feature = "extension")]
mod errors;
#[cfg(feature = "extension")]
mod options;
#[cfg(feature = "extension")]
mod remote;
#[cfg(feature = "extension")]
mod work;

#[cfg(feature = "extension")]
#[pyo3::pymodule]
mod _thex {
    #[pymodule_export]
    use crate::ciphertexts::{EncryptedInput, EncryptedOutput, ServerKey};
    #[pymodule_export]
    use crate::circuit::Circuit;
    #[pymodule_export]
    use crate::client::Client;
    #[pymodule_export]
    use crate::compiled::{Compiled, compile, load};
    #[pymodule_export]
    use crate::errors::explain;
    #[pymodule_export]
    use crate::remote::Remote;
    #[pymodule_export]
    #[expect(non_upper_case_globals, reason = "Python's name for it")]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
