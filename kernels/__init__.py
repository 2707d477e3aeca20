"""Kernels by operation; each folder holds the public function and its plain-torch reference."""
