"""Fuzzes the native entry points: python tests/support/fuzz_native.py [seconds] [seed]

Needs only NumPy, so it is quick with the sanitizers (tests/support/sanitize.sh).  Each geometry
runs all three maps on every instruction set, with one thread and with three, into
memory full of NaN.
The three maps must agree: <y, forward(x, w)> = <x, grad_input(y, w)> = <w, grad_weight(x, y)>.
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
    """Loads the extension without the package, which would import torch."""
    for folder in sys.path:
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            path = Path(folder or ".") / "torch_corr" / "native" / f"_compiled{suffix}"
            if path.exists():
                spec = importlib.util.spec_from_file_location("_compiled", path)
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
                return module
    raise SystemExit("torch_corr.native._compiled is not on the path")


HUGE = 2**40
EDGES = [
    # n, c, h, w, o, kh, kw, sh, sw, top, bottom, left, right, dh, dw, g
    [0, 1, 8, 8, 1, 3, 3, 1, 1, 0, 0, 0, 0, 1, 1, 1],  # no image
    [1, 0, 8, 8, 2, 3, 3, 1, 1, 0, 0, 0, 0, 1, 1, 1],  # no channel
    [1, 2, 8, 8, 0, 3, 3, 1, 1, 0, 0, 0, 0, 1, 1, 1],  # no filter
    [1, 1, 0, 5, 1, 2, 2, 1, 1, 1, 1, 0, 0, 1, 1, 1],  # no row, but padding
    [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1],  # one pixel
    [1, 1, 33, 70, 1, 33, 70, 1, 1, 0, 0, 0, 0, 1, 1, 1],  # the kernel as large as the image
    [2, 3, 17, 33, 3, 5, 5, 7, 40, 2, 2, 2, 2, 1, 1, 3],  # the stride past the kernel
    [1, 1, 9, 9, 1, 2, 2, HUGE, HUGE, HUGE, HUGE, HUGE, HUGE, 1, 1, 1],  # huge padding
    [1, 1, 9, 9, 1, 3, 2, 1, 1, HUGE, HUGE, 0, HUGE, HUGE, HUGE, 1],  # huge dilation
    [1, 1, 9, 9, 1, 2, 2, 2**32, 1, 2**34 - 1, 2**34, 0, 0, 2**32 - 1, 1, 1],  # far rows
    [1, 2, 5, 700, 3, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1],  # wide: the padding has its own blocks
    [2, 1, 3, 1100, 1, 2, 9, 1, 1, 0, 1, 300, 20, 2, 30, 1],  # padding wider than a strip
    [1, 3, 4, 333, 3, 3, 2, 1, 1, 1, 0, 0, 70, 1, 200, 3],  # taps far from each other
    [1, 4, 2, 500, 1, 1, 90, 1, 1, 0, 0, 9000, 9000, 1, 200, 1],  # a long packed row
    [1, 2, 9, 9, 2, 1, 1, 2**48, 2**48, 0, 0, 0, 0, 2**48, 2**48, 2],  # no effect
]


MAPS = {"forward": "xwy", "grad_input": "ywx", "grad_weight": "xyw"}


def gives_results_at_points(native, sizes, code: int, data, rng) -> None:
    """Some results one by one are those of the whole map, summed in double precision."""
    for number, (name, (a, b, c)) in enumerate(MAPS.items()):
        first, second = data[a].astype(np.float64), data[b].astype(np.float64)
        whole = np.empty(data[c].size)
        pointers = [v for o in (first, second, whole) for v in (o.ctypes.data, o.size)]
        getattr(native, name)(*pointers, 0, 0, sizes, 1, False, 1, "")
        points = rng.integers(0, max(1, whole.size), min(50, whole.size))
        for threads in (1, 3):
            sums = np.full(len(points), np.nan)
            operands = [v for o in (data[a], data[b]) for v in (o.ctypes.data, o.size)]
            native.results_at(
                number, *operands, points.ctypes.data, sums.ctypes.data, len(points), sizes, code,
                threads,
            )  # fmt: skip
            assert np.allclose(sums, whole[points], rtol=1e-9, atol=1e-9), (name, sizes)


def check_maps_agree(native, sizes, seed: int) -> None:
    """Runs all maps, instruction sets and numbers of threads on one geometry."""
    n, c, h, w, o, kh, kw, *_, g = sizes
    oh, ow = output_size(sizes)
    gi = c // g
    shapes = {"x": n * c * h * w, "w": o * gi * kh * kw, "y": n * o * oh * ow}
    rng = np.random.default_rng(seed)
    exact = {k: rng.standard_normal(v) for k, v in shapes.items()}
    for code, dtype in enumerate([np.float32, np.float64, np.float16]):
        data = {k: v.astype(dtype) for k, v in exact.items()}
        first = {}
        if code < 2:
            gives_results_at_points(native, sizes, code, data, rng)
        for isa in native.isas():
            for threads in (1, 3):
                forms = []
                for name, (a, b, c) in MAPS.items():
                    out = np.full(shapes[c], np.nan, dtype)
                    operands = [data[a], data[b], out]
                    pointers = [v for o in operands for v in (o.ctypes.data, o.size)]
                    getattr(native, name)(*pointers, 0, 0, sizes, code, False, threads, isa)
                    assert np.isfinite(out).all(), (name, isa, dtype, sizes)
                    forms.append(float(out.astype(np.float64) @ data[c].astype(np.float64)))
                    again = first.setdefault((name, isa), out)
                    case = name, isa, dtype, sizes
                    assert np.array_equal(again, out), ("threads change the result", *case)
                scale = 1 + sum(abs(f) for f in forms) + (shapes["y"] * gi * kh * kw) ** 0.5
                close = {np.float32: 1e-5, np.float64: 1e-13, np.float16: 2e-2}[dtype] * scale
                assert max(forms) - min(forms) <= close, (forms, isa, dtype, sizes)


def channels_last(values, operand: str, sizes):
    """A copy of an operand in the order of channels_last; filters stay as they are."""
    n, c, h, w, o, *_, g = sizes
    if operand == "w" or not values.size:
        return values.copy()
    if operand == "x":
        return values.reshape(n, c, h, w).transpose(0, 2, 3, 1).ravel()
    shape = n, g, o // g, *output_size(sizes)
    return values.reshape(shape).transpose(2, 0, 3, 4, 1).ravel()


def check_channels_last(native, sizes, seed: int) -> None:
    """A depthwise layer in channels_last, with a bias, against float64 sums of contiguous images.

    The error is at most that of ``terms`` roundings, each of at most the sum of all moduli, and of
    one rounding to the storage type.
    """
    n, c, h, w, o, kh, kw, *_, g = sizes
    oh, ow = output_size(sizes)
    rng = np.random.default_rng(seed)
    count = {"x": n * c * h * w, "w": o * kh * kw, "y": n * o * oh * ow}
    exact = {k: rng.standard_normal(v) for k, v in count.items()}
    terms = {"forward": kh * kw + 1, "grad_input": kh * kw * o // g, "grad_weight": n * oh * ow}

    def run(name, data, bias, code, last, threads, isa):
        result = np.full(count[MAPS[name][2]], np.nan, bias.dtype)
        operands = [data[k] for k in MAPS[name][:2]]
        biased = (bias.ctypes.data, o) if name == "forward" else (0, 0)
        pointers = [v for each in (*operands, result) for v in (each.ctypes.data, each.size)]
        getattr(native, name)(*pointers, *biased, sizes, code, last, threads, isa)
        return result.astype(np.float64)

    for code, dtype in enumerate([np.float32, np.float64, np.float16]):
        data = {k: v.astype(dtype) for k, v in exact.items()}
        bias = rng.standard_normal(o).astype(dtype)
        laid_out = {k: channels_last(v, k, sizes) for k, v in data.items()}
        doubles = {k: v.astype(np.float64) for k, v in data.items()}
        moduli = {k: np.abs(v) for k, v in doubles.items()}
        for name, operands in MAPS.items():
            expected, largest = (
                channels_last(run(name, each, b, 1, False, 1, ""), operands[2], sizes)
                for each, b in ((doubles, bias.astype(float)), (moduli, np.abs(bias).astype(float)))
            )
            sum_eps = np.finfo(np.float64 if code == 1 else np.float32).eps
            bound = (
                terms[name] * sum_eps * largest
                + np.finfo(dtype).eps * np.abs(expected)
                + 1e-7 * (code == 2)
            )
            for isa in native.isas():
                for threads in (1, 3):
                    found = run(name, laid_out, bias, code, True, threads, isa)
                    assert (np.abs(found - expected) <= bound).all(), (name, isa, dtype, sizes)


def output_size(sizes) -> tuple[int, int]:
    _, _, h, w, _, kh, kw, sh, sw, top, bottom, left, right, dh, dw, _ = sizes
    return (
        (h + top + bottom - dh * (kh - 1) - 1) // sh + 1,
        (w + left + right - dw * (kw - 1) - 1) // sw + 1,
    )


def check_offsets_beyond_32_bits(native) -> None:
    """70000 x 32768 float16 numbers; most pages are never touched, so they take no memory."""
    h, w, stride = 70_000, 2**15, 1000
    x = np.zeros(h * w, np.float16)
    sizes = [1, 1, h, w, 1, 3, 3, stride, stride, 0, 0, 0, 0, 1, 1, 1]
    oh, ow = (h - 3) // stride + 1, (w - 3) // stride + 1
    at = (oh - 1) * stride * w + (ow - 1) * stride  # the last window's first tap
    assert at > 2**31
    x[at] = 3
    weight, ones = np.arange(9, dtype=np.float16) + 2, np.ones(oh * ow, np.float16)
    for isa in native.isas():
        y, dw = np.full(oh * ow, np.nan, np.float16), np.full(9, np.nan, np.float16)
        for name, (a, b, out) in {"forward": (x, weight, y), "grad_weight": (x, ones, dw)}.items():
            pointers = [v for o in (a, b, out) for v in (o.ctypes.data, o.size)]
            getattr(native, name)(*pointers, 0, 0, sizes, 2, False, 2, isa)
        assert y[-1] == 6, isa
        assert not y[:-1].any(), isa
        assert dw.tolist() == [3] + 8 * [0], isa


def scans_planes(native, r: random.Random) -> None:
    """Bounds from norms, and which numbers are small, of planes of any size."""
    count, pixels = r.choice([1, 2, 7]), r.choice([1, 31, 32, 33, 8191, 8192, 8193, 70_000])
    sizes = [count, 1, 1, pixels, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1]
    for code, dtype in enumerate([np.float32, np.float64]):
        x = np.random.default_rng(r.randrange(2**20)).standard_normal((count, pixels)).astype(dtype)
        x[-1, -1] = np.nan
        w = np.ones(1, dtype)
        bounds = np.abs(x[:, 0].astype(np.float64)) * 0.01
        small = np.flatnonzero(~(np.abs(x) >= bounds.astype(dtype)[:, None])).tolist()
        exact = np.sqrt((x.astype(np.float64) ** 2).sum(1))
        exact[np.isnan(exact)] = np.inf
        for isa in native.isas():
            for threads in (1, 3):
                norms = np.zeros(count)
                how = code, threads, isa
                operands = x.ctypes.data, x.size, w.ctypes.data, 1
                native.error_bounds(
                    0, *operands, norms.ctypes.data, count, 1.0, 1e-99, 1e99, 1e99, sizes, *how
                )
                assert np.allclose(norms, exact, rtol=1e-12, atol=0), isa
                requested = x.ctypes.data, x.size, bounds.ctypes.data, count, 1.0, 0.0
                assert native.below(*requested, len(small), *how) == small, isa
                assert native.below(*requested, len(small) - 1, *how) is None, isa


def axis(r: random.Random):
    size = r.choice([1, r.randint(1, 6), r.randint(1, 40), r.choice([63, 64, 65, 130, 300])])
    kernel = r.choice([1, r.randint(1, 4), r.randint(1, 12), size, r.randint(13, 40)])
    dilation = r.choice([1, 1, 1, 2, 3, 4, 70])
    stride = r.choice([1, 1, 1, 2, 3, 4, 6, 9, 200])
    before, after = (r.choice([0, 0, r.randint(0, 3), r.randint(0, 30)]) for _ in "ab")
    before += max(0, dilation * (kernel - 1) + 1 - size - before - after)
    outputs = (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
    return size, kernel, stride, before, after, dilation, outputs


def main(seconds: float = 60, seed: int = 0) -> None:
    native = load()
    for sizes in EDGES:
        check_maps_agree(native, sizes, seed)
    check_offsets_beyond_32_bits(native)
    r, end, count = random.Random(seed), time.time() + seconds, len(EDGES) + 1
    while time.time() < end:
        scans_planes(native, r)
        choices = [1, 1, 2, 5], [1, 1, 2, 6], [1, 1, 2, 5, 20], [0, 1, 1, 2, 3]
        g, gi, go, n = map(r.choice, choices)
        (h, kh, sh, pt, pb, dh, oh), (w, kw, sw, pl, pr, dw, ow) = axis(r), axis(r)
        if max(n, 1) * g * gi * go * oh * ow * kh * kw > 2e6 or max(n, 1) * g * go * oh * ow > 3e5:
            continue
        sizes = [n, g * gi, h, w, g * go, kh, kw, sh, sw, pt, pb, pl, pr, dh, dw, g]
        check_maps_agree(native, sizes, r.randrange(2**31))
        g, go = r.choice([16, 17, 31, 32, 48, 65]), r.choice([1, 1, 1, 2, 3])
        if (
            g * go * n * oh * ow * kh * kw < 2e6
            and g * go * n * oh * ow < 3e5
            and dw * (kw - 1) < 1024
        ):
            depthwise = [n, g, h, w, g * go, kh, kw, sh, sw, pt, pb, pl, pr, dh, dw, g]
            check_channels_last(native, depthwise, r.randrange(2**31))
        count += 1
    print(f"{count} geometries, seed {seed}: the maps agree on {', '.join(native.isas())}")


main(*(float(v) if i == 0 else int(v) for i, v in enumerate(sys.argv[1:])))
