"""Fuzz of what is trained on: adversarial text, followed from the engine to the micro-batches."""
