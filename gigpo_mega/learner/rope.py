"""The angles by which RoPE rotates queries and keys."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Tensor

from gigpo_mega.shape import ModelShape


def rope(shape: ModelShape) -> tuple[Tensor, float]:
    """The angles of one position [head_dim / 2], float32, and the factor on rotated queries and keys.

    Computed by transformers' own functions where the angles are scaled (transformers.modeling_rope_utils).
    """
    if shape.rope_scaling is None:
        exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
        return 1.0 / shape.rope_theta**exponents, 1.0
    from transformers import AutoConfig  # here, as it takes seconds to import
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {name: value for name, value in asdict(shape.rope_scaling).items() if value is not None}
    config = AutoConfig.for_model(
        shape.family,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.max_positions,
        rope_parameters=scaling | {"rope_theta": shape.rope_theta},
    )
    return ROPE_INIT_FUNCTIONS[shape.rope_scaling.rope_type](config)
