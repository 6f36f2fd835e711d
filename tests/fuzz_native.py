"""Fuzz of the native entry points: python tests/fuzz_native.py [seconds] [seed]

Needs NumPy alone, so that it is quick under the sanitizers (tests/sanitize.sh).  Every
geometry runs all three maps on every instruction set, on one thread and on three, into memory
full of NaN, and must keep the form: <y, forward(x, w)> = <x, grad_input(y, w)> =
<w, grad_weight(x, y)>.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import random
import sys
import time
from pathlib import Path

import numpy as np


def load():
    """The extension on its own: the package would import torch."""
    for folder in sys.path:
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            path = Path(folder or ".") / "torch_corr" / f"_direct{suffix}"
            if path.exists():
                spec = importlib.util.spec_from_file_location("_direct", path)
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
                return module
    raise SystemExit("torch_corr._direct is not on the path")


def axis(r: random.Random):
    size = r.choice([1, r.randint(1, 6), r.randint(1, 40), r.choice([63, 64, 65, 130, 300])])
    kernel = r.choice([1, r.randint(1, 4), r.randint(1, 12), size, r.randint(13, 40)])
    dilation = r.choice([1, 1, 1, 2, 3, 4, 70])
    stride = r.choice([1, 1, 1, 2, 3, 4, 6, 9, 200])
    before, after = (r.choice([0, 0, r.randint(0, 3), r.randint(0, 30)]) for _ in "ab")
    before += max(0, dilation * (kernel - 1) + 1 - size - before - after)
    return (
        size,
        kernel,
        stride,
        before,
        after,
        dilation,
        (size + before + after - dilation * (kernel - 1) - 1) // stride + 1,
    )


def main(seconds: float = 60, seed: int = 0) -> None:
    native = load()
    r, end, count = random.Random(seed), time.time() + seconds, 0
    while time.time() < end:
        g, gi, go, n = (
            r.choice([1, 1, 2, 5]),
            r.choice([1, 1, 2, 6]),
            r.choice([1, 1, 2, 5, 20]),
            r.choice([0, 1, 1, 2, 3]),
        )
        (h, kh, sh, pt, pb, dh, oh), (w, kw, sw, pl, pr, dw, ow) = axis(r), axis(r)
        if max(n, 1) * g * gi * go * oh * ow * kh * kw > 2e6 or max(n, 1) * g * go * oh * ow > 3e5:
            continue
        shapes = {"x": n * g * gi * h * w, "w": g * go * gi * kh * kw, "y": n * g * go * oh * ow}
        rng = np.random.default_rng(r.randrange(2**31))
        exact = {k: rng.standard_normal(v) for k, v in shapes.items()}
        sizes = [n, g * gi, h, w, g * go, kh, kw, sh, sw, pt, pb, pl, pr, dh, dw, g]
        for code, dtype in enumerate([np.float32, np.float64, np.float16]):
            data = {k: v.astype(dtype) for k, v in exact.items()}
            first = {}
            for isa in native.isas():
                for threads in (1, 3):
                    forms = []
                    for name, (a, b, c) in {
                        "forward": "xwy",
                        "grad_input": "ywx",
                        "grad_weight": "xyw",
                    }.items():
                        out = np.full(shapes[c], np.nan, dtype)
                        operands = [data[a], data[b], out]
                        pointers = [v for o in operands for v in (o.ctypes.data, o.size)]
                        getattr(native, name)(*pointers, *sizes, code, threads, isa)
                        assert np.isfinite(out).all(), (name, isa, dtype, sizes)
                        forms.append(float(out.astype(np.float64) @ data[c].astype(np.float64)))
                        again = first.setdefault((name, isa), out)
                        assert np.array_equal(again, out), (
                            "threads change the result",
                            name,
                            isa,
                            dtype,
                            sizes,
                        )
                    scale = 1 + sum(abs(f) for f in forms) + (shapes["y"] * gi * kh * kw) ** 0.5
                    close = {np.float32: 1e-5, np.float64: 1e-13, np.float16: 2e-2}[dtype] * scale
                    assert max(forms) - min(forms) <= close, (forms, isa, dtype, sizes)
        count += 1
    print(f"{count} geometries, seed {seed}: the form holds on {', '.join(native.isas())}")


main(*(float(v) if i == 0 else int(v) for i, v in enumerate(sys.argv[1:])))
