//! What a request must generate, from its own tokens alone: the next token is a hash of all tokens before it.

use octavo_scheduler::{EndReason, NewRequest, NextToken, Output};

use super::random::mix;

/// Token ids are `0..VOCABULARY`: few, hence prompts and answers coincide often and hit the prefix cache.
pub const VOCABULARY: u32 = 3;

/// The token after `context`, for this sample of this request. Stops about once in `stop_one_in` times (0: never).
pub fn next_token(request: u64, sample: u32, context: &[u32], stop_one_in: u64) -> NextToken {
    let seed = mix(request, u64::from(sample));
    let hash = context.iter().fold(seed, |hash, &token| mix(hash, u64::from(token) + 1));
    let stop = stop_one_in > 0 && (hash >> 32).is_multiple_of(stop_one_in);
    NextToken { token: (hash % u64::from(VOCABULARY)) as u32, stop }
}

/// The whole answer of one sample and why it ends.
pub fn answer(
    request: &NewRequest,
    sample: u32,
    max_model_len: u32,
    stop_one_in: u64,
) -> (Vec<u32>, EndReason) {
    if request.output == Output::Hidden {
        return (Vec::new(), EndReason::Stop);
    }
    let mut tokens = request.prompt.clone();
    loop {
        let next = next_token(request.id, sample, &tokens, stop_one_in);
        tokens.push(next.token);
        let generated = tokens.len() - request.prompt.len();
        let reason = if next.stop {
            EndReason::Stop
        } else if generated == request.max_tokens as usize || tokens.len() == max_model_len as usize {
            EndReason::Length
        } else {
            continue;
        };
        return (tokens.split_off(request.prompt.len()), reason);
    }
}
