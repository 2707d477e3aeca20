"""Advantages, anchor groups and the policy loss."""
