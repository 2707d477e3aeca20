"""Ways for weights to travel from the learner to an engine."""
