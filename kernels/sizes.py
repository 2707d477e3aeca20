"""Sizes of the kernels' workspaces, importable without torch: memory planning reads them."""

# Logits [tokens, columns] in a block of `kernels.logprob.chunked`.
CPU_ELEMENTS = 1 << 18  # 1 MiB of float32 stays in a core's cache
CUDA_ELEMENTS = 1 << 25  # 128 MiB of float32 logits, 64 MiB of bfloat16 gradients
# Gradients of logits in a block of `kernels.logprob.triton`'s backward pass: 192 MiB in bfloat16.
TRITON_ELEMENTS = 3 << 25
