//! Keys of generation_config.json that change what a model writes in transformers and have no effect here.

use octavo_model::Config;
use serde_json::{Value, json};

/// A key, the values that ask for nothing, and what a request can give instead.
const KEYS: &[(&str, &[f64], Option<&str>)] = &[
    ("stop_strings", &[], Some("stop")),
    ("bad_words_ids", &[], Some("bad_words")),
    ("suppress_tokens", &[], Some("logit_bias")),
    ("begin_suppress_tokens", &[], None),
    ("sequence_bias", &[], Some("logit_bias")),
    ("presence_penalty", &[0.0], Some("presence_penalty")),
    ("frequency_penalty", &[0.0], Some("frequency_penalty")),
    ("min_new_tokens", &[0.0], Some("min_tokens")),
    ("min_length", &[0.0], Some("min_tokens")),
    ("no_repeat_ngram_size", &[0.0], None),
    ("encoder_no_repeat_ngram_size", &[0.0], None),
    ("encoder_repetition_penalty", &[1.0], None),
    ("num_beams", &[1.0], None),
    ("num_beam_groups", &[1.0], None),
    ("diversity_penalty", &[0.0], None),
    ("penalty_alpha", &[0.0], None),
    ("typical_p", &[1.0, 0.0], None),
    ("epsilon_cutoff", &[0.0], None),
    ("eta_cutoff", &[0.0], None),
    ("top_h", &[], None),
    ("guidance_scale", &[1.0], None),
    ("forced_bos_token_id", &[], None),
    ("forced_eos_token_id", &[], None),
    ("force_words_ids", &[], None),
    ("constraints", &[], None),
    ("exponential_decay_length_penalty", &[], None),
    ("dola_layers", &[], None),
    ("watermarking_config", &[], None),
];

/// One sentence for each key of `generation` that asks for something that is not done.
pub(crate) fn warnings(generation: &Config<'_>) -> Vec<String> {
    let asks = |key: &str, neutral: &[f64]| {
        let value = generation.value(key)?;
        let empty = [json!([]), json!({}), json!(""), json!(false)].contains(value);
        let off = value.as_f64().is_some_and(|number| neutral.contains(&number));
        (!empty && !off).then_some(value)
    };
    let sentence = |(key, neutral, instead): &(&str, &[f64], Option<&str>)| {
        let value = asks(key, neutral)?;
        let remedy = match instead {
            Some(name) => format!("give {name} with the request"),
            None => "octavo does not have it".into(),
        };
        Some(format!("generation_config.json asks for {key} {}, which has no effect: {remedy}", short(value)))
    };
    KEYS.iter().filter_map(sentence).collect()
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_ask_for_something_are_named_with_their_value() {
        let map = json!({"num_beams": 4, "stop_strings": ["END"], "suppress_tokens": [], "typical_p": 1.0, "min_length": 0,
            "no_repeat_ngram_size": 3, "bad_words_ids": null, "temperature": 0.5, "diversity_penalty": 0.0});
        let map = map.as_object().expect("object");
        let found = warnings(&Config::of_file(map, "generation_config.json"));
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].contains("stop_strings [\"END\"]") && found[0].contains("stop with the request"));
        assert!(found[1].contains("no_repeat_ngram_size 3") && found[2].contains("num_beams 4"), "{found:?}");
    }
}
