//! Reads a request to its end and counts what must come exactly once.

use std::time::{Duration, Instant};

use octavo_engine::{Delta, Engine, EngineStats, FinishReason, RequestStream};

/// All that a request gave.
#[derive(Default)]
pub struct Gathered {
    /// Token ids of each sample.
    pub tokens: Vec<Vec<u32>>,
    /// (token, bits of its logprob) of all candidates, by sample.
    pub logprobs: Vec<Vec<(u32, u32)>>,
    /// Finish reasons, by sample: exactly one each.
    pub reasons: Vec<Vec<FinishReason>>,
    /// Class of the error that ended it.
    pub error: Option<&'static str>,
    /// Prompt tokens found in the prefix cache.
    pub cached: u64,
}

impl Gathered {
    pub fn add(&mut self, delta: &Delta) {
        for news in &delta.outputs {
            let at = news.index as usize;
            let len = self.tokens.len().max(at + 1);
            self.tokens.resize_with(len, Vec::new);
            self.logprobs.resize_with(len, Vec::new);
            self.reasons.resize_with(len, Vec::new);
            self.tokens[at].extend(&news.token_ids);
            let rows = news.logprobs.iter().flatten().flatten();
            self.logprobs[at].extend(rows.map(|l| (l.token_id, l.logprob.to_bits())));
            self.reasons[at].extend(news.finish_reason);
        }
        if delta.finished {
            self.error = delta.error.as_ref().map(|e| e.class_name());
            self.cached = delta.metrics.as_ref().map_or(0, |m| m.cached_prompt_tokens);
        }
    }

    /// Whether some sample ended for this reason.
    pub fn any_ended(&self, reason: FinishReason) -> bool {
        self.reasons.iter().flatten().any(|r| *r == reason)
    }
}

/// Reads `stream` to its last delta.
pub fn gather(stream: &RequestStream, n: usize) -> Gathered {
    let mut out = Gathered::default();
    loop {
        let delta = stream.next(Duration::from_secs(60)).expect("the request hangs");
        out.add(&delta);
        if delta.finished {
            break;
        }
    }
    assert!(stream.next(Duration::ZERO).is_none(), "news after the last delta");
    assert_eq!(out.reasons.len(), n, "samples that were heard of");
    assert!(out.reasons.iter().all(|r| r.len() == 1), "one end each: {:?}", out.reasons);
    out
}

/// Waits until nothing runs or waits, then every block must be free or an unreferenced cache entry.
pub fn settled(engine: &Engine) -> EngineStats {
    let begin = Instant::now();
    loop {
        let s = engine.stats();
        if s.requests_running + s.requests_waiting + s.blocks_live == 0 && engine.queued() == 0 {
            assert_eq!(s.blocks_free + s.blocks_cached, s.blocks_total, "blocks lost: {s:?}");
            return s;
        }
        assert!(begin.elapsed() < Duration::from_secs(120), "still held: {s:?}, {} queued", engine.queued());
        std::thread::sleep(Duration::from_millis(1));
    }
}
