//! The kernels alone, one thread: ns per element and GB/s for every rule × dtype × instruction set, in cache and from memory.
//!
//! `cargo bench` or `cargo bench -- adam float32` (words that must all occur in the line). Each case is checked first: its
//! bits must be those of the baseline instruction set.

#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

use ravine::element::{BLOCK, Dtype, View};
use ravine::rules::{Entry, Moment, Precision, REGISTRY, Range, State};
use ravine::simd::Level;
use ravine::step::{NonFinite, Options, Step};
use ravine::{pool, simd};
use std::time::Instant;

/// What a line says of them.
fn name(states: Precision) -> &'static str {
    match states {
        Precision::Full => "exact",
        Precision::Bfloat16 => "bfloat16",
        Precision::EightBit => "8bit",
    }
}

/// Arrays of one tensor, as 8-byte words so that every dtype is aligned.
struct Case {
    dtype: Dtype,
    states: Precision,
    len: usize,
    arrays: Vec<Vec<u64>>,
}

impl Case {
    fn new(entry: &Entry, dtype: Dtype, states: Precision, len: usize) -> Self {
        let words = len * dtype.size() / 8;
        let mut state = 1u64;
        let mut number = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
        };
        let mut fill = || match dtype {
            Dtype::F64 => number().to_bits(),
            _ => (u64::from((number() as f32).to_bits()) << 32) | u64::from((number() as f32).to_bits()),
        };
        let mut arrays: Vec<Vec<u64>> = (0..2).map(|_| (0..words).map(|_| fill()).collect()).collect();
        for state in entry.states {
            let stored = state.layout(states, dtype, &[]).0;
            let scales = if stored.size() == 1 { len.div_ceil(BLOCK) * 4 } else { 0 };
            arrays.push(vec![0; (len * stored.size()).div_ceil(8) + scales.div_ceil(8)]);
        }
        Self { dtype, states, len, arrays }
    }

    fn step(&mut self, entry: &'static Entry) -> Step {
        let options = Options { clip_value: None, clip_norm: None, clip_eps: 0.0, nonfinite: NonFinite::Propagate };
        let mut step = Step::new(entry, options, 1);
        for (name, range) in entry.hyperparameters.iter().zip(entry.ranges) {
            let value = match range {
                Range::NotNegative => 1e-3,
                Range::Fraction => 0.9,
                Range::NotBelowOne => 1.2,
                Range::Whole | Range::Switch | Range::Finite => 0.0,
            };
            step.set_hyper(0, name, value).expect("in range");
        }
        step.set_hyper(0, "weight_decay", 0.01).expect("in range");
        let states = [None, None].into_iter().chain(entry.states.iter().map(Some));
        let view = |(array, state): (&mut Vec<u64>, Option<&State>)| {
            let dtype = state.map_or(self.dtype, |state| state.layout(self.states, self.dtype, &[]).0);
            let data: *mut u8 = array.as_mut_ptr().cast();
            if dtype.size() == 1 {
                let scales = data.wrapping_add(self.len.next_multiple_of(8)).cast();
                // SAFETY: as below; the scales are behind the codes.
                return unsafe { View::coded(data, dtype, self.len, scales) };
            }
            // SAFETY: the array outlives the step in `main`, and is reached through this view alone.
            unsafe { View::contiguous(data, dtype, self.len) }
        };
        let mut views: Vec<View> = self.arrays.iter_mut().zip(states).map(view).collect();
        let (parameter, gradient) = (views.remove(0), views.remove(0));
        for (view, _) in views.iter_mut().zip(entry.states).filter(|(_, state)| state.moment == Moment::Scalar) {
            // SAFETY: as above; it is the first number of an array that nothing else uses.
            *view = unsafe { View::contiguous(self.arrays[1 + entry.states.len()].as_mut_ptr().cast(), Dtype::F64, 1) };
        }
        // SAFETY: as above; the arrays have the same length and are apart.
        unsafe { step.bind(parameter, views, 0) };
        // SAFETY: as above.
        unsafe { step.set_gradient(0, Some(gradient)) };
        step
    }
}

fn bits_after_three_steps(entry: &'static Entry, dtype: Dtype, states: Precision) -> Vec<Vec<u64>> {
    let mut case = Case::new(entry, dtype, states, 4096 + 64);
    let mut step = case.step(entry);
    for _ in 0..3 {
        step.run().expect("no options that fail");
    }
    case.arrays
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    pool::set_num_threads(1);
    println!(
        "{:26} {:8} {:8} {:9} {:>11} {:>9} {:>9} {:>8}",
        "rule", "dtype", "states", "simd", "elements", "ns/elem", "spread", "GB/s"
    );
    let storages = [
        (Dtype::F32, Precision::Full),
        (Dtype::F64, Precision::Full),
        (Dtype::F32, Precision::Bfloat16),
        (Dtype::F32, Precision::EightBit),
    ];
    for entry in REGISTRY {
        for (dtype, states) in storages {
            if states != Precision::Full && entry.states.is_empty() {
                continue;
            }
            simd::set_level(Level::Baseline);
            let expected = bits_after_three_steps(entry, dtype, states);
            for level in Level::ALL.into_iter().filter(|level| *level <= simd::detected()) {
                let line = format!("{} {} {} {}", entry.name, dtype.name(), name(states), level.name());
                if !words.iter().all(|word| line.split(' ').any(|part| part == word)) {
                    continue;
                }
                simd::set_level(level);
                let found = bits_after_three_steps(entry, dtype, states);
                assert_eq!(found, expected, "{line}: other bits than the baseline");
                for len in [1 << 14, 1 << 22] {
                    measure(entry, dtype, states, level, len);
                }
            }
        }
    }
}

fn measure(entry: &'static Entry, dtype: Dtype, states: Precision, level: Level, len: usize) {
    let mut case = Case::new(entry, dtype, states, len);
    let mut step = case.step(entry);
    let repeats = ((1 << 21) / len).max(1);
    let mut times: Vec<f64> = (0..11)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..repeats {
                step.run().expect("no options that fail");
            }
            start.elapsed().as_secs_f64() * 1e9 / (repeats * len) as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    let (median, spread) = (times[5], times[8] - times[2]);
    // Read the gradient; read and write the parameter and the states; before that, with norms of each tensor, read all.
    let arrays = entry.states.iter().filter(|state| state.moment != Moment::Scalar);
    let of_states: usize = arrays.map(|state| state.layout(states, dtype, &[]).0.size()).sum();
    let measured = if entry.norms().is_some() { 2 * dtype.size() + of_states } else { 0 };
    let bytes = 3 * dtype.size() + 2 * of_states + measured;
    println!(
        "{:26} {:8} {:8} {:9} {len:>11} {median:>9.3} {spread:>9.3} {:>8.1}",
        entry.name,
        dtype.name(),
        name(states),
        level.name(),
        bytes as f64 / median
    );
}
