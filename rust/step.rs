//! The one loop, rule × arithmetic × blocks, and the pipeline around it.
//!
//! scale and sign → clip by value → clip by norm → coupled l2 → rule, with decoupled decay on the old parameter.
//! Every stage is a little loop of its own over a block on the stack, run only if it is on; so kernels add up (rules +
//! dtypes + stages) and never multiply.

use crate::element::{Arithmetic, BLOCK, Dtype, View};
use crate::error::Error;
use crate::pool;
use crate::reduce::{self, Measure};
use crate::rules::{CoefficientRow, Entry, Fields, MAX_STATES, Range, Rule};
use crate::simd::{self, Kernel};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Elements that a thread takes at a time: whole blocks of the summation tree, small enough to share evenly.
const CHUNK: usize = 2 * reduce::BLOCK;
/// Fewer elements than this in all are not worth waking another thread (measured; benches/record).
const PARALLEL_FROM: usize = 1 << 15;

/// The numbers of one (group, t).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    group: usize,
    t: u64,
    coefficients: CoefficientRow,
    /// 1 − γλ, for decoupled decay.
    keep: Option<f64>,
    l2: Option<f64>,
    maximize: bool,
}

/// What is the same for all tensors of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shared {
    clip_value: Option<f64>,
    /// What clipping by norm multiplies by, if it does.
    scale: Option<f64>,
}

/// A parameter with its states and its gradient.
#[derive(Debug)]
pub(crate) struct Tensor {
    parameter: View,
    gradient: Option<View>,
    /// Empty views behind those of the rule.
    states: [View; MAX_STATES],
    group: usize,
    t: u64,
    row: usize,
    /// Its first block in the list of all blocks of the summation tree.
    first_block: usize,
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
        let parameter = &tensor.parameter;
        simd::dispatch(Loop::<R, A, N> { parameter, gradient, states, row, shared, start, len, types: PhantomData });
    }
}

struct Loop<'a, R, A, const N: usize> {
    parameter: &'a View,
    gradient: &'a View,
    states: &'a [View; N],
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
        let Self { parameter, gradient, states, row, shared, .. } = self;
        let c = R::Coefficients::<A>::from_fn(|i| A::constant(row.coefficients[i]));
        let number = |x: Option<f64>| x.map(A::constant);
        let (clip, scale, l2, keep) =
            (number(shared.clip_value), number(shared.scale), number(row.l2), number(row.keep));
        let (mut at, end) = (self.start, self.start + self.len);
        while at < end {
            let n = BLOCK.min(end - at);
            // SAFETY: at + n ≤ start + len ≤ its length; the rest is the contract of `Sweep`.
            let mut p = unsafe { parameter.load::<A>(at, n) };
            // SAFETY: as above.
            let mut g = unsafe { gradient.load::<A>(at, n) };
            // SAFETY: as above.
            let mut s: [[A; BLOCK]; N] = std::array::from_fn(|k| unsafe { states[k].load::<A>(at, n) });
            if row.maximize {
                g.iter_mut().for_each(|g| *g = -*g);
            }
            if let Some(clip) = clip {
                g.iter_mut().for_each(|g| *g = g.larger(-clip).smaller(clip));
            }
            if let Some(scale) = scale {
                g.iter_mut().for_each(|g| *g = *g * scale);
            }
            if let Some(l2) = l2 {
                for (g, p) in g.iter_mut().zip(&p) {
                    *g = *g + l2 * *p;
                }
            }
            if let Some(keep) = keep {
                p.iter_mut().for_each(|p| *p = keep * *p);
            }
            for i in 0..BLOCK {
                let state;
                (p[i], state) = R::update(&c, p[i], g[i], std::array::from_fn(|k| s[k][i]));
                for k in 0..N {
                    s[k][i] = state[k];
                }
            }
            // SAFETY: as for the loads; parameters may be written.
            unsafe { parameter.store(at, n, &p) };
            for k in 0..N {
                // SAFETY: as for the loads; states may be written.
                unsafe { states[k].store(at, n, &s[k]) };
            }
            at += n;
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
    /// All gradients together are scaled down to this norm.
    pub clip_norm: Option<f64>,
    /// What to do about gradients that are not finite.
    pub nonfinite: NonFinite,
}

/// The hyperparameters of some of the parameters.
#[derive(Clone, Debug)]
struct Group {
    hyper: Vec<f64>,
    weight_decay: f64,
    l2: f64,
    maximize: bool,
}

/// Options that every rule has, and their ranges.
pub const COMMON: [(&str, Range); 3] =
    [("weight_decay", Range::NotNegative), ("l2", Range::NotNegative), ("maximize", Range::Switch)];

/// What a step reports.
#[derive(Clone, Debug, PartialEq)]
pub struct Info {
    /// Steps completed so far, this one included.
    pub step: u64,
    /// The learning rate of the first group.
    pub lr: f64,
    /// The norm of all gradients, after clipping by value and before clipping by norm; if it was needed.
    pub grad_norm: Option<f64>,
    /// Whether nothing was done because of gradients that are not finite.
    pub skipped: bool,
    /// If it was checked: tensor, how many elements are not finite, the C-order index of the first.
    pub nonfinite: Option<Vec<(usize, usize, usize)>>,
}

#[derive(Clone, Copy, Debug)]
struct Chunk {
    tensor: u32,
    start: usize,
    len: usize,
}

/// A rule bound to parameters and states.
#[derive(Debug)]
pub struct Step {
    rule: &'static Entry,
    options: Options,
    groups: Vec<Group>,
    tensors: Vec<Tensor>,
    rows: Vec<Row>,
    chunks: Vec<Chunk>,
    /// Chunk number `tasks[i]` is the first of task i; the last entry is the end.
    tasks: Vec<usize>,
    elements: usize,
    squares: Vec<AtomicU64>,
    beyond: Vec<AtomicUsize>,
    steps: u64,
}

impl Step {
    /// A rule with `groups` groups of hyperparameters, all 0 until they are set, and no parameters yet.
    pub fn new(rule: &'static Entry, options: Options, groups: usize) -> Self {
        let group = Group { hyper: vec![0.0; rule.hyperparameters.len()], weight_decay: 0.0, l2: 0.0, maximize: false };
        Self {
            rule,
            options,
            groups: vec![group; groups],
            tensors: Vec::new(),
            rows: Vec::new(),
            chunks: Vec::new(),
            tasks: vec![0],
            elements: 0,
            squares: Vec::new(),
            beyond: Vec::new(),
            steps: 0,
        }
    }

    /// Binds one more parameter with its states, `t` updates old.
    ///
    /// # Safety
    /// As long as `self` is used, the promise of [`View::new`] holds for all these views, they have the same length, no
    /// two of all views bound overlap, and the states' dtype is the one that the parameter's computes in.
    ///
    /// # Panics
    /// If the group does not exist or the number of states is not the rule's.
    pub unsafe fn bind(&mut self, parameter: View, states: Vec<View>, group: usize) {
        assert!(group < self.groups.len() && states.len() == self.rule.states.len());
        assert!(states.iter().all(|state| state.len() == parameter.len()));
        let tensor = self.tensors.len() as u32;
        let len = parameter.len();
        for start in (0..len).step_by(CHUNK) {
            self.chunks.push(Chunk { tensor, start, len: CHUNK.min(len - start) });
            let first = self.tasks.last().copied().unwrap_or(0);
            if self.chunks[first..].iter().map(|chunk| chunk.len).sum::<usize>() >= CHUNK {
                self.tasks.push(self.chunks.len());
            }
        }
        self.elements += len;
        let first_block = self.squares.len();
        self.squares.resize_with(first_block + len.div_ceil(reduce::BLOCK), AtomicU64::default);
        self.beyond.push(AtomicUsize::new(0));
        let mut states = states.into_iter();
        let states = std::array::from_fn(|_| states.next().unwrap_or_else(View::empty));
        self.tensors.push(Tensor { parameter, gradient: None, states, group, t: 0, row: 0, first_block });
    }

    /// The rule.
    pub fn rule(&self) -> &'static Entry {
        self.rule
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

    /// Sets how often each parameter was updated.
    pub fn set_updates(&mut self, updates: &[u64]) {
        for (tensor, t) in self.tensors.iter_mut().zip(updates) {
            tensor.t = *t;
        }
    }

    /// The value of a hyperparameter or common option of a group.
    pub fn hyper(&self, group: usize, name: &str) -> Result<f64, Error> {
        let group = &self.groups[group];
        Ok(match name {
            "weight_decay" => group.weight_decay,
            "l2" => group.l2,
            "maximize" => f64::from(u8::from(group.maximize)),
            _ => group.hyper[self.position(name)?],
        })
    }

    fn position(&self, name: &str) -> Result<usize, Error> {
        let unknown = || Error::UnknownHyperparameter { rule: self.rule.name, name: name.to_owned() };
        self.rule.hyperparameters.iter().position(|known| *known == name).ok_or_else(unknown)
    }

    /// Sets a hyperparameter or common option of a group.
    pub fn set_hyper(&mut self, group: usize, name: &str, value: f64) -> Result<(), Error> {
        let position = self.position(name);
        let common = COMMON.iter().find(|(known, _)| *known == name);
        let range = match (&position, common) {
            (Ok(i), _) => self.rule.ranges[*i],
            (_, Some((_, range))) => *range,
            (Err(unknown), None) => return Err(unknown.clone()),
        };
        if !range.contains(value) {
            return Err(Error::OutOfRange { name: name.to_owned(), got: value, expected: range.describe() });
        }
        let group = &mut self.groups[group];
        match name {
            "weight_decay" => group.weight_decay = value,
            "l2" => group.l2 = value,
            "maximize" => group.maximize = value != 0.0,
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

    /// One step over all parameters that have a gradient.
    pub fn run(&mut self) -> Result<Info, Error> {
        let lr = self.groups.first().map_or(0.0, |group| group.hyper[0]);
        let mut info = Info { step: self.steps, lr, grad_norm: None, skipped: false, nonfinite: None };
        let mut scale = None;
        if self.options.clip_norm.is_some() || self.options.nonfinite != NonFinite::Propagate {
            self.measure(&mut info);
            if info.nonfinite.as_ref().is_some_and(|found| !found.is_empty()) {
                info.skipped = true;
                return Ok(info);
            }
            // Not `norm > clip`: the step of a NaN norm is NaN everywhere, not unclipped.
            scale =
                self.options.clip_norm.zip(info.grad_norm).filter(|(clip, norm)| !(norm <= clip)).map(|(c, n)| c / n);
        }
        let shared = Shared { clip_value: self.options.clip_value, scale };
        self.find_rows();
        let (tensors, rows, rule) = (&self.tensors, &self.rows, self.rule);
        for_each_chunk(&self.chunks, &self.tasks, self.elements, &|chunk| {
            let tensor = &tensors[chunk.tensor as usize];
            if tensor.gradient.is_none() {
                return;
            }
            let sweep = if tensor.parameter.dtype().compute() == Dtype::F64 { rule.sweep_f64 } else { rule.sweep_f32 };
            // SAFETY: the contracts of `bind` and `set_gradient`; chunks do not overlap, each is worked on once.
            unsafe { sweep(tensor, &rows[tensor.row], &shared, chunk.start, chunk.len) };
        });
        for tensor in self.tensors.iter_mut().filter(|tensor| tensor.gradient.is_some()) {
            tensor.t += 1;
        }
        self.steps += 1;
        info.step = self.steps;
        Ok(info)
    }

    /// Fills in the norm of the gradients and what is not finite in them.
    fn measure(&self, info: &mut Info) {
        let check = self.options.nonfinite != NonFinite::Propagate;
        let squares = self.options.clip_norm.is_some();
        let clip_value = self.options.clip_value.unwrap_or(f64::INFINITY);
        self.beyond.iter().for_each(|count| count.store(0, Ordering::Relaxed));
        for_each_chunk(&self.chunks, &self.tasks, self.elements, &|chunk| {
            let tensor = &self.tensors[chunk.tensor as usize];
            let Some(gradient) = &tensor.gradient else { return };
            let asked = Measure { clip_value, limit: check.then(|| self.limit(tensor)), squares };
            for block in chunk.start / reduce::BLOCK..(chunk.start + chunk.len).div_ceil(reduce::BLOCK) {
                let measured = measure_block(gradient, tensor, block, &asked);
                self.squares[tensor.first_block + block].store(measured.squares.to_bits(), Ordering::Relaxed);
                if measured.beyond > 0 {
                    self.beyond[chunk.tensor as usize].fetch_add(measured.beyond, Ordering::Relaxed);
                }
            }
        });
        if squares {
            let mut sums: Vec<f64> = self.tensors.iter().map(|tensor| self.sum_of_squares(tensor)).collect();
            info.grad_norm = Some(reduce::combine(&mut sums).sqrt());
        }
        if check {
            let found = self.beyond.iter().zip(&self.tensors).enumerate().filter_map(|(i, (count, tensor))| {
                let count = count.load(Ordering::Relaxed);
                let gradient = tensor.gradient.as_ref().filter(|_| count > 0)?;
                Some((i, count, first_beyond(gradient, tensor, self.limit(tensor))?))
            });
            info.nonfinite = Some(found.collect());
        }
    }

    fn sum_of_squares(&self, tensor: &Tensor) -> f64 {
        if tensor.gradient.is_none() {
            return 0.0;
        }
        let blocks = tensor.parameter.len().div_ceil(reduce::BLOCK);
        let bits = &self.squares[tensor.first_block..tensor.first_block + blocks];
        let mut sums: Vec<f64> = bits.iter().map(|bits| f64::from_bits(bits.load(Ordering::Relaxed))).collect();
        reduce::combine(&mut sums)
    }

    /// The largest gradient that leaves the states finite.
    fn limit(&self, tensor: &Tensor) -> f64 {
        let largest = if tensor.parameter.dtype().compute() == Dtype::F64 { f64::MAX } else { f64::from(f32::MAX) };
        if self.rule.squares_gradients() { largest.sqrt() } else { largest }
    }

    /// Computes the coefficients of every distinct (group, t), and tells each tensor its row.
    fn find_rows(&mut self) {
        self.rows.clear();
        for tensor in self.tensors.iter_mut().filter(|tensor| tensor.gradient.is_some()) {
            let (id, t) = (tensor.group, tensor.t + 1);
            let known = |row: &Row| row.group == id && row.t == t;
            tensor.row = match self.rows.last().is_some_and(known) {
                true => self.rows.len() - 1,
                false => self.rows.iter().position(known).unwrap_or(self.rows.len()),
            };
            if tensor.row == self.rows.len() {
                let group = &self.groups[id];
                let decay = group.weight_decay != 0.0 && !self.rule.decays_itself();
                self.rows.push(Row {
                    group: id,
                    t,
                    coefficients: (self.rule.coefficients)(&group.hyper, t),
                    keep: decay.then(|| 1.0 - group.hyper[0] * group.weight_decay),
                    l2: (group.l2 != 0.0).then_some(group.l2),
                    maximize: group.maximize,
                });
            }
        }
    }
}

fn measure_block(gradient: &View, tensor: &Tensor, block: usize, asked: &Measure) -> reduce::Measured {
    match tensor.parameter.dtype().compute() {
        // SAFETY: the contract of `set_gradient`: it computes in what the parameter does and is as long.
        Dtype::F64 => unsafe { reduce::measure::<f64>(gradient, block, asked) },
        // SAFETY: as above.
        _ => unsafe { reduce::measure::<f32>(gradient, block, asked) },
    }
}

fn first_beyond(gradient: &View, tensor: &Tensor, limit: f64) -> Option<usize> {
    match tensor.parameter.dtype().compute() {
        // SAFETY: the contract of `set_gradient`: it computes in what the parameter does.
        Dtype::F64 => unsafe { reduce::first_beyond::<f64>(gradient, limit) },
        // SAFETY: as above.
        _ => unsafe { reduce::first_beyond::<f32>(gradient, limit) },
    }
}

fn for_each_chunk(chunks: &[Chunk], tasks: &[usize], elements: usize, work: &(dyn Fn(&Chunk) + Sync)) {
    let count = tasks.len() - 1;
    let last = tasks[count]; // what is left over is less than a task, and goes to the last one
    let task = |i: usize| {
        let end = if i + 1 >= count { chunks.len() } else { tasks[i + 1] };
        chunks[tasks[i]..end].iter().for_each(work);
    };
    debug_assert!(last <= chunks.len());
    let count = count.max(usize::from(!chunks.is_empty()));
    if elements < PARALLEL_FROM { pool::run_alone(count, &task) } else { pool::run(count, &task) }
}
