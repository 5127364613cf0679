"""The executor for NVIDIA GPUs: torch and `octavo.triton_kernels` behind the same engine. Needs `octavo[gpu]`.

The engine calls `Runner.submit` and `Runner.wait` for each step. `batch` copies the plan to the device, `model` runs
the layers, `ops` names the kernels, `graphs` replays steps of decodes, `sampler` samples. `load` makes all of it from
a folder.
"""
