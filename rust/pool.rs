//! Threads: one seam, [`run`]; the only thread code of the crate.
//!
//! Workers are started when they are first needed and then wait for ever: awake for a moment after a job, because a
//! training loop comes back soon, then parked. The caller works too, and a worker that wakes too late finds the gate
//! closed and is not waited for. The pool belongs to a process: a forked child finds another process id, and builds its
//! own (the parent's is leaked there: its threads do not exist in the child).

use crate::error::Error;
use crate::simd::DefaultEnvironment;
use std::cell::{Cell, UnsafeCell};
use std::hint::spin_loop;
use std::num::IntErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, TryLockError};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// More threads than this only wait for memory.
pub const MAX_THREADS: usize = 64;
/// Without being told, no more threads than this.
const DEFAULT_MAX_THREADS: usize = 8;
/// How long a worker stays awake after a job: as long as a wake-up takes, 5 µs at best, 60 to 200 on a virtual machine
/// whose idle processor the host has put to other use (measured; a step of a small network takes less).
const AWAKE: Duration = Duration::from_micros(200);

/// 0 until the first use.
static THREADS: AtomicUsize = AtomicUsize::new(0);

/// How many threads a step may use: [`set_num_threads`], else `RAVINE_NUM_THREADS`, else `OMP_NUM_THREADS`, else the
/// processors, at most 8.
pub fn num_threads() -> usize {
    match THREADS.load(Ordering::Relaxed) {
        0 => set_num_threads(default_threads()),
        n => n,
    }
}

fn default_threads() -> usize {
    let told = asked().ok().flatten().or_else(|| {
        let value = std::env::var("OMP_NUM_THREADS").ok()?;
        asked_of_openmp(&value)
    });
    told.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from).min(DEFAULT_MAX_THREADS))
}

/// What `RAVINE_NUM_THREADS` asks for; nothing if it is not set, or empty.
pub fn asked() -> Result<Option<usize>, Error> {
    let Some(value) = std::env::var_os("RAVINE_NUM_THREADS") else { return Ok(None) };
    asked_by(&value.to_string_lossy())
}

fn asked_by(value: &str) -> Result<Option<usize>, Error> {
    if value.trim().is_empty() {
        return Ok(None);
    }
    let wrong = || Error::Environment(format!("RAVINE_NUM_THREADS: expected a whole number >= 1, got {value:?}"));
    count(value).map(Some).ok_or_else(wrong)
}

/// The outermost level of a list such as "4,2"; what cannot be read is OpenMP's business.
fn asked_of_openmp(value: &str) -> Option<usize> {
    count(value.split(',').next().unwrap_or_default())
}

/// A whole number of at least 1; more than there can be is as many as there can be.
fn count(text: &str) -> Option<usize> {
    match text.trim().parse::<usize>() {
        Ok(n) => (n > 0).then_some(n),
        Err(error) => (*error.kind() == IntErrorKind::PosOverflow).then_some(MAX_THREADS),
    }
}

/// Uses `n` threads from now on, at least 1 and at most [`MAX_THREADS`]; returns how many. No result depends on it.
pub fn set_num_threads(n: usize) -> usize {
    let n = n.clamp(1, MAX_THREADS);
    THREADS.store(n, Ordering::Relaxed);
    n
}

/// Calls `task(i)` once for every i < `tasks`, on up to [`num_threads`] threads, and returns when all are done.
///
/// Each thread has its own run of neighbouring tasks, the same ones every time, so that what it left in its cache is
/// still there; a thread that is done helps the others. Nested and concurrent calls run on the calling thread alone.
///
/// # Panics
/// If a task panics, after all threads have left.
pub fn run(tasks: usize, task: &Task<'_>) {
    let threads = num_threads().min(tasks);
    if threads > 1 && !IN_A_TASK.get() {
        match pool().caller.try_lock() {
            Ok(mut caller) => return pool().run(&mut caller, threads, tasks, task),
            // A panicking task poisons the lock, and leaves nothing half done.
            Err(TryLockError::Poisoned(caller)) => return pool().run(&mut caller.into_inner(), threads, tasks, task),
            Err(TryLockError::WouldBlock) => {}
        }
    }
    run_alone(tasks, task);
}

fn run_alone(tasks: usize, task: &Task<'_>) {
    let _default = DefaultEnvironment::enter();
    (0..tasks).for_each(task);
}

/// Fewer elements than this in all are not worth waking another thread: an `AdamW` step over as many takes 10 µs in
/// cache, and a fork-join 1 µs, or 10 to 30 after a pause (benches/record: kernels, fork-join).
const PARALLEL_FROM: usize = 1 << 15;

/// [`run`] for tasks that hold `elements` array elements in all; on the calling thread alone if these are few.
pub fn share(tasks: usize, elements: usize, task: &Task<'_>) {
    if elements < PARALLEL_FROM { run_alone(tasks, task) } else { run(tasks, task) }
}

thread_local! {
    static IN_A_TASK: Cell<bool> = const { Cell::new(false) };
}

type Task<'a> = dyn Fn(usize) + Sync + 'a;

struct Job {
    task: *const Task<'static>,
    threads: usize,
    next: [AtomicUsize; MAX_THREADS],
    end: [AtomicUsize; MAX_THREADS],
    panicked: AtomicBool,
}

/// Bit 63: open. Bits 32..63: number of the job. Bits 0..32: how many workers are inside.
struct Gate(AtomicU64);

const OPEN: u64 = 1 << 63;
const ONE_JOB: u64 = 1 << 32;
const INSIDE: u64 = ONE_JOB - 1;

struct Pool {
    process: u32,
    caller: Mutex<Caller>,
    gate: Gate,
    job: UnsafeCell<Job>,
    /// The one that the caller of the last job ran on.
    processor: AtomicUsize,
    parked: [AtomicBool; MAX_THREADS],
}

struct Caller {
    workers: Vec<Thread>,
    jobs: u64,
}

// SAFETY: `job` is written by the caller, who holds the lock, while the gate is closed and nobody is inside; workers
// read it only between entering and leaving the gate. Everything else is atomic or locked.
unsafe impl Sync for Pool {}

static POOL: AtomicPtr<Pool> = AtomicPtr::new(ptr::null_mut());

fn pool() -> &'static Pool {
    let current = POOL.load(Ordering::Acquire);
    // SAFETY: null, or a leaked Box, so valid for ever.
    if let Some(pool) = unsafe { current.as_ref() }
        && pool.process == std::process::id()
    {
        return pool;
    }
    let fresh = Box::into_raw(Box::new(Pool::new()));
    match POOL.compare_exchange(current, fresh, Ordering::AcqRel, Ordering::Acquire) {
        // SAFETY: a leaked Box.
        Ok(_) => unsafe { &*fresh },
        Err(other) => {
            // SAFETY: made above, and nobody else has seen it.
            drop(unsafe { Box::from_raw(fresh) });
            // SAFETY: a leaked Box of this process: only this function writes POOL.
            unsafe { &*other }
        }
    }
}

impl Pool {
    fn new() -> Self {
        fn nothing(_: usize) {}
        Self {
            process: std::process::id(),
            caller: Mutex::new(Caller { workers: Vec::new(), jobs: 0 }),
            gate: Gate(AtomicU64::new(0)),
            job: UnsafeCell::new(Job {
                task: &nothing,
                threads: 0,
                next: [const { AtomicUsize::new(0) }; MAX_THREADS],
                end: [const { AtomicUsize::new(0) }; MAX_THREADS],
                panicked: AtomicBool::new(false),
            }),
            processor: AtomicUsize::new(processor::UNKNOWN),
            parked: [const { AtomicBool::new(false) }; MAX_THREADS],
        }
    }

    fn run(&'static self, caller: &mut Caller, threads: usize, tasks: usize, task: &Task<'_>) {
        while caller.workers.len() + 1 < threads {
            let id = caller.workers.len() + 1;
            let worker = std::thread::Builder::new().name(format!("ravine-{id}"));
            match worker.spawn(move || self.work(id)) {
                Ok(handle) => caller.workers.push(handle.thread().clone()),
                Err(_) => break, // no more threads to be had: the caller does their share
            }
        }
        {
            // SAFETY: the lock is held, the gate is closed and nobody is inside, so nobody else looks at the job.
            let job = unsafe { &mut *self.job.get() };
            // SAFETY: only the lifetime changes; `Closing` waits, also in a panic, until no worker can call it.
            job.task = unsafe { std::mem::transmute::<&Task<'_>, *const Task<'static>>(task) };
            job.threads = threads;
            *job.panicked.get_mut() = false;
            for id in 0..threads {
                *job.next[id].get_mut() = id * tasks / threads;
                *job.end[id].get_mut() = (id + 1) * tasks / threads;
            }
        }
        self.processor.store(processor::current(), Ordering::Relaxed);
        caller.jobs = (caller.jobs + 1) % (OPEN / ONE_JOB);
        self.gate.0.store(OPEN | (caller.jobs * ONE_JOB), Ordering::SeqCst);
        for (id, worker) in caller.workers.iter().enumerate().take(threads - 1) {
            if self.parked[id + 1].swap(false, Ordering::SeqCst) {
                worker.unpark();
            }
        }
        let closing = Closing(self);
        // SAFETY: written above; shared references only until the gate is closed.
        let job = unsafe { &*self.job.get() };
        job.share(0);
        drop(closing);
        assert!(!job.panicked.load(Ordering::Relaxed), "a task panicked on a worker thread");
    }

    fn work(&self, id: usize) {
        IN_A_TASK.set(true);
        let mut last = 0;
        loop {
            last = self.wait(id, last);
            self.make_way();
            if self.gate.enter(last) {
                // SAFETY: inside the open gate, so the caller neither writes the job nor returns before we leave.
                let job = unsafe { &*self.job.get() };
                if id < job.threads && catch_unwind(AssertUnwindSafe(|| job.share(id))).is_err() {
                    job.panicked.store(true, Ordering::Relaxed);
                }
                self.gate.0.fetch_sub(1, Ordering::Release);
            }
        }
    }

    /// Leaves the processor to the caller, if this thread was put on the same one.
    fn make_way(&self) {
        let taken = self.processor.load(Ordering::Relaxed);
        if taken == processor::current() && taken != processor::UNKNOWN {
            processor::leave(taken);
        }
    }

    /// Waits for a job other than `last`; returns its number.
    fn wait(&self, id: usize, last: u64) -> u64 {
        let new_job = || {
            let gate = self.gate.0.load(Ordering::SeqCst);
            let job = (gate & !OPEN) / ONE_JOB;
            (gate & OPEN != 0 && job != last).then_some(job)
        };
        loop {
            // Also after it was woken: a worker that is always woken too late for short jobs, and parks at once, misses all
            // of them (measured on a virtual machine: steps of 30 µs took as long on two threads as on one).
            let start = Instant::now();
            loop {
                for _ in 0..64 {
                    if let Some(job) = new_job() {
                        return job;
                    }
                    spin_loop();
                }
                if start.elapsed() > AWAKE {
                    break;
                }
                self.make_way();
                // Where the threads are more than the processors, the caller may wait for one that has none.
                std::thread::yield_now();
            }
            self.parked[id].store(true, Ordering::SeqCst);
            // Looked at after the flag is up: a job from before it is seen here, one from after it unparks us.
            if let Some(job) = new_job() {
                self.parked[id].store(false, Ordering::SeqCst);
                return job;
            }
            std::thread::park();
        }
    }
}

impl Gate {
    /// Goes in if job number `job` is still open.
    fn enter(&self, job: u64) -> bool {
        self.0
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, |gate| {
                (gate & OPEN != 0 && (gate & !OPEN) / ONE_JOB == job).then_some(gate + 1)
            })
            .is_ok()
    }
}

/// Closes the gate and waits until nobody is inside.
struct Closing(&'static Pool);

impl Drop for Closing {
    fn drop(&mut self) {
        let gate = &self.0.gate.0;
        gate.fetch_and(!OPEN, Ordering::SeqCst);
        let mut spins = 0u32;
        while gate.load(Ordering::Acquire) & INSIDE != 0 {
            spins += 1;
            // The processors may be fewer than the threads: then the one we wait for needs ours.
            if spins > 500 { std::thread::yield_now() } else { spin_loop() }
        }
    }
}

impl Job {
    fn share(&self, id: usize) {
        let _default = DefaultEnvironment::enter();
        // SAFETY: the caller of `run` keeps the closure alive until the gate is closed and empty.
        let task = unsafe { &*self.task };
        let outside = IN_A_TASK.replace(true);
        let _outside = Restore(outside);
        for offset in 0..self.threads {
            let part = (id + offset) % self.threads;
            let end = self.end[part].load(Ordering::Relaxed);
            loop {
                let i = self.next[part].fetch_add(1, Ordering::Relaxed);
                if i >= end {
                    break;
                }
                task(i);
            }
        }
    }
}

struct Restore(bool);

impl Drop for Restore {
    fn drop(&mut self) {
        IN_A_TASK.set(self.0);
    }
}

/// Where threads run.
///
/// When another library's workers spin on the other processors (OpenMP's do, for milliseconds), the scheduler wakes ours
/// on the caller's, and may leave it there: the two would take turns.
mod processor {
    /// Where the system does not tell.
    pub(super) const UNKNOWN: usize = usize::MAX;

    #[cfg(target_os = "linux")]
    pub(super) fn current() -> usize {
        rustix::thread::sched_getcpu()
    }

    /// Moves this thread to another processor than `taken`; without one, lets others run here.
    #[cfg(target_os = "linux")]
    #[cold]
    pub(super) fn leave(taken: usize) {
        use rustix::thread::{sched_getaffinity, sched_setaffinity};
        let Ok(allowed) = sched_getaffinity(None) else { return std::thread::yield_now() };
        let mut others = allowed;
        others.unset(taken);
        if others.count() == 0 || sched_setaffinity(None, &others).is_err() {
            return std::thread::yield_now();
        }
        // Only the move was wanted: from now on it may run wherever it might before. Failure would change nothing.
        let _ = sched_setaffinity(None, &allowed);
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn current() -> usize {
        UNKNOWN
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn leave(_taken: usize) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each_once(tasks: usize) {
        let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        run(tasks, &|i| {
            counts[i].fetch_add(1, Ordering::Relaxed);
        });
        assert!(counts.iter().all(|n| n.load(Ordering::Relaxed) == 1), "{tasks} tasks");
    }

    #[test]
    fn environment_variables_say_how_many_threads() {
        for (value, expected) in [("3", 3), (" 12 ", 12), ("99999999999999999999999", MAX_THREADS)] {
            assert_eq!(asked_by(value), Ok(Some(expected)));
        }
        assert_eq!(asked_by(" "), Ok(None));
        for value in ["abc", "0", "-1", "2.0", "4,2"] {
            let text = format!("RAVINE_NUM_THREADS: expected a whole number >= 1, got {value:?}");
            assert_eq!(asked_by(value), Err(Error::Environment(text)));
        }
        let lists = ["4", "4,2", " 4 , 2,1", "", "0", "-3", "abc", ",4", "2.5"].map(asked_of_openmp);
        assert_eq!(lists, [Some(4), Some(4), Some(4), None, None, None, None, None, None]);
    }

    #[test]
    fn every_task_runs_once_with_any_number_of_threads() {
        for threads in [1, 2, 3, 8] {
            set_num_threads(threads);
            for tasks in [0, 1, 2, 3, 7, 64, 1000] {
                each_once(tasks);
            }
        }
    }

    #[test]
    fn parked_workers_wake_up() {
        set_num_threads(4);
        for _ in 0..20 {
            each_once(100);
            std::thread::sleep(AWAKE * 3);
        }
    }

    #[test]
    fn nested_and_concurrent_calls_finish() {
        set_num_threads(4);
        run(8, &|_| each_once(10));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..200).for_each(|_| each_once(50)));
            }
        });
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_the_pool_goes_on() {
        set_num_threads(4);
        let result = catch_unwind(|| run(100, &|i| assert!(i != 57, "task 57")));
        assert!(result.is_err());
        each_once(100);
    }
}
