"""Imported by the fork server of ``memory`` before it forks, so that children import nothing.

Importing must start no thread pool of PyTorch, because a forked pool hangs.
"""

from __future__ import annotations

from . import memory  # noqa: F401
from .peers import peers

for _peer in peers():
    if _peer.absent() is None:
        _peer.module()
