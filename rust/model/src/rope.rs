//! Rotary position embedding (Su et al., RoFormer, arXiv 2104.09864) and its long-context scalings.
//!
//! Angles are computed as transformers does: inverse frequencies and their products with positions in f32. No scaling
//! depends on the length of a sequence. Where a formula has a length, it is that of the longest context that the engine
//! serves. A token's angles never depend on later tokens.

use serde::Serialize;

/// How the base frequencies are changed for long contexts.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum RopeScaling {
    /// Plain rope.
    Default,
    /// Positions divided by `factor`.
    Linear {
        /// The divisor.
        factor: f32,
    },
    /// Dynamic NTK: beyond the trained context the base grows with the context, here with the longest one served.
    Dynamic {
        /// How much further the context may reach.
        factor: f32,
        /// Context of the training, in tokens. Up to it rope is plain.
        original_max_position: f32,
    },
    /// Llama 3: low frequencies divided by `factor`, high ones kept, a smooth ramp between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f32,
        /// Wavelengths above original / low are low frequencies.
        low_freq_factor: f32,
        /// Wavelengths below original / high are high frequencies.
        high_freq_factor: f32,
        /// Context of the pre-training, in tokens.
        original_max_position: f32,
    },
    /// YaRN (Peng et al., arXiv 2309.00071): frequencies that turn rarely are divided, a ramp over channels.
    Yarn {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Turns over the original context above which a channel keeps its frequency.
        beta_fast: f64,
        /// Turns below which a channel's frequency is divided in full.
        beta_slow: f64,
        /// Context of the pre-training, in tokens.
        original_max_position: f64,
        /// Whether the ends of the ramp are rounded to whole channels.
        truncate: bool,
        /// Factor on cosines and sines.
        attention_factor: f32,
    },
    /// LongRoPE (Ding et al., arXiv 2402.13753): a divisor for each channel, one set up to the trained context, another
    /// beyond it. The longest context served decides which one.
    Longrope {
        /// Divisors `[rotary_dim / 2]` for contexts up to `original_max_position`.
        short_factor: Vec<f32>,
        /// Divisors for longer contexts.
        long_factor: Vec<f32>,
        /// How much further the context reaches than that of the pre-training.
        factor: f32,
        /// Context of the pre-training, in tokens.
        original_max_position: f32,
        /// Factor on cosines and sines.
        attention_factor: f32,
    },
}

impl RopeScaling {
    /// Factor times the context of the pre-training, where both are known, in tokens.
    pub(crate) fn stretched(&self) -> Option<f32> {
        match *self {
            Self::Llama3 { factor, original_max_position, .. }
            | Self::Longrope { factor, original_max_position, .. } => Some(factor * original_max_position),
            Self::Yarn { factor, original_max_position, .. } => Some((factor * original_max_position) as f32),
            Self::Default | Self::Linear { .. } | Self::Dynamic { .. } => None,
        }
    }
}

/// One rotary embedding.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RopeSpec {
    /// Base of the geometric series of wavelengths.
    pub theta: f32,
    /// Rotated channels of a head (even); the rest pass through.
    pub rotary_dim: usize,
    /// Channels 2 i and 2 i + 1 form a pair; else i and i + rotary_dim / 2.
    pub interleaved: bool,
    /// Change for long contexts.
    pub scaling: RopeScaling,
}

impl RopeSpec {
    /// Inverse frequencies `[rotary_dim / 2]` where no sequence is longer than `context` tokens.
    pub fn inverse_frequencies(&self, context: usize) -> Vec<f32> {
        let dim = self.rotary_dim as f32;
        let plain = |theta: f32| (0..self.rotary_dim / 2).map(move |i| theta.powf((2 * i) as f32 / dim));
        let base = plain(self.theta);
        match &self.scaling {
            RopeScaling::Default => base.map(|f| 1.0 / f).collect(),
            RopeScaling::Linear { factor } => base.map(|f| 1.0 / f / factor).collect(),
            RopeScaling::Dynamic { factor, original_max_position } => {
                let stretch = factor * (context as f32).max(*original_max_position) / original_max_position;
                plain(self.theta * (stretch - (factor - 1.0)).powf(dim / (dim - 2.0)))
                    .map(|f| 1.0 / f)
                    .collect()
            }
            RopeScaling::Llama3 { .. } => base.map(|f| self.llama3(1.0 / f)).collect(),
            RopeScaling::Yarn { factor, .. } => {
                let (low, high) = self.yarn_ramp();
                let kept = |i: usize| 1.0 - ((i as f32 - low) / (high - low)).clamp(0.0, 1.0);
                let divided = |f: f32| 1.0 / (*factor as f32 * f);
                base.enumerate().map(|(i, f)| divided(f) * (1.0 - kept(i)) + 1.0 / f * kept(i)).collect()
            }
            RopeScaling::Longrope { short_factor, long_factor, original_max_position, .. } => {
                let long = context as f32 > *original_max_position;
                base.zip(if long { long_factor } else { short_factor })
                    .map(|(f, by)| 1.0 / (by * f))
                    .collect()
            }
        }
    }

    /// Factor on cosines and sines.
    pub fn amplitude(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } | RopeScaling::Longrope { attention_factor, .. } => {
                attention_factor
            }
            _ => 1.0,
        }
    }

    fn llama3(&self, inv: f32) -> f32 {
        let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } =
            self.scaling
        else {
            return inv;
        };
        let wavelength = 2.0 * std::f32::consts::PI / inv;
        if wavelength > original_max_position / low_freq_factor {
            inv / factor
        } else if wavelength < original_max_position / high_freq_factor {
            inv
        } else {
            let smooth =
                (original_max_position / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
            (1.0 - smooth) * inv / factor + smooth * inv
        }
    }

    /// The channels between which YaRN's ramp lies.
    fn yarn_ramp(&self) -> (f32, f32) {
        let RopeScaling::Yarn { beta_fast, beta_slow, original_max_position, truncate, .. } = self.scaling
        else {
            return (0.0, 1.0);
        };
        let dim = self.rotary_dim as f64;
        let channel = |turns: f64| {
            dim * (original_max_position / (turns * 2.0 * std::f64::consts::PI)).ln()
                / (2.0 * f64::from(self.theta).ln())
        };
        let (mut low, mut high) = (channel(beta_fast), channel(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        // A ramp of no width would divide by zero.
        (low as f32, if low == high { high as f32 + 0.001 } else { high as f32 })
    }
}

/// Cosines and sines `[positions, rotary_dim / 2]` for the positions of one step.
#[derive(Default)]
pub struct RopeAngles {
    /// Cosines, row-major.
    pub cos: Vec<f32>,
    /// Sines, row-major.
    pub sin: Vec<f32>,
}

impl RopeAngles {
    /// Fills the table for `positions`, reusing its memory. Cosines and sines are multiplied by `amplitude`.
    pub fn fill(&mut self, inverse_frequencies: &[f32], amplitude: f32, positions: &[u32]) {
        self.cos.clear();
        self.sin.clear();
        for &p in positions {
            for &inv in inverse_frequencies {
                let (sin, cos) = (f64::from(p as f32 * inv)).sin_cos();
                self.cos.push(cos as f32 * amplitude);
                self.sin.push(sin as f32 * amplitude);
            }
        }
    }
}
