//! The one loop, rule × arithmetic × blocks, and the pipeline around it.
//!
//! unscale → sign → clip by value → clip by norm → coupled l2 → rule → its step, with decoupled decay, is subtracted from the
//! parameter in one rounding → what follows it ([`after`](crate::after)).
//! Every stage is a little loop of its own over a few vectors in registers, run only if it is on; arrays that are strided
//! or of another dtype pass through blocks on the stack. So kernels add up (rules + dtypes + stages) and never multiply.

mod layerwise;
mod units;

pub(crate) use self::layerwise::{Gauge, RareGauge, gauge, gauge_as};
pub use self::units::{Columns, adaptive_clip};
use crate::after::{self, After, Kept, Numbers};
use crate::codec::{Bytes, Draw, f32_to_bf16_random};
use crate::element::{self, Arithmetic, BLOCK, Dtype, GROUP, Room, View, bf16_to_f32};
use crate::error::Error;
use crate::pool;
use crate::random::Random;
use crate::real::{MAX_PRODUCTS, Past, Progress, Real};
use crate::reduce::{self, Measure, Measured, Norm, Rare};
use crate::rules::{CoefficientRow, Entry, Fields, MAX_STATES, Moment, Range, Rule};
use crate::simd::{self, DefaultEnvironment, Kernel};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Elements that a thread takes at a time: whole blocks of the summation tree, small enough to share evenly.
const CHUNK: usize = 2 * reduce::BLOCK;

/// The numbers of one (group, t), and of one past of the numbers whose products are kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    group: usize,
    at: Progress,
    /// Gradients are multiplied by two to minus this; `coefficients` and `l2` are for such.
    unit: i32,
    coefficients: CoefficientRow,
    decay: Option<Decay<f64>>,
    l2: Option<f64>,
    maximize: bool,
    after: Numbers,
}

/// What is the same for all tensors of a step that compute in one type.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shared {
    /// 1 / `grad_scale`.
    unscale: Option<f64>,
    clip_value: Option<f64>,
    /// What clipping by norm multiplies by, if it does.
    scale: Option<f64>,
    /// With the number of this step.
    random: Random,
}

impl Shared {
    /// For gradients that are multiplied by `unscale` first, and by what `clip` says last.
    fn new(unscale: Option<f64>, clip_value: Option<f64>, clip: Option<Clip>, random: Random, compute: Dtype) -> Self {
        let Some(clip) = clip else { return Self { unscale, clip_value, scale: None, random } };
        let (power, factor) = clip.factors(compute, unscale);
        if power == 0 {
            return Self { unscale, clip_value, scale: Some(factor), random };
        }
        Self { unscale, clip_value, scale: Some(factor), random }.in_unit(power)
    }

    /// For gradients that are multiplied by 2⁻ᵏ as well. That is exact and may come first: what it makes subnormal, or
    /// infinite, is nothing, or infinite, once all factors are in.
    fn in_unit(&self, power: i32) -> Self {
        let unscale = Some(reduce::times_two_to(self.unscale.unwrap_or(1.0), -power));
        let clip_value = self.clip_value.map(|limit| reduce::times_two_to(limit, -power));
        Self { unscale, clip_value, ..*self }
    }
}

/// A parameter with its states and its gradient.
#[derive(Debug)]
pub(crate) struct Tensor {
    parameter: View,
    gradient: Option<View>,
    /// Empty views behind those of the rule; the last of these may be one number.
    states: [View; MAX_STATES],
    /// In random numbers.
    number: u32,
    kept: Option<Box<Kept>>,
    group: usize,
    t: u64,
    /// Before the next update; while [`Step::settled`] nobody looks.
    past: [Past; MAX_PRODUCTS],
    row: usize,
}

/// The loop of one rule in one arithmetic, over elements `start..start + len` of a tensor that has a gradient.
///
/// Unsafe to call: the promise of [`View::new`] holds for all its views, they have `start + len` elements and compute in
/// the loop's arithmetic, and no other thread works on these elements.
pub(crate) type Sweep = unsafe fn(&Tensor, &Row, &Shared, start: usize, len: usize);

/// # Safety
/// See [`Sweep`].
pub(crate) unsafe fn sweep<R: Rule<N>, A: Arithmetic, const N: usize>(
    tensor: &Tensor,
    row: &Row,
    shared: &Shared,
    start: usize,
    len: usize,
) {
    if let (Some(gradient), Some(states)) = (&tensor.gradient, tensor.states.first_chunk::<N>()) {
        let (parameter, kept) = (&tensor.parameter, tensor.kept.as_deref().filter(|kept| kept.is_busy(&row.after)));
        simd::dispatch(Loop::<R, A, N> {
            parameter,
            gradient,
            states,
            random: Random { tensor: tensor.number, ..shared.random },
            kept,
            row,
            shared,
            start,
            len,
            types: PhantomData,
        });
    }
}

struct Loop<'a, R, A, const N: usize> {
    parameter: &'a View,
    gradient: &'a View,
    states: &'a [View; N],
    random: Random,
    kept: Option<&'a Kept>,
    row: &'a Row,
    shared: &'a Shared,
    start: usize,
    len: usize,
    types: PhantomData<(R, A)>,
}

impl<R: Rule<N>, A: Arithmetic, const N: usize> Kernel for Loop<'_, R, A, N> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { parameter, gradient, states, random, kept, row, shared, start, len, .. } = self;
        let formula = Formula::<R, A, N>::new(row, shared);
        let plain = states.iter().chain([parameter, gradient]).all(|view| view.plain::<A>().is_some());
        let (mut p_room, mut g_room, mut s_rooms) = (Room::uninit(), Room::uninit(), [const { Room::uninit() }; N]);
        if !plain {
            // Here, not as results of a function: those may be copied, plain or not.
            for room in s_rooms.iter_mut().chain([&mut p_room, &mut g_room]) {
                room.write([A::ZERO; BLOCK]);
            }
        }
        let draws = parameter.dtype().is_random() || states.iter().any(|state| state.dtype().is_random());
        // Of whole blocks of states that are all so, which then need no room.
        let short = (A::DTYPE == Dtype::F32).then(|| shorts(states)).flatten();
        let most = match (plain, kept) {
            (true, None) => len,
            (true, Some(_)) => after::MOST,
            (false, _) => BLOCK,
        };
        let (mut at, end) = (start, start + len);
        while at < end {
            let n = most.min(end - at);
            // SAFETY: at + n ≤ start + len ≤ its length, and n ≤ BLOCK unless it is plain; the rest is the contract of
            // `Sweep`.
            let p = unsafe { parameter.open(at, n, &mut p_room) };
            // SAFETY: as above.
            let g = unsafe { gradient.open(at, n, &mut g_room) };
            let short = short.filter(|_| n == BLOCK);
            let mut s = [p; N];
            if short.is_none() {
                for ((pointer, state), room) in s.iter_mut().zip(states).zip(&mut s_rooms) {
                    // SAFETY: as above.
                    *pointer = unsafe { state.open(at, n, room) };
                }
            }
            // The same for all states of an element: m and v that err in the same direction divide to a smaller error.
            let drawn: Bytes;
            let bytes = if draws {
                drawn = simd::dispatch(Draw { random, at });
                &drawn
            } else {
                &NO_BYTES
            };
            // Asked inside: to ask here is to have two loops, each with its copy of the formula (a fifth of the library).
            // SAFETY: n elements were opened at p; the rest is the contract of `Step::keep`.
            unsafe { after::before_rule(kept, parameter.dtype(), &row.after, p, at, n) };
            if let Some(mut short) = short {
                for pointer in &mut short {
                    *pointer = pointer.wrapping_add(at);
                }
                // SAFETY: as above: a whole block is there.
                unsafe { formula.apply_short(p, g, short, bytes) };
            } else {
                // SAFETY: n elements are there, as above.
                unsafe { formula.apply(p, g, s, n) };
            }
            // SAFETY: as before the rule.
            unsafe { after::after_rule(kept, &row.after, p, at, n) };
            if !plain {
                // SAFETY: as above, and opened so; parameters may be written.
                unsafe { parameter.close(at, n, &p_room, bytes) };
                for (state, room) in states.iter().zip(&s_rooms).filter(|_| short.is_none()) {
                    // SAFETY: as above; states may be written. Chunks start at whole blocks.
                    unsafe { state.close(at, n, room, bytes) };
                }
            }
            at += n;
        }
    }
}

/// For what is not rounded at random.
const NO_BYTES: Bytes = [0; BLOCK];

/// The addresses of states that are all kept in bfloat16, if there are any.
#[inline(always)]
fn shorts<const N: usize>(states: &[View; N]) -> Option<[*mut u16; N]> {
    let mut all = [std::ptr::null_mut(); N];
    for (pointer, state) in all.iter_mut().zip(states) {
        *pointer = state.short()?;
    }
    (N > 0).then_some(all)
}

/// As [`GROUP`], for what is left of an array.
const FEW: usize = 8;

/// The whole pipeline of one (group, t), in one arithmetic.
///
/// A stage that is off is not run: to run it with a neutral number would change NaN, −0 and infinities.
struct Formula<R: Rule<N>, A: Arithmetic, const N: usize> {
    coefficients: R::Coefficients<A>,
    unscale: Option<A>,
    maximize: bool,
    clip: Option<A>,
    scale: Option<A>,
    l2: Option<A>,
    decay: Option<Decay<A>>,
}

impl<R: Rule<N>, A: Arithmetic, const N: usize> Formula<R, A, N> {
    #[inline(always)]
    fn new(row: &Row, shared: &Shared) -> Self {
        Self {
            coefficients: R::Coefficients::from_fn(|i| A::constant(row.coefficients[i])),
            unscale: shared.unscale.map(A::constant),
            maximize: row.maximize,
            clip: shared.clip_value.map(A::constant),
            scale: shared.scale.map(A::constant),
            l2: row.l2.map(A::constant),
            decay: row.decay.map(|decay| decay.map(A::constant)),
        }
    }

    /// Updates `count` elements: in groups, then in smaller groups, then one by one.
    ///
    /// # Safety
    /// So many elements can be read at each pointer, and written at `p` and `s`; nobody else does meanwhile.
    #[inline(always)]
    unsafe fn apply(&self, p: *mut A, g: *const A, s: [*mut A; N], count: usize) {
        let (whole, most) = (count - count % GROUP, count - count % FEW);
        for at in (0..whole).step_by(GROUP) {
            // SAFETY: at + GROUP ≤ count.
            unsafe { self.apply_group::<GROUP>(p, g, s, at) };
        }
        for at in (whole..most).step_by(FEW) {
            // SAFETY: at + FEW ≤ count.
            unsafe { self.apply_group::<FEW>(p, g, s, at) };
        }
        for at in most..count {
            // SAFETY: at < count.
            unsafe { self.apply_group::<1>(p, g, s, at) };
        }
    }

    /// Updates `W` elements from `at` on.
    ///
    /// # Safety
    /// As [`Formula::apply`], with `at + W` ≤ count.
    #[inline(always)]
    unsafe fn apply_group<const W: usize>(&self, p: *mut A, g: *const A, s: [*mut A; N], at: usize) {
        let here = |pointer: *mut A| pointer.wrapping_add(at).cast::<[A; W]>();
        // SAFETY: at + W ≤ count elements can be read.
        let mut p_lanes = unsafe { here(p).read() };
        // SAFETY: as above.
        let mut g_lanes = unsafe { here(g.cast_mut()).read() };
        // SAFETY: as above.
        let mut s_lanes = s.map(|s| unsafe { here(s).read() });
        self.compute(&mut p_lanes, &mut g_lanes, &mut s_lanes);
        // SAFETY: at + W ≤ count elements can be written.
        unsafe { here(p).write(p_lanes) };
        for (s, lanes) in s.into_iter().zip(s_lanes) {
            // SAFETY: as above.
            unsafe { here(s).write(lanes) };
        }
    }

    /// Updates a whole block whose states are kept in bfloat16: without a copy of them, because the processor rounds one
    /// group while it divides for the next.
    ///
    /// # Safety
    /// As [`Formula::apply`], with [`BLOCK`] elements at each pointer.
    #[inline(always)]
    unsafe fn apply_short(&self, p: *mut A, g: *const A, s: [*mut u16; N], bytes: &Bytes) {
        for at in (0..BLOCK).step_by(GROUP) {
            let here = |pointer: *mut A| pointer.wrapping_add(at).cast::<[A; GROUP]>();
            // SAFETY: at + GROUP ≤ BLOCK elements can be read.
            let mut p_lanes = unsafe { here(p).read() };
            // SAFETY: as above.
            let mut g_lanes = unsafe { here(g.cast_mut()).read() };
            let mut s_lanes = [[A::ZERO; GROUP]; N];
            for (lanes, s) in s_lanes.iter_mut().zip(s) {
                // SAFETY: as above.
                let bits = unsafe { s.wrapping_add(at).cast::<[u16; GROUP]>().read() };
                for i in 0..GROUP {
                    lanes[i] = A::constant(bf16_to_f32(bits[i]).into());
                }
            }
            self.compute(&mut p_lanes, &mut g_lanes, &mut s_lanes);
            // SAFETY: at + GROUP ≤ BLOCK elements can be written.
            unsafe { here(p).write(p_lanes) };
            for (lanes, s) in s_lanes.iter().zip(s) {
                let mut bits = [0; GROUP];
                for i in 0..GROUP {
                    bits[i] = f32_to_bf16_random(lanes[i].to_f64() as f32, bytes[at + i]);
                }
                // SAFETY: as above.
                unsafe { s.wrapping_add(at).cast::<[u16; GROUP]>().write(bits) };
            }
        }
    }

    /// The whole pipeline, over what is in registers.
    #[inline(always)]
    fn compute<const W: usize>(&self, p: &mut [A; W], g: &mut [A; W], s: &mut [[A; W]; N]) {
        self.prepare(g, p);
        // The common two have a loop of their own, where the step stays in registers; not the few elements at the end.
        match self.decay {
            None if W == GROUP => self.update(p, g, s, |_, p, step| *p = *p - step),
            Some(Decay::Before(part)) if W == GROUP => {
                self.update(p, g, s, |_, p, step| *p = *p - (part * *p + step));
            }
            decay => {
                let mut steps = [A::ZERO; W];
                self.update(p, g, s, |i, _, step| steps[i] = step);
                decay.inspect(|decay| decay.add(&mut steps, p));
                for (p, step) in p.iter_mut().zip(steps) {
                    *p = *p - step;
                }
            }
        }
    }

    /// The rule, over what is in registers; `take` is given each parameter with its place and its step.
    #[inline(always)]
    fn update<const W: usize>(
        &self,
        p: &mut [A; W],
        g: &[A; W],
        s: &mut [[A; W]; N],
        mut take: impl FnMut(usize, &mut A, A),
    ) {
        for i in 0..W {
            let mut state = [A::ZERO; N];
            for k in 0..N {
                state[k] = s[k][i];
            }
            let (step, state) = R::update(&self.coefficients, p[i], g[i], state);
            take(i, &mut p[i], step);
            for k in 0..N {
                s[k][i] = state[k];
            }
        }
    }

    /// What happens to gradients before the rule sees them.
    #[inline(always)]
    fn prepare<const W: usize>(&self, g: &mut [A; W], p: &[A; W]) {
        if let Some(unscale) = self.unscale {
            *g = g.map(|g| g * unscale);
        }
        if self.maximize {
            *g = g.map(|g| -g);
        }
        if let Some(clip) = self.clip {
            *g = g.map(|g| g.larger(-clip).smaller(clip));
        }
        if let Some(scale) = self.scale {
            *g = g.map(|g| g * scale);
        }
        if let Some(l2) = self.l2 {
            for (g, p) in g.iter_mut().zip(p) {
                *g = *g + l2 * *p;
            }
        }
    }
}

/// What to do about gradients that are not finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NonFinite {
    /// Nothing: they go where the formula takes them.
    Propagate,
    /// The step does not happen.
    Skip,
    /// It does not happen, and says so as an error.
    Raise,
}

/// The options that hold for all parameters.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Each element of a gradient is cut off at ± this.
    pub clip_value: Option<f64>,
    /// All gradients together are scaled down to this norm; if it is infinite, it is only measured.
    pub clip_norm: Option<f64>,
    /// Added to the norm that `clip_norm` divides by.
    pub clip_eps: f64,
    /// What to do about gradients that are not finite.
    pub nonfinite: NonFinite,
}

impl Options {
    /// Whether the limits may have these values.
    pub fn check(&self) -> Result<(), Error> {
        if let Some(got) = self.clip_value
            && !(got > 0.0 && got < f64::INFINITY)
        {
            return Err(Error::OutOfRange { name: "clip_value".into(), got, expected: "a finite number > 0, or None" });
        }
        if let Some(got) = self.clip_norm
            && !(got > 0.0)
        {
            let expected = "a number > 0, infinity to measure only, or None";
            return Err(Error::OutOfRange { name: "clip_norm".into(), got, expected });
        }
        if !(0.0..f64::INFINITY).contains(&self.clip_eps) {
            let expected = "a finite number >= 0";
            return Err(Error::OutOfRange { name: "clip_eps".into(), got: self.clip_eps, expected });
        }
        Ok(())
    }
}

/// The range of `grad_scale`: both it and its inverse are normal numbers in every type that is computed in.
const SCALES: std::ops::RangeInclusive<f64> = 1.0 / TWO_TO_126..=TWO_TO_126;
const TWO_TO_126: f64 = (1u128 << 126) as f64;

/// Whether gradients may come multiplied by this.
pub fn check_scale(name: &str, got: f64) -> Result<(), Error> {
    if SCALES.contains(&got) {
        return Ok(());
    }
    Err(Error::OutOfRange { name: name.to_owned(), got, expected: "a number from 2**-126 to 2**126" })
}

/// Whether a micro-batch may have this weight: with 0 it is checked, and left out.
pub fn check_weight(got: f64) -> Result<(), Error> {
    if got == 0.0 || SCALES.contains(&got) {
        return Ok(());
    }
    Err(Error::OutOfRange { name: "weight".to_owned(), got, expected: "0, or a number from 2**-126 to 2**126" })
}

/// The hyperparameters of some of the parameters.
#[derive(Clone, Debug)]
struct Group {
    hyper: Vec<f64>,
    weight_decay: f64,
    l2: f64,
    maximize: bool,
    decay_after: bool,
    decay_implicit: bool,
    decay_unscaled: bool,
    /// Corrections of bias take the present number for all updates.
    current_correction: bool,
    /// The numbers whose products are kept, in the last step; below 0 before the first.
    used: [f64; MAX_PRODUCTS],
}

/// Decoupled decay: the part γλ of what it takes, which is added to the step s.
#[derive(Clone, Copy, Debug)]
enum Decay<A> {
    /// Of the old parameter: γλ·w + s.
    Before(A),
    /// Of the new one: s + γλ·(w − s).
    After(A),
    /// Of the new one with the decay in it: (s + γλ·w)/(1 + γλ); with 1 + γλ.
    Implicit(A, A),
}

impl<A: Real> Decay<A> {
    /// Adds it to the steps of these parameters: 1 − γλ, or the new parameter, rounded by itself would lose a decay near its
    /// last bit.
    #[inline(always)]
    fn add<const W: usize>(self, steps: &mut [A; W], p: &[A; W]) {
        let each = steps.iter_mut().zip(p);
        match self {
            Self::Before(part) => {
                for (step, p) in each {
                    *step = part * *p + *step;
                }
            }
            Self::After(part) => {
                for (step, p) in each {
                    *step = *step + part * (*p - *step);
                }
            }
            Self::Implicit(part, whole) => {
                for (step, p) in each {
                    *step = (*step + part * *p) / whole;
                }
            }
        }
    }
}

impl<A> Decay<A> {
    #[inline(always)]
    fn map<B>(self, f: impl Fn(A) -> B) -> Decay<B> {
        match self {
            Self::Before(part) => Decay::Before(f(part)),
            Self::After(part) => Decay::After(f(part)),
            Self::Implicit(part, whole) => Decay::Implicit(f(part), f(whole)),
        }
    }
}

impl Group {
    /// What the pipeline adds to the step; nothing at a rate of 0, since 0·w may be NaN.
    fn decay(&self) -> Option<Decay<f64>> {
        let part = if self.decay_unscaled { self.weight_decay } else { self.hyper[0] * self.weight_decay };
        (part != 0.0).then_some(match (self.decay_after, self.decay_implicit) {
            (_, true) => Decay::Implicit(part, 1.0 + part),
            (true, false) => Decay::After(part),
            (false, false) => Decay::Before(part),
        })
    }
}

/// Options that every rule has, and their ranges; rules that decay themselves have none of those of the decay's form, and
/// rules that correct no bias none of its form.
pub const COMMON: [(&str, Range); 7] = [
    ("weight_decay", Range::NotNegative),
    ("l2", Range::NotNegative),
    ("maximize", Range::Switch),
    ("decay_after", Range::Switch),
    ("decay_implicit", Range::Switch),
    ("decay_unscaled", Range::Switch),
    ("current_correction", Range::Switch),
];

/// What a step reports.
#[derive(Clone, Debug, PartialEq)]
pub struct Info {
    /// Steps completed so far, this one included.
    pub step: u64,
    /// The learning rate of the first group.
    pub lr: f64,
    /// The norm of all gradients, after clipping by value and before clipping by norm; if it was needed.
    pub grad_norm: Option<f64>,
    /// Whether nothing was done: gradients were not finite, or all micro-batches of weight 0.
    pub skipped: bool,
    /// If it was checked: tensor, how many elements are not finite, the C-order index of the first.
    pub nonfinite: Option<Vec<(usize, usize, usize)>>,
}

#[derive(Clone, Copy, Debug)]
struct Chunk {
    tensor: usize,
    start: usize,
    len: usize,
    /// Its first block in the list of all blocks of the summation tree.
    block: usize,
}

/// How the elements of several tensors are shared out: one parallel region for all of them.
#[derive(Debug)]
struct Plan {
    chunks: Vec<Chunk>,
    /// Chunk number `tasks[i]` is the first of task i; chunks behind the last task go to it.
    tasks: Vec<usize>,
    elements: usize,
    /// Each tensor's first block, and the end.
    blocks: Vec<usize>,
}

impl Plan {
    fn new() -> Self {
        Self { chunks: Vec::new(), tasks: Vec::new(), elements: 0, blocks: vec![0] }
    }

    fn of(views: &[View]) -> Self {
        let mut plan = Self::new();
        views.iter().for_each(|view| plan.push(view.len()));
        plan
    }

    fn of_one(len: usize) -> Self {
        let mut plan = Self::new();
        plan.push(len);
        plan
    }

    fn push(&mut self, len: usize) {
        let (tensor, first_block) = (self.blocks.len() - 1, self.blocks[self.blocks.len() - 1]);
        for start in (0..len).step_by(CHUNK) {
            let started = self.tasks.last().map_or(CHUNK, |task| self.chunks[*task..].iter().map(|c| c.len).sum());
            if started >= CHUNK {
                self.tasks.push(self.chunks.len());
            }
            let block = first_block + start / reduce::BLOCK;
            self.chunks.push(Chunk { tensor, start, len: CHUNK.min(len - start), block });
        }
        self.elements += len;
        self.blocks.push(first_block + len.div_ceil(reduce::BLOCK));
    }

    fn for_each(&self, work: &(dyn Fn(&Chunk) + Sync)) {
        let task = |i: usize| {
            let end = self.tasks.get(i + 1).map_or(self.chunks.len(), |end| *end);
            self.chunks[self.tasks[i]..end].iter().for_each(work);
        };
        pool::share(self.tasks.len(), self.elements, &task);
    }

    /// Combines the sums of a tensor's blocks.
    fn sum(&self, tensor: usize, squares: &[AtomicU64]) -> f64 {
        let blocks = &squares[self.blocks[tensor]..self.blocks[tensor + 1]];
        let mut sums: Vec<f64> = blocks.iter().map(|bits| f64::from_bits(bits.load(Ordering::Relaxed))).collect();
        reduce::combine(&mut sums)
    }

    /// Those of each tensor.
    fn sums(&self, squares: &[AtomicU64]) -> Vec<f64> {
        (0..self.blocks.len() - 1).map(|tensor| self.sum(tensor, squares)).collect()
    }

    /// Combines the blocks' sums, each tensor's and then the tensors', and takes the root; where squares overflow or
    /// underflow, if they `may`, of the elements scaled: `rare` tells what is asked of a tensor's block.
    fn norm(
        &self,
        squares: &[AtomicU64],
        may: impl Fn() -> bool,
        rare: &(dyn Fn(usize, usize, Rare) -> f64 + Sync),
    ) -> Norm {
        let total = reduce::combine(&mut self.sums(squares));
        Norm::of(total, |asked| if may() { self.ask(&|tensor, block| rare(tensor, block, asked), asked) } else { 0.0 })
    }

    /// What is asked of all tensors, whose blocks have these answers.
    fn ask(&self, of_block: &(dyn Fn(usize, usize) -> f64 + Sync), asked: Rare) -> f64 {
        let found: Vec<AtomicU64> = (0..self.blocks[self.blocks.len() - 1]).map(|_| AtomicU64::new(0)).collect();
        self.for_each(&|chunk| {
            for (block, slot) in chunk.blocks().zip(&found[chunk.block..]) {
                slot.store(of_block(chunk.tensor, block).to_bits(), Ordering::Relaxed);
            }
        });
        match asked {
            Rare::Largest => found.into_iter().map(|bits| f64::from_bits(bits.into_inner())).fold(0.0, f64::larger),
            Rare::Scaled(_) => reduce::combine(&mut self.sums(&found)),
        }
    }
}

/// The norm of all elements of all views, by the canonical tree.
///
/// # Safety
/// The promise of [`View::new`] holds for all of them.
pub unsafe fn global_norm(views: &[View]) -> f64 {
    let _default = DefaultEnvironment::enter();
    norm_of(&Plan::of(views), views).value()
}

/// The norm of each view, by the canonical tree.
///
/// # Safety
/// The promise of [`View::new`] holds for all of them.
pub unsafe fn tensor_norms(views: &[View]) -> Vec<f64> {
    let _default = DefaultEnvironment::enter();
    let plan = Plan::of(views);
    let sums = plan.sums(&squares_of(&plan, views));
    views.iter().zip(sums).map(|(view, sum)| norm_of_view(view, sum).value()).collect()
}

fn norm_of(plan: &Plan, views: &[View]) -> Norm {
    let may = || views.iter().any(is_wide);
    plan.norm(&squares_of(plan, views), may, &|i, block, rare| measure_rare(&views[i], block, &SQUARES, rare))
}

/// The norm of a view whose squares have this sum.
fn norm_of_view(view: &View, sum: f64) -> Norm {
    if !is_wide(view) {
        return Norm::plain(sum.sqrt());
    }
    let plan = || Plan::of_one(view.len());
    Norm::of(sum, |asked| plan().ask(&|_, block| measure_rare(view, block, &SQUARES, asked), asked))
}

/// Whether squares of its elements may overflow or underflow in float64: those of float32 do not.
fn is_wide(view: &View) -> bool {
    view.dtype().compute() == Dtype::F64
}

/// The squares of the elements as they are.
const SQUARES: Measure = Measure { unscale: None, clip_value: f64::INFINITY, limit: None, squares: true };

/// Σ x² of each block.
fn squares_of(plan: &Plan, views: &[View]) -> Vec<AtomicU64> {
    let squares: Vec<AtomicU64> = (0..plan.blocks[views.len()]).map(|_| AtomicU64::new(0)).collect();
    plan.for_each(&|chunk| {
        for (block, slot) in chunk.blocks().zip(&squares[chunk.block..]) {
            slot.store(measure_block(&views[chunk.tensor], block, &SQUARES).squares.to_bits(), Ordering::Relaxed);
        }
    });
    squares
}

/// Scales all elements of all views so that their norm is at most `max_norm`, as a step with `clip_norm` does; returns
/// the norm before.
///
/// # Safety
/// As [`global_norm`], and they may be written, and none overlaps another.
pub unsafe fn clip_by_global_norm(views: &[View], max_norm: f64) -> f64 {
    let _default = DefaultEnvironment::enter();
    let plan = Plan::of(views);
    let norm = norm_of(&plan, views);
    if let Some(clip) = Clip::to(max_norm, norm, 0.0) {
        // SAFETY: the contract of this function; chunks do not overlap.
        plan.for_each(&|chunk| unsafe { clip_chunk(&views[chunk.tensor], chunk, clip) });
    }
    norm.value()
}

/// Multiplies all elements of all views by a factor, which is rounded once to what they compute in.
///
/// # Safety
/// As [`clip_by_global_norm`].
pub unsafe fn scale(views: &[View], factor: f64) {
    let _default = DefaultEnvironment::enter();
    // SAFETY: the contract of this function; chunks do not overlap.
    Plan::of(views).for_each(&|chunk| unsafe { scale_chunk(&views[chunk.tensor], chunk, factor) });
}

/// How many elements of all views are NaN or infinite.
///
/// # Safety
/// The promise of [`View::new`] holds for all of them.
pub unsafe fn count_nonfinite(views: &[View]) -> usize {
    let _default = DefaultEnvironment::enter();
    let plan = Plan::of(views);
    let count = AtomicUsize::new(0);
    plan.for_each(&|chunk| {
        let view = &views[chunk.tensor];
        let limit = Some(largest(view.dtype().compute()));
        let asked = Measure { unscale: None, clip_value: f64::INFINITY, limit, squares: false };
        let beyond = chunk.blocks().map(|block| measure_block(view, block, &asked).beyond).sum();
        count.fetch_add(beyond, Ordering::Relaxed);
    });
    count.into_inner()
}

/// The largest finite number of the type.
fn largest(compute: Dtype) -> f64 {
    if compute == Dtype::F64 { f64::MAX } else { f64::from(f32::MAX) }
}

/// What gradients are multiplied by to be clipped: fraction·2ᵏ, with 1 ≤ fraction < 2 if it is a finite number above 0.
#[derive(Clone, Copy, Debug)]
struct Clip {
    fraction: f64,
    power: i32,
}

impl Clip {
    /// `max_norm/(norm + eps)`; an infinite one clips nothing, a NaN norm neither.
    fn to(max_norm: f64, norm: Norm, eps: f64) -> Option<Self> {
        (max_norm < f64::INFINITY).then(|| Self::new(Norm::plain(max_norm), norm, eps)).flatten()
    }

    /// limit/(norm + eps); None for gradients that are short enough.
    fn new(limit: Norm, norm: Norm, eps: f64) -> Option<Self> {
        let (longest, length) = (limit.value(), norm.value() + eps);
        let finite = limit.root < f64::INFINITY && norm.root < f64::INFINITY;
        let tells = !finite || longest < f64::INFINITY || length < f64::INFINITY;
        // Not `length > longest`: the step of a NaN norm is NaN everywhere, not unclipped.
        if length <= longest && tells {
            return None;
        }
        if !finite || limit.root == 0.0 {
            return Some(Self { fraction: longest / length, power: 0 });
        }
        let scaled = || (norm.root + reduce::times_two_to(eps, -norm.power), norm.power);
        let (below, shift) = if length < f64::INFINITY { (length, 0) } else { scaled() };
        let (above, under) = (reduce::exponent(limit.root), reduce::exponent(below));
        let fraction = reduce::times_two_to(limit.root, -above) / reduce::times_two_to(below, -under);
        let power = above + limit.power - under - shift;
        let normal = if fraction < 1.0 { (2.0 * fraction, power - 1) } else { (fraction, power) };
        (tells || normal.1 < 0).then_some(Self { fraction: normal.0, power: normal.1 })
    }

    /// For elements of this type that are multiplied by `unscale` first: j and a factor, by which 2⁻ʲ·x is multiplied. j is
    /// the least for which the factor is a normal number, and mostly 0, or as large as 2⁻ʲ times `unscale` allows.
    fn factors(self, compute: Dtype, unscale: Option<f64>) -> (i32, f64) {
        let least = if compute == Dtype::F64 { f64::MIN_EXP } else { f32::MIN_EXP } - 1;
        let most = unscale.map_or(0, reduce::exponent) - least;
        let power = (least - self.power).clamp(0, most.max(0));
        (power, reduce::times_two_to(self.fraction, self.power + power))
    }
}

/// # Safety
/// As [`clip_by_global_norm`]; nobody else is at this chunk.
unsafe fn clip_chunk(view: &View, chunk: &Chunk, clip: Clip) {
    let (power, factor) = clip.factors(view.dtype().compute(), None);
    match view.dtype().compute() {
        Dtype::F64 => simd::dispatch(Scale { view, chunk, factor, first: reduce::two_to(-power) }),
        _ => {
            let [factor, first] = [factor, reduce::two_to(-power)].map(<f32 as Real>::constant);
            simd::dispatch(Scale { view, chunk, factor, first });
        }
    }
}

/// # Safety
/// As [`clip_by_global_norm`]; nobody else is at this chunk.
unsafe fn scale_chunk(view: &View, chunk: &Chunk, factor: f64) {
    match view.dtype().compute() {
        Dtype::F64 => simd::dispatch(Scale { view, chunk, factor, first: 1.0 }),
        _ => simd::dispatch(Scale { view, chunk, factor: <f32 as Real>::constant(factor), first: 1.0 }),
    }
}

/// [`scale_chunk`] of a view that computes in `A`, by `first` before `factor` unless that is 1.
struct Scale<'a, A> {
    view: &'a View,
    chunk: &'a Chunk,
    factor: A,
    first: A,
}

impl<A: Arithmetic> Kernel for Scale<'_, A> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { view, chunk, factor, first } = self;
        for at in (chunk.start..chunk.start + chunk.len).step_by(BLOCK) {
            let n = BLOCK.min(chunk.start + chunk.len - at);
            // SAFETY: at + n ≤ the end of the chunk ≤ len; the rest is the promise.
            let mut block = unsafe { view.load::<A>(at, n) };
            if first.to_f64() < 1.0 {
                for x in &mut block {
                    *x = *x * first;
                }
            }
            for x in &mut block {
                *x = *x * factor;
            }
            // SAFETY: as above.
            unsafe { view.store(at, n, &block) };
        }
    }
}

/// Adds `weight` · x to elements `start..start + len` of a sum; the first x is stored, or 0 for none.
struct Add<'a, A> {
    sum: &'a View,
    x: Option<&'a View>,
    weight: Option<A>,
    first: bool,
    start: usize,
    len: usize,
}

impl<A: Arithmetic> Kernel for Add<'_, A> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let plain = self.x.is_some_and(|x| x.plain::<A>().is_some());
        let mut room = element::room(plain);
        let most = if plain { self.len } else { BLOCK };
        let Some(sums) = self.sum.plain::<A>() else { return };
        let (mut at, end) = (self.start, self.start + self.len);
        while at < end {
            let n = most.min(end - at);
            let sum = sums.wrapping_add(at);
            if let Some(x) = self.x {
                // SAFETY: at + n ≤ start + len ≤ its length, and n ≤ BLOCK unless it is plain; the rest is the contract of
                // `Step::accumulate`.
                let x = unsafe { x.open(at, n, &mut room) };
                // SAFETY: n elements are there, as above.
                unsafe { self.apply(sum, x, n) };
            } else {
                // SAFETY: as above; 0 is all zero bits.
                unsafe { sum.write_bytes(0, n) };
            }
            at += n;
        }
    }
}

impl<A: Arithmetic> Add<'_, A> {
    /// # Safety
    /// `count` elements can be read at both pointers, and written at `sum`; nobody else does meanwhile.
    #[inline(always)]
    unsafe fn apply(&self, sum: *mut A, x: *const A, count: usize) {
        let whole = count - count % GROUP;
        for at in (0..whole).step_by(GROUP) {
            // SAFETY: at + GROUP ≤ count.
            unsafe { self.apply_group::<GROUP>(sum, x, at) };
        }
        for at in whole..count {
            // SAFETY: at < count.
            unsafe { self.apply_group::<1>(sum, x, at) };
        }
    }

    /// # Safety
    /// As [`Add::apply`], with `at + W` ≤ count.
    #[inline(always)]
    unsafe fn apply_group<const W: usize>(&self, sum: *mut A, x: *const A, at: usize) {
        let to = sum.wrapping_add(at).cast::<[A; W]>();
        // SAFETY: at + W ≤ count elements can be read.
        let mut term = unsafe { x.wrapping_add(at).cast::<[A; W]>().read() };
        if let Some(weight) = self.weight {
            term = term.map(|x| x * weight);
        }
        if !self.first {
            // SAFETY: as above.
            let before = unsafe { to.read() };
            for (term, before) in term.iter_mut().zip(before) {
                *term = before + *term;
            }
        }
        // SAFETY: as above, and they can be written.
        unsafe { to.write(term) };
    }
}

impl Chunk {
    /// The blocks of its tensor that it holds.
    fn blocks(&self) -> std::ops::Range<usize> {
        self.start / reduce::BLOCK..(self.start + self.len).div_ceil(reduce::BLOCK)
    }
}

/// A rule bound to parameters and states.
#[derive(Debug)]
pub struct Step {
    rule: &'static Entry,
    /// Of its hyperparameters: the rule's, but for those widened.
    ranges: Vec<Range>,
    options: Options,
    after: After,
    groups: Vec<Group>,
    tensors: Vec<Tensor>,
    rows: Vec<Row>,
    plan: Plan,
    squares: Vec<AtomicU64>,
    /// The same of the parameters, for rules with norms of each tensor.
    parameter_squares: Vec<AtomicU64>,
    beyond: Vec<AtomicUsize>,
    steps: u64,
    grad_scale: Option<f64>,
    /// Whether a parameter is computed in float32.
    narrow: bool,
    /// Which hyperparameters have products that are kept.
    products: Vec<usize>,
    /// Whether each of these was, in all updates of each tensor, what its group used in the last step.
    settled: bool,
}

impl Step {
    /// A rule with `groups` groups of hyperparameters, all 0 until they are set, and no parameters yet.
    pub fn new(rule: &'static Entry, options: Options, groups: usize) -> Self {
        let group = Group {
            hyper: vec![0.0; rule.hyperparameters.len()],
            weight_decay: 0.0,
            l2: 0.0,
            maximize: false,
            decay_after: false,
            decay_implicit: false,
            decay_unscaled: false,
            current_correction: false,
            used: [-1.0; MAX_PRODUCTS],
        };
        let place = |product: &&str| rule.hyperparameters.iter().position(|name| name == product);
        Self {
            rule,
            ranges: rule.ranges.to_vec(),
            options,
            after: After::default(),
            groups: vec![group; groups],
            tensors: Vec::new(),
            rows: Vec::new(),
            plan: Plan::new(),
            squares: Vec::new(),
            parameter_squares: Vec::new(),
            beyond: Vec::new(),
            steps: 0,
            grad_scale: None,
            narrow: false,
            products: rule.products.iter().filter_map(place).collect(),
            settled: true,
        }
    }

    /// Binds one more parameter with its states, `t` updates old.
    ///
    /// # Safety
    /// As long as `self` is used, the promise of [`View::new`] holds for all these views, they have the same length, no
    /// two of all views bound overlap, and the states compute in what the parameter does, exactly or in fewer bytes; of a
    /// state that is one number of the tensor, length 1 and float64.
    ///
    /// # Panics
    /// If the group does not exist or the number of states is not the rule's, or their lengths.
    pub unsafe fn bind(&mut self, parameter: View, states: Vec<View>, group: usize) {
        assert!(group < self.groups.len() && states.len() == self.rule.states.len());
        for (state, kind) in states.iter().zip(self.rule.states) {
            let number = kind.moment == Moment::Scalar;
            assert_eq!(state.len(), if number { 1 } else { parameter.len() });
            assert!(!number || state.dtype() == Dtype::F64);
        }
        self.plan.push(parameter.len());
        let blocks = self.plan.blocks[self.tensors.len() + 1];
        self.squares.resize_with(blocks, AtomicU64::default);
        if self.rule.layerwise.is_some() {
            self.parameter_squares.resize_with(blocks, AtomicU64::default);
        }
        self.beyond.push(AtomicUsize::new(0));
        self.narrow |= parameter.dtype().compute() == Dtype::F32;
        let mut states = states.into_iter();
        let states = std::array::from_fn(|_| states.next().unwrap_or_else(View::empty));
        let number = u32::try_from(self.tensors.len()).expect("each has kilobytes of description");
        let past = [Past::unknown(0); MAX_PRODUCTS];
        self.tensors.push(Tensor { parameter, gradient: None, states, number, kept: None, group, t: 0, past, row: 0 });
    }

    /// Sets what follows the rule, for parameters that have the arrays for it.
    pub fn set_after(&mut self, after: After) {
        self.after = after;
    }

    /// Gives the parameter bound last the arrays that what follows the rule keeps for it.
    ///
    /// # Safety
    /// As [`Step::bind`].
    ///
    /// # Panics
    /// If one has another length or dtype than the states, or is strided, or a parameter has a copy that needs none, or a
    /// remainder that is not its own.
    pub unsafe fn keep(&mut self, kept: Kept) {
        let tensor = self.tensors.last_mut().expect("a parameter was bound");
        let (parameter, compute) = (&tensor.parameter, tensor.parameter.dtype().compute());
        let fits = |view: &View| view.len() == parameter.len() && view.is_contiguous();
        assert!(kept.views().into_iter().flatten().all(fits));
        let Kept { master, average, slow, remainder, rest } = &kept;
        assert!([master, average, slow, rest].into_iter().flatten().all(|view| view.dtype() == compute));
        assert_eq!(rest.is_some(), average.is_some() && compute == Dtype::F32);
        assert!(master.is_none() || (parameter.dtype().size() == 2 && remainder.is_none()));
        assert_eq!(remainder.is_some(), parameter.dtype() == Dtype::Split);
        tensor.kept = Some(Box::new(kept));
    }

    /// The rule.
    pub fn rule(&self) -> &'static Entry {
        self.rule
    }

    /// The options.
    pub fn options(&self) -> Options {
        self.options
    }

    /// Sets the options from the next step on.
    pub fn set_options(&mut self, options: Options) -> Result<(), Error> {
        options.check()?;
        self.options = options;
        Ok(())
    }

    /// Sets what gradients come multiplied by, from the next [`Step::run`] on.
    pub fn set_grad_scale(&mut self, grad_scale: Option<f64>) -> Result<(), Error> {
        grad_scale.map_or(Ok(()), |scale| check_scale("grad_scale", scale))?;
        self.grad_scale = grad_scale;
        Ok(())
    }

    /// Whether gradients that are not finite are an error.
    pub fn raises(&self) -> bool {
        self.options.nonfinite == NonFinite::Raise
    }

    /// Steps completed.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Sets the number of steps completed.
    pub fn set_steps(&mut self, steps: u64) {
        self.steps = steps;
    }

    /// How often parameter number i was updated.
    pub fn updates(&self) -> impl ExactSizeIterator<Item = u64> {
        self.tensors.iter().map(|tensor| tensor.t)
    }

    /// Sets how often each parameter was updated: as far as anyone knows, always with the numbers of the next update.
    pub fn set_updates(&mut self, updates: &[u64]) {
        for (tensor, t) in self.tensors.iter_mut().zip(updates) {
            (tensor.t, tensor.past) = (*t, [Past::unknown(*t); MAX_PRODUCTS]);
        }
        self.settled = self.products.is_empty();
    }

    /// The products that are kept of each parameter, in the order of [`Entry::products`].
    pub fn products(&self) -> impl ExactSizeIterator<Item = Vec<Past>> {
        self.tensors.iter().map(|tensor| self.past(tensor)[..self.products.len()].to_vec())
    }

    /// Sets them; behind [`Step::set_updates`].
    pub fn set_products(&mut self, products: &[Vec<Past>]) {
        for (tensor, products) in self.tensors.iter_mut().zip(products) {
            for (past, product) in tensor.past.iter_mut().zip(products) {
                *past = *product;
            }
        }
    }

    fn past(&self, tensor: &Tensor) -> [Past; MAX_PRODUCTS] {
        match (self.settled, tensor.t) {
            (false, _) => tensor.past,
            (true, 0) => [Past::unknown(0); MAX_PRODUCTS],
            (true, t) => self.groups[tensor.group].used.map(|base| Past { base, ..Past::unknown(t) }),
        }
    }

    /// The parameters, in order.
    pub fn parameters(&self) -> impl ExactSizeIterator<Item = &View> {
        self.tensors.iter().map(|tensor| &tensor.parameter)
    }

    /// Their gradients for the next step.
    pub fn gradients(&self) -> impl ExactSizeIterator<Item = Option<&View>> {
        self.tensors.iter().map(|tensor| tensor.gradient.as_ref())
    }

    /// The state arrays of each, one after the other.
    pub fn states(&self) -> impl Iterator<Item = &View> {
        self.tensors.iter().flat_map(|tensor| &tensor.states[..self.rule.state_arrays().len()])
    }

    /// The number of each, of rules that keep one.
    pub fn numbers(&self) -> impl Iterator<Item = &View> {
        let kept = self.rule.keeps_a_number();
        self.tensors.iter().filter(move |_| kept).map(|tensor| &tensor.states[self.rule.state_arrays().len()])
    }

    /// What is kept for each besides.
    pub fn kept(&self) -> impl Iterator<Item = [Option<&View>; after::KEPT.len()]> {
        self.tensors.iter().map(|tensor| tensor.kept.as_ref().map_or([None; _], |kept| kept.views()))
    }

    /// Their groups.
    pub fn group_numbers(&self) -> impl ExactSizeIterator<Item = usize> {
        self.tensors.iter().map(|tensor| tensor.group)
    }

    /// Each parameter's first block in the list of all blocks of the summation tree, and the end.
    pub fn blocks(&self) -> &[usize] {
        &self.plan.blocks
    }

    /// The numbers of all groups, as the CUDA kernels read them (`struct Group` in step.cu): hyperparameters, decoupled
    /// decay unless the rule decays itself, l2, maximize, the decay's form, that of corrections.
    pub fn values(&self) -> Vec<f64> {
        let row = |group: &Group| {
            let decay = if self.rule.decays_itself() { 0.0 } else { group.weight_decay };
            let decays = [group.decay_after, group.decay_implicit, group.decay_unscaled];
            let form = std::iter::once(group.maximize).chain(decays).chain([group.current_correction]);
            let common = [decay, group.l2].into_iter().chain(form.map(|on| f64::from(u8::from(on))));
            group.hyper.iter().copied().chain(common).collect::<Vec<_>>()
        };
        self.groups.iter().flat_map(row).collect()
    }

    /// The value of a hyperparameter or common option of a group.
    pub fn hyper(&self, group: usize, name: &str) -> Result<f64, Error> {
        let group = &self.groups[group];
        Ok(match name {
            "weight_decay" => group.weight_decay,
            "l2" => group.l2,
            "maximize" => f64::from(u8::from(group.maximize)),
            "decay_after" => f64::from(u8::from(group.decay_after)),
            "decay_implicit" => f64::from(u8::from(group.decay_implicit)),
            "decay_unscaled" => f64::from(u8::from(group.decay_unscaled)),
            "current_correction" => f64::from(u8::from(group.current_correction)),
            _ => group.hyper[self.position(name)?],
        })
    }

    fn position(&self, name: &str) -> Result<usize, Error> {
        let unknown = || Error::UnknownHyperparameter { rule: self.rule.name, name: name.to_owned() };
        self.rule.hyperparameters.iter().position(|known| *known == name).ok_or_else(unknown)
    }

    /// Whether all that was set may be, if a parameter of this dtype is bound, too.
    pub fn check_for(&self, dtype: Dtype) -> Result<(), Error> {
        if dtype.compute() != Dtype::F32 {
            return Ok(());
        }
        for group in &self.groups {
            let own = self.rule.hyperparameters.iter().copied().zip(group.hyper.iter().copied());
            let common = [("weight_decay", group.weight_decay), ("l2", group.l2)];
            own.chain(common).try_for_each(|(name, value)| check_narrow(name, value))?;
        }
        Ok(())
    }

    /// Lets a hyperparameter of the rule be any finite number, for a caller with a wider range than the paper's.
    pub fn widen(&mut self, name: &str) -> Result<(), Error> {
        let i = self.position(name)?;
        self.ranges[i] = Range::Finite;
        Ok(())
    }

    /// Whether a hyperparameter or common option may have this value.
    pub fn check_hyper(&self, name: &str, value: f64) -> Result<(), Error> {
        let common = COMMON.iter().find(|(known, _)| *known == name);
        let range = match (self.position(name), common) {
            (Ok(i), _) => self.ranges[i],
            (Err(_), Some((_, range))) => *range,
            (Err(unknown), None) => return Err(unknown),
        };
        if !range.contains(value) {
            return Err(Error::OutOfRange { name: name.to_owned(), got: value, expected: range.describe() });
        }
        if self.narrow {
            check_narrow(name, value)?;
        }
        if value != 0.0 && name.starts_with("decay_") && self.rule.decays_itself() {
            let expected = "0: this rule decays w within its own update";
            return Err(Error::OutOfRange { name: name.to_owned(), got: value, expected });
        }
        if value != 0.0 && name == "current_correction" && self.products.is_empty() {
            let expected = "0: this rule corrects no bias";
            return Err(Error::OutOfRange { name: name.to_owned(), got: value, expected });
        }
        Ok(())
    }

    /// Sets a hyperparameter or common option of a group.
    pub fn set_hyper(&mut self, group: usize, name: &str, value: f64) -> Result<(), Error> {
        self.check_hyper(name, value)?;
        let position = self.position(name);
        let group = &mut self.groups[group];
        match name {
            "weight_decay" => group.weight_decay = value,
            "l2" => group.l2 = value,
            "maximize" => group.maximize = value != 0.0,
            "decay_after" => group.decay_after = value != 0.0,
            "decay_implicit" => group.decay_implicit = value != 0.0,
            "decay_unscaled" => group.decay_unscaled = value != 0.0,
            "current_correction" => group.current_correction = value != 0.0,
            _ => {}
        }
        if let Ok(i) = position {
            group.hyper[i] = value;
        }
        Ok(())
    }

    /// Takes the gradient of parameter number `i` for the next step; None leaves that parameter as it is.
    ///
    /// # Safety
    /// Until [`Step::run`] returns, the promise of [`View::new`] holds, the view is as long as the parameter, overlaps
    /// no parameter and no state, and computes in what the parameter computes in.
    pub unsafe fn set_gradient(&mut self, i: usize, gradient: Option<View>) {
        let tensor = &mut self.tensors[i];
        debug_assert!(gradient.as_ref().is_none_or(|g| g.len() == tensor.parameter.len()));
        tensor.gradient = gradient;
    }

    /// Adds `weight` · gradient to each parameter's sum, the first time in its place; no gradient counts as 0.
    ///
    /// # Safety
    /// As [`Step::set_gradient`], for the gradients; for each parameter there is a sum, contiguous, as long as it, of the
    /// type that it computes in, which may be written and overlaps nothing else.
    pub unsafe fn accumulate(&self, sums: &[View], weight: Option<f64>, first: bool) {
        let _default = DefaultEnvironment::enter();
        self.plan.for_each(&|chunk| {
            let (sum, gradient) = (&sums[chunk.tensor], self.tensors[chunk.tensor].gradient.as_ref());
            if gradient.is_none() && !first {
                return;
            }
            let (start, len) = (chunk.start, chunk.len);
            if sum.dtype() == Dtype::F64 {
                simd::dispatch(Add::<f64> { sum, x: gradient, weight, first, start, len });
            } else {
                let weight = weight.map(|weight| weight as f32);
                simd::dispatch(Add::<f32> { sum, x: gradient, weight, first, start, len });
            }
        });
    }

    /// One step over all parameters that have a gradient.
    pub fn run(&mut self) -> Result<Info, Error> {
        self.run_scaled(self.grad_scale, self.options.nonfinite)
    }

    /// One step whose gradients come multiplied by `grad_scale`, with its own answer to those that are not finite.
    pub fn run_scaled(&mut self, grad_scale: Option<f64>, nonfinite: NonFinite) -> Result<Info, Error> {
        // Not only in the loops: the coefficients and the norm are computed here.
        let _default = DefaultEnvironment::enter();
        grad_scale.map_or(Ok(()), |scale| check_scale("grad_scale", scale))?;
        let unscale = grad_scale.map(|scale| 1.0 / scale);
        let check = nonfinite != NonFinite::Propagate;
        let lr = self.groups.first().map_or(0.0, |group| group.hyper[0]);
        let mut info = Info { step: self.steps, lr, grad_norm: None, skipped: false, nonfinite: None };
        let mut clip = None;
        if self.options.clip_norm.is_some() || check {
            let norm = self.measure(&mut info, unscale, check);
            if info.nonfinite.as_ref().is_some_and(|found| !found.is_empty()) {
                info.skipped = true;
                return Ok(info);
            }
            let limits = self.options.clip_norm.zip(norm);
            clip = limits.and_then(|(limit, norm)| Clip::to(limit, norm, self.options.clip_eps));
        }
        // The count repeats after 2³² steps.
        let random = Random { seed: 0, step: self.steps as u32, tensor: 0 };
        let shared = [Dtype::F32, Dtype::F64]
            .map(|compute| Shared::new(unscale, self.options.clip_value, clip, random, compute));
        self.find_rows();
        if let Some(measuring) = &self.rule.layerwise {
            self.adapt(measuring, &shared);
        }
        let (tensors, rows, rule) = (&self.tensors, &self.rows, self.rule);
        self.plan.for_each(&|chunk| {
            let tensor = &tensors[chunk.tensor];
            if tensor.gradient.is_none() {
                return;
            }
            let double = tensor.parameter.dtype().compute() == Dtype::F64;
            let sweep = if double { rule.sweep_f64 } else { rule.sweep_f32 };
            let (row, shared) = (&rows[tensor.row], &shared[usize::from(double)]);
            let shared = if row.unit == 0 { shared } else { &shared.in_unit(row.unit) };
            // SAFETY: the contracts of `bind` and `set_gradient`; chunks do not overlap, each is worked on once.
            unsafe { sweep(tensor, row, shared, chunk.start, chunk.len) };
        });
        for tensor in self.tensors.iter_mut().filter(|tensor| tensor.gradient.is_some()) {
            tensor.t += 1;
        }
        if !self.settled {
            self.remember();
        }
        self.steps += 1;
        info.step = self.steps;
        Ok(info)
    }

    /// What a step reports that has nothing to take a mean of: it does not happen, and nothing was measured.
    pub fn left_out(&self, nonfinite: NonFinite) -> Info {
        let lr = self.groups.first().map_or(0.0, |group| group.hyper[0]);
        let nonfinite = (nonfinite != NonFinite::Propagate).then(Vec::new);
        Info { step: self.steps, lr, grad_norm: None, skipped: true, nonfinite }
    }

    /// Fills in the norm of the gradients and what is not finite in them; returns the norm.
    fn measure(&self, info: &mut Info, unscale: Option<f64>, check: bool) -> Option<Norm> {
        let squares = self.options.clip_norm.is_some();
        let clip_value = self.options.clip_value.unwrap_or(f64::INFINITY);
        self.beyond.iter().for_each(|count| count.store(0, Ordering::Relaxed));
        self.plan.for_each(&|chunk| {
            let tensor = &self.tensors[chunk.tensor];
            // A parameter without a gradient keeps its place in the tree, as a sum of 0.
            let limit = check.then(|| self.limit(tensor.parameter.dtype().compute()));
            let asked = Measure { unscale, clip_value, limit, squares };
            for (block, slot) in chunk.blocks().zip(&self.squares[chunk.block..]) {
                let measure = |gradient| measure_block(gradient, block, &asked);
                let measured = tensor.gradient.as_ref().map_or_else(Measured::default, measure);
                slot.store(measured.squares.to_bits(), Ordering::Relaxed);
                if measured.beyond > 0 {
                    self.beyond[chunk.tensor].fetch_add(measured.beyond, Ordering::Relaxed);
                }
            }
        });
        let norm = squares.then(|| {
            let asked = Measure { unscale, clip_value, limit: None, squares };
            let may = || self.gradients().flatten().any(is_wide);
            self.plan.norm(&self.squares, may, &|i, block, rare| {
                self.tensors[i].gradient.as_ref().map_or(0.0, |gradient| measure_rare(gradient, block, &asked, rare))
            })
        });
        info.grad_norm = norm.map(Norm::value);
        if check {
            let found = self.beyond.iter().zip(&self.tensors).enumerate().filter_map(|(i, (count, tensor))| {
                let count = count.load(Ordering::Relaxed);
                let gradient = tensor.gradient.as_ref().filter(|_| count > 0)?;
                let limit = self.limit(tensor.parameter.dtype().compute());
                Some((i, count, first_beyond(gradient, limit, unscale)?))
            });
            info.nonfinite = Some(found.collect());
        }
        norm
    }

    /// The largest gradient that leaves the states of a parameter finite that computes in this type, and its norms.
    pub fn limit(&self, compute: Dtype) -> f64 {
        let largest = largest(compute);
        // A number of the tensor is a square of its norm, in float64 whatever its dtype.
        let squares = self.rule.squares_gradients() || (compute == Dtype::F64 && self.rule.keeps_a_number());
        if squares { largest.sqrt() } else { largest }
    }

    /// Looks whether a number whose product is kept has changed since the last step: from then on each tensor has its own.
    fn notice_changes(&mut self) {
        if !self.settled {
            return;
        }
        let mut changed = false;
        for group in &mut self.groups {
            for (used, place) in group.used.iter_mut().zip(&self.products) {
                if *used < 0.0 {
                    *used = group.hyper[*place];
                }
                changed |= *used != group.hyper[*place];
            }
        }
        if changed {
            let pasts: Vec<_> = self.tensors.iter().map(|tensor| self.past(tensor)).collect();
            for (tensor, past) in self.tensors.iter_mut().zip(pasts) {
                tensor.past = past;
            }
            self.settled = false;
        }
    }

    /// Takes the products of the step that was done, and looks whether all numbers have always been what they are.
    fn remember(&mut self) {
        for tensor in self.tensors.iter_mut().filter(|tensor| tensor.gradient.is_some()) {
            tensor.past = self.rows[tensor.row].at.past;
        }
        for group in &mut self.groups {
            for (used, place) in group.used.iter_mut().zip(&self.products) {
                *used = group.hyper[*place];
            }
        }
        let (groups, count) = (&self.groups, self.products.len());
        self.settled = self.tensors.iter().all(|tensor| {
            let always = |(past, used): (&Past, &f64)| past.constant == tensor.t && past.base == *used;
            tensor.t == 0 || tensor.past[..count].iter().zip(&groups[tensor.group].used).all(always)
        });
    }

    /// Computes the coefficients of every distinct (group, t, products), and tells each tensor its row.
    fn find_rows(&mut self) {
        self.notice_changes();
        self.rows.clear();
        let (settled, factor) = (self.settled, self.rule.factor);
        for tensor in self.tensors.iter_mut().filter(|tensor| tensor.gradient.is_some()) {
            let (id, t) = (tensor.group, tensor.t + 1);
            let past = (!settled).then(|| {
                let mut past = [Past::unknown(t); MAX_PRODUCTS];
                for (slot, (before, place)) in tensor.past.iter().zip(&self.products).enumerate() {
                    let value = self.groups[id].hyper[*place];
                    past[slot] = before.after(t, value, factor(slot, value, t));
                }
                past
            });
            let same = |row: &Row| past.as_ref().is_none_or(|past| row.at.past == *past);
            let known = |row: &Row| row.group == id && row.at.t == t && same(row);
            tensor.row = match self.rows.last().is_some_and(known) {
                true => self.rows.len() - 1,
                false => self.rows.iter().position(known).unwrap_or(self.rows.len()),
            };
            if tensor.row == self.rows.len() {
                let group = &self.groups[id];
                let past = past.unwrap_or([Past::unknown(t); MAX_PRODUCTS]);
                let at = Progress { t, past, current: group.current_correction };
                self.rows.push(Row {
                    group: id,
                    at,
                    unit: 0,
                    coefficients: (self.rule.coefficients)(&group.hyper, &at),
                    decay: if self.rule.decays_itself() { None } else { group.decay() },
                    l2: (group.l2 != 0.0).then_some(group.l2),
                    maximize: group.maximize,
                    after: self.after.numbers(t),
                });
            }
        }
    }
}

/// Whether float32 has a finite number for a hyperparameter.
fn check_narrow(name: &str, got: f64) -> Result<(), Error> {
    if got <= f64::from(f32::MAX) {
        return Ok(());
    }
    let expected = "a number that is finite in float32, in which these parameters are computed";
    Err(Error::OutOfRange { name: name.to_owned(), got, expected })
}

fn measure_block(view: &View, block: usize, asked: &Measure) -> Measured {
    match view.dtype().compute() {
        // SAFETY: the contract of `set_gradient`, `global_norm` and the like; the dtype was just compared.
        Dtype::F64 => unsafe { reduce::measure::<f64>(view, block, asked) },
        // SAFETY: as above.
        _ => unsafe { reduce::measure::<f32>(view, block, asked) },
    }
}

fn measure_rare(view: &View, block: usize, asked: &Measure, rare: Rare) -> f64 {
    match view.dtype().compute() {
        // SAFETY: as in `measure_block`.
        Dtype::F64 => unsafe { reduce::measure_rare::<f64>(view, block, asked, rare) },
        // SAFETY: as above.
        _ => unsafe { reduce::measure_rare::<f32>(view, block, asked, rare) },
    }
}

fn first_beyond(view: &View, limit: f64, unscale: Option<f64>) -> Option<usize> {
    match view.dtype().compute() {
        // SAFETY: the contract of `set_gradient`; the dtype was just compared.
        Dtype::F64 => unsafe { reduce::first_beyond::<f64>(view, limit, unscale) },
        // SAFETY: as above.
        _ => unsafe { reduce::first_beyond::<f32>(view, limit, unscale) },
    }
}
