//! The second driver: rules whose coefficients depend on norms of each tensor.
//!
//! First every block is measured, by the canonical tree, as the step will see it, and nothing is changed; then each
//! tensor has a row of coefficients of its own, and the one loop goes on as for every other rule.

use super::{Formula, Loop, Plan, Row, Shared, Step, Tensor};
use crate::after;
use crate::element::{self, Arithmetic, BLOCK, Dtype, View};
use crate::reduce::{self, LANES, Norm, Rare, Squares, Sum, times_two_to};
use crate::rules::{Layerwise, Measuring, Norms};
use crate::simd::{self, Kernel};
use std::marker::PhantomData;
use std::sync::atomic::Ordering;

/// The sums over a block of the tree of the squares of the parameter and of what the rule measures.
///
/// Unsafe to call: as [`super::Sweep`], with the elements of that block, which are only read.
pub(crate) type Gauge = unsafe fn(&Tensor, &Row, &Shared, block: usize) -> [f64; 2];

/// # Safety
/// See [`Gauge`].
pub(crate) unsafe fn gauge<R: Layerwise<N>, A: Arithmetic, const N: usize>(
    tensor: &Tensor,
    row: &Row,
    shared: &Shared,
    block: usize,
) -> [f64; 2] {
    // SAFETY: the same contract.
    unsafe { gauge_as::<R, A, Squares, N>(tensor, row, shared, block, Squares) }
}

/// What is asked of the same two where squares have overflowed or underflowed, which those of float32 do not.
///
/// Unsafe to call: as [`Gauge`].
pub(crate) type RareGauge = unsafe fn(&Tensor, &Row, &Shared, block: usize, Rare) -> [f64; 2];

/// # Safety
/// See [`Gauge`].
pub(crate) unsafe fn gauge_as<R: Layerwise<N>, A: Arithmetic, S: Sum, const N: usize>(
    tensor: &Tensor,
    row: &Row,
    shared: &Shared,
    block: usize,
    sum: S,
) -> [f64; 2] {
    let (Some(gradient), Some(states)) = (&tensor.gradient, tensor.states.first_chunk::<N>()) else {
        return [0.0; 2];
    };
    let parameter = &tensor.parameter;
    let start = block * reduce::BLOCK;
    let len = reduce::BLOCK.min(parameter.len() - start);
    let kept = tensor.kept.as_deref();
    let random = shared.random; // not asked: nothing is stored
    let of = Loop::<R, A, N> { parameter, gradient, states, random, kept, row, shared, start, len, types: PhantomData };
    simd::dispatch(OneBlock(of, sum))
}

/// The elements of one block, to be measured.
struct OneBlock<'a, R, A, S, const N: usize>(Loop<'a, R, A, N>, S);

/// Accumulators of the parameter, and of what is measured.
type Lanes = [[f64; LANES]; 2];

/// Elements that are computed with at a time, a part of the lanes.
const WIDTH: usize = LANES / 2;

impl<R: Layerwise<N>, A: Arithmetic, S: Sum, const N: usize> Kernel for OneBlock<'_, R, A, S, N> {
    type Output = [f64; 2];

    #[inline(always)]
    fn run(self) -> [f64; 2] {
        let Self(Loop { parameter, gradient, states, kept, row, shared, start, len, .. }, sum) = self;
        let formula = Formula::<R, A, N>::new(row, shared);
        let mut lanes: Lanes = [[0.0; LANES]; 2];
        let plain = states.iter().chain([parameter, gradient]).all(|view| view.plain::<A>().is_some());
        let (mut p_room, mut g_room) = (element::room(plain), element::room(plain));
        let mut s_rooms = [(); N].map(|()| element::room::<A>(plain));
        for at in (start..start + len).step_by(BLOCK) {
            let n = BLOCK.min(start + len - at);
            // SAFETY: at + n ≤ start + len ≤ its length, n ≤ BLOCK; the rest is the contract of `Gauge`.
            let p = unsafe { parameter.open(at, n, &mut p_room) };
            // SAFETY: as above.
            let g = unsafe { gradient.open(at, n, &mut g_room) };
            // SAFETY: n elements were opened at p: in the room, for a parameter that has a copy; `Step::keep` says the rest.
            unsafe { after::restore(kept, parameter.dtype(), p, at, n) };
            let mut s = [p; N];
            for ((pointer, state), room) in s.iter_mut().zip(states).zip(&mut s_rooms) {
                // SAFETY: as above.
                *pointer = unsafe { state.open(at, n, room) };
            }
            let whole = n - n % WIDTH;
            for i in (0..whole).step_by(WIDTH) {
                // SAFETY: i + WIDTH ≤ n elements are there.
                unsafe { formula.measure_group::<WIDTH, S>(p, g, s, i, &mut lanes, sum) };
            }
            for i in whole..n {
                // SAFETY: i < n.
                unsafe { formula.measure_group::<1, S>(p, g, s, i, &mut lanes, sum) };
            }
        }
        lanes.map(|lanes| sum.fold(lanes))
    }
}

impl<R: Layerwise<N>, A: Arithmetic, const N: usize> Formula<R, A, N> {
    /// Adds what is asked of `W` elements from `at` on, which is counted from the beginning of some row of lanes.
    ///
    /// # Safety
    /// `at + W` elements can be read at each pointer, and nobody writes them meanwhile.
    #[inline(always)]
    unsafe fn measure_group<const W: usize, S: Sum>(
        &self,
        p: *const A,
        g: *const A,
        s: [*mut A; N],
        at: usize,
        lanes: &mut Lanes,
        sum: S,
    ) {
        let here = |pointer: *const A| pointer.wrapping_add(at).cast::<[A; W]>();
        // SAFETY: at + W elements can be read.
        let p_lanes = unsafe { here(p).read() };
        // SAFETY: as above.
        let mut g_lanes = unsafe { here(g).read() };
        // SAFETY: as above.
        let s_lanes = s.map(|s| unsafe { here(s).read() });
        self.prepare(&mut g_lanes, &p_lanes);
        let [of_parameter, of_measured] = lanes;
        let first = at % LANES;
        let (of_parameter, of_measured) = (&mut of_parameter[first..first + W], &mut of_measured[first..first + W]);
        for i in 0..W {
            let state = std::array::from_fn(|k| s_lanes[k][i]);
            let p = p_lanes[i].to_f64();
            let x = R::measured(&self.coefficients, p_lanes[i], g_lanes[i], state).to_f64();
            sum.add(&mut of_parameter[i], p);
            sum.add(&mut of_measured[i], x);
        }
    }
}

impl Step {
    /// Measures all tensors that have a gradient, gives each a row of its own, and keeps its new number.
    pub(super) fn adapt(&mut self, measuring: &Measuring, shared: &[Shared; 2]) {
        let (tensors, rows) = (&self.tensors, &self.rows);
        let squares = [&self.parameter_squares, &self.squares];
        self.plan.for_each(&|chunk| {
            let tensor = &tensors[chunk.tensor];
            if tensor.gradient.is_none() {
                return;
            }
            let double = tensor.parameter.dtype().compute() == Dtype::F64;
            let gauge = if double { measuring.gauge_f64 } else { measuring.gauge_f32 };
            for (i, block) in chunk.blocks().enumerate() {
                // SAFETY: the contracts of `bind` and `set_gradient`; nothing is written in this pass.
                let sums = unsafe { gauge(tensor, &rows[tensor.row], &shared[usize::from(double)], block) };
                for (slots, sum) in squares.iter().zip(sums) {
                    slots[chunk.block + i].store(sum.to_bits(), Ordering::Relaxed);
                }
            }
        });
        let sums = |i: usize| squares.map(|squares| self.plan.sum(i, squares));
        let number = self.rule.state_arrays().len();
        for (i, tensor) in self.tensors.iter_mut().enumerate().filter(|(_, tensor)| tensor.gradient.is_some()) {
            let kept = self.rule.keeps_a_number().then(|| &tensor.states[number]);
            let row = self.rows[tensor.row];
            let [parameter, measured] = norms(tensor, sums(i), |block, rare| {
                // SAFETY: as above; `Norm::of` asks nothing of float32.
                unsafe { (measuring.gauge_rare)(tensor, &row, &shared[1], block, rare) }
            });
            let norms =
                Norms { parameter: parameter.value(), measured: measured.value(), scalar: kept.map_or(0.0, read) };
            let hyper = &self.groups[row.group].hyper;
            let (coefficients, scalar) = (measuring.adapted)(hyper, &row.at, norms);
            kept.inspect(|kept| write(kept, scalar));
            let double = tensor.parameter.dtype().compute() == Dtype::F64;
            let in_unit = |unit: i32| {
                let scaled = |(i, value): (usize, &f64)| {
                    if (measuring.of_gradient)(i) { times_two_to(*value, -unit) } else { *value }
                };
                let hyper: Vec<f64> = hyper.iter().enumerate().map(scaled).collect();
                let measured = Norm { power: measured.power - unit, ..measured }.value();
                (measuring.adapted)(&hyper, &row.at, Norms { measured, ..norms }).0
            };
            let has_ratio = measuring.has_unit && [parameter, measured].iter().all(|norm| norm.root > 0.0);
            let unit = if has_ratio { unit(double, coefficients[0], |unit| in_unit(unit)[0]) } else { 0 };
            let coefficients = if unit == 0 { coefficients } else { in_unit(unit) };
            tensor.row = self.rows.len();
            let l2 = row.l2.map(|l2| times_two_to(l2, -unit));
            self.rows.push(Row { coefficients, unit, l2, ..row });
        }
    }
}

/// The norms of a tensor whose squares have these sums, by what is asked of its blocks where they are not enough.
fn norms(tensor: &Tensor, sums: [f64; 2], rare: impl Fn(usize, Rare) -> [f64; 2] + Sync) -> [Norm; 2] {
    if tensor.parameter.dtype().compute() != Dtype::F64 {
        return sums.map(|sum| Norm::plain(sum.sqrt()));
    }
    let plan = || Plan::of_one(tensor.parameter.len());
    std::array::from_fn(|k| Norm::of(sums[k], |asked| plan().ask(&|_, block| rare(block, asked)[k], asked)))
}

/// The power of two as which gradients are counted for a ratio to be a normal number of the type that is computed in: 0 if
/// it is one, or if none makes it so.
fn unit(double: bool, ratio: f64, in_unit: impl Fn(i32) -> f64) -> i32 {
    let is_normal = |ratio: f64| if double { ratio.is_normal() } else { (ratio as f32).is_normal() };
    if is_normal(ratio) || ratio.is_nan() {
        return 0;
    }
    let step = if double { 400 } else { 64 };
    let step = if ratio < 1.0 { step } else { -step };
    (1..=6).map(|k| k * step).find(|unit| is_normal(in_unit(*unit))).unwrap_or(0)
}

fn read(number: &View) -> f64 {
    // SAFETY: one float64 number, as `bind` has checked; the rest is its contract.
    let block = unsafe { number.load::<f64>(0, 1) };
    block[0]
}

fn write(number: &View, value: f64) {
    // SAFETY: as above, and nobody else is at it.
    unsafe { number.store(0, 1, &[value; BLOCK]) };
}
