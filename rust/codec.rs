//! States in fewer bytes: eight-bit codes in blocks with one scale each, and bfloat16; rounded at random, and so are
//! bfloat16 parameters.
//!
//! Signed numbers x are kept as ±s·r²(|q|/127) with q = −127 … 127, s the largest |x| of the block; numbers ≥ 0 as
//! s·r⁴(q/255) with q = 0 … 255. Where r² and r⁴ are 1, ¼, … of the powers they are, and linear between: halving or
//! quartering the bits of a float, less those of 1, takes its root so ([`root`]). It costs two instructions instead of
//! a hundred cycles of √, and the codes lie where those of roots do, close together where most moments are, far below the
//! largest. Zero is exact, and what is not zero in a block of numbers ≥ 0 never becomes zero: it stands below a fraction
//! bar.
//!
//! Each is rounded up or down, the nearer the more likely. To the nearest code, what a step changes by less than half a
//! distance of codes would never change: a v that should fall by a thousandth stays, and so does an m below a hundredth
//! of the block's largest, while its v falls; such a parameter runs away without a gradient.
//!
//! Dettmers et al., "8-bit Optimizers via Block-wise Quantization", 2022, section 2 (blocks); the codes are our own.
//!
//! Everything is +, ×, ÷, √ and integers, so these have the same bits on every instruction set and on CUDA. The largest
//! number is found among integers, whose order is that of the numbers: so it is autovectorised.

use crate::element::{BLOCK, Block};
use crate::random::Random;
use crate::simd::Kernel;

/// Codes of a block.
pub(crate) type Codes = [u8; BLOCK];

/// A random byte for each element.
pub(crate) type Bytes = [u8; BLOCK];

const ONE: u32 = 1.0f32.to_bits();

/// The bits of the largest finite bfloat16 number, as one of float32.
const LARGEST_BF16: u32 = 0x7f7f_0000;

/// For 0 ≤ x ≤ 1 a root, 2nd (K = 1) or 4th (K = 2), that is linear between powers of 2: 0 at 2⁻³⁸ and below, 1 at 1.
#[inline(always)]
fn root<const K: u32>(x: f32) -> f32 {
    f32::from_bits((x.to_bits() >> K) + (ONE - (ONE >> K)))
}

/// What it is the root of.
#[inline(always)]
fn power<const K: u32>(y: f32) -> f32 {
    let zero = ONE - (ONE >> K);
    f32::from_bits((y.to_bits().max(zero) - zero) << K)
}

/// q/256 as the integer below or above it, by a random byte, in the lowest byte; 0 ≤ q < 2¹⁶.
#[inline(always)]
fn rounded(q: f32, byte: u8) -> u32 {
    // 2²³ leaves no bits for a fraction.
    (q + 8_388_608.0).to_bits().wrapping_add(u32::from(byte)) >> 8
}

/// The largest |x| of a block, as its scale; NaN if one is NaN.
#[inline(always)]
fn scale_of(x: &Block<f32>) -> f32 {
    const HALF: usize = BLOCK / 2;
    let magnitude = |x: f32| x.to_bits() & 0x7fff_ffff;
    let mut bits = [0u32; HALF];
    for i in 0..HALF {
        bits[i] = magnitude(x[i]).max(magnitude(x[i + HALF]));
    }
    let mut half = HALF / 2;
    while half >= 16 {
        for i in 0..half {
            bits[i] = bits[i].max(bits[i + half]);
        }
        half /= 2;
    }
    let largest = f32::from_bits(bits[..16].iter().fold(0, |largest, bits| largest.max(*bits)));
    // 1/s must be finite.
    if largest > 0.0 && largest < f32::MIN_POSITIVE { f32::MIN_POSITIVE } else { largest }
}

/// 1/s and the bits of |x| that count: none in a block of zeros, or with a number that is not finite, whose codes are 0
/// and stand for 0·s = NaN.
#[inline(always)]
fn inverse(scale: f32) -> (f32, u32) {
    if scale > 0.0 && scale < f32::INFINITY { (1.0 / scale, 0x7fff_ffff) } else { (0.0, 0) }
}

/// Signed numbers as codes; returns their scale.
#[inline(always)]
pub(crate) fn encode_signed(x: &Block<f32>, bytes: &Bytes, codes: &mut Codes) -> f32 {
    let scale = scale_of(x);
    let (inverse, mask) = inverse(scale);
    for ((code, x), byte) in codes.iter_mut().zip(x).zip(bytes) {
        let size = f32::from_bits(x.to_bits() & mask);
        let q = rounded(root::<1>(size * inverse) * (127.0 * 256.0), *byte);
        let sign = (x.to_bits().cast_signed() >> 31).cast_unsigned();
        *code = ((q ^ sign).wrapping_sub(sign)) as u8;
    }
    scale
}

/// Numbers ≥ 0 as codes; returns their scale.
#[inline(always)]
pub(crate) fn encode_unsigned(x: &Block<f32>, bytes: &Bytes, codes: &mut Codes) -> f32 {
    let scale = scale_of(x);
    let (inverse, mask) = inverse(scale);
    for ((code, x), byte) in codes.iter_mut().zip(x).zip(bytes) {
        let bits = x.to_bits() & mask;
        let q = rounded(root::<2>(f32::from_bits(bits) * inverse) * (255.0 * 256.0), *byte);
        *code = (q & 0xff).max(bits.min(1)) as u8;
    }
    scale
}

/// The numbers of signed codes.
#[inline(always)]
pub(crate) fn decode_signed(codes: &Codes, scale: f32, x: &mut Block<f32>) {
    for (x, code) in x.iter_mut().zip(codes) {
        let q = f32::from(code.cast_signed());
        *x = (scale * power::<1>(q.abs() * (1.0 / 127.0))).copysign(q);
    }
}

/// The numbers of unsigned codes.
#[inline(always)]
pub(crate) fn decode_unsigned(codes: &Codes, scale: f32, x: &mut Block<f32>) {
    for (x, code) in x.iter_mut().zip(codes) {
        *x = scale * power::<2>(f32::from(*code) * (1.0 / 255.0));
    }
}

/// A number, with a random byte, as the bfloat16 number below or above it: the nearer it is, the more likely.
///
/// The last half keeps the mean where it is, of the 8 bits that no byte decides.
#[inline(always)]
pub(crate) fn f32_to_bf16_random(x: f32, random: u8) -> u16 {
    rounded_by(x, u32::from(random) << 8 | 0x80)
}

/// The upper half of the number's bits, after something below 2¹⁶ was added to them.
#[inline(always)]
fn rounded_by(x: f32, added: u32) -> u16 {
    let bits = x.to_bits();
    // What is added could carry a NaN away, and make the largest finite numbers infinite. Without a branch, or it does not
    // vectorise.
    let size = bits & 0x7fff_ffff;
    let nan = size > 0x7f80_0000;
    let rounded = bits.wrapping_add(if size < LARGEST_BF16 { added } else { 0 }) >> 16;
    (rounded | u32::from(nan) << 6) as u16
}

/// A parameter as the bfloat16 number below or above it, exactly right on average, by 16 random bits: above the element's
/// own byte, that of the element half a block away. It decides nearly alone: with its own, a step that rounds a parameter
/// up would round its moments up, which move it down in the next.
#[inline(always)]
pub(crate) fn round_parameter(x: f32, upper: u8, lower: u8) -> u16 {
    rounded_by(x, u32::from(upper) << 8 | u32::from(lower))
}

/// The random bytes of the elements from `at` on, a multiple of [`BLOCK`].
pub(crate) struct Draw {
    pub(crate) random: Random,
    pub(crate) at: usize,
}

impl Kernel for Draw {
    type Output = Bytes;

    #[inline(always)]
    fn run(self) -> Bytes {
        debug_assert!(self.at.is_multiple_of(BLOCK));
        self.random.bytes(self.at as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{self, Level};

    /// Codes, scale and what they stand for, by the instruction set in use.
    struct Coded<'a> {
        x: &'a Block<f32>,
        byte: u8,
        signed: bool,
    }

    impl Kernel for Coded<'_> {
        type Output = (Block<f32>, Codes, f32);

        #[inline(always)]
        fn run(self) -> Self::Output {
            let (mut codes, mut back, bytes) = ([0; BLOCK], [0.0; BLOCK], [self.byte; BLOCK]);
            let encode = if self.signed { encode_signed } else { encode_unsigned };
            let scale = encode(self.x, &bytes, &mut codes);
            let decode = if self.signed { decode_signed } else { decode_unsigned };
            decode(&codes, scale, &mut back);
            (back, codes, scale)
        }
    }

    fn signed(x: &Block<f32>, byte: u8) -> (Block<f32>, Codes, f32) {
        simd::dispatch(Coded { x, byte, signed: true })
    }

    fn unsigned(x: &Block<f32>, byte: u8) -> (Block<f32>, Codes, f32) {
        simd::dispatch(Coded { x, byte, signed: false })
    }

    /// Numbers of many sizes, from a small generator.
    fn numbers(seed: u64, largest: f32) -> Block<f32> {
        let mut state = seed;
        std::array::from_fn(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let u = (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
            largest * u * u * u * 8.0
        })
    }

    #[test]
    fn every_code_stands_for_a_number_that_is_coded_so() {
        for scale in [1.0, 3.7e-20, 2.9e30, f32::MIN_POSITIVE, f32::MAX] {
            let (mut x, mut y) = ([0.0; BLOCK], [0.0; BLOCK]);
            let codes: Codes = std::array::from_fn(|i| i as u8);
            decode_unsigned(&codes, scale, &mut x);
            // −128 is no code.
            let signed_codes = codes.map(|code| if code == 128 { 0 } else { code });
            decode_signed(&signed_codes, scale, &mut y);
            assert_eq!(x[255].to_bits(), scale.to_bits());
            assert!((y[127] - scale).abs() <= scale * f32::EPSILON);
            for byte in [0, 100, 255].into_iter().filter(|_| scale > f32::MIN_POSITIVE) {
                assert_eq!(unsigned(&x, byte).1, codes, "{scale:e}");
                assert_eq!(signed(&y, byte).1, signed_codes, "{scale:e}");
            }
        }
    }

    /// Linear between powers of 2, in f64.
    fn exact_root(x: f64, of: f64) -> f64 {
        if x == 0.0 {
            return 0.0;
        }
        let octave = x.log2().floor();
        let (exponent, place) = (octave / of, x / octave.exp2() - 1.0);
        // An octave of x is a part of an octave of the root.
        let (start, part) = (exponent.floor(), exponent - exponent.floor());
        start.exp2() * (1.0 + part + place / of)
    }

    #[test]
    fn roots_are_right_at_powers_of_2_and_invertible() {
        for k in 0..15 {
            assert_eq!(root::<1>(0.25f32.powi(k)), 0.5f32.powi(k));
            assert_eq!(root::<2>(0.0625f32.powi(k)), 0.5f32.powi(k));
        }
        for x in numbers(5, 1.0).map(f32::abs) {
            assert!((f64::from(root::<1>(x)) / exact_root(x.into(), 2.0) - 1.0).abs() < 1e-6);
            assert!((f64::from(root::<2>(x)) / exact_root(x.into(), 4.0) - 1.0).abs() < 1e-6);
            assert!((root::<1>(x) / x.sqrt() - 1.0).abs() < 0.061);
            assert!((root::<2>(x) / x.sqrt().sqrt() - 1.0).abs() < 0.061);
            assert_eq!(root::<1>(power::<1>(x)), x);
        }
        assert!(power::<1>(0.0) == 0.0 && power::<2>(0.0) == 0.0 && power::<2>(1.0) == 1.0);
    }

    #[test]
    fn numbers_become_the_code_below_or_above_as_the_byte_says() {
        for (seed, byte) in (1..50).zip((0..=255).step_by(5)) {
            let share = f64::from(byte) / 256.0;
            let x = numbers(seed, 0.01 * seed as f32);
            let (_, codes, scale) = signed(&x, byte);
            for (x, code) in x.iter().zip(codes) {
                let q = exact_root(f64::from(x.abs()) / f64::from(scale), 2.0) * 127.0;
                let near = (q + share - (q + share).round()).abs() < 0.0021;
                let got = f64::from(code.cast_signed()) * f64::from(x.signum());
                assert!(got == (q + share).floor() || near, "{x} {got} {q}");
            }
            let x = x.map(|x| x * x);
            let (_, codes, scale) = unsigned(&x, byte);
            for (x, code) in x.iter().zip(codes) {
                let q = exact_root(f64::from(*x) / f64::from(scale), 4.0) * 255.0;
                let expected = (q + share).floor().max(if *x > 0.0 { 1.0 } else { 0.0 });
                let near = (q + share - (q + share).round()).abs() < 0.0021;
                assert!(f64::from(code) == expected || near, "{x} {code} {q}");
            }
        }
    }

    #[test]
    fn zero_is_exact_and_nothing_else_of_a_size_becomes_zero() {
        let mut x = [0.0; BLOCK];
        assert_eq!(signed(&x, 7).0, x);
        assert_eq!(unsigned(&x, 7).0, x);
        x[3] = 1e30;
        x[4] = 1e-45;
        x[200] = 1e-10;
        let (back, codes, _) = unsigned(&x, 0);
        assert!(back[3] == 1e30 && back[4] > 0.0 && back[200] > 0.0 && codes[4] == 1);
        assert_eq!(back.iter().filter(|x| **x != 0.0).count(), 3);
    }

    #[test]
    fn subnormal_blocks_do_not_overflow() {
        let mut x = [0.0; BLOCK];
        x[0] = f32::from_bits(1);
        x[1] = f32::from_bits(0x7f_ffff);
        let back = unsigned(&x, 128).0;
        assert!(back.iter().all(|x| x.is_finite()) && back[0] > 0.0 && back[1] > 0.0, "{:?}", &back[..2]);
        assert!(signed(&x, 128).0.iter().all(|x| x.is_finite()));
    }

    #[test]
    fn a_number_that_is_not_finite_spoils_its_block_visibly() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = numbers(7, 1.0);
            x[77] = bad;
            let ((back, codes, _), (sizes, of_sizes, _)) = (signed(&x, 9), unsigned(&x.map(f32::abs), 9));
            assert!(back.iter().chain(&sizes).all(|x| x.is_nan()));
            assert!(codes.iter().chain(&of_sizes).all(|code| *code == 0), "the same on every processor");
        }
    }

    #[test]
    fn all_instruction_sets_have_the_same_codes() {
        let x = numbers(3, 5.0);
        let random = Random { seed: 5, step: 2, tensor: 1 };
        let all = Level::ALL.into_iter().filter(|level| *level <= simd::detected()).map(|level| {
            simd::set_level(level);
            let bytes = simd::dispatch(Draw { random, at: 512 });
            (signed(&x, 77).1, unsigned(&x.map(|x| x * x), 77).1, bytes)
        });
        let all: Vec<_> = all.collect();
        assert!(all.iter().all(|codes| *codes == all[0]));
        simd::set_level(Level::Avx512);
    }

    #[test]
    fn bfloat16_is_right_on_average_and_at_its_own_numbers() {
        let x = 1.0 + 1.0 / 512.0; // a quarter of the way from 1 to the next
        let up = (0..=u8::MAX).filter(|random| f32_to_bf16_random(x, *random) == 0x3f81).count();
        assert_eq!(up, 256 / 4);
        for bits in 0..=u16::MAX {
            let number = f32::from_bits(u32::from(bits) << 16);
            let rounded = f32_to_bf16_random(number, u8::MAX);
            assert!(rounded == bits || number.is_nan(), "{bits:x}");
            assert!(!number.is_nan() || f32::from_bits(u32::from(rounded) << 16).is_nan());
        }
        assert_eq!(f32_to_bf16_random(f32::from_bits(0x7f80_0001), 0), 0x7fc0, "a NaN whose upper half is no NaN");
        for (x, bits) in [(f32::MAX, 0x7f7f), (f32::MIN, 0xff7f), (f32::INFINITY, 0x7f80), (-f32::INFINITY, 0xff80)] {
            assert_eq!(f32_to_bf16_random(x, u8::MAX), bits, "finite stays finite");
        }
    }
}
