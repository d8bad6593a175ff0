//! A PNG picture → the tensor that an image model takes.
//!
//! PNG alone, because it is lossless: what is encrypted is what is in the file. Brightness is taken as stored, from 0 to 1,
//! without any gamma, as the usual data sets do. A picture of another size is resized by area averaging: each
//! pixel of the result is the mean over the part of the picture that it covers, so that thin strokes fade and do not
//! vanish between samples. Colour becomes grey by the weights of ITU-R BT.601.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use ndarray::{Array3, ArrayD};
use png::{BitDepth, ColorType, Decoder, DecodingError, Limits, Transformations};
use thex_circuit::{ClientBundle, ImageFormat};

use crate::client::Named;
use crate::error::{Result, RuntimeError};

/// The most that decoding may allocate, about 16 million pixels.
const MAX_BYTES: usize = 128 << 20;
/// Pictures with more pixels are refused before they are decoded, and so are models of them.
const MAX_PIXELS: usize = 1 << 24;

/// A picture as the model takes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Pictured {
    /// The model's one input.
    pub inputs: Vec<Named>,
    /// What was done to the picture, for people to know.
    pub notes: Vec<String>,
}

/// The model's image input: its name, and channels, height and width.
///
/// # Errors
/// A sentence that says what the model takes instead.
pub fn image_input(inputs: &[(String, Vec<usize>)]) -> std::result::Result<(&str, [usize; 3]), String> {
    if let [(name, shape)] = inputs
        && let [1, channels @ (1 | 3), height, width] = shape[..]
        && height.checked_mul(width).is_some_and(|pixels| (1..=MAX_PIXELS).contains(&pixels))
    {
        return Ok((name, [channels, height, width]));
    }
    let taken: Vec<String> = inputs.iter().map(|(name, shape)| format!("`{name}` {shape:?}")).collect();
    let wanted = "one input [1, channels, height, width] with 1 channel (grey) or 3 (RGB)";
    Err(format!("the model takes no image: that is {wanted}, and its inputs are {}", taken.join(", ")))
}

/// Reads a picture into the input of a model.
///
/// # Errors
/// The model takes no image, or the file is no PNG.
pub fn read(bundle: &ClientBundle, path: &Path) -> Result<Pictured> {
    let (name, [channels, height, width]) = image_input(&bundle.prologue.inputs).map_err(RuntimeError::Input)?;
    let mut notes = Vec::new();
    let picture = with_channels(decode(path, &mut notes)?, channels, &mut notes);
    let picture = with_size(picture, height, width, &mut notes);
    let tensor = normalise(&picture, bundle.interface.image.as_ref());
    Ok(Pictured { inputs: vec![(name.to_owned(), tensor)], notes })
}

fn malformed(path: &Path, reason: impl Into<String>) -> RuntimeError {
    RuntimeError::Malformed { path: path.to_owned(), kind: "PNG picture", reason: reason.into() }
}

fn bad_png(path: &Path, error: &DecodingError) -> RuntimeError {
    let reason = match error {
        DecodingError::LimitsExceeded => "it is too large".to_owned(),
        DecodingError::IoError(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => "it is truncated".to_owned(),
        DecodingError::IoError(_) | DecodingError::Format(_) | DecodingError::Parameter(_) => {
            format!("{error}; only PNG is read, so convert other formats first")
        }
    };
    malformed(path, reason)
}

/// Channels of the file, height, width; brightness from 0 to 1; transparency laid on white.
fn decode(path: &Path, notes: &mut Vec<String>) -> Result<Array3<f64>> {
    let file = File::open(path).map_err(|source| RuntimeError::Io { action: "read", path: path.to_owned(), source })?;
    let mut decoder = Decoder::new_with_limits(BufReader::new(file), Limits { bytes: MAX_BYTES });
    decoder.set_transformations(Transformations::EXPAND);
    let bad = |e: DecodingError| bad_png(path, &e);
    let mut reader = decoder.read_info().map_err(bad)?;
    let (width, height) = (reader.info().width as usize, reader.info().height as usize);
    if width.checked_mul(height).is_none_or(|pixels| pixels > MAX_PIXELS) {
        return Err(malformed(path, format!("{width}×{height} pixels are more than {MAX_PIXELS}")));
    }
    let size = reader.output_buffer_size().ok_or_else(|| malformed(path, "it is too large"))?;
    let mut buffer = vec![0; size];
    let frame = reader.next_frame(&mut buffer).map_err(bad)?;
    let samples = brightness(&buffer[..frame.buffer_size()], frame.bit_depth);
    let (colour, alpha) = match frame.color_type {
        ColorType::Grayscale => (1, false),
        ColorType::GrayscaleAlpha => (1, true),
        ColorType::Rgb => (3, false),
        ColorType::Rgba => (3, true),
        ColorType::Indexed => return Err(malformed(path, "its palette cannot be expanded")),
    };
    if alpha {
        notes.push("transparent parts were laid on white".into());
    }
    planes(&samples, colour, alpha, height, width).ok_or_else(|| malformed(path, "it is truncated"))
}

/// Samples of 8 or 16 bits as fractions of the largest.
fn brightness(bytes: &[u8], depth: BitDepth) -> Vec<f64> {
    match depth {
        BitDepth::Sixteen => {
            let (pairs, _) = bytes.as_chunks::<2>();
            pairs.iter().map(|&pair| f64::from(u16::from_be_bytes(pair)) / 65535.0).collect()
        }
        BitDepth::One | BitDepth::Two | BitDepth::Four | BitDepth::Eight => {
            bytes.iter().map(|&byte| f64::from(byte) / 255.0).collect()
        }
    }
}

/// Interleaved samples → planes; `None` if there are too few.
fn planes(samples: &[f64], colour: usize, alpha: bool, height: usize, width: usize) -> Option<Array3<f64>> {
    let step = colour + usize::from(alpha);
    if samples.len() < step * height * width {
        return None;
    }
    Some(Array3::from_shape_fn((colour, height, width), |(c, y, x)| {
        let pixel = &samples[step * (y * width + x)..][..step];
        let opacity = if alpha { pixel[colour] } else { 1.0 };
        opacity * pixel[c] + (1.0 - opacity)
    }))
}

/// Grey ↔ RGB as the model wants.
fn with_channels(picture: Array3<f64>, channels: usize, notes: &mut Vec<String>) -> Array3<f64> {
    let (found, height, width) = picture.dim();
    match (found, channels) {
        (3, 1) => {
            notes.push("its colours were turned to grey".into());
            let grey = |y: usize, x: usize| {
                0.299 * picture[[0, y, x]] + 0.587 * picture[[1, y, x]] + 0.114 * picture[[2, y, x]]
            };
            Array3::from_shape_fn((1, height, width), |(_, y, x)| grey(y, x))
        }
        (1, 3) => Array3::from_shape_fn((3, height, width), |(_, y, x)| picture[[0, y, x]]),
        _ => picture,
    }
}

fn with_size(picture: Array3<f64>, height: usize, width: usize, notes: &mut Vec<String>) -> Array3<f64> {
    let (channels, h, w) = picture.dim();
    if (h, w) == (height, width) {
        return picture;
    }
    let shape = if h * width == w * height { "" } else { ", which changes its proportions" };
    notes.push(format!("its {w}×{h} pixels were averaged to the model's {width}×{height}{shape}"));
    let (rows, columns) = (coverage(h, height), coverage(w, width));
    let mean_row = |c: usize, y: usize, x: usize| -> f64 {
        columns[x].iter().map(|&(from, share)| share * picture[[c, y, from]]).sum()
    };
    let narrow = Array3::from_shape_fn((channels, h, width), |(c, y, x)| mean_row(c, y, x));
    Array3::from_shape_fn((channels, height, width), |(c, y, x)| {
        rows[y].iter().map(|&(from, share)| share * narrow[[c, from, x]]).sum()
    })
}

/// For each of `to` equal cells of a line, the pixels of `from` that it covers, and their shares of it.
fn coverage(from: usize, to: usize) -> Vec<Vec<(usize, f64)>> {
    let cell = |i: usize| {
        // In units of 1/to of a pixel, where all edges are whole numbers and a cell is `from` long.
        let (start, end) = (i * from, (i + 1) * from);
        let share = |p: usize| (end.min((p + 1) * to) - start.max(p * to)) as f64 / from as f64;
        (start / to..end.div_ceil(to)).map(|p| (p, share(p))).collect()
    };
    (0..to).map(cell).collect()
}

fn normalise(picture: &Array3<f64>, format: Option<&ImageFormat>) -> ArrayD<f64> {
    let mut tensor = picture.clone();
    if let Some(format) = format {
        tensor.indexed_iter_mut().for_each(|((c, _, _), v)| *v = format.apply(c, *v));
    }
    tensor.insert_axis(ndarray::Axis(0)).into_dyn()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, clippy::float_cmp, reason = "tests")]
    use super::*;
    use crate::npz;
    use std::path::PathBuf;
    use thex_circuit::clear::ClearGraph;
    use thex_circuit::{Interface, Parameters};

    fn repository(path: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests").join(path)
    }

    fn bundle(shape: &[usize], image: Option<ImageFormat>) -> ClientBundle {
        ClientBundle {
            circuit: "0".repeat(64),
            model: "digits.onnx".into(),
            parameters: Parameters::standard(),
            prologue: ClearGraph::identity(&[("image".into(), shape.to_vec())]),
            inputs: Vec::new(),
            outputs: Vec::new(),
            epilogue: ClearGraph::default(),
            interface: Interface { image, ..Interface::default() },
        }
    }

    fn write(path: &Path, size: (u32, u32), colour: ColorType, depth: BitDepth, data: &[u8]) {
        let mut encoder = png::Encoder::new(File::create(path).unwrap(), size.0, size.1);
        encoder.set_color(colour);
        encoder.set_depth(depth);
        encoder.write_header().unwrap().write_image_data(data).unwrap();
    }

    /// What a small picture becomes, and the notes.
    fn pictured(shape: &[usize], size: (u32, u32), colour: ColorType, data: &[u8]) -> (Vec<f64>, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.png");
        write(&path, size, colour, BitDepth::Eight, data);
        let result = read(&bundle(shape, None), &path).unwrap();
        assert_eq!(result.inputs[0].1.shape(), shape);
        (result.inputs[0].1.iter().copied().collect(), result.notes.join("; "))
    }

    #[test]
    fn the_digit_is_the_sample_that_it_was_made_from() {
        let result = read(&bundle(&[1, 1, 8, 8], None), &repository("data/digit_8.png")).unwrap();
        assert!(result.notes.is_empty());
        let arrays = npz::read(&repository("data/digits_dev.npz"), &["image"]).unwrap();
        let sample = npz::sample(&arrays, 3).unwrap();
        // The data set has 17 greys, the picture 256: equal once rounded to sixteenths.
        let rounded: Vec<f64> = result.inputs[0].1.iter().map(|v| (v * 16.0).round() / 16.0).collect();
        assert_eq!(rounded, sample[0].1.iter().copied().collect::<Vec<_>>());
        assert!(result.inputs[0].1.iter().zip(&rounded).all(|(a, b)| (a - b).abs() <= 0.5 / 255.0));
    }

    #[test]
    fn sixteen_bits_keep_their_precision() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.png");
        write(&path, (2, 1), ColorType::Grayscale, BitDepth::Sixteen, &[0x80, 0x01, 0xff, 0xff]);
        let result = read(&bundle(&[1, 1, 1, 2], None), &path).unwrap();
        assert_eq!(result.inputs[0].1.as_slice().unwrap(), [32769.0 / 65535.0, 1.0]);
    }

    #[test]
    fn colours_and_transparency_become_what_the_model_takes() {
        let (grey, notes) = pictured(&[1, 1, 1, 1], (1, 1), ColorType::Rgb, &[255, 0, 0]);
        assert!((grey[0] - 0.299).abs() < 1e-12 && notes.contains("grey"), "{notes}");
        assert_eq!(pictured(&[1, 3, 1, 1], (1, 1), ColorType::Grayscale, &[51]).0, [0.2; 3]);
        assert_eq!(pictured(&[1, 3, 1, 1], (1, 1), ColorType::Rgb, &[255, 0, 51]).0, [1.0, 0.0, 0.2]);
        let (grey, notes) = pictured(&[1, 1, 1, 2], (2, 1), ColorType::GrayscaleAlpha, &[0, 0, 0, 255]);
        assert_eq!(grey, [1.0, 0.0]);
        assert!(notes.contains("white"), "{notes}");
    }

    #[test]
    fn other_sizes_are_averaged() {
        let (small, notes) = pictured(&[1, 1, 1, 2], (4, 2), ColorType::Grayscale, &[0, 255, 51, 51, 255, 0, 51, 51]);
        assert!((small[0] - 0.5).abs() < 1e-12 && (small[1] - 0.2).abs() < 1e-12);
        assert!(notes.contains("4×2") && notes.contains("2×1") && !notes.contains("proportions"), "{notes}");
        let (odd, notes) = pictured(&[1, 1, 1, 2], (3, 1), ColorType::Grayscale, &[0, 255, 0]);
        assert!(odd.iter().all(|v| (v - 1.0 / 3.0).abs() < 1e-12), "{odd:?}");
        assert!(notes.contains("proportions"), "{notes}");
        assert_eq!(pictured(&[1, 1, 1, 4], (2, 1), ColorType::Grayscale, &[0, 255]).0, [0.0, 0.0, 1.0, 1.0]);
    }

    #[test]
    fn normalisation_is_the_bundles() {
        let format = ImageFormat { invert: true, mean: vec![0.5], std: vec![0.25] };
        let result = read(&bundle(&[1, 1, 8, 8], Some(format)), &repository("data/digit_8.png")).unwrap();
        assert_eq!(result.inputs[0].1[[0, 0, 0, 0]], 2.0);
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let path = repository("data/digit_8.png");
        for shape in [&[1, 16][..], &[1, 2, 8, 8], &[2, 1, 8, 8]] {
            let text = read(&bundle(shape, None), &path).unwrap_err().to_string();
            assert!(text.contains("takes no image") && text.contains("`image`"), "{text}");
        }
        let folder = tempfile::tempdir().unwrap();
        let try_bytes = |bytes: &[u8], mention: &str| {
            let path = folder.path().join("bad.png");
            std::fs::write(&path, bytes).unwrap();
            let text = read(&bundle(&[1, 1, 8, 8], None), &path).unwrap_err().to_string();
            assert!(text.contains("bad.png") && text.contains(mention), "{text}");
        };
        let whole = std::fs::read(&path).unwrap();
        try_bytes(b"no picture at all", "only PNG");
        try_bytes(b"", "truncated");
        for cut in [20, 40, whole.len() / 2] {
            try_bytes(&whole[..cut], "");
        }
        let mut huge = whole;
        huge[16..24].copy_from_slice(&[0x7f, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff]);
        try_bytes(&huge, "");
        assert!(read(&bundle(&[1, 1, 8, 8], None), &folder.path().join("none.png")).is_err());
    }
}
