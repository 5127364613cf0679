//! Why a request is not accepted.

use thiserror::Error;

use crate::RequestId;

/// Why a request is not accepted, with the numbers and the remedy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Rejection {
    /// Too many requests wait already.
    #[error("{waiting} requests are waiting and max_queue is {max_queue}; retry later or raise max_queue")]
    QueueFull {
        /// Requests waiting.
        waiting: u32,
        /// The limit.
        max_queue: u32,
    },
    /// The prompt leaves no room for a generated token.
    #[error(
        "the prompt has {prompt_len} tokens and max_model_len is {max_model_len}, prompt and answer together; \
         shorten the prompt to {} tokens or fewer, or raise max_model_len", max_model_len.saturating_sub(1)
    )]
    TooLong {
        /// Tokens of the prompt.
        prompt_len: u32,
        /// The limit.
        max_model_len: u32,
    },
    /// The prompt of a request for hidden states is longer than a sequence may be.
    #[error(
        "the prompt has {prompt_len} tokens and max_model_len is {max_model_len}; shorten the prompt, or raise \
         max_model_len"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt_len: u32,
        /// The limit.
        max_model_len: u32,
    },
    /// More samples than may run at once.
    #[error("n is {n} and max_num_seqs is {max_num_seqs}; ask for fewer samples or raise max_num_seqs")]
    TooManySamples {
        /// Samples asked for.
        n: u32,
        /// The limit.
        max_num_seqs: u32,
    },
    /// Even alone the request could outgrow the cache.
    #[error(
        "the request may need {needed_blocks} KV blocks and the cache has {num_blocks}; lower max_tokens or n, \
         shorten the prompt, or give the cache more memory"
    )]
    NeverFits {
        /// Blocks in the worst case.
        needed_blocks: u64,
        /// Blocks there are.
        num_blocks: u32,
    },
    /// Beside the blocks that packs hold the request could outgrow the cache.
    #[error(
        "the request may need {needed_blocks} KV blocks; the cache has {num_blocks}, of which packs hold {pinned_blocks}; \
         unload a pack, lower max_tokens or n, shorten the prompt, or give the cache more memory"
    )]
    NoRoomBesidePacks {
        /// Blocks in the worst case, without those of its own pack.
        needed_blocks: u64,
        /// Blocks there are.
        num_blocks: u32,
        /// Blocks that packs hold.
        pinned_blocks: u32,
    },
    /// The prompt has no tokens.
    #[error("the prompt is empty; give at least one token")]
    EmptyPrompt,
    /// `n` or `max_tokens` is zero.
    #[error("{name} is 0; use 1 or more")]
    ZeroTokens {
        /// Which of them.
        name: &'static str,
    },
    /// A request with this id has not ended yet.
    #[error("request {id} is still running; use another id")]
    DuplicateId {
        /// The id.
        id: RequestId,
    },
    /// The scheduler finishes what it has and accepts nothing new.
    #[error("the engine is shutting down and accepts no new requests; send it to another one")]
    Draining,
}
