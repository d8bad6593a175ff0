//! All passes, in pipeline order.

use crate::lower::{InsertBootstraps, InsertRescale, SelectParameters, WidenForNoise};
use crate::pass::Pass;
use crate::transform::{
    BoundMasks, Calibrate, Canonicalize, ChooseForms, ConstantLayerNorm, DeferNormalization, ExactLayerNorm,
    ExactSoftmax, FoldAffine, FuseUnary, InsertRefreshes, ReduceRank, SplitClientServer, TheXGelu, TheXLayerNorm,
    TheXSoftmax,
};

/// The pipeline. A pass with nothing to do leaves the graph alone.
#[must_use]
pub fn pipeline() -> Vec<Box<dyn Pass>> {
    vec![
        Box::new(Canonicalize),
        Box::new(ChooseForms),
        Box::new(BoundMasks::default()),
        Box::new(SplitClientServer),
        Box::new(TheXGelu),
        Box::new(TheXSoftmax::default()),
        Box::new(ExactSoftmax::default()),
        Box::new(TheXLayerNorm::default()),
        Box::new(ConstantLayerNorm::default()),
        Box::new(ExactLayerNorm),
        Box::new(ReduceRank::default()),
        Box::new(DeferNormalization::default()),
        Box::new(FoldAffine),
        Box::new(FuseUnary),
        Box::new(InsertRefreshes::default()),
        Box::new(Calibrate::default()),
        Box::new(InsertBootstraps::default()),
        Box::new(SelectParameters::default()),
        Box::new(WidenForNoise::default()),
        Box::new(InsertRescale::default()),
    ]
}
