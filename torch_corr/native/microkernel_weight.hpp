// The micro-kernel of grad_weight: a register tile of U x V taps, with one vector of sums for each tap,
// summed over rows and columns.
//
// For every vector of columns it loads U gradient vectors and V image vectors and does U * V
// multiply-adds.  The sums stay in registers over all rows of a call; TapReducer adds the lanes of each
// vector at the very end.
#pragma once

#include "simd.hpp"

namespace torch_corr {
namespace TORCH_CORR_ISA {

#if TORCH_CORR_TILE_VECTORS == 4
constexpr int kTapRows = 4, kTapCols = 5;  // 20 sums, 4 gradients, 1 image: 25 of 32 registers
#else
constexpr int kTapRows = 3, kTapCols = 3;  // 9 sums, 3 gradients, 1 image: 13 of 16 registers
#endif

template <class T>
struct WeightTask {
  const T* image;  // the first image row; the next is image_pitch further
  int64_t image_pitch;
  const T* grad;  // gradient row that tap row 0 meets; tap row u meets the one u * grad_pitch before
  int64_t grad_pitch;
  const ptrdiff_t* offsets;  // of each tap column, in an image row
  int64_t rows;
  int64_t vectors;  // columns, in whole vectors
  int tail;         // lanes of one more vector, or 0
  T* sums;          // [tap row][tap column][lane]
  int64_t sums_pitch;
};

template <int U, int V, class T>
__attribute__((noinline)) void weight_microkernel(const WeightTask<T>& r) {
  constexpr int L = kLanes<T>;
  Vector<T> sum[U][V];
#pragma GCC unroll 8
  for (int u = 0; u < U; u++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) sum[u][v] = load(r.sums + u * r.sums_pitch + v * L);
  ptrdiff_t offset[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; v++) offset[v] = r.offsets[v];
  // The image continues past the last column, and zero times infinity is not zero, so those lanes must
  // be zero on both sides.  Without masks the rows are packed, so it is safe to read those lanes.
  typename Simd<T>::mask inside;
  for (int i = 0; i < L; i++) inside[i] = i < r.tail ? -1 : 0;
  const auto first_lanes = [&inside, &r](const T* p) -> Vector<T> {
    if constexpr (kHasLaneMasks) return load_masked<T>(p, LaneMask((1u << r.tail) - 1));
    return (Vector<T>)((typename Simd<T>::mask)load(p) & inside);
  };

  const T* image = r.image;
  const T* grad = r.grad;
  for (int64_t row = 0; row < r.rows; row++) {
    const T* x_at = image;
    const T* y_at = grad;
    for (int64_t q = 0; q < r.vectors; q++) {
      Vector<T> y[U];
#pragma GCC unroll 8
      for (int u = 0; u < U; u++) y[u] = load(y_at - u * r.grad_pitch);
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) {
        Vector<T> x = load(x_at + offset[v]);
        keep_in_register(x);
#pragma GCC unroll 8
        for (int u = 0; u < U; u++) sum[u][v] += y[u] * x;
      }
      x_at += L;
      y_at += L;
    }
    if (r.tail) {
      Vector<T> y[U];
#pragma GCC unroll 8
      for (int u = 0; u < U; u++) y[u] = first_lanes(y_at - u * r.grad_pitch);
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) {
        const Vector<T> x = first_lanes(x_at + offset[v]);
#pragma GCC unroll 8
        for (int u = 0; u < U; u++) sum[u][v] += y[u] * x;
      }
    }
    image += r.image_pitch;
    grad += r.grad_pitch;
  }
#pragma GCC unroll 8
  for (int u = 0; u < U; u++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) store(r.sums + u * r.sums_pitch + v * L, sum[u][v]);
}

template <class T>
inline void run_weight(int tap_rows, int tap_cols, const WeightTask<T>& r) {
#define TORCH_CORR_CASE(U, V)                                                          \
  case (U) * 16 + (V):                                                                 \
    if constexpr ((U) <= kTapRows && (V) <= kTapCols) weight_microkernel<(U), (V)>(r); \
    break;
#define TORCH_CORR_CASES(U)                                          \
  TORCH_CORR_CASE(U, 1) TORCH_CORR_CASE(U, 2) TORCH_CORR_CASE(U, 3) \
  TORCH_CORR_CASE(U, 4) TORCH_CORR_CASE(U, 5)
  static_assert(kTapRows <= 4 && kTapCols <= 5);
  switch (tap_rows * 16 + tap_cols) {
    TORCH_CORR_CASES(1)
    TORCH_CORR_CASES(2)
    TORCH_CORR_CASES(3)
    TORCH_CORR_CASES(4)
  }
#undef TORCH_CORR_CASES
#undef TORCH_CORR_CASE
}

}  // namespace TORCH_CORR_ISA
}  // namespace torch_corr
