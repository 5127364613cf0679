"""GPU kernels of octavo in Triton, one op a file: formula, kernel, checking launcher, plain torch reference.

Imported as `octavo.triton_kernels`. Needs the extra `octavo[gpu]` (torch and triton), and nothing else of octavo.
"""
