"""Long transforms by FFT: spectra laid out image by image, channels multiplied pair by pair.

A spectrum is (image, row of tiles, tile, channel, frequencies), as ``torch.fft`` gives it;
the sum over the channels of a group is a loop of elementwise products.  That suits one
channel, depthwise and a few channels, where no matrix product could gain from the
transposition that it needs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._tiling import Window, overlap_add, read_span

Windows = tuple[Window, Window]
"""One operand's place along the rows and along the columns."""


def analyse(tensor: Tensor, windows: Windows, lengths: tuple[int, int], reverse: bool) -> Tensor:
    """Spectra of the tiles of (images, channels, H, W): (images, channels, T, U, f, g).

    ``reverse`` gives the spectrum at (-f, -g).
    """
    tiles = _cut(tensor, windows)
    if (windows[0].spacing, windows[1].spacing) != (1, 1):
        tiles = _spread(tiles, windows)
    spectrum: Tensor
    if tensor.is_complex():
        transform = torch.fft.ifft2 if reverse else torch.fft.fft2
        spectrum = transform(tiles, s=lengths, norm="forward" if reverse else "backward")
        return spectrum
    spectrum = torch.fft.rfft2(tiles, s=lengths)
    return spectrum.conj_physical_() if reverse else spectrum


def synthesise(spectrum: Tensor, windows: Windows, lengths: tuple[int, int], real: bool) -> Tensor:
    """(images, channels, rows, columns) under the tiles of (images, channels, T, U, f, g)."""
    down, across = windows
    tiles = torch.fft.irfft2(spectrum, s=lengths) if real else torch.fft.ifft2(spectrum)
    tiles = tiles[..., :: down.spacing, :: across.spacing]
    tiles = tiles[..., : down.count, : across.count].permute(0, 1, 2, 4, 3, 5)
    return overlap_add(overlap_add(tiles, 2, down.hop), 3, across.hop)


def _cut(tensor: Tensor, windows: Windows) -> Tensor:
    """Tiles (images, channels, T, U, count, count) of a tensor, zeros where it has no samples."""
    down, across = windows
    (rows, to_rows), (columns, to_columns) = (
        read_span(window, size) for window, size in zip(windows, tensor.shape[2:])
    )
    padded = tensor[:, :, rows, columns]
    samples = (down.samples, across.samples)
    if tuple(padded.shape[2:]) != samples:
        padded = tensor.new_zeros(*tensor.shape[:2], *samples)
        padded[:, :, to_rows, to_columns] = tensor[:, :, rows, columns]
    if down.tiles == across.tiles == 1:
        return padded[:, :, None, None]
    return padded.unfold(2, down.count, down.hop).unfold(3, across.count, across.hop)


def _spread(tiles: Tensor, windows: Windows) -> Tensor:
    """The samples of each tile, ``spacing`` apart with zeros between."""
    extents = [(window.count - 1) * window.spacing + 1 for window in windows]
    spread = tiles.new_zeros(*tiles.shape[:-2], *extents)
    spread[..., :: windows[0].spacing, :: windows[1].spacing] = tiles
    return spread
