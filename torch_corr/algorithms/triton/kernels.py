"""The Triton kernels; imported at the first launch, so that the package works without Triton.

Along each image axis every map follows one rule (:class:`.axes.Axis`), for tap ``u``:

    source * div = dest * mult + base + tap_step * u          mult or div is 1

``forward`` reads ``source`` = input pixels for ``dest`` = output pixels with mult = stride,
div = 1, base = -padding, tap_step = dilation.  ``grad_input`` reads output pixels for input pixels
with mult = 1, div = stride, base = padding, tap_step = -dilation.  With div > 1 the dest pixels
form div residue classes ``dest = residue + div * index``.  The taps of a class are
``first + period * t``, so each class is a dense correlation.

A load outside the image gives 0, and 0 times a NaN or infinite tap is NaN.  ``grad_input`` has no
padding in its definition, so such a product must not count.  ``recompute_nonfinite`` runs after
the other kernel, reads the result, and recomputes non-finite pixels near an edge, product by
product under the mask.  The branch is on the device, so the host does not wait.

A band is one row of a kernel as a matrix (source columns, dest columns), zero where no tap
connects the two columns.  With columns as channels a kernel of one channel becomes a matrix
product, and ``correlate_dot`` and ``weight_dot`` read images one column wide.  A band contains
zeros everywhere, so all non-finite pixels of its product are recomputed.

The grid has one axis, because the others end at 65535.  A lane is one element of a program's
block.  With USE_INT64, positions have 64 bits.  The order of each sum depends only on sizes and
configuration.

With a ``recompute_flag`` a kernel returns at once if that number is 0.  So the result of another
algorithm is recomputed only if a check on the device has failed, without a host sync.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _must_skip(recompute_flag):
    """Whether there is a flag and it is 0."""
    skip = False
    if recompute_flag is not None:
        skip = tl.load(recompute_flag) == 0
    return skip


@triton.jit
def _program_id(USE_INT64: tl.constexpr):
    pid = tl.program_id(0)
    if USE_INT64:
        pid = pid.to(tl.int64)
    return pid


@triton.jit
def _class_length(axis):
    """Dest pixels of the largest residue class."""
    return (axis.dest + axis.div - 1) // axis.div


@triton.jit
def _residues(pid, columns):
    """The residue classes of a program along rows and columns."""
    classes = tl.minimum(columns.div, columns.dest)
    return pid // classes, pid % classes


@triton.jit
def _class_taps(axis, residue):
    """The first tap of a residue class and the number of its taps; (0, 0) if it has none."""
    first = axis.taps * 0
    taps = axis.taps * 0
    for back in range(tl.minimum(axis.taps, axis.period)):
        u = tl.minimum(axis.taps, axis.period) - 1 - back
        if (residue * axis.mult + axis.base + axis.tap_step * u) % axis.div == 0:
            first = u
            taps = (axis.taps - u + axis.period - 1) // axis.period
    return first, taps


@triton.jit
def _class_source(axis, residue, index, first):
    """The source pixel under the first tap of a class's dest pixels, and the step to the next tap.

    The division is exact wherever the class has a tap.
    """
    source = (residue * axis.mult + axis.base + axis.tap_step * first) // axis.div
    return source + axis.mult * index, axis.tap_step * axis.period // axis.div


@triton.jit
def _inside(position, size):
    # One comparison: without a sign, negative numbers are large.
    if position.dtype.primitive_bitwidth == 64:
        return position.to(tl.uint64, bitcast=True) < size
    return position.to(tl.uint32, bitcast=True) < size


@triton.jit
def _inside_signed(position, size):
    # For matrix products, which spill registers on some architectures with the other comparison.
    return (position >= 0) & (position < size)


@triton.constexpr_function
def _is_index(i, size):
    return 0 <= i < size


@triton.constexpr_function
def _has_tap(distance, tap_step, taps):
    """Whether a tap lies ``distance`` rows after the first."""
    return distance % tap_step == 0 and 0 <= distance // tap_step < taps


@triton.jit
def _masked_sum(
    total, source, weight, in_dest, row, column, rows, columns, row_taps, column_taps, row_step,
    column_step, channels, source_strides, weight_strides,
):  # fmt: skip
    """Add to ``total`` all products of one dest pixel per lane, and none outside the image.

    Args:
        source, weight: pointers to the lane's image and group, first channel and first tap.
        row, column: source pixel of the first tap.
        row_taps, column_taps: number of taps.
        row_step, column_step: source pixels from tap to tap.
        weight_strides: of source channel, tap row and tap column.
    """
    for _ in range(channels):
        for u in range(row_taps):
            source_row = row + u * row_step
            for v in range(column_taps):
                source_column = column + v * column_step
                valid = (
                    in_dest & _inside(source_row, rows.source)
                    & _inside(source_column, columns.source)
                )  # fmt: skip
                at = source_row * source_strides[2] + source_column * source_strides[3]
                x = tl.load(source + at, mask=valid, other=0.0).to(total.dtype)
                at = u * weight_strides[1] + v * weight_strides[2]
                tap = tl.load(weight + at).to(total.dtype)
                total = tl.where(valid, total + x * tap, total)
        # Advance by one channel: channels times the stride may not fit into 32 bits.
        source += source_strides[1]
        weight += weight_strides[0]
    return total


@triton.jit
def _add_taps(
    sums, source, weight, valid, row, rows, row_stride, tap_stride,
    HEIGHT: tl.constexpr, TAPS: tl.constexpr, MULT: tl.constexpr, TAP_STEP: tl.constexpr,
    FIRST_ROW: tl.constexpr, SOURCE_ROWS: tl.constexpr,
):  # fmt: skip
    """Add TAPS taps of one column of the kernel to HEIGHT rows; each source row is read once.

    ``sums[i] += source[row + i * MULT + t * TAP_STEP] * weight[t]`` for all i and t.

    Args:
        source: pointers to row ``row``.
        FIRST_ROW, SOURCE_ROWS: ``row`` and the number of source rows, to skip rows outside the
            image at compile time; SOURCE_ROWS = 0 if each lane has its own rows.
    """
    taps = ()
    for t in tl.static_range(TAPS):
        taps = taps + (tl.load(weight + t * tap_stride).to(sums[0].dtype),)
    LOW: tl.constexpr = (TAPS - 1) * TAP_STEP if TAP_STEP < 0 else 0
    HIGH: tl.constexpr = (HEIGHT - 1) * MULT + ((TAPS - 1) * TAP_STEP if TAP_STEP > 0 else 0)
    # An addition leads to the next row; each row's own position would take a multiplication.
    source += LOW * row_stride
    for r in tl.static_range(HIGH - LOW + 1):
        if SOURCE_ROWS == 0 or _is_index(FIRST_ROW + r + LOW, SOURCE_ROWS):
            if SOURCE_ROWS == 0:
                x = tl.load(source, mask=valid & _inside(row + (r + LOW), rows.source), other=0.0)
            else:
                x = tl.load(source, mask=valid, other=0.0)
            x = x.to(sums[0].dtype)
            added = ()
            for i in tl.static_range(HEIGHT):
                if _has_tap(r + LOW - i * MULT, TAP_STEP, TAPS):
                    added = added + (sums[i] + x * taps[(r + LOW - i * MULT) // TAP_STEP],)
                else:
                    added = added + (sums[i],)
            sums = added
        source += row_stride
    return sums


@triton.jit
def correlate_taps(
    source, weight, result, recompute_flag, rows, columns, source_strides, result_strides,
    weight_strides, batch, dest_channels, group_source, group_dest, blocks,
    LANES: tl.constexpr, HEIGHT: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
    REST: tl.constexpr, MULT: tl.constexpr, TAP_STEP: tl.constexpr, FIRST_ROW: tl.constexpr,
    SOURCE_ROWS: tl.constexpr, ROW_STRIDE: tl.constexpr, TAP_STRIDE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, USE_INT64: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """``forward`` and ``grad_input`` for few channels: HEIGHT rows of sums in every lane.

    A lane is an image, a block of HEIGHT dest rows and a column.  With CHANNELS_LAST, dest
    channels are the fastest dimension of the lanes; otherwise a program has one dest channel.  A
    source row in a register is added to all sums that need it.

    With HEIGHT = 1 the taps of a class are summed one by one.  This is for ``grad_input`` with a
    stride, and for strides and dilations so large that dest rows share no source rows.

    With SOURCE_ROWS > 0 one block holds all rows.  Then the compiler knows which products have a
    row outside the image, and skips them.  It also knows ROW_STRIDE and TAP_STRIDE, so the kernel
    computes only the first address of a column.

    Args:
        weight_strides: of group, dest channel, source channel, tap row and tap column.
        blocks: blocks of lanes for one dest channel (all with CHANNELS_LAST) and residue class.
    """
    if _must_skip(recompute_flag):
        return
    pid = _program_id(USE_INT64)
    block = pid % blocks
    rest = pid // blocks
    lane = block * LANES + tl.arange(0, LANES)
    if CHANNELS_LAST:
        channel = lane % dest_channels
        lane = lane // dest_channels
    else:
        channel = rest % dest_channels
        rest = rest // dest_channels
    row_residue, column_residue = _residues(rest, columns)
    first_row, row_taps = _class_taps(rows, row_residue)
    first_column, column_taps = _class_taps(columns, column_residue)

    width = _class_length(columns)
    height = (_class_length(rows) + HEIGHT - 1) // HEIGHT
    column_index = lane % width
    row_index = (lane // width) % height * HEIGHT
    image = lane // width // height
    dest_row = row_residue + rows.div * row_index
    dest_column = column_residue + columns.div * column_index
    in_dest = (image < batch) & (dest_column < columns.dest)
    group = channel // group_dest

    row, row_step = _class_source(rows, row_residue, row_index, first_row)
    column, column_step = _class_source(columns, column_residue, column_index, first_column)
    source += image * source_strides[0] + group * group_source * source_strides[1]
    weight += (
        group * weight_strides[0] + (channel % group_dest) * weight_strides[1]
        + first_row * weight_strides[3] + first_column * weight_strides[4]
    )  # fmt: skip
    tap_row_stride = rows.period * weight_strides[3]
    tap_column_stride = columns.period * weight_strides[4]
    result += (
        image * result_strides[0] + channel * result_strides[1] + dest_column * result_strides[3]
    )

    zero = tl.zeros([LANES], SUM)
    if HEIGHT == 1:
        stored = in_dest & (dest_row < rows.dest)
        result += dest_row * result_strides[2]
        total = _masked_sum(
            zero, source, weight, stored, row, column, rows, columns, row_taps, column_taps,
            row_step, column_step, group_source, source_strides,
            (weight_strides[2], tap_row_stride, tap_column_stride),
        )  # fmt: skip
        tl.store(result, total.to(result.dtype.element_ty), mask=stored)
    else:
        sums = (zero,) * HEIGHT
        source += row * source_strides[2]
        for _ in range(group_source):
            for v in range(column_taps):
                source_column = column + v * column_step
                at = source + source_column * source_strides[3]
                taps = weight + v * tap_column_stride
                valid = in_dest & _inside(source_column, columns.source)
                if SOURCE_ROWS > 0:
                    sums = _add_taps(
                        sums, at, taps, valid, row, rows, ROW_STRIDE, TAP_STRIDE,
                        HEIGHT, CHUNK, MULT, TAP_STEP, FIRST_ROW, SOURCE_ROWS,
                    )  # fmt: skip
                else:
                    for chunk in range(CHUNKS):
                        sums = _add_taps(
                            sums, at, taps, valid, row + chunk * CHUNK * TAP_STEP, rows,
                            source_strides[2], tap_row_stride, HEIGHT, CHUNK, MULT, TAP_STEP, 0, 0,
                        )  # fmt: skip
                        at += CHUNK * TAP_STEP * source_strides[2]
                        taps += CHUNK * tap_row_stride
                    if REST > 0:
                        sums = _add_taps(
                            sums, at, taps, valid, row + CHUNKS * CHUNK * TAP_STEP, rows,
                            source_strides[2], tap_row_stride, HEIGHT, REST, MULT, TAP_STEP, 0, 0,
                        )  # fmt: skip
            # Advance by one channel: channels times the stride may not fit into 32 bits.
            source += source_strides[1]
            weight += weight_strides[2]
        for i in tl.static_range(HEIGHT):
            stored = in_dest & (dest_row + i < rows.dest)
            at = (dest_row + i) * result_strides[2]
            tl.store(result + at, sums[i].to(result.dtype.element_ty), mask=stored)


@triton.jit
def recompute_nonfinite(
    source, weight, result, recompute_flag, rows, columns, source_strides, weight_strides,
    channels, group_source, group_dest, length,
    LANES: tl.constexpr, CHANNELS_LAST: tl.constexpr, EDGES: tl.constexpr,
    USE_INT64: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Recompute by the definition the elements of ``result`` that are NaN or infinite.

    A lane is an element of ``result`` in the order of memory: contiguous, or channels_last with
    CHANNELS_LAST.  With EDGES only pixels near an edge are recomputed: those with a tap outside
    the source.

    Args:
        weight_strides: of group, dest channel, source channel, tap row and tap column.
        length: elements of ``result``.
    """
    if _must_skip(recompute_flag):
        return
    at = _program_id(USE_INT64) * LANES + tl.arange(0, LANES)
    value = tl.load(result + at, mask=at < length, other=0.0)
    nonfinite = value - value != 0
    if tl.max(nonfinite.to(tl.int32), 0) > 0:
        rest = at
        if CHANNELS_LAST:
            channel = rest % channels
            rest = rest // channels
        dest_column = rest % columns.dest
        rest = rest // columns.dest
        dest_row = rest % rows.dest
        rest = rest // rows.dest
        if not CHANNELS_LAST:
            channel = rest % channels
            rest = rest // channels
        row = dest_row * rows.mult + rows.base
        column = dest_column * columns.mult + columns.base
        if EDGES:
            nonfinite = nonfinite & (_reaches_out(row, rows) | _reaches_out(column, columns))
        group = channel // group_dest
        plane = source + rest * source_strides[0] + group * group_source * source_strides[1]
        taps = weight + group * weight_strides[0] + channel % group_dest * weight_strides[1]
        total = tl.zeros([LANES], SUM)
        for _ in range(group_source):
            for u in range(rows.taps):
                source_row, valid_row = _source_pixel(row, u, rows)
                for v in range(columns.taps):
                    source_column, valid_column = _source_pixel(column, v, columns)
                    valid = nonfinite & valid_row & valid_column
                    pixel = source_row * source_strides[2] + source_column * source_strides[3]
                    x = tl.load(plane + pixel, mask=valid, other=0.0).to(SUM)
                    tap = taps + u * weight_strides[3] + v * weight_strides[4]
                    tap = tl.load(tap, mask=valid, other=0.0).to(SUM)
                    total = tl.where(valid, total + x * tap, total)
            # Advance by one channel: channels times the stride may not fit into 32 bits.
            plane += source_strides[1]
            taps += weight_strides[2]
        tl.store(result + at, total.to(result.dtype.element_ty), mask=nonfinite)


@triton.jit
def _source_pixel(first, u, axis):
    """The source pixel under tap ``u`` and whether there is one; tap 0 is at ``first`` / div."""
    position = first + u * axis.tap_step
    pixel = position // axis.div
    return pixel, (pixel * axis.div == position) & _inside(pixel, axis.source)


@triton.jit
def _reaches_out(first, axis):
    """Whether a tap may lie outside the source; tap 0 is at ``first`` / div."""
    last = first + (axis.taps - 1) * axis.tap_step
    end = axis.source * axis.div
    return ~(_inside(first, end) & _inside(last, end))


@triton.jit
def _multiply(a, b, acc, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    if UPCAST:  # the interpreter multiplies bfloat16 as if it were integers
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)


@triton.jit
def correlate_dot(
    source, weight, result, recompute_flag, rows, columns, source_strides, result_strides,
    weight_strides, group_strides, batch, groups, group_source, group_dest, plane,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, FLAT: tl.constexpr,
    PLANE_PART: tl.constexpr, USE_INT64: tl.constexpr, SUM: tl.constexpr, PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """``forward`` and ``grad_input`` as a matrix product whose left operand is gathered.

    (pixels, dest channels) = (pixels, taps x source channels) @ (taps x source channels, dest
    channels), for each group.  The channels of ``source`` and the matrices of ``weight`` are
    contiguous.

    With FLAT, K numbers of the long axis may belong to several taps: for groups of fewer than K
    channels.  Otherwise an iteration has one tap.

    Args:
        weight_strides: of the long axis and of dest channels.
        group_strides: of source and result.
        plane: dest pixels of a plane divided by PLANE_PART, a power of two; both are 0 unless the
            pixels of a plane of ``result`` are contiguous.
    """
    if _must_skip(recompute_flag):
        return
    pid = _program_id(USE_INT64)
    width = _class_length(columns)
    height = _class_length(rows)
    pixels = batch * height * width
    tiles_n = (group_dest + N - 1) // N
    tiles_m = (pixels + M - 1) // M
    n = pid % tiles_n * N + tl.arange(0, N)
    pid = pid // tiles_n
    m = pid % tiles_m * M + tl.arange(0, M)
    pid = pid // tiles_m
    group = pid % groups
    row_residue, column_residue = _residues(pid // groups, columns)
    first_row, row_taps = _class_taps(rows, row_residue)
    first_column, column_taps = _class_taps(columns, column_residue)

    row_index = m // width % height
    column_index = m % width
    image = m // width // height
    dest_row = row_residue + rows.div * row_index
    dest_column = column_residue + columns.div * column_index
    in_dest = (m < pixels) & (dest_row < rows.dest) & (dest_column < columns.dest)
    row, row_step = _class_source(rows, row_residue, row_index, first_row)
    column, column_step = _class_source(columns, column_residue, column_index, first_column)
    origin = (
        image * source_strides[0] + group * group_strides[0]
        + row * source_strides[2] + column * source_strides[3]
    )  # fmt: skip
    weight += group * rows.taps * columns.taps * group_source * group_dest

    acc = tl.zeros([M, N], SUM)
    STEP: tl.constexpr = K if FLAT else 1
    if FLAT:
        length = row_taps * column_taps * group_source
    else:
        channel_steps = (group_source + K - 1) // K
        length = row_taps * column_taps * channel_steps
    for step in range(0, length, STEP):
        if FLAT:
            k = step + tl.arange(0, K)
            c = k % group_source
            u = k // group_source // column_taps
            v = k // group_source % column_taps
            valid_k = k < length
            valid = (
                in_dest[:, None]
                & _inside_signed(row[:, None] + (u * row_step)[None, :], rows.source)
                & _inside_signed(column[:, None] + (v * column_step)[None, :], columns.source)
            )
            at_m = origin
            at_k = c * source_strides[1] + u * row_step * source_strides[2]
            at_k += v * column_step * source_strides[3]
        else:
            c = step % channel_steps * K + tl.arange(0, K)
            u = step // channel_steps // column_taps
            v = step // channel_steps % column_taps
            valid_k = c < group_source
            valid = (
                in_dest
                & _inside_signed(row + u * row_step, rows.source)
                & _inside_signed(column + v * column_step, columns.source)
            )[:, None]
            at_m = origin + u * row_step * source_strides[2] + v * column_step * source_strides[3]
            at_k = c * source_strides[1]
        x = tl.load(
            source + at_m[:, None] + at_k[None, :], mask=valid & valid_k[None, :], other=0.0
        )
        tap = (first_row + u * rows.period) * columns.taps + first_column + v * columns.period
        at = (tap * group_source + c) * weight_strides[0]
        y = tl.load(
            weight + at[:, None] + (n * weight_strides[1])[None, :],
            mask=valid_k[:, None] & (n < group_dest)[None, :],
            other=0.0,
        )
        acc = _multiply(x, y, acc, PRECISION, UPCAST)

    at = image * result_strides[0] + dest_row * result_strides[2] + dest_column * result_strides[3]
    if PLANE_PART > 0:  # the same position, in a form that shows the compiler runs of pixels
        at = m // (plane * PLANE_PART) * result_strides[0] + m % (plane * PLANE_PART)
    channel = group * group_strides[1] + n * result_strides[1]
    tl.store(
        result + at[:, None] + channel[None, :],
        acc.to(result.dtype.element_ty),
        mask=in_dest[:, None] & (n < group_dest)[None, :],
    )


@triton.jit
def _add_pixel_pairs(
    sums, input, output, live, row, column, rows, columns, output_row, input_strides,
    output_strides,
    HEIGHT: tl.constexpr, DOWN: tl.constexpr, ACROSS: tl.constexpr, MULT: tl.constexpr,
    TAP_STEP: tl.constexpr,
):  # fmt: skip
    """Add to the sums of DOWN x ACROSS taps the products of HEIGHT output rows.

    ``sums[v * DOWN + t] += input[row + i * MULT + t * TAP_STEP, column + v * tap_step] *
    output[output_row + i]``.  The output rows stay in registers; each input row is read once for
    every v.
    """
    y = ()
    for i in tl.static_range(HEIGHT):
        valid = live & (output_row + i < rows.dest)
        at = (output_row + i) * output_strides[2]
        y = y + (tl.load(output + at, mask=valid, other=0.0).to(sums[0].dtype),)
    HIGH: tl.constexpr = (HEIGHT - 1) * MULT + (DOWN - 1) * TAP_STEP
    ROWS: tl.constexpr = DOWN if HEIGHT == 1 else HIGH + 1
    ROW_STEP: tl.constexpr = TAP_STEP if HEIGHT == 1 else 1
    done = ()
    for v in tl.static_range(ACROSS):
        input_column = column + v * columns.tap_step
        valid = live & _inside(input_column, columns.source)
        column_sums = ()
        for t in tl.static_range(DOWN):
            column_sums = column_sums + (sums[v * DOWN + t],)
        for r in tl.static_range(ROWS):
            input_row = row + r * ROW_STEP
            at = input_row * input_strides[2] + input_column * input_strides[3]
            x = tl.load(input + at, mask=valid & _inside(input_row, rows.source), other=0.0)
            x = x.to(sums[0].dtype)
            added = ()
            for t in tl.static_range(DOWN):
                total = column_sums[t]
                for i in tl.static_range(HEIGHT):
                    if i * MULT + t * TAP_STEP == r * ROW_STEP:
                        total = total + x * y[i]
                added = added + (total,)
            column_sums = added
        done = done + column_sums
    return done


@triton.jit
def _sum_split(
    input, output, begin, end, first_row, first_column, rows, columns, input_strides,
    output_strides, batch,
    LANES: tl.constexpr, HEIGHT: tl.constexpr, AT_ONCE: tl.constexpr, DOWN: tl.constexpr,
    ACROSS: tl.constexpr, MULT: tl.constexpr, TAP_STEP: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """The sums of DOWN x ACROSS taps over the blocks of lanes from ``begin`` to ``end``.

    A lane is an image, HEIGHT output rows and a column; AT_ONCE of the rows are summed at a time.
    """
    height = (rows.dest + HEIGHT - 1) // HEIGHT
    sums = (tl.zeros([LANES], SUM),) * (DOWN * ACROSS)
    for block in range(begin, end):
        lane = block * LANES + tl.arange(0, LANES)
        output_column = lane % columns.dest
        image = lane // columns.dest // height
        for part in range(HEIGHT // AT_ONCE):
            output_row = lane // columns.dest % height * HEIGHT + part * AT_ONCE
            live = image < batch
            if AT_ONCE < HEIGHT:
                live = live & (output_row < rows.dest)
            sums = _add_pixel_pairs(
                sums, input + image * input_strides[0],
                output + image * output_strides[0] + output_column * output_strides[3], live,
                first_row + output_row * MULT, first_column + output_column * columns.mult,
                rows, columns, output_row, input_strides, output_strides,
                AT_ONCE, DOWN, ACROSS, MULT, TAP_STEP,
            )  # fmt: skip
    return sums


@triton.jit
def weight_taps(
    input, output, partial, recompute_flag, rows, columns, input_strides, output_strides,
    batch, out_channels, group_in, group_out, row_chunks, column_chunks, per_split,
    LANES: tl.constexpr, HEIGHT: tl.constexpr, DOWN: tl.constexpr, ACROSS: tl.constexpr,
    MULT: tl.constexpr, TAP_STEP: tl.constexpr, USE_INT64: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """``grad_weight`` for few channels, first stage: DOWN x ACROSS taps in every lane.

    A program has one pair of channels, one block of taps and one split of the lanes, and adds its
    lanes up at the end.  ``partial`` is (splits, O, C/G, kH, kW); the second stage adds the
    splits.

    Below the last output row a block multiplies input pixels by 0, which is wrong for NaN and
    infinity.  So if a sum is not finite, the rows are summed again one by one.

    Args:
        per_split: blocks of lanes in a split.
    """
    if _must_skip(recompute_flag):
        return
    pid = _program_id(USE_INT64)
    first_v = pid % column_chunks * ACROSS
    pid = pid // column_chunks
    first_u = pid % row_chunks * DOWN
    pid = pid // row_chunks
    c = pid % group_in
    pid = pid // group_in
    o = pid % out_channels
    split = pid // out_channels
    input += (o // group_out * group_in + c) * input_strides[1]
    output += o * output_strides[1]
    first_row = rows.base + first_u * TAP_STEP
    first_column = columns.base + first_v * columns.tap_step

    sums = _sum_split(
        input, output, split * per_split, (split + 1) * per_split, first_row, first_column, rows,
        columns, input_strides, output_strides, batch,
        LANES, HEIGHT, HEIGHT, DOWN, ACROSS, MULT, TAP_STEP, SUM,
    )  # fmt: skip
    if HEIGHT > 1:
        difference = sums[0] - sums[0]
        for t in tl.static_range(DOWN * ACROSS):
            difference += sums[t] - sums[t]
        if tl.max((difference != 0).to(tl.int32), 0) > 0:
            sums = _sum_split(
                input, output, split * per_split, (split + 1) * per_split, first_row, first_column,
                rows, columns, input_strides, output_strides, batch,
                LANES, HEIGHT, 1, DOWN, ACROSS, MULT, TAP_STEP, SUM,
            )  # fmt: skip
    partial += ((split * out_channels + o) * group_in + c) * rows.taps * columns.taps
    for t in tl.static_range(DOWN):
        for s in tl.static_range(ACROSS):
            u = first_u + t
            v = first_v + s
            tl.store(
                partial + u * columns.taps + v,
                tl.sum(sums[s * DOWN + t], 0),
                mask=(u < rows.taps) & (v < columns.taps),
            )


@triton.jit
def weight_dot(
    input, output, partial, recompute_flag, rows, columns, input_strides, output_strides,
    group_strides, batch, groups, group_in, group_out, per_split,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, USE_INT64: tl.constexpr,
    SUM: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """``grad_weight`` as a matrix product over one split of the pixels, first stage.

    (output channels, taps x input channels) = (output channels, pixels) @ (pixels, taps x input
    channels).  The channels of both operands are contiguous.  ``partial`` is (splits, O, kH, kW,
    C/G); the second stage adds the splits.

    Args:
        group_strides: of input and output.
        per_split: pixels in a split, a multiple of K.
    """
    if _must_skip(recompute_flag):
        return
    pid = _program_id(USE_INT64)
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
    tap_row = n // group_in // columns.taps * rows.tap_step + rows.base
    tap_column = n // group_in % columns.taps * columns.tap_step + columns.base
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
        valid = _inside_signed((i * rows.mult)[:, None] + tap_row[None, :], rows.source)
        valid = valid & _inside_signed(
            (j * columns.mult)[:, None] + tap_column[None, :], columns.source
        )
        x = tl.load(
            input + at[:, None] + at_tap[None, :],
            mask=valid & (k < end)[:, None] & (n < length)[None, :],
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
def build_bands(
    weight, band, recompute_flag, columns, source_stride, dest_stride, row_stride, group_stride,
    row_taps, blocks,
    LANES: tl.constexpr, USE_INT64: tl.constexpr,
):  # fmt: skip
    """``band[l, j] = weight[v]`` where ``l * div = j * mult + base + tap_step * v``, else 0.

    Args:
        weight: (groups, row_taps, column taps), contiguous.
        source_stride, dest_stride: of l and j in ``band``.
        row_stride, group_stride: of tap rows and groups in ``band``.
        blocks: blocks of lanes in the band of one tap row.
    """
    if _must_skip(recompute_flag):
        return
    pid = _program_id(USE_INT64)
    at = pid % blocks * LANES + tl.arange(0, LANES)
    row = pid // blocks
    column, dest = at // columns.dest, at % columns.dest
    distance = column * columns.div - dest * columns.mult - columns.base
    v = distance // columns.tap_step
    is_tap = (v * columns.tap_step == distance) & _inside(v, columns.taps)
    in_source = column < columns.source
    tap = tl.load(weight + row * columns.taps + v, mask=is_tap & in_source, other=0.0)
    band += row // row_taps * group_stride + row % row_taps * row_stride
    tl.store(band + column * source_stride + dest * dest_stride, tap, mask=in_source)


@triton.jit
def sum_bands(
    partial, result, recompute_flag, columns, groups, row_taps, splits,
    LANES: tl.constexpr, USE_INT64: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """``grad_weight`` by bands, second stage: a tap is the sum of its diagonal over all splits.

    Args:
        partial: (splits, groups, dest columns, row_taps, source columns).
        result: (groups, row_taps, column taps).
    """
    if _must_skip(recompute_flag):
        return
    pid = _program_id(USE_INT64)
    blocks = (columns.taps + LANES - 1) // LANES
    v = pid % blocks * LANES + tl.arange(0, LANES)
    row = pid // blocks
    group, u = row // row_taps, row % row_taps
    total = tl.zeros([LANES], SUM)
    for split in range(splits):
        first = (split * groups + group) * columns.dest
        for dest in range(columns.dest):
            column = dest * columns.mult + columns.base + v * columns.tap_step
            valid = (v < columns.taps) & _inside(column, columns.source)
            at = ((first + dest) * row_taps + u) * columns.source
            total += tl.load(partial + at + column, mask=valid, other=0.0)
    tl.store(result + row * columns.taps + v, total, mask=v < columns.taps)
