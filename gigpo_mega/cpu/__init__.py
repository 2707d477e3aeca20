"""What lets megatron-core and SGLang run on a host without CUDA; a no-op if there is a GPU."""
