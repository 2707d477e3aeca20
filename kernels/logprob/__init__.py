"""Log-probability and entropy of target tokens straight from hidden states."""

from kernels.logprob.reference import linear_logprob

__all__ = ["linear_logprob"]
