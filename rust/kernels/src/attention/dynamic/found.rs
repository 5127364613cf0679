//! What a look found, and the choice by it.

use std::ops::Range;

use super::super::BLOCK_SIZE;
use super::super::audit::Claim;
use super::super::key_codes::Seen;
use crate::simd::{self, LANES, Simd};

/// Buckets of shares of the mass: four an octave, down to 2^-56.
const BUCKETS: usize = 4 * 56;
/// Masses above this say that scores are too far above their reference to be told apart.
const HEAVIEST: f32 = 1e30;
/// By how much the reference is raised then.
const RAISE: f32 = 80.0;
/// Masses below this may be more than there is: scores far below their reference count as if they were a little nearer.
const LIGHTEST: f32 = 1e-30;

/// Masses of blocks for each row, relative to e^reference. Blocks are counted from the first of the task's span; a row
/// has `width` of them, whole vectors, and those that it does not look at have none.
#[derive(Default)]
pub(super) struct Found {
    /// About what each block has, `[rows][width]`.
    masses: Vec<f32>,
    /// The logarithm of the factor by which that may be off; once weighed, the most that each block can have.
    most: Vec<f32>,
    width: usize,
    /// The score that a row's masses are relative to: the largest one in the query's own block, plus what it was raised by.
    pub(super) references: Vec<f32>,
    raised: Vec<f32>,
    /// Mass of the query's own block.
    own: Vec<f32>,
    /// Sums over all blocks of a row: about, and at least.
    about: Vec<f32>,
    least: Vec<f32>,
    /// Whether the position at hand reads a block.
    pub(super) read: Vec<bool>,
    /// 1 for each block that the position at hand leaves out, else 0: `[width]`.
    pub(super) unread: Vec<f32>,
    /// The blocks of the sequence that the position at hand reads, in order.
    pub(super) chosen: Vec<usize>,
    /// What the query heads of the position at hand say of themselves.
    pub(super) claims: Vec<Claim>,
}

impl Found {
    #[inline(always)]
    pub(super) fn start(&mut self, rows: usize, blocks: usize) {
        self.width = blocks.next_multiple_of(LANES);
        for per_block in [&mut self.masses, &mut self.most] {
            per_block.clear();
            per_block.resize(rows * self.width, 0.0);
        }
        let [references, raised] = [&mut self.references, &mut self.raised];
        for per_row in [references, raised, &mut self.own, &mut self.about, &mut self.least] {
            per_row.clear();
            per_row.resize(rows, 0.0);
        }
        self.read.clear();
        self.read.resize(blocks, false);
        self.unread.clear();
        self.unread.resize(self.width, 0.0);
    }

    /// Takes in exact scores of some rows: in block `place`, or in their own, from which their references come.
    #[inline(always)]
    pub(super) fn know<S: Simd>(
        &mut self,
        s: S,
        row: usize,
        scores: &[[f32; BLOCK_SIZE]],
        place: Option<usize>,
    ) {
        for (row, scores) in (row..).zip(scores) {
            let scores = scores.as_chunks::<LANES>().0;
            if place.is_none() {
                let largest = s.reduce_max(s.max(s.load(&scores[0]), s.load(&scores[1])));
                self.references[row] = largest + self.raised[row];
            }
            let reference = s.splat(self.references[row]);
            let mut mass = s.zero();
            for scores in scores {
                mass = s.add(mass, simd::exp(s, s.sub(s.load(scores), reference)));
            }
            let mass = s.reduce_add(mass);
            match place {
                None => self.own[row] = mass,
                Some(place) => self.masses[row * self.width + place] = mass,
            }
        }
    }

    /// Keeps what a look at some blocks tells of some rows.
    #[inline(always)]
    pub(super) fn store(&mut self, blocks: Range<usize>, rows: Range<usize>, seen: &Seen) {
        for ((row, masses), doubts) in rows.zip(&seen.masses).zip(&seen.doubts) {
            let places = row * self.width + blocks.start..row * self.width + blocks.end;
            self.masses[places.clone()].copy_from_slice(&masses[..blocks.len()]);
            self.most[places].copy_from_slice(&doubts[..blocks.len()]);
        }
    }

    /// Raises the references of rows that have too heavy blocks, and says whether there are any.
    #[inline(always)]
    pub(super) fn raise<S: Simd>(&mut self, s: S) -> bool {
        let mut any = false;
        for (row, masses) in self.masses.chunks_exact(self.width).enumerate() {
            let mut heaviest = s.zero();
            for masses in masses.as_chunks::<LANES>().0 {
                heaviest = s.max(s.load(masses), heaviest);
            }
            if s.reduce_max(heaviest) > HEAVIEST {
                self.raised[row] += RAISE;
                any = true;
            }
        }
        any
    }

    /// Sums up what a row's blocks have. False: something is not a number, or too large.
    #[inline(always)]
    pub(super) fn weigh<S: Simd>(&mut self, s: S, row: usize) -> bool {
        let part = row * self.width..(row + 1) * self.width;
        let masses = self.masses[part.clone()].as_chunks::<LANES>().0;
        let most = self.most[part].as_chunks_mut::<LANES>().0;
        let [mut about, mut least, mut all] = [s.zero(); 3];
        for (mass, most) in masses.iter().zip(most) {
            let (mass, doubt) = (s.load(mass), s.load(most));
            let above = s.mul(mass, simd::exp(s, doubt));
            about = s.add(about, mass);
            let sure = s.select_lt(mass, s.splat(LIGHTEST), s.zero(), mass);
            least = s.fma(sure, simd::exp(s, s.sub(s.zero(), doubt)), least);
            all = s.add(all, above);
            s.store(above, most);
        }
        self.about[row] = s.reduce_add(about) + self.own[row];
        self.least[row] = s.reduce_add(least) + self.own[row];
        // A NaN is neither below nor above anything. A million blocks that are not too heavy are below the second limit, one that is so after
        // all looks, and may be more, is above.
        self.least[row] > 0.0 && self.about[row] < 1e6 * HEAVIEST && s.reduce_add(all) < f32::INFINITY
    }

    /// How many of some blocks are read.
    #[inline(always)]
    pub(super) fn count(&self, blocks: Range<usize>) -> usize {
        self.read[blocks].iter().filter(|read| **read).count()
    }

    /// The mass that a row leaves out: at most, and about.
    #[inline(always)]
    pub(super) fn left_out<S: Simd>(&self, s: S, row: usize) -> (f64, f64) {
        let part = row * self.width..(row + 1) * self.width;
        let masses = self.masses[part.clone()].as_chunks::<LANES>().0;
        let (mut most, mut about) = (s.zero(), s.zero());
        let unread = self.unread.as_chunks::<LANES>().0;
        for ((mass, above), unread) in masses.iter().zip(self.most[part].as_chunks::<LANES>().0).zip(unread) {
            most = s.fma(s.load(above), s.load(unread), most);
            about = s.fma(s.load(mass), s.load(unread), about);
        }
        (f64::from(s.reduce_add(most)), f64::from(s.reduce_add(about)))
    }

    /// Marks for reading all but the lightest `blocks` of a row, which together have at most `bound` of its mass.
    #[inline(always)]
    pub(super) fn mark(&mut self, row: usize, blocks: Range<usize>, bound: f32) {
        let most = &self.most[row * self.width..][blocks.clone()];
        mark(most, self.least[row], &mut self.read[blocks], bound);
    }

    /// As `mark`, by what blocks have about.
    #[inline(always)]
    pub(super) fn mark_by_estimate(&mut self, row: usize, blocks: Range<usize>, bound: f32) {
        let masses = &self.masses[row * self.width..][blocks.clone()];
        mark(masses, self.about[row], &mut self.read[blocks], bound);
    }

    /// Marks the heaviest of those of `blocks` that are not read yet, `count` of them: by their largest share of the mass of any row, and
    /// of equal ones the first.
    #[inline(always)]
    pub(super) fn mark_heaviest(&mut self, rows: Range<usize>, blocks: Range<usize>, count: usize) {
        let share = |block: usize| {
            let of = |row: usize| self.masses[row * self.width + block] / self.about[row];
            rows.clone().map(of).fold(0.0, f32::max)
        };
        let mut optional: Vec<(f32, usize)> =
            blocks.filter(|&block| !self.read[block]).map(|block| (share(block), block)).collect();
        optional.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        for &(_, block) in optional.iter().take(count) {
            self.read[block] = true;
        }
    }
}

/// Marks for reading all but the lightest blocks, whose `shares` together are at most `bound` of `mass`.
#[inline(always)]
fn mark(shares: &[f32], mass: f32, read: &mut [bool], bound: f32) {
    // The buckets of equal exponent and leading bits of the mantissa, the whole mass in the first.
    let (top, bits) = (mass.to_bits() >> 21, |share: f32| share.to_bits() >> 21);
    // Four sums a bucket: neighbours are often alike, and one sum would wait for the other.
    let mut masses = [[0.0_f32; BUCKETS]; 4];
    for (place, (&share, &read)) in shares.iter().zip(&*read).enumerate() {
        let bucket = (top.saturating_sub(bits(share)) as usize).min(BUCKETS - 1);
        masses[place % 4][bucket] += if read { 0.0 } else { share };
    }
    let in_bucket =
        |bucket: usize| (masses[0][bucket] + masses[1][bucket]) + (masses[2][bucket] + masses[3][bucket]);
    let (mut cut, mut left_out) = (BUCKETS, 0.0);
    while cut > 0 && left_out + in_bucket(cut - 1) <= bound * mass {
        cut -= 1;
        left_out += in_bucket(cut);
    }
    // The last bucket holds all that are lighter, too: with it everything is read.
    let from = if cut == BUCKETS { 0 } else { (top + 1).saturating_sub(cut as u32) };
    for (read, &share) in read.iter_mut().zip(shares) {
        *read |= bits(share) >= from;
    }
}
