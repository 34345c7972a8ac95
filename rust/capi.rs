//! The C ABI, documented where C programmers look: include/ravine.h. The only `extern "C"`.
//!
//! Every function checks all that it was given before it writes anything, through [`guard`], which turns errors and panics
//! into the header's status numbers. What cannot be checked is that memory is as large and as alive as C says; each
//! function is unsafe for that reason and no other, so that no `# Safety` below repeats it.

use crate::element::{self, BLOCK, Dtype, View};
use crate::error::Error;
use crate::norm::arrays::{self as norms, Saved};
use crate::norm::batch::Layout;
use crate::overlap::{Occupied, may_share, overlaps_itself};
use crate::real::Past;
use crate::rules::{self, Entry, Precision, REGISTRY, Range, State};
use crate::step::{self, COMMON, NonFinite, Options, Step};
use crate::{pool, simd};
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::fmt::{self, Display};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::{Mutex, MutexGuard, OnceLock, TryLockError};

// ---------------------------------------------------------------------------------------------------------------------
// Status and message

/// The status number of an error: `rv_status` in the header, fixed for ever.
fn status_of(error: &Error) -> i32 {
    match error {
        Error::Null(_) => 1,
        Error::UnknownRule(_) => 2,
        Error::UnknownHyperparameter { .. } | Error::Name(_) => 3,
        Error::OutOfRange { .. } => 4,
        Error::Dtype(_) => 5,
        Error::Shape(_) => 6,
        Error::Size(_) => 7,
        Error::Memory(_) => 8,
        Error::NotFinite(_) => 9,
        Error::Busy(_) => 10,
        Error::NoMemory(_) => 11,
        Error::Internal(_) => 12,
        Error::Environment(_) => 13,
    }
}

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// Does what a function does that returns a status: nothing, where an environment variable has a value that is none.
fn guard(body: impl FnOnce() -> Result<(), Error>) -> i32 {
    guard_always(|| {
        static CHECKED: OnceLock<Result<(), Error>> = OnceLock::new();
        CHECKED.get_or_init(|| simd::asked().map(drop).and_then(|()| pool::asked().map(drop))).clone()?;
        body()
    })
}

/// Does what a function does; keeps what went wrong for `rv_last_error`, and returns its number.
fn guard_always(body: impl FnOnce() -> Result<(), Error>) -> i32 {
    // Unwind safe: after a panic nothing is looked at but the handle, whose lock is then poisoned, which `bound` expects.
    let done = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
        Err(Error::Internal(text.unwrap_or_default()))
    });
    let Err(error) = done else { return 0 };
    let message = CString::new(error.to_string()).unwrap_or_default();
    // In a thread that is ending there is no place for it any more.
    let _ = LAST_ERROR.try_with(|last| *last.borrow_mut() = message);
    status_of(&error)
}

#[unsafe(no_mangle)]
extern "C" fn rv_last_error() -> *const c_char {
    LAST_ERROR.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

// ---------------------------------------------------------------------------------------------------------------------
// What C hands over

fn null(name: impl Display) -> Error {
    Error::Null(format!("{name}: expected an address, got NULL"))
}

/// What a pointer points to, which C keeps alive during the call.
unsafe fn borrow<'a, T>(pointer: *const T, name: impl Display + Copy) -> Result<&'a T, Error> {
    check_aligned(pointer, name)?;
    // SAFETY: not null and aligned, as just checked; the rest is C's promise.
    unsafe { pointer.as_ref() }.ok_or_else(|| null(name))
}

fn check_aligned<T>(pointer: *const T, name: impl Display) -> Result<(), Error> {
    if pointer.is_aligned() {
        return Ok(());
    }
    Err(Error::Memory(format!(
        "{name}: expected an address that is a multiple of {}, got {pointer:p}",
        align_of::<T>()
    )))
}

/// `n` things in a row, which C keeps alive and as they are during the call; none if n is 0.
unsafe fn slice<'a, T>(pointer: *const T, n: usize, name: impl Display + Copy) -> Result<&'a [T], Error> {
    check_row(pointer, n, name)?;
    if n == 0 {
        return Ok(&[]);
    }
    // SAFETY: not null, aligned, and not too long, as just checked; the rest is C's promise.
    Ok(unsafe { std::slice::from_raw_parts(pointer, n) })
}

/// Refuses a row of `n` things that cannot be.
fn check_row<T>(pointer: *const T, n: usize, name: impl Display + Copy) -> Result<(), Error> {
    let bytes = n.checked_mul(size_of::<T>()).filter(|bytes| *bytes <= isize::MAX as usize);
    let end = bytes.and_then(|bytes| pointer.addr().checked_add(bytes));
    if end.is_none() {
        return Err(Error::Size(format!("{name}: {n} elements do not fit into the address space")));
    }
    if n > 0 && pointer.is_null() {
        return Err(null(name));
    }
    check_aligned(pointer, name)
}

/// Refuses an address to write one thing to, that cannot be.
fn check_out<T>(pointer: *mut T, name: &str) -> Result<(), Error> {
    check_row(pointer, 1, name)
}

/// Writes to an address that [`check_out`] let through.
unsafe fn put<T>(pointer: *mut T, value: T) {
    // SAFETY: neither null nor unaligned, by `check_out`; that it may be written is C's promise.
    unsafe { pointer.write(value) };
}

/// Writes numbers to a row that [`check_row`] let through, or nowhere if that is null.
unsafe fn put_all<T: Copy>(pointer: *mut T, values: &[T]) {
    if !pointer.is_null() {
        // SAFETY: checked to be a row of so many; `values` is ours, so it is elsewhere.
        unsafe { pointer.copy_from_nonoverlapping(values.as_ptr(), values.len()) };
    }
}

unsafe fn text(pointer: *const c_char, name: &str) -> Result<String, Error> {
    if pointer.is_null() {
        return Err(null(name));
    }
    // SAFETY: not null; that it ends with a zero byte is C's promise.
    Ok(unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned())
}

unsafe fn rule_named(pointer: *const c_char) -> Result<&'static Entry, Error> {
    // SAFETY: the same promise.
    let name = unsafe { text(pointer, "rule") }?;
    rules::find(&name).ok_or(Error::UnknownRule(name))
}

/// Refuses work that would need more memory than there is: `n` times so many bytes. Rust's own containers would abort.
fn check_room(n: usize, each: usize) -> Result<(), Error> {
    let bytes = n.saturating_mul(each);
    Vec::<u8>::new().try_reserve_exact(bytes).map_err(|_| Error::NoMemory(bytes))
}

/// `rv_tensor`
#[repr(C)]
struct Tensor {
    data: *mut u8,
    dtype: i32,
    ndim: usize,
    shape: *const usize,
    strides: *const isize,
}

/// `RV_MAX_NDIM`
const MAX_NDIM: usize = 64;

/// What an error calls an array; put into words only there.
#[derive(Clone, Copy)]
enum Name {
    Argument(&'static str),
    OfList(&'static str, usize),
    State(usize, &'static str),
}

impl Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Argument(name) => f.write_str(name),
            Self::OfList(name, i) => write!(f, "{name}[{i}]"),
            Self::State(i, name) => write!(f, "states[{i}] ({name})"),
        }
    }
}

/// A tensor of C's whose numbers have been checked.
struct Array<'a> {
    name: Name,
    dtype: Dtype,
    shape: &'a [usize],
    view: View,
    overlaps_itself: bool,
}

/// `RV_NONE` in the place of a dtype.
const NONE: i32 = 0;

/// What stands for a dtype in `rv_dtype`.
fn code_of(dtype: Dtype) -> i32 {
    match dtype {
        Dtype::F64 => 1,
        Dtype::F32 => 2,
        Dtype::F16 => 3,
        Dtype::Bf16 | Dtype::Bf16Random | Dtype::Bf16Parameter | Dtype::Split => 4,
        Dtype::Signed8 => 5,
        Dtype::Unsigned8 => 6,
    }
}

impl<'a> Array<'a> {
    unsafe fn new(tensor: &'a Tensor, name: Name) -> Result<Self, Error> {
        if matches!(tensor.dtype, 5 | 6) {
            let (expected, got) = ("numbers, not codes of states", tensor.dtype);
            return Err(Error::Dtype(format!("{name}.dtype: expected {expected}, got {got}")));
        }
        // SAFETY: the same promise.
        unsafe { Self::of_any(tensor, name) }
    }

    unsafe fn of_any(tensor: &'a Tensor, name: Name) -> Result<Self, Error> {
        let dtype = match tensor.dtype {
            1 => Dtype::F64,
            2 => Dtype::F32,
            3 => Dtype::F16,
            4 => Dtype::Bf16,
            5 => Dtype::Signed8,
            6 => Dtype::Unsigned8,
            NONE => return Err(Error::Dtype(format!("{name}: expected a tensor, got one of dtype RV_NONE"))),
            other => return Err(Error::Dtype(format!("{name}.dtype: expected one of rv_dtype, got {other}"))),
        };
        let size = dtype.size();
        if tensor.ndim > MAX_NDIM {
            return Err(Error::Size(format!("{name}.ndim: expected at most {MAX_NDIM}, got {}", tensor.ndim)));
        }
        // SAFETY: the same promise.
        let shape: &[usize] = unsafe { slice(tensor.shape, tensor.ndim, format_args!("{name}.shape")) }?;
        let too_large = || Error::Size(format!("{name}: shape {shape:?} does not fit into the address space"));
        // As if a length of 0 were 1: products of some of the lengths are needed, too.
        let product = |product: usize, n: &usize| product.checked_mul((*n).max(1));
        let bytes = shape.iter().try_fold(size, product).filter(|bytes| *bytes <= isize::MAX as usize);
        let bytes = bytes.ok_or_else(too_large)?;
        let strides: Option<&[isize]> = match tensor.strides.is_null() {
            true => None,
            // SAFETY: the same promise.
            false => Some(unsafe { slice(tensor.strides, tensor.ndim, format_args!("{name}.strides")) }?),
        };
        if shape.contains(&0) {
            // SAFETY: no elements.
            let view = unsafe { View::contiguous(ptr::dangling_mut::<u64>().cast(), dtype, 0) };
            return Ok(Self { name, dtype, shape, view, overlaps_itself: false });
        }
        if tensor.data.is_null() {
            return Err(null(format_args!("{name}.data")));
        }
        let aligned = |bytes: usize| bytes.is_multiple_of(size);
        let moves = || strides.into_iter().flat_map(|strides| strides.iter().zip(shape)).filter(|(_, n)| **n > 1);
        if !aligned(tensor.data.addr()) || !moves().all(|(stride, _)| aligned(stride.unsigned_abs())) {
            let text = format!(
                "{name}: expected an address and strides that are multiples of {size}, the size of {}",
                dtype.name()
            );
            return Err(Error::Memory(format!("{text}; got {:p}, {:?}", tensor.data, strides.unwrap_or_default())));
        }
        // How far the elements reach, below and above.
        let (mut low, mut high) = (0usize, if strides.is_none() { bytes } else { size });
        for (stride, n) in moves() {
            let reach = stride.unsigned_abs().checked_mul(n - 1).ok_or_else(too_large)?;
            let side = if *stride < 0 { &mut low } else { &mut high };
            *side = side.checked_add(reach).ok_or_else(too_large)?;
        }
        let start = tensor.data.addr();
        let (first, last) = (start.checked_sub(low), start.checked_add(high));
        if first.is_none() || last.is_none() || low.checked_add(high).is_none_or(|extent| extent > isize::MAX as usize)
        {
            return Err(too_large());
        }
        let (view, overlaps_itself) = match strides {
            // SAFETY: aligned and inside the address space, as just checked; the memory is C's promise.
            None => (unsafe { View::contiguous(tensor.data, dtype, bytes / size) }, false),
            Some(strides) => {
                // SAFETY: as above.
                (unsafe { View::new(tensor.data, dtype, shape, strides) }, overlaps_itself(size, shape, strides))
            }
        };
        Ok(Self { name, dtype, shape, view, overlaps_itself })
    }

    /// The tensor that a pointer points to.
    unsafe fn at(pointer: *const Tensor, name: &'static str) -> Result<Self, Error> {
        // SAFETY: the same promise.
        let tensor = unsafe { borrow(pointer, name) }?;
        // SAFETY: the same promise.
        unsafe { Self::new(tensor, Name::Argument(name)) }
    }

    /// All tensors of a list.
    unsafe fn all(pointer: *const Tensor, n: usize, name: &'static str) -> Result<Vec<Self>, Error> {
        // SAFETY: the same promise.
        let tensors = unsafe { slice(pointer, n, name) }?;
        // SAFETY: the same promise.
        tensors.iter().enumerate().map(|(i, tensor)| unsafe { Self::new(tensor, Name::OfList(name, i)) }).collect()
    }

    fn check_writable(&self) -> Result<(), Error> {
        if !self.overlaps_itself {
            return Ok(());
        }
        Err(Error::Memory(format!(
            "{}: its strides let elements share memory, so it cannot be written; copy it",
            self.name
        )))
    }

    fn check_like(&self, dtype: Dtype, shape: &[usize], of: impl Display) -> Result<(), Error> {
        if self.dtype != dtype {
            let (name, expected, got) = (&self.name, dtype.name(), self.dtype.name());
            return Err(Error::Dtype(format!(
                "{name}: expected {expected} for {of}, got {got}; convert it with rv_convert"
            )));
        }
        if self.shape != shape {
            let (name, got) = (&self.name, self.shape);
            return Err(Error::Shape(format!("{name}: expected shape {shape:?} like {of}, got {got:?}")));
        }
        Ok(())
    }

    fn check_apart(&self, other: &Self) -> Result<(), Error> {
        if !may_share(&self.view, &other.view) {
            return Ok(());
        }
        Err(shared(self.name, other.name))
    }
}

fn shared(name: impl Display, other: impl Display) -> Error {
    Error::Memory(format!("{name}: shares memory with {other}, and one of them is written; copy it"))
}

/// Refuses to write arrays of which two share memory.
fn check_all_apart(arrays: &[Array<'_>]) -> Result<(), Error> {
    let mut occupied = Occupied::default();
    for (i, array) in arrays.iter().enumerate() {
        array.check_writable()?;
        let Some((low, high)) = array.view.extent() else { continue };
        occupied.overlapping((low, high)).try_for_each(|other| array.check_apart(&arrays[other]))?;
        occupied.insert((low, high, i));
    }
    Ok(())
}

fn views(arrays: Vec<Array<'_>>) -> Vec<View> {
    arrays.into_iter().map(|array| array.view).collect()
}

// ---------------------------------------------------------------------------------------------------------------------
// Version, threads, rules

const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");

#[unsafe(no_mangle)]
extern "C" fn rv_version() -> *const c_char {
    VERSION.as_ptr().cast()
}

#[unsafe(no_mangle)]
extern "C" fn rv_num_threads() -> usize {
    pool::num_threads()
}

#[unsafe(no_mangle)]
extern "C" fn rv_set_num_threads(n: usize) -> usize {
    pool::set_num_threads(n)
}

#[unsafe(no_mangle)]
extern "C" fn rv_instruction_set() -> *const c_char {
    match simd::level() {
        simd::Level::Baseline => c"baseline",
        simd::Level::Avx2 => c"avx2",
        simd::Level::Avx512 => c"avx512",
    }
    .as_ptr()
}

/// Names as C reads them: zero bytes behind each, a null behind all. Made once and never freed.
struct Names(Vec<*const c_char>);

// SAFETY: never written again, and what it points to is never freed.
unsafe impl Send for Names {}
// SAFETY: as above.
unsafe impl Sync for Names {}

impl Names {
    fn of<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let leaked = names.map(|name| CString::new(name).unwrap_or_default().into_raw().cast_const());
        Self(leaked.chain([ptr::null()]).collect())
    }
}

struct RuleNames {
    rules: Names,
    hyperparameters: Vec<Names>,
    states: Vec<Names>,
    products: Vec<Names>,
}

fn names() -> &'static RuleNames {
    static NAMES: OnceLock<RuleNames> = OnceLock::new();
    NAMES.get_or_init(|| {
        let hyperparameters = |entry: &Entry| {
            let common = COMMON.iter().map(|(name, _)| *name).filter(|name| !entry.hyperparameters.contains(name));
            Names::of(entry.hyperparameters.iter().copied().chain(common))
        };
        RuleNames {
            rules: Names::of(REGISTRY.iter().map(|entry| entry.name)),
            hyperparameters: REGISTRY.iter().map(hyperparameters).collect(),
            states: REGISTRY.iter().map(|entry| Names::of(entry.states.iter().map(|state| state.name))).collect(),
            products: REGISTRY.iter().map(|entry| Names::of(entry.products.iter().copied())).collect(),
        }
    })
}

/// Names of the rule; null if there is none.
unsafe fn names_of(rule: *const c_char, list: fn(&RuleNames) -> &[Names]) -> *const *const c_char {
    let mut found = ptr::null();
    guard_always(|| {
        // SAFETY: the same promise.
        let rule = unsafe { rule_named(rule) }?;
        let at = REGISTRY.iter().position(|entry| ptr::eq(entry, rule));
        found = at.map_or(found, |at| list(names())[at].0.as_ptr());
        Ok(())
    });
    found
}

#[unsafe(no_mangle)]
extern "C" fn rv_rules() -> *const *const c_char {
    let mut found = ptr::null();
    guard_always(|| {
        found = names().rules.0.as_ptr();
        Ok(())
    });
    found
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rv_rule_hyperparameters(rule: *const c_char) -> *const *const c_char {
    // SAFETY: the same promise.
    unsafe { names_of(rule, |names| &names.hyperparameters) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rv_rule_states(rule: *const c_char) -> *const *const c_char {
    // SAFETY: the same promise.
    unsafe { names_of(rule, |names| &names.states) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rv_rule_products(rule: *const c_char) -> *const *const c_char {
    // SAFETY: the same promise.
    unsafe { names_of(rule, |names| &names.products) }
}

// ---------------------------------------------------------------------------------------------------------------------
// The optimizer

/// `rv_optimizer`
struct Optimizer(Mutex<Bound>);

struct Bound {
    step: Step,
    bonds: Vec<Bond>,
    occupied: Occupied,
    /// For each group, which of the rule's own hyperparameters have been set.
    set: Vec<Vec<bool>>,
    /// What was not finite in the last step: tensor, how many, the first.
    nonfinite: Vec<(usize, usize, usize)>,
    /// In how many bytes states are kept.
    precision: Precision,
    /// Whether parameters are rounded at random.
    stochastic: bool,
}

/// An array that is a state, or a part of one: the state's name, dtype, shape.
type Needed = (&'static str, Dtype, Vec<usize>);

/// A parameter with its states, as C bound them.
struct Bond {
    dtype: Dtype,
    shape: Vec<usize>,
    views: Vec<View>,
}

/// `rv_step_info`
#[repr(C)]
struct StepInfo {
    step: u64,
    lr: f64,
    grad_norm: f64,
    nonfinite: usize,
    skipped: i32,
    reserved: [u32; 9],
}

/// `RV_MAX_GROUPS`
const MAX_GROUPS: usize = 65536;

impl Bound {
    fn check_group(&self, group: usize) -> Result<(), Error> {
        if group < self.set.len() {
            return Ok(());
        }
        let expected = "one of the groups that rv_optimizer_new made";
        Err(Error::OutOfRange { name: "group".to_owned(), got: group as f64, expected })
    }

    fn check_count(&self, what: &str, n: usize) -> Result<(), Error> {
        if n == self.bonds.len() {
            return Ok(());
        }
        Err(Error::Shape(format!("{what}: expected one for each of the {} parameters, got {n}", self.bonds.len())))
    }

    fn check_products(&self, n: usize) -> Result<(), Error> {
        let (parameters, each) = (self.bonds.len(), self.step.rule().products.len());
        if n == parameters * each {
            return Ok(());
        }
        Err(Error::Shape(format!("products: expected {each} for each of the {parameters} parameters, got {n}")))
    }

    fn check_product(&self, name: &str, product: &Product, t: u64) -> Result<(), Error> {
        let Product { base, constant, rest } = *product;
        if base < 0.0 && constant == t && rest == 1.0 {
            return Ok(());
        }
        self.step.check_hyper(name, base)?;
        let wrong = |what: &str, got, expected| Error::OutOfRange { name: format!("{what} of {name}"), got, expected };
        if constant > t {
            return Err(wrong("constant", constant as f64, "at most the parameter's updates"));
        }
        if !(0.0..=1.0).contains(&rest) || (constant == t && rest != 1.0) {
            return Err(wrong("rest", rest, "a number in [0, 1], 1 where nothing has changed"));
        }
        Ok(())
    }

    /// Refuses a step with a number that nobody has chosen.
    fn check_set(&self) -> Result<(), Error> {
        let rule = self.step.rule();
        for (group, set) in self.set.iter().enumerate() {
            if let Some(missing) = set.iter().position(|set| !set) {
                let (name, rule) = (rule.hyperparameters[missing], rule.name);
                return Err(Error::Name(format!(
                    "{name}: rule {rule:?} needs it, and it was never set in group {group}; use rv_optimizer_set"
                )));
            }
        }
        Ok(())
    }

    /// The arrays that are the states of a parameter.
    fn needed(&self, dtype: Dtype, shape: &[usize]) -> Result<Vec<Needed>, Error> {
        if self.precision != Precision::Full && dtype.compute() != Dtype::F32 {
            let got = dtype.name();
            return Err(Error::Dtype(format!("parameter: states in fewer bytes are of float32 arithmetic, got {got}")));
        }
        let of = |kind: &State| {
            let (kept, of_shape) = kind.layout(self.precision, dtype, shape);
            let blocks = shape.iter().product::<usize>().div_ceil(BLOCK);
            let scales = kept.has_scales().then(|| (kind.name, Dtype::F32, vec![blocks]));
            std::iter::once((kind.name, kept, of_shape.to_vec())).chain(scales)
        };
        Ok(self.step.rule().states.iter().flat_map(of).collect())
    }

    /// Refuses to choose anew how parameters that were added are kept.
    fn check_none_added(&self, name: &str, got: f64) -> Result<(), Error> {
        if self.bonds.is_empty() {
            return Ok(());
        }
        let expected = "to be set before the first parameter is added";
        Err(Error::OutOfRange { name: name.to_owned(), got, expected })
    }

    fn set_precision(&mut self, got: f64) -> Result<(), Error> {
        let refuse = |expected| Error::OutOfRange { name: "states".to_owned(), got, expected };
        let ways = [Precision::Full, Precision::Bfloat16, Precision::EightBit];
        let way = ways.into_iter().enumerate().find(|(i, _)| *i as f64 == got);
        let (_, way) = way.ok_or_else(|| refuse("RV_STATES_FULL, RV_STATES_BFLOAT16 or RV_STATES_8BIT"))?;
        let full = |kind: &State| kind.layout(way, Dtype::F32, &[]) == kind.layout(Precision::Full, Dtype::F32, &[]);
        if way != Precision::Full && self.step.rule().states.iter().all(full) {
            return Err(refuse("RV_STATES_FULL: the rule has no states that may be kept in fewer bytes"));
        }
        self.check_none_added("states", got)?;
        self.precision = way;
        Ok(())
    }

    fn set_rounding(&mut self, got: f64) -> Result<(), Error> {
        if got != 0.0 && got != 1.0 {
            let expected = "RV_NEAREST or RV_STOCHASTIC";
            return Err(Error::OutOfRange { name: "rounding".to_owned(), got, expected });
        }
        self.check_none_added("rounding", got)?;
        self.stochastic = got == 1.0;
        Ok(())
    }

    /// The states, from the views of their arrays.
    fn states_of(&self, arrays: &[View], needed: &[Needed]) -> Vec<View> {
        let mut states = Vec::with_capacity(arrays.len());
        let mut arrays = arrays.iter().zip(needed);
        while let Some((array, (_, dtype, _))) = arrays.next() {
            let (data, len) = (array.address(), array.len());
            states.push(match dtype {
                // SAFETY: checked to lie one after the other; the scales are the next array, of the length that is needed.
                Dtype::Signed8 | Dtype::Unsigned8 => unsafe {
                    View::coded(data, *dtype, len, arrays.next().map_or(ptr::null_mut(), |(s, _)| s.address().cast()))
                },
                // SAFETY: as above.
                Dtype::Bf16Random => unsafe { View::contiguous(data, *dtype, len) },
                _ => array.clone(),
            });
        }
        states
    }

    unsafe fn add(&mut self, group: usize, parameter: *const Tensor, states: &[Tensor]) -> Result<(), Error> {
        self.check_group(group)?;
        // SAFETY: the same promise.
        let parameter = unsafe { Array::at(parameter, "parameter") }?;
        let (dtype, shape) = (parameter.dtype, parameter.shape.to_vec());
        let needed = self.needed(dtype, &shape)?;
        if states.len() != needed.len() {
            let (rule, expected, got) = (self.step.rule().name, needed.len(), states.len());
            return Err(Error::Shape(format!("states: rule {rule:?} needs {expected}, got {got}")));
        }
        if self.stochastic && dtype != Dtype::Bf16 {
            let got = dtype.name();
            return Err(Error::Dtype(format!("parameter: expected bfloat16 under RV_STOCHASTIC, got {got}")));
        }
        let mut arrays = vec![parameter];
        for (i, (state, (name, kept, of_shape))) in states.iter().zip(&needed).enumerate() {
            // SAFETY: the same promise.
            let state = unsafe { Array::of_any(state, Name::State(i, name)) }?;
            let expected = if *kept == Dtype::Bf16Random { Dtype::Bf16 } else { *kept };
            state.check_like(expected, of_shape, format_args!("a parameter of {}", dtype.name()))?;
            if self.precision != Precision::Full && !state.view.is_contiguous() {
                let name = state.name;
                return Err(Error::Memory(format!("{name}: expected its elements one after the other, got strides")));
            }
            arrays.push(state);
        }
        self.step.check_for(dtype)?;
        check_all_apart(&arrays)?;
        for array in &arrays {
            self.check_free(array)?;
        }
        let views = views(arrays);
        // A chunk's entry and two blocks' sums, for every 8192 elements.
        check_room(views[0].len() / 4096 + 1, 64)?;
        for (low, high) in views.iter().filter_map(View::extent) {
            self.occupied.insert((low, high, self.bonds.len()));
        }
        let (parameter, states) = (views[0].clone(), self.states_of(&views[1..], &needed));
        let parameter = if self.stochastic { parameter.rounded_at_random() } else { parameter };
        // SAFETY: C promises that they stay where they are; they may be written and none overlaps another, as checked.
        unsafe { self.step.bind(parameter, states, group) };
        self.bonds.push(Bond { dtype, shape, views });
        Ok(())
    }

    /// Refuses an array that shares memory with a parameter or a state.
    fn check_free(&self, array: &Array<'_>) -> Result<(), Error> {
        let Some(extent) = array.view.extent() else { return Ok(()) };
        for owner in self.occupied.overlapping(extent) {
            if self.bonds[owner].views.iter().any(|view| may_share(view, &array.view)) {
                return Err(shared(array.name, format_args!("parameter {owner} or its states")));
            }
        }
        Ok(())
    }

    unsafe fn gradient(&self, i: usize, tensor: &Tensor) -> Result<Option<View>, Error> {
        if tensor.dtype == NONE {
            return Ok(None);
        }
        let bond = &self.bonds[i];
        // SAFETY: the same promise.
        let gradient = unsafe { Array::new(tensor, Name::OfList("gradients", i)) }?;
        // Half-precision gradients of float32 parameters are widened, exactly; anything else would hide a mistake.
        let widened = bond.dtype == Dtype::F32 && gradient.dtype.compute() == Dtype::F32;
        gradient.check_like(if widened { gradient.dtype } else { bond.dtype }, &bond.shape, "its parameter")?;
        self.check_free(&gradient)?;
        Ok(Some(gradient.view))
    }

    unsafe fn run(&mut self, gradients: &[Tensor]) -> Result<StepInfo, Error> {
        self.check_count("gradients", gradients.len())?;
        self.check_set()?;
        let checked: Result<Vec<_>, Error> =
            // SAFETY: the same promise.
            gradients.iter().enumerate().map(|(i, tensor)| unsafe { self.gradient(i, tensor) }).collect();
        let checked = checked?;
        if !checked.is_empty() && checked.iter().all(Option::is_none) {
            let text = "gradients: each is RV_NONE; a step needs one gradient at least";
            return Err(Error::Shape(text.to_owned()));
        }
        for (i, gradient) in checked.into_iter().enumerate() {
            // SAFETY: checked to be like its parameter and apart from all that is written; alive during the call.
            unsafe { self.step.set_gradient(i, gradient) };
        }
        let info = self.step.run()?;
        self.nonfinite = info.nonfinite.unwrap_or_default();
        if info.skipped && self.step.raises() {
            let elements: usize = self.nonfinite.iter().map(|(_, count, _)| count).sum();
            let first = self.nonfinite.first().map_or((0, 0), |(tensor, _, first)| (*tensor, *first));
            return Err(Error::NotFinite(format!(
                "gradients: {elements} elements are not finite, or beyond what the states can hold; the first is element {} \
                 of gradients[{}]",
                first.1, first.0
            )));
        }
        Ok(StepInfo {
            step: info.step,
            lr: info.lr,
            grad_norm: info.grad_norm.unwrap_or(f64::NAN),
            nonfinite: self.nonfinite.len(),
            skipped: i32::from(info.skipped),
            reserved: [0; 9],
        })
    }
}

/// What a handle holds, for this thread alone.
unsafe fn bound<'a>(optimizer: *const Optimizer) -> Result<MutexGuard<'a, Bound>, Error> {
    // SAFETY: C promises that it is a handle that was not freed.
    let optimizer = unsafe { borrow(optimizer, "optimizer") }?;
    match optimizer.0.try_lock() {
        Ok(bound) => Ok(bound),
        // A panic leaves numbers half updated, but nothing that could be misread.
        Err(TryLockError::Poisoned(bound)) => Ok(bound.into_inner()),
        Err(TryLockError::WouldBlock) => {
            Err(Error::Busy("optimizer: another thread is inside a call with it; give each thread its own".to_owned()))
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rv_optimizer_new(rule: *const c_char, groups: usize, optimizer: *mut *mut Optimizer) -> i32 {
    guard(|| {
        check_out(optimizer, "optimizer")?;
        // SAFETY: the same promise.
        let rule = unsafe { rule_named(rule) }?;
        if !(1..=MAX_GROUPS).contains(&groups) {
            let expected = "1 to RV_MAX_GROUPS";
            return Err(Error::OutOfRange { name: "groups".to_owned(), got: groups as f64, expected });
        }
        let options = Options { clip_value: None, clip_norm: None, clip_eps: 0.0, nonfinite: NonFinite::Propagate };
        // What every rule has, and a switch, need not be set: it is 0, which is off.
        let common = |name: &str| COMMON.iter().any(|(common, _)| *common == name);
        let own = rule.hyperparameters.iter().zip(rule.ranges);
        let set: Vec<bool> = own.map(|(name, range)| common(name) || *range == Range::Switch).collect();
        let bound = Bound {
            step: Step::new(rule, options, groups),
            bonds: Vec::new(),
            occupied: Occupied::default(),
            set: vec![set; groups],
            nonfinite: Vec::new(),
            precision: Precision::Full,
            stochastic: false,
        };
        // SAFETY: checked above.
        unsafe { put(optimizer, Box::into_raw(Box::new(Optimizer(Mutex::new(bound))))) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rv_optimizer_free(optimizer: *mut Optimizer) {
    guard_always(|| {
        if !optimizer.is_null() {
            // SAFETY: C promises that it is a handle, made by `Box::into_raw`, that nobody uses any more.
            drop(unsafe { Box::from_raw(optimizer) });
        }
        Ok(())
    });
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rv_optimizer_add(
    optimizer: *mut Optimizer,
    group: usize,
    parameter: *const Tensor,
    states: *const Tensor,
    n_states: usize,
) -> i32 {
    guard(|| {
        // SAFETY: the same promise.
        let mut bound = unsafe { bound(optimizer) }?;
        // SAFETY: the same promise.
        let states = unsafe { slice(states, n_states, "states") }?;
        // SAFETY: the same promise.
        unsafe { bound.add(group, parameter, states) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rv_optimizer_set(optimizer: *mut Optimizer, group: usize, name: *const c_char, value: f64) -> i32 {
    guard(|| {
        // SAFETY: the same promise.
        let mut bound = unsafe { bound(optimizer) }?;
        // SAFETY: the same promise.
        let name = unsafe { text(name, "name") }?;
        bound.check_group(group)?;
        bound.step.set_hyper(group, &name, value)?;
        if let Some(i) = bound.step.rule().hyperparameters.iter().position(|known| *known == name) {
            bound.set[group][i] = true;
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rv_optimizer_get(
    optimizer: *const Optimizer,
    group: usize,
    name: *const c_char,
    value: *mut f64,
) -> i32 {
    guard(|| {
        check_out(value, "value")?;
        // SAFETY: the same promise.
        let bound = unsafe { bound(optimizer) }?;
        // SAFETY: the same promise.
        let name = unsafe { text(name, "name") }?;
        bound.check_group(group)?;
        let number = bound.step.hyper(group, &name)?;
        // SAFETY: checked above.
        unsafe { put(value, number) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rv_optimizer_set_option(optimizer: *mut Optimizer, name: *const c_char, value: f64) -> i32 {
    guard(|| {
        // SAFETY: the same promise.
        let mut bound = unsafe { bound(optimizer) }?;
        // SAFETY: the same promise.
        let name = unsafe { text(name, "name") }?;
        let mut options = bound.step.options();
        let limit = (value != f64::INFINITY).then_some(value);
        match name.as_str() {
            "clip_value" => options.clip_value = limit,
            "clip_norm" => options.clip_norm = Some(value),
            "grad_scale" => return bound.step.set_grad_scale((value != 1.0).then_some(value)),
            "clip_eps" => options.clip_eps = value,
            "states" => return bound.set_precision(value),
            "rounding" => return bound.set_rounding(value),
            "nonfinite" => {
                let policies = [NonFinite::Propagate, NonFinite::Skip, NonFinite::Raise];
                let policy = policies.into_iter().enumerate().find(|(i, _)| *i as f64 == value);
                let expected = "RV_PROPAGATE, RV_SKIP or RV_RAISE";
                options.nonfinite = policy.ok_or(Error::OutOfRange { name, got: value, expected })?.1;
            }
            _ => {
                let known = "\"clip_value\", \"clip_norm\", \"clip_eps\", \"nonfinite\", \"grad_scale\", \"states\" or \
                             \"rounding\"";
                let text = format!("option {name:?}: expected {known}");
                return Err(Error::Name(text));
            }
        }
        bound.step.set_options(options)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rv_optimizer_state_arrays(
    optimizer: *const Optimizer,
    parameter: *const Tensor,
    dtypes: *mut i32,
    lengths: *mut usize,
    n: usize,
    needed: *mut usize,
) -> i32 {
    guard(|| {
        check_out(needed, "needed")?;
        // SAFETY: the same promise.
        let bound = unsafe { bound(optimizer) }?;
        // SAFETY: the same promise.
        let parameter = unsafe { Array::at(parameter, "parameter") }?;
        let arrays = bound.needed(parameter.dtype, parameter.shape)?;
        if n != 0 && n != arrays.len() {
            let (rule, expected) = (bound.step.rule().name, arrays.len());
            return Err(Error::Shape(format!("n: expected 0, or the {expected} that rule {rule:?} needs, got {n}")));
        }
        check_row(dtypes, n, "dtypes")?;
        check_row(lengths, n, "lengths")?;
        if n > 0 {
            let all: Vec<i32> = arrays.iter().map(|(_, dtype, _)| code_of(*dtype)).collect();
            // SAFETY: checked above.
            unsafe { put_all(dtypes, &all) };
            let all: Vec<usize> = arrays.iter().map(|(_, _, shape)| shape.iter().product()).collect();
            // SAFETY: checked above.
            unsafe { put_all(lengths, &all) };
        }
        // SAFETY: checked above.
        unsafe { put(needed, arrays.len()) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rv_optimizer_step(
    optimizer: *mut Optimizer,
    gradients: *const Tensor,
    n: usize,
    info: *mut StepInfo,
) -> i32 {
    guard(|| {
        if !info.is_null() {
            check_out(info, "info")?;
        }
        // SAFETY: the same promise.
        let mut bound = unsafe { bound(optimizer) }?;
        // SAFETY: the same promise.
        let gradients = unsafe { slice(gradients, n, "gradients") }?;
        // SAFETY: the same promise.
        let done = unsafe { bound.run(gradients) }?;
        if !info.is_null() {
            // SAFETY: checked above.
            unsafe { put(info, done) };
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rv_optimizer_nonfinite(
    optimizer: *const Optimizer,
    parameter: usize,
    count: *mut usize,
    first: *mut usize,
) -> i32 {
    guard(|| {
        check_out(count, "count")?;
        check_out(first, "first")?;
        // SAFETY: the same promise.
        let bound = unsafe { bound(optimizer) }?;
        if parameter >= bound.bonds.len() {
            let expected = "one of the parameters that were added";
            return Err(Error::OutOfRange { name: "parameter".to_owned(), got: parameter as f64, expected });
        }
        let found = bound.nonfinite.iter().find(|(tensor, _, _)| *tensor == parameter);
        // SAFETY: checked above.
        unsafe { put(count, found.map_or(0, |found| found.1)) };
        // SAFETY: checked above.
        unsafe { put(first, found.map_or(0, |found| found.2)) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rv_optimizer_get_counters(
    optimizer: *const Optimizer,
    steps: *mut u64,
    updates: *mut u64,
    n: usize,
) -> i32 {
    guard(|| {
        check_out(steps, "steps")?;
        // SAFETY: the same promise.
        let bound = unsafe { bound(optimizer) }?;
        bound.check_count("updates", n)?;
        check_row(updates, n, "updates")?;
        // SAFETY: checked above.
        unsafe { put(steps, bound.step.steps()) };
        // SAFETY: checked above, as many as there are parameters.
        unsafe { put_all(updates, &bound.step.updates().collect::<Vec<_>>()) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rv_optimizer_set_counters(
    optimizer: *mut Optimizer,
    steps: u64,
    updates: *const u64,
    n: usize,
) -> i32 {
    guard(|| {
        // SAFETY: the same promise.
        let mut bound = unsafe { bound(optimizer) }?;
        bound.check_count("updates", n)?;
        // SAFETY: the same promise.
        let updates = unsafe { slice(updates, n, "updates") }?;
        if let Some(most) = updates.iter().chain([&steps]).find(|count| **count > MAX_COUNT) {
            let expected = "a count below 2^63";
            return Err(Error::OutOfRange { name: "steps or updates".to_owned(), got: *most as f64, expected });
        }
        bound.step.set_steps(steps);
        bound.step.set_updates(updates);
        Ok(())
    })
}

/// As `rv_product`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Product {
    base: f64,
    constant: u64,
    rest: f64,
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rv_optimizer_get_products(optimizer: *const Optimizer, products: *mut Product, n: usize) -> i32 {
    guard(|| {
        // SAFETY: the same promise.
        let bound = unsafe { bound(optimizer) }?;
        bound.check_products(n)?;
        check_row(products, n, "products")?;
        let of = |past: Past| Product { base: past.base, constant: past.constant, rest: past.rest };
        // SAFETY: checked above, as many as there are.
        unsafe { put_all(products, &bound.step.products().flatten().map(of).collect::<Vec<_>>()) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rv_optimizer_set_products(optimizer: *mut Optimizer, products: *const Product, n: usize) -> i32 {
    guard(|| {
        // SAFETY: the same promise.
        let mut bound = unsafe { bound(optimizer) }?;
        bound.check_products(n)?;
        // SAFETY: the same promise.
        let products = unsafe { slice(products, n, "products") }?;
        let names = bound.step.rule().products;
        let mut all = Vec::with_capacity(bound.bonds.len());
        for (given, t) in products.chunks(names.len().max(1)).zip(bound.step.updates()) {
            for (product, name) in given.iter().zip(names) {
                bound.check_product(name, product, t)?;
            }
            let past = |product: &Product| Past { base: product.base, constant: product.constant, rest: product.rest };
            all.push(given.iter().map(past).collect());
        }
        bound.step.set_products(&all);
        Ok(())
    })
}

/// Steps that can still be counted further.
const MAX_COUNT: u64 = i64::MAX as u64;

// ---------------------------------------------------------------------------------------------------------------------
// Norms, and passes over lists of tensors

/// Sums of blocks and chunks' entries, for all tensors of a list.
fn check_room_for_sums(arrays: &[Array<'_>]) -> Result<(), Error> {
    let blocks = arrays.iter().map(|array| array.view.len() / 4096 + 1).fold(0, usize::saturating_add);
    check_room(blocks, 64)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rv_global_norm(tensors: *const Tensor, n: usize, norm: *mut f64) -> i32 {
    guard(|| {
        check_out(norm, "norm")?;
        // SAFETY: the same promise.
        let arrays = unsafe { Array::all(tensors, n, "tensors") }?;
        check_room_for_sums(&arrays)?;
        // SAFETY: C promises that the memory is alive and not written during the call.
        let found = unsafe { step::global_norm(&views(arrays)) };
        // SAFETY: checked above.
        unsafe { put(norm, found) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rv_clip_by_global_norm(tensors: *const Tensor, n: usize, max_norm: f64, norm: *mut f64) -> i32 {
    guard(|| {
        if !norm.is_null() {
            check_out(norm, "norm")?;
        }
        check_number("max_norm", max_norm, max_norm > 0.0, "a number > 0, or infinity to measure only")?;
        // SAFETY: the same promise.
        let arrays = unsafe { Array::all(tensors, n, "tensors") }?;
        check_all_apart(&arrays)?;
        check_room_for_sums(&arrays)?;
        // SAFETY: C promises that the memory is alive and this call's alone; none overlaps another, as checked.
        let found = unsafe { step::clip_by_global_norm(&views(arrays), max_norm) };
        if !norm.is_null() {
            // SAFETY: checked above.
            unsafe { put(norm, found) };
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rv_scale(tensors: *const Tensor, n: usize, factor: f64) -> i32 {
    guard(|| {
        // SAFETY: the same promise.
        let arrays = unsafe { Array::all(tensors, n, "tensors") }?;
        // Finite in float32 is finite in float64, too.
        let narrow = arrays.iter().any(|array| array.dtype.compute() == Dtype::F32);
        let finite = if narrow { (factor as f32).is_finite() } else { factor.is_finite() };
        check_number("factor", factor, finite, "a finite number, also in what the tensors are computed in")?;
        check_all_apart(&arrays)?;
        check_room_for_sums(&arrays)?;
        // SAFETY: C promises that the memory is alive and this call's alone; none overlaps another, as checked.
        unsafe { step::scale(&views(arrays), factor) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rv_count_nonfinite(tensors: *const Tensor, n: usize, count: *mut usize) -> i32 {
    guard(|| {
        check_out(count, "count")?;
        // SAFETY: the same promise.
        let arrays = unsafe { Array::all(tensors, n, "tensors") }?;
        check_room_for_sums(&arrays)?;
        // SAFETY: C promises that the memory is alive and not written during the call.
        let found = unsafe { step::count_nonfinite(&views(arrays)) };
        // SAFETY: checked above.
        unsafe { put(count, found) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rv_convert(from: *const Tensor, to: *const Tensor) -> i32 {
    guard(|| {
        // SAFETY: the same promise.
        let from = unsafe { Array::at(from, "from") }?;
        // SAFETY: the same promise.
        let to = unsafe { Array::at(to, "to") }?;
        to.check_like(to.dtype, from.shape, "from")?;
        to.check_writable()?;
        to.check_apart(&from)?;
        // SAFETY: of the same shape, apart, and `to` may be written, as checked; the memory is C's promise.
        unsafe { element::convert(&from.view, &to.view) };
        Ok(())
    })
}

// ---------------------------------------------------------------------------------------------------------------------
// Batch and layer norm

/// Contiguous, float32 or float64: x, and with [`like`] all that is as large as x.
unsafe fn input<'a>(pointer: *const Tensor, name: &'static str) -> Result<Array<'a>, Error> {
    // SAFETY: the same promise.
    let array = unsafe { Array::at(pointer, name) }?;
    if array.dtype.compute() != array.dtype {
        let got = array.dtype.name();
        return Err(Error::Dtype(format!(
            "{name}: expected float32 or float64, got {got}; convert it with rv_convert"
        )));
    }
    check_contiguous(&array)?;
    Ok(array)
}

fn check_contiguous(array: &Array<'_>) -> Result<(), Error> {
    if array.view.is_contiguous() {
        return Ok(());
    }
    Err(Error::Memory(format!("{}: expected a C-contiguous array; copy it with rv_convert", array.name)))
}

/// A contiguous array of x's dtype and shape.
unsafe fn like<'a>(pointer: *const Tensor, name: &'static str, x: &Array<'_>) -> Result<Array<'a>, Error> {
    // SAFETY: the same promise.
    let array = unsafe { Array::at(pointer, name) }?;
    array.check_like(x.dtype, x.shape, "x")?;
    check_contiguous(&array)?;
    Ok(array)
}

/// Whether one number may serve all places.
#[derive(Clone, Copy, PartialEq)]
enum Shared {
    Never,
    Allowed,
}

/// A weight or the like.
unsafe fn small<'a>(
    pointer: *const Tensor,
    name: &'static str,
    x: &Array<'_>,
    shape: &[usize],
    shared: Shared,
) -> Result<Array<'a>, Error> {
    // SAFETY: the same promise.
    let array = unsafe { Array::at(pointer, name) }?;
    let one = shared == Shared::Allowed && array.view.len() == 1;
    array.check_like(x.dtype, if one { array.shape } else { shape }, "x")?;
    Ok(array)
}

/// As [`small`], or nothing.
unsafe fn vector<'a>(
    pointer: *const Tensor,
    name: &'static str,
    x: &Array<'_>,
    shape: &[usize],
    shared: Shared,
) -> Result<Option<Array<'a>>, Error> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: the same promise.
    unsafe { small(pointer, name, x, shape, shared) }.map(Some)
}

/// A row of float64 that C wants written, or does not.
fn statistics<'a>(pointer: *mut f64, n: usize, name: &'static str) -> Result<Option<Array<'a>>, Error> {
    if pointer.is_null() {
        return Ok(None);
    }
    check_row(pointer, n, name)?;
    // SAFETY: aligned and inside the address space, as just checked; the memory is C's promise.
    let view = unsafe { View::contiguous(pointer.cast(), Dtype::F64, n) };
    Ok(Some(Array { name: Name::Argument(name), dtype: Dtype::F64, shape: &[], view, overlaps_itself: false }))
}

/// Refuses to write arrays that share memory with one another or with what is read.
fn check_written(written: &[&Array<'_>], read: &[&Array<'_>]) -> Result<(), Error> {
    for (i, array) in written.iter().enumerate() {
        array.check_writable()?;
        read.iter().chain(&written[..i]).try_for_each(|other| array.check_apart(other))?;
    }
    Ok(())
}

fn check_number(name: &str, got: f64, good: bool, expected: &'static str) -> Result<(), Error> {
    if good { Ok(()) } else { Err(Error::OutOfRange { name: name.to_owned(), got, expected }) }
}

fn check_eps(eps: f64) -> Result<(), Error> {
    check_number("eps", eps, eps >= 0.0 && eps.is_finite(), "a finite number >= 0")
}

fn per_channel(x: &Array<'_>, axis: usize) -> Result<usize, Error> {
    x.shape.get(axis).copied().ok_or_else(|| {
        Error::Shape(format!("axis: expected one of the {} axes of x, shape {:?}, got {axis}", x.shape.len(), x.shape))
    })
}

fn rows<'a>(x: &Array<'a>, axes: usize) -> Result<(usize, &'a [usize]), Error> {
    let n = x.shape.len();
    if axes == 0 || axes > n {
        return Err(Error::Shape(format!("axes: expected 1 to {n}, the axes of x, shape {:?}, got {axes}", x.shape)));
    }
    let (outer, units) = x.shape.split_at(n - axes);
    Ok((outer.iter().product(), units))
}

/// Coefficients, sums and statistics of so many channels, units or rows.
fn check_room_for_norm(numbers: [usize; 2], elements: usize) -> Result<(), Error> {
    check_room(numbers[0].saturating_add(numbers[1]).saturating_add(elements / 512), 512)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rv_batch_norm(
    x: *const Tensor,
    axis: usize,
    weight: *const Tensor,
    bias: *const Tensor,
    running_mean: *const Tensor,
    running_var: *const Tensor,
    training: i32,
    momentum: f64,
    eps: f64,
    out: *const Tensor,
    mean: *mut f64,
    inv_std: *mut f64,
) -> i32 {
    let (vectors, saved) = ([weight, bias, running_mean, running_var], [mean, inv_std]);
    // SAFETY: the same promise.
    unsafe { batch_norm(x, axis, vectors, training, false, [momentum, eps], out, saved) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rv_batch_norm_relu(
    x: *const Tensor,
    axis: usize,
    weight: *const Tensor,
    bias: *const Tensor,
    running_mean: *const Tensor,
    running_var: *const Tensor,
    training: i32,
    momentum: f64,
    eps: f64,
    out: *const Tensor,
    mean: *mut f64,
    inv_std: *mut f64,
) -> i32 {
    let (vectors, saved) = ([weight, bias, running_mean, running_var], [mean, inv_std]);
    // SAFETY: the same promise.
    unsafe { batch_norm(x, axis, vectors, training, true, [momentum, eps], out, saved) }
}

/// # Safety
/// The promise of the header.
unsafe fn batch_norm(
    x: *const Tensor,
    axis: usize,
    vectors: [*const Tensor; 4],
    training: i32,
    relu: bool,
    [momentum, eps]: [f64; 2],
    out: *const Tensor,
    [mean, inv_std]: [*mut f64; 2],
) -> i32 {
    guard(|| {
        check_eps(eps)?;
        check_number("momentum", momentum, (0.0..=1.0).contains(&momentum), "a number in [0, 1]")?;
        // SAFETY: the same promise.
        let x = unsafe { input(x, "x") }?;
        let channels = per_channel(&x, axis)?;
        let names = ["weight", "bias", "running_mean", "running_var"];
        let mut given = [const { None }; 4];
        for (slot, (name, pointer)) in given.iter_mut().zip(names.into_iter().zip(vectors)) {
            // SAFETY: the same promise.
            *slot = unsafe { vector(pointer, name, &x, &[channels], Shared::Never) }?;
        }
        let training = training != 0;
        let [weight, bias, running @ ..] = &given;
        if running[0].is_some() != running[1].is_some() || !training && running[0].is_none() {
            return Err(null("running_mean, running_var"));
        }
        // SAFETY: the same promise.
        let out = unsafe { like(out, "out", &x) }?;
        let (mean_row, inv_row) = (statistics(mean, channels, "mean")?, statistics(inv_std, channels, "inv_std")?);
        let layout = Layout::new(x.shape, axis);
        let count = layout.count();
        if training && count < 2 && channels > 0 {
            return Err(Error::Shape(format!("x: expected at least 2 elements per channel in training, got {count}")));
        }
        let (mut read, mut written) = (vec![&x], vec![&out]);
        read.extend([weight, bias].into_iter().flatten());
        if training { &mut written } else { &mut read }.extend(running.iter().flatten());
        written.extend(mean_row.iter().chain(&inv_row));
        check_written(&written, &read)?;
        check_room_for_norm([channels, 0], layout.elements())?;
        let vectors = given.each_ref().map(|array| array.as_ref().map(|array| &array.view));
        // SAFETY: what is written may be and shares nothing, as checked; the memory is C's promise.
        let saved = unsafe { norms::batch_norm(layout, &x.view, &out.view, vectors, training, relu, [momentum, eps]) };
        // SAFETY: a number for each channel, as checked.
        unsafe { put_all(mean, &saved.mean) };
        // SAFETY: as above.
        unsafe { put_all(inv_std, &saved.inv_std) };
        Ok(())
    })
}

/// The arrays of a backward, checked.
struct Backward<'a> {
    dy: Array<'a>,
    x: Array<'a>,
    weight: Option<Array<'a>>,
    saved: Saved,
    written: [Array<'a>; 3],
}

impl<'a> Backward<'a> {
    unsafe fn check(
        [dy, x]: [Array<'a>; 2],
        weight: *const Tensor,
        saved: [*const f64; 2],
        n: usize,
        shape: &[usize],
        shared: Shared,
        [dx, dweight, dbias]: [*const Tensor; 3],
    ) -> Result<Self, Error> {
        check_room_for_norm([shape.iter().product(), n], x.view.len())?;
        // SAFETY: the same promise.
        let weight = unsafe { vector(weight, "weight", &x, shape, shared) }?;
        // SAFETY: the same promise.
        let mean = unsafe { slice(saved[0], n, "mean") }?.to_vec();
        // SAFETY: the same promise.
        let inv_std = unsafe { slice(saved[1], n, "inv_std") }?.to_vec();
        // SAFETY: the same promise.
        let dx = unsafe { like(dx, "dx", &x) }?;
        // SAFETY: the same promise.
        let dweight = unsafe { small(dweight, "dweight", &x, shape, shared) }?;
        // SAFETY: the same promise.
        let dbias = unsafe { small(dbias, "dbias", &x, shape, shared) }?;
        let written = [dx, dweight, dbias];
        check_written(&written.each_ref(), &[&dy, &x])?;
        Ok(Self { dy, x, weight, saved: Saved { mean, inv_std }, written })
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rv_batch_norm_backward(
    dy: *const Tensor,
    x: *const Tensor,
    axis: usize,
    weight: *const Tensor,
    mean: *const f64,
    inv_std: *const f64,
    training: i32,
    dx: *const Tensor,
    dweight: *const Tensor,
    dbias: *const Tensor,
) -> i32 {
    let (affine, saved, written) = ([weight, ptr::null()], [mean, inv_std], [dx, dweight, dbias]);
    // SAFETY: the same promise.
    unsafe { batch_norm_backward([dy, x], axis, affine, saved, training, false, written) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rv_batch_norm_relu_backward(
    dy: *const Tensor,
    x: *const Tensor,
    axis: usize,
    weight: *const Tensor,
    bias: *const Tensor,
    mean: *const f64,
    inv_std: *const f64,
    training: i32,
    dx: *const Tensor,
    dweight: *const Tensor,
    dbias: *const Tensor,
) -> i32 {
    let (affine, saved, written) = ([weight, bias], [mean, inv_std], [dx, dweight, dbias]);
    // SAFETY: the same promise.
    unsafe { batch_norm_backward([dy, x], axis, affine, saved, training, true, written) }
}

/// # Safety
/// The promise of the header.
unsafe fn batch_norm_backward(
    [dy, x]: [*const Tensor; 2],
    axis: usize,
    [weight, bias]: [*const Tensor; 2],
    saved: [*const f64; 2],
    training: i32,
    relu: bool,
    written: [*const Tensor; 3],
) -> i32 {
    guard(|| {
        // SAFETY: the same promise.
        let x = unsafe { input(x, "x") }?;
        // SAFETY: the same promise.
        let dy = unsafe { like(dy, "dy", &x) }?;
        let channels = per_channel(&x, axis)?;
        // SAFETY: the same promise.
        let bias = unsafe { vector(bias, "bias", &x, &[channels], Shared::Never) }?;
        // SAFETY: the same promise.
        let arrays = unsafe { Backward::check([dy, x], weight, saved, channels, &[channels], Shared::Never, written) }?;
        let Backward { dy, x, weight, saved, written } = arrays;
        let layout = Layout::new(x.shape, axis);
        let affine = [&weight, &bias].map(|array| array.as_ref().map(|array| &array.view));
        let written = written.each_ref().map(|array| &array.view);
        let inputs = [&dy.view, &x.view];
        // SAFETY: what is written may be and shares nothing, as checked; the memory is C's promise.
        unsafe { norms::batch_norm_backward(layout, inputs, affine, &saved, training != 0, relu, written) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rv_layer_norm(
    x: *const Tensor,
    axes: usize,
    weight: *const Tensor,
    bias: *const Tensor,
    eps: f64,
    out: *const Tensor,
    mean: *mut f64,
    inv_std: *mut f64,
) -> i32 {
    guard(|| {
        check_eps(eps)?;
        // SAFETY: the same promise.
        let x = unsafe { input(x, "x") }?;
        let (rows, shape) = rows(&x, axes)?;
        let units = shape.iter().product();
        check_room_for_norm([rows, units], x.view.len())?;
        // SAFETY: the same promise.
        let weight = unsafe { vector(weight, "weight", &x, shape, Shared::Allowed) }?;
        // SAFETY: the same promise.
        let bias = unsafe { vector(bias, "bias", &x, shape, Shared::Allowed) }?;
        // SAFETY: the same promise.
        let out = unsafe { like(out, "out", &x) }?;
        let (mean_row, inv_row) = (statistics(mean, rows, "mean")?, statistics(inv_std, rows, "inv_std")?);
        let read: Vec<_> = [Some(&x), weight.as_ref(), bias.as_ref()].into_iter().flatten().collect();
        let written: Vec<_> = [Some(&out), mean_row.as_ref(), inv_row.as_ref()].into_iter().flatten().collect();
        check_written(&written, &read)?;
        let affine = [&weight, &bias].map(|array| array.as_ref().map(|array| &array.view));
        // SAFETY: what is written may be and shares nothing, as checked; the memory is C's promise.
        let saved = unsafe { norms::layer_norm([rows, units], &x.view, &out.view, affine, eps) };
        // SAFETY: a number for each row, as checked.
        unsafe { put_all(mean, &saved.mean) };
        // SAFETY: as above.
        unsafe { put_all(inv_std, &saved.inv_std) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rv_layer_norm_backward(
    dy: *const Tensor,
    x: *const Tensor,
    axes: usize,
    weight: *const Tensor,
    mean: *const f64,
    inv_std: *const f64,
    dx: *const Tensor,
    dweight: *const Tensor,
    dbias: *const Tensor,
) -> i32 {
    guard(|| {
        // SAFETY: the same promise.
        let x = unsafe { input(x, "x") }?;
        // SAFETY: the same promise.
        let dy = unsafe { like(dy, "dy", &x) }?;
        let (rows, shape) = rows(&x, axes)?;
        let (saved, written) = ([mean, inv_std], [dx, dweight, dbias]);
        // SAFETY: the same promise.
        let arrays = unsafe { Backward::check([dy, x], weight, saved, rows, shape, Shared::Allowed, written) }?;
        let Backward { dy, x, weight, saved, written } = arrays;
        let weight = weight.as_ref().map(|array| &array.view);
        let written = written.each_ref().map(|array| &array.view);
        let inputs = [&dy.view, &x.view];
        // SAFETY: what is written may be and shares nothing, as checked; the memory is C's promise.
        unsafe { norms::layer_norm_backward([rows, shape.iter().product()], inputs, weight, saved, written) };
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> String {
        // SAFETY: a string of this thread, until its next call.
        unsafe { CStr::from_ptr(rv_last_error()) }.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_panic_becomes_a_status_and_a_message() {
        assert_eq!(guard(|| panic!("in {}", "words")), 12);
        assert_eq!(message(), "a bug in ravine, please report it: in words");
        assert_eq!(guard(|| std::panic::panic_any(7)), 12);
        assert_eq!(guard(|| Err(Error::Busy("b".to_owned()))), 10);
        assert_eq!(message(), "b");
        // It is another thread's business.
        std::thread::spawn(|| assert_eq!(message(), "")).join().unwrap();
    }

    #[test]
    fn a_panic_on_a_worker_becomes_one_too_and_leaves_a_pool_that_works() {
        pool::set_num_threads(4);
        let broken = |i: usize| assert_ne!(i, 77, "broken");
        assert_eq!(
            guard(|| {
                pool::run(100, &broken);
                Ok(())
            }),
            12
        );
        assert_eq!(
            guard(|| {
                pool::run(100, &|i| assert!(i < 100));
                Ok(())
            }),
            0
        );
    }

    #[test]
    fn a_handle_that_panicked_or_is_in_use_is_no_deadlock() {
        let mut handle = ptr::null_mut();
        // SAFETY: a rule's name, and a place for the handle.
        assert_eq!(unsafe { rv_optimizer_new(c"sgd".as_ptr(), 1, &raw mut handle) }, 0);
        // SAFETY: made above.
        let inside = unsafe { bound(handle) }.unwrap();
        // SAFETY: made above.
        assert_eq!(unsafe { rv_optimizer_step(handle, ptr::null(), 0, ptr::null_mut()) }, 10);
        drop(inside);
        let panicking = || {
            // SAFETY: made above.
            let _inside = unsafe { bound(handle) }?;
            panic!("with the lock");
        };
        assert_eq!(guard(panicking), 12);
        // SAFETY: made above.
        assert_eq!(unsafe { rv_optimizer_set(handle, 0, c"lr".as_ptr(), 1.0) }, 0);
        // SAFETY: made above.
        assert_eq!(unsafe { rv_optimizer_step(handle, ptr::null(), 0, ptr::null_mut()) }, 0);
        // SAFETY: made above, and not used again.
        unsafe { rv_optimizer_free(handle) };
    }
}
