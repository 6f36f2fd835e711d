"""Measure torch_corr against PyTorch and its peers: correct first, then timed, then pictured.

python -m benchmarks --quick
python -m benchmarks --help
"""

from __future__ import annotations

import importlib.util

INSTALL = 'pip install -e ".[bench]"'
"""What brings everything that takes part; in the checkout, from where the suite is run."""

if importlib.util.find_spec("hypothesis") is None:
    raise SystemExit(
        "python -m benchmarks holds every result against the oracle of torch_corr.testing, which "
        f"needs hypothesis: pip install hypothesis; or, with peers and charts, {INSTALL}"
    )
