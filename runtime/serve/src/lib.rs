//! `thex serve`: circuits behind HTTP, and `thex client`, which uses them.
//!
//! A client registers its server key once, submits encrypted inputs as jobs, follows them, and fetches encrypted results. The server
//! holds circuits, server keys and ciphertexts, and nothing that decrypts: the client's key and its values never leave the client.
//!
//! * [`wire`]: what goes over the wire, shared by both sides, and described by [`openapi`];
//! * [`api`]: the routes; [`listen`]: sockets, TLS, time limits, graceful shutdown; [`page`]: the web page, inside the binary;
//! * [`engine`]: admits jobs, runs them in fair turns ([`turns`]) and reports their progress;
//! * [`store`]: keys and jobs in SQLite and files, so that no job is lost by a crash and none runs twice to its client's eyes;
//! * [`upload`]: bodies from slow, hostile or vanished clients; [`tokens`]: who asks;
//! * [`client`]: the other side, blocking, for the command line and for bindings.
//!
//! **Promise kept across crashes:** a submission that was answered is on disk before the answer; the same id with the same input is
//! the same job, however often it is sent; a job that was running when the process died is queued again.
//!
//! **Invariant:** this crate knows no ONNX, no IR and no pass.

pub mod api;
pub mod client;
pub mod commands;
pub mod engine;
pub mod error;
pub mod listen;
pub mod logs;
pub mod metrics;
pub mod models;
pub mod openapi;
pub mod page;
mod run;
mod sha;
pub mod store;
pub mod tokens;
pub mod turns;
pub mod upload;
pub mod wire;

pub use error::{Result, ServeError};
