//! Sets of tokens as masks of bits, one per token: bit `id % 32` of word `id / 32`. A short mask allows no later tokens.

use std::sync::Arc;

/// The tokens of `allowed_token_ids`.
#[derive(Clone, Debug)]
pub struct AllowedTokens(Arc<[u32]>);

impl AllowedTokens {
    /// The set of `ids`.
    pub fn new(ids: &[u32]) -> Self {
        let words = ids.iter().max().map_or(0, |max| *max as usize / 32 + 1);
        let mut mask = vec![0; words];
        ids.iter().for_each(|id| mask[*id as usize / 32] |= 1 << (id % 32));
        Self(mask.into())
    }

    /// A bit per token.
    pub fn mask(&self) -> &[u32] {
        &self.0
    }
}

/// The tokens of both masks; None if there is none.
pub fn intersection(one: &[u32], other: &[u32]) -> Option<Vec<u32>> {
    let both: Vec<u32> = one.iter().zip(other).map(|(a, b)| a & b).collect();
    both.iter().any(|word| *word != 0).then_some(both)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_have_one_bit_per_token() {
        assert_eq!(AllowedTokens::new(&[0, 33, 33, 64]).mask(), [1, 2, 1]);
        assert_eq!(intersection(&[3, 4], &[1]), Some(vec![1]));
        assert_eq!(intersection(&[2, 4], &[1, 0, 7]), None);
    }
}
