"""Frozen dataclasses that ``torch.compile`` treats as constants.

Dynamo guards on the value of such an instance, and creates a real instance if the traced code
creates one.  Without the registration, Dynamo passes on an instance whose fields are not set.
"""

from __future__ import annotations

from abc import ABCMeta
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from ._torch_compat import OpaqueBaseMeta, register_value_type


class _ValueMeta(OpaqueBaseMeta, ABCMeta):  # type: ignore[misc]
    """The metaclass that PyTorch 2.11 requires for registered classes; other versions do not."""

    # PyTorch's metaclass also accepts fakes of values, which is slower and not needed here.
    __instancecheck__ = type.__instancecheck__


@dataclass(frozen=True)
class Value(metaclass=_ValueMeta):
    """Base class of algorithms and other frozen dataclasses; registers each subclass."""

    def __init_subclass__(cls, **words: Any) -> None:
        super().__init_subclass__(**words)
        # PyTorch 2.10 and 2.11 do not look at base classes, so each subclass is registered.  They
        # refuse classes that compare by identity.  Versions from 2.11 on also refuse a second class
        # of the same name, as in a notebook cell that runs again; the first registration holds.
        with suppress(TypeError, RuntimeError):
            register_value_type(cls)

    def __post_init__(self) -> None:
        """Raise TypeError for options that cannot be keys of the cache of plans."""
        for option in fields(self):
            if isinstance(value := getattr(self, option.name), Tensor):
                raise TypeError(
                    f"{option.name}={value!r} is a tensor, which may change; options are constant "
                    f"values, so pass its .item()"
                )
        try:
            hash(self)
        except TypeError as error:
            raise TypeError(
                f"{self!r} has an option that cannot be hashed ({error}); options are constant "
                f"values: numbers, strings and tuples"
            ) from None

    def __fx_repr__(self) -> tuple[str, dict[str, type]]:
        """The source code that ``torch.fx`` writes for this value."""
        return repr(self), {type(self).__name__: type(self)}
