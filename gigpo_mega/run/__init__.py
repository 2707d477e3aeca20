"""A training run: ranks that act together, the leader's side, and `Run`, which the loop in `train` reads."""
