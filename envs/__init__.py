"""Text environments; they import neither torch nor gigpo_mega."""
