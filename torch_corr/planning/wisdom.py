"""What has been measured: seconds of each algorithm on each map, remembered and kept in files.

After FFTW: ``Auto(measure=True)`` times the algorithms the first time that it sees a problem,
and the times are *wisdom*.  All planning by ``auto`` heeds it, so a process that loads the
wisdom of an earlier one has nothing to measure:

    torch_corr.wisdom.load("wisdom.json")
    ...
    torch_corr.wisdom.save("wisdom.json")

Nothing is loaded or saved unasked.  An entry holds for one machine, number of threads and
version of PyTorch and of this library; others lie unused until they are met again.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .._version import __version__
from ..algorithms import may_use_tf32
from ..algorithms.base import products_may_use_tf32
from ..problem import Problem
from ..request import Request, dtype_name
from .machine import device_name

_FORMAT = 1


class Key(NamedTuple):
    """What a measurement holds for, in words that a file keeps."""

    problem: str
    map: str
    device: str
    dtype: str
    threads: int
    torch_version: str
    version: str

    @classmethod
    def of(cls, request: Request) -> Key:
        """The key of a request here and now."""
        device, dtype = request.device, request.dtype
        cuda = device.type == "cuda"
        name = "tf32" if cuda and may_use_tf32(dtype) else dtype_name(dtype)
        if cuda and dtype.is_complex and may_use_tf32(dtype.to_real()):
            # PyTorch's convolutions of complex numbers are real ones.
            name += ", convolutions in tf32"
        # A transform multiplies matrices, for which PyTorch has a setting of its own.
        products = ", products in tf32" if cuda and products_may_use_tf32(dtype) else ""
        return cls(
            problem=str(request.problem),
            map=request.map,
            device=device_name(device),
            dtype=name + products,
            threads=torch.get_num_threads() if device.type == "cpu" else 0,
            torch_version=torch.__version__,
            version=__version__,
        )


class Wisdom:
    """Measured seconds by :class:`Key`; safe to share between threads."""

    def __init__(self) -> None:
        self._seconds: dict[Key, dict[str, float]] = {}
        self._lock = threading.Lock()
        self.on_change: list[Callable[[], None]] = []
        """Called when what was known is no longer all that is: plans made before are stale."""

    def __len__(self) -> int:
        return len(self._seconds)

    def seconds(self, key: Key) -> Mapping[str, float]:
        """Seconds by the spelling of the algorithm; empty where nothing was measured."""
        return self._seconds.get(key, {})

    def remember(self, key: Key, seconds: Mapping[str, float]) -> None:
        """Keep what was measured, beside what is known of other algorithms."""
        with self._lock:
            self._seconds[key] = {**self._seconds.get(key, {}), **seconds}
        self._changed()

    def forget(self) -> None:
        """Forget everything."""
        with self._lock:
            self._seconds = {}
        self._changed()

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write all wisdom to a JSON file, whole or not at all; returns how many entries."""
        with self._lock:
            entries = [
                {**key._asdict(), "seconds": seconds} for key, seconds in self._seconds.items()
            ]
        path = Path(path)
        draft = path.with_name(f"{path.name}.{os.getpid()}.draft")
        draft.write_text(json.dumps({"format": _FORMAT, "entries": entries}, indent=1) + "\n")
        draft.replace(path)
        return len(entries)

    def load(self, path: str | os.PathLike[str]) -> int:
        """Add a file's wisdom to what is known, the file's where both speak; how many entries.

        Raises:
            ValueError: the file holds no wisdom, or of a format that this version cannot read;
                nothing of it is taken.
            OSError: it cannot be read.
        """
        try:
            content: dict[str, Any] = json.loads(Path(path).read_text())
            if content["format"] != _FORMAT:
                raise ValueError(f"format {content['format']}, this version reads {_FORMAT}")
            loaded = dict(map(_entry, content["entries"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{os.fspath(path)} holds no wisdom ({error!r}); such files are written by "
                f"torch_corr.wisdom.save"
            ) from None
        with self._lock:
            self._seconds.update(loaded)
        self._changed()
        return len(loaded)

    def _changed(self) -> None:
        for tell in self.on_change:
            tell()


def _entry(fields: dict[str, Any]) -> tuple[Key, dict[str, float]]:
    key = Key(**{name: fields[name] for name in Key._fields})
    Problem.parse(key.problem)
    seconds = {str(name): float(value) for name, value in fields["seconds"].items()}
    if not all(0 < each < float("inf") for each in seconds.values()):
        raise ValueError(f"seconds of {key.problem} are not all positive numbers")
    return key, seconds


WISDOM = Wisdom()
"""The wisdom of this process."""


def save(path: str | os.PathLike[str]) -> int:
    """Write this process's wisdom to a JSON file; see :meth:`Wisdom.save`."""
    return WISDOM.save(path)


def load(path: str | os.PathLike[str]) -> int:
    """Add a file's wisdom to this process's; see :meth:`Wisdom.load`."""
    return WISDOM.load(path)


def forget() -> None:
    """Forget all that this process has measured or loaded; plans are made anew."""
    WISDOM.forget()
