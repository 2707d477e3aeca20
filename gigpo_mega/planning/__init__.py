"""What a run will take, told before it starts: memory on a GPU, seconds of an iteration, knobs that help."""
