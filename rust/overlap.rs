//! Who shares memory with whom, from addresses, shapes and strides alone.

use crate::element::View;

/// Whether two indices of one array may name the same memory: exact for whatever slicing, transposing and broadcasting
/// make.
pub(crate) fn overlaps_itself(size: usize, shape: &[usize], strides: &[isize]) -> bool {
    if shape.contains(&0) {
        return false;
    }
    let mut axes: Vec<(usize, usize)> =
        strides.iter().map(|s| s.unsigned_abs()).zip(shape.iter().copied()).filter(|(_, n)| *n > 1).collect();
    axes.sort_unstable();
    let mut reach = size;
    axes.iter().any(|(stride, n)| {
        let overlaps = *stride < reach;
        reach += stride * (n - 1);
        overlaps
    })
}

/// Memory that arrays occupy, to find out quickly who may overlap whom.
#[derive(Debug, Default)]
pub(crate) struct Occupied {
    /// Lowest and one past the highest address, and whose it is; sorted.
    ranges: Vec<(usize, usize, usize)>,
    /// For each range the highest end so far, so that a search can stop early.
    highest: Vec<usize>,
}

impl Occupied {
    #[cfg(feature = "python")] // C binds one array at a time.
    pub(crate) fn new(mut ranges: Vec<(usize, usize, usize)>) -> Self {
        ranges.sort_unstable();
        let mut occupied = Self { highest: Vec::with_capacity(ranges.len()), ranges };
        occupied.find_highest(0);
        occupied
    }

    /// One more range.
    pub(crate) fn insert(&mut self, range: (usize, usize, usize)) {
        let at = self.ranges.partition_point(|known| *known < range);
        self.ranges.insert(at, range);
        self.find_highest(at);
    }

    fn find_highest(&mut self, from: usize) {
        self.highest.truncate(from);
        let mut top = self.highest.last().copied().unwrap_or(0);
        self.highest.extend(self.ranges[from..].iter().map(|(_, end, _)| {
            top = top.max(*end);
            top
        }));
    }

    /// Whose ranges have an address in common with `start..end`.
    pub(crate) fn overlapping(&self, (start, end): (usize, usize)) -> impl Iterator<Item = usize> {
        let after = self.ranges.partition_point(|(low, _, _)| *low < end);
        let reachable = (0..after).rev().take_while(move |i| self.highest[*i] > start);
        reachable.filter(move |i| self.ranges[*i].1 > start).map(|i| self.ranges[i].2)
    }

    /// Pairs of owners that may share an element, by their views; never one too few. Thousands of columns of one matrix
    /// are told apart in one go.
    #[cfg(feature = "python")]
    pub(crate) fn pairs(&self, views: &[View]) -> Vec<(usize, usize)> {
        let mut pairs = Vec::new();
        let mut start = 0;
        while start < self.ranges.len() {
            let beyond = |i: &usize| self.ranges[*i].0 >= self.highest[*i - 1];
            let end = (start + 1..self.ranges.len()).find(beyond).unwrap_or(self.ranges.len());
            let meeting = &self.ranges[start..end];
            if end - start > 1 && !in_one_lattice(meeting.iter().map(|(_, _, owner)| &views[*owner])) {
                for (i, (_, high, owner)) in meeting.iter().enumerate() {
                    let later = meeting[i + 1..].iter().take_while(|(other, _, _)| other < high);
                    let shared = later.filter(|(_, _, other)| may_share(&views[*owner], &views[*other]));
                    pairs.extend(shared.map(|(_, _, other)| (*owner.min(other), *owner.max(other))));
                }
            }
            start = end;
        }
        pairs.sort_unstable();
        pairs
    }
}

/// Whether arrays share nothing because they are runs of bytes at different places of one period.
#[cfg(feature = "python")]
fn in_one_lattice<'a>(views: impl Iterator<Item = &'a View> + Clone) -> bool {
    let strides = views.clone().flat_map(|view| view.run().1);
    let period = strides.fold(0, |period, stride| gcd(period, stride.unsigned_abs()));
    let places = views.filter_map(|view| {
        let (low, _) = view.extent()?;
        low.checked_rem(period).map(|place| (place, place + view.run().0))
    });
    let mut places: Vec<(usize, usize)> = places.collect();
    places.sort_unstable();
    let apart = |first: &(usize, usize), next: usize| first.1 <= next;
    let neighbours = places.windows(2).all(|pair| apart(&pair[0], pair[1].0));
    neighbours && places.first().zip(places.last()).is_some_and(|(first, last)| apart(last, first.0 + period))
}

/// Whether two arrays may share an element. Never wrongly no. Exact for contiguous arrays, and for such as lie in one
/// lattice: columns of a matrix, every other element, the parts of complex numbers; else wherever their extents meet.
pub(crate) fn may_share(a: &View, b: &View) -> bool {
    let (Some((low, high)), Some((other_low, other_high))) = (a.extent(), b.extent()) else { return false };
    if high <= other_low || other_high <= low {
        return false;
    }
    // Both are runs of bytes that repeat with the strides, and so with their greatest common divisor at least.
    let ((run, strides), (other_run, other_strides)) = (a.run(), b.run());
    let period = strides.chain(other_strides).fold(0, |period, stride| gcd(period, stride.unsigned_abs()));
    let behind = if period == 0 { 0 } else { (other_low as isize - low as isize).rem_euclid(period as isize) as usize };
    period == 0 || behind < run || behind + other_run > period
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::element::Dtype;

    /// All bytes of an array, from its shape and strides word by word.
    fn bytes(start: isize, size: isize, shape: &[usize], strides: &[isize]) -> Vec<isize> {
        let mut offsets = vec![start];
        for (n, stride) in shape.iter().zip(strides) {
            offsets = offsets.iter().flat_map(|at| (0..*n as isize).map(move |i| at + i * stride)).collect();
        }
        offsets.iter().flat_map(|at| (0..size).map(move |i| at + i)).collect()
    }

    #[test]
    fn no_shared_byte_is_missed_and_lattices_are_told_apart() {
        let mut data = [0f32; 64];
        let middle = data.as_mut_ptr().wrapping_add(32);
        let shapes: [&[usize]; 3] = [&[3], &[2, 2], &[1, 3]];
        let view = |start: isize, shape: &[usize], strides: &[isize]| {
            // SAFETY: at most 3 steps of 16 bytes either way of each axis from near the middle; nothing is read.
            unsafe { View::new(middle.cast::<u8>().wrapping_offset(start), Dtype::F32, shape, strides) }
        };
        let all: Vec<(isize, &[usize], [isize; 2])> = shapes
            .into_iter()
            .flat_map(|shape| (-3..4).map(move |start| (shape, 4 * start)))
            .flat_map(|(shape, start)| [-12, -8, 4, 8, 16].map(|outer| (shape, start, outer)))
            .flat_map(|(shape, start, outer)| [-4, 4, 8].map(|inner| (start, shape, [outer, inner])))
            .collect();
        for (start, shape, strides) in &all {
            let own = bytes(*start, 4, shape, strides);
            let distinct = own.iter().collect::<std::collections::HashSet<_>>();
            assert!(distinct.len() == own.len() || overlaps_itself(4, shape, &strides[..shape.len()]), "{shape:?}");
            for (other_start, other_shape, other_strides) in &all {
                let other = bytes(*other_start, 4, other_shape, other_strides);
                let shared = own.iter().any(|byte| other.contains(byte));
                let told = may_share(&view(*start, shape, strides), &view(*other_start, other_shape, other_strides));
                assert!(
                    told || !shared,
                    "{start} {shape:?} {strides:?}, {other_start} {other_shape:?} {other_strides:?}"
                );
            }
        }
        let column = |k: isize| view(4 * k, &[3], &[16]);
        assert!(!may_share(&column(0), &column(1)) && !may_share(&column(3), &column(-2)));
        assert!(may_share(&column(0), &column(4)) && may_share(&column(1), &column(1)));
        let pair = view(0, &[3, 2], &[16, 4]);
        assert!(!may_share(&pair, &column(2)) && !may_share(&column(-1), &pair) && may_share(&pair, &column(1)));
    }
}
