// The reduction engine: grad_weight.
//
// A job is a block of filters, channels and tap rows of one group; it walks its share of images
// and row bands, strip by strip of columns.  Within a strip every tap tile passes over rows that lie
// in the first cache level.  Where one job per block would leave threads idle the rows are shared
// out in parts, by the sizes alone: the parts' sums are added in a fixed order, so the result does
// not depend on the number of threads.
//
// Rows as in correlate.hpp: gradient rows i = i0 + a * d' and tap rows u = t * s' + phi meet at
// image rows base + b * (d' * stride), b = a + t.  Bands are ranges of b: each product in just one.
#pragma once

#include "engines.hpp"
#include "pack.hpp"
#include "taps.hpp"

namespace torch_corr {
namespace TORCH_CORR_ISA {

constexpr int64_t kSumBytes = 256 << 10;   // of a job's sums, unless one row of taps needs more
constexpr int64_t kBandBytes = 32 << 10;   // of a band's packed image rows
constexpr int64_t kWideVectors = 16;       // from which a strip is cut where the padding ends
constexpr int64_t kPartials = 1 << 20;     // numbers in all parts, beyond the first

// How the work is cut; from the sizes alone.
struct Cut {
  int64_t filters, channels, tap_rows;              // in a block
  int64_t filter_blocks, channel_blocks, tap_blocks;
  int64_t band, bands;  // image rows (b) in a band; bands over an image
  int64_t jobs, parts;
  int64_t image_pitch, grad_pitch, sums;  // numbers
};

template <class T>
TORCH_CORR_INLINE Cut cut_reduction(const TapReduction& r) {
  constexpr int64_t L = kLanes<T>;
  const Geometry& g = r.geometry;
  Cut c;
  c.tap_rows = least(g.row.kernel, least(kTapRowBlock, most<int64_t>(1, kSumBytes / int64_t(sizeof(T)) /
                                                                            (g.col.kernel * L))));
  c.tap_blocks = ceil_div(g.row.kernel, c.tap_rows);
  c.tap_rows = ceil_div(g.row.kernel, c.tap_blocks);
  const int64_t pair = c.tap_rows * g.col.kernel * L;
  const int64_t pairs = most<int64_t>(1, kSumBytes / int64_t(sizeof(T)) / pair);
  c.filters = least(g.group_out, least(kChannelBlock, pairs));
  c.channels = least(g.group_in, least(kChannelBlock, most<int64_t>(1, pairs / c.filters)));
  c.filter_blocks = ceil_div(g.group_out, c.filters);
  c.channel_blocks = ceil_div(g.group_in, c.channels);
  c.sums = c.filters * c.channels * pair;
  c.image_pitch = ceil_div(r.packed_width + 2 * L, L) * L;
  c.grad_pitch = r.strip_vectors * L;
  c.jobs = g.groups * c.filter_blocks * c.channel_blocks * c.tap_blocks;

  const int64_t span_rows = g.row.output + g.row.kernel - 1;  // no class has more
  const int64_t row_bytes = c.image_pitch * int64_t(sizeof(T));
  const int64_t some = most<int64_t>(1, least(kBandRows, kStripBytes / (c.channels * row_bytes)));
  c.band = least(span_rows, most(some, kBandBytes / row_bytes));
  c.bands = ceil_div(span_rows, c.band);
  const int64_t units = g.batch * c.bands;
  const int64_t room = 1 + kPartials / g.weight_elements();
  c.parts = most<int64_t>(1, least(units, least(room, ceil_div(32, c.jobs))));
  return c;
}

template <class S, class T>
class TapReducer {
 public:
  static constexpr bool kWidens = sizeof(S) != sizeof(T);
  static constexpr int64_t L = kLanes<T>;

  static int64_t bytes(const Cut& cut, int64_t segments) {
    return int64_t(sizeof(T)) * (cut.sums + cut.channels * cut.band * cut.image_pitch +
                                 cut.filters * (cut.band + cut.tap_rows) * cut.grad_pitch) +
           segments * int64_t(sizeof(Span)) + 4 * 64;
  }

  TapReducer(const TapReduction& r, const Cut& cut, char* memory) : r_(r), g_(r.geometry), cut_(cut) {
    sums_ = aligned<T>(memory, cut.sums);
    image_ = aligned<T>(memory, cut.channels * cut.band * cut.image_pitch);
    grad_ = aligned<T>(memory, cut.filters * (cut.band + cut.tap_rows) * cut.grad_pitch);
    spans_ = aligned<Span>(memory, r.segment_count);
    spans_from_ = -1;
  }

  // One part of one job; `weight` takes sums in the accumulation type, or `final` in storage.
  void run(int64_t job, int64_t part, T* weight, S* final) {
    const int64_t tap_block = job % cut_.tap_blocks;
    job /= cut_.tap_blocks;
    const int64_t channel_block = job % cut_.channel_blocks;
    job /= cut_.channel_blocks;
    const int64_t filter_block = job % cut_.filter_blocks;
    group_ = job / cut_.filter_blocks;
    u_first_ = tap_block * cut_.tap_rows;
    u_last_ = least(g_.row.kernel, u_first_ + cut_.tap_rows);
    c_first_ = channel_block * cut_.channels;
    c_last_ = least(g_.group_in, c_first_ + cut_.channels);
    o_first_ = filter_block * cut_.filters;
    o_last_ = least(g_.group_out, o_first_ + cut_.filters);
    for (int64_t i = 0; i < cut_.sums; i++) sums_[i] = T(0);

    const int64_t units = g_.batch * cut_.bands;
    const int64_t begin = units / cut_.parts * part + least(part, units % cut_.parts);
    const int64_t end = begin + units / cut_.parts + (part < units % cut_.parts);
    for (int64_t unit = begin; unit < end; unit++) run_band(unit / cut_.bands, unit % cut_.bands);
    fold(weight, final);
  }

 private:
  void run_band(int64_t batch, int64_t band) {
    const Axis& row = g_.row;
    int64_t shared = row.stride, rest = row.dilation;
    while (rest) {
      const int64_t next = shared % rest;
      shared = rest;
      rest = next;
    }
    const int64_t tap_step = row.stride / shared, apart = row.dilation / shared;
    for (int64_t phi = 0; phi < least(tap_step, row.kernel); phi++) {
      const int64_t t_first = most<int64_t>(0, ceil_div(u_first_ - phi, tap_step));
      const int64_t t_last = ceil_div(u_last_ - phi, tap_step);
      if (t_first >= t_last) continue;
      for (int64_t i0 = 0; i0 < least(apart, row.output); i0++) {
        const int64_t rows = ceil_div(row.output - i0, apart);
        const int64_t base = i0 * row.stride + phi * row.dilation - row.padding;
        const int64_t step = apart * row.stride;
        int64_t b_first = most(band * cut_.band, most(t_first, ceil_div(-base, step)));
        int64_t b_last = least((band + 1) * cut_.band,
                               least(rows + t_last - 1, ceil_div(row.input - base, step)));
        if (b_first >= b_last) continue;
        run_strips(batch, {phi, tap_step, i0, apart, rows, base, step, t_first, t_last, b_first, b_last});
      }
    }
  }

  struct Rows {
    int64_t phi, tap_step, i0, apart, rows, base, step, t_first, t_last, b_first, b_last;
  };

  void run_strips(int64_t batch, const Rows& k) {
    const Axis& col = g_.col;
    const int64_t strip = r_.strip_vectors * L;
    const int64_t in_plane = g_.row.input * col.input, out_plane = g_.row.output * col.output;
    const S* input = static_cast<const S*>(r_.input) +
                     (batch * g_.groups + group_) * g_.group_in * in_plane;
    const S* output = static_cast<const S*>(r_.output) +
                      (batch * g_.groups + group_) * g_.group_out * out_plane;
    // Planes of the next image, as groups from here to there; where rows are short.
    const int64_t ahead = col.output <= kWideVectors * L && batch + 1 < g_.batch ? g_.groups : 0;
    // Gradient rows that this band's image rows meet.
    const int64_t a_first = most<int64_t>(0, k.b_first - k.t_last + 1);
    const int64_t a_last = least(k.rows, k.b_last - k.t_first);
    for (int64_t from = 0, width; from < col.output; from += width) {
      width = strip_width(from);
      const int tail = int(width % L);
      const int64_t low = from * col.stride - col.padding;
      const int64_t high = low + width - 1 + (col.kernel - 1) * col.dilation;
      const bool whole = !kWidens && (kLaneMasks || tail == 0);  // whole rows can be read in place
      const bool image_direct = whole && col.stride == 1 && low >= 0 && high < col.input;

      TapRows<T> tile{};
      tile.vectors = width / L;
      tile.tail = tail;
      tile.sums_pitch = k.tap_step * col.kernel * L;
      int64_t image_plane, grad_plane;
      const T *image, *grad;  // at b_first and a_first
      if (image_direct) {
        image = reinterpret_cast<const T*>(input) + (k.base + k.b_first * k.step) * col.input + from;
        tile.image_pitch = k.step * col.input;
        image_plane = in_plane;
      } else {
        image = image_;
        tile.image_pitch = cut_.image_pitch;
        image_plane = cut_.band * cut_.image_pitch;
        if (spans_from_ != from)
          for (int64_t i = 0; i < r_.segment_count; i++) {
            Segment segment = r_.segments[i];
            segment.length -= strip - width;
            spans_[i] = span_of(segment, col.input, col.stride, from);
          }
        spans_from_ = from;
        for (int64_t c = c_first_; c < c_last_; c++)
          for (int64_t b = k.b_first; b < k.b_last; b++) {
            const S* row = input + c * in_plane + (k.base + b * k.step) * col.input;
            if (ahead) prefetch_row(row, ahead * g_.group_in * in_plane, col.input);
            pack_row(image_ + (c - c_first_) * image_plane + (b - k.b_first) * cut_.image_pitch, row,
                     col.stride, spans_, r_.segment_count);
          }
      }
      if (whole) {
        grad = reinterpret_cast<const T*>(output) + (k.i0 + a_first * k.apart) * col.output + from;
        tile.grad_pitch = k.apart * col.output;
        grad_plane = out_plane;
      } else {
        grad = grad_;
        tile.grad_pitch = cut_.grad_pitch;
        grad_plane = (cut_.band + cut_.tap_rows) * cut_.grad_pitch;
        for (int64_t o = o_first_; o < o_last_; o++)
          for (int64_t a = a_first; a < a_last; a++) {
            T* to = grad_ + (o - o_first_) * grad_plane + (a - a_first) * cut_.grad_pitch;
            const S* row = output + o * out_plane + (k.i0 + a * k.apart) * col.output + from;
            if (ahead) prefetch_row(row, ahead * g_.group_out * out_plane, width);
            copy_strided(to, row, width, 1);
            for (int64_t i = width; i % L; i++) to[i] = T(0);
          }
      }
      const ptrdiff_t* offset = image_direct ? r_.direct : r_.packed;
      const int64_t pair = cut_.tap_rows * col.kernel * L;
      for (int64_t o = o_first_; o < o_last_; o++)
        for (int64_t c = c_first_; c < c_last_; c++) {
          const T* x = image + (image_direct ? c : c - c_first_) * image_plane;
          const T* y = grad + (whole ? o : o - o_first_) * grad_plane;
          T* sums = sums_ + ((o - o_first_) * cut_.channels + c - c_first_) * pair;
          run_tiles(k, tile, x, y, a_first, offset, sums);
        }
    }
  }

  // Columns of the strip from there on.  In wide images those where taps meet the padding are strips
  // of their own, so that the rest is read in place.
  int64_t strip_width(int64_t from) const {
    const Axis& col = g_.col;
    const int64_t width = least(r_.strip_vectors * L, col.output - from);
    if (kWidens || col.stride != 1 || width <= kWideVectors * L) return width;
    const int64_t outside = col.padding - from;
    if (outside > 0) return least(width, ceil_div(outside, L) * L);
    const int64_t inside = col.input + col.padding - (col.kernel - 1) * col.dilation - from;
    return inside >= L ? least(width, inside / L * L) : width;
  }

  // Tap tiles of nearly equal size over one strip of one pair of planes.
  void run_tiles(const Rows& k, TapRows<T> tile, const T* x, const T* y, int64_t a_first,
                 const ptrdiff_t* offset, T* sums) {
    const int64_t row_tiles = ceil_div(k.t_last - k.t_first, kTapRows);
    const int64_t col_tiles = ceil_div(g_.col.kernel, kTapCols);
    int64_t t = k.t_first;
    for (int64_t i = 0; i < row_tiles; i++) {
      const int64_t u = ceil_div(k.t_last - t, row_tiles - i);
      int64_t v = 0;
      for (int64_t j = 0; j < col_tiles; j++) {
        const int64_t n = ceil_div(g_.col.kernel - v, col_tiles - j);
        tile.offset = offset + v;
        run_rows(k, tile, int(u), int(n), t, x, y, a_first,
                 sums + ((t * k.tap_step + k.phi - u_first_) * g_.col.kernel + v) * L);
        v += n;
      }
      t += u;
    }
  }

  // Image rows that all tap rows of the tile meet in one call; those at the image's top and bottom
  // that only some meet, one by one.
  void run_rows(const Rows& k, TapRows<T>& tile, int u, int v, int64_t t, const T* x, const T* y,
                int64_t a_first, T* sums) {
    const int64_t end = least(k.b_last, t + u - 1 + k.rows);
    const int64_t all_first = t + u - 1, all_last = t + k.rows;  // every a = b - t.. is a row
    for (int64_t b = most(k.b_first, t); b < end;) {
      const bool all = b >= all_first && b < all_last;
      const int64_t t_low = all ? t : most(t, b - k.rows + 1);
      const int64_t t_high = all ? t + u : least(t + u, b + 1);
      tile.rows = all ? least(end, all_last) - b : 1;
      tile.image = x + (b - k.b_first) * tile.image_pitch;
      tile.grad = y + (b - t_low - a_first) * tile.grad_pitch;
      tile.sums = sums + (t_low - t) * tile.sums_pitch;
      reduce_taps_tile_of(int(t_high - t_low), v, tile);
      b += tile.rows;
    }
  }

  void fold(T* weight, S* final) {
    const int64_t tap_columns = g_.col.kernel, taps = (u_last_ - u_first_) * tap_columns;
    const int64_t pair = cut_.tap_rows * tap_columns * L;
    for (int64_t o = o_first_; o < o_last_; o++)
      for (int64_t c = c_first_; c < c_last_; c++) {
        const T* sums = sums_ + ((o - o_first_) * cut_.channels + c - c_first_) * pair;
        const int64_t at = (((group_ * g_.group_out + o) * g_.group_in + c) * g_.row.kernel + u_first_) *
                           tap_columns;
        for (int64_t i = 0; i < taps; i++) {
          T lanes[L];
          __builtin_memcpy(lanes, sums + i * L, sizeof lanes);
#pragma GCC unroll 8
          for (int64_t half = L / 2; half; half /= 2)
            for (int64_t j = 0; j < half; j++) lanes[j] += lanes[j + half];
          if (final)
            final[at + i] = Narrow<S, T>::of(lanes[0]);
          else
            weight[at + i] = lanes[0];
        }
      }
  }

  const TapReduction& r_;
  const Geometry& g_;
  const Cut& cut_;
  T *sums_, *image_, *grad_;
  Span* spans_;
  int64_t spans_from_;
  int64_t group_, u_first_, u_last_, c_first_, c_last_, o_first_, o_last_;
};

template <class S>
Status reduce_as(const TapReduction& r, int threads) {
  typedef typename Accumulation<S>::type T;
  const Geometry& g = r.geometry;
  const Cut cut = cut_reduction<T>(r);
  const int64_t numbers = g.weight_elements();
  const double work = double(numbers) * double(g.batch) * double(g.row.output) * double(g.col.output);
  if (work < 2e5) threads = 1;

  const int64_t bytes = r.scratch =
      (TapReducer<S, T>::bytes(cut, r.segment_count) + 4095) & ~int64_t(4095);
  const int64_t partial_bytes = cut.parts > 1 ? cut.parts * numbers * int64_t(sizeof(T)) + 64 : 64;
  char* memory = static_cast<char*>(std::malloc(size_t(bytes * threads + partial_bytes)));
  if (!memory) return Status::out_of_memory;
  char* rest = memory + bytes * threads;
  T* partial = aligned<T>(rest, 0);
  S* weight = static_cast<S*>(r.weight);

  const int64_t total = cut.jobs * cut.parts;
  const double job_work = work / double(total);
  int64_t chunk = (total + threads * 16 - 1) / (threads * 16);
  if (double(chunk) * job_work < 1e5) chunk = least(total, int64_t(1e5 / (job_work + 1)) + 1);
  parallel(total, chunk, threads, [&](int64_t begin, int64_t end, int thread) {
    TapReducer<S, T> reducer(r, cut, memory + thread * bytes);
    for (int64_t i = begin; i < end; i++) {
      const int64_t part = i / cut.jobs;
      reducer.run(i % cut.jobs, part, partial + part * numbers, cut.parts > 1 ? nullptr : weight);
    }
  });
  if (cut.parts > 1)
    for (int64_t i = 0; i < numbers; i++) {
      T sum = partial[i];
      for (int64_t part = 1; part < cut.parts; part++) sum += partial[part * numbers + i];
      weight[i] = Narrow<S, T>::of(sum);
    }
  std::free(memory);
  return Status::done;
}

inline Status reduce_taps(const TapReduction& r, Dtype dtype, int threads) {
  switch (dtype) {
    case Dtype::float32:
      return reduce_as<float>(r, threads);
    case Dtype::float64:
      return reduce_as<double>(r, threads);
    case Dtype::float16:
      return reduce_as<half_bits>(r, threads);
    case Dtype::bfloat16:
      return reduce_as<bfloat_bits>(r, threads);
  }
  return Status::done;
}

}  // namespace TORCH_CORR_ISA
}  // namespace torch_corr
