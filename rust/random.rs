//! Random numbers that depend on what they are for, and on nothing else: Philox4x32-10 of a key and a counter.
//!
//! Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", 2011, section 3.4. The key is the
//! user's seed; the counter says for what purpose, at which step, of which tensor, and which block of 128 bits. There is
//! no state, so no result depends on who asks first.
//!
//! ```text
//! key      seed, low half; seed, high half
//! counter  block, low half; purpose · 2²⁴ + block, high half; step; tensor
//! ```

/// What random numbers are for: different purposes never see the same ones. The numbers are part of the promise on bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Purpose {
    /// The first 16 bits of a uniform number for an element: element i has bits 16·(i mod 8) and up of block ⌊i/8⌋.
    Uniform16 = 1,
    /// 37 bits more, where 16 did not decide: the upper bits of the first 64 of block i.
    Uniform37 = 2,
    /// Signs of a random rotation; `onebit.rs` says which.
    Signs = 3,
    /// The byte that rounds an element up or down: with j = i mod 256, element i has byte 4·⌊j/64⌋ + j mod 4 of block
    /// 16·⌊i/256⌋ + ⌊j/4⌋ mod 16. So 16 blocks side by side have their words, and bytes, where the elements are. Of a
    /// parameter it is the lower one of two; the upper one is that of the element with (j + 128) mod 256.
    Rounding = 4,
}

/// Blocks of a stream are numbered below this.
pub const BLOCKS: u64 = 1 << 56;

const MULTIPLIERS: [u64; 2] = [0xd251_1f53, 0xcd9e_8d57];
const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
const ROUNDS: u32 = 10;
const LOW: u64 = 0xffff_ffff;

/// Philox4x32-10: four random words of a counter and a key.
#[inline(always)]
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    rounds(counter.map(u64::from), key).map(|word| word as u32)
}

/// 32-bit words in 64 bits, of which a multiplication reads the lower half: what a vector unit multiplies in one
/// instruction. The upper halves hold nothing.
trait Words: Copy {
    fn times(self, factor: u64) -> Self;
    fn mixed(self, other: Self, key: u32) -> Self;
}

impl Words for u64 {
    #[inline(always)]
    fn times(self, factor: u64) -> Self {
        (self & LOW) * factor
    }

    #[inline(always)]
    fn mixed(self, other: Self, key: u32) -> Self {
        (self >> 32) ^ other ^ Self::from(key)
    }
}

/// Two at a time: each round waits for the last one, and the other's work fills the pauses.
impl Words for [u64; 2] {
    #[inline(always)]
    fn times(self, factor: u64) -> Self {
        [self[0].times(factor), self[1].times(factor)]
    }

    #[inline(always)]
    fn mixed(self, other: Self, key: u32) -> Self {
        [self[0].mixed(other[0], key), self[1].mixed(other[1], key)]
    }
}

#[inline(always)]
fn rounds<W: Words>(mut words: [W; 4], key: [u32; 2]) -> [W; 4] {
    for key in keys(key) {
        words = round(words, key);
    }
    words
}

/// The key of each round.
#[inline(always)]
fn keys([mut k0, mut k1]: [u32; 2]) -> impl Iterator<Item = [u32; 2]> {
    (0..ROUNDS).map(move |_| {
        let key = [k0, k1];
        (k0, k1) = (k0.wrapping_add(WEYL[0]), k1.wrapping_add(WEYL[1]));
        key
    })
}

#[inline(always)]
fn round<W: Words>([c0, c1, c2, c3]: [W; 4], [k0, k1]: [u32; 2]) -> [W; 4] {
    let (p0, p1) = (c0.times(MULTIPLIERS[0]), c2.times(MULTIPLIERS[1]));
    [p1.mixed(c1, k0), p1, p0.mixed(c3, k1), p0]
}

/// Blocks that are made side by side: as many as fill two of the widest vectors.
const LANES: usize = 16;

/// All random numbers of one tensor at one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Random {
    /// The user's.
    pub seed: u64,
    /// Of the training.
    pub step: u32,
    /// Which array, where several are treated at a step.
    pub tensor: u32,
}

impl Random {
    /// 128 random bits, as four words.
    #[inline(always)]
    pub fn block(self, purpose: Purpose, block: u64) -> [u32; 4] {
        rounds(self.counter(purpose, block), self.key()).map(|word| word as u32)
    }

    #[inline(always)]
    fn counter(self, purpose: Purpose, block: u64) -> [u64; 4] {
        debug_assert!(block < BLOCKS);
        [block, (purpose as u64) << 24 | block >> 32, u64::from(self.step), u64::from(self.tensor)]
    }

    #[inline(always)]
    fn key(self) -> [u32; 2] {
        [self.seed as u32, (self.seed >> 32) as u32]
    }

    /// The random bytes of the 256 elements from number `first` on, a multiple of 256, as [`Purpose::Rounding`] says.
    #[inline(always)]
    pub fn bytes(self, first: u64) -> [u8; 16 * LANES] {
        let [_, high, step, tensor] = self.counter(Purpose::Rounding, first / 16);
        let (mut c0, mut c1, mut c2, mut c3) = ([0; LANES], [high; LANES], [step; LANES], [tensor; LANES]);
        for (lane, word) in c0.iter_mut().enumerate() {
            // The upper half never changes within 16 blocks.
            *word = first / 16 + lane as u64;
        }
        for key in keys(self.key()) {
            for i in 0..LANES {
                [c0[i], c1[i], c2[i], c3[i]] = round([c0[i], c1[i], c2[i], c3[i]], key);
            }
        }
        let mut bytes = [0; 16 * LANES];
        for (bytes, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip([c0, c1, c2, c3].as_flattened()) {
            *bytes = (*word as u32).to_le_bytes();
        }
        bytes
    }

    /// 37 random bits of element i.
    #[inline(always)]
    pub fn more_bits(self, i: u64) -> u64 {
        let [low, high, ..] = self.block(Purpose::Uniform37, i).map(u64::from);
        (high << 32 | low) >> 27
    }
}

/// Room for 2·N blocks of random bits: made once, filled again and again.
#[derive(Clone, Debug)]
pub struct Blocks<const N: usize> {
    bytes: [[[u8; 16]; N]; 2],
    /// Halves of blocks, apart, so that the loop over blocks is one that vectorises.
    low: [[u64; N]; 2],
    high: [[u64; N]; 2],
}

impl<const N: usize> Blocks<N> {
    /// Zeros.
    pub fn new() -> Self {
        Self { bytes: [[[0; 16]; N]; 2], low: [[0; N]; 2], high: [[0; N]; 2] }
    }

    /// The blocks from number `first` on, each as 16 bytes, words and bytes in rising order.
    #[inline(always)]
    pub fn fill(&mut self, random: Random, purpose: Purpose, first: u64) -> &[[[u8; 16]; N]; 2] {
        for i in 0..N {
            let [a, b] = [i, N + i].map(|i| random.counter(purpose, first + i as u64));
            let [w0, w1, w2, w3] = rounds([[a[0], b[0]], [a[1], b[1]], [a[2], b[2]], [a[3], b[3]]], random.key());
            self.low[0][i] = w0[0] & LOW | w1[0] << 32;
            self.low[1][i] = w0[1] & LOW | w1[1] << 32;
            self.high[0][i] = w2[0] & LOW | w3[0] << 32;
            self.high[1][i] = w2[1] & LOW | w3[1] << 32;
        }
        for half in 0..2 {
            for i in 0..N {
                let block = u128::from(self.low[half][i]) | u128::from(self.high[half][i]) << 64;
                self.bytes[half][i] = block.to_le_bytes();
            }
        }
        &self.bytes
    }
}

impl<const N: usize> Default for Blocks<N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Random123's `kat_vectors`, the lines of philox4x32 10.
    #[test]
    fn philox_gives_the_published_answers() {
        let ones = u32::MAX;
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        for (counter, key, expected) in [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([ones; 4], [ones; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (pi, [0xa409_3822, 0x299f_31d0], [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]),
        ] {
            assert_eq!(philox(counter, key), expected);
        }
    }

    #[test]
    fn the_counter_says_what_the_numbers_are_for() {
        let random = Random { seed: 0x1122_3344_5566_7788, step: 9, tensor: 3 };
        let expected = philox([0xddcc_bbaa, 0x0200_00ee, 9, 3], [0x5566_7788, 0x1122_3344]);
        assert_eq!(random.block(Purpose::Uniform37, 0xee_ddcc_bbaa), expected);
        let mut room = Blocks::<3>::new();
        let blocks = room.fill(random, Purpose::Signs, u64::from(u32::MAX));
        for (i, bytes) in blocks.as_flattened().iter().enumerate() {
            let words = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
            assert!(words.eq(random.block(Purpose::Signs, u64::from(u32::MAX) + i as u64)), "block {i}");
        }
    }
}
