"""What lets megatron-core and SGLang run on a host without CUDA; a no-op where there is a GPU."""
