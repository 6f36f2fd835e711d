// grad_weight of depthwise correlations in channels_last.
//
// Each job takes one vector of channels and a share of the image blocks.  For each block it packs the
// pixels of both operands, widened, with zeros for the padding of the columns.  A register tile of taps
// then runs over the pixels of a block, one multiply-add for each pixel and tap.  Rows of taps that meet
// no row of the image are left out.
#pragma once

#include "channels_last.hpp"

namespace torch_corr {
namespace TORCH_CORR_ISA {

#if TORCH_CORR_TILE_VECTORS == 4
constexpr int kMaxTapSums = 21, kRun = 4;  // 21 sums, 4 gradients, 1 pixel: 26 of 32 registers
#else
constexpr int kMaxTapSums = 12, kRun = 2;  // 12 sums, 2 gradients, 1 pixel: 15 of 16 registers
#endif
constexpr int kMaxTapCols = 7, kMaxTapRows = 3;

constexpr int max_tap_rows(int tap_cols) {
  return kMaxTapSums / tap_cols < kMaxTapRows ? kMaxTapSums / tap_cols : kMaxTapRows;
}

// Pixels of one vector of channels, in whole vectors.
template <class T>
struct TapTile {
  const T* image;  // of the first pixel and tap
  int64_t image_row, image_col, tap_row, tap_col;  // steps in `image`
  const T* grad;
  int64_t grad_row;  // columns are dense
  int64_t rows, cols;
  T* sums;  // columns of taps are dense
  int64_t sums_row;
};

template <int U, int V, bool DENSE, class T>
__attribute__((noinline)) void tap_microkernel(const TapTile<T>& t) {
  constexpr int L = kLanes<T>;
  Vector<T> sums[U][V];
#pragma GCC unroll 8
  for (int u = 0; u < U; u++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) sums[u][v] = Vector<T>{};
  for (int64_t row = 0; row < t.rows; row++) {
    const T* image = t.image + row * t.image_row;
    const T* grad = t.grad + row * t.grad_row;
    int64_t col = 0;
    if constexpr (DENSE)  // neighbouring pixels share all but one column of taps
      for (; col + kRun <= t.cols; col += kRun) {
        Vector<T> y[kRun];
#pragma GCC unroll 8
        for (int j = 0; j < kRun; j++) {
          y[j] = load(grad + j * L);
          keep_in_register(y[j]);
        }
#pragma GCC unroll 8
        for (int u = 0; u < U; u++)
#pragma GCC unroll 16
          for (int q = 0; q < V + kRun - 1; q++) {
            Vector<T> x = load(image + u * t.tap_row + q * L);
            keep_in_register(x);
#pragma GCC unroll 8
            for (int j = 0; j < kRun; j++)
              if (q - j >= 0 && q - j < V) sums[u][q - j] += x * y[j];
          }
        image += kRun * L;
        grad += kRun * L;
      }
    for (; col < t.cols; col++) {
      const Vector<T> y = load(grad);
#pragma GCC unroll 8
      for (int u = 0; u < U; u++)
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) sums[u][v] += y * load(image + u * t.tap_row + v * t.tap_col);
      image += t.image_col;
      grad += L;
    }
  }
#pragma GCC unroll 8
  for (int u = 0; u < U; u++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) {
      // Sums of blocks are added, so that rounding errors grow with the size of a block and with their
      // number, not with all pixels.
      T* to = t.sums + u * t.sums_row + v * L;
      store(to, load(to) + sums[u][v]);
    }
}

template <class T>
inline void run_taps(int tap_rows, int tap_cols, const TapTile<T>& t) {
  const bool dense = t.image_col == kLanes<T> && t.tap_col == kLanes<T>;
#define TORCH_CORR_CASE(U, V)                                                                  \
  case (U) * 8 + (V):                                                                          \
    if constexpr ((U) <= max_tap_rows(V))                                                      \
      return dense ? tap_microkernel<(U), (V), true>(t) : tap_microkernel<(U), (V), false>(t); \
    break;
#define TORCH_CORR_CASES(U)                                         \
  TORCH_CORR_CASE(U, 1) TORCH_CORR_CASE(U, 2) TORCH_CORR_CASE(U, 3) \
  TORCH_CORR_CASE(U, 4) TORCH_CORR_CASE(U, 5) TORCH_CORR_CASE(U, 6) TORCH_CORR_CASE(U, 7)
  static_assert(kMaxTapRows == 3 && kMaxTapCols == 7);
  switch (tap_rows * 8 + tap_cols) {
    TORCH_CORR_CASES(1)
    TORCH_CORR_CASES(2)
    TORCH_CORR_CASES(3)
  }
#undef TORCH_CORR_CASES
#undef TORCH_CORR_CASE
}

// Blocks of output rows and columns, and of tap rows, whose packed pixels fit the second cache level.
struct TapBlocking {
  int64_t rows, cols, tap_rows;
  int64_t image_rows, image_cols;  // most of a block
};

TORCH_CORR_INLINE TapBlocking tap_blocking(const Geometry& g) {
  constexpr int64_t kBlockPixels = 2048;  // of an image: 128 KiB with AVX-512
  static_assert(2 * kBlockPixels * TORCH_CORR_VECTOR_BYTES + (16 << 10) <= kThreadScratch);
  static_assert(kBlockPixels >= 2 * kLastSpan);
  constexpr int64_t kBlockCols = 64, kBlockRows = 8;
  const auto equal_parts = [](int64_t length, int64_t most) {
    return ceil_div(length, ceil_div(length, most));
  };
  const auto reach = [](const Axis& axis, int64_t outputs, int64_t taps) {
    return (outputs - 1) * axis.stride + (taps - 1) * axis.dilation + 1;
  };
  TapBlocking b;
  b.cols = equal_parts(g.col.output, kBlockCols);
  while (b.cols > 1 && reach(g.col, b.cols, g.col.kernel) > kBlockPixels / 2) b.cols = (b.cols + 1) / 2;
  b.image_cols = reach(g.col, b.cols, g.col.kernel);
  const int64_t most_rows = max<int64_t>(1, kBlockPixels / b.image_cols);
  const auto image_rows = [&] { return min(g.row.input, reach(g.row, b.rows, b.tap_rows)); };
  b.rows = min(g.row.output, max<int64_t>(1, kBlockPixels / b.cols));
  b.tap_rows = g.row.kernel;
  while (b.rows > kBlockRows && image_rows() > most_rows) b.rows = max(kBlockRows, b.rows / 2);
  while (b.tap_rows > 1 && image_rows() > most_rows) b.tap_rows = (b.tap_rows + 1) / 2;
  while (b.rows > 1 && image_rows() > most_rows) b.rows = (b.rows + 1) / 2;
  b.rows = equal_parts(g.row.output, b.rows);
  b.image_rows = image_rows();
  return b;
}

template <class S, class T>
class TapRunner {
 public:
  TapRunner(const DepthwiseReduction& r, const TapBlocking& blocking, Arena& arena)
      : r_(r), g_(r.geometry), b_(blocking) {
    image_ = arena.array<T>(b_.image_rows * b_.image_cols * L);
    grad_ = arena.array<T>(b_.rows * b_.cols * L);
    row_blocks_ = ceil_div(g_.row.output, b_.rows);
    col_blocks_ = ceil_div(g_.col.output, b_.cols);
  }

  int64_t items() const { return g_.batch * row_blocks_ * col_blocks_; }

  // Computes the sums of blocks [begin, end) of one vector: [tap row][tap column][lane].
  void run(int64_t vector, int64_t begin, int64_t end, T* sums) {
    channel_ = first_channel<T>(vector, g_.groups);
    for (int64_t i = 0; i < g_.row.kernel * g_.col.kernel * L; i++) sums[i] = T(0);
    for (int64_t item = begin; item < end; item++) {
      const int64_t from_row = item / col_blocks_ % row_blocks_ * b_.rows;
      const int64_t from_col = item % col_blocks_ * b_.cols;
      batch_ = item / col_blocks_ / row_blocks_;
      first_row_ = from_row;
      last_row_ = min(g_.row.output, from_row + b_.rows);
      first_col_ = from_col;
      cols_ = min(g_.col.output - from_col, b_.cols);
      pack_gradient();
      for (int64_t u = 0; u < g_.row.kernel; u += b_.tap_rows)
        add_block(u, min(g_.row.kernel, u + b_.tap_rows), sums);
    }
  }

 private:
  static constexpr int64_t L = kLanes<T>;

  const S* pixel(const void* images, int64_t height, int64_t width, int64_t row, int64_t col) const {
    return static_cast<const S*>(images) + ((batch_ * height + row) * width + col) * g_.groups + channel_;
  }

  void pack_gradient() {
    for (int64_t i = first_row_; i < last_row_; i++) {
      const S* from = pixel(r_.output, g_.row.output, g_.col.output, i, first_col_);
      T* to = grad_ + (i - first_row_) * b_.cols * L;
      for (int64_t j = 0; j < cols_; j++) store(to + j * L, load_widened<T>(from + j * g_.groups));
    }
  }

  // Image rows [first, last), from the column of the first output and tap on.
  void pack_image(int64_t first, int64_t last) {
    const Axis& col = g_.col;
    const int64_t start = first_col_ * col.stride - col.padding;
    const int64_t width = (cols_ - 1) * col.stride + (col.kernel - 1) * col.dilation + 1;
    const int64_t low = min(width, max<int64_t>(0, -start));
    const int64_t high = max(low, min(width, col.input - start));
    for (int64_t row = first; row < last; row++) {
      T* to = image_ + (row - first) * b_.image_cols * L;
      for (int64_t q = 0; q < low * L; q++) to[q] = T(0);
      if (low < high) {
        const S* from = pixel(r_.input, g_.row.input, col.input, row, start + low);
        for (int64_t q = low; q < high; q++, from += g_.groups) store(to + q * L, load_widened<T>(from));
      }
      for (int64_t q = high * L; q < width * L; q++) to[q] = T(0);
    }
  }

  // Output rows [first, last) of the block whose image row for tap row u is inside the image.
  void rows_of(int64_t u, int64_t& first, int64_t& last) const {
    const int64_t shift = u * g_.row.dilation - g_.row.padding;
    first = max(first_row_, ceil_div(-shift, g_.row.stride));
    last = min(last_row_, ceil_div(g_.row.input - shift, g_.row.stride));
  }

  void add_block(int64_t u_first, int64_t u_last, T* sums) {
    const Axis& row = g_.row;
    const auto image_row = [&](int64_t i, int64_t u) {
      return i * row.stride + u * row.dilation - row.padding;
    };
    const int64_t low = max<int64_t>(0, image_row(first_row_, u_first));
    const int64_t high = min(row.input, image_row(last_row_ - 1, u_last - 1) + 1);
    if (low >= high) return;
    pack_image(low, high);
    const int64_t pitch = b_.image_cols * L;
    TapTile<T> tile;
    // A step past the last row is never taken; clamped, it cannot overflow.
    tile.image_row = min(row.stride, row.input) * pitch;
    tile.image_col = g_.col.stride * L;
    tile.tap_row = min(row.dilation, row.input) * pitch;
    tile.tap_col = g_.col.dilation * L;
    tile.grad_row = b_.cols * L;
    tile.cols = cols_;
    tile.sums_row = g_.col.kernel * L;
    const int64_t col_tiles = ceil_div(g_.col.kernel, kMaxTapCols);
    int64_t v = 0;
    for (int64_t n = 0; n < col_tiles; n++) {
      const int tap_cols = int(ceil_div(g_.col.kernel - v, col_tiles - n));
      const int64_t row_tiles = ceil_div(u_last - u_first, max_tap_rows(tap_cols));
      // Adds tap rows [u, u + tap_rows) over output rows [first, last).
      const auto add = [&](int64_t u, int tap_rows, int64_t first, int64_t last) {
        if (first >= last) return;
        tile.image = image_ + (image_row(first, u) - low) * pitch + v * tile.tap_col;
        tile.grad = grad_ + (first - first_row_) * tile.grad_row;
        tile.rows = last - first;
        tile.sums = sums + (u * g_.col.kernel + v) * L;
        run_taps(tap_rows, tap_cols, tile);
      };
      int64_t u = u_first;
      for (int64_t m = 0; m < row_tiles; m++) {
        const int tap_rows = int(ceil_div(u_last - u, row_tiles - m));
        // All tap rows together where all meet the image, then each alone over the other rows.
        int64_t first, last, ignored;
        rows_of(u, first, ignored);
        rows_of(u + tap_rows - 1, ignored, last);
        last = max(first, last);
        add(u, tap_rows, first, last);
        for (int i = 0; i < tap_rows; i++) {
          int64_t own_first, own_last;
          rows_of(u + i, own_first, own_last);
          add(u + i, 1, own_first, min(own_last, first));
          add(u + i, 1, max(own_first, last), own_last);
        }
        u += tap_rows;
      }
      v += tap_cols;
    }
  }

  const DepthwiseReduction& r_;
  const Geometry& g_;
  const TapBlocking& b_;
  T *image_, *grad_;
  int64_t row_blocks_, col_blocks_;
  int64_t batch_, channel_, first_row_, last_row_, first_col_, cols_;
};

template <class S>
Status reduce_depthwise_as(const DepthwiseReduction& r, int threads) {
  typedef typename Accumulation<S>::type T;
  typedef TapRunner<S, T> Runner;
  constexpr int L = kLanes<T>;
  constexpr int64_t kJobs = 32;  // enough for an even load
  const Geometry& g = r.geometry;
  const int64_t vectors = channel_vectors<T>(g.groups), taps = g.row.kernel * g.col.kernel;
  const TapBlocking blocking = tap_blocking(g);
  Arena counting(nullptr);
  const int64_t items = Runner(r, blocking, counting).items();
  const int64_t splits = max<int64_t>(1, min(items, kJobs / vectors));
  const double work = double(vectors) * double(taps) * L * double(g.batch) * double(g.row.output) *
                      double(g.col.output);
  const Schedule schedule = make_schedule(vectors * splits, work / double(vectors * splits) + 1, threads);
  const int64_t bytes = r.scratch = scratch_bytes<Runner>(r, blocking);
  char* memory =
      Arena::allocate(bytes * schedule.threads + splits * vectors * taps * L * int64_t(sizeof(T)));
  if (!memory) return Status::out_of_memory;
  T* sums = reinterpret_cast<T*>(memory + bytes * schedule.threads);  // [split][vector][tap][lane]
  parallel(vectors * splits, schedule.chunk, schedule.threads,
           [&](int64_t begin, int64_t end, int thread) {
             Arena arena(memory + thread * bytes);
             Runner runner(r, blocking, arena);
             for (int64_t job = begin; job < end; job++) {
               const int64_t split = job / vectors;
               runner.run(job % vectors, items * split / splits, items * (split + 1) / splits,
                          sums + job * taps * L);
             }
           });
  const int64_t chunk = max<int64_t>(1, (1 << 12) / taps);
  parallel(vectors, chunk, schedule.threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t vector = begin; vector < end; vector++) {
      const int64_t first = first_channel<T>(vector, g.groups);
      S* to = static_cast<S*>(r.weight) + first * r.weight_channel;
      // The last vector leaves out the channels of the one before.
      for (int64_t lane = vector * L - first; lane < L; lane++)
        for (int64_t tap = 0; tap < taps; tap++) {
          const T* from = sums + (vector * taps + tap) * L + lane;
          T sum = from[0];
          for (int64_t split = 1; split < splits; split++) sum += from[split * vectors * taps * L];
          to[lane * r.weight_channel + tap] = Narrow<S>::of(sum);
        }
    }
  });
  std::free(memory);
  return Status::done;
}

inline Status reduce_depthwise(const DepthwiseReduction& r, Dtype dtype, int threads) {
  return with_storage_type(
      dtype, [&](auto number) { return reduce_depthwise_as<decltype(number)>(r, threads); });
}

}  // namespace TORCH_CORR_ISA
}  // namespace torch_corr
