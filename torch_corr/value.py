"""What is a value to PyTorch's compiler as well, as a number is.

Dynamo guards on the value of these, and where the code that it traces makes one it makes a real
one.  Without this it hands on an instance with none of its options set.
"""

from __future__ import annotations

from abc import ABCMeta
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from ._torch_compat import OpaqueBaseMeta, register_value_type


class _ValueMeta(OpaqueBaseMeta, ABCMeta):  # type: ignore[misc]
    """PyTorch 2.11 registers only classes of its own metaclass, later versions any."""

    # PyTorch's own takes the fake of a value for one, too; nobody here asks, and it takes longer.
    __instancecheck__ = type.__instancecheck__


@dataclass(frozen=True)
class Value(metaclass=_ValueMeta):
    """Base of frozen dataclasses, registered one by one: PyTorch 2.11 does not look at bases."""

    def __init_subclass__(cls, **words: Any) -> None:
        super().__init_subclass__(**words)
        # PyTorch refuses what compares by identity, and a second class of one name, as where a
        # notebook's cell runs again, which it has noted by then.  Later versions look at the bases.
        with suppress(TypeError, RuntimeError):
            register_value_type(cls)

    def __post_init__(self) -> None:
        """Raises TypeError for an option that is no value: plans are remembered by them."""
        for option in fields(self):
            if isinstance(held := getattr(self, option.name), Tensor):
                raise TypeError(
                    f"{option.name}={held!r} is a tensor, to which others may be written; options "
                    f"are values, so take its .item()"
                )
        try:
            hash(self)
        except TypeError as error:
            raise TypeError(
                f"{self!r} has an option that cannot be hashed ({error}); options are values, as "
                f"numbers, words and tuples are"
            ) from None

    def __fx_repr__(self) -> tuple[str, dict[str, type]]:
        """How PyTorch's graphs write it down."""
        return repr(self), {type(self).__name__: type(self)}
