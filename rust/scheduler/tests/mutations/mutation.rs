//! The switch of mutations, a module of the mutated copy of `octavo_cache`.

use std::cell::Cell;

thread_local! {
    static ON: Cell<Option<usize>> = const { Cell::new(None) };
    /// Allocations until the one that fails; negative: it has failed.
    static UNTIL_FAILURE: Cell<i64> = const { Cell::new(i64::MAX) };
}

/// Switches this mutation on in the calling thread, and all others off.
pub fn switch(index: Option<usize>) {
    ON.set(index);
}

/// Whether this mutation is on in the calling thread.
#[inline]
pub fn is_on(index: usize) -> bool {
    ON.get() == Some(index)
}

/// Makes allocation number `k` of the calling thread fail, counted from 0 and from now; `None`: none.
pub fn fail_allocation(k: Option<u32>) {
    UNTIL_FAILURE.set(k.map_or(i64::MAX, i64::from));
}

/// Whether that allocation has come.
pub fn allocation_failed() -> bool {
    UNTIL_FAILURE.get() < 0
}

/// Whether that allocation has come since the last call. No other one fails then.
pub fn take_allocation_failure() -> bool {
    let failed = allocation_failed();
    if failed {
        fail_allocation(None);
    }
    failed
}

/// Whether the allocation that is made now fails.
pub fn allocation_fails() -> bool {
    let left = UNTIL_FAILURE.get();
    UNTIL_FAILURE.set(left.saturating_sub(1));
    left == 0
}

/// Every mutation: name, and what it does.
pub const ALL: &[(&str, &str)] = &[
    // MUTATIONS
];
