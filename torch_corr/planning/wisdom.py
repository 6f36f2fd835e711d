"""Measured seconds of each algorithm on each map, kept in memory and in files.

As in FFTW, ``Auto(measure=True)`` times the algorithms when a problem first occurs, and the times
are *wisdom*.  All planning by ``auto`` uses it, so a process that loads the wisdom of an earlier
one measures nothing:

    torch_corr.wisdom.load("wisdom.json")
    ...
    torch_corr.wisdom.save("wisdom.json")

Nothing is loaded or saved automatically.  An entry is valid for one machine, number of threads and
version of PyTorch and of this library; other entries are kept but not used.
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
from .machine import device_name, write_json

_FORMAT = 1


class Key(NamedTuple):
    """The conditions for which a measurement is valid, as strings and numbers for a file."""

    problem: str
    map: str
    device: str
    dtype: str
    threads: int
    torch_version: str
    version: str

    @classmethod
    def of(cls, request: Request) -> Key:
        """The key of a request on this machine with the current settings."""
        device, dtype = request.device, request.dtype
        cuda = device.type == "cuda"
        name = "tf32" if cuda and may_use_tf32(dtype) else dtype_name(dtype)
        if cuda and dtype.is_complex and may_use_tf32(dtype.to_real()):
            # PyTorch computes complex convolutions as real ones.
            name += ", convolutions in tf32"
        # Transforms use matrix products, which have a separate setting.
        products = ", products in tf32" if cuda and products_may_use_tf32(dtype) else ""
        return cls(
            problem=str(request.problem),
            map=f"{request.map}, channels_last" if request.channels_last else request.map,
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
        """Callbacks that run when wisdom changes, which makes existing plans stale."""

    def __len__(self) -> int:
        return len(self._seconds)

    def seconds(self, key: Key) -> Mapping[str, float]:
        """Seconds by the spelling of the algorithm; empty if nothing was measured."""
        return self._seconds.get(key, {})

    def remember(self, key: Key, seconds: Mapping[str, float]) -> None:
        """Add measured seconds to those of other algorithms."""
        with self._lock:
            self._seconds[key] = {**self._seconds.get(key, {}), **seconds}
        self._changed()

    def keep_only(self, key: Key, name: str) -> None:
        """Forget the times of all algorithms but one, so that ``auto`` chooses this one."""
        with self._lock:
            self._seconds[key] = {name: self._seconds[key][name]}
        self._changed()

    def forget(self) -> None:
        """Forget everything that was measured or loaded; plans are made again."""
        with self._lock:
            self._seconds = {}
        self._changed()

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write all wisdom to a JSON file, atomically; returns the number of entries."""
        with self._lock:
            entries = [
                {**key._asdict(), "seconds": seconds} for key, seconds in self._seconds.items()
            ]
        write_json(Path(path), {"format": _FORMAT, "entries": entries}, indent=1)
        return len(entries)

    def load(self, path: str | os.PathLike[str]) -> int:
        """Add a file's entries, replacing existing ones; returns the number of entries.

        Raises:
            ValueError: the file contains no wisdom, or a format that this version cannot read;
                nothing is added.
            OSError: the file cannot be read.
        """
        try:
            content: dict[str, Any] = json.loads(Path(path).read_text())
            if content["format"] != _FORMAT:
                raise ValueError(f"format {content['format']}, this version reads {_FORMAT}")
            loaded = dict(map(_entry, content["entries"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{os.fspath(path)} holds no wisdom ({error!r}); torch_corr.wisdom.save "
                f"writes such files"
            ) from None
        with self._lock:
            self._seconds.update(loaded)
        self._changed()
        return len(loaded)

    def _changed(self) -> None:
        for callback in self.on_change:
            callback()


def _entry(fields: dict[str, Any]) -> tuple[Key, dict[str, float]]:
    key = Key(**{name: fields[name] for name in Key._fields})
    Problem.parse(key.problem)
    seconds = {str(name): float(value) for name, value in fields["seconds"].items()}
    if not all(0 < each < float("inf") for each in seconds.values()):
        raise ValueError(f"seconds of {key.problem} are not all positive numbers")
    return key, seconds


WISDOM = Wisdom()
"""The wisdom of this process."""

save, load, forget = WISDOM.save, WISDOM.load, WISDOM.forget
