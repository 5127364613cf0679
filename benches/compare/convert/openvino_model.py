"""Exports a checkpoint to OpenVINO's format with 8-bit weights, as optimum-intel does by default."""

from __future__ import annotations

import sys

from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig


def write_openvino(checkpoint: str, folder: str) -> None:
    quantization = OVWeightQuantizationConfig(bits=8)
    model = OVModelForCausalLM.from_pretrained(
        checkpoint, export=True, quantization_config=quantization, compile=False, use_cache=True
    )
    model.save_pretrained(folder)


if __name__ == "__main__":
    write_openvino(sys.argv[2], sys.argv[3])
