//! A fork-join thread pool for steps of a few microseconds.
//!
//! The caller publishes a job, works on it itself, and closes it. Workers join an open job by a compare-and-swap on
//! one state word. Hence the caller waits only for workers that have begun, never for a sleeping one or one without a
//! core. Idle workers spin for [`SPIN`], then sleep.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long an idle worker spins before it sleeps: longer than the gap between two ops of a step.
const SPIN: Duration = Duration::from_micros(80);
/// Spins between two reads of the clock.
const SPINS_PER_CHECK: u32 = 64;
/// Spins after which a waiting caller lets other threads have its core.
const SPINS_BEFORE_YIELD: u32 = 20_000;

/// State word: job number in the high bits, then the open bit, then the count of workers inside the job.
const OPEN: u64 = 1 << 16;
const ACTIVE: u64 = OPEN - 1;
const EPOCH_SHIFT: u32 = 17;

thread_local! {
    /// True while this thread runs tasks: a nested `run` then stays on this thread.
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
}

/// The number of threads to use by default: one for each core that this process may run on.
pub fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)
}

/// A pool of `threads - 1` workers beside the caller.
#[derive(Debug)]
pub struct ThreadPool {
    shared: Arc<PoolState>,
    /// Held during a run: one job at a time.
    turn: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
}

struct PoolJob {
    tasks: usize,
    /// Tasks taken at once.
    chunk: usize,
    f: *const (dyn Fn(usize) + Sync),
}

struct PoolState {
    state: AtomicU64,
    /// Written only while the job is closed and no worker is inside; read only from inside an open job.
    job: UnsafeCell<Option<PoolJob>>,
    next: AtomicUsize,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    shutdown: AtomicBool,
}

// SAFETY: `job` is the only part that is not Send and Sync by itself. The thread that holds `turn` writes it while
// `state` is closed with no worker inside. Workers read it after a successful join of an open job. The release store
// that opens and the acquire compare-and-swap that joins order the two. The function it points to is Sync.
unsafe impl Sync for PoolState {}
// SAFETY: as above; the pointer inside is only followed during a run, while its target is borrowed by the caller.
unsafe impl Send for PoolState {}

impl std::fmt::Debug for PoolState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PoolState").field("state", &self.state).finish_non_exhaustive()
    }
}

impl ThreadPool {
    /// A pool in which `threads` threads work on a job, the caller being one of them. At least one.
    ///
    /// When the system refuses to start a thread, the pool works with fewer threads.
    pub fn new(threads: usize) -> ThreadPool {
        let shared = Arc::new(PoolState {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            panic: Mutex::new(None),
            shutdown: AtomicBool::new(false),
        });
        let workers = (1..threads.min(ACTIVE as usize))
            .map_while(|index| {
                let shared = Arc::clone(&shared);
                let builder = std::thread::Builder::new().name(format!("octavo-{index}"));
                builder.spawn(move || shared.work_until_shutdown()).ok()
            })
            .collect();
        ThreadPool { shared, turn: Mutex::new(()), workers }
    }

    /// The number of threads, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `f` once for each index below `tasks`, in parallel, and returns when all calls have ended.
    ///
    /// From inside a task it runs on the calling thread. When a task panics, tasks not yet begun are dropped, and the
    /// panic goes on in the caller after the running ones have ended; the pool stays usable.
    pub fn run(&self, tasks: usize, f: &(dyn Fn(usize) + Sync)) {
        if tasks <= 1 || self.workers.is_empty() || IN_TASK.get() {
            for task in 0..tasks {
                f(task);
            }
            return;
        }
        let turn = lock(&self.turn);
        let shared = &*self.shared;
        let chunk = (tasks / (4 * self.threads())).max(1);
        // SAFETY: only the lifetime changes. The pointer is followed by threads inside the job alone, and this
        // function does not return before the job is closed and empty.
        let f: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(f) };
        // SAFETY: the last job is closed and empty (the end of the last run saw to it), and `turn` is held.
        unsafe { *shared.job.get() = Some(PoolJob { tasks, chunk, f }) };
        shared.next.store(0, Ordering::Relaxed);
        let epoch = (shared.state.load(Ordering::Relaxed) >> EPOCH_SHIFT).wrapping_add(1);
        // SeqCst pairs with the sleeper's count-then-check: either it sees this job, or it is seen here as asleep.
        shared.state.store(epoch << EPOCH_SHIFT | OPEN, Ordering::SeqCst);
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            let _sleep = lock(&shared.sleep);
            shared.wake.notify_all();
        }
        IN_TASK.set(true);
        shared.take_tasks();
        IN_TASK.set(false);
        shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0;
        while shared.state.load(Ordering::Acquire) & ACTIVE != 0 {
            spins += 1;
            if spins < SPINS_BEFORE_YIELD { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        let panic = lock(&shared.panic).take();
        drop(turn);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.shutdown.store(true, Ordering::SeqCst);
        {
            let _sleep = lock(&self.shared.sleep);
            self.shared.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            // A worker catches the panics of tasks, so it has none of its own to report.
            let _ = worker.join();
        }
    }
}

impl PoolState {
    fn work_until_shutdown(&self) {
        IN_TASK.set(true);
        let mut seen = 0;
        while let Some(mut state) = self.wait_for_job(seen) {
            loop {
                seen = state >> EPOCH_SHIFT;
                if state & OPEN == 0 {
                    break;
                }
                match self.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Acquire) {
                    Ok(_) => {
                        self.take_tasks();
                        self.state.fetch_sub(1, Ordering::Release);
                        break;
                    }
                    Err(now) => state = now,
                }
            }
        }
    }

    /// Waits for a job other than number `seen`. Returns the state word; None at shutdown.
    fn wait_for_job(&self, seen: u64) -> Option<u64> {
        let poll = || {
            let state = self.state.load(Ordering::SeqCst);
            (state >> EPOCH_SHIFT != seen).then_some(state)
        };
        let stop = || self.shutdown.load(Ordering::SeqCst);
        let start = Instant::now();
        while start.elapsed() < SPIN {
            for _ in 0..SPINS_PER_CHECK {
                if let Some(state) = poll() {
                    return Some(state);
                }
                std::hint::spin_loop();
            }
            if stop() {
                return None;
            }
        }
        let mut sleep = lock(&self.sleep);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let found = loop {
            if stop() {
                break None;
            }
            if let Some(state) = poll() {
                break Some(state);
            }
            sleep = self.wake.wait(sleep).unwrap_or_else(PoisonError::into_inner);
        };
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        found
    }

    /// Runs chunks of the open job until none is left. Only the caller and workers that joined may be here.
    fn take_tasks(&self) {
        // SAFETY: the job is open and this thread counts as inside it (or is the caller), so no thread writes the cell.
        let Some(PoolJob { tasks, chunk, f }) = (unsafe { &*self.job.get() }) else { return };
        // SAFETY: the caller's borrow of the function lasts until the job is closed and empty.
        let f = unsafe { &**f };
        loop {
            let start = self.next.fetch_add(*chunk, Ordering::Relaxed);
            if start >= *tasks {
                return;
            }
            let end = (start + chunk).min(*tasks);
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (start..end).for_each(f))) {
                self.next.store(*tasks, Ordering::Relaxed);
                lock(&self.panic).get_or_insert(panic);
            }
        }
    }
}

/// Locks; a poisoned mutex is taken as it is, since nothing here is left half done by a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
