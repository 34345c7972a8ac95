//! Elements of arrays by value: read and written in small rows, never borrowed.

use crate::element::Arithmetic;
use crate::reduce::LANES;
use std::array::from_fn;
#[cfg(target_arch = "x86_64")]
use std::hint::black_box;
use std::marker::PhantomData;

/// Elements that lie one after the other, perhaps in an array of Python's: read and written by value, never borrowed.
#[derive(Debug)]
pub struct Memory<'a, A> {
    data: *mut A,
    len: usize,
    lifetime: PhantomData<&'a [A]>,
}

impl<A> Clone for Memory<'_, A> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A> Copy for Memory<'_, A> {}

// SAFETY: reads are governed by the contract of `Memory::new`, writes are unsafe and name their conditions.
unsafe impl<A: Send> Send for Memory<'_, A> {}
// SAFETY: as above.
unsafe impl<A: Sync> Sync for Memory<'_, A> {}

impl<'a, A: Copy> Memory<'a, A> {
    /// The `len` elements from `data` on.
    ///
    /// # Safety
    /// During `'a` they are live, aligned and initialised, and nobody writes them but through [`Memory`].
    pub unsafe fn new(data: *mut A, len: usize) -> Self {
        Self { data, len, lifetime: PhantomData }
    }

    /// The elements of a slice, to be read.
    pub(crate) fn of(slice: &'a [A]) -> Self {
        Self { data: slice.as_ptr().cast_mut(), len: slice.len(), lifetime: PhantomData }
    }

    /// The elements of a slice, to be read and written.
    pub(crate) fn of_mut(slice: &'a mut [A]) -> Self {
        Self { data: slice.as_mut_ptr(), len: slice.len(), lifetime: PhantomData }
    }

    /// The elements from number `at` on.
    #[inline(always)]
    pub(super) fn from(self, at: usize) -> Self {
        assert!(at <= self.len);
        // SAFETY: at ≤ len, so the address is inside the array or one past its end.
        Self { data: unsafe { self.data.add(at) }, len: self.len - at, lifetime: PhantomData }
    }

    /// How many.
    #[inline(always)]
    pub(super) fn len(self) -> usize {
        self.len
    }

    /// Whether there are elements `at..at + n`.
    #[inline(always)]
    pub(crate) fn has(self, at: usize, n: usize) -> bool {
        n <= self.len && at <= self.len - n
    }

    /// Elements `at..at + W`.
    #[inline(always)]
    pub(crate) fn row<const W: usize>(self, at: usize) -> [A; W] {
        assert!(self.has(at, W));
        // SAFETY: at ≤ len, by the assertion.
        let first = unsafe { self.data.add(at) };
        // SAFETY: W elements from `at` are inside the array, by the assertion; an array is aligned as its elements are.
        unsafe { first.cast::<[A; W]>().read() }
    }

    /// Elements `at..at + to.len()`, into `to`.
    #[inline(always)]
    pub(crate) fn copy_to(self, at: usize, to: &mut [A]) {
        assert!(self.has(at, to.len()));
        // SAFETY: at ≤ len, by the assertion.
        let first = unsafe { self.data.add(at) };
        // SAFETY: the elements are inside the array, by the assertion; `to` is borrowed mutably, so it is elsewhere.
        unsafe { first.copy_to_nonoverlapping(to.as_mut_ptr(), to.len()) };
    }

    /// Asks the processor to have elements `at..at + W` in its second cache soon; of no consequence if there are none.
    #[inline(always)]
    pub(super) fn prefetch<const W: usize>(self, at: usize) {
        #[cfg(target_arch = "x86_64")]
        for line in 0..(W * size_of::<A>()).div_ceil(LINE) {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            // SAFETY: a hint: it reads nothing and may be given any address.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(self.data.wrapping_add(at).cast::<i8>().wrapping_add(line * LINE)) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = at;
    }

    /// How many of the first `n` elements lie before a line of the cache begins.
    #[inline(always)]
    fn before_line(self, n: usize) -> usize {
        n.min(self.data.addr().wrapping_neg() % LINE / size_of::<A>())
    }

    /// Writes `at..at + W`.
    ///
    /// # Safety
    /// The elements may be written, and no other thread reads or writes them at the same time.
    #[inline(always)]
    pub(crate) unsafe fn put<const W: usize>(self, at: usize, row: [A; W]) {
        assert!(self.has(at, W));
        // SAFETY: at ≤ len, by the assertion.
        let first = unsafe { self.data.add(at) };
        // SAFETY: inside the array, by the assertion; aligned as its elements are; writable by the contract.
        unsafe { first.cast::<[A; W]>().write(row) };
    }

    /// Writes `at..at + W` past the cache; [`Passing::finish`] must follow.
    ///
    /// # Safety
    /// As [`Memory::put`]; the first element is aligned to 16 bytes, and the elements are a multiple of that.
    #[inline(always)]
    unsafe fn stream<const W: usize>(self, at: usize, row: [A; W]) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{__m128, _mm_loadu_ps, _mm_stream_ps};
            assert!(self.has(at, W));
            // Else the compiler would compute the row, too, in pieces of 16 bytes.
            let row = black_box(row);
            let (from, to) = (row.as_ptr().cast::<f32>(), self.data.wrapping_add(at).cast::<f32>());
            for i in 0..size_of::<[A; W]>() / size_of::<__m128>() {
                // SAFETY: inside the row.
                let part = unsafe { _mm_loadu_ps(from.wrapping_add(4 * i)) };
                // SAFETY: inside the array, by the assertion; aligned and writable by the contract.
                unsafe { _mm_stream_ps(to.wrapping_add(4 * i), part) };
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        // SAFETY: the same contract.
        unsafe {
            self.put(at, row);
        }
    }

    /// Writes `at + done..at + W`.
    ///
    /// # Safety
    /// As [`Memory::put`].
    #[inline(always)]
    pub(super) unsafe fn put_from<const W: usize>(self, done: usize, at: usize, row: [A; W]) {
        if done == 0 {
            // SAFETY: the same contract.
            return unsafe { self.put(at, row) };
        }
        for (l, x) in row.into_iter().enumerate().skip(done) {
            // SAFETY: the same contract.
            unsafe { self.put(at + l, [x]) };
        }
    }
}

/// Bytes of a line of the cache.
const LINE: usize = 64;

/// Numbers that begin where a line of the cache does: a vector of them is one read, not two.
pub(super) struct Lines<A> {
    numbers: Vec<A>,
    start: usize,
}

impl<A: Arithmetic> Lines<A> {
    /// The same numbers again and again, `len` in all.
    pub(super) fn new(numbers: &[A], len: usize) -> Self {
        let mut lines: Vec<A> = Vec::with_capacity(len + LINE / size_of::<A>());
        let start = lines.as_ptr().align_offset(LINE);
        lines.resize(start, A::ZERO);
        lines.extend_from_slice(&numbers[..numbers.len().min(len)]);
        while start < lines.len() && lines.len() < start + len {
            let filled = lines.len() - start;
            lines.extend_from_within(start..start + filled.min(len - filled));
        }
        Self { numbers: lines, start }
    }

    pub(super) fn memory(&self) -> Memory<'_, A> {
        Memory::of(&self.numbers[self.start..])
    }
}

/// How a pass treats the memory that it goes over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Passing {
    /// So many elements ahead, the inputs are asked for if there is more than the caches hold; 0: not.
    pub(super) ahead: usize,
    /// Whether the output goes past the cache. [`Passing::finish`] must follow.
    pub(super) streaming: bool,
}

/// Arrays of this size and more find no room in the caches beside others: to write one there costs a read of it.
const STREAMED: usize = 20 << 20;

impl Passing {
    /// Over so many elements.
    pub(super) fn over<A>(elements: usize) -> Self {
        Self { ahead: 0, streaming: cfg!(target_arch = "x86_64") && elements * size_of::<A>() >= STREAMED }
    }

    /// `ahead` where there is more than the caches hold; in the cache, asking costs more than it brings.
    pub(super) fn beyond(self, ahead: usize) -> usize {
        if self.streaming { ahead } else { 0 }
    }

    /// After the last row: has other threads see what was streamed as if it were written plainly.
    #[inline(always)]
    pub(super) fn finish(self) {
        #[cfg(target_arch = "x86_64")]
        if self.streaming {
            // SAFETY: every x86-64 has SSE.
            unsafe { std::arch::x86_64::_mm_sfence() };
        }
    }
}

/// Writes `f` of the inputs' and the coefficients' first `n` elements over the output's.
///
/// # Safety
/// The output may be written, is no input, and no other thread is at those elements.
#[inline(always)]
pub(super) unsafe fn map<A: Arithmetic, const N: usize, const P: usize>(
    inputs: [Memory<'_, A>; N],
    coefficients: [Memory<'_, A>; P],
    output: Memory<'_, A>,
    n: usize,
    passing: Passing,
    f: impl Fn([A; N], [A; P]) -> A,
) {
    assert!(inputs.iter().chain(&coefficients).all(|array| array.has(0, n)) && output.has(0, n));
    let mut at = 0;
    if passing.streaming {
        let head = output.before_line(n);
        while at < head {
            // SAFETY: the same contract.
            unsafe { output.put(at, map_row::<A, N, P, 1>(inputs, coefficients, at, 0, &f)) };
            at += 1;
        }
        while n - at >= ROW {
            let row = map_row::<A, N, P, ROW>(inputs, coefficients, at, passing.ahead, &f);
            // SAFETY: the same contract; the place is a line's first.
            unsafe { output.stream(at, row) };
            at += ROW;
        }
    }
    while n - at >= LANES {
        // SAFETY: the same contract.
        unsafe { output.put(at, map_row::<A, N, P, LANES>(inputs, coefficients, at, 0, &f)) };
        at += LANES;
    }
    while n - at >= ROW {
        // SAFETY: the same contract.
        unsafe { output.put(at, map_row::<A, N, P, ROW>(inputs, coefficients, at, 0, &f)) };
        at += ROW;
    }
    if at < n && n >= ROW && !passing.streaming {
        // The last row reaches back over elements that are done, and writes the same there.
        // SAFETY: the same contract.
        return unsafe { output.put(n - ROW, map_row::<A, N, P, ROW>(inputs, coefficients, n - ROW, 0, &f)) };
    }
    while at < n {
        // SAFETY: the same contract.
        unsafe { output.put(at, map_row::<A, N, P, 1>(inputs, coefficients, at, 0, &f)) };
        at += 1;
    }
}

/// Elements of a short row: a line of the cache or two.
const ROW: usize = 16;

#[inline(always)]
fn map_row<A: Arithmetic, const N: usize, const P: usize, const W: usize>(
    inputs: [Memory<'_, A>; N],
    coefficients: [Memory<'_, A>; P],
    at: usize,
    ahead: usize,
    f: &impl Fn([A; N], [A; P]) -> A,
) -> [A; W] {
    if ahead > 0 {
        for input in inputs {
            input.prefetch::<W>(at + ahead);
        }
    }
    let x: [[A; W]; N] = from_fn(|k| inputs[k].row(at));
    let c: [[A; W]; P] = from_fn(|k| coefficients[k].row(at));
    let mut y = [A::ZERO; W];
    for l in 0..W {
        y[l] = f(from_fn(|k| x[k][l]), from_fn(|k| c[k][l]));
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<A: Arithmetic>() {
        let x: Vec<A> = (0..400).map(|i| A::constant(f64::from(i))).collect();
        for (offset, n) in (0..20).flat_map(|offset| (0..200).map(move |n| (offset, n))) {
            for streaming in [false, true] {
                let mut y = vec![A::constant(-1.0); 400];
                let (from, to) = (Memory::of(&x).from(3), Memory::of_mut(&mut y).from(offset));
                let passing = Passing { ahead: 64, streaming };
                // SAFETY: a vector of our own.
                unsafe { map([from], [Memory::of(&x)], to, n, passing, |[x], [c]| x + c) };
                passing.finish();
                for (i, y) in y.iter().enumerate() {
                    let inside = (offset..offset + n).contains(&i);
                    let expected = if inside { (2 * (i - offset) + 3) as f64 } else { -1.0 };
                    assert_eq!(y.to_f64(), expected, "{n} from {offset} on, element {i}, streaming: {streaming}");
                }
            }
        }
    }

    #[test]
    fn lines_repeat_their_numbers_from_a_line_of_the_cache_on() {
        for (count, len) in [(0, 0), (1, 5), (3, 512), (8, 512), (100, 100), (130, 192)] {
            let numbers: Vec<f32> = (0..count).map(|i| i as f32).collect();
            let lines = Lines::new(&numbers, len);
            assert_eq!(lines.memory().before_line(len), 0);
            assert_eq!(lines.memory().len(), len);
            assert!((0..len).all(|i| lines.memory().row::<1>(i) == [numbers[i % count]]), "{count} in {len}");
        }
    }

    #[test]
    fn a_map_writes_its_elements_and_no_others_wherever_they_begin() {
        check::<f32>();
        check::<f64>();
    }
}
