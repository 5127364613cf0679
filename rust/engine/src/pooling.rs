//! Embeddings: the hidden states of a prompt, pooled to one vector.

use serde::Deserialize;

use crate::EngineError;

/// Which hidden states make the embedding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// Their mean. It needs those of every token, so such a prompt is computed whole: the prefix cache holds keys and
    /// values, and no hidden states. What it computes serves later requests' hits all the same.
    #[default]
    Mean,
    /// That of the last token. Prefix hits are taken.
    Last,
}

/// Parameters of `Engine::embed`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PoolingParams {
    /// Which hidden states make the embedding.
    pub pooling: Pooling,
    /// Scale it to length 1.
    #[serde(default = "yes")]
    pub normalize: bool,
    /// Keep its first values only (before it is scaled).
    pub dimensions: Option<usize>,
    /// Lower runs first.
    pub priority: i32,
    /// Seconds from submission after which the request fails.
    pub timeout: Option<f64>,
    /// Prefix cache entries are shared only between requests of equal salt.
    pub cache_salt: Option<String>,
    /// The adapter's name, or its name and generation.
    pub lora: Option<String>,
}

fn yes() -> bool {
    true
}

impl PoolingParams {
    /// Checks them for a model whose hidden states have `width` values.
    ///
    /// # Errors
    /// `InvalidRequest` names the parameter, its value and what is allowed.
    pub fn check(&self, width: usize) -> Result<(), EngineError> {
        if let Some(found) = self.dimensions.filter(|d| *d == 0 || *d > width) {
            return Err(EngineError::InvalidRequest(format!(
                "dimensions is {found}: an integer from 1 to {width}, the size of this model's embeddings, is expected"
            )));
        }
        Ok(())
    }
}

/// Pools the hidden states of one prompt.
///
/// Sums are f64 and go token by token: bit-identical for every chunking and every batch.
#[derive(Debug)]
pub(crate) struct Pooler {
    params: PoolingParams,
    prompt_len: usize,
    sum: Vec<f64>,
    /// Tokens taken.
    taken: usize,
}

impl Pooler {
    pub fn new(params: PoolingParams, prompt_len: usize) -> Self {
        Self { params, prompt_len, sum: Vec::new(), taken: 0 }
    }

    /// Whether the hidden states of all tokens are wanted.
    pub fn needs_all(&self) -> bool {
        self.params.pooling == Pooling::Mean
    }

    /// Takes the hidden state of the token at `position`.
    ///
    /// # Errors
    /// `Execution` if it holds what is not a number.
    pub fn take(&mut self, position: u32, row: &[f32]) -> Result<(), EngineError> {
        if !row.iter().all(|x| x.is_finite()) {
            return Err(EngineError::Execution(
                "the model produced hidden states that are not numbers for this request. Its weights may be damaged, or \
                 a value overflowed: try dtype=\"float32\" and quantization=None"
                    .into(),
            ));
        }
        let wanted = if self.needs_all() { self.taken } else { self.prompt_len - 1 };
        if position as usize != wanted {
            return Ok(());
        }
        self.sum.resize(row.len(), 0.0);
        self.sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
        self.taken += 1;
        Ok(())
    }

    /// The embedding, once all that it is made of has come.
    pub fn embedding(&self) -> Option<Vec<f32>> {
        let needed = if self.needs_all() { self.prompt_len } else { 1 };
        if self.taken != needed {
            return None;
        }
        let kept = &self.sum[..self.params.dimensions.unwrap_or(self.sum.len()).min(self.sum.len())];
        let length = kept.iter().map(|x| x * x).sum::<f64>().sqrt();
        // All zeros have no direction: they stay as they are.
        let divisor = match self.params.normalize {
            true if length > 0.0 => length,
            true => 1.0,
            false => needed as f64,
        };
        Some(kept.iter().map(|x| (x / divisor) as f32).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pooled(params: PoolingParams, rows: &[[f32; 3]]) -> Option<Vec<f32>> {
        let mut pooler = Pooler::new(params, 2);
        for (i, row) in rows.iter().enumerate() {
            pooler.take(i as u32, row).expect("finite");
        }
        pooler.embedding()
    }

    const ROWS: [[f32; 3]; 2] = [[1.0, 2.0, -4.0], [5.0, 4.0, 4.0]];

    #[test]
    fn mean_last_length_and_dimensions() {
        let mean = PoolingParams::default();
        let last = PoolingParams { pooling: Pooling::Last, ..mean.clone() };
        assert_eq!(pooled(mean.clone(), &ROWS), Some(vec![3.0, 3.0, 0.0]));
        assert_eq!(pooled(last.clone(), &ROWS), Some(vec![5.0, 4.0, 4.0]));
        assert_eq!(pooled(PoolingParams { dimensions: Some(2), ..last }, &ROWS), Some(vec![5.0, 4.0]));
        let unit = pooled(PoolingParams { normalize: true, ..mean.clone() }, &ROWS).expect("complete");
        assert!((unit[0] - 0.5f32.sqrt()).abs() < 1e-6 && unit[2] == 0.0);
        assert_eq!(pooled(PoolingParams { normalize: true, ..mean }, &[[0.0; 3]; 2]), Some(vec![0.0; 3]));
    }

    #[test]
    fn nothing_comes_of_a_part_and_a_row_counts_once() {
        let mean = PoolingParams::default();
        assert_eq!(pooled(mean.clone(), &ROWS[..1]), None);
        let mut pooler = Pooler::new(mean, 2);
        for position in [0, 0, 1, 1] {
            pooler.take(position, &ROWS[position as usize]).expect("finite");
        }
        assert_eq!(pooler.embedding(), Some(vec![3.0, 3.0, 0.0]));
        assert!(pooler.take(1, &[f32::NAN; 3]).is_err());
    }

    #[test]
    fn dimensions_are_checked() {
        let with = |dimensions| PoolingParams { dimensions, ..PoolingParams::default() };
        assert!(with(None).check(8).is_ok() && with(Some(8)).check(8).is_ok());
        for wrong in [0, 9] {
            let error = with(Some(wrong)).check(8).expect_err("refused").to_string();
            assert!(error.starts_with(&format!("dimensions is {wrong}: an integer from 1 to 8")), "{error}");
        }
    }
}
