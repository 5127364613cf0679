//! The thread pool: every task once, panics, nesting, sharing, sleep.

#![allow(clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use octavo_kernels::{Isa, IsaError, Kernels, ThreadPool};

/// Runs `tasks` tasks and fails unless each ran exactly once.
fn run_once_each(pool: &ThreadPool, tasks: usize) {
    let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
    pool.run(tasks, &|task| {
        counts[task].fetch_add(1, Ordering::Relaxed);
    });
    for (task, count) in counts.iter().enumerate() {
        assert_eq!(count.load(Ordering::Relaxed), 1, "task {task} of {tasks}, {} threads", pool.threads());
    }
}

#[test]
fn every_task_runs_once() {
    for threads in 0..6 {
        let pool = ThreadPool::new(threads);
        assert_eq!(pool.threads(), threads.max(1));
        for tasks in [0, 1, 2, 3, 7, 64, 1000] {
            run_once_each(&pool, tasks);
        }
    }
}

#[test]
fn many_short_runs() {
    let pool = ThreadPool::new(4);
    for round in 0..5000 {
        run_once_each(&pool, 2 + round % 9);
        if round % 500 == 0 {
            // Long enough for the workers to fall asleep.
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
    let pool = ThreadPool::new(3);
    for round in 0..50 {
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.run(20, &|task| assert!(task != round % 20, "task {task} fails"));
        }));
        let payload = result.expect_err("the panic was swallowed");
        let message = payload.downcast_ref::<String>().expect("the payload is the task's");
        assert_eq!(*message, format!("task {} fails", round % 20));
        run_once_each(&pool, 50);
    }
}

#[test]
fn nested_runs_stay_on_their_thread() {
    let pool = ThreadPool::new(3);
    let count = AtomicUsize::new(0);
    pool.run(10, &|_| {
        let here = std::thread::current().id();
        pool.run(10, &|_| {
            assert_eq!(std::thread::current().id(), here);
            count.fetch_add(1, Ordering::Relaxed);
        });
    });
    assert_eq!(count.load(Ordering::Relaxed), 100);
}

#[test]
fn several_callers_share_a_pool() {
    let pool = ThreadPool::new(3);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..300).for_each(|_| run_once_each(&pool, 12)));
        }
    });
}

#[test]
fn work_is_shared() {
    let pool = ThreadPool::new(2);
    let caller = std::thread::current().id();
    let elsewhere = AtomicUsize::new(0);
    let begin = Instant::now();
    pool.run(8, &|_| {
        if std::thread::current().id() != caller {
            elsewhere.fetch_add(1, Ordering::Relaxed);
        }
        // The caller has work until the worker takes a part of it.
        while elsewhere.load(Ordering::Relaxed) == 0 && begin.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    assert!(elsewhere.load(Ordering::Relaxed) > 0, "the worker did nothing in a minute of work");
}

#[test]
fn pools_end_at_once() {
    for _ in 0..100 {
        let pool = ThreadPool::new(3);
        run_once_each(&pool, 3);
    }
}

#[test]
fn a_level_that_is_missing_is_refused() {
    for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Amx] {
        match Kernels::new(1, Some(isa)) {
            Ok(kernels) => assert_eq!(kernels.isa(), isa),
            Err(error) => {
                assert!(!isa.is_available());
                assert_eq!(error, IsaError::Unavailable { isa, best: Isa::detect() });
            }
        }
    }
    assert!(Kernels::new(0, None).unwrap().threads() >= 1);
}
