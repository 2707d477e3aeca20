"""Comparisons of our environments with the official implementations."""
