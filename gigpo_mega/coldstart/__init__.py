"""Behavior cloning of an environment's expert: the policy that reinforcement learning starts from."""
