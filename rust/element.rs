//! What an array may hold, and how a block of it gets into arithmetic and back.
//!
//! Kernels compute on blocks of [`BLOCK`] numbers on the stack, in float32 or float64 ([`Arithmetic`]). A [`View`] loads
//! and stores such a block, whatever the array's dtype and strides are; so each of these exists once, not once per rule.

use crate::codec::{self, Bytes, Codes};
use crate::pool;
use crate::real::Real;
use crate::simd::{self, Kernel};
use std::mem::MaybeUninit;

/// Numbers worked on at a time: a few vectors of every array, all of them in the first-level cache.
pub const BLOCK: usize = 256;

/// Elements that are read before any of them is written: a few vectors, in registers (measured: 16 stop the
/// autovectoriser for the shortest rules, 64 spill on AVX2).
///
/// So the compiler need not know that NumPy's arrays do not overlap, and we need not promise it.
pub(crate) const GROUP: usize = 32;

/// A block of numbers on the stack. What lies beyond the end of an array is 0 and is never stored.
pub(crate) type Block<A> = [A; BLOCK];
/// Where a block may be put; without numbers if no array needs it.
pub(crate) type Room<A> = MaybeUninit<Block<A>>;

/// Room for the blocks of arrays of which all are plain, or not.
#[inline(always)]
pub(crate) fn room<A: Arithmetic>(all_plain: bool) -> Room<A> {
    if all_plain { Room::uninit() } else { Room::new([A::ZERO; BLOCK]) }
}

/// Axes that do not merge, of an array that a CUDA kernel reads.
const MAX_AXES: usize = 8;
/// 64-bit words of an array's description for CUDA.
pub const WORDS: usize = 5 + 2 * MAX_AXES;

/// The type of an array's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE 754 binary64.
    F64,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16; computed in float32.
    F16,
    /// The upper half of binary32; computed in float32.
    Bf16,
    /// A state in bfloat16, rounded up or down at random, right on average.
    Bf16Random,
    /// A state of signed numbers in eight bits, [`crate::codec`].
    Signed8,
    /// A state of numbers ≥ 0 in eight bits.
    Unsigned8,
    /// A bfloat16 parameter that is the upper half of a float32 number, [`split`]; the lower half is in another array.
    Split,
    /// A parameter in bfloat16, rounded up or down at random.
    Bf16Parameter,
}

impl Dtype {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 | Self::Bf16Random | Self::Split | Self::Bf16Parameter => 2,
            Self::Signed8 | Self::Unsigned8 => 1,
        }
    }

    /// The type that its arithmetic is done in, and its states are kept in.
    pub fn compute(self) -> Self {
        if self == Self::F64 { Self::F64 } else { Self::F32 }
    }

    /// NumPy's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F64 => "float64",
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 | Self::Bf16Random | Self::Split | Self::Bf16Parameter => "bfloat16",
            Self::Signed8 => "int8",
            Self::Unsigned8 => "uint8",
        }
    }

    /// NumPy's own name for arrays of a state: bfloat16 numbers by their bits, because NumPy knows none.
    pub fn name_of_state(self) -> &'static str {
        match self {
            // Lower halves are signed numbers.
            Self::Split => "int16",
            _ if self.size() == 2 => "uint16",
            _ => self.name(),
        }
    }

    /// Whether it is rounded at random.
    pub(crate) fn is_random(self) -> bool {
        matches!(self, Self::Bf16Random | Self::Signed8 | Self::Unsigned8 | Self::Bf16Parameter)
    }

    /// Whether a scale stands beside each [`BLOCK`] of elements.
    pub fn has_scales(self) -> bool {
        self.size() == 1
    }
}

/// An array as the kernels see it: its elements in C order, wherever they lie.
///
/// It owns nothing. Who makes one promises ([`View::new`]) that the memory stays valid while it is used.
#[derive(Clone, Debug)]
pub struct View {
    data: *mut u8,
    dtype: Dtype,
    len: usize,
    /// None: one element after the other.
    strided: Option<Box<Strided>>,
    /// What stands beside the elements, one after the other: of eight-bit codes, a float32 number for every [`BLOCK`] of
    /// them; of upper halves, the lower ones.
    beside: *mut u8,
}

/// Lengths and byte strides of the axes, outermost first, as few as there can be.
#[derive(Clone, Debug)]
struct Strided {
    shape: Vec<usize>,
    strides: Vec<isize>,
}

// SAFETY: a View is an address; using it is governed by the contract of `View::new`.
unsafe impl Send for View {}
// SAFETY: as above; loads and stores through it are unsafe and name their conditions.
unsafe impl Sync for View {}

impl View {
    /// A view of the array at `data` with these lengths and byte strides.
    ///
    /// # Safety
    /// While the view is used, every element lies in live memory, aligned for `dtype`, and nobody writes it, nor
    /// reads it while it is stored to, but through views.
    pub unsafe fn new(data: *mut u8, dtype: Dtype, shape: &[usize], strides: &[isize]) -> Self {
        let mut axes: Vec<(usize, isize)> = Vec::with_capacity(shape.len());
        for (&n, &stride) in shape.iter().zip(strides).filter(|(n, _)| **n != 1) {
            match axes.last_mut() {
                Some((outer, outer_stride))
                    if n.checked_mul(stride.unsigned_abs()).is_some_and(|_| *outer_stride == n as isize * stride) =>
                {
                    *outer *= n;
                    *outer_stride = stride;
                }
                _ => axes.push((n, stride)),
            }
        }
        let len = shape.iter().product();
        let contiguous = len <= 1 || matches!(axes[..], [(_, stride)] if stride == dtype.size() as isize);
        let strided = (!contiguous).then(|| {
            let (shape, strides) = axes.into_iter().unzip();
            Box::new(Strided { shape, strides })
        });
        Self { data, dtype, len, strided, beside: std::ptr::null_mut() }
    }

    /// A view of `len` elements, one after the other.
    ///
    /// # Safety
    /// As [`View::new`].
    pub unsafe fn contiguous(data: *mut u8, dtype: Dtype, len: usize) -> Self {
        Self { data, dtype, len, strided: None, beside: std::ptr::null_mut() }
    }

    /// A view of `len` eight-bit codes, one after the other, and their scales.
    ///
    /// # Safety
    /// As [`View::new`], for the codes and for one scale for each [`BLOCK`] of them or part of one.
    pub unsafe fn coded(codes: *mut u8, dtype: Dtype, len: usize, scales: *mut f32) -> Self {
        debug_assert!(dtype.has_scales());
        Self { data: codes, dtype, len, strided: None, beside: scales.cast() }
    }

    /// The same bfloat16 array, as the upper halves of numbers whose lower halves are at `lower`.
    ///
    /// # Safety
    /// As [`View::contiguous`], for as many elements of two bytes there.
    pub unsafe fn split(self, lower: *mut u8) -> Self {
        debug_assert!(self.dtype == Dtype::Bf16);
        Self { dtype: Dtype::Split, beside: lower, ..self }
    }

    /// The same bfloat16 array, rounded at random when it is stored.
    #[must_use]
    pub fn rounded_at_random(self) -> Self {
        debug_assert!(self.dtype == Dtype::Bf16);
        Self { dtype: Dtype::Bf16Parameter, ..self }
    }

    /// Where its first element is.
    pub(crate) fn address(&self) -> *mut u8 {
        self.data
    }

    /// The lower halves of a split array.
    #[inline(always)]
    fn lower(&self) -> Self {
        // SAFETY: the promise of `View::split`.
        unsafe { Self::contiguous(self.beside, Dtype::Split, self.len) }
    }

    /// A view of nothing.
    pub fn empty() -> Self {
        let data = std::ptr::dangling_mut::<u64>().cast();
        Self { data, dtype: Dtype::F64, len: 0, strided: None, beside: std::ptr::null_mut() }
    }

    /// How many elements it has.
    #[expect(clippy::len_without_is_empty, reason = "empty arrays are skipped by their length")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// What they are.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Whether its elements lie one after the other.
    pub fn is_contiguous(&self) -> bool {
        self.strided.is_none()
    }

    /// The lowest and one past the highest address it touches, or nothing for an empty array.
    pub fn extent(&self) -> Option<(usize, usize)> {
        if self.len == 0 {
            return None;
        }
        let (mut low, mut high) = (self.data as usize, self.data as usize + self.dtype.size());
        match &self.strided {
            None => high += (self.len - 1) * self.dtype.size(),
            Some(axes) => {
                for (n, stride) in axes.shape.iter().zip(&axes.strides) {
                    let reach = (n - 1) * stride.unsigned_abs();
                    if *stride < 0 { low -= reach } else { high += reach }
                }
            }
        }
        Some((low, high))
    }

    /// Bytes that lie together, again and again; and the strides at which they come.
    pub(crate) fn run(&self) -> (usize, impl Iterator<Item = isize>) {
        let size = self.dtype.size();
        let strides = self.strided.as_ref().map_or(&[][..], |axes| &axes.strides[..]);
        let inner = strides.last() == Some(&(size as isize));
        let run = match &self.strided {
            None => self.len * size,
            Some(axes) => axes.shape.last().filter(|_| inner).map_or(size, |n| n * size),
        };
        (run, strides[..strides.len() - usize::from(inner)].iter().copied())
    }

    /// The arrays that it is of: itself, and the scales of codes.
    #[cfg(feature = "python")]
    pub(crate) fn all(&self) -> impl Iterator<Item = Self> {
        let blocks = self.len.div_ceil(BLOCK);
        // SAFETY: the promise of `View::coded`.
        let scales = self.dtype.has_scales().then(|| unsafe { Self::contiguous(self.beside, Dtype::F32, blocks) });
        std::iter::once(self.clone()).chain(scales)
    }

    /// As the CUDA kernels read it (`struct Array` in storage.cu), its first block having that number; None if it has more
    /// axes than fit.
    pub fn words(&self, first_block: usize) -> Option<[u64; WORDS]> {
        let mut words = [0; WORDS];
        // Null stands for no array, and an empty one may well be there.
        words[0] = (self.data as u64).max(1);
        words[1] = self.len as u64;
        words[2] = first_block as u64;
        words[3] = self.dtype as u64;
        // Coded ones lie one after the other, so that they have no axes.
        words[5] = self.beside as u64;
        if let Some(axes) = &self.strided {
            words[4] = axes.shape.len() as u64;
            if axes.shape.len() > MAX_AXES {
                return None;
            }
            for (i, (length, stride)) in axes.shape.iter().zip(&axes.strides).enumerate() {
                words[5 + i] = *length as u64;
                words[5 + MAX_AXES + i] = (*stride as i64).cast_unsigned();
            }
        }
        Some(words)
    }

    /// Its address, if its elements lie one after the other and are of type `A`.
    #[inline(always)]
    pub(crate) fn plain<A: Arithmetic>(&self) -> Option<*mut A> {
        (self.dtype == A::DTYPE && self.strided.is_none()).then_some(self.data.cast())
    }

    /// Its address, if it is a state in bfloat16, one number after the other.
    #[inline(always)]
    pub(crate) fn short(&self) -> Option<*mut u16> {
        (self.dtype == Dtype::Bf16Random && self.strided.is_none()).then_some(self.data.cast())
    }

    /// Elements `at..at + n`, n ≤ [`BLOCK`], as numbers to compute with; 0 behind them.
    ///
    /// # Safety
    /// The promise of [`View::new`] holds, `at + n` ≤ len, and the dtype computes in `A`.
    #[inline(always)]
    pub(crate) unsafe fn load<A: Arithmetic>(&self, at: usize, n: usize) -> Block<A> {
        debug_assert!(at + n <= self.len && n <= BLOCK && self.dtype.compute() == A::DTYPE);
        let mut block = [A::ZERO; BLOCK];
        if let Some(data) = self.plain::<A>() {
            // SAFETY: n elements from `at` are inside the array, and n ≤ BLOCK.
            unsafe { data.wrapping_add(at).copy_to_nonoverlapping(block.as_mut_ptr(), n) };
        } else {
            // SAFETY: the same contract.
            unsafe { A::load_other(self, at, n, &mut block) };
        }
        block
    }

    /// Stores the first `n` of the block as elements `at..at + n`, rounded once.
    ///
    /// # Safety
    /// As [`View::load`], and the memory may be written.
    #[inline(always)]
    pub(crate) unsafe fn store<A: Arithmetic>(&self, at: usize, n: usize, block: &Block<A>) {
        debug_assert!(at + n <= self.len && n <= BLOCK && self.dtype.compute() == A::DTYPE);
        if let Some(data) = self.plain::<A>() {
            // SAFETY: n elements from `at` are inside the array, and n ≤ BLOCK.
            unsafe { data.wrapping_add(at).copy_from_nonoverlapping(block.as_ptr(), n) };
        } else {
            // SAFETY: the same contract.
            unsafe { A::store_other(self, at, n, block, &[0; BLOCK]) };
        }
    }

    /// Where elements `at..at + n` can be read as numbers to compute with: the array itself, or a copy of them in `room`.
    ///
    /// # Safety
    /// As [`View::load`]; if the array is plain, n may be larger than [`BLOCK`], else the room has numbers.
    #[inline(always)]
    pub(crate) unsafe fn open<A: Arithmetic>(&self, at: usize, n: usize, room: &mut Room<A>) -> *mut A {
        debug_assert!(at + n <= self.len && self.dtype.compute() == A::DTYPE);
        self.plain::<A>().map_or_else(
            || {
                // SAFETY: the contract, for an array that is not plain.
                let block = unsafe { room.assume_init_mut() };
                if n < BLOCK {
                    block.fill(A::ZERO);
                }
                // SAFETY: the same contract.
                unsafe { A::load_other(self, at, n, block) };
                block.as_mut_ptr()
            },
            |data| data.wrapping_add(at),
        )
    }

    /// Stores what was written there, rounded once: if it is at random, by a byte of each element.
    ///
    /// # Safety
    /// As [`View::store`], after [`View::open`] of the same elements with the same room; of coded ones, `at` is a multiple
    /// of [`BLOCK`], and `n` is BLOCK or all that is left.
    #[inline(always)]
    pub(crate) unsafe fn close<A: Arithmetic>(&self, at: usize, n: usize, room: &Room<A>, bytes: &Bytes) {
        if self.plain::<A>().is_none() {
            // SAFETY: the contract of `open`, for an array that is not plain.
            let block = unsafe { room.assume_init_ref() };
            // SAFETY: the same contract.
            unsafe { A::store_other(self, at, n, block, bytes) };
        }
    }

    /// Elements `at..at + to.len()`, as numbers to compute with.
    ///
    /// # Safety
    /// The promise of [`View::new`] holds, `at + to.len()` ≤ len, and the dtype computes in `A`.
    #[inline(always)]
    pub(crate) unsafe fn read<A: Arithmetic>(&self, at: usize, to: &mut [A]) {
        debug_assert!(at + to.len() <= self.len && self.dtype.compute() == A::DTYPE);
        if let Some(data) = self.plain::<A>() {
            // SAFETY: so many elements from `at` are inside the array; `to` is borrowed mutably, so it is elsewhere.
            return unsafe { data.wrapping_add(at).copy_to_nonoverlapping(to.as_mut_ptr(), to.len()) };
        }
        for (part, at) in to.chunks_mut(BLOCK).zip((at..).step_by(BLOCK)) {
            // SAFETY: at + part.len() ≤ len; the rest is the same contract.
            part.copy_from_slice(&unsafe { self.load::<A>(at, part.len()) }[..part.len()]);
        }
    }

    /// Stores the numbers as elements `at..at + from.len()`, each rounded once.
    ///
    /// # Safety
    /// As [`View::read`], and the memory may be written.
    #[inline(always)]
    pub(crate) unsafe fn write<A: Arithmetic>(&self, at: usize, from: &[A]) {
        debug_assert!(at + from.len() <= self.len && self.dtype.compute() == A::DTYPE);
        if let Some(data) = self.plain::<A>() {
            // SAFETY: so many elements from `at` are inside the array; `from` is borrowed, so it is elsewhere.
            return unsafe { data.wrapping_add(at).copy_from_nonoverlapping(from.as_ptr(), from.len()) };
        }
        for (part, at) in from.chunks(BLOCK).zip((at..).step_by(BLOCK)) {
            let mut block = [A::ZERO; BLOCK];
            block[..part.len()].copy_from_slice(part);
            // SAFETY: at + part.len() ≤ len; the rest is the same contract.
            unsafe { self.store(at, part.len(), &block) };
        }
    }

    /// Visits elements `at..at + n` as runs along the innermost axis: address of the first, byte stride, how many.
    fn runs(&self, at: usize, n: usize, mut visit: impl FnMut(*mut u8, isize, usize)) {
        let size = self.dtype.size() as isize;
        let Some(axes) = &self.strided else {
            return visit(self.data.wrapping_offset(at as isize * size), size, n);
        };
        let inner = axes.shape.len() - 1;
        let (inner_len, inner_stride) = (axes.shape[inner], axes.strides[inner]);
        let (mut at, mut left) = (at, n);
        while left > 0 {
            let (mut rest, first) = (at / inner_len, at % inner_len);
            let mut offset = first as isize * inner_stride;
            for (len, stride) in axes.shape[..inner].iter().zip(&axes.strides[..inner]).rev() {
                offset += (rest % len) as isize * stride;
                rest /= len;
            }
            let count = left.min(inner_len - first);
            visit(self.data.wrapping_offset(offset), inner_stride, count);
            at += count;
            left -= count;
        }
    }

    /// Where a whole block of elements from `at` on is, if they lie one after the other.
    #[inline(always)]
    fn whole<T>(&self, at: usize, n: usize) -> Option<*mut T> {
        (self.strided.is_none() && n == BLOCK).then(|| self.data.cast::<T>().wrapping_add(at))
    }

    /// Where the same elements can be read as they are stored, a block of them: in the array, or in `room`, where zeros are
    /// behind them.
    ///
    /// # Safety
    /// As [`View::load`]; `T` is the type of `dtype`.
    #[inline(always)]
    unsafe fn stored<T: Copy + Default>(&self, at: usize, n: usize, room: &mut MaybeUninit<Block<T>>) -> *const T {
        if let Some(data) = self.whole(at, n) {
            return data;
        }
        let block = room.write([T::default(); BLOCK]);
        // SAFETY: the same contract.
        unsafe { self.gather(at, n, block) };
        block.as_ptr()
    }

    /// Where to write a block of them as they are to be stored; [`View::put`] then takes them from the room.
    #[inline(always)]
    fn place<T>(&self, at: usize, n: usize, room: &mut MaybeUninit<Block<T>>) -> *mut T {
        self.whole(at, n).unwrap_or(room.as_mut_ptr().cast())
    }

    /// # Safety
    /// As [`View::store`]; `T` is the type of `dtype`, and a block was written at [`View::place`] of the same.
    #[inline(always)]
    unsafe fn put<T: Copy>(&self, at: usize, n: usize, room: &MaybeUninit<Block<T>>) {
        if self.whole::<T>(at, n).is_none() {
            // SAFETY: a block was written there.
            let block = unsafe { room.assume_init_ref() };
            // SAFETY: the same contract.
            unsafe { self.scatter(at, n, block) };
        }
    }

    /// # Safety
    /// As [`View::load`]; `T` is the type of `dtype`.
    unsafe fn gather<T: Copy>(&self, at: usize, n: usize, block: &mut Block<T>) {
        if self.strided.is_none() {
            // SAFETY: at + n ≤ len, and n ≤ BLOCK.
            return unsafe { self.data.cast::<T>().wrapping_add(at).copy_to_nonoverlapping(block.as_mut_ptr(), n) };
        }
        let mut filled = 0;
        self.runs(at, n, |first, stride, count| {
            for (i, slot) in block[filled..filled + count].iter_mut().enumerate() {
                // SAFETY: an element of the array, because at + n ≤ len.
                *slot = unsafe { first.wrapping_offset(i as isize * stride).cast::<T>().read() };
            }
            filled += count;
        });
    }

    /// # Safety
    /// As [`View::store`]; `T` is the type of `dtype`.
    unsafe fn scatter<T: Copy>(&self, at: usize, n: usize, block: &Block<T>) {
        if self.strided.is_none() {
            // SAFETY: at + n ≤ len, and n ≤ BLOCK; views of parameters and states may be written.
            return unsafe { self.data.cast::<T>().wrapping_add(at).copy_from_nonoverlapping(block.as_ptr(), n) };
        }
        let mut emptied = 0;
        self.runs(at, n, |first, stride, count| {
            for (i, value) in block[emptied..emptied + count].iter().enumerate() {
                // SAFETY: an element of the array, because at + n ≤ len; views of parameters and states may be written.
                unsafe { first.wrapping_offset(i as isize * stride).cast::<T>().write(*value) };
            }
            emptied += count;
        });
    }
}

/// A type that kernels compute in.
pub trait Arithmetic: Real + PartialOrd + Default + Send + Sync {
    /// Its dtype.
    const DTYPE: Dtype;
    /// 0.
    const ZERO: Self;

    /// The same number in f64, where squares of float32 numbers are exact.
    fn to_f64(self) -> f64;

    /// What [`View::load`] does for arrays that are strided or of another dtype.
    ///
    /// # Safety
    /// As [`View::load`].
    unsafe fn load_other(view: &View, at: usize, n: usize, block: &mut Block<Self>);

    /// What [`View::close`] does for arrays that are strided or of another dtype.
    ///
    /// # Safety
    /// As [`View::close`].
    unsafe fn store_other(view: &View, at: usize, n: usize, block: &Block<Self>, bytes: &Bytes);
}

impl Arithmetic for f64 {
    const DTYPE: Dtype = Dtype::F64;
    const ZERO: Self = 0.0;

    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }

    #[inline(never)]
    unsafe fn load_other(view: &View, at: usize, n: usize, block: &mut Block<Self>) {
        // SAFETY: the same contract; only float64 computes in f64.
        unsafe { view.gather(at, n, block) };
    }

    #[inline(never)]
    unsafe fn store_other(view: &View, at: usize, n: usize, block: &Block<Self>, _bytes: &Bytes) {
        // SAFETY: the same contract; only float64 computes in f64.
        unsafe { view.scatter(at, n, block) };
    }
}

impl Arithmetic for f32 {
    const DTYPE: Dtype = Dtype::F32;
    const ZERO: Self = 0.0;

    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }

    #[inline(never)]
    unsafe fn load_other(view: &View, at: usize, n: usize, block: &mut Block<Self>) {
        simd::dispatch(Load { view, at, n, block });
    }

    #[inline(never)]
    unsafe fn store_other(view: &View, at: usize, n: usize, block: &Block<Self>, bytes: &Bytes) {
        simd::dispatch(Store { view, at, n, block, bytes });
    }
}

/// [`View::load`] of what computes in float32, by who made the same promise.
struct Load<'a> {
    view: &'a View,
    at: usize,
    n: usize,
    block: &'a mut Block<f32>,
}

impl Load<'_> {
    #[inline(always)]
    fn each<T: Copy + Default>(self, number: impl Fn(T) -> f32) {
        let mut room = MaybeUninit::uninit();
        // SAFETY: the promise of `View::load`; `T` is the dtype's.
        let from = unsafe { self.view.stored::<T>(self.at, self.n, &mut room) };
        for at in (0..BLOCK).step_by(GROUP) {
            // SAFETY: at + GROUP ≤ BLOCK elements are there.
            let stored = unsafe { from.wrapping_add(at).cast::<[T; GROUP]>().read() };
            for (x, stored) in self.block[at..at + GROUP].iter_mut().zip(stored) {
                *x = number(stored);
            }
        }
    }

    #[inline(always)]
    fn codes(self, signed: bool) {
        let mut room = MaybeUninit::uninit();
        // SAFETY: the promise of `View::load`; codes are bytes.
        let codes = unsafe { self.view.stored::<u8>(self.at, self.n, &mut room) };
        // SAFETY: a block of them is there.
        let codes = unsafe { codes.cast::<Codes>().read() };
        // SAFETY: the promise of `View::coded`: every block has a scale.
        let scale = unsafe { self.view.beside.cast::<f32>().wrapping_add(self.at / BLOCK).read() };
        // Called by name: handed over as functions they would be compiled for the lowest instruction set.
        if signed {
            codec::decode_signed(&codes, scale, self.block);
        } else {
            codec::decode_unsigned(&codes, scale, self.block);
        }
        // A scale that is not finite makes NaN of 0, and what lies behind the end has a say in the next scale.
        self.block[self.n..].fill(0.0);
    }

    #[inline(always)]
    fn halves(self) {
        let (mut room, mut lower_room) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: the promise of `View::load`; halves are two bytes.
        let upper = unsafe { self.view.stored::<u16>(self.at, self.n, &mut room) };
        // SAFETY: as above, and that of `View::split`.
        let lower = unsafe { self.view.lower().stored::<u16>(self.at, self.n, &mut lower_room) };
        for at in (0..BLOCK).step_by(GROUP) {
            // SAFETY: at + GROUP ≤ BLOCK elements are there.
            let upper = unsafe { upper.wrapping_add(at).cast::<[u16; GROUP]>().read() };
            // SAFETY: as above.
            let lower = unsafe { lower.wrapping_add(at).cast::<[u16; GROUP]>().read() };
            for i in 0..GROUP {
                self.block[at + i] = joined(upper[i], lower[i]);
            }
        }
    }
}

impl Kernel for Load<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        match self.view.dtype {
            Dtype::F16 => self.each(f16_to_f32),
            Dtype::Bf16 | Dtype::Bf16Random | Dtype::Bf16Parameter => self.each(bf16_to_f32),
            Dtype::Signed8 => self.codes(true),
            Dtype::Unsigned8 => self.codes(false),
            Dtype::Split => self.halves(),
            // SAFETY: the promise of `View::load`; float64 does not compute in float32.
            Dtype::F32 | Dtype::F64 => unsafe { self.view.gather(self.at, self.n, self.block) },
        }
    }
}

/// [`View::close`] of what computes in float32, by who made the same promise.
struct Store<'a> {
    view: &'a View,
    at: usize,
    n: usize,
    block: &'a Block<f32>,
    bytes: &'a Bytes,
}

impl Store<'_> {
    #[inline(always)]
    fn each<T: Copy + Default>(self, stored: impl Fn(f32, u8) -> T) {
        let mut room = MaybeUninit::uninit();
        let to = self.view.place::<T>(self.at, self.n, &mut room);
        for at in (0..BLOCK).step_by(GROUP) {
            let mut made = [T::default(); GROUP];
            let given = self.block[at..at + GROUP].iter().zip(&self.bytes[at..at + GROUP]);
            for (to, (x, byte)) in made.iter_mut().zip(given) {
                *to = stored(*x, *byte);
            }
            // SAFETY: at + GROUP ≤ BLOCK elements may be written there, by the promise of `View::close`.
            unsafe { to.wrapping_add(at).cast::<[T; GROUP]>().write(made) };
        }
        // SAFETY: the promise of `View::close`; `T` is the dtype's.
        unsafe { self.view.put(self.at, self.n, &room) };
    }

    #[inline(always)]
    fn codes(self, signed: bool) {
        let mut codes = [0; BLOCK];
        let scale = if signed {
            codec::encode_signed(self.block, self.bytes, &mut codes)
        } else {
            codec::encode_unsigned(self.block, self.bytes, &mut codes)
        };
        let mut room = MaybeUninit::uninit();
        // SAFETY: a block may be written there, by the promise of `View::close`.
        unsafe { self.view.place::<u8>(self.at, self.n, &mut room).cast::<Codes>().write(codes) };
        // SAFETY: the promise of `View::close`; codes are bytes.
        unsafe { self.view.put(self.at, self.n, &room) };
        // SAFETY: the promise of `View::coded`: every block has a scale, and this block is ours.
        unsafe { self.view.beside.cast::<f32>().wrapping_add(self.at / BLOCK).write(scale) };
    }

    #[inline(always)]
    fn parameters(self) {
        let mut room = MaybeUninit::uninit();
        let to = self.view.place::<u16>(self.at, self.n, &mut room);
        for at in (0..BLOCK).step_by(GROUP) {
            let (mut made, across) = ([0; GROUP], (at + BLOCK / 2) % BLOCK);
            let bytes = self.bytes[across..across + GROUP].iter().zip(&self.bytes[at..at + GROUP]);
            for ((to, x), (upper, lower)) in made.iter_mut().zip(&self.block[at..at + GROUP]).zip(bytes) {
                *to = codec::round_parameter(*x, *upper, *lower);
            }
            // SAFETY: at + GROUP ≤ BLOCK elements may be written there, by the promise of `View::close`.
            unsafe { to.wrapping_add(at).cast::<[u16; GROUP]>().write(made) };
        }
        // SAFETY: the promise of `View::close`; bfloat16 numbers are two bytes.
        unsafe { self.view.put(self.at, self.n, &room) };
    }

    #[inline(always)]
    fn halves(self) {
        let (mut room, mut lower_room) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        let to = self.view.place::<u16>(self.at, self.n, &mut room);
        let to_lower = self.view.lower().place::<u16>(self.at, self.n, &mut lower_room);
        for at in (0..BLOCK).step_by(GROUP) {
            let (mut upper, mut lower) = ([0; GROUP], [0; GROUP]);
            for i in 0..GROUP {
                (upper[i], lower[i]) = split(self.block[at + i]);
            }
            // SAFETY: at + GROUP ≤ BLOCK elements may be written there, by the promise of `View::close`.
            unsafe { to.wrapping_add(at).cast::<[u16; GROUP]>().write(upper) };
            // SAFETY: as above, and by that of `View::split`.
            unsafe { to_lower.wrapping_add(at).cast::<[u16; GROUP]>().write(lower) };
        }
        // SAFETY: the promise of `View::close`; halves are two bytes.
        unsafe { self.view.put(self.at, self.n, &room) };
        // SAFETY: as above, and that of `View::split`.
        unsafe { self.view.lower().put(self.at, self.n, &lower_room) };
    }
}

impl Kernel for Store<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        match self.view.dtype {
            Dtype::F16 => self.each(|x, _| f32_to_f16(x)),
            Dtype::Bf16 => self.each(|x, _| f32_to_bf16(x)),
            Dtype::Bf16Random => self.each(codec::f32_to_bf16_random),
            Dtype::Bf16Parameter => self.parameters(),
            Dtype::Signed8 => self.codes(true),
            Dtype::Unsigned8 => self.codes(false),
            Dtype::Split => self.halves(),
            // SAFETY: the promise of `View::close`; float64 does not compute in float32.
            Dtype::F32 | Dtype::F64 => unsafe { self.view.scatter(self.at, self.n, self.block) },
        }
    }
}

/// Copies an array into another of any dtype, each number rounded once.
///
/// # Safety
/// The promise of [`View::new`] holds for both, `to` has as many elements, may be written, and overlaps `from` nowhere.
pub unsafe fn convert(from: &View, to: &View) {
    const CHUNK: usize = 64 * BLOCK;
    let _default = simd::DefaultEnvironment::enter();
    let wide = [from, to].map(|view| view.dtype.compute() == Dtype::F64);
    pool::share(from.len.div_ceil(CHUNK), from.len, &|chunk| {
        for at in (chunk * CHUNK..from.len.min((chunk + 1) * CHUNK)).step_by(BLOCK) {
            let n = BLOCK.min(from.len - at);
            // SAFETY: at + n ≤ len, which both have; `wide` says what each computes in; this chunk is this task's alone.
            unsafe { convert_block(from, to, wide, at, n) };
        }
    });
}

/// # Safety
/// As [`View::load`] and [`View::store`]; `wide` says which of the two compute in float64.
unsafe fn convert_block(from: &View, to: &View, wide: [bool; 2], at: usize, n: usize) {
    if !wide[0] {
        // SAFETY: the same contract.
        let block = unsafe { from.load::<f32>(at, n) };
        if wide[1] {
            // SAFETY: the same contract.
            unsafe { to.store(at, n, &block.map(f64::from)) };
        } else {
            // SAFETY: the same contract.
            unsafe { to.store(at, n, &block) };
        }
        return;
    }
    // SAFETY: the same contract.
    let block = unsafe { from.load::<f64>(at, n) };
    if wide[1] {
        // SAFETY: the same contract.
        unsafe { to.store(at, n, &block) };
    } else {
        let block = block.map(if to.dtype == Dtype::F32 { |x| x as f32 } else { f64_to_odd });
        // SAFETY: the same contract.
        unsafe { to.store(at, n, &block) };
    }
}

/// The float32 number next to `x` towards 0, with its last bit set if it is not `x`: to round it to 16 bits is to round
/// `x` itself.
fn f64_to_odd(x: f64) -> f32 {
    let near = x as f32;
    let back = f64::from(near);
    if back == x || x.is_nan() {
        return near;
    }
    f32::from_bits((near.to_bits() - u32::from(back.abs() > x.abs())) | 1)
}

// Branch-free, so that they are vectorised; `half::f16` asks for the processor's features in every call.

/// The number that these 16 bits are in binary16; exact.
#[inline(always)]
pub fn f16_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let sign = u32::from(bits & 0x8000) << 16;
    // Multiplying by 2^112 moves the exponent's bias, and makes subnormals normal, exactly.
    let scaled = (f32::from_bits(magnitude) * f32::from_bits(0x7780_0000)).to_bits();
    let special = magnitude | 0x7f80_0000;
    f32::from_bits(sign | if bits & 0x7c00 == 0x7c00 { special } else { scaled })
}

/// The nearest binary16 number, ties to even.
#[inline(always)]
pub fn f32_to_f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let (sign, magnitude) = ((bits >> 16) & 0x8000, bits & 0x7fff_ffff);
    // Below 2^-14 the spacing is 2^-24: adding 2^-1 makes the processor round to it.
    let tiny = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
    let normal = magnitude.wrapping_sub(112 << 23).wrapping_add(0xfff).wrapping_add((magnitude >> 13) & 1) >> 13;
    let rounded = if magnitude < 113 << 23 { tiny } else { normal };
    let finite = if magnitude >= 0x477f_f000 { 0x7c00 } else { rounded };
    let result = if magnitude > 0x7f80_0000 { 0x7e00 } else { finite };
    (sign | result) as u16
}

/// The number that these 16 bits are in bfloat16; exact.
#[inline(always)]
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The nearest bfloat16 number, ties to even.
#[inline(always)]
pub fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff).wrapping_add((bits >> 16) & 1) >> 16;
    let nan = (bits >> 16) | 0x40;
    (if bits & 0x7fff_ffff > 0x7f80_0000 { nan } else { rounded }) as u16
}

/// A number as the nearest bfloat16 number, ties away from 0, and what is lost by that: the lower half of its bits, which as
/// a signed integer is to be added to the upper one's.
#[inline(always)]
pub fn split(x: f32) -> (u16, u16) {
    let bits = x.to_bits();
    let nan = bits & 0x7fff_ffff > 0x7f80_0000;
    let upper = if nan { (bits >> 16) | 0x40 } else { bits.wrapping_add(0x8000) >> 16 };
    (upper as u16, if nan { 0 } else { bits as u16 })
}

/// The number that was split so. Where the upper half was changed, and there is no such number: that half alone.
#[inline(always)]
pub fn joined(upper: u16, lower: u16) -> f32 {
    let bits = u32::from(upper) << 16;
    let whole = bits.wrapping_add(i32::from(lower.cast_signed()).cast_unsigned());
    f32::from_bits(if whole & 0x7fff_ffff > 0x7f80_0000 { bits } else { whole })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_precision_round_trips_every_number() {
        for bits in 0..=u16::MAX {
            let (half, brain) = (f16_to_f32(bits), bf16_to_f32(bits));
            if half.is_nan() {
                assert!(f16_to_f32(f32_to_f16(half)).is_nan());
            } else {
                assert_eq!(f32_to_f16(half), bits);
            }
            if brain.is_nan() {
                assert!(bf16_to_f32(f32_to_bf16(brain)).is_nan());
            } else {
                assert_eq!(f32_to_bf16(brain), bits);
            }
        }
    }

    #[test]
    fn halves_of_any_number_are_that_number() {
        // Around all upper halves, and every lower half beside some.
        let lowers = [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff];
        let near = (0..=u16::MAX).flat_map(|upper| lowers.map(|lower| u32::from(upper) << 16 | lower));
        let all = [0u32, 0x3f80, 0x7f7f, 0x8000, 0xbf80, 0xff7f].map(|upper| upper << 16);
        let all = all.into_iter().flat_map(|upper| (0..=u32::from(u16::MAX)).map(move |lower| upper | lower));
        for bits in near.chain(all) {
            let x = f32::from_bits(bits);
            let (upper, lower) = split(x);
            if x.is_nan() {
                assert!(bf16_to_f32(upper).is_nan() && joined(upper, lower).is_nan() && lower == 0, "{bits:x}");
                continue;
            }
            assert_eq!(joined(upper, lower).to_bits(), bits);
            let (nearest, tie) = (f32_to_bf16(x), bits & 0xffff == 0x8000);
            assert!(upper == nearest || (tie && upper == nearest + 1), "{bits:x}");
        }
    }

    #[test]
    fn an_upper_half_that_was_changed_counts_as_it_is_or_as_what_rounds_to_it() {
        for upper in 0..=u16::MAX {
            for lower in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let (x, own) = (joined(upper, lower), bf16_to_f32(upper));
                assert_eq!(x.is_nan(), own.is_nan(), "{upper:x} {lower:x}");
                assert!(own.is_nan() || split(x).0 == upper, "{upper:x} {lower:x}");
            }
        }
    }

    #[test]
    fn half_precision_rounds_to_nearest_even_between_neighbours() {
        for bits in (0..0x7bff_u16).chain(0x8000..0xfbff) {
            let (low, high) = (f16_to_f32(bits), f16_to_f32(bits + 1));
            let middle = (low + high) / 2.0; // exact: one bit more than binary16 has
            assert_eq!(f32_to_f16(middle), bits + (bits & 1), "{middle:e}");
            let inwards = f32::from_bits(middle.to_bits() - 1);
            assert_eq!(f32_to_f16(inwards), bits, "{inwards:e}");
            let outwards = f32::from_bits(middle.to_bits() + 1);
            assert_eq!(f32_to_f16(outwards), bits + 1, "{outwards:e}");
        }
        assert_eq!(f32_to_f16(65519.99), 0x7bff);
        assert_eq!(f32_to_f16(65520.0), 0x7c00);
        assert_eq!(f32_to_bf16(f32::MAX), 0x7f80);
        assert_eq!(f32_to_bf16(1.0 + 1.0 / 256.0), 0x3f80);
        assert_eq!(f32_to_bf16(1.0 + 3.0 / 256.0), 0x3f82);
    }

    #[test]
    fn float64_becomes_half_precision_in_one_rounding() {
        // A hair above the middle between two neighbours, which float32 cannot tell from the middle.
        for (bits, dtype) in [(0x3c00, Dtype::F16), (0x0001, Dtype::F16), (0x3f80, Dtype::Bf16), (0x0001, Dtype::Bf16)]
        {
            let number = if dtype == Dtype::F16 { f16_to_f32 } else { bf16_to_f32 };
            let (low, high) = (f64::from(number(bits)), f64::from(number(bits + 1)));
            let middle = f64::midpoint(low, high);
            let (below, above) = (f64::from_bits(middle.to_bits() - 1), f64::from_bits(middle.to_bits() + 1));
            let mut from = [below, above, -below, -above, low, -high, f64::NAN, 1e300, -1e-300];
            let mut to = [7u16; 9];
            // SAFETY: 9 elements, which nobody else uses.
            let source = unsafe { View::contiguous(from.as_mut_ptr().cast(), Dtype::F64, 9) };
            // SAFETY: as above.
            let target = unsafe { View::contiguous(to.as_mut_ptr().cast(), dtype, 9) };
            // SAFETY: as above; they are apart.
            unsafe { convert(&source, &target) };
            let sign = 0x8000;
            assert_eq!(to[..6], [bits, bits + 1, sign | bits, sign | (bits + 1), bits, sign | (bits + 1)], "{dtype:?}");
            assert!(number(to[6]).is_nan() && number(to[7]) == f32::INFINITY && to[8] == sign, "{to:x?}");
        }
    }

    #[test]
    fn strided_views_see_c_order() {
        let data: Vec<f32> = (0..24u8).map(f32::from).collect();
        let size = 4isize;
        // A (2, 3, 4) array's axes in the order 2, 0, 1: shape (4, 2, 3).
        // SAFETY: the strides stay inside `data`, which outlives the view and is not written.
        let view =
            unsafe { View::new(data.as_ptr().cast_mut().cast(), Dtype::F32, &[4, 2, 3], &[size, 12 * size, 4 * size]) };
        assert!(view.strided.as_ref().is_some_and(|axes| axes.shape == [4, 6]));
        for at in 0..24 {
            for n in 0..=24 - at {
                // SAFETY: at + n ≤ 24, float32.
                let block = unsafe { view.load::<f32>(at, n) };
                for (i, x) in block[..n].iter().enumerate() {
                    let (c, rest) = ((at + i) / 6, (at + i) % 6);
                    assert_eq!(*x, (rest * 4 + c) as f32);
                }
            }
        }
        assert_eq!(view.extent(), Some((data.as_ptr() as usize, data.as_ptr() as usize + 96)));
    }

    #[test]
    fn negative_strides_start_at_the_other_end() {
        let mut data = [1.0f64, 2.0, 3.0, 4.0];
        let last = data.as_mut_ptr().wrapping_add(3);
        // SAFETY: walks `data` from its last element to its first.
        let view = unsafe { View::new(last.cast(), Dtype::F64, &[4], &[-8]) };
        // SAFETY: 4 elements, float64.
        let block = unsafe { view.load::<f64>(0, 4) };
        assert_eq!(block[..4], [4.0, 3.0, 2.0, 1.0]);
        assert_eq!(view.extent(), Some((data.as_ptr() as usize, data.as_ptr() as usize + 32)));
    }
}
