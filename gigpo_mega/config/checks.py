"""How sections are declared and checked."""

from __future__ import annotations

from pydantic import ConfigDict

STRICT = ConfigDict(
    extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
)


def require(ok: bool, message: str) -> None:
    """Raise ValueError with `message` unless `ok`."""
    if not ok:
        raise ValueError(message)


def at_least(minimum: int, section: str, values: object, *names: str) -> None:
    """Raise ValueError unless each field of `values`, the section called `section`, is >= `minimum`."""
    for name in names:
        value = getattr(values, name)
        require(value >= minimum, f"{section}.{name} must be >= {minimum}, got {value}")
