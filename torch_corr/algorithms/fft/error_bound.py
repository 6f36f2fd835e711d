"""A proved normwise bound on the error of transforms.

Let u be half the machine epsilon, x_t the pixels that tile t reads, and K the number of terms in a
frequency's sum.  Each output of the tile obeys, to first order in u,

    |y^ - y| <= (e_x + e_w + e_y + sqrt(2) (K + 3) u) * sum_c ||x_tc||_2 ||w_oc||_2.

Proof.  By Parseval, sum_f |X_f| |W_f| / L <= ||X||_2 ||W||_2 / L = ||x||_2 ||w||_2 at L points, for
every output.  So a transform with an error of e_x ||X||_2 changes an output by at most e_x ||x||_2
||w||_2.  The products and their sum have an error of sqrt(2) (K + 3) u sum_c |X_c| |W_c| in each
frequency, which changes an output by at most sqrt(2) (K + 3) u times the same norms.  The inverse
computes each output as a sum over all frequencies, with weights of modulus 1, and adds e_y.
:func:`transform_error` states e_x, e_w and e_y.  The map grad_input adds up to ceil(n / hop)^2
overlapping tiles, hence as many such bounds; grad_weight sums x and y over the tiles. So a large
pixel affects the outputs of its own tile only.

Source: Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., chapter 24.
"""

from __future__ import annotations

import math

from ...request import SLOTS
from .plans import SUMMED, Engine, Task
from .tiling import prime_factors


def error_units(task: Task, engine: Engine) -> float:
    """The factor of u and ``sum_c ||x_c|| ||w_oc||`` in the bound of this module."""
    problem, map, axes = task.problem, task.map, task.axes
    terms = {"input": problem.group_in, "output": problem.group_out, "tiles": task.tiles}
    units = math.sqrt(2) * (terms[SUMMED[map]] + 3)
    for slot in SLOTS[map]:
        for axis in axes:
            samples = getattr(axis, slot).count
            if slot == SLOTS[map][2] and engine != "fft":
                # c + 4 as for a transform, and 2 for matrix entries divided by the length.
                units += math.sqrt(2) * (axis.length + 6)
            else:
                units += transform_error(axis.length, samples, engine)
    overlapping = 1  # tiles that contribute to one pixel of the result
    if map == "grad_input":
        for axis in axes:
            overlapping *= min(axis.overlap, axis.tiles)
    return overlapping * units


def transform_error(length: int, samples: int, engine: Engine) -> float:
    """Bound on ||X^ - X||_2 / ||X||_2 of a transform along one axis, in units of u.

    By matrix products: an inner product of c complex terms has an error of sqrt(2) (c + 4) u times
    that of the moduli (Higham, section 3.6, plus the rounding of the matrix), and the matrix of
    moduli, all ones, has 2-norm sqrt(n c), against sqrt(n) of the transform: sqrt(2 c) (c + 4).

    By FFT: a stage of radix r does r-point transforms, at worst by their definition, sqrt(r) (r +
    2) as above, and multiplies by rounded twiddle factors, 2 sqrt(2) + 1; the errors of the stages,
    each sqrt(r) times unitary, add (Higham, theorem 24.2, is r = 2).  A real transform is one of
    half the length and one more stage of r = 2.

    The bound on the inverse counts roundings per path rather than in norm, and neither exceeds
    these: c + 4 by matrix products, r + 2 per stage by FFT.
    """
    if engine != "fft":
        return math.sqrt(2 * samples) * (samples + 4)
    stages = [2, *prime_factors(length)]
    return sum(math.sqrt(r) * (r + 2) + 2 * math.sqrt(2) + 1 for r in stages)
