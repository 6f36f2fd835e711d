// grad_weight: a sum over rows and columns for each tap.
//
// A job is a block of filters, channels and tap rows of one group.  It visits its share of the images,
// block by block of rows and block by block of columns.  Within these blocks every tile of taps passes
// over rows that lie in the first cache level.  Where one job per block would leave threads idle, the
// images and rows are split, by the sizes alone: the sums of the splits are added in a fixed order, so
// the result does not depend on the number of threads.
//
// Rows as in correlate.hpp: gradient rows i = i0 + a * d' and tap rows u = t * s' + phi meet at
// image rows base + b * (d' * stride), b = a + t.  A block of rows is a range of b, so it contains
// each product exactly once.
#pragma once

#include "kernels.hpp"
#include "microkernel_weight.hpp"
#include "pack.hpp"

namespace torch_corr {
namespace TORCH_CORR_ISA {

constexpr int64_t kSumBytes = 256 << 10;      // sums of a job, unless one row of taps needs more
constexpr int64_t kRowBlockBytes = 32 << 10;  // packed image rows of a channel: the first cache level
constexpr int64_t kWideVectors = 16;  // a wider block of columns ends where the padding ends
// `Direct.workspace` in algorithms/direct.py copies these two.
constexpr int64_t kPartialSums = 1 << 20;  // numbers in all splits but the first
constexpr int64_t kSplitJobs = 32;         // jobs times splits, about: enough for an even load

// Sums and packed rows, together with 32 KiB for the rest.
static_assert(kSumBytes + kPackedBytes + (32 << 10) <= kThreadScratch);

// How the work is divided; from the sizes alone.
struct Blocking {
  int64_t filters, channels, tap_rows;  // in a job
  int64_t filter_blocks, channel_blocks, tap_blocks;
  int64_t row_block, row_blocks;  // image rows (b) in a block of rows; blocks in an image
  int64_t jobs, splits;
  int64_t pair_sums, sums;          // numbers, for one pair of a filter and a channel and for a job
  int64_t image_pitch, grad_pitch;  // numbers
  int64_t image_plane, grad_plane;  // numbers, of packed rows
};

template <class T>
TORCH_CORR_INLINE Blocking choose_blocking(const TapReduction& r) {
  constexpr int64_t L = kLanes<T>, kSums = kSumBytes / int64_t(sizeof(T));
  const Geometry& g = r.geometry;
  Blocking c;
  c.tap_rows = min(g.row.kernel, min(kTapRowBlock, max<int64_t>(1, kSums / (g.col.kernel * L))));
  c.tap_blocks = ceil_div(g.row.kernel, c.tap_rows);
  c.tap_rows = ceil_div(g.row.kernel, c.tap_blocks);
  c.pair_sums = c.tap_rows * g.col.kernel * L;
  const int64_t pairs = max<int64_t>(1, kSums / c.pair_sums);
  c.filters = min(g.group_out, min(kChannelBlock, pairs));
  c.channels = min(g.group_in, min(kChannelBlock, max<int64_t>(1, pairs / c.filters)));
  c.filter_blocks = ceil_div(g.group_out, c.filters);
  c.channel_blocks = ceil_div(g.group_in, c.channels);
  c.sums = c.filters * c.channels * c.pair_sums;
  c.image_pitch = ceil_div(r.packed_width + 2 * L, L) * L;
  c.grad_pitch = r.block_vectors * L;
  c.jobs = g.groups * c.filter_blocks * c.channel_blocks * c.tap_blocks;

  const int64_t span_rows = g.row.output + g.row.kernel - 1;  // most rows b of any phi and i0
  const int64_t row_bytes = c.image_pitch * int64_t(sizeof(T));
  const int64_t fit = max<int64_t>(1, min(kRowBlock, kPackedBytes / (c.channels * row_bytes)));
  c.row_block = min(span_rows, max(fit, kRowBlockBytes / row_bytes));
  c.row_blocks = ceil_div(span_rows, c.row_block);
  c.image_plane = c.row_block * c.image_pitch;
  c.grad_plane = (c.row_block + c.tap_rows) * c.grad_pitch;
  const int64_t units = g.batch * c.row_blocks;
  const int64_t room = 1 + kPartialSums / g.weight_elements();
  c.splits = max<int64_t>(1, min(units, min(room, ceil_div(kSplitJobs, c.jobs))));
  return c;
}

// Computes jobs, one after the other, in the scratch memory of one thread.
template <class S, class T>
class TapReducer {
 public:
  static constexpr bool kHalf = sizeof(S) != sizeof(T);
  static constexpr int64_t L = kLanes<T>;

  TapReducer(const TapReduction& r, const Blocking& blocking, Arena& arena)
      : r_(r), g_(r.geometry), blocking_(blocking) {
    sums_ = arena.array<T>(blocking.sums);
    image_ = arena.array<T>(blocking.channels * blocking.image_plane);
    grad_ = arena.array<T>(blocking.filters * blocking.grad_plane);
    spans_ = arena.array<Span>(r.segment_count);
  }

  // One split of one job.  Writes to `final` in the storage type, or without it to `partial`.
  void run(int64_t job, int64_t split, T* partial, S* final) {
    const int64_t tap_block = job % blocking_.tap_blocks;
    job /= blocking_.tap_blocks;
    const int64_t channel_block = job % blocking_.channel_blocks;
    job /= blocking_.channel_blocks;
    const int64_t filter_block = job % blocking_.filter_blocks;
    group_ = job / blocking_.filter_blocks;
    u_first_ = tap_block * blocking_.tap_rows;
    u_last_ = min(g_.row.kernel, u_first_ + blocking_.tap_rows);
    c_first_ = channel_block * blocking_.channels;
    c_last_ = min(g_.group_in, c_first_ + blocking_.channels);
    o_first_ = filter_block * blocking_.filters;
    o_last_ = min(g_.group_out, o_first_ + blocking_.filters);
    for (int64_t i = 0; i < blocking_.sums; i++) sums_[i] = T(0);

    const int64_t units = g_.batch * blocking_.row_blocks;
    const int64_t begin = units / blocking_.splits * split + min(split, units % blocking_.splits);
    const int64_t end = begin + units / blocking_.splits + (split < units % blocking_.splits);
    for (int64_t unit = begin; unit < end; unit++)
      run_row_block(unit / blocking_.row_blocks, unit % blocking_.row_blocks);
    reduce_lanes(partial, final);
  }

 private:
  // The rows of one phi and one i0 in one block of rows; the names are those of the first comment.
  struct RowRange {
    int64_t phi, tap_step, i0, out_step, rows, base, step, t_first, t_last, b_first, b_last;
  };

  void run_row_block(int64_t batch, int64_t row_block) {
    const Axis& row = g_.row;
    const auto [tap_step, out_step, step] = row_steps(row.stride, row.dilation);
    for (int64_t phi = 0; phi < min(tap_step, row.kernel); phi++) {
      const int64_t t_first = max<int64_t>(0, ceil_div(u_first_ - phi, tap_step));
      const int64_t t_last = ceil_div(u_last_ - phi, tap_step);
      if (t_first >= t_last) continue;
      for (int64_t i0 = 0; i0 < min(out_step, row.output); i0++) {
        const int64_t rows = ceil_div(row.output - i0, out_step);
        const int64_t base = i0 * row.stride + phi * row.dilation - row.padding;
        const int64_t b_first = max(row_block * blocking_.row_block, max(t_first, ceil_div(-base, step)));
        const int64_t b_last = min((row_block + 1) * blocking_.row_block,
                                   min(rows + t_last - 1, ceil_div(row.input - base, step)));
        if (b_first < b_last)
          run_column_blocks(batch, {phi, tap_step, i0, out_step, rows, base, step, t_first, t_last,
                                    b_first, b_last});
      }
    }
  }

  void run_column_blocks(int64_t batch, const RowRange& k) {
    const Axis& col = g_.col;
    const int64_t block = r_.block_vectors * L;
    const int64_t in_plane = g_.row.input * col.input, out_plane = g_.row.output * col.output;
    const S* input = static_cast<const S*>(r_.input) +
                     (batch * g_.groups + group_) * g_.group_in * in_plane;
    const S* output = static_cast<const S*>(r_.output) +
                      (batch * g_.groups + group_) * g_.group_out * out_plane;
    // Where rows are short, prefetch the same planes of the next image, so many groups further.
    const int64_t prefetch_groups = col.output <= kWideVectors * L && batch + 1 < g_.batch ? g_.groups : 0;
    // Gradient rows that meet the image rows of this block.
    const int64_t a_first = max<int64_t>(0, k.b_first - k.t_last + 1);
    const int64_t a_last = min(k.rows, k.b_last - k.t_first);
    for (int64_t from = 0, width; from < col.output; from += width) {
      width = block_width(from);
      const int tail = int(width % L);
      const int64_t low = from * col.stride - col.padding;
      const int64_t high = low + width - 1 + (col.kernel - 1) * col.dilation;
      const bool grad_in_place = !kHalf && (kHasLaneMasks || tail == 0);
      const bool image_in_place = grad_in_place && col.stride == 1 && low >= 0 && high < col.input;

      WeightTask<T> tile{};
      tile.vectors = width / L;
      tile.tail = tail;
      // A step past the last row is never taken; clamped, it cannot overflow.
      tile.sums_pitch = min(k.tap_step, g_.row.kernel) * col.kernel * L;
      int64_t image_plane, grad_plane;
      const T *image, *grad;  // at b_first and a_first
      if (image_in_place) {
        image = reinterpret_cast<const T*>(input) + (k.base + k.b_first * k.step) * col.input + from;
        tile.image_pitch = min(k.step, g_.row.input) * col.input;
        image_plane = in_plane;
      } else {
        image = image_;
        tile.image_pitch = blocking_.image_pitch;
        image_plane = blocking_.image_plane;
        if (spans_from_ != from)
          for (int64_t i = 0; i < r_.segment_count; i++) {
            Segment segment = r_.segments[i];
            segment.length -= block - width;
            spans_[i] = clip_segment(segment, col.input, col.stride, from);
          }
        spans_from_ = from;
        for (int64_t c = c_first_; c < c_last_; c++)
          for (int64_t b = k.b_first; b < k.b_last; b++) {
            const S* row = input + c * in_plane + (k.base + b * k.step) * col.input;
            if (prefetch_groups) prefetch_row(row, prefetch_groups * g_.group_in * in_plane, col.input);
            pack_row(image_ + (c - c_first_) * image_plane + (b - k.b_first) * blocking_.image_pitch, row,
                     col.stride, spans_, r_.segment_count);
          }
      }
      if (grad_in_place) {
        grad = reinterpret_cast<const T*>(output) + (k.i0 + a_first * k.out_step) * col.output + from;
        tile.grad_pitch = min(k.out_step, g_.row.output) * col.output;
        grad_plane = out_plane;
      } else {
        grad = grad_;
        tile.grad_pitch = blocking_.grad_pitch;
        grad_plane = blocking_.grad_plane;
        for (int64_t o = o_first_; o < o_last_; o++)
          for (int64_t a = a_first; a < a_last; a++) {
            T* to = grad_ + (o - o_first_) * grad_plane + (a - a_first) * blocking_.grad_pitch;
            const S* row = output + o * out_plane + (k.i0 + a * k.out_step) * col.output + from;
            if (prefetch_groups) prefetch_row(row, prefetch_groups * g_.group_out * out_plane, width);
            copy_strided(to, row, width, 1);
            for (int64_t i = width; i % L; i++) to[i] = T(0);
          }
      }
      const ptrdiff_t* offsets = image_in_place ? r_.image_offsets : r_.packed_offsets;
      for (int64_t o = o_first_; o < o_last_; o++)
        for (int64_t c = c_first_; c < c_last_; c++) {
          const T* x = image + (image_in_place ? c : c - c_first_) * image_plane;
          const T* y = grad + (grad_in_place ? o : o - o_first_) * grad_plane;
          T* sums = sums_ + ((o - o_first_) * blocking_.channels + c - c_first_) * blocking_.pair_sums;
          run_tiles(k, tile, x, y, a_first, offsets, sums);
        }
    }
  }

  // Width of the block of columns that starts at `from`.  In wide images, columns where taps meet the
  // padding are blocks of their own, so that the other blocks are read in place.
  int64_t block_width(int64_t from) const {
    const Axis& col = g_.col;
    const int64_t width = min(r_.block_vectors * L, col.output - from);
    if (kHalf || col.stride != 1 || width <= kWideVectors * L) return width;
    const int64_t outside = col.padding - from;
    if (outside > 0) return min(width, ceil_div(outside, L) * L);
    const int64_t inside = col.input + col.padding - (col.kernel - 1) * col.dilation - from;
    return inside >= L ? min(width, inside / L * L) : width;
  }

  // Passes tiles of taps, of nearly equal size, over one block of a pair of planes.
  void run_tiles(const RowRange& k, WeightTask<T> tile, const T* x, const T* y, int64_t a_first,
                 const ptrdiff_t* offsets, T* sums) {
    const int64_t row_tiles = ceil_div(k.t_last - k.t_first, kTapRows);
    const int64_t col_tiles = ceil_div(g_.col.kernel, kTapCols);
    int64_t t = k.t_first;
    for (int64_t i = 0; i < row_tiles; i++) {
      const int64_t u = ceil_div(k.t_last - t, row_tiles - i);
      int64_t v = 0;
      for (int64_t j = 0; j < col_tiles; j++) {
        const int64_t n = ceil_div(g_.col.kernel - v, col_tiles - j);
        tile.offsets = offsets + v;
        run_rows(k, tile, int(u), int(n), t, x, y, a_first,
                 sums + ((t * k.tap_step + k.phi - u_first_) * g_.col.kernel + v) * L);
        v += n;
      }
      t += u;
    }
  }

  // One call for all image rows that meet every tap row of the tile; one call for each of the others,
  // at the image's top and bottom.
  void run_rows(const RowRange& k, WeightTask<T>& tile, int u, int v, int64_t t, const T* x, const T* y,
                int64_t a_first, T* sums) {
    const int64_t end = min(k.b_last, t + u - 1 + k.rows);
    const int64_t all_first = t + u - 1, all_last = t + k.rows;  // every a = b - t.. is a row
    for (int64_t b = max(k.b_first, t); b < end;) {
      const bool all = b >= all_first && b < all_last;
      const int64_t t_low = all ? t : max(t, b - k.rows + 1);
      const int64_t t_high = all ? t + u : min(t + u, b + 1);
      tile.rows = all ? min(end, all_last) - b : 1;
      tile.image = x + (b - k.b_first) * tile.image_pitch;
      tile.grad = y + (b - t_low - a_first) * tile.grad_pitch;
      tile.sums = sums + (t_low - t) * tile.sums_pitch;
      run_weight(int(t_high - t_low), v, tile);
      b += tile.rows;
    }
  }

  // Adds the lanes of each vector of sums.
  void reduce_lanes(T* partial, S* final) {
    const int64_t tap_columns = g_.col.kernel, taps = (u_last_ - u_first_) * tap_columns;
    for (int64_t o = o_first_; o < o_last_; o++)
      for (int64_t c = c_first_; c < c_last_; c++) {
        const T* sums = sums_ + ((o - o_first_) * blocking_.channels + c - c_first_) * blocking_.pair_sums;
        const int64_t at = (((group_ * g_.group_out + o) * g_.group_in + c) * g_.row.kernel + u_first_) *
                           tap_columns;
        for (int64_t i = 0; i < taps; i++) {
          T lanes[L];
          __builtin_memcpy(lanes, sums + i * L, sizeof lanes);
#pragma GCC unroll 8
          for (int64_t half = L / 2; half; half /= 2)
            for (int64_t j = 0; j < half; j++) lanes[j] += lanes[j + half];
          if (final)
            final[at + i] = Narrow<S>::of(lanes[0]);
          else
            partial[at + i] = lanes[0];
        }
      }
  }

  const TapReduction& r_;
  const Geometry& g_;
  const Blocking& blocking_;
  T *sums_, *image_, *grad_;
  Span* spans_;
  int64_t spans_from_ = -1;
  int64_t group_, u_first_, u_last_, c_first_, c_last_, o_first_, o_last_;
};

template <class S>
Status reduce_as(const TapReduction& r, int threads) {
  typedef typename Accumulation<S>::type T;
  const Geometry& g = r.geometry;
  const Blocking blocking = choose_blocking<T>(r);
  const int64_t numbers = g.weight_elements();
  const double work = double(numbers) * double(g.batch) * double(g.row.output) * double(g.col.output);
  const int64_t total = blocking.jobs * blocking.splits;
  const Schedule schedule = make_schedule(total, work / double(total) + 1, threads);

  const int64_t bytes = r.scratch = scratch_bytes<TapReducer<S, T>>(r, blocking);
  const int64_t partial_sums = blocking.splits > 1 ? blocking.splits * numbers : 0;
  char* memory = Arena::allocate(bytes * schedule.threads + partial_sums * int64_t(sizeof(T)));
  if (!memory) return Status::out_of_memory;
  T* partial = reinterpret_cast<T*>(memory + bytes * schedule.threads);
  S* weight = static_cast<S*>(r.weight);

  parallel(total, schedule.chunk, schedule.threads, [&](int64_t begin, int64_t end, int thread) {
    Arena arena(memory + thread * bytes);
    TapReducer<S, T> reducer(r, blocking, arena);
    for (int64_t i = begin; i < end; i++) {
      const int64_t split = i / blocking.jobs;
      reducer.run(i % blocking.jobs, split, partial + split * numbers,
                  blocking.splits > 1 ? nullptr : weight);
    }
  });
  if (blocking.splits > 1)
    for (int64_t i = 0; i < numbers; i++) {
      T sum = partial[i];
      for (int64_t split = 1; split < blocking.splits; split++) sum += partial[split * numbers + i];
      weight[i] = Narrow<S>::of(sum);
    }
  std::free(memory);
  return Status::done;
}

inline Status reduce_taps(const TapReduction& r, Dtype dtype, int threads) {
  return with_storage_type(dtype, [&](auto number) { return reduce_as<decltype(number)>(r, threads); });
}

}  // namespace TORCH_CORR_ISA
}  // namespace torch_corr
