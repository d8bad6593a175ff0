//! Reads data sets: an `.npz` file with one array for each input of the model, the first axis counting samples.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use ndarray::{ArrayD, Axis, IxDyn, OwnedRepr};
use ndarray_npy::{NpzReader, ReadNpyError, ReadNpzError};

use crate::client::Named;
use crate::error::{Result, RuntimeError};

type Reader = NpzReader<BufReader<File>>;

fn malformed(path: &Path, reason: impl Into<String>) -> RuntimeError {
    RuntimeError::Malformed { path: path.to_owned(), kind: "data set", reason: reason.into() }
}

/// Reads one array of whichever number type it has.
fn read_array(reader: &mut Reader, name: &str) -> std::result::Result<ArrayD<f64>, ReadNpzError> {
    macro_rules! try_types {
        ($($ty:ty => $convert:expr),+ $(,)?) => {
            $(match reader.by_name::<OwnedRepr<$ty>, IxDyn>(name) {
                Ok(array) => return Ok(array.mapv($convert)),
                Err(ReadNpzError::Npy(ReadNpyError::WrongDescriptor(_))) => {}
                Err(other) => return Err(other),
            })+
        };
    }
    try_types!(
        f32 => f64::from,
        f64 => |v| v,
        i64 => |v| v as f64,
        i32 => f64::from,
        u8 => f64::from,
        bool => |v| f64::from(u8::from(v)),
        i8 => f64::from,
        i16 => f64::from,
        u16 => f64::from,
        u32 => f64::from,
    );
    reader.by_name::<OwnedRepr<u64>, IxDyn>(name).map(|a| a.mapv(|v| v as f64))
}

fn open(path: &Path) -> Result<(Reader, Vec<String>)> {
    let io = |source| RuntimeError::Io { action: "read", path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    let bad = |e: ReadNpzError| malformed(path, format!("it is truncated or no .npz file ({e})"));
    let mut reader = NpzReader::new(BufReader::new(file)).map_err(bad)?;
    let names = reader.names().map_err(bad)?;
    Ok((reader, names))
}

/// The names of all arrays in a file.
///
/// # Errors
/// The file is none.
pub fn names(path: &Path) -> Result<Vec<String>> {
    Ok(open(path)?.1)
}

/// Reads the arrays called `names`; others in the file are left alone.
///
/// # Errors
/// The file is none, an array is missing (the error lists those that are there), is not numeric, or has another
/// number of samples than the others.
pub fn read(path: &Path, names: &[&str]) -> Result<Vec<Named>> {
    let (mut reader, present) = open(path)?;
    let mut arrays = Vec::new();
    for &name in names {
        if !present.iter().any(|p| p == name) {
            let reason = format!("it has no array `{name}`, which the model takes; it has {present:?}");
            return Err(malformed(path, reason));
        }
        let array = read_array(&mut reader, name).map_err(|e| malformed(path, format!("array `{name}`: {e}")))?;
        if array.ndim() == 0 {
            return Err(malformed(path, format!("array `{name}` is a scalar; its first axis must count samples")));
        }
        arrays.push((name.to_owned(), array));
    }
    same_length(path, &arrays)?;
    Ok(arrays)
}

fn same_length(path: &Path, arrays: &[Named]) -> Result<()> {
    let Some((first, array)) = arrays.first() else { return Ok(()) };
    for (name, other) in &arrays[1..] {
        if other.shape()[0] != array.shape()[0] {
            let (a, b) = (array.shape()[0], other.shape()[0]);
            return Err(malformed(path, format!("`{first}` has {a} samples and `{name}` has {b}")));
        }
    }
    Ok(())
}

/// Number of samples of a data set.
#[must_use]
pub fn samples(arrays: &[Named]) -> usize {
    arrays.first().map_or(0, |(_, array)| array.shape()[0])
}

/// One sample of a data set, without its first axis.
///
/// # Errors
/// There are not so many samples.
pub fn sample(arrays: &[Named], index: usize) -> Result<Vec<Named>> {
    let count = samples(arrays);
    if index >= count && !arrays.is_empty() {
        return Err(RuntimeError::Input(format!("there is no sample {index}: the data set has {count}, from 0")));
    }
    Ok(arrays.iter().map(|(name, array)| (name.clone(), array.index_axis(Axis(0), index).to_owned())).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
    use super::*;
    use ndarray::{Array1, Array2};
    use ndarray_npy::NpzWriter;

    fn file(folder: &Path) -> std::path::PathBuf {
        let path = folder.join("data.npz");
        let mut writer = NpzWriter::new(File::create(&path).unwrap());
        writer.add_array("ids", &Array2::from_shape_vec((2, 3), vec![1_i64, 2, 3, 4, 5, 6]).unwrap()).unwrap();
        writer.add_array("mask", &Array2::from_elem((2, 3), true)).unwrap();
        writer.add_array("x", &Array1::from_vec(vec![0.5_f32, 0.25])).unwrap();
        writer.add_array("short", &Array1::from_vec(vec![1_u8])).unwrap();
        writer.finish().unwrap();
        path
    }

    #[test]
    fn every_number_type_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let arrays = read(&file(folder.path()), &["ids", "mask", "x"]).unwrap();
        assert_eq!(samples(&arrays), 2);
        let sample = sample(&arrays, 1).unwrap();
        assert_eq!(sample[0].1.iter().copied().collect::<Vec<_>>(), [4.0, 5.0, 6.0]);
        assert_eq!(sample[1].1.as_slice(), Some([1.0; 3].as_slice()));
        assert_eq!(sample[2].1.as_slice(), Some([0.25].as_slice()));
        assert!(super::sample(&arrays, 2).is_err());
    }

    #[test]
    fn errors_say_what_there_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(folder.path());
        let error = read(&path, &["tokens"]).unwrap_err().to_string();
        assert!(error.contains("`tokens`") && error.contains("ids"), "{error}");
        assert!(read(&path, &["ids", "short"]).unwrap_err().to_string().contains("samples"));
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(read(&path, &["ids"]).is_err());
        assert!(read(&folder.path().join("absent.npz"), &["ids"]).is_err());
    }
}
