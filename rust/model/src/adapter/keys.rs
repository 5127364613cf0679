//! Names of an adapter's tensors.

/// What PEFT puts before the names of a model's modules.
const PEFT: &str = "base_model.model.";

/// The tensors of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AdapterTensor {
    /// `[rank, inputs]`.
    A,
    /// `[outputs, rank]`.
    B,
    /// The bias of B `[outputs]`.
    Bias,
    /// DoRA's magnitude `[outputs]`.
    Magnitude,
}

/// The module of a tensor, as PEFT names it, and which tensor of it this is; None: it is none of LoRA's.
///
/// The name of the adapter may stand between, as in `q_proj.lora_A.default.weight`.
pub fn parse(key: &str) -> Option<(&str, AdapterTensor)> {
    let marks = [".lora_A", ".lora_B", ".lora_magnitude_vector"];
    let (at, mark) = marks.iter().find_map(|mark| key.rfind(mark).map(|at| (at, *mark)))?;
    let (module, rest) = (&key[..at], &key[at + mark.len()..]);
    let rest: Vec<&str> = match rest.strip_prefix('.') {
        Some(rest) => rest.split('.').collect(),
        None if rest.is_empty() => Vec::new(),
        None => return None,
    };
    let tensor = match (mark, rest.as_slice()) {
        (".lora_A", ["weight"] | [_, "weight"]) => AdapterTensor::A,
        (".lora_B", ["weight"] | [_, "weight"]) => AdapterTensor::B,
        (".lora_B", ["bias"] | [_, "bias"]) => AdapterTensor::Bias,
        (".lora_magnitude_vector", [] | [_] | [_, "weight"]) => AdapterTensor::Magnitude,
        _ => return None,
    };
    Some((module.strip_prefix(PEFT).unwrap_or(module), tensor))
}

#[cfg(test)]
mod tests {
    use super::AdapterTensor::{A, B, Bias, Magnitude};
    use super::*;

    #[test]
    fn every_form_of_a_name_is_read() {
        let q = "model.layers.0.self_attn.q_proj";
        for (end, want) in [
            ("lora_A.weight", A),
            ("lora_A.default.weight", A),
            ("lora_B.weight", B),
            ("lora_B.x.weight", B),
            ("lora_B.bias", Bias),
            ("lora_B.default.bias", Bias),
            ("lora_magnitude_vector", Magnitude),
            ("lora_magnitude_vector.default", Magnitude),
            ("lora_magnitude_vector.weight", Magnitude),
            ("lora_magnitude_vector.default.weight", Magnitude),
        ] {
            assert_eq!(parse(&format!("base_model.model.{q}.{end}")), Some((q, want)), "{end}");
            assert_eq!(parse(&format!("{q}.{end}")), Some((q, want)), "{end}");
        }
    }

    #[test]
    fn other_tensors_are_none_of_them() {
        for key in [
            "base_model.model.lm_head.weight",
            "base_model.model.model.embed_tokens.lora_embedding_A",
            "base_model.model.q.lora_A",
            "base_model.model.q.lora_A.bias",
            "base_model.model.q.lora_A.a.b.weight",
            "base_model.model.q.lora_Ax.weight",
            "base_model.model.q.lora_B.weight_scale",
            "base_model.model.q.lora_diag",
            "",
        ] {
            assert_eq!(parse(key), None, "{key}");
        }
    }
}
