"""What is on disk: files that appear whole, collected groups, checksums of checkpoints."""
