// Depthwise correlations of images in channels_last: forward, and grad_input as correlations of the
// output's gradient.
//
// Vectors run over channels, so a tap is a vector of weights and no lane is idle at an image's edge.  A
// register tile has kPixelRows output rows that meet the same image rows (correlate.hpp says which) x
// up to kPixels columns x up to kPixelVectors vectors of channels.  Tiles find their pixels through
// lists of pointers, and a pixel outside the image is a pixel of zeros.  So stride, dilation and padding
// along a row need no code of their own, and images are read in place, halves included.
#pragma once

#include "kernels.hpp"
#include "simd.hpp"

namespace torch_corr {
namespace TORCH_CORR_ISA {

constexpr int kPixelRows = 2;
#if TORCH_CORR_TILE_VECTORS == 4
constexpr int kPixels = 6, kPixelVectors = 2;  // 24 sums, 4 taps, 1 pixel: 29 of 32 registers
#else
constexpr int kPixels = 5, kPixelVectors = 1;  // 10 sums, 2 taps, 1 pixel: 13 of 16 registers
#endif

constexpr int64_t kMostVectors = 512;  // of channels in a block

// Vectors that cover the channels.  The last one ends with the last channel, so it may share channels
// with the one before; both compute the same sums for them.
template <class T>
TORCH_CORR_INLINE int64_t channel_vectors(int64_t channels) {
  return ceil_div(channels, kLanes<T>);
}
template <class T>
TORCH_CORR_INLINE int64_t first_channel(int64_t vector, int64_t channels) {
  return min<int64_t>(vector * kLanes<T>, channels - kLanes<T>);
}

// An image row that a tile meets.
template <class S, class T>
struct PixelRow {
  const S* const* pixels;
  const T* taps[kPixelRows];  // weights of the tap row of each output row; null if it has none here
};

template <class S, class T>
struct PixelTile {
  const PixelRow<S, T>* rows;
  int64_t count;
  int64_t first_tap, taps;         // of a row, those that meet a column of the image
  int64_t first_pixel;             // that column 0 and tap 0 meet
  int64_t pixel_step, tap_step;    // from the pixel of a column or a tap to that of the next
  int64_t vector_pitch;            // from the weights of a vector to those of the next
  int64_t vector;                  // the first vector
  int64_t channels[kPixelVectors];  // the first channel of each vector
  const T* initial;                // of each channel, by vectors; null for zeros
  T* sums;                         // sums so far, where the rows come in several calls
  bool first, last;                // of these calls
  S* out[kPixelRows];              // output column 0; null if the tile has no such row
  int64_t out_pitch;               // from an output column to the next
};

template <bool ROW0, bool ROW1, int J, int V, class S, class T>
TORCH_CORR_INLINE void add_pixels(Vector<T> (&sums)[kPixelRows][J][V], const PixelRow<S, T>& row,
                                  const PixelTile<S, T>& t) {
  constexpr int L = kLanes<T>;
  const S* const* pixels = row.pixels + t.first_pixel;
  const T* taps[kPixelRows] = {};
  const int64_t weights = t.vector * t.vector_pitch + t.first_tap * L;
  if (ROW0) taps[0] = row.taps[0] + weights;
  if (ROW1) taps[1] = row.taps[1] + weights;
  const int64_t step = t.pixel_step, tap_step = t.tap_step, pitch = t.vector_pitch;
  int64_t channels[V];
#pragma GCC unroll 2
  for (int i = 0; i < V; i++) channels[i] = t.channels[i];
  for (int64_t v = t.taps; v > 0; v--) {
    Vector<T> w[kPixelRows][V];
#pragma GCC unroll 2
    for (int i = 0; i < V; i++) {
      if (ROW0) w[0][i] = load(taps[0] + i * pitch);
      if (ROW1) w[1][i] = load(taps[1] + i * pitch);
    }
#pragma GCC unroll 8
    for (int j = 0; j < J; j++) {
      const S* pixel = pixels[j * step];
#pragma GCC unroll 2
      for (int i = 0; i < V; i++) {
        Vector<T> x = load_widened<T>(pixel + channels[i]);
        keep_in_register(x);
        if (ROW0) sums[0][j][i] += x * w[0][i];
        if (ROW1) sums[1][j][i] += x * w[1][i];
      }
    }
    pixels += tap_step;
    if (ROW0) taps[0] += L;
    if (ROW1) taps[1] += L;
  }
}

template <int J, int V, class S, class T>
__attribute__((noinline)) void pixel_microkernel(const PixelTile<S, T>& t) {
  constexpr int L = kLanes<T>;
  Vector<T> sums[kPixelRows][J][V];
  T* stored = t.sums;
#pragma GCC unroll 2
  for (int i = 0; i < V; i++) {
    const Vector<T> initial = t.initial ? load(t.initial + (t.vector + i) * L) : Vector<T>{};
#pragma GCC unroll 2
    for (int a = 0; a < kPixelRows; a++)
#pragma GCC unroll 8
      for (int j = 0; j < J; j++)
        sums[a][j][i] = t.first ? initial : load(stored + ((a * J + j) * V + i) * L);
  }
  for (int64_t r = 0; r < t.count; r++) {
    const PixelRow<S, T>& row = t.rows[r];
    if (row.taps[0] && row.taps[1])
      add_pixels<true, true>(sums, row, t);
    else if (row.taps[0])
      add_pixels<true, false>(sums, row, t);
    else
      add_pixels<false, true>(sums, row, t);
  }
#pragma GCC unroll 2
  for (int a = 0; a < kPixelRows; a++)
#pragma GCC unroll 8
    for (int j = 0; j < J; j++)
#pragma GCC unroll 2
      for (int i = 0; i < V; i++) {
        if (!t.last)
          store(stored + ((a * J + j) * V + i) * L, sums[a][j][i]);
        else if (t.out[a])
          store_narrow<S, T>(t.out[a] + j * t.out_pitch + t.channels[i], sums[a][j][i], L);
      }
}

template <int V, class S, class T>
inline void run_pixels(int columns, const PixelTile<S, T>& t) {
  static_assert(kPixels <= 6);
  switch (columns) {
    case 1: return pixel_microkernel<1, V>(t);
    case 2: return pixel_microkernel<2, V>(t);
    case 3: return pixel_microkernel<3, V>(t);
    case 4: return pixel_microkernel<4, V>(t);
    case 5: return pixel_microkernel<5, V>(t);
    case 6:
      if constexpr (kPixels == 6) return pixel_microkernel<6, V>(t);
  }
}

// Where the pixels of some columns and taps are in a list: column j and tap v at
// j * pixel_step + v * tap_step.  They share pixels unless that takes more of them.
struct PixelList {
  int64_t pixel_step, tap_step, length;
  int64_t column_step;  // image columns between neighbours, if they share; else 0
};
TORCH_CORR_INLINE PixelList pixel_list(const AxisPlan& axis, int64_t columns) {
  const RowSteps steps = row_steps(axis.step, axis.dilation);  // step / gcd and dilation / gcd
  const int64_t shared = (columns - 1) * steps.tap_step + (axis.taps - 1) * steps.out_step + 1;
  if (shared <= columns * axis.taps)
    return {steps.tap_step, steps.out_step, shared, axis.step / steps.tap_step};
  return {axis.taps, 1, columns * axis.taps, 0};
}

// Computes strips of tiles, one after the other, in the scratch memory of one thread.
template <class S, class T>
class StripRunner {
 public:
  StripRunner(const DepthwiseCorrelation& c, const T* weights, const T* initial, const S* zeros,
              int64_t vectors, Arena& arena)
      : c_(c), weights_(weights), initial_(initial), zeros_(zeros),
        steps_(row_steps(c.rows[0].plan.step, c.rows[0].plan.dilation)) {
    int64_t longest = kListedPixels;
    for (int64_t p = 0; p < c.col_phases; p++)
      longest = max(longest, pixel_list(c.cols[p].plan, kPixels).length);
    capacity_ = longest;
    pixels_ = arena.array<const S*>(capacity_);
    offsets_ = arena.array<int64_t>(capacity_);
    rows_ = arena.array<PixelRow<S, T>>(kListedRows);
    sums_ = arena.array<T>(kPixelRows * kPixels * vectors * kLanes<T>);
  }

  // Rows first_row and the next that meets the same image rows, of a phase of rows of one image; all
  // columns; vectors [first, last).
  void run(int64_t image, int64_t row_phase, int64_t first_row, int64_t first, int64_t last) {
    image_ = image;
    row_phase_ = row_phase;
    first_row_ = first_row;
    first_vector_ = first;
    last_vector_ = last;
    const int64_t taps = c_.rows[row_phase].plan.taps;
    const int64_t rows = c_.sources * (taps + min(steps_.tap_step, taps));
    for (int64_t p = 0; p < c_.col_phases; p++) {
      const AxisPlan& col = c_.cols[p].plan;
      const int64_t tiles = ceil_div(col.count, kPixels);
      // As many tiles as have room for all their pixels, at least one.
      int64_t strip = tiles;
      while (strip > 1 && (rows > kListedRows || pixel_list(col, strip * kPixels).length * rows > capacity_))
        strip = (strip + 1) / 2;
      col_phase_ = p;
      tiles_ = tiles;
      for (int64_t tile = 0; tile < tiles; tile += strip) run_strip(tile, min(tiles, tile + strip));
    }
  }

 private:
  // The first column of a tile; tiles have nearly equal widths.
  int64_t first_column(int64_t tile) const { return tile * c_.cols[col_phase_].plan.count / tiles_; }

  void run_strip(int64_t first, int64_t last) {
    const AxisPlan& row = c_.rows[row_phase_].plan;
    const AxisPlan& col = c_.cols[col_phase_].plan;
    first_tile_ = first;
    last_tile_ = last;
    list_ = pixel_list(col, first_column(last) - first_column(first));
    find_columns(col);
    first_ = true;
    count_ = used_ = 0;
    const int rows = first_row_ + steps_.out_step < row.count ? 2 : 1;
    const int64_t tap_row = col.taps * kLanes<T>;  // from the weights of a tap row to those of the next
    const T* weights = weights_ + c_.weight_offsets[row_phase_ * c_.col_phases + col_phase_] * kLanes<T>;
    for (int64_t source = 0; source < c_.sources; source++) {
      const S* plane = static_cast<const S*>(c_.input) +
                       (source * c_.batch + image_) * c_.in_rows * c_.in_cols * c_.channels;
      const T* taps = weights + source * row.taps * tap_row;
      for (int64_t phi = 0; phi < min(steps_.tap_step, row.taps); phi++) {
        const int64_t tap_rows = ceil_div(row.taps - phi, steps_.tap_step);
        const int64_t base = row.first + first_row_ * row.step + phi * row.dilation;
        const int64_t low = max<int64_t>(0, ceil_div(-base, steps_.image_step));
        const int64_t high = min(tap_rows + rows - 1, ceil_div(c_.in_rows - base, steps_.image_step));
        for (int64_t b = low; b < high; b++) {
          if (count_ == kListedRows || used_ + list_.length > capacity_) flush(false);
          PixelRow<S, T>& listed = rows_[count_++];
          listed.pixels = list_row(plane + (base + b * steps_.image_step) * c_.in_cols * c_.channels);
          const auto taps_of = [&](int64_t t) { return taps + (t * steps_.tap_step + phi) * tap_row; };
          listed.taps[0] = b < tap_rows ? taps_of(b) : nullptr;
          listed.taps[1] = rows == 2 && b > 0 ? taps_of(b - 1) : nullptr;
        }
      }
    }
    flush(true);
  }

  // Offsets of the strip's columns in an image row; -1 outside the image.
  void find_columns(const AxisPlan& col) {
    const int64_t start = col.first + first_column(first_tile_) * col.step;
    const auto offset = [&](int64_t column) {
      return column >= 0 && column < c_.in_cols ? column * c_.channels : -1;
    };
    if (list_.column_step) {
      for (int64_t q = 0; q < list_.length; q++) offsets_[q] = offset(start + q * list_.column_step);
      return;
    }
    for (int64_t q = 0; q < list_.length; q++)
      offsets_[q] = offset(start + q / col.taps * col.step + q % col.taps * col.dilation);
  }

  const S* const* list_row(const S* row) {
    const S** to = pixels_ + used_;
    for (int64_t q = 0; q < list_.length; q++) to[q] = offsets_[q] < 0 ? zeros_ : row + offsets_[q];
    used_ += list_.length;
    return to;
  }

  // Runs the micro-kernel over the listed rows, for all vectors and tiles of the strip.
  void flush(bool last) {
    const AxisPlan& row = c_.rows[row_phase_].plan;
    const AxisPlan& col = c_.cols[col_phase_].plan;
    PixelTile<S, T> tile;
    tile.rows = rows_;
    tile.count = count_;
    tile.pixel_step = list_.pixel_step;
    tile.tap_step = list_.tap_step;
    tile.vector_pitch = c_.tap_count * kLanes<T>;
    tile.initial = initial_;
    tile.first = first_;
    tile.last = last;
    tile.out_pitch = col.out_step * c_.channels;
    S* out[kPixelRows];
    for (int a = 0; a < kPixelRows; a++) {
      const int64_t index = first_row_ + a * steps_.out_step;
      const int64_t at = (image_ * c_.out_rows + row.out_first + index * row.out_step) * c_.out_cols;
      out[a] = index < row.count ? static_cast<S*>(c_.output) + (at + col.out_first) * c_.channels : nullptr;
    }
    // Vectors come inside tiles, which reads memory in order.  The other way takes up to 1.5 times as long
    // (float32 96x56x56, one Zen 4 core).
    for (int64_t i = first_tile_; i < last_tile_; i++) {
      const int64_t from = first_column(i);
      const int columns = int(first_column(i + 1) - from);
      // Taps for which all columns of the tile are outside the image add nothing.
      const int64_t last_start = col.first + (from + columns - 1) * col.step;
      const int64_t first_start = col.first + from * col.step;
      tile.first_tap = min(col.taps, max<int64_t>(0, ceil_div(-last_start, col.dilation)));
      const int64_t end = min(col.taps, ceil_div(c_.in_cols - first_start, col.dilation));
      tile.taps = max<int64_t>(0, end - tile.first_tap);
      tile.first_pixel =
          (from - first_column(first_tile_)) * list_.pixel_step + tile.first_tap * list_.tap_step;
      for (int a = 0; a < kPixelRows; a++) tile.out[a] = out[a] ? out[a] + from * tile.out_pitch : nullptr;
      for (int64_t vector = first_vector_; vector < last_vector_; vector += kPixelVectors) {
        tile.vector = vector;
        tile.sums = sums_ + (vector - first_vector_) * kPixelRows * kPixels * kLanes<T>;
        for (int v = 0; v < kPixelVectors; v++) tile.channels[v] = first_channel<T>(vector + v, c_.channels);
        if (vector + kPixelVectors <= last_vector_)
          run_pixels<kPixelVectors>(columns, tile);
        else
          run_pixels<1>(columns, tile);
      }
    }
    first_ = false;
    count_ = used_ = 0;
  }

  static constexpr int64_t kListedPixels = 4096, kListedRows = 256;
  // Pixels of one tile may take up to kPixels * kLastSpan places, which is not much more.
  static_assert(kPixels * kLastSpan * 16 + kListedRows * int64_t(sizeof(PixelRow<S, T>)) +
                    kPixelRows * kPixels * kMostVectors * TORCH_CORR_VECTOR_BYTES + (16 << 10) <=
                kThreadScratch);

  const DepthwiseCorrelation& c_;
  const T *weights_, *initial_;
  const S* zeros_;
  const RowSteps steps_;
  const S** pixels_;
  int64_t* offsets_;
  PixelRow<S, T>* rows_;
  T* sums_;  // of one tile: several tiles have room for all their pixels
  PixelList list_;
  int64_t capacity_, count_, used_;
  int64_t image_, row_phase_, first_row_, first_vector_, last_vector_, col_phase_;
  int64_t tiles_, first_tile_, last_tile_;
  bool first_;
};

// Copies the weights of one vector of channels: [phase of rows][of columns][source][tap row][tap
// column][lane].
template <class S, class T>
void pack_taps(const DepthwiseCorrelation& c, int64_t vector, T* to) {
  constexpr int L = kLanes<T>;
  const S* weights =
      static_cast<const S*>(c.weight) + first_channel<T>(vector, c.channels) * c.weight_channel;
  for (int64_t r = 0; r < c.row_phases; r++)
    for (int64_t p = 0; p < c.col_phases; p++) {
      const TapAxis &row = c.rows[r], &col = c.cols[p];
      for (int64_t source = 0; source < c.sources; source++)
        for (int64_t t = 0; t < row.plan.taps; t++)
          for (int64_t s = 0; s < col.plan.taps; s++) {
            const S* from = weights + source * c.weight_source +
                            (row.kernel_first + t * row.kernel_step) * c.kernel_cols +
                            col.kernel_first + s * col.kernel_step;
            for (int i = 0; i < L; i++) to[i] = widen(from[i * c.weight_channel]);
            to += L;
          }
    }
}

template <class S>
Status correlate_depthwise_as(const DepthwiseCorrelation& c, int threads) {
  typedef typename Accumulation<S>::type T;
  constexpr int L = kLanes<T>;
  constexpr int64_t kBlockBytes = 384 << 10;  // of a tile's image rows: they fit the second cache level
  constexpr int64_t kUnits = 64;              // enough for an even load
  const int64_t vectors = channel_vectors<T>(c.channels);
  const int64_t spacing = row_steps(c.rows[0].plan.step, c.rows[0].plan.dilation).out_step;
  int64_t tiles_per_image = 0, tap_rows = 0;
  for (int64_t r = 0; r < c.row_phases; r++) {
    tiles_per_image += row_tiles(c.rows[r].plan, kPixelRows, spacing);
    tap_rows = max(tap_rows, c.rows[r].plan.taps);
  }
  const int64_t vector_bytes = (tap_rows + 1) * c.in_cols * L * int64_t(sizeof(S));
  const int64_t fit = kBlockBytes / max<int64_t>(1, vector_bytes);
  int64_t blocks = ceil_div(vectors, min(kMostVectors, max<int64_t>(kPixelVectors, fit)));
  while (c.batch * tiles_per_image * blocks < kUnits && vectors / blocks >= 4 * kPixelVectors) blocks *= 2;
  const int64_t block = ceil_div(ceil_div(vectors, blocks), kPixelVectors) * kPixelVectors;
  blocks = ceil_div(vectors, block);
  const int64_t total = c.batch * blocks * tiles_per_image;
  const double unit_work = double(kPixelRows * block * L) * double(c.out_cols) * double(c.sources) *
                           double(tap_rows) * double(c.cols[0].plan.taps);
  const Schedule schedule = make_schedule(total, unit_work, threads);

  Arena sizes(nullptr);
  typedef StripRunner<S, T> Runner;
  T *weights = nullptr, *initial = nullptr;
  S* zeros = nullptr;
  const int64_t bytes = c.scratch = scratch_bytes<Runner>(c, weights, initial, zeros, block);
  const auto share = [&](Arena& arena) {  // among the threads
    weights = arena.array<T>(c.tap_count * vectors * L);
    initial = arena.array<T>(c.bias ? vectors * L : 0);
    zeros = arena.array<S>(c.channels);
  };
  share(sizes);
  char* memory = Arena::allocate(bytes * schedule.threads + sizes.bytes());
  if (!memory) return Status::out_of_memory;
  Arena shared(memory + bytes * schedule.threads);
  share(shared);
  std::memset(static_cast<void*>(zeros), 0, size_t(c.channels) * sizeof(S));
  if (c.bias)
    for (int64_t vector = 0; vector < vectors; vector++)
      for (int i = 0; i < L; i++)
        initial[vector * L + i] =
            widen(static_cast<const S*>(c.bias)[(first_channel<T>(vector, c.channels) + i) * c.bias_step]);
  parallel(vectors, max<int64_t>(1, (1 << 12) / (c.tap_count + 1)), schedule.threads,
           [&](int64_t begin, int64_t end, int) {
             for (int64_t vector = begin; vector < end; vector++)
               pack_taps<S>(c, vector, weights + vector * c.tap_count * L);
           });
  parallel(total, schedule.chunk, schedule.threads, [&](int64_t begin, int64_t end, int thread) {
    Arena arena(memory + thread * bytes);
    Runner runner(c, weights, c.bias ? initial : nullptr, zeros, block, arena);
    for (int64_t unit = begin; unit < end; unit++) {
      int64_t local = unit % tiles_per_image, phase = 0;
      const int64_t first = unit / tiles_per_image % blocks * block;
      int64_t tiles = row_tiles(c.rows[0].plan, kPixelRows, spacing);
      while (local >= tiles) {
        local -= tiles;
        tiles = row_tiles(c.rows[++phase].plan, kPixelRows, spacing);
      }
      const int64_t first_row = tile_row(c.rows[phase].plan, kPixelRows, spacing, local);
      if (first_row < c.rows[phase].plan.count)
        runner.run(unit / tiles_per_image / blocks, phase, first_row, first, min(vectors, first + block));
    }
  });
  std::free(memory);
  return Status::done;
}

inline Status correlate_depthwise(const DepthwiseCorrelation& c, Dtype dtype, int threads) {
  return with_storage_type(
      dtype, [&](auto number) { return correlate_depthwise_as<decltype(number)>(c, threads); });
}

}  // namespace TORCH_CORR_ISA
}  // namespace torch_corr
