"""The command ``demo``: examples from a textbook, and a filtered photograph.

The demo computes every number that it prints and compares it with the textbook.  If a number
differs, the demo ends with exit code 1.
"""

from __future__ import annotations

import io
import os
import sys
import time
import warnings
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .functional import corr2d, plan
from .modules import Corr2d

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image

LONGEST_SIDE = 1024
"""In pixels.  A larger picture is shrunk, since a panel of the figure shows no more than this."""

SIGMA = 3.0
"""Standard deviation of the blur in pixels."""

REACH = round(3 * SIGMA)
"""Pixels from the center of the blur's kernel to its border."""


class DemoError(Exception):
    """Ends the demo with a message; the exit code is 2 if the arguments are wrong, else 1."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def run(image: str | None, output: str) -> int:
    """Run the demo and return the exit code.

    Args:
        image: path of a picture, or None for the portrait that comes with matplotlib.
        output: path of the PNG to write; an existing file is replaced.

    Returns:
        0 if everything worked; 1 if a package is missing, the figure cannot be written or a
        number differs from the textbook's; 2 if ``image`` or ``output`` cannot be used.
    """
    try:
        if image is not None:
            _check_readable(Path(image))
        target = _checked_output(output, image)
        textbook()
        photograph(None if image is None else Path(image), target)
    except DemoError as error:
        sys.stdout.flush()
        print(f"torch_corr demo: {error}", file=sys.stderr)
        return error.exit_code
    return 0


# The textbook


def textbook() -> None:
    """Compute the examples of section 7.2 of *Dive into Deep Learning* and compare them."""
    print("Dive into Deep Learning, section 7.2, step by step\n")
    _textbook_window()
    bar, kernel, edges = _textbook_edges()
    _textbook_learning(bar, kernel, edges)


def _textbook_window() -> None:
    X = torch.arange(9.0).reshape(3, 3)
    K = torch.arange(4.0).reshape(2, 2)
    Y = corr2d(X, K)
    print("1. Slide K over X; each output is the sum of a window times K.\n")
    _print_beside(("X", X), ("K", K), ("corr2d(X, K)", Y))
    _compare("corr2d(X, K)", Y, torch.tensor([[19.0, 25.0], [37.0, 43.0]]))
    print("   The textbook has the same result, [[19, 25], [37, 43]].\n")


def _textbook_edges() -> tuple[Tensor, Tensor, Tensor]:
    X = torch.ones(6, 8)
    X[:, 2:6] = 0
    K = torch.tensor([[1.0, -1.0]])
    Y = corr2d(X, K)
    print("2. K = [[1, -1]] finds the vertical edges of a black bar on white.\n")
    _print_beside(("X", X), ("K", K), ("corr2d(X, K)", Y))
    _compare("corr2d(X, K)", Y, torch.tensor([[0.0, 1, 0, 0, 0, -1, 0]]).expand(6, 7))
    print("   1 is an edge from white to black, and -1 from black to white.  The rows are the same")
    print("   in the textbook.")
    _compare("corr2d(X.T, K)", corr2d(X.T, K), torch.zeros(8, 5))
    print("   The transposed image has no vertical edge, so corr2d(X.T, K) is 0 everywhere, as in")
    print("   the textbook.\n")
    return X, K, Y


def _textbook_learning(X: Tensor, K: Tensor, Y: Tensor) -> None:
    # The loss after ten steps depends on the initial weights; with about a third of the seeds it
    # is below 0.02.  With this seed the losses are close to those that the textbook prints.
    torch.manual_seed(10)
    layer = Corr2d(1, 1, kernel_size=(1, 2), bias=False)
    images, targets = X[None, None], Y[None, None]
    print("3. Corr2d learns K from X and corr2d(X, K) in 10 steps of gradient descent (sum of the")
    print("   squared errors, learning rate 0.03).\n")
    losses = []
    for step in range(1, 11):
        loss = ((layer(images) - targets) ** 2).sum()
        layer.zero_grad()
        loss.backward()
        with torch.no_grad():
            layer.weight -= 3e-2 * layer.weight.grad  # type: ignore[operator]
        if step % 2 == 0:
            losses.append(loss.item())
            print(f"       step {step:>2}   loss {losses[-1]:.4f}")
    learned = layer.weight.detach()[0, 0]
    print(f"\n   The loss falls from {losses[0]:.2f} to {losses[-1]:.4f}; in the textbook it falls")
    print("   from about 5 to below 0.02.")
    print(
        f"   The kernel learned is [{learned[0, 0]:.3f}, {learned[0, 1]:.3f}]; in the textbook it"
    )
    print("   is close to [1, -1].\n")
    as_printed = 4 < losses[0] < 6 and losses[-1] < 0.02
    _require(as_printed, "the loss", f"{losses[0]} ... {losses[-1]}", "about 5 ... below 0.02")
    _compare("the kernel learned", learned, K, within=0.05)


def _compare(what: str, computed: Tensor, expected: Tensor, within: float = 0.0) -> None:
    same_shape = computed.shape == expected.shape
    same = same_shape and torch.allclose(computed, expected, rtol=0, atol=within)
    _require(same, what, computed.tolist(), expected.tolist())


def _require(holds: bool, what: str, computed: object, expected: object) -> None:
    if not holds:
        raise DemoError(
            f"{what} is {computed} here, and {expected} in the textbook; this is a bug of "
            f"torch_corr with torch {torch.__version__}, please report it",
            exit_code=1,
        )


def _print_beside(*matrices: tuple[str, Tensor]) -> None:
    """Print matrices of integers side by side, each under its name."""
    blocks = []
    for name, matrix in matrices:
        rows = [" ".join(f"{int(value):>2}" for value in row) for row in matrix.tolist()]
        blocks.append([name, *rows])
    widths = [max(map(len, block)) for block in blocks]
    for lines in zip_longest(*blocks, fillvalue=""):
        print(f"       {'     '.join(map(str.ljust, lines, widths))}".rstrip())
    print()


# The photograph


class Panel(NamedTuple):
    """A filtered picture, with the time of the layer.

    Attributes:
        name: what the filter shows.
        legend: how to read the picture.
        picture: (C, H, W); black is 0 and white is 1.
        cells: the algorithm of the forward map; the median times of the layer and of ``F.pad`` with
            ``F.conv2d``; the largest absolute difference of their results; the number of runs.
    """

    name: str
    legend: str
    picture: Tensor
    cells: tuple[str, str, str, str, str]


def photograph(path: Path | None, output: Path) -> None:
    """Apply three filters to a picture, print their times and save a figure."""
    _need_packages()
    source, credit = (_portrait(), "Grace Hopper, public domain") if path is None else (path, "")
    colour, size = read_picture(source)
    _, _, height, width = colour.shape
    print(f"A photograph: {source}")
    shrunk = f", shrunk from {size[0]} x {size[1]}" if size != (width, height) else ""
    print(f"{width} x {height} pixels{shrunk}\n")
    panels = apply_filters(colour)
    _print_table(panels)
    _write(output, _draw(colour, credit, panels))


def apply_filters(colour: Tensor) -> list[Panel]:
    """Apply the three filters of the demo to a colour picture (1, 3, H, W)."""
    # Brightness by ITU-R BT.601.
    grey = (colour * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    sobel = torch.tensor([[-1.0, -2, -1], [0, 0, 0], [1, 2, 1]]) / 8  # brightness per pixel
    offsets = torch.arange(-REACH, REACH + 1.0)
    bell = torch.exp(-((offsets / SIGMA) ** 2) / 2)
    gauss = torch.outer(bell, bell) / bell.sum() ** 2
    horizontal = "Sobel; red: brighter below, blue: darker below"
    vertical = "Sobel; red: brighter to the right, blue: darker"
    blur = f"Gaussian, sigma {SIGMA:g} pixels, kernel {len(bell)} x {len(bell)}"
    return [
        _panel("Horizontal edges", horizontal, sobel, grey),
        _panel("Vertical edges", vertical, sobel.T, grey),
        _panel("Blur", blur, gauss, colour),
    ]


def _panel(name: str, legend: str, kernel: Tensor, images: Tensor) -> Panel:
    """Apply a kernel to every channel, compare with ``F.pad`` and ``F.conv2d``, and time both."""
    rows, columns = kernel.shape
    channels = images.shape[1]
    layer = Corr2d(
        channels,
        channels,
        (rows, columns),
        padding="same",
        groups=channels,
        bias=False,
        padding_mode="reflect",  # zeros would add edges at the border
    )
    layer.requires_grad_(False).weight.copy_(kernel)

    def padded() -> Tensor:
        sides = columns // 2, columns // 2, rows // 2, rows // 2
        return F.pad(images, sides, mode="reflect")

    def reference() -> Tensor:
        return F.conv2d(padded(), layer.weight, groups=channels)

    picture: Tensor = layer(images)
    difference = (picture - reference()).abs().max().item()
    (ours, theirs), runs = _medians(lambda: layer(images), reference)
    chosen = plan(padded(), layer.weight, groups=channels, algorithm=layer.algorithm)
    times = f"{ours * 1e3:.2f} ms", f"{theirs * 1e3:.2f} ms"
    apart = f"{difference:.1e}" if difference else "0"
    return Panel(name, legend, picture[0], (chosen.forward.name, *times, apart, str(runs)))


def _medians(*calls: Callable[[], Tensor]) -> tuple[list[float], int]:
    """The median times of some calls in seconds, and the number of runs, from 5 to 25.

    The calls alternate, so that other load on the machine affects all.
    """
    times: list[list[float]] = [[] for _ in calls]
    for call in calls * 2:  # warm up
        call()
    deadline = time.perf_counter() + 1.0
    runs = 0
    while runs < 5 or (runs < 25 and time.perf_counter() < deadline):
        runs += 1
        for call, seconds in zip(calls, times):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    return [median(seconds) for seconds in times], runs


def _print_table(panels: list[Panel]) -> None:
    row = "{:<18}{:<11}{:>10}{:>12}{:>13}{:>7}".format
    print(row("", "algorithm", "Corr2d", "F.conv2d", "difference", "runs"))
    for panel in panels:
        print(row(panel.name, *panel.cells))
    print()
    print(f"Times: {_conditions()}; both pad the image first, and the runs alternate.")
    print("Difference: the largest of any pixel, where black is 0 and white is 1.\n")


def _conditions() -> str:
    threads = torch.get_num_threads()
    return f"medians on {threads} CPU thread{'s' * (threads != 1)}, torch {torch.__version__}"


def _draw(colour: Tensor, credit: str, panels: list[Panel]) -> bytes:
    """Draw the figure and return the bytes of a PNG."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    height, width = colour.shape[2:]
    # A panel is as high as its picture, within limits for very tall and very flat pictures.
    panel_height = 4.6 * min(max(height / width, 0.15), 1.6)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the user's style may make the labels invisible
        figure = Figure(
            figsize=(10, 2 * panel_height + 3),
            dpi=120,
            layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.12, hspace=0.06),
        )
        FigureCanvasAgg(figure)
        figure.suptitle("One photograph, three filters of torch_corr.Corr2d", fontsize=16)
        figure.supxlabel(
            f"Times: {_conditions()}.  Difference: the largest from F.conv2d, where white is 1.",
            fontsize=9,
            color="0.35",
        )
        axes = figure.subplots(2, 2).flat
        caption = f"{width} x {height} pixels{', ' * bool(credit)}{credit}"
        _draw_panel(next(axes), "Photograph", caption, colour[0])
        for name, legend, picture, (algorithm, ours, theirs, difference, _) in panels:
            times = f"Corr2d ({algorithm}) {ours},  F.conv2d {theirs},  difference {difference}"
            _draw_panel(next(axes), name, f"{legend}\n{times}", picture)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_panel(axes: Axes, name: str, caption: str, picture: Tensor) -> None:
    if picture.shape[0] == 3:
        axes.imshow(picture.clamp(0, 1).permute(1, 2, 0).numpy())
    else:
        # Ignore the strongest 1% of the pixels, or the others would be pale.
        strength = picture.abs().flatten().sort().values
        limit = max(strength[int(0.99 * (len(strength) - 1))].item(), 1e-3)
        axes.imshow(picture[0].numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.set_title(name, fontsize=14, fontweight="bold")
    axes.set_xlabel(caption, fontsize=10, linespacing=1.4)
    axes.set_xticks([])
    axes.set_yticks([])


# Files


def _need_packages() -> None:
    missing = []
    for module in ("numpy", "PIL", "matplotlib"):
        try:
            __import__(module)
        except ModuleNotFoundError as error:
            # The missing module may be a dependency: matplotlib imports Pillow.
            name = (error.name or module).partition(".")[0]
            missing.append("Pillow" if name == "PIL" else name)
        except ImportError as error:
            raise DemoError(f"{module} cannot be imported: {error}", exit_code=1) from None
    if missing:
        raise DemoError(
            f"the photograph needs {' and '.join(dict.fromkeys(missing))}, not installed here; "
            f'run: pip install "torch_corr[demo]"',
            exit_code=1,
        )


def _portrait() -> Path:
    from matplotlib.cbook import get_sample_data

    path = Path(str(get_sample_data("grace_hopper.jpg", asfileobj=False)))
    if not path.is_file():  # some Linux distributions omit the sample data
        raise DemoError(
            "this matplotlib comes without its sample photograph; give one of your own: "
            "python -m torch_corr demo IMAGE",
            exit_code=1,
        )
    return path


def _check_readable(path: Path) -> None:
    """Raise DemoError unless the path is a readable file."""
    try:
        if path.is_dir():
            raise DemoError(f"{path} is a directory; give the path of a picture")
        with path.open("rb"):
            return
    except FileNotFoundError:
        raise DemoError(f"there is no file {path}") from None
    except PermissionError:
        raise DemoError(f"no permission to read {path}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise DemoError(f"cannot read {path}: {error}") from None


def read_picture(path: Path) -> tuple[Tensor, tuple[int, int]]:
    """Read a picture, rotate it as EXIF says, and shrink it to ``LONGEST_SIDE``.

    Returns:
        The picture (1, 3, H, W), with values from 0 to 1, and the (width, height) of the file.
    """
    import numpy as np
    import PIL.Image
    import PIL.ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about large pictures and odd metadata
            with PIL.Image.open(path) as file:
                image = _plain(PIL.ImageOps.exif_transpose(file))
    except PIL.UnidentifiedImageError:
        raise DemoError(f"{path} is no image, or of a format that Pillow does not know") from None
    except Exception as error:  # for damaged files, Pillow raises many types
        raise DemoError(f"{path} cannot be read as an image: {error}") from None
    size = image.size
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    if min(image.size) <= REACH:
        shrunk = "" if image.size == size else f", {image.width} x {image.height} when shrunk"
        raise DemoError(
            f"{path} is {size[0]} x {size[1]} pixels{shrunk}; the blur needs at least "
            f"{REACH + 1} each way"
        )
    values = np.array(image, dtype=np.float32)
    pixels = torch.from_numpy(values / 255 if image.mode == "RGB" else values)
    if pixels.dim() == 2:
        pixels = pixels[:, :, None].expand(-1, -1, 3)
    return pixels.permute(2, 0, 1)[None].contiguous(), size


def _plain(image: Image) -> Image:
    """Convert to RGB with 8 bits per channel; grey with more bits to one channel of floats."""
    import numpy as np
    import PIL.Image

    if image.mode == "F" or image.mode.startswith("I"):
        values = np.nan_to_num(np.array(image, dtype=np.float32), posinf=0, neginf=0)
        # 16 bits have a fixed scale.  Other numbers have none, so they are scaled to 0..1.
        if image.mode != "F" and values.min() >= 0 and values.max() <= 65535:
            values /= 65535
        elif values.min() < 0 or values.max() > 1:
            values = (values - values.min()) / max(float(np.ptp(values)), 1e-30)
        return PIL.Image.fromarray(values)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = PIL.Image.new("RGBA", image.size, "white")
        image = PIL.Image.alpha_composite(white, image)
    return image.convert("RGB")


def _checked_output(output: str, image: str | None) -> Path:
    """The path of the figure.  Raises DemoError if it cannot be written."""
    path = Path(output)
    try:
        if path.suffix.lower() != ".png":
            raise DemoError(f"--output {path} must end in .png, the figure's format")
        if path.is_dir():
            raise DemoError(f"--output {path} is a directory; add a file name")
        if not path.parent.is_dir():
            raise DemoError(f"--output {path}: there is no directory {path.parent}; make it first")
        if image is not None and path.exists() and path.samefile(image):
            raise DemoError(f"--output {path} is the picture itself; name another")
    except (OSError, ValueError) as error:
        raise DemoError(f"cannot write --output {path}: {error}") from None
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise DemoError(f"no permission to write {path}; name another --output")
    return path


def _write(path: Path, data: bytes) -> None:
    replaced = ", replacing the file that was there" if path.exists() else ""
    try:
        path.write_bytes(data)
    except OSError as error:
        raise DemoError(f"cannot write {path}: {error.strerror}", exit_code=1) from None
    print(f"Saved the figure as {path.resolve()}{replaced}.")
