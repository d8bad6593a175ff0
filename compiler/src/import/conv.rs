//! Convolutions that cut an image into patches: kernel = stride, so that no element is used twice. They are a
//! transpose and a linear map.

use ndarray::{ArrayD, IxDyn};
use thex_circuit::clear::ClearOp;
use thex_ir::NodeId;
use tract_onnx::tract_core::ops::cnn::PaddingSpec;
use tract_onnx::tract_core::ops::cnn::conv::{Conv, KernelFormat};
use tract_onnx::tract_core::ops::nn::DataFormat;

use super::translate::{Cx, Refusal, Step, unsupported};

/// A convolution of `[1, C, H, W]` (or with another number of spatial axes).
pub(super) fn translate(cx: &mut Cx<'_>, op: &Conv) -> Step<NodeId> {
    if let Some(why) = not_patches(cx, op) {
        return unsupported(why, "only convolutions that cut the input into patches (kernel = stride) can be compiled");
    }
    let (channels, outputs) = (op.input_channels(), op.output_channels());
    let kernel = op.pool_spec.kernel_shape.to_vec();
    let counts: Vec<usize> = cx.operands[0].shape[2..].iter().zip(&kernel).map(|(n, k)| n / k).collect();
    let patches = patches(cx, channels, &kernel, &counts)?;
    let (weights, bias) = weights(cx, outputs)?;
    let y = cx.apply("", ClearOp::Linear, &[patches, weights, bias])?;
    let split = [&[1], counts.as_slice(), &[outputs]].concat();
    let y = cx.reshape(y, &split)?;
    let spatial = counts.len();
    let permutation: Vec<usize> = [0, spatial + 1].into_iter().chain(1..=spatial).collect();
    cx.transpose(y, &permutation)
}

/// Why the convolution does not cut the input into patches.
fn not_patches(cx: &Cx<'_>, op: &Conv) -> Option<String> {
    let spec = &op.pool_spec;
    let kernel = spec.kernel_shape.as_slice();
    let ones = vec![1; kernel.len()];
    let strides = spec.strides.as_deref().unwrap_or(&ones);
    let padded = match &spec.padding {
        PaddingSpec::Valid => false,
        PaddingSpec::Explicit(before, after) | PaddingSpec::ExplicitOnnxPool(before, after, _) => {
            before.iter().chain(after).any(|p| *p != 0)
        }
        PaddingSpec::SameUpper | PaddingSpec::SameLower => true,
    };
    let dilated = spec.dilations.as_deref().is_some_and(|d| d.iter().any(|d| *d != 1));
    let input = &cx.operands[0].shape;
    let plain = op.group == 1
        && op.q_params.is_none()
        && op.kernel_fmt == KernelFormat::OIHW
        && spec.data_format == DataFormat::NCHW
        && input.len() == kernel.len() + 2
        && input[0] == 1;
    if strides != kernel {
        Some(format!("its patches overlap or leave gaps: kernel {kernel:?}, stride {strides:?}"))
    } else if padded || dilated {
        Some("it is padded or dilated".into())
    } else if !plain {
        Some("it is grouped, quantised, or batched".into())
    } else if input[2..].iter().zip(kernel).any(|(n, k)| n % k != 0) {
        Some(format!("the kernel {kernel:?} does not divide the input {input:?}"))
    } else if cx.value(1).is_none() || (cx.operands.len() > 2 && cx.value(2).is_none()) {
        Some("its kernel is not a constant".into())
    } else {
        None
    }
}

/// `[1, patches, C·kernel]`.
fn patches(cx: &mut Cx<'_>, channels: usize, kernel: &[usize], counts: &[usize]) -> Step<NodeId> {
    let spatial = kernel.len();
    let mut split = vec![1, channels];
    split.extend(counts.iter().zip(kernel).flat_map(|(n, k)| [*n, *k]));
    let outer = (0..spatial).map(|i| 2 + 2 * i);
    let inner = (0..spatial).map(|i| 3 + 2 * i);
    let permutation: Vec<usize> = std::iter::once(0).chain(outer).chain([1]).chain(inner).collect();
    let x = cx.plain(0)?;
    let x = cx.reshape(x, &split)?;
    let x = cx.transpose(x, &permutation)?;
    let flat = [1, counts.iter().product(), channels * kernel.iter().product::<usize>()];
    cx.reshape(x, &flat)
}

/// `[O, C·kernel]` and `[O]`.
fn weights(cx: &mut Cx<'_>, outputs: usize) -> Step<(NodeId, NodeId)> {
    let internal = |what: &str| Refusal::Internal(format!("the {what} of a convolution has an odd shape"));
    let kernel: Vec<f64> = cx.value(1).map(|v| v.iter().copied().collect()).unwrap_or_default();
    let columns = kernel.len() / outputs.max(1);
    let kernel = ArrayD::from_shape_vec(IxDyn(&[outputs, columns]), kernel).map_err(|_| internal("kernel"))?;
    let bias: Vec<f64> = cx.value(2).map(|v| v.iter().copied().collect()).unwrap_or_default();
    let bias = match bias.len() {
        0 => vec![0.0; outputs],
        1 => vec![bias[0]; outputs],
        _ => bias,
    };
    let bias = ArrayD::from_shape_vec(IxDyn(&[outputs]), bias).map_err(|_| internal("bias"))?;
    Ok((cx.constant("weight", kernel), cx.constant("bias", bias)))
}
