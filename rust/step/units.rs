//! Clipping unit by unit: each row of a gradient by the norm of the same row of its parameter.
//!
//! Brock, De, Smith and Simonyan, "High-Performance Large-Scale Image Recognition Without Normalization", 2021, equation 3.

use super::{Plan, clip_scale, measure_block, scale_chunk};
use crate::element::{Dtype, View};
use crate::real::Real;
use crate::reduce::Measure;
use crate::simd::DefaultEnvironment;
use std::sync::atomic::{AtomicU64, Ordering};

/// Scales each gradient so that its norm is at most `clipping` times its parameter's, of which `eps` is the least; every
/// view is one unit, and a sum has the tree of a tensor.
///
/// # Safety
/// The promise of [`View::new`] holds for all of them; gradients are as long as their parameters, may be written, and
/// overlap nothing.
pub unsafe fn adaptive_clip(parameters: &[View], gradients: &[View], clipping: f64, eps: f64) {
    let _default = DefaultEnvironment::enter();
    let plan = Plan::of(gradients);
    let blocks = plan.blocks[gradients.len()];
    let [of_parameters, of_gradients]: [Vec<AtomicU64>; 2] =
        std::array::from_fn(|_| (0..blocks).map(|_| AtomicU64::new(0)).collect());
    let asked = Measure { unscale: None, clip_value: f64::INFINITY, limit: None, squares: true };
    plan.for_each(&|chunk| {
        for (view, squares) in [(&parameters[chunk.tensor], &of_parameters), (&gradients[chunk.tensor], &of_gradients)]
        {
            for (block, slot) in chunk.blocks().zip(&squares[chunk.block..]) {
                slot.store(measure_block(view, block, &asked).squares.to_bits(), Ordering::Relaxed);
            }
        }
    });
    let scale = |unit: usize| {
        let limit = clipping * plan.sum(unit, &of_parameters).sqrt().larger(eps);
        clip_scale(limit, plan.sum(unit, &of_gradients).sqrt(), 0.0)
    };
    let scales: Vec<Option<f64>> = (0..gradients.len()).map(scale).collect();
    plan.for_each(&|chunk| {
        let (view, Some(scale)) = (&gradients[chunk.tensor], scales[chunk.tensor]) else { return };
        match view.dtype().compute() {
            // SAFETY: the contract of this function; the dtype was just compared, and chunks do not overlap.
            Dtype::F64 => unsafe { scale_chunk::<f64>(view, chunk, scale) },
            // SAFETY: as above.
            _ => unsafe { scale_chunk::<f32>(view, chunk, scale) },
        }
    });
}
