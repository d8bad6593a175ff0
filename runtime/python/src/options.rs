//! What `thex.compile` was asked for, as the compiler takes it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pyo3::prelude::*;
use pyo3::types::PyDict;
use thex::auto::Budget;
use thex::error::CompileError;
use thex::interface::InterfaceOptions;
use thex::pipeline::{CompileOptions, check_precision};
use thex_circuit::{ImageFormat, Parameters};
use thex_passes::{Precision, Profile};

use crate::arrays::{named, write_npz};
use crate::ciphertexts::Given;
use crate::errors::{raise, usage};

/// A compilation, with the folder that holds what came as bytes or arrays.
pub(crate) struct Request {
    pub(crate) options: CompileOptions,
    /// Whether forms are to be searched for, and how.
    pub(crate) budget: Option<Budget>,
    /// Whether the calibration data are a file that `thex verify` can read again.
    pub(crate) lasting: bool,
    /// Removed when the compilation is over.
    pub(crate) _folder: tempfile::TempDir,
}

/// Keywords of `thex.compile`, which its Python half has named and completed.
struct Keywords<'a, 'py>(&'a Bound<'py, PyDict>);

impl<'py> Keywords<'_, 'py> {
    fn any(&self, name: &str) -> PyResult<Option<Bound<'py, PyAny>>> {
        Ok(self.0.get_item(name)?.filter(|value| !value.is_none()))
    }

    fn get<T>(&self, name: &str, what: &str) -> PyResult<Option<T>>
    where
        T: for<'a> FromPyObject<'a, 'py>,
    {
        let wrong = |_| usage(format!("{name} must be {what}"));
        self.any(name)?.map(|value| value.extract::<T>().map_err(|e| wrong(e.into()))).transpose()
    }
}

fn write(path: PathBuf, bytes: &[u8]) -> PyResult<PathBuf> {
    match std::fs::write(&path, bytes) {
        Ok(()) => Ok(path),
        Err(source) => Err(raise(thex_circuit::CircuitError::Io { action: "write to", path, source })),
    }
}

/// The name of a file, and of nothing else.
fn plain(name: &str) -> PyResult<&str> {
    let path = Path::new(name);
    let same = path.file_name().is_some_and(|file| file == path.as_os_str());
    if same {
        Ok(name)
    } else {
        Err(usage(format!("name is the name of a file without folders, and `{name}` is none")))
    }
}

/// The model's file: as given, or written for the bytes that were.
fn model(source: Given, folder: &Path, keywords: &Keywords<'_, '_>) -> PyResult<PathBuf> {
    match (source, keywords.get::<String>("name", "a string")?) {
        (Given::Path(path), None) => Ok(path),
        (Given::Path(_), Some(_)) => Err(usage("name is for a model that is given as bytes")),
        (Given::Bytes(bytes), name) => write(folder.join(plain(name.as_deref().unwrap_or("model.onnx"))?), &bytes),
    }
}

/// The calibration data's file, and whether it was there before.
fn calibration(source: &Bound<'_, PyAny>, folder: &Path) -> PyResult<(PathBuf, bool)> {
    let Ok(arrays) = source.cast::<PyDict>() else {
        let path = source.extract::<PathBuf>();
        return path.map(|path| (path, true)).map_err(|_| {
            usage("calibration must be a dictionary of arrays by input (the first axis counts samples), or the path of an .npz")
        });
    };
    let arrays = named(arrays)?;
    if let Some((name, _)) = arrays.iter().find(|(_, array)| array.ndim() == 0) {
        return Err(raise(CompileError::Data(format!(
            "calibration: `{name}` is a single number; its first axis must count samples"
        ))));
    }
    let path = folder.join("calibration.npz");
    write_npz(&path, &arrays)?;
    Ok((path, false))
}

fn profile(name: &str) -> PyResult<(Profile, bool)> {
    match name {
        "exact" => Ok((Profile::Exact, false)),
        "the-x" => Ok((Profile::TheX, false)),
        // The search starts from the exact circuit.
        "auto" => Ok((Profile::Exact, true)),
        other => Err(usage(format!("there is no profile `{other}`; there are exact, the-x and auto"))),
    }
}

/// Class names: a file, or a list.
fn labels(keywords: &Keywords<'_, '_>, folder: &Path) -> PyResult<Option<PathBuf>> {
    let Some(value) = keywords.any("labels")? else { return Ok(None) };
    if let Ok(path) = value.extract::<PathBuf>() {
        return Ok(Some(path));
    }
    let list: Vec<String> = value
        .extract()
        .map_err(|_| usage("labels must be a list of strings, or the path of a file with one a line"))?;
    if list.iter().any(|label| label.contains(['\n', '\r'])) {
        return Err(usage("a label is one line"));
    }
    write(folder.join("labels.txt"), list.join("\n").as_bytes()).map(Some)
}

fn interface(keywords: &Keywords<'_, '_>, folder: &Path) -> PyResult<InterfaceOptions> {
    let numbers = |name| Ok::<_, PyErr>(keywords.get(name, "a list of numbers")?.unwrap_or_default());
    let invert = keywords.get("image_invert", "True or False")?.unwrap_or(false);
    let image = ImageFormat { invert, mean: numbers("image_mean")?, std: numbers("image_std")? };
    Ok(InterfaceOptions {
        tokenizer: keywords.get("tokenizer", "the path of a tokenizer.json")?,
        labels: labels(keywords, folder)?,
        image: (image != ImageFormat::default()).then_some(image),
    })
}

fn precision(keywords: &Keywords<'_, '_>) -> PyResult<Precision> {
    let usual = Precision::default();
    let precision = Precision {
        output_error: keywords.get("output_error", "a number")?.unwrap_or(usual.output_error),
        margin: keywords.get("margin", "a number")?.unwrap_or(usual.margin),
    };
    check_precision(precision).map_err(raise)?;
    Ok(precision)
}

fn parameters(keywords: &Keywords<'_, '_>) -> PyResult<Option<Parameters>> {
    let set = keywords.get::<String>("parameters", "a string such as n=850,k=1,N=2048,ks=3x5,bs=15x2,pk=12x3,gf=2")?;
    set.map(|text| text.parse::<Parameters>().map_err(|e| usage(format!("parameters: {e}")))).transpose()
}

fn budget(keywords: &Keywords<'_, '_>, auto: bool) -> PyResult<Option<Budget>> {
    let points: Option<f64> = keywords.get("budget_accuracy", "a number of points")?;
    let seconds: Option<f64> = keywords.get("budget_seconds", "a number of seconds")?;
    match (auto, points, seconds) {
        (true, Some(_), Some(_)) => Err(usage("give budget_accuracy or budget_seconds, not both")),
        (true, ..) => Budget::of(points, seconds).map(Some).map_err(raise),
        (false, None, None) => Ok(None),
        (false, ..) => Err(usage("budget_accuracy and budget_seconds are for profile=\"auto\"")),
    }
}

impl Request {
    /// Reads the arguments of `thex.compile`.
    pub(crate) fn new(source: Given, data: &Bound<'_, PyAny>, keywords: &Bound<'_, PyDict>) -> PyResult<Self> {
        let keywords = &Keywords(keywords);
        let folder = tempfile::tempdir()
            .map_err(|source| thex_circuit::CircuitError::Io {
                action: "make",
                path: "a temporary folder".into(),
                source,
            })
            .map_err(raise)?;
        let (profile, auto) =
            profile(&keywords.get::<String>("profile", "a string")?.unwrap_or_else(|| "exact".into()))?;
        let budget = budget(keywords, auto)?;
        let (calibration, lasting) = calibration(data, folder.path())?;
        let strings = |name| Ok::<_, PyErr>(keywords.get(name, "a list of strings")?.unwrap_or_default());
        let options = CompileOptions {
            model: model(source, folder.path(), keywords)?,
            calibration,
            profile,
            approximate: strings("approximate")?,
            shapes: keywords.get::<BTreeMap<_, _>>("shapes", "a dictionary of shapes by input")?.unwrap_or_default(),
            precision: precision(keywords)?,
            parameters: parameters(keywords)?,
            dump_ir: None,
            interface: interface(keywords, folder.path())?,
            freeze: keywords.get("freeze", "a dictionary of numbers, or None, by input")?.unwrap_or_default(),
            pass_options: strings("pass_options")?,
        };
        Ok(Self { options, budget, lasting, _folder: folder })
    }
}
