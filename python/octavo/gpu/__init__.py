"""The executor for NVIDIA GPUs: torch and `octavo.triton_kernels` behind the same engine. Needs `octavo[gpu]`.

The engine calls `Runner.step` once a step. From there: `batch` lays the plan out on the device, `model` walks the
layers, `ops` names the kernels, `graphs` replays steps of decodes alone, `sampler` draws. `load` makes all of it from
a folder.
"""
