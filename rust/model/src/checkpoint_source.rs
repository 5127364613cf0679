//! Weights from a checkpoint of floats (or int8 with a scale per row): scanned, packed, and released to the system.

use std::cell::RefCell;

use octavo_kernels::{Kernels, Linear, WeightDtype, WeightRows};

use crate::ModelError;
use crate::checkpoint::{Checkpoint, Tensor};
use crate::nonfinite::NonFinite;
use crate::source::{Absorbed, WeightSource};
use crate::spec::{Dtype, MlaSpec};
use crate::weight_format::{KeptInBf16, WeightFormat};

/// Packs the tensors of a checkpoint in a format. Pages of its files that have been packed do not stay in memory.
pub(crate) struct CheckpointSource<'a> {
    kernels: &'a Kernels,
    checkpoint: &'a Checkpoint,
    format: WeightFormat,
    nonfinite: RefCell<NonFinite>,
    kept_in_bf16: RefCell<Vec<KeptInBf16>>,
}

/// Rows of a matrix as stored.
enum Stored<'a> {
    Float(Tensor<'a>),
    /// Codes with one scale per row.
    Int8(&'a [u8], Vec<f32>),
}

impl Stored<'_> {
    fn rows(&self) -> WeightRows<'_> {
        match self {
            Stored::Float(t) => match t.dtype {
                Dtype::Float32 => WeightRows::F32Bytes(&t.data),
                Dtype::Bfloat16 => WeightRows::Bf16Bytes(&t.data),
                Dtype::Float16 => WeightRows::F16Bytes(&t.data),
            },
            Stored::Int8(codes, scales) => WeightRows::Int8 { codes, scales },
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Stored::Float(tensor) => &tensor.data,
            Stored::Int8(codes, _) => codes,
        }
    }

    fn to_f32(&self) -> Vec<f32> {
        match self {
            Stored::Float(tensor) => tensor.to_f32(),
            Stored::Int8(codes, scales) => {
                let columns = codes.len() / scales.len();
                let value = |(i, &code): (usize, &u8)| f32::from(code.cast_signed()) * scales[i / columns];
                codes.iter().enumerate().map(value).collect()
            }
        }
    }
}

impl<'a> CheckpointSource<'a> {
    pub fn new(kernels: &'a Kernels, checkpoint: &'a Checkpoint, format: WeightFormat) -> Self {
        Self { kernels, checkpoint, format, nonfinite: RefCell::default(), kept_in_bf16: RefCell::default() }
    }

    /// Warnings about the files, and tensors that stayed in bfloat16.
    pub fn findings(self) -> (Vec<String>, Vec<KeptInBf16>) {
        (self.nonfinite.into_inner().warnings(), self.kept_in_bf16.into_inner())
    }

    /// The tensor, its values scanned.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>, ModelError> {
        let tensor = self.checkpoint.tensor(name, shape)?;
        let taken = |bytes: &[u8]| self.checkpoint.give_back(bytes);
        self.nonfinite.borrow_mut().scan(
            self.kernels.pool(),
            tensor.name,
            tensor.dtype,
            &tensor.data,
            &taken,
        );
        Ok(tensor)
    }

    /// A matrix in floats, or in int8 with `NAME_scale` beside it: `[rows, 1]`, `[rows]` or one for all.
    fn stored(&self, name: &str, rows: usize, columns: usize) -> Result<Stored<'_>, ModelError> {
        let scale = format!("{name}_scale");
        let int8 =
            if self.checkpoint.has(&scale) { self.checkpoint.int8(name, &[rows, columns])? } else { None };
        let Some(codes) = int8 else { return Ok(Stored::Float(self.tensor(name, &[rows, columns])?)) };
        let shape = match self.checkpoint.shape(&scale) {
            Some([1]) => vec![1],
            Some([n]) if *n == rows => vec![rows],
            _ => vec![rows, 1],
        };
        let mut scales = self.tensor(&scale, &shape)?.to_f32();
        if shape == [1] {
            scales = vec![scales[0]; rows];
        }
        Ok(Stored::Int8(codes, scales))
    }

    fn pack(&self, stored: &[Stored<'_>], columns: usize, dtype: WeightDtype) -> Linear {
        let rows = stored.iter().map(Stored::rows).collect::<Vec<_>>();
        let checkpoint = self.checkpoint;
        Linear::pack_releasing(self.kernels, &rows, columns, dtype, &|bytes| checkpoint.passed(bytes))
    }
}

impl WeightSource for CheckpointSource<'_> {
    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        Ok(self.tensor(name, &[len])?.to_f32())
    }

    /// In the format of the model; in bfloat16 where the int8 error of one of the parts exceeds the budget. Parts that are
    /// stored as int8 stay int8.
    fn matrix(
        &self,
        parts: &[(String, usize)],
        columns: usize,
        inputs: Option<&[f32]>,
    ) -> Result<Linear, ModelError> {
        let stored = parts.iter().map(|(name, rows)| self.stored(name, *rows, columns));
        let stored = stored.collect::<Result<Vec<_>, _>>()?;
        let floats = stored.iter().all(|stored| matches!(stored, Stored::Float(_)));
        let linear = match self.format {
            WeightFormat { dtype: WeightDtype::Quantized(scheme), error_budget: Some(budget) } if floats => {
                let rows = stored.iter().map(Stored::rows).collect::<Vec<_>>();
                let checkpoint = self.checkpoint;
                let release = |bytes: &[u8]| checkpoint.passed(bytes);
                let (packed, errors) =
                    Linear::quantize(self.kernels, &rows, columns, scheme, inputs, &release);
                // An error that is NaN is damage: it is reported as such, and shows in any format.
                if errors.iter().all(|error| *error <= budget || error.is_nan()) {
                    packed
                } else {
                    drop(packed);
                    let named = parts.iter().zip(errors);
                    let found = named.map(|((name, _), error)| KeptInBf16 { tensor: name.clone(), error });
                    self.kept_in_bf16.borrow_mut().extend(found);
                    self.pack(&stored, columns, WeightDtype::Bf16)
                }
            }
            format => self.pack(&stored, columns, format.dtype),
        };
        stored.iter().for_each(|stored| self.checkpoint.give_back(stored.bytes()));
        Ok(linear)
    }

    fn exact(&self, name: &str, rows: usize, columns: usize) -> Result<Linear, ModelError> {
        Ok(self.pack(&[self.stored(name, rows, columns)?], columns, WeightDtype::F32))
    }

    fn absorbed(&self, name: &str, a: &MlaSpec) -> Result<Absorbed, ModelError> {
        let rows = a.qk_nope_head_dim + a.v_head_dim;
        let kv_b = self.stored(name, a.heads * rows, a.kv_lora_rank)?.to_f32();
        let pack = |values: &[f32], columns| {
            Linear::pack(self.kernels, &[WeightRows::F32(values)], columns, self.format.dtype)
        };
        let mut absorbed = Absorbed { to_latent: Vec::new(), to_value: Vec::new() };
        for head in kv_b.chunks_exact(rows * a.kv_lora_rank) {
            let (keys, values) = head.split_at(a.qk_nope_head_dim * a.kv_lora_rank);
            let turned = (0..a.kv_lora_rank).flat_map(|r| keys[r..].iter().step_by(a.kv_lora_rank)).copied();
            absorbed.to_latent.push(pack(&turned.collect::<Vec<_>>(), a.qk_nope_head_dim));
            absorbed.to_value.push(pack(values, a.kv_lora_rank));
        }
        Ok(absorbed)
    }
}
