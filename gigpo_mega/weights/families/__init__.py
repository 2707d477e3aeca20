"""One table of parameter names per model family: megatron-core <-> Hugging Face."""
