//! The same over views of arrays: what stands between a caller's checked arrays and the kernels.
//!
//! x, y, dy and dx are contiguous and of one dtype, float32 or float64; the small arrays may lie as they like. What must
//! not overlap is said at each function. Nothing is checked here: who makes the views has done so.

use super::batch::{self, Affine, Layout};
use super::{Memory, layer};
use crate::element::{Arithmetic, BLOCK, Dtype, View};
use crate::simd::DefaultEnvironment;

/// Runs the body with `$A` as the type that the dtype names.
macro_rules! with_arithmetic {
    ($dtype:expr, $A:ident => $body:expr) => {
        if $dtype == Dtype::F64 {
            type $A = f64;
            $body
        } else {
            type $A = f32;
            $body
        }
    };
}

/// μ and 1/√(σ² + ε), of each channel or row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Saved {
    /// μ
    pub mean: Vec<f64>,
    /// 1/√(σ² + ε)
    pub inv_std: Vec<f64>,
}

/// y by the statistics of the batch, which the running ones follow, or by the running ones; α = 1 and β = 0 for None;
/// `relu`: y cut off at 0.
///
/// # Safety
/// The promise of [`View::new`] holds for all views; x and y have the layout's elements, the others a number per channel.
/// y may be written and overlaps no other; in training the running statistics may be written, and overlap nothing either.
pub unsafe fn batch_norm(
    layout: Layout,
    x: &View,
    y: &View,
    [weight, bias, running_mean, running_var]: [Option<&View>; 4],
    training: bool,
    relu: bool,
    [momentum, eps]: [f64; 2],
) -> Saved {
    let _default = DefaultEnvironment::enter();
    let channels = layout.channels();
    let (weight, bias) = (numbers(weight, channels, 1.0), numbers(bias, channels, 0.0));
    let affine = Affine { weight: &weight, bias: &bias };
    if !training {
        let mean = numbers(running_mean, channels, 0.0);
        let inv_std = batch::inverted(&numbers(running_var, channels, 1.0), eps);
        with_arithmetic!(x.dtype(), A => {
            let (x, y) = (memory::<A>(x), memory::<A>(y));
            // SAFETY: the same contract.
            unsafe { batch::forward(layout, x, y, affine, &mean, &inv_std, relu) };
        });
        return Saved { mean, inv_std };
    }
    let statistics = with_arithmetic!(x.dtype(), A => {
        let (x, y) = (memory::<A>(x), memory::<A>(y));
        // SAFETY: the same contract.
        unsafe { batch::forward_training(layout, x, y, affine, eps, relu) }
    });
    let count = layout.count() as f64;
    let tracked = [(running_mean, &statistics.mean, 1.0), (running_var, &statistics.var, count / (count - 1.0))];
    for (running, of_batch, factor) in tracked {
        let Some(running) = running else { continue };
        store(running, &batch::track(&load(running), of_batch, factor, momentum));
    }
    Saved { mean: statistics.mean, inv_std: statistics.inv_std }
}

/// dx, dα and dβ, by what forward returned; β is asked for only with relu.
///
/// # Safety
/// As [`batch_norm`]; dx, dα and dβ may be written and overlap neither dy, nor x, nor one another.
///
/// # Panics
/// If there are other than `channels` saved statistics.
pub unsafe fn batch_norm_backward(
    layout: Layout,
    [dy, x]: [&View; 2],
    [weight, bias]: [Option<&View>; 2],
    saved: &Saved,
    training: bool,
    relu: bool,
    [dx, dweight, dbias]: [&View; 3],
) {
    let _default = DefaultEnvironment::enter();
    let (weight, bias) = (numbers(weight, layout.channels(), 1.0), numbers(bias, layout.channels(), 0.0));
    let affine = Affine { weight: &weight, bias: &bias };
    let (mean, inv_std) = (&saved.mean, &saved.inv_std);
    let gradients = with_arithmetic!(x.dtype(), A => {
        let (dy, x, dx) = (memory::<A>(dy), memory::<A>(x), memory::<A>(dx));
        // SAFETY: the same contract.
        unsafe { batch::backward(layout, dy, x, dx, affine, mean, inv_std, training, relu) }
    });
    store(dweight, &gradients.weight);
    store(dbias, &gradients.bias);
}

/// y of each of `rows` rows; one α or β may serve all units.
///
/// # Safety
/// The promise of [`View::new`] holds for all views; y may be written and overlaps no other.
pub unsafe fn layer_norm(
    [rows, units]: [usize; 2],
    x: &View,
    y: &View,
    [weight, bias]: [Option<&View>; 2],
    eps: f64,
) -> Saved {
    let _default = DefaultEnvironment::enter();
    let (weight, bias) = (numbers(weight, units, 1.0), numbers(bias, units, -0.0));
    let layer::Statistics { mean, inv_std } = with_arithmetic!(x.dtype(), A => {
        let (weight, bias) = (rounded::<A>(&weight), rounded::<A>(&bias));
        let (x, y) = (memory::<A>(x), memory::<A>(y));
        // SAFETY: the same contract.
        unsafe { layer::forward(rows, x, y, &weight, &bias, eps) }
    });
    Saved { mean, inv_std }
}

/// dx, dα and dβ, by what forward returned; dα and dβ have one element if all units share them.
///
/// # Safety
/// As [`layer_norm`]; dx, dα and dβ may be written and overlap neither dy, nor x, nor one another.
pub unsafe fn layer_norm_backward(
    [rows, units]: [usize; 2],
    [dy, x]: [&View; 2],
    weight: Option<&View>,
    saved: Saved,
    [dx, dweight, dbias]: [&View; 3],
) {
    let _default = DefaultEnvironment::enter();
    let weight = numbers(weight, units, 1.0);
    let statistics = layer::Statistics { mean: saved.mean, inv_std: saved.inv_std };
    let gradients = with_arithmetic!(x.dtype(), A => {
        let weight = rounded::<A>(&weight);
        let (dy, x, dx) = (memory::<A>(dy), memory::<A>(x), memory::<A>(dx));
        // SAFETY: the same contract.
        unsafe { layer::backward(rows, dy, x, dx, &weight, &statistics) }
    });
    for (array, of_units) in [(dweight, &gradients.weight), (dbias, &gradients.bias)] {
        if array.len() == of_units.len() {
            store(array, of_units);
        } else {
            store(array, &[layer::sum(of_units)]);
        }
    }
}

/// n numbers as float64: an array's, its one number n times, or the default.
fn numbers(array: Option<&View>, n: usize, default: f64) -> Vec<f64> {
    let Some(array) = array else { return vec![default; n] };
    let numbers = load(array);
    if numbers.len() == n { numbers } else { numbers.repeat(n) }
}

/// The elements of a contiguous array.
fn memory<A: Arithmetic>(view: &View) -> Memory<'_, A> {
    let data = view.plain::<A>();
    assert!(data.is_some(), "a contiguous array of {}", A::DTYPE.name());
    // SAFETY: plain, so contiguous and of type A; live and aligned by the promise of `View::new`.
    unsafe { Memory::new(data.unwrap_or_default(), view.len()) }
}

fn rounded<A: Arithmetic>(numbers: &[f64]) -> Vec<A> {
    numbers.iter().map(|x| A::constant(*x)).collect()
}

/// All elements as float64; the view is one that the caller of this module promised.
pub(crate) fn load(view: &View) -> Vec<f64> {
    fn of<A: Arithmetic>(view: &View) -> Vec<f64> {
        if let Some(data) = view.plain::<A>() {
            // SAFETY: plain, so contiguous and of type A; live and aligned by the promise of `View::new`.
            return (0..view.len()).map(|i| unsafe { data.wrapping_add(i).read() }.to_f64()).collect();
        }
        let mut numbers = Vec::with_capacity(view.len());
        for at in (0..view.len()).step_by(BLOCK) {
            let n = BLOCK.min(view.len() - at);
            // SAFETY: at + n ≤ len, the dtype computes in A, and the promise of `View::new` holds.
            numbers.extend(unsafe { view.load::<A>(at, n) }[..n].iter().map(|x| x.to_f64()));
        }
        numbers
    }
    if view.dtype().compute() == Dtype::F64 { of::<f64>(view) } else { of::<f32>(view) }
}

/// Stores the numbers, rounded to the array's dtype; the view is one that the caller promised may be written.
fn store(view: &View, numbers: &[f64]) {
    fn to<A: Arithmetic>(view: &View, numbers: &[f64]) {
        for (chunk, at) in numbers.chunks(BLOCK).zip((0..).step_by(BLOCK)) {
            let mut block = [A::ZERO; BLOCK];
            for (slot, x) in block.iter_mut().zip(chunk) {
                *slot = A::constant(*x);
            }
            // SAFETY: inside, by the assertion below; it may be written, by the contract of this module's functions.
            unsafe { view.store::<A>(at, chunk.len(), &block) };
        }
    }
    assert!(numbers.len() <= view.len());
    if view.dtype().compute() == Dtype::F64 { to::<f64>(view, numbers) } else { to::<f32>(view, numbers) }
}
