"""The policy under training, on megatron-core.

Importing any module of this package first lets megatron-core run without CUDA if there is none, and applies
the fixes it needs; so do the modules that import megatron elsewhere (weights), by importing this package.
"""

from gigpo_mega.cpu import megatron
from gigpo_mega.learner import megatron_fixes

megatron.install()
megatron_fixes.apply()
