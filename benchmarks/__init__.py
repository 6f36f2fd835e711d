"""Compare the speed of torch_corr with that of PyTorch and other packages.

python -m benchmarks --quick
python -m benchmarks --help
"""

from __future__ import annotations

import importlib.util

INSTALL = 'pip install -e ".[bench]"'
"""Installs all peers and matplotlib; to be run in the checkout."""

if importlib.util.find_spec("hypothesis") is None:
    raise SystemExit(
        "python -m benchmarks compares every result with the oracle of torch_corr.testing, which "
        f"needs hypothesis: pip install hypothesis; or, with peers and charts, {INSTALL}"
    )
