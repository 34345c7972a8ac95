//! The second driver: rules whose coefficients depend on norms of each tensor.
//!
//! First every block is measured, by the canonical tree, as the step will see it, and nothing is changed; then each
//! tensor has a row of coefficients of its own, and the one loop goes on as for every other rule.

use super::{Formula, Loop, Row, Shared, Step, Tensor};
use crate::after;
use crate::element::{self, Arithmetic, BLOCK, Dtype, View};
use crate::reduce::{self, LANES};
use crate::rules::{Layerwise, Measuring, Norms};
use crate::simd::{self, Kernel};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

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
    let (Some(gradient), Some(states)) = (&tensor.gradient, tensor.states.first_chunk::<N>()) else {
        return [0.0; 2];
    };
    let parameter = &tensor.parameter;
    let start = block * reduce::BLOCK;
    let len = reduce::BLOCK.min(parameter.len() - start);
    let kept = tensor.kept.as_deref();
    let random = shared.random; // not asked: nothing is stored
    let of = Loop::<R, A, N> { parameter, gradient, states, random, kept, row, shared, start, len, types: PhantomData };
    simd::dispatch(OneBlock(of))
}

/// The elements of one block, to be measured.
struct OneBlock<'a, R, A, const N: usize>(Loop<'a, R, A, N>);

/// Accumulators of the squares of the parameter, and of what is measured.
type Lanes = [[f64; LANES]; 2];

/// Elements that are computed with at a time, a part of the lanes.
const WIDTH: usize = LANES / 2;

impl<R: Layerwise<N>, A: Arithmetic, const N: usize> Kernel for OneBlock<'_, R, A, N> {
    type Output = [f64; 2];

    #[inline(always)]
    fn run(self) -> [f64; 2] {
        let Loop { parameter, gradient, states, kept, row, shared, start, len, .. } = self.0;
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
                unsafe { formula.measure_group::<WIDTH>(p, g, s, i, &mut lanes) };
            }
            for i in whole..n {
                // SAFETY: i < n.
                unsafe { formula.measure_group::<1>(p, g, s, i, &mut lanes) };
            }
        }
        lanes.map(reduce::fold)
    }
}

impl<R: Layerwise<N>, A: Arithmetic, const N: usize> Formula<R, A, N> {
    /// Adds the squares of `W` elements from `at` on, which is counted from the beginning of some row of lanes.
    ///
    /// # Safety
    /// `at + W` elements can be read at each pointer, and nobody writes them meanwhile.
    #[inline(always)]
    unsafe fn measure_group<const W: usize>(
        &self,
        p: *const A,
        g: *const A,
        s: [*mut A; N],
        at: usize,
        lanes: &mut Lanes,
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
            of_parameter[i] += p * p;
            of_measured[i] += x * x;
        }
    }
}

impl Step {
    /// Measures all tensors that have a gradient, gives each a row of its own, and keeps its new number.
    pub(super) fn adapt(&mut self, measuring: &Measuring, shared: &Shared) {
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
                let sums = unsafe { gauge(tensor, &rows[tensor.row], shared, block) };
                for (slots, sum) in squares.iter().zip(sums) {
                    slots[chunk.block + i].store(sum.to_bits(), Ordering::Relaxed);
                }
            }
        });
        let norm = |i: usize, squares: &[AtomicU64]| self.plan.sum(i, squares).sqrt();
        let number = self.rule.state_arrays().len();
        for (i, tensor) in self.tensors.iter_mut().enumerate().filter(|(_, tensor)| tensor.gradient.is_some()) {
            let kept = self.rule.keeps_a_number().then(|| &tensor.states[number]);
            let norms =
                Norms { parameter: norm(i, squares[0]), measured: norm(i, squares[1]), scalar: kept.map_or(0.0, read) };
            let row = self.rows[tensor.row];
            let (coefficients, scalar) = (measuring.adapted)(&self.groups[row.group].hyper, &row.at, norms);
            kept.inspect(|kept| write(kept, scalar));
            tensor.row = self.rows.len();
            self.rows.push(Row { coefficients, ..row });
        }
    }
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
