"""Tables of other servers' fields: vLLM, SGLang, llama.cpp, TGI, Ollama, and clients with fields of their own.

`dialects` applies them. A field belongs here if it changes the answer on another server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Given name -> octavo's field of exactly the same meaning.
ALIASES = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "stop_sequences": "stop",
    "n_cmpl": "n",
    # llama.cpp's and DashScope's names; -1 is no limit.
    "reasoning_budget": "thinking_token_budget",
    "thinking_budget": "thinking_token_budget",
    "thinking_budget_tokens": "thinking_token_budget",
}
# Given name -> key of `structured_outputs`.
CONSTRAINTS = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "guided_json_object": "json_object",
    "json_schema": "json",
    "regex": "regex",
    "format": "json",
}


@dataclass(frozen=True)
class Refusal:
    """Why a field is refused.

    Attributes:
        remedy: what to do instead.
        neutral: values that ask for nothing, besides null, false, 0 and empty ones.
        asks: values that ask for something although they are false or 0.
    """

    remedy: str
    neutral: tuple[Any, ...] = ()
    asks: tuple[Any, ...] = ()

    def applies(self, value: Any) -> bool:
        """Whether `value` asks for something."""
        # In Python, False == 0: the type decides too.
        same = [(type(v), v) for v in self.asks]
        if (type(value), value) in same:
            return True
        return bool(value) and value not in self.neutral


def _all(remedy: str, *names: str, neutral: tuple[Any, ...] = (), asks: tuple[Any, ...] = ()) -> dict[str, Refusal]:
    return dict.fromkeys(names, Refusal(remedy, neutral, asks))


_LARK = 'use response_format {"type": "grammar", "grammar": ...} with a grammar in the Lark form'
_TEMPLATE = "use chat_template_kwargs, whose values the chat template reads"
_SAMPLER = "octavo has no such sampler: use temperature, top_p, top_k and min_p"
_PENALTY = "use repetition_penalty, frequency_penalty or presence_penalty"
_BEAMS = "there is no beam search: use n or best_of"
_REASONING = "start the server with --reasoning-parser, or use chat_template_kwargs"
_TEXT_ONLY = "this model reads and writes text"
_PROMPT = "write it into the prompt"
_LOADED = "adapters are loaded before requests name them"
_MIXED = "adapters are not mixed in a request: make one with octavo merge, or another adapter"
_REPORT = "this report is not available"

# Fields of requests that generate. Fields that a request model has itself are not looked up here.
REFUSED: dict[str, Refusal] = {
    "functions": Refusal("use tools"),
    "function_call": Refusal("use tool_choice", ("none",)),
    "audio": Refusal("this model writes text"),
    "modalities": Refusal("this model writes text only", (["text"],)),
    "web_search_options": Refusal("there is no web search here"),
    "chat_template": Refusal(
        "a template is never taken from a request: start the server with --chat-template"
    ),
    # Constraints
    **_all(_LARK, "grammar", "ebnf", "grammar_lazy", "grammar_triggers"),
    **_all("use tools, or a grammar in response_format", "structural_tag", "guided_structural_tag"),
    **_all("write the white space into a grammar in response_format", "guided_whitespace_pattern"),
    **_all("use response_format or structured_outputs", "guideline"),
    **_all("use stop with plain texts", "stop_regex", "banned_regex"),
    **_all("use bad_words", "banned_strings", "bad_words_ids", "banned_phrases"),
    **_all("use logit_bias", "custom_token_bans", "banned_tokens", "logits_bias", "suppress_tokens"),
    **_all("use ignore_eos", "ban_eos_token"),
    **_all("use include_stop_str_in_output", "no_stop_trim"),
    **_all("there are no processors of logits: use logit_bias", "logits_processors", "custom_logit_processor"),
    # Lengths
    **_all("use max_tokens", "n_predict", "num_predict", "max_length", "max_gen_len", asks=(0,), neutral=(-1,)),
    **_all("use min_tokens", "min_length"),
    **_all("use truncate_prompt_tokens", "truncate", "max_prompt_tokens", "n_keep", "truncation_side", "transforms"),
    **_all("use timeout, in seconds", "t_max_predict_ms", "max_time"),
    # Samplers. Clients send neutral values of these as a matter of course.
    **_all(_SAMPLER, "typical_p", "tfs_z", "tfs", "epsilon_cutoff", "eta_cutoff", neutral=(1, -1)),
    **_all(_SAMPLER, "top_a", "mirostat", "mirostat_mode", "xtc_probability", "dynatemp_range", "smoothing_factor"),
    **_all(_SAMPLER, "top_n_sigma", "skew", "adaptive_target", neutral=(-1,)),
    **_all(_SAMPLER, "dynamic_temperature", "temperature_last", "min_keep", "watermark", "token_healing"),
    **_all(_SAMPLER, "samplers", "sampler_order", "sampler_priority", "sampler_seq", "penalty_alpha"),
    **_all(_SAMPLER, "guidance_scale", "cfg_scale", neutral=(1,)),
    **_all(_SAMPLER, "negative_prompt", "cfg_negative_prompt"),
    **_all("use temperature 0", "do_sample", neutral=(True,), asks=(False,)),
    **_all("use seed", "sampling_seed", "random_seed", asks=(0,), neutral=(-1,)),
    # Penalties
    **_all(_PENALTY, "repeat_penalty", "encoder_repetition_penalty", "rep_pen", neutral=(1,)),
    **_all(_PENALTY, "dry_multiplier", "no_repeat_ngram_size", "penalize_nl", "penalty_prompt", "frequence_penalty"),
    **_all(_PENALTY, "repetition_detection"),
    **_all(_BEAMS, "use_beam_search", "diversity_penalty", "early_stopping"),
    **_all(_BEAMS, "num_beams", "length_penalty", neutral=(1,)),
    # Prompts
    **_all(_TEMPLATE, "enable_thinking", "thinking_mode", asks=(False,)),
    **_all(_TEMPLATE, "thinking", "think", "tool_prompt", "template_kwargs", asks=(False,)),
    **_all(_REASONING, "reasoning_format", neutral=("auto", "deepseek")),
    **_all(_REASONING, "thinking_forced_open"),
    **_all(_REASONING, "include_reasoning", "separate_reasoning", neutral=(True,), asks=(False,)),
    **_all(_REASONING, "stream_reasoning", "parse_tool_calls", "parse_reasoning", neutral=(True,), asks=(False,)),
    **_all("write them into a message", "documents"),
    **_all("use continue_final_message", "continue_assistant_turn", "prefill", "assistant_prefix"),
    **_all(_PROMPT, "system", "system_prompt", "template", "raw", "context", "input_prefix", "input_suffix"),
    **_all(_PROMPT, "prompt_suffix", "input_extra", "prompt_prefix", "chat_history"),
    **_all("give token ids as the prompt of /v1/completions", "input_ids", "prompt_token_ids", "prompt_tokens"),
    **_all("give texts or token ids as the prompt", "prompt_embeds", "input_embeds", "inputs"),
    **_all(_TEXT_ONLY, "images", "image_data", "video_data", "audio_data", "multi_modal_data", "mm_processor_kwargs"),
    **_all("give its fields at the top level", "options", "parameters", "sampling_params", "generation_config"),
    **_all("give its fields at the top level", "extra_body", "extra_args", "ollama_options"),
    # Models
    # An adapter is named by the fields of `octavo.server.fields.adapters`.
    **_all(_MIXED, "merged_adapters", "adapter_parameters", "control_vectors"),
    **_all(_LOADED, "adapter_source", neutral=("local",)),
    # Reports
    **_all("use return_token_ids", "return_tokens"),
    **_all("use logprobs", "n_probs", "top_n_tokens", "decoder_input_details", "post_sampling_probs"),
    **_all("use logprobs", "return_logprob", "top_logprobs_num", "logprob_token_ids", "token_ids_logprob"),
    **_all("use echo in /v1/completions", "return_full_text"),
    **_all(_REPORT, "return_hidden_states", "response_fields", "return_routed_experts", "return_prompt_text"),
    **_all("this server takes no such arguments", "vllm_xargs", "kv_transfer_params", "session_params"),
    **_all("this server takes no such arguments", "ec_transfer_params", "custom_params", "session_id"),
    **_all("only its default, true, is supported", "spaces_between_special_tokens", neutral=(True,), asks=(False,)),
    **_all("only its default, true, is supported", "detokenize", neutral=(True,), asks=(False,)),
}  # fmt: skip

# Fields of embedding requests.
REFUSED_BY_EMBEDDINGS: dict[str, Refusal] = {
    **_all("use truncate_prompt_tokens", "truncate", "max_length", "truncation", "truncation_side"),
    **_all("use dimensions", "output_dimension", "truncate_dim", "matryoshka_dim"),
    **_all("write the instruction into the input", "input_type", "task", "task_type", "prompt_name", "instruction"),
    **_all("write the instruction into the input", "title", "prefix"),
    **_all("use normalize", "normalized", "embd_normalize", asks=(False, 0, -1)),
    **_all("use encoding_format, and convert the values", "embed_dtype", "output_dtype", neutral=("float32", "float")),
    **_all("values are little endian", "endianness", neutral=("native", "little")),
    **_all("use normalize", "activation", "use_activation", "softmax", neutral=(True,), asks=(False,)),
    **_all("give texts as input", "messages", "inputs", "images", "embedding_types", "multi_modal_data"),
    **_all("use input", "prompt", "content", "texts"),
    **_all("use pooling", "pooling_type", "pooling_mode"),
    "pack": Refusal("write its text into the input"),
    **_all(_MIXED, "merged_adapters", "adapter_parameters"),
    **_all(_LOADED, "adapter_source", neutral=("local",)),
    **_all("text pieces are not embedded one by one", "late_chunking", "return_multivector"),
}  # fmt: skip

# Values that ask for nothing, of fields that belong to other endpoints.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "top_k": (-1,), "repetition_penalty": (1,), "tool_choice": ("auto", "none"),
    "response_format": ({"type": "text"},), "parallel_tool_calls": (True,), "add_generation_prompt": (True,),
    "skip_special_tokens": (True,), "add_special_tokens": (True,), "temperature": (1,), "top_p": (1,),
}  # fmt: skip
# Remedies for fields of other endpoints: model of the request -> name -> remedy.
REMEDIES: dict[str, dict[str, str]] = {
    "ResponsesRequest": {
        "max_tokens": "use max_output_tokens", "max_completion_tokens": "use max_output_tokens",
        "max_new_tokens": "use max_output_tokens", "messages": "use input",
        **dict.fromkeys(["response_format", "structured_outputs", *CONSTRAINTS], "use text.format"),
    },
    "ChatRequest": {
        "max_output_tokens": "use max_tokens", "input": "use messages", "prompt": "use messages",
        "instructions": "write a system message", "text": "use response_format",
    },
    "CompletionRequest": {
        "max_output_tokens": "use max_tokens", "max_completion_tokens": "use max_tokens", "input": "use prompt",
        "top_logprobs": "use logprobs with a number", "instructions": "write it into the prompt",
    },
}  # fmt: skip

# Fields inside objects, by path; `[]` stands for an index.
REFUSED_INSIDE: dict[str, Refusal] = {
    **_all(
        "write the white space into a grammar",
        "structured_outputs.whitespace_pattern",
        "structured_outputs.disable_any_whitespace",
    ),
    **_all("use tools, or structured_outputs.grammar", "structured_outputs.structural_tag"),
    **_all("use tool_calls", "messages[].function_call"),
    **_all(_TEXT_ONLY, "messages[].images", "messages[].audio", "messages[].videos"),
}
# Objects whose keys all state conditions on the answer: other keys are refused.
CLOSED = ("response_format", "structured_outputs")
# Keys of these objects without an effect on the answer.
HARMLESS = frozenset({"structured_outputs.disable_fallback", "structured_outputs.backend"})
