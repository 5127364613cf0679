//! The keyed 128-bit hash chain of the prefix index.
//!
//! Two 64-bit lanes, each a folded multiply of the state with the next words (4 tokens a round). The key makes bucket
//! positions unpredictable to clients; correctness never rests on the hash, since a hit also compares tokens and
//! parent.

/// Odd constants from the fractional parts of sqrt(2), sqrt(3), sqrt(5), sqrt(7).
const K: [u64; 4] =
    [0x6a09_e667_f3bc_c909, 0xbb67_ae85_84ca_a73b, 0x3c6e_f372_fe94_f82b, 0xa54f_f53a_5f1d_36f1];

#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ (product >> 64) as u64
}

#[inline]
fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// Hashes blocks under one key; `mask` keeps the low bits only: tests force collisions with it.
#[derive(Debug, Clone)]
pub(crate) struct ChainHash {
    key: [u64; 2],
    mask: u128,
}

impl ChainHash {
    pub(crate) fn new(seed: u64, bits: u32) -> Self {
        let key = [fold(seed ^ K[0], K[1]) ^ K[2], fold(seed.rotate_left(32) ^ K[2], K[3]) ^ K[0]];
        let mask = if bits >= 128 { u128::MAX } else { (1 << bits) - 1 };
        Self { key, mask }
    }

    /// The state in front of the first block of a namespace.
    pub(crate) fn root(&self, namespace: u32) -> u128 {
        self.block(u128::from(namespace), &[])
    }

    /// The hash of a block with these tokens behind a prefix with hash `parent`.
    pub(crate) fn block(&self, parent: u128, tokens: &[u32]) -> u128 {
        let mut a = parent as u64 ^ self.key[0];
        let mut b = (parent >> 64) as u64 ^ self.key[1];
        let chunks = tokens.chunks_exact(4);
        let rest = chunks.remainder();
        for c in chunks {
            let (low, high) = (pair(c[0], c[1]), pair(c[2], c[3]));
            a = fold(a ^ low, high ^ K[0]).wrapping_add(high);
            b = fold(b ^ high, low ^ K[1]).wrapping_add(low);
        }
        for &token in rest {
            a = fold(a ^ u64::from(token), K[2]);
            b = fold(b ^ u64::from(token), K[3]);
        }
        let length = tokens.len() as u64;
        let low = fold(a ^ length, b ^ K[2]);
        let high = fold(b ^ K[0], a.rotate_left(29) ^ K[3]);
        (u128::from(low) | u128::from(high) << 64) & self.mask
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn depends_on_key_parent_tokens_and_order() {
        let h = ChainHash::new(1, 128);
        let base = h.block(h.root(0), &[1, 2, 3, 4, 5]);
        assert_eq!(base, h.block(h.root(0), &[1, 2, 3, 4, 5]));
        let others = [
            h.block(h.root(1), &[1, 2, 3, 4, 5]),
            h.block(h.root(0), &[2, 1, 3, 4, 5]),
            h.block(h.root(0), &[3, 4, 1, 2, 5]),
            h.block(h.root(0), &[1, 2, 3, 4, 6]),
            h.block(h.root(0), &[1, 2, 3, 4]),
            ChainHash::new(2, 128).block(h.root(0), &[1, 2, 3, 4, 5]),
        ];
        assert!(others.iter().all(|&o| o != base));
    }

    #[test]
    fn no_collision_among_small_blocks_in_either_half() {
        let h = ChainHash::new(7, 128);
        let (mut low, mut high) = (BTreeSet::new(), BTreeSet::new());
        for x in 0..64 {
            for y in 0..64 {
                for z in 0..4 {
                    let hash = h.block(0, &[x, y, 0, z]);
                    assert!(low.insert(hash as u64), "low half of {x} {y} {z}");
                    assert!(high.insert((hash >> 64) as u64), "high half of {x} {y} {z}");
                }
            }
        }
    }

    #[test]
    fn mask_limits_the_values() {
        let h = ChainHash::new(3, 2);
        assert!((0..100).all(|t| h.block(0, &[t]) < 4));
        assert_eq!(ChainHash::new(3, 0).block(9, &[1]), 0);
    }
}
