// The correlation engine: forward, and grad_input as correlations of the output's gradient.
//
// Tiles of a few rows x up to `tile_vectors` vectors of one output plane, computed by one of two
// register tiles: strip.hpp's for few tap rows, tile.hpp's for any.  Where a tile's taps stay inside
// the image's columns and the numbers need no conversion, or where masks do both, it reads the image
// itself; otherwise it packs the rows it needs, once for all output channels of the block.
//
// Rows: outputs i = i0 + a * d', with d' = dilation / gcd(stride, dilation), meet the same image
// rows.  Tap rows u = t * s' + phi, s' = stride / gcd, of one phi form a dense correlation over
// image rows base + b * (d' * stride), where b = a + t: a register tile shares them for any stride
// and dilation.
#pragma once

#include "engines.hpp"
#include "pack.hpp"
#include "strip.hpp"
#include "tile.hpp"

namespace torch_corr {
namespace TORCH_CORR_ISA {

constexpr int64_t kPackBytes = 128 << 10;  // of a thread's packed rows, unless one tap row needs more
constexpr int64_t kSteps = 512;
constexpr int64_t kBands = 64;
constexpr int64_t kListedRows = 512;     // of all bands together
constexpr int64_t kWidestReach = 2048;  // columns from the first tap to the last, read in place with masks
constexpr int64_t kOutBlock = 16;
constexpr int64_t kOutBlockHeld = 4;  // when sums wait in scratch

TORCH_CORR_INLINE int64_t gcd(int64_t a, int64_t b) {
  while (b) {
    const int64_t r = a % b;
    a = b;
    b = r;
  }
  return a;
}

constexpr int kTileRows = 8;  // at most
static_assert(kStripRows <= kTileRows);

// Rows of a tile: more where the tile is narrow, to keep as many sums in registers.
TORCH_CORR_INLINE int tile_rows(int64_t vectors) {
  if (vectors == 1) return 8;
  if (vectors == 2 && TORCH_CORR_TILE_VECTORS == 4) return 8;
  return 4;
}

template <class T>
TORCH_CORR_INLINE void run_tile_of(int vectors, const Step<T>* steps, int64_t count,
                                   const TileTaps<T>& w, const TileTarget<T>& target) {
  switch (vectors) {
    case 1:
      return run_tile<8, 1>(steps, count, w, target);
    case 2:
      return run_tile<TORCH_CORR_TILE_VECTORS == 4 ? 8 : 4, 2>(steps, count, w, target);
#if TORCH_CORR_TILE_VECTORS >= 3
    case 3:
      return run_tile<4, 3>(steps, count, w, target);
#endif
#if TORCH_CORR_TILE_VECTORS >= 4
    case 4:
      return run_tile<4, 4>(steps, count, w, target);
#endif
  }
}

// Sums of all column phases, side by side in scratch, to one stretch of an output row.
template <class S, class T>
void put_row(S* out, int64_t out_cols, const ColumnPlan* cols, int64_t phases, int64_t from,
             int64_t width, const T* sums, int64_t phase_stride) {
  if (phases == 2 && cols[0].axis.out_step == 2 && cols[0].axis.out_first == 0) {
    // Stride 2, the common one, as an interleave that becomes shuffles.
    const T* even = sums;
    const T* odd = sums + phase_stride;
    S* __restrict to = out + 2 * from;
    const int64_t both = least(width, (out_cols - 2 * from) / 2);
    for (int64_t i = 0; i < both; i++) {
      to[2 * i] = Narrow<S, T>::of(even[i]);
      to[2 * i + 1] = Narrow<S, T>::of(odd[i]);
    }
    for (int64_t i = both; i < width && 2 * (from + i) < out_cols; i++)
      to[2 * i] = Narrow<S, T>::of(even[i]);
    return;
  }
  for (int64_t p = 0; p < phases; p++) {
    const AxisPlan& axis = cols[p].axis;
    const int64_t n = least(width, axis.count - from);
    const T* sum = sums + p * phase_stride;
    S* __restrict to = out + axis.out_first + from * axis.out_step;
    if (axis.out_step == 1)
      for (int64_t i = 0; i < n; i += kLanes<T>)
        store_narrow<S, T>(to + i, load(sum + i), int(least<int64_t>(kLanes<T>, n - i)));
    else
      for (int64_t i = 0; i < n; i++) to[i * axis.out_step] = Narrow<S, T>::of(sum[i]);
  }
}

// All that one thread needs for its tiles; the memory is its own.
template <class S, class T>
class TileRunner {
 public:
  static constexpr bool kWidens = sizeof(S) != sizeof(T);

  TileRunner(const Correlation& c, char* memory) : c_(c) {
    held_ = holds_sums(c);
    pitch_ = row_pitch(c);
    capacity_ = row_capacity(c);
    packed_ = aligned<T>(memory, capacity_ * pitch_);
    tags_ = aligned<int64_t>(memory, capacity_);
    spans_ = aligned<Span>(memory, c.segment_count);
    for (int64_t i = 0; i < capacity_; i++) tags_[i] = -1;
    spans_from_ = -1;
    lanes_from_ = -1;
    epoch_ = 0;
    ring_batch_ = -1;
    const AxisPlan& axis = c.rows[0];  // all phases have one step and dilation
    const int64_t shared = gcd(axis.step, axis.dilation);
    tap_step_ = axis.step / shared;
    row_step_ = axis.dilation / shared * axis.step;
    int64_t taps = 0;
    for (int64_t p = 0; p < c.row_phases; p++) taps = most(taps, c.rows[p].taps);
    const int64_t reach = (kTileRows - 1) * row_step_ + (taps - 1) * axis.dilation + 1;
    ring_ = 1;
    while (ring_ < reach && ring_ <= capacity_) ring_ *= 2;
    if (ring_ > capacity_ || c.group_in > 1) ring_ = 0;
    sums_ = aligned<T>(memory, held_ ? sums_size(c) : 0);
    if (c.strips) {
      bands_ = aligned<Band>(memory, kBands);
      band_rows_ = aligned<const void*>(memory, kListedRows);
      lanes_ = aligned<LaneMask>(memory, lanes_size(c));
      zeros_ = aligned<T>(memory, zeros_size(c));
      for (int64_t i = 0; i < zeros_size(c); i++) zeros_[i] = T(0);
    } else {
      steps_ = aligned<Step<T>>(memory, kSteps);
    }
  }

  static bool holds_sums(const Correlation& c) {
    return kWidens || c.col_phases > 1 || c.cols[0].axis.out_step > 1;
  }

  static int64_t bytes(const Correlation& c) {
    const int64_t tiles = kSteps * int64_t(sizeof(Step<T>));
    const int64_t strips = kBands * int64_t(sizeof(Band)) + kListedRows * int64_t(sizeof(void*)) +
                           lanes_size(c) * int64_t(sizeof(LaneMask)) +
                           zeros_size(c) * int64_t(sizeof(T));
    return row_capacity(c) * (row_pitch(c) * int64_t(sizeof(T)) + 8) +
           c.segment_count * int64_t(sizeof(Span)) +
           (holds_sums(c) ? sums_size(c) * int64_t(sizeof(T)) : 0) + (c.strips ? strips : tiles) + 8 * 64;
  }

  static int64_t out_block(const Correlation& c) {
    return least(c.group_out, holds_sums(c) ? kOutBlockHeld : kOutBlock);
  }

  // The tile at rows i0 + a * d' (row_tile numbers them) and columns from..from+width of output
  // channels [out_first, out_last) of one group.
  void run(int64_t batch, int64_t group, int64_t out_first, int64_t out_last, int64_t row_phase,
           int64_t first_row, int64_t row_apart, int rows, int64_t from, int64_t width) {
    constexpr int64_t L = kLanes<T>;
    const int vectors = int((width + L - 1) / L);
    const int64_t high = c_.reach_high + (from + vectors * L - 1);
    const bool inside = c_.reach_low + from >= 0 && high < c_.in_cols;
    const bool dense = c_.cols[0].axis.step == 1 && !(c_.strips && c_.crowded);
    masked_ = dense && c_.strips && kLaneMasks && c_.reach_high - c_.reach_low <= kWidestReach;
    direct_ = masked_ || (dense && inside && !kWidens);
    from_ = from;
    vectors_ = vectors;
    out_first_ = out_first;
    out_last_ = out_last;
    row_phase_ = row_phase;
    batch_ = batch;
    group_ = group;
    first_row_ = first_row;
    row_apart_ = row_apart;
    rows_ = rows;
    width_ = width;
    resume_ = false;
    count_ = used_ = listed_ = 0;
    if (!direct_) aim_packing();
    if (masked_) aim_lanes();
    if (c_.strips)
      list_bands();
    else
      list_steps();
    flush();
    if (held_) put();
  }

 private:
  static int64_t row_pitch(const Correlation& c) {
    return (c.packed_width + 2 * kLanes<T> - 1) / kLanes<T> * kLanes<T>;
  }
  static int64_t row_capacity(const Correlation& c) {
    const int64_t fit = least<int64_t>(kSteps, kPackBytes / int64_t(sizeof(T)) / row_pitch(c));
    return most<int64_t>(kTileRows + kStripTaps, fit);
  }
  static int64_t tile_size(const Correlation& c) {
    return (c.strips ? kStripRows * c.tile_vectors : 4 * most<int64_t>(4, c.tile_vectors)) * kLanes<T>;
  }
  static int64_t lanes_size(const Correlation& c) {
    int64_t taps = 0;
    for (int64_t p = 0; p < c.col_phases; p++) taps += c.cols[p].axis.taps;
    return kLaneMasks ? taps * c.tile_vectors : 0;
  }
  // A row of zeros for either way of reading rows.
  static int64_t zeros_size(const Correlation& c) {
    const int64_t reach = least(kWidestReach, c.reach_high - c.reach_low);
    return most(row_pitch(c), reach + (c.tile_vectors + 1) * kLanes<T>);
  }
  static int64_t sums_size(const Correlation& c) { return out_block(c) * c.col_phases * tile_size(c); }

  const S* plane_of(int64_t channel) const {
    return static_cast<const S*>(c_.input) + batch_ * c_.in.batch + group_ * c_.in.group +
           channel * c_.in.channel;
  }

  // All rows that the tile meets, one after the other; none outside the image.
  void list_steps() {
    const AxisPlan& axis = c_.rows[row_phase_];
    const int64_t tap_step = tap_step_, row_step = row_step_;
    const int rows = rows_;
    for (int64_t channel = 0; channel < c_.group_in; channel++) {
      const S* plane = plane_of(channel);
      for (int64_t phi = 0; phi < least(tap_step, axis.taps); phi++) {
        const int64_t taps = ceil_div(axis.taps - phi, tap_step);
        const int64_t base = axis.first + first_row_ * axis.step + phi * axis.dilation;
        // b outside the image adds nothing; skip to those inside.
        const int64_t b_low = most<int64_t>(0, ceil_div(-base, row_step));
        const int64_t b_high = least(taps + rows - 1, ceil_div(c_.in_rows - base, row_step));
        for (int64_t t = most<int64_t>(0, b_low - rows + 1); t < least(taps, b_high);) {
          int64_t room = kSteps - count_;
          if (!direct_) room = least(room, capacity_ - used_);
          if (room < rows) {
            flush();
            continue;
          }
          const int64_t t_end = least(taps, t + room - rows + 1);
          for (int64_t b = most(t, b_low); b < least(t_end + rows - 1, b_high); b++) {
            const int low = int(most<int64_t>(0, b - t_end + 1));
            const int high_row = int(least<int64_t>(rows, b - t + 1));
            const T* row = static_cast<const T*>(row_of(plane, base + b * row_step));
            steps_[count_++] = {row, channel, b * tap_step + phi, low, high_row};
          }
          t = t_end;
        }
      }
    }
  }

  // All rows of a channel at once.  Those outside the image are zeros: at an image's edge they cost
  // less than another shape of tile would.
  void list_bands() {
    const AxisPlan& axis = c_.rows[row_phase_];
    const int height = rows_ <= kStripRows / 2 ? kStripRows / 2 : kStripRows;
    const void* outside = zeros_;
    if (direct_) outside = reinterpret_cast<const S*>(zeros_) - c_.reach_low;
    for (int64_t channel = 0; channel < c_.group_in; channel++) {
      const S* plane = plane_of(channel);
      for (int64_t phi = 0; phi < least(tap_step_, axis.taps); phi++) {
        const int64_t taps = ceil_div(axis.taps - phi, tap_step_);
        const int64_t base = axis.first + first_row_ * axis.step + phi * axis.dilation;
        const int64_t low = ceil_div(-base, row_step_), high = ceil_div(c_.in_rows - base, row_step_);
        if (taps + rows_ - 1 <= low || high <= 0) continue;
        const int64_t rows = taps + height - 1;
        if (count_ == kBands || listed_ + rows > kListedRows || (!direct_ && used_ + rows > capacity_))
          flush();
        bands_[count_++] = {band_rows_ + listed_, channel, phi, int(taps)};
        for (int64_t b = 0; b < rows; b++)
          band_rows_[listed_++] = b < low || b >= high ? outside : row_of(plane, base + b * row_step_);
      }
    }
  }

  // Prepares packing at these columns of this plane.
  void aim_packing() {
    if (spans_from_ != from_) {
      for (int64_t i = 0; i < c_.segment_count; i++)
        spans_[i] = span_of(c_.segments[i], c_.in_cols, c_.cols[0].axis.step, from_);
    }
    if (spans_from_ != from_ || ring_batch_ != batch_ || ring_group_ != group_) epoch_++;
    spans_from_ = from_;
    ring_batch_ = batch_;
    ring_group_ = group_;
  }

  // Which vectors of the strip have all their taps inside the image, and the lanes of those that
  // do not.
  void aim_lanes() {
    if (lanes_from_ == from_) return;
    lanes_from_ = from_;
    constexpr int64_t L = kLanes<T>;
    const int64_t low = -c_.reach_low - from_, high = c_.in_cols - c_.reach_high - from_;
    inside_first_ = int(least<int64_t>(vectors_, most<int64_t>(0, ceil_div(low, L))));
    inside_last_ = int(most<int64_t>(inside_first_, least<int64_t>(vectors_, high < 0 ? 0 : high / L)));
    LaneMask* to = lanes_;
    for (int64_t p = 0; p < c_.col_phases; p++)
      for (int64_t q = 0; q < vectors_; q++)
        for (int64_t v = 0; v < c_.cols[p].axis.taps; v++) {
          const int64_t first = from_ + q * L + c_.cols[p].direct[v];
          const int64_t begin = least(L, most<int64_t>(0, -first));
          const int64_t end = most(begin, least(L, c_.in_cols - first));
          *to++ = LaneMask((1u << end) - (1u << begin));
        }
  }

  // Row of a plane as the tile reads it: in place (S), from column `from` on, or packed (T).
  const void* row_of(const S* plane, int64_t row) {
    const S* from = plane + row * c_.in_cols;
    if (direct_) return from + from_;
    T* to;
    if (ring_) {
      // Neighbouring tiles share rows: each has its place, and a tag that says whose it is.
      const int64_t place = row & (ring_ - 1), tag = (epoch_ << 32) + (row & 0xffffffff);
      to = packed_ + place * pitch_;
      used_++;
      if (tags_[place] == tag) return to;
      tags_[place] = tag;
    } else {
      to = packed_ + used_++ * pitch_;
    }
    pack_row(to, from, c_.cols[0].axis.step, spans_, c_.segment_count);
    return to;
  }

  void flush() {
    for (int64_t o = out_first_; o < out_last_; o++) {
      const LaneMask* lanes = lanes_;
      for (int64_t p = 0; p < c_.col_phases; p++) {
        const ColumnPlan& col = c_.cols[p];
        if (col.axis.count > from_) compute(o, p, lanes);
        lanes += vectors_ * col.axis.taps;
      }
    }
    resume_ = true;
    count_ = used_ = listed_ = 0;
  }

  // The listed rows' share of one filter's tile, in one phase of columns.
  void compute(int64_t o, int64_t p, const LaneMask* lanes) {
    constexpr int64_t L = kLanes<T>;
    const ColumnPlan& col = c_.cols[p];
    const Weights& w = c_.weights[row_phase_ * c_.col_phases + p];
    const T* taps = static_cast<const T*>(w.data) + group_ * w.group + o * w.out;
    const ptrdiff_t* offset = direct_ ? col.direct : col.packed;
    T* to;
    int64_t pitch;
    int width;
    if (held_) {
      to = sums_ + ((o - out_first_) * c_.col_phases + p) * tile_size(c_);
      pitch = vectors_ * L;
      width = int(pitch);
    } else {
      const AxisPlan& axis = c_.rows[row_phase_];
      to = static_cast<T*>(c_.output) + batch_ * c_.out.batch + group_ * c_.out.group +
           o * c_.out.channel + (axis.out_first + first_row_ * axis.out_step) * c_.out_cols + from_;
      pitch = row_apart_ * axis.out_step * c_.out_cols;
      width = int(width_);
    }
    if (!c_.strips) {
      const TileTaps<T> tile{taps, w.in, col.axis.taps, tap_step_, offset};
      return run_tile_of(vectors_, steps_, count_, tile, TileTarget<T>{to, pitch, rows_, width, resume_});
    }
    const StripTaps<T> strip{taps, w.in, col.axis.taps, tap_step_ * col.axis.taps, offset, lanes};
    const StripTarget<T> target{to, pitch, rows_, width, resume_};
    if constexpr (kLaneMasks)
      if (masked_) return run_strip<S>(inside_first_, inside_last_, bands_, count_, strip, target);
    run_strip<T>(0, vectors_, bands_, count_, strip, target);
  }

  void put() {
    const AxisPlan& axis = c_.rows[row_phase_];
    for (int64_t o = out_first_; o < out_last_; o++) {
      S* plane = static_cast<S*>(c_.output) + batch_ * c_.out.batch + group_ * c_.out.group +
                 o * c_.out.channel;
      const T* sums = sums_ + (o - out_first_) * c_.col_phases * tile_size(c_);
      for (int a = 0; a < rows_; a++) {
        const int64_t row = axis.out_first + (first_row_ + a * row_apart_) * axis.out_step;
        put_row(plane + row * c_.out_cols, c_.out_cols, c_.cols, c_.col_phases, from_, width_,
                sums + a * vectors_ * kLanes<T>, tile_size(c_));
      }
    }
  }

  const Correlation& c_;
  T* packed_;
  Step<T>* steps_ = nullptr;
  Band* bands_ = nullptr;
  const void** band_rows_ = nullptr;
  LaneMask* lanes_ = nullptr;
  T* zeros_ = nullptr;
  T* sums_;
  int64_t pitch_, capacity_, count_, used_, listed_;
  int64_t batch_, group_, out_first_, out_last_, row_phase_, first_row_, row_apart_, from_, width_;
  int64_t tap_step_, row_step_, ring_, epoch_, spans_from_, lanes_from_, ring_batch_, ring_group_;
  int64_t* tags_;
  Span* spans_;
  int rows_, vectors_, inside_first_, inside_last_;
  bool held_, direct_, masked_, resume_;
};

// Tiles along the rows of one phase: blocks of `rows` times `apart` outputs, in each of them `apart`
// interleaved tiles (or as many as there are outputs).
TORCH_CORR_INLINE int64_t row_tiles(const AxisPlan& axis, int rows, int64_t apart) {
  const int64_t interleaved = least(apart, axis.count);
  return ceil_div(axis.count, interleaved * rows) * interleaved;
}

template <class S>
Status correlate_as(const Correlation& c, int threads) {
  typedef typename Accumulation<S>::type T;
  typedef TileRunner<S, T> Runner;
  const int64_t count = c.cols[0].axis.count;  // the first phase has most columns
  const int64_t vectors = (count + kLanes<T> - 1) / kLanes<T>;
  const int64_t col_tiles = (vectors + c.tile_vectors - 1) / c.tile_vectors;
  const int64_t wide = (vectors + col_tiles - 1) / col_tiles;  // as even as may be: 5 is 3 + 2
  const int64_t wide_tiles = vectors - (wide - 1) * col_tiles;  // so many of `wide`, the rest one less
  const int rows = c.strips ? kStripRows : tile_rows(wide);  // a narrower tile can do as many

  const int64_t out_block = Runner::out_block(c);
  const int64_t out_blocks = (c.group_out + out_block - 1) / out_block;
  const int64_t apart = c.rows[0].dilation / gcd(c.rows[0].step, c.rows[0].dilation);
  int64_t tiles_per_plane = 0;
  for (int64_t p = 0; p < c.row_phases; p++) tiles_per_plane += row_tiles(c.rows[p], rows, apart);
  const int64_t run_most = Runner::kWidens || c.cols[0].axis.step > 1 ? 16 : 1;
  const int64_t total = c.batch * c.groups * out_blocks * tiles_per_plane;
  if (total == 0) return Status::done;

  // A unit is one row of tiles.  Chunks of units: enough for an even load, none so small that
  // handing it out costs more than its work.
  const double unit_work = double(rows) * double(count) * double(c.cols[0].axis.taps) *
                           double(c.rows[0].taps) * double(c.group_in) * double(out_block) *
                           double(c.col_phases) + 64.0;
  const double smallest = 1e5 / unit_work;
  if (double(total) * unit_work < 2e5) threads = 1;
  int64_t chunk = (total + threads * 16 - 1) / (threads * 16);
  if (double(chunk) < smallest) chunk = least(total, int64_t(smallest) + 1);

  const int64_t bytes = c.scratch = (Runner::bytes(c) + 4095) & ~int64_t(4095);
  char* memory = static_cast<char*>(std::malloc(size_t(bytes) * size_t(threads)));
  if (!memory) return Status::out_of_memory;

  parallel(total, chunk, threads, [&](int64_t begin, int64_t end, int thread) {
    Runner runner(c, memory + thread * bytes);
    int64_t rest = begin;
    int64_t tile = rest % tiles_per_plane;
    rest /= tiles_per_plane;
    int64_t block = rest % out_blocks;
    rest /= out_blocks;
    int64_t group = rest % c.groups;
    int64_t batch = rest / c.groups;
    for (int64_t unit = begin; unit < end;) {
      int64_t phase = 0, local = tile;
      int64_t tiles = row_tiles(c.rows[0], rows, apart);
      while (local >= tiles) {
        local -= tiles;
        tiles = row_tiles(c.rows[++phase], rows, apart);
      }
      const AxisPlan& axis = c.rows[phase];
      // Rows that are packed anyway: a few tiles below each other, so that they share them.
      const int64_t run = least(end - unit, least(tiles - local, run_most));
      int64_t from = 0;
      for (int64_t t = 0; t < col_tiles; t++) {
        const int64_t width = least(count - from, (t < wide_tiles ? wide : wide - 1) * kLanes<T>);
        for (int64_t i = local; i < local + run; i++) {
          const int64_t inter = least(apart, axis.count);
          const int64_t first_row = inter == 1 ? i * rows : i / inter * inter * rows + i % inter;
          const int height = int(least<int64_t>(rows, ceil_div(axis.count - first_row, inter == apart ? apart : axis.count)));
          if (first_row < axis.count)
            runner.run(batch, group, block * out_block, least(c.group_out, (block + 1) * out_block),
                       phase, first_row, apart, height, from, width);
        }
        from += width;
      }
      unit += run;
      tile += run;
      if (tile == tiles_per_plane) {
        tile = 0;
        if (++block == out_blocks) {
          block = 0;
          if (++group == c.groups) {
            group = 0;
            batch++;
          }
        }
      }
    }
  });
  std::free(memory);
  return Status::done;
}

inline Status correlate(const Correlation& c, Dtype dtype, int threads) {
  switch (dtype) {
    case Dtype::float32:
      return correlate_as<float>(c, threads);
    case Dtype::float64:
      return correlate_as<double>(c, threads);
    case Dtype::float16:
      return correlate_as<half_bits>(c, threads);
    case Dtype::bfloat16:
      return correlate_as<bfloat_bits>(c, threads);
  }
  return Status::done;
}

}  // namespace TORCH_CORR_ISA
}  // namespace torch_corr
