//! Planted faults: bugs of the kinds that inference engines have shipped, switched on one at a time to show that the
//! simulation finds each of them.
//!
//! Without the cargo feature `planted-faults` (the default) [`planted`] is a constant `false` and the faults are not in
//! the program. With it, a thread that calls [`plant`] has that fault until it plants another or none.

/// Declares the faults, so that the list and the names cannot go out of step.
macro_rules! faults {
    ($($(#[doc = $text:literal])+ $name:ident,)+) => {
        /// A fault that can be planted.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Fault { $($(#[doc = $text])+ $name,)+ }

        impl Fault {
            /// Every fault with what it does.
            pub const ALL: &[(Fault, &str)] = &[$((Fault::$name, concat!($($text),+)),)+];
        }
    };
}

faults! {
    /// A fork shares blocks without counting its reference: they are freed while it reads them.
    ForkWithoutReference,
    /// Copy on write gives the source back twice: one block is free for two owners.
    DoubleFree,
    /// A partly filled block that another sample reads is written in place.
    MissedCopyOnWrite,
    /// A request is admitted though only a part of it fits beside what runs.
    PartlyReserved,
    /// A release leaves the last block of a table behind.
    LeakedLastBlock,
    /// The cache salt is left out of the prefix key.
    SaltLeftOut,
    /// The adapter is left out of the prefix key.
    AdapterLeftOut,
    /// The attention policy is left out of the prefix key.
    AttentionLeftOut,
    /// A hit trusts the hash and does not compare tokens.
    HashTrustedForTokens,
    /// A hit compares tokens and not the blocks before them.
    PrefixOfHitIgnored,
    /// An evicted block stays in the prefix index with its old hash.
    StaleHashAfterEviction,
    /// A cached block that is used again stays on the eviction list.
    ReusedBlockStillEvictable,
    /// A prefix is evicted from its front, so that what lies behind it can never be found again.
    PrefixEvictedFromFront,
    /// Two equal blocks are kept and only one of them can be found.
    EqualBlocksKept,
    /// Ever new salts pile up: an evicted block keeps its namespace.
    NamespaceLeakedByEviction,
    /// A rejected request keeps its namespace.
    NamespaceLeakedByRejection,
    /// A full block is not sealed.
    SealForgotten,
    /// Copy on write leaves the open block of the source out.
    OpenCopyForgotten,
    /// A plan hands out an open block that it gave back itself.
    OpenBlockReusedInItsStep,
    /// A released block keeps its open block.
    OpenBlockKeptAtRelease,
    /// An open block that is given back is lost.
    OpenBlockLeaked,
    /// The rows of a failed step enter the prefix index.
    FailedStepCommitted,
    /// A prompt that is cached whole leaves no row to compute.
    NothingLeftToCompute,
    /// Blocks of a cancelled sequence are freed while a step writes them.
    FreedWhileInFlight,
    /// A request cancelled during a step leaks its blocks.
    AbortInFlightLeaks,
    /// Abort races with completion: the step's end reports the request again.
    AbortRacesCompletion,
    /// A cancellation is forgotten if a step is in flight.
    CancelLostInFlight,
    /// A request cancelled in the queue stays there.
    CancelledGhostInQueue,
    /// A deadline only counts once the request runs.
    DeadlineIgnoredInQueue,
    /// The timer of an ended request ends the one that took its place.
    StaleDeadline,
    /// A sample that ends with its very first token is never reported.
    LostTerminalEvent,
    /// Ending one sample of many also reports the last one again.
    DoubledTerminalEvent,
    /// One token more than asked for.
    LengthOffByOne,
    /// A stop at the last allowed token is reported as length.
    StopOutrankedByLength,
    /// One failing sequence fails the whole batch.
    FailureSpreads,
    /// A late result of another step is applied to this one.
    StaleStepResult,
    /// Decodes do not count into the step's token budget.
    BudgetOverrun,
    /// A chunk that crosses a block border goes on in the next block of the pool.
    SlotsRunOverBlockBorder,
    /// A chunk that ends behind the prompt samples, though generated tokens are still to be recomputed.
    SampledBeforeRecomputed,
    /// Preemption forgets the tokens generated so far.
    PreemptionLosesTokens,
    /// Preemption picks the oldest, for ever.
    OldestPreempted,
    /// Preemption picks a victim whose blocks others hold too: nothing is gained.
    ZeroGainPreemption,
    /// After a preemption prompt rows are reported a second time.
    PromptRowsReportedTwice,
    /// Who does not fit blocks all behind it.
    HeadOfLineBlocking,
    /// Who does not fit is overtaken without end.
    UnboundedBypass,
    /// Bypasses are bounded when a step begins, and one step overtakes any number of times.
    BypassBoundedTooLate,
    /// Samples that split off are served behind everybody.
    OrderLostAtSplit,
    /// Cancelled waiting requests still count as waiting, until the queue is full for ever.
    QueueCountDrift,
    /// A plan made ahead goes on with a sequence whose placeholder is its last token.
    AheadOfTheEnd,
    /// Plans are made ahead for ever, though somebody gets no block in them.
    AheadForEver,
    /// A plan made ahead takes another sequence's token.
    AheadOfAnother,
    /// A plan is made ahead of a step that splits a sequence into samples.
    AheadOfForks,
    /// A prompt with its last chunk in flight counts as computed when the chunk before is done.
    AheadOfLastChunk,
    /// Blocks of an ended sequence are freed with the first of the two steps that it is in.
    FreedBetweenSteps,
}

#[cfg(not(feature = "planted-faults"))]
mod switch {
    /// Whether this fault is planted: never, in a program without the feature `planted-faults`.
    #[inline(always)]
    pub const fn planted(_: super::Fault) -> bool {
        false
    }

    #[inline(always)]
    pub(crate) const fn allocation_fails() -> bool {
        false
    }

    /// Whether an allocation of this thread was made to fail: never, in a program without the feature.
    #[inline(always)]
    pub const fn allocation_failed() -> bool {
        false
    }
}

#[cfg(feature = "planted-faults")]
mod switch {
    use super::Fault;
    use std::cell::Cell;

    thread_local! {
        static PLANTED: Cell<Option<Fault>> = const { Cell::new(None) };
        /// Allocations until the one that fails; negative: it has failed.
        static UNTIL_FAILURE: Cell<i64> = const { Cell::new(i64::MAX) };
    }

    /// Plants this fault, or none, in the calling thread.
    pub fn plant(fault: Option<Fault>) {
        PLANTED.set(fault);
    }

    /// Whether this fault is planted in the calling thread.
    #[inline]
    pub fn planted(fault: Fault) -> bool {
        PLANTED.get() == Some(fault)
    }

    /// Makes allocation number `k` of the calling thread fail, counted from 0 and from now; `None`: none.
    pub fn fail_allocation(k: Option<u32>) {
        UNTIL_FAILURE.set(k.map_or(i64::MAX, i64::from));
    }

    /// Whether that allocation has come.
    pub fn allocation_failed() -> bool {
        UNTIL_FAILURE.get() < 0
    }

    pub(crate) fn allocation_fails() -> bool {
        let left = UNTIL_FAILURE.get();
        UNTIL_FAILURE.set(left.saturating_sub(1));
        left == 0
    }
}

pub(crate) use switch::allocation_fails;
pub use switch::{allocation_failed, planted};
#[cfg(feature = "planted-faults")]
pub use switch::{fail_allocation, plant};
