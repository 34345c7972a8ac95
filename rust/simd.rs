//! Instruction sets: detected once, lowered by `RAVINE_SIMD`; and the floating-point environment.
//!
//! Kernels are plain loops. [`dispatch`] compiles each of them once per instruction set and calls the best one, and
//! because nothing is ever contracted or reassociated, all of them give the same bits.

use crate::error::Error;
use std::sync::atomic::{AtomicU8, Ordering};

/// An instruction set that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// What the target guarantees: SSE2 on x86-64, NEON on AArch64.
    Baseline = 1,
    /// 256 bits.
    Avx2 = 2,
    /// 512 bits.
    Avx512 = 3,
}

impl Level {
    /// All levels, the lowest first.
    pub const ALL: [Self; 3] = [Self::Baseline, Self::Avx2, Self::Avx512];

    /// Its name, as in `RAVINE_SIMD`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// The level of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.name() == name)
    }
}

/// What this processor has.
pub fn detected() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq");
        if avx512 && is_x86_feature_detected!("avx2") {
            return Level::Avx512;
        }
        if is_x86_feature_detected!("avx2") {
            return Level::Avx2;
        }
    }
    Level::Baseline
}

/// 0 until the first use.
static LEVEL: AtomicU8 = AtomicU8::new(0);

/// The level in use: the detected one, or a lower one if `RAVINE_SIMD` or [`set_level`] says so.
#[inline]
pub fn level() -> Level {
    match LEVEL.load(Ordering::Relaxed) {
        1 => Level::Baseline,
        2 => Level::Avx2,
        3 => Level::Avx512,
        _ => first_use(),
    }
}

#[cold]
fn first_use() -> Level {
    set_level(asked().ok().flatten().unwrap_or(Level::Avx512))
}

/// What `RAVINE_SIMD` asks for, in any case; nothing if it is not set, or empty.
pub fn asked() -> Result<Option<Level>, Error> {
    let Some(value) = std::env::var_os("RAVINE_SIMD") else { return Ok(None) };
    asked_by(&value.to_string_lossy())
}

fn asked_by(value: &str) -> Result<Option<Level>, Error> {
    let name = value.trim().to_ascii_lowercase();
    if name.is_empty() {
        return Ok(None);
    }
    let unknown = || {
        let allowed = Level::ALL.map(Level::name).join(", ");
        Error::Environment(format!("RAVINE_SIMD: expected one of {allowed}, in any case, got {value:?}"))
    };
    Level::from_name(&name).map(Some).ok_or_else(unknown)
}

/// Uses `wanted` from now on, or the best that the processor has below it; returns which.
pub fn set_level(wanted: Level) -> Level {
    let level = wanted.min(detected());
    LEVEL.store(level as u8, Ordering::Relaxed);
    level
}

/// A loop to be compiled for every instruction set; its `run` must be `#[inline(always)]`.
pub trait Kernel {
    /// What it returns.
    type Output;
    /// Does the work.
    fn run(self) -> Self::Output;
}

/// Runs the kernel with the instructions of [`level`].
#[inline]
pub fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    match level() {
        // SAFETY: the level is never above `detected`, which found these features.
        Level::Avx512 => return unsafe { with_avx512(kernel) },
        // SAFETY: as above.
        Level::Avx2 => return unsafe { with_avx2(kernel) },
        Level::Baseline => {}
    }
    kernel.run()
}

// FMA is left out: nothing here may be fused, and without the feature no compiler can.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn with_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq")]
fn with_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

/// Restores the floating-point environment that it found when it is dropped.
///
/// Another library in the process may have set flush-to-zero or another rounding mode (a `-ffast-math` start-up file is
/// enough), per thread. Results must not depend on that.
#[derive(Debug)]
pub struct DefaultEnvironment {
    found: u32,
}

/// Round to nearest, gradual underflow, exceptions masked.
#[cfg(target_arch = "x86_64")]
const DEFAULT: u32 = 0x1f80;
#[cfg(not(target_arch = "x86_64"))]
const DEFAULT: u32 = 0;

/// The sticky exception flags say what happened, not what will.
#[cfg(target_arch = "x86_64")]
const CONTROL: u32 = !0x3f;
#[cfg(not(target_arch = "x86_64"))]
const CONTROL: u32 = !0;

impl DefaultEnvironment {
    /// Sets the default environment for this thread.
    #[inline]
    #[must_use = "the environment is restored when this is dropped"]
    pub fn enter() -> Self {
        let found = read_control();
        if found & CONTROL != DEFAULT {
            write_control(DEFAULT);
        }
        Self { found }
    }
}

impl Drop for DefaultEnvironment {
    #[inline]
    fn drop(&mut self) {
        if self.found & CONTROL != DEFAULT {
            write_control(self.found);
        }
    }
}

// Inline assembly, because Rust's `_mm_setcsr` is undefined behaviour: the compiler may move arithmetic across it.
// The asm blocks are opaque and touch memory, so the kernels' loads and stores stay on their side.
#[cfg(target_arch = "x86_64")]
fn read_control() -> u32 {
    let mut word = 0u32;
    // SAFETY: stores 4 bytes to a local.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut word, options(nostack)) };
    word
}

#[cfg(target_arch = "x86_64")]
fn write_control(word: u32) {
    // SAFETY: loads 4 bytes from a local; the word is a default or one that the processor itself gave.
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const word, options(nostack)) };
}

#[cfg(target_arch = "aarch64")]
fn read_control() -> u32 {
    let word: u64;
    // SAFETY: reads a register that every thread may read.
    unsafe { std::arch::asm!("mrs {}, fpcr", out(reg) word, options(nostack)) };
    word as u32
}

#[cfg(target_arch = "aarch64")]
fn write_control(word: u32) {
    // SAFETY: writes a register that every thread may write, with a default or a word found in it.
    unsafe { std::arch::asm!("msr fpcr, {}", in(reg) u64::from(word), options(nostack)) };
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn read_control() -> u32 {
    DEFAULT
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn write_control(_word: u32) {}

/// What another library would do to this thread: for tests of [`DefaultEnvironment`].
///
/// Flush-to-zero, denormals-are-zero and rounding towards zero if `on`, the default environment if not.
pub fn disturb_environment(on: bool) {
    #[cfg(target_arch = "x86_64")]
    write_control(if on { DEFAULT | 0x8040 | 0x6000 } else { DEFAULT });
    #[cfg(target_arch = "aarch64")]
    write_control(if on { 0b1111 << 22 } else { DEFAULT });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for level in Level::ALL {
            assert_eq!(Level::from_name(level.name()), Some(level));
        }
        assert_eq!(Level::from_name("sse9"), None);
    }

    #[test]
    fn environment_variables_name_a_level_in_any_case() {
        for (value, expected) in [("AVX2", Level::Avx2), (" Baseline", Level::Baseline), ("avx512", Level::Avx512)] {
            assert_eq!(asked_by(value), Ok(Some(expected)));
        }
        assert_eq!(asked_by(""), Ok(None));
        let text = "RAVINE_SIMD: expected one of baseline, avx2, avx512, in any case, got \"sse9\"";
        assert_eq!(asked_by("sse9"), Err(Error::Environment(text.to_owned())));
    }

    #[test]
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    fn the_environment_is_set_and_restored() {
        disturb_environment(true);
        let found = read_control();
        {
            let _default = DefaultEnvironment::enter();
            assert_eq!(read_control() & CONTROL, DEFAULT);
        }
        assert_eq!(read_control() & CONTROL, found & CONTROL);
        assert_ne!(found & CONTROL, DEFAULT);
        disturb_environment(false);
    }
}
