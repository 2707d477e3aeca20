"""Weights between learner, engine, checkpoints and Hugging Face directories."""
