"""Imported by the fork server of ``memory`` before it forks, so that no child need import.

Importing starts no thread pool of PyTorch's; a forked pool would hang.
"""

from __future__ import annotations

from . import memory  # noqa: F401
from .peers import Peer, peers

for _peer in peers():
    if isinstance(_peer, Peer) and _peer.absent() is None:
        _peer.module()
