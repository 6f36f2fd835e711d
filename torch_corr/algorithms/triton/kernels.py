"""The kernels of ``triton``; imported only where Triton is, and only when one is launched.

Along each image axis every map follows one rule, which :class:`.axes.Axis` holds:

    source * div = dest * mult + base + tap * u          u the tap, one of mult and div being 1

``forward`` reads ``source`` = input at ``dest`` = output pixels with mult = stride, div = 1,
base = -padding, tap = dilation; ``grad_input`` reads output at input pixels with mult = 1,
div = stride, base = +padding, tap = -dilation.  With div > 1 the dest pixels fall into div
classes ``dest = q + div * a``, and within a class the taps that divide are ``u0 + period * t``:
again a correlation without gaps.

Loads outside an image give 0.  Zero times a tap that is not finite would be NaN, and in
``grad_input``, where the definition has no padding, no pixel may meet such a tap beyond the
edges of ``source``.  So another launch (``mend``) looks at the result, and what is not finite
near an edge it sums again, product by product under the mask.  Nobody waits for an answer: the
branch is on the device.  Bands multiply by zeros everywhere, and are mended everywhere.

A band is a row of a kernel as a matrix, (source columns, dest columns), zero where no tap leads
from one to the other.  With it a kernel of one channel is a matrix product too: columns are its
channels, and ``correlate_dot`` and ``weight_dot`` see images one column wide.

Programs are numbered along one grid axis, since the others end at 65535.  WIDE computes
positions in 64 bits.  All sums have one order, which sizes and configuration decide.

Where ``doubt`` is given, a kernel does nothing unless that number is other than 0.  So the result
of another algorithm is computed again only if a check on the device has failed; the host does not
wait for its outcome.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _number(WIDE: tl.constexpr):
    pid = tl.program_id(0)
    if WIDE:
        pid = pid.to(tl.int64)
    return pid


@triton.jit
def _first_tap(axis, q):
    """The first tap that meets class ``q``, and how many do; (0, 0) if none does."""
    first = axis.taps * 0
    found = axis.taps * 0
    for back in range(tl.minimum(axis.taps, axis.period)):
        u = tl.minimum(axis.taps, axis.period) - 1 - back
        if (q * axis.mult + axis.base + axis.tap * u) % axis.div == 0:
            first = u
            found = (axis.taps - u + axis.period - 1) // axis.period
    return first, found


@triton.jit
def _inside(at, size):
    # Without a sign what is negative is large: one comparison.
    if at.dtype.primitive_bitwidth == 64:
        return at.to(tl.uint64, bitcast=True) < size
    return at.to(tl.uint32, bitcast=True) < size


@triton.jit
def _inside_signed(at, size):
    # For matrix products: with the other their registers do not suffice, on some architectures.
    return (at >= 0) & (at < size)


@triton.jit
def _masked_sum(
    acc, source, weight, live, row, column, rows, columns, taps_down, taps_across, down, across,
    channels, source_strides, weight_strides,
):  # fmt: skip
    """Add every product of one dest pixel per lane to ``acc``, and none outside of the image.

    Args:
        source, weight: pointers at the lane's image and group, first channel and first tap.
        row, column: source pixel of the first tap.
        taps_down, taps_across: how many taps.
        down, across: source pixels from tap to tap.
        weight_strides: of source channel, row and column of taps.
    """
    for _ in range(channels):
        for u in range(taps_down):
            h = row + u * down
            for v in range(taps_across):
                w_ = column + v * across
                meets = live & _inside(h, rows.source) & _inside(w_, columns.source)
                at = h * source_strides[2] + w_ * source_strides[3]
                x = tl.load(source + at, mask=meets, other=0.0).to(acc.dtype)
                at = u * weight_strides[1] + v * weight_strides[2]
                tap = tl.load(weight + at).to(acc.dtype)
                acc = tl.where(meets, acc + x * tap, acc)
        # One channel on: their number times this might pass 32 bits.
        source += source_strides[1]
        weight += weight_strides[0]
    return acc


@triton.jit
def _add_taps(
    sums, source, weight, meets, row, rows, row_stride, tap_stride,
    HEIGHT: tl.constexpr, TAPS: tl.constexpr, STEP: tl.constexpr, TAP: tl.constexpr,
    FIRST: tl.constexpr, INSIDE: tl.constexpr,
):  # fmt: skip
    """Add TAPS taps of one column of the kernel to HEIGHT rows; each source row is read once.

    ``sums[i] += source[row + i * STEP + t * TAP] * weight[t]`` for all i and t.

    Args:
        source: pointers at row ``row``.
        FIRST, INSIDE: ``row``, and how many source rows there are, where the compiler is to leave
            out those outside; INSIDE = 0 where lanes have rows of their own.
    """
    taps = ()
    for t in tl.static_range(TAPS):
        taps = taps + (tl.load(weight + t * tap_stride).to(sums[0].dtype),)
    LOW: tl.constexpr = (TAPS - 1) * TAP if TAP < 0 else 0
    HIGH: tl.constexpr = (HEIGHT - 1) * STEP + ((TAPS - 1) * TAP if TAP > 0 else 0)
    # From row to row by an addition, where a position for each would be a multiplication.
    source += LOW * row_stride
    for r in tl.static_range(HIGH - LOW + 1):
        if INSIDE == 0 or _within(FIRST + r + LOW, INSIDE):
            if INSIDE == 0:
                x = tl.load(source, mask=meets & _inside(row + (r + LOW), rows.source), other=0.0)
            else:
                x = tl.load(source, mask=meets, other=0.0)
            x = x.to(sums[0].dtype)
            added = ()
            for i in tl.static_range(HEIGHT):
                if (r + LOW - i * STEP) % TAP == 0 and _within((r + LOW - i * STEP) // TAP, TAPS):
                    added = added + (sums[i] + x * taps[(r + LOW - i * STEP) // TAP],)
                else:
                    added = added + (sums[i],)
            sums = added
        source += row_stride
    return sums


@triton.constexpr_function
def _within(t, taps):
    return 0 <= t < taps


@triton.jit
def correlate_taps(
    source, weight, result, doubt, rows, columns, source_strides, result_strides, weight_strides,
    batch, dest_channels, group_source, group_dest, blocks,
    LANES: tl.constexpr, HEIGHT: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
    REST: tl.constexpr, STEP: tl.constexpr, TAP: tl.constexpr, FIRST: tl.constexpr,
    INSIDE: tl.constexpr, ROW_STRIDE: tl.constexpr, TAP_STRIDE: tl.constexpr,
    CHANNELS_FIRST: tl.constexpr, WIDE: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """``forward`` and ``grad_input`` for few channels: HEIGHT rows of sums in every lane.

    A lane is an image, a block of HEIGHT dest rows, and a column; and with CHANNELS_FIRST (in
    memory: channels_last) a dest channel before all, else that is the program's.  A source row
    that is loaded meets all sums that it belongs to while it is in a register.

    With HEIGHT = 1 the taps of a class are taken one by one: strides in ``grad_input``, and
    steps so long that rows share nothing.

    With INSIDE > 0 one block holds all rows.  Then it is known when compiling which products
    have a row outside of the image, and they are left out; ROW_STRIDE and TAP_STRIDE, too, are
    known, and no address is computed but a column's first.

    Args:
        weight_strides: of group, dest channel, source channel, row and column of taps.
        blocks: blocks of lanes of one dest channel, and class.
    """
    if doubt is not None:
        if tl.load(doubt) == 0:
            return
    pid = _number(WIDE)
    block = pid % blocks
    rest = pid // blocks
    lane = block * LANES + tl.arange(0, LANES)
    if CHANNELS_FIRST:
        channel = lane % dest_channels
        lane = lane // dest_channels
    else:
        channel = rest % dest_channels
        rest = rest // dest_channels
    classes = tl.minimum(columns.div, columns.dest)
    q_down = rest // classes
    q_across = rest % classes
    first_down, taps_down = _first_tap(rows, q_down)
    first_across, taps_across = _first_tap(columns, q_across)

    wide = (columns.dest + columns.div - 1) // columns.div
    high = ((rows.dest + rows.div - 1) // rows.div + HEIGHT - 1) // HEIGHT
    b = lane % wide
    a = (lane // wide) % high * HEIGHT
    image = lane // wide // high
    dest_row = q_down + rows.div * a
    dest_column = q_across + columns.div * b
    live = (image < batch) & (dest_column < columns.dest)
    group = channel // group_dest

    # Where the first tap lies; the division is exact wherever there is a tap.
    row = (q_down * rows.mult + rows.base + rows.tap * first_down) // rows.div + rows.mult * a
    column = (
        q_across * columns.mult + columns.base + columns.tap * first_across
    ) // columns.div + columns.mult * b
    down = rows.tap * rows.period // rows.div
    across = columns.tap * columns.period // columns.div
    source += image * source_strides[0] + group * group_source * source_strides[1]
    weight += (
        group * weight_strides[0] + (channel % group_dest) * weight_strides[1]
        + first_down * weight_strides[3] + first_across * weight_strides[4]
    )  # fmt: skip
    down_stride = rows.period * weight_strides[3]
    across_stride = columns.period * weight_strides[4]
    strides = (weight_strides[2], down_stride, across_stride)
    result += (
        image * result_strides[0] + channel * result_strides[1] + dest_column * result_strides[3]
    )

    zero = tl.zeros([LANES], SUM)
    if HEIGHT == 1:
        alive = live & (dest_row < rows.dest)
        result += dest_row * result_strides[2]
        total = _masked_sum(
            zero, source, weight, alive, row, column, rows, columns, taps_down, taps_across,
            down, across, group_source, source_strides, strides,
        )  # fmt: skip
        tl.store(result, total.to(result.dtype.element_ty), mask=alive)
    else:
        sums = (zero,) * HEIGHT
        source += row * source_strides[2]
        for _ in range(group_source):
            for v in range(taps_across):
                w_ = column + v * across
                at = source + w_ * source_strides[3]
                taps = weight + v * across_stride
                meets = live & _inside(w_, columns.source)
                if INSIDE > 0:
                    sums = _add_taps(
                        sums, at, taps, meets, row, rows, ROW_STRIDE, TAP_STRIDE,
                        HEIGHT, CHUNK, STEP, TAP, FIRST, INSIDE,
                    )  # fmt: skip
                else:
                    for chunk in range(CHUNKS):
                        sums = _add_taps(
                            sums, at, taps, meets, row + chunk * CHUNK * TAP, rows,
                            source_strides[2], down_stride, HEIGHT, CHUNK, STEP, TAP, 0, 0,
                        )  # fmt: skip
                        at += CHUNK * TAP * source_strides[2]
                        taps += CHUNK * down_stride
                    if REST > 0:
                        sums = _add_taps(
                            sums, at, taps, meets, row + CHUNKS * CHUNK * TAP, rows,
                            source_strides[2], down_stride, HEIGHT, REST, STEP, TAP, 0, 0,
                        )  # fmt: skip
            # One channel on: their number times this might pass 32 bits.
            source += source_strides[1]
            weight += weight_strides[2]
        for i in tl.static_range(HEIGHT):
            alive = live & (dest_row + i < rows.dest)
            at = (dest_row + i) * result_strides[2]
            tl.store(result + at, sums[i].to(result.dtype.element_ty), mask=alive)


@triton.jit
def mend(
    source, weight, result, doubt, rows, columns, source_strides, weight_strides,
    channels, group_source, group_dest, length,
    LANES: tl.constexpr, CHANNELS_FIRST: tl.constexpr, EDGES: tl.constexpr, WIDE: tl.constexpr,
    SUM: tl.constexpr,
):  # fmt: skip
    """Sum again by the definition what is not finite in ``result``, which others have filled.

    A lane is an element of ``result`` as it lies in memory, contiguous or, with CHANNELS_FIRST,
    in channels_last.  With EDGES only pixels near an edge are looked into, whose taps reach
    beyond.

    Args:
        weight_strides: of group, dest channel, source channel, row and column of taps.
        length: of ``result``.
    """
    if doubt is not None:
        if tl.load(doubt) == 0:
            return
    at = _number(WIDE) * LANES + tl.arange(0, LANES)
    found = tl.load(result + at, mask=at < length, other=0.0)
    spoilt = found - found != 0
    if tl.max(spoilt.to(tl.int32), 0) > 0:
        rest = at
        if CHANNELS_FIRST:
            channel = rest % channels
            rest = rest // channels
        dest_column = rest % columns.dest
        rest = rest // columns.dest
        dest_row = rest % rows.dest
        rest = rest // rows.dest
        if not CHANNELS_FIRST:
            channel = rest % channels
            rest = rest // channels
        row = dest_row * rows.mult + rows.base
        column = dest_column * columns.mult + columns.base
        if EDGES:
            spoilt = spoilt & (_reaches_out(row, rows) | _reaches_out(column, columns))
        group = channel // group_dest
        plane = source + rest * source_strides[0] + group * group_source * source_strides[1]
        taps = weight + group * weight_strides[0] + channel % group_dest * weight_strides[1]
        total = tl.zeros([LANES], SUM)
        for _ in range(group_source):
            for u in range(rows.taps):
                h = (row + u * rows.tap) // rows.div
                down = spoilt & (h * rows.div == row + u * rows.tap) & _inside(h, rows.source)
                for v in range(columns.taps):
                    w_ = (column + v * columns.tap) // columns.div
                    meets = down & (w_ * columns.div == column + v * columns.tap)
                    meets = meets & _inside(w_, columns.source)
                    pixel = plane + h * source_strides[2] + w_ * source_strides[3]
                    x = tl.load(pixel, mask=meets, other=0.0).to(SUM)
                    tap = taps + u * weight_strides[3] + v * weight_strides[4]
                    tap = tl.load(tap, mask=meets, other=0.0).to(SUM)
                    total = tl.where(meets, total + x * tap, total)
            # One channel on: their number times this might pass 32 bits.
            plane += source_strides[1]
            taps += weight_strides[2]
        tl.store(result + at, total.to(result.dtype.element_ty), mask=spoilt)


@triton.jit
def _reaches_out(first, axis):
    """Whether a tap may lie outside of the source, the first being at ``first`` / div."""
    last = first + (axis.taps - 1) * axis.tap
    beyond = axis.source * axis.div
    return ~(_inside(first, beyond) & _inside(last, beyond))


@triton.jit
def _multiply(a, b, acc, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    if UPCAST:  # the interpreter multiplies bfloat16 as if it were integers
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)


@triton.jit
def correlate_dot(
    source, weight, result, doubt, rows, columns, source_strides, result_strides, weight_strides,
    group_strides, batch, groups, group_source, group_dest, plane,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, FLAT: tl.constexpr,
    PLANE_PART: tl.constexpr, WIDE: tl.constexpr, SUM: tl.constexpr, PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """``forward`` and ``grad_input`` as a matrix product that gathers its left side as it goes.

    (pixels, channels of a group) = (pixels, taps x source channels) @ (the same, channels).
    ``source`` has its channels next to each other, and so has ``weight``, a
    matrix for each group.

    FLAT: each number of the long axis finds its tap by itself, for groups of fewer than K
    channels.  Otherwise an iteration has one tap.

    Args:
        weight_strides: of the long axis and of dest channels, each packed.
        group_strides: of source and result.
        plane: dest pixels of a plane divided by PLANE_PART, a power of two; 0 when the dest
            is not one run of pixels, and every pixel finds its place by itself.
    """
    if doubt is not None:
        if tl.load(doubt) == 0:
            return
    pid = _number(WIDE)
    wide = (columns.dest + columns.div - 1) // columns.div
    high = (rows.dest + rows.div - 1) // rows.div
    pixels = batch * high * wide
    tiles_n = (group_dest + N - 1) // N
    tiles_m = (pixels + M - 1) // M
    n = pid % tiles_n * N + tl.arange(0, N)
    pid = pid // tiles_n
    m = pid % tiles_m * M + tl.arange(0, M)
    pid = pid // tiles_m
    group = pid % groups
    pid = pid // groups
    classes = tl.minimum(columns.div, columns.dest)
    q_down = pid // classes
    q_across = pid % classes
    first_down, taps_down = _first_tap(rows, q_down)
    first_across, taps_across = _first_tap(columns, q_across)

    a = m // wide % high
    b = m % wide
    image = m // wide // high
    dest_row = q_down + rows.div * a
    dest_column = q_across + columns.div * b
    live = (m < pixels) & (dest_row < rows.dest) & (dest_column < columns.dest)
    row = (q_down * rows.mult + rows.base + rows.tap * first_down) // rows.div + rows.mult * a
    column = (
        q_across * columns.mult + columns.base + columns.tap * first_across
    ) // columns.div + columns.mult * b
    down = rows.tap * rows.period // rows.div
    across = columns.tap * columns.period // columns.div
    origin = (
        image * source_strides[0] + group * group_strides[0]
        + row * source_strides[2] + column * source_strides[3]
    )  # fmt: skip
    weight += group * rows.taps * columns.taps * group_source * group_dest

    acc = tl.zeros([M, N], SUM)
    if FLAT:
        length = taps_down * taps_across * group_source
        for k0 in range(0, length, K):
            k = k0 + tl.arange(0, K)
            c = k % group_source
            u = k // group_source // taps_across
            v = k // group_source % taps_across
            h = row[:, None] + (u * down)[None, :]
            w_ = column[:, None] + (v * across)[None, :]
            meets = (
                live[:, None] & _inside_signed(h, rows.source) & _inside_signed(w_, columns.source)
            )
            at = c * source_strides[1] + u * down * source_strides[2]
            at += v * across * source_strides[3]
            x = tl.load(
                source + origin[:, None] + at[None, :],
                mask=meets & (k < length)[None, :],
                other=0.0,
            )
            tap = (first_down + u * rows.period) * columns.taps + first_across + v * columns.period
            at = (tap * group_source + c) * weight_strides[0]
            y = tl.load(
                weight + at[:, None] + (n * weight_strides[1])[None, :],
                mask=(k < length)[:, None] & (n < group_dest)[None, :],
                other=0.0,
            )
            acc = _multiply(x, y, acc, PRECISION, UPCAST)
    else:
        steps = (group_source + K - 1) // K
        for step in range(taps_down * taps_across * steps):
            c = step % steps * K + tl.arange(0, K)
            u = step // steps // taps_across
            v = step // steps % taps_across
            meets = live & _inside_signed(row + u * down, rows.source)
            meets = meets & _inside_signed(column + v * across, columns.source)
            at = origin + u * down * source_strides[2] + v * across * source_strides[3]
            x = tl.load(
                source + at[:, None] + (c * source_strides[1])[None, :],
                mask=meets[:, None] & (c < group_source)[None, :],
                other=0.0,
            )
            tap = (first_down + u * rows.period) * columns.taps + first_across + v * columns.period
            at = (tap * group_source + c) * weight_strides[0]
            y = tl.load(
                weight + at[:, None] + (n * weight_strides[1])[None, :],
                mask=(c < group_source)[:, None] & (n < group_dest)[None, :],
                other=0.0,
            )
            acc = _multiply(x, y, acc, PRECISION, UPCAST)

    at = image * result_strides[0] + dest_row * result_strides[2] + dest_column * result_strides[3]
    if PLANE_PART > 0:  # the same place, told so that the compiler sees runs of pixels
        at = m // (plane * PLANE_PART) * result_strides[0] + m % (plane * PLANE_PART)
    channel = group * group_strides[1] + n * result_strides[1]
    tl.store(
        result + at[:, None] + channel[None, :],
        acc.to(result.dtype.element_ty),
        mask=live[:, None] & (n < group_dest)[None, :],
    )


@triton.jit
def _pair_up(
    sums, input, output, live, row, column, rows, columns, output_row, input_strides,
    output_strides, across,
    HEIGHT: tl.constexpr, DOWN: tl.constexpr, ACROSS: tl.constexpr, STEP: tl.constexpr,
    TAP: tl.constexpr,
):  # fmt: skip
    """``sums[v * DOWN + t] += input[row + i * STEP + t * TAP, column + v * across] * output[i]``.

    HEIGHT rows of the output stay in registers; each input row is read once for every v.
    """
    held = ()
    for i in tl.static_range(HEIGHT):
        alive = live & (output_row + i < rows.dest)
        at = (output_row + i) * output_strides[2]
        held = held + (tl.load(output + at, mask=alive, other=0.0).to(sums[0].dtype),)
    HIGH: tl.constexpr = (HEIGHT - 1) * STEP + (DOWN - 1) * TAP
    ROWS: tl.constexpr = DOWN if HEIGHT == 1 else HIGH + 1
    EACH: tl.constexpr = TAP if HEIGHT == 1 else 1
    done = ()
    for v in tl.static_range(ACROSS):
        w_ = column + v * across
        meets = live & _inside(w_, columns.source)
        mine = ()
        for t in tl.static_range(DOWN):
            mine = mine + (sums[v * DOWN + t],)
        for r in tl.static_range(ROWS):
            h = row + r * EACH
            at = h * input_strides[2] + w_ * input_strides[3]
            x = tl.load(input + at, mask=meets & _inside(h, rows.source), other=0.0)
            x = x.to(sums[0].dtype)
            added = ()
            for t in tl.static_range(DOWN):
                total = mine[t]
                for i in tl.static_range(HEIGHT):
                    if i * STEP + t * TAP == r * EACH:
                        total = total + x * held[i]
                added = added + (total,)
            mine = added
        done = done + mine
    return done


@triton.jit
def weight_taps(
    input, output, partial, doubt, rows, columns, input_strides, output_strides,
    batch, out_channels, group_in, group_out, chunks_down, chunks_across, per_split,
    LANES: tl.constexpr, HEIGHT: tl.constexpr, DOWN: tl.constexpr, ACROSS: tl.constexpr,
    STEP: tl.constexpr, TAP: tl.constexpr, WIDE: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """``grad_weight`` for few channels, first stage: DOWN x ACROSS taps in every lane.

    A program has one pair of channels, one block of taps and one of the splits of all lanes (an
    image, HEIGHT output rows, a column); lanes meet at the end.  The second stage adds the
    splits: ``partial`` is (splits, O, C/G, kH, kW).

    Beyond the last row of an output the product of a block is 0 times an input pixel, which
    may not be finite: then the rows are done again one by one.

    Args:
        per_split: blocks of lanes in a split.
    """
    if doubt is not None:
        if tl.load(doubt) == 0:
            return
    pid = _number(WIDE)
    chunk_across = pid % chunks_across * ACROSS
    pid = pid // chunks_across
    chunk_down = pid % chunks_down * DOWN
    pid = pid // chunks_down
    c = pid % group_in
    pid = pid // group_in
    o = pid % out_channels
    split = pid // out_channels
    high = (rows.dest + HEIGHT - 1) // HEIGHT
    across = columns.tap
    input += (o // group_out * group_in + c) * input_strides[1]
    output += o * output_strides[1]
    first_row = rows.base + chunk_down * TAP
    first_column = columns.base + chunk_across * across

    sums = (tl.zeros([LANES], SUM),) * (DOWN * ACROSS)
    for block in range(split * per_split, (split + 1) * per_split):
        lane = block * LANES + tl.arange(0, LANES)
        j = lane % columns.dest
        i = lane // columns.dest % high * HEIGHT
        image = lane // columns.dest // high
        sums = _pair_up(
            sums, input + image * input_strides[0],
            output + image * output_strides[0] + j * output_strides[3], image < batch,
            first_row + i * STEP, first_column + j * columns.mult, rows, columns, i,
            input_strides, output_strides, across, HEIGHT, DOWN, ACROSS, STEP, TAP,
        )  # fmt: skip
    if HEIGHT > 1:
        spoilt = sums[0] - sums[0]
        for t in tl.static_range(DOWN * ACROSS):
            spoilt += sums[t] - sums[t]
        if tl.max((spoilt != 0).to(tl.int32), 0) > 0:
            sums = (tl.zeros([LANES], SUM),) * (DOWN * ACROSS)
            for block in range(split * per_split, (split + 1) * per_split):
                lane = block * LANES + tl.arange(0, LANES)
                j = lane % columns.dest
                image = lane // columns.dest // high
                for below in range(HEIGHT):
                    i = lane // columns.dest % high * HEIGHT + below
                    sums = _pair_up(
                        sums, input + image * input_strides[0],
                        output + image * output_strides[0] + j * output_strides[3],
                        (image < batch) & (i < rows.dest), first_row + i * STEP,
                        first_column + j * columns.mult, rows, columns, i, input_strides,
                        output_strides, across, 1, DOWN, ACROSS, STEP, TAP,
                    )  # fmt: skip
    partial += ((split * out_channels + o) * group_in + c) * rows.taps * columns.taps
    for t in tl.static_range(DOWN):
        for s in tl.static_range(ACROSS):
            u = chunk_down + t
            v = chunk_across + s
            tl.store(
                partial + u * columns.taps + v,
                tl.sum(sums[s * DOWN + t], 0),
                mask=(u < rows.taps) & (v < columns.taps),
            )


@triton.jit
def weight_dot(
    input, output, partial, doubt, rows, columns, input_strides, output_strides, group_strides,
    batch, groups, group_in, group_out, per_split,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, WIDE: tl.constexpr, SUM: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """``grad_weight`` as a matrix product over pixels, first stage: one split of them.

    (output channels, taps x input channels) = (channels, pixels) @ (pixels, taps x channels).
    Both operands have their channels next to each other.  ``partial`` is (splits, O, kH, kW,
    C/G), for the second stage to add.

    Args:
        group_strides: of input and output.
        per_split: pixels in a split, a multiple of K.
    """
    if doubt is not None:
        if tl.load(doubt) == 0:
            return
    pid = _number(WIDE)
    length = rows.taps * columns.taps * group_in
    tiles_n = (length + N - 1) // N
    tiles_m = (group_out + M - 1) // M
    n = pid % tiles_n * N + tl.arange(0, N)
    pid = pid // tiles_n
    m = pid % tiles_m * M + tl.arange(0, M)
    pid = pid // tiles_m
    group = pid % groups
    split = pid // groups
    pixels = batch * rows.dest * columns.dest
    begin = split * per_split
    end = tl.minimum(begin + per_split, pixels)

    c = n % group_in
    tap_row = n // group_in // columns.taps * rows.tap + rows.base
    tap_column = n // group_in % columns.taps * columns.tap + columns.base
    input += group * group_strides[0]
    output += group * group_strides[1]
    at_tap = c * input_strides[1] + tap_row * input_strides[2] + tap_column * input_strides[3]
    acc = tl.zeros([M, N], SUM)
    for k0 in range(begin, end, K):
        k = k0 + tl.arange(0, K)
        j = k % columns.dest
        i = k // columns.dest % rows.dest
        image = k // columns.dest // rows.dest
        at = image * output_strides[0] + i * output_strides[2] + j * output_strides[3]
        y = tl.load(
            output + (m * output_strides[1])[:, None] + at[None, :],
            mask=(m < group_out)[:, None] & (k < end)[None, :],
            other=0.0,
        )
        at = image * input_strides[0]
        at += i * rows.mult * input_strides[2] + j * columns.mult * input_strides[3]
        meets = _inside_signed((i * rows.mult)[:, None] + tap_row[None, :], rows.source)
        meets = meets & _inside_signed(
            (j * columns.mult)[:, None] + tap_column[None, :], columns.source
        )
        x = tl.load(
            input + at[:, None] + at_tap[None, :],
            mask=meets & (k < end)[:, None] & (n < length)[None, :],
            other=0.0,
        )
        acc = _multiply(y, x, acc, PRECISION, UPCAST)
    at = ((split * groups + group) * group_out + m).to(n.dtype) * length
    tl.store(
        partial + at[:, None] + n[None, :],
        acc,
        mask=(m < group_out)[:, None] & (n < length)[None, :],
    )


@triton.jit
def spread_taps(
    weight, band, doubt, columns, source_stride, dest_stride, row_stride, group_stride, taps_down,
    blocks,
    LANES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Bands: ``band[l, j] = weight[v]`` where ``l * div = j * mult + base + tap * v``, else 0.

    Args:
        weight: (groups, taps_down, taps across), contiguous.
        source_stride, dest_stride: of l and of j in ``band``.
        row_stride, group_stride: of rows of the kernel and of groups there.
        blocks: of lanes in a row's band.
    """
    if doubt is not None:
        if tl.load(doubt) == 0:
            return
    pid = _number(WIDE)
    at = pid % blocks * LANES + tl.arange(0, LANES)
    row = pid // blocks
    column, dest = at // columns.dest, at % columns.dest
    distance = column * columns.div - dest * columns.mult - columns.base
    v = distance // columns.tap
    meets = (v * columns.tap == distance) & _inside(v, columns.taps)
    there = column < columns.source
    tap = tl.load(weight + row * columns.taps + v, mask=meets & there, other=0.0)
    band += row // taps_down * group_stride + row % taps_down * row_stride
    tl.store(band + column * source_stride + dest * dest_stride, tap, mask=there)


@triton.jit
def sum_bands(
    partial, result, doubt, columns, groups, taps_down, splits,
    LANES: tl.constexpr, WIDE: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """The other way round, in ``grad_weight``: a tap is the sum of its diagonal, and of splits.

    Args:
        partial: (splits, groups, dest columns, taps_down, source columns).
        result: (groups, taps_down, taps across).
    """
    if doubt is not None:
        if tl.load(doubt) == 0:
            return
    pid = _number(WIDE)
    blocks = (columns.taps + LANES - 1) // LANES
    v = pid % blocks * LANES + tl.arange(0, LANES)
    row = pid // blocks
    group, u = row // taps_down, row % taps_down
    total = tl.zeros([LANES], SUM)
    for split in range(splits):
        first = (split * groups + group) * columns.dest
        for dest in range(columns.dest):
            column = dest * columns.mult + columns.base + v * columns.tap
            meets = (v < columns.taps) & _inside(column, columns.source)
            at = ((first + dest) * taps_down + u) * columns.source
            total += tl.load(partial + at + column, mask=meets, other=0.0)
    tl.store(result + row * columns.taps + v, total, mask=v < columns.taps)
