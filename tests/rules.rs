//! Every rule of the registry, found by existing: same bits at every instruction set, length and stride; the CUDA text
//! that is generated from it; the formula that people read.

use ravine::element::{Dtype, View};
use ravine::rules::{Entry, Moment, REGISTRY, Range};
use ravine::simd::{self, Level};
use ravine::step::{NonFinite, Options, Step};
use ravine::trace::Decay;

/// Float32 numbers in (−1, 1), some of them 0, −0 and subnormal.
fn numbers(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    (0..n)
        .map(|i| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            match i % 13 {
                5 => 0.0,
                7 => -0.0,
                11 => f32::from_bits(state >> 12),
                _ => (f64::from(state) / f64::from(1u32 << 31) - 1.0) as f32,
            }
        })
        .collect()
}

/// Room for the states of a parameter of `len` elements, aligned for float64.
fn room_for_states(entry: &Entry, len: usize) -> Vec<Vec<u64>> {
    let words = |moment| if moment == Moment::Scalar { 1 } else { len.div_ceil(2) };
    entry.states.iter().map(|state| vec![0; words(state.moment)]).collect()
}

/// Views of them.
fn views_of_states(entry: &Entry, states: &mut [Vec<u64>], len: usize) -> Vec<View> {
    let view = |(state, words): (&ravine::rules::State, &mut Vec<u64>)| {
        let (dtype, len) = if state.moment == Moment::Scalar { (Dtype::F64, 1) } else { (Dtype::F32, len) };
        // SAFETY: so many elements are there; the vectors are apart and outlive the step.
        unsafe { View::contiguous(words.as_mut_ptr().cast(), dtype, len) }
    };
    entry.states.iter().zip(states).map(view).collect()
}

/// Parameters and states after three steps on arrays whose elements lie `stride` apart.
fn run(entry: &'static Entry, len: usize, stride: usize, stages: bool) -> Vec<u32> {
    let spread = |x: &[f32]| x.iter().flat_map(|x| std::iter::repeat_n(*x, stride)).collect::<Vec<f32>>();
    let mut parameter = spread(&numbers(len, 1));
    let gradient = spread(&numbers(len, 2));
    let mut states = room_for_states(entry, len);
    let options = Options {
        clip_value: stages.then_some(0.7),
        clip_norm: stages.then_some(0.5),
        clip_eps: 0.0,
        nonfinite: NonFinite::Propagate,
    };
    let mut step = Step::new(entry, options, 1);
    for (name, range) in entry.hyperparameters.iter().zip(entry.ranges) {
        let value = match range {
            Range::NotNegative => 0.03,
            Range::Fraction => 0.8,
            Range::NotBelowOne => 1.2,
            Range::Whole => 2.0,
            Range::Switch | Range::Finite => 0.0,
        };
        step.set_hyper(0, name, value).unwrap();
    }
    for (name, value) in [("weight_decay", 0.1), ("l2", 0.2), ("maximize", 1.0)] {
        step.set_hyper(0, name, if stages { value } else { 0.0 }).unwrap();
    }
    let strided = |x: *mut f32| {
        // SAFETY: `len` elements `stride` apart lie in a vector of that many.
        unsafe { View::new(x.cast(), Dtype::F32, &[len], &[4 * stride as isize]) }
    };
    let of_states = views_of_states(entry, &mut states, len);
    // SAFETY: the vectors are apart and outlive the step; all have `len` elements.
    unsafe { step.bind(strided(parameter.as_mut_ptr()), of_states, 0) };
    for _ in 0..3 {
        // SAFETY: as above; the gradient is only read.
        unsafe { step.set_gradient(0, Some(strided(gradient.as_ptr().cast_mut()))) };
        step.run().unwrap();
    }
    let halves = |(state, words): (&ravine::rules::State, &Vec<u64>)| {
        let halves = words.iter().flat_map(|word| [*word as u32, (word >> 32) as u32]);
        halves.take(if state.moment == Moment::Scalar { 2 } else { len }).collect::<Vec<u32>>()
    };
    let of_states = entry.states.iter().zip(&states).flat_map(halves);
    parameter.iter().step_by(stride).map(|x| x.to_bits()).chain(of_states).collect()
}

#[test]
fn same_bits_at_every_level_length_and_stride() {
    for entry in REGISTRY {
        for len in (0..131).chain([4096, 8192 + 65]) {
            for stages in [false, true] {
                simd::set_level(Level::Baseline);
                let expected = run(entry, len, 1, stages);
                for level in Level::ALL {
                    simd::set_level(level);
                    assert_eq!(run(entry, len, 1, stages), expected, "{} {len} {}", entry.name, level.name());
                }
                assert_eq!(run(entry, len, 3, stages), expected, "{} {len} strided", entry.name);
            }
        }
    }
}

#[test]
fn no_rule_makes_nan_of_zeros() {
    for entry in REGISTRY {
        let mut parameter = [0.0f32; 40];
        let gradient = [0.0f32; 40];
        let mut states = room_for_states(entry, 40);
        let options = Options { clip_value: None, clip_norm: None, clip_eps: 0.0, nonfinite: NonFinite::Propagate };
        let mut step = Step::new(entry, options, 1);
        step.set_hyper(0, "lr", 0.1).unwrap();
        // SAFETY: the arrays are apart and outlive the step.
        let view = |x: *mut f32| unsafe { View::contiguous(x.cast(), Dtype::F32, 40) };
        let of_states = views_of_states(entry, &mut states, 40);
        // SAFETY: as above.
        unsafe { step.bind(view(parameter.as_mut_ptr()), of_states, 0) };
        // SAFETY: as above; the gradient is only read.
        unsafe { step.set_gradient(0, Some(view(gradient.as_ptr().cast_mut()))) };
        step.run().unwrap();
        assert_eq!(parameter, [0.0; 40], "{}: every hyperparameter but lr is 0, ε too", entry.name);
    }
}

#[test]
fn each_product_is_of_the_hyperparameter_of_its_name() {
    for entry in REGISTRY {
        let text = entry.trace().cuda();
        assert!(entry.products.iter().all(|name| entry.hyperparameters.contains(name)), "{}", entry.name);
        let asked: Vec<&str> = text.split("at.product(").skip(1).filter_map(|call| call.split(')').next()).collect();
        for call in &asked {
            let right = |(slot, name)| *call == format!("{slot}, h.{name}");
            assert!(entry.products.iter().enumerate().any(right), "{}: {call}", entry.name);
        }
        assert_eq!(asked.is_empty(), entry.products.is_empty(), "{}", entry.name);
    }
}

/// Compares with a stored text, or stores it.
fn assert_stored(name: &str, text: &str) {
    let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("RAVINE_BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, stored, "if the change is wanted: RAVINE_BLESS=1 cargo test");
}

/// What the other tests compare within one machine, from machine to machine: written on x86-64, read on every other.
#[test]
fn bits_are_the_stored_ones() {
    let digest = |bits: Vec<u32>| {
        // FNV-1a
        bits.iter()
            .flat_map(|x| x.to_le_bytes())
            .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    };
    let line = |entry: &'static Entry| {
        let (alone, staged) = (digest(run(entry, 1003, 1, false)), digest(run(entry, 1003, 3, true)));
        format!("{} {alone:016x} {staged:016x}\n", entry.name)
    };
    assert_stored("bits.txt", &REGISTRY.iter().map(line).collect::<String>());
}

#[test]
fn cuda_text_is_the_stored_one() {
    let text: String = REGISTRY.iter().map(|entry| entry.trace().cuda() + "\n").collect();
    assert_stored("rules.cu", &text);
}

#[test]
fn formulas_read_as_in_the_papers() {
    let decayed = |name: &str, values: &[f64], decay: Decay| {
        let entry = REGISTRY.iter().find(|entry| entry.name == name).unwrap();
        entry.trace_configured(values, decay).formula()
    };
    let formula = |name: &str, values: &[f64]| decayed(name, values, Decay::Elsewhere);
    assert_eq!(formula("sgd", &[0.1]), "w ← w − γ·g");
    assert_eq!(formula("momentum", &[0.1, 0.9, 0.0, 0.0, 0.0]), "b ← μ·b + g\nw ← w − γ·b");
    assert_eq!(formula("momentum", &[0.1, 0.9, 0.0, 1.0, 0.0]), "b ← μ·b + (1 − μ)·g\nw ← w − γ·b");
    assert_eq!(
        formula("adam", &[0.1, 0.9, 0.99, 1e-8, 1.0, 0.0, 1.0]),
        "m ← β₁·m + (1 − β₁)·g\nv ← β₂·v + (1 − β₂)·g²\nw ← w − γ·√(1 − β₂ᵗ)/(1 − β₁ᵗ)·m/(√v + ε)"
    );
    assert_eq!(formula("lion", &[0.1, 0.9, 0.99]), "w ← w − γ·sign(β₁·m + (1 − β₁)·g)\nm ← β₂·m + (1 − β₂)·g");
    assert_eq!(
        formula("lars", &[0.1, 0.9, 1e-3, 0.0, 0.1, 1.0]),
        "v ← μ·v + γ·(1 if min(‖w‖, ‖g‖) = 0 else η·‖w‖/(‖g‖ + λ·‖w‖))·(g + λ·w)\nw ← w − v"
    );
    assert_eq!(formula("lars", &[0.1, 0.9, 1e-3, 0.0, 0.1, 0.0]), "v ← μ·v + γ·(g + λ·w)\nw ← w − v");
    assert_eq!(
        formula("lamb", &[0.1, 0.9, 0.99, 1e-6, 0.1, 1.0]),
        "m ← β₁·m + (1 − β₁)·g\nv ← β₂·v + (1 − β₂)·g²\n\
         u ← √(1 − β₂ᵗ)/(1 − β₁ᵗ)·m/(√v + ε·√(1 − β₂ᵗ)) + λ·w\n\
         w ← w − γ·(1 if min(‖w‖, ‖u‖) = 0 else ‖w‖/‖u‖)·u"
    );
    assert_eq!(
        formula("novograd", &[0.1, 0.9, 0.99, 1e-8, 0.0]),
        "v ← (‖g‖² if t = 1 else β₂·v + (1 − β₂)·‖g‖²)\nm ← β₁·m + g/(√v + ε)\nw ← w − γ·m"
    );
    assert_eq!(
        decayed("heavy_ball", &[0.1, 0.9], Decay::Scaled),
        "w⁻, w ← w, w − (γ·λ·w + γ·g − (0 if t = 1 else μ)·(w − w⁻))"
    );
    assert_eq!(decayed("sgd", &[0.1], Decay::Unscaled), "w ← w − (λ·w + γ·g)");
    assert_eq!(formula("velocity", &[0.1, 0.9]), "v ← μ·v − γ·g\nw ← w + v");
    assert_eq!(decayed("velocity", &[0.1, 0.9], Decay::Scaled), "v ← μ·v − γ·g\nw ← w − (γ·λ·w − v)");
}
