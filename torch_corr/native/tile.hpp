// The register tile of a correlation: R output rows by C vectors, summed over image rows.
//
// Every image row is read once per tap column and serves all output rows that it reaches, each
// through its own tap: R * C multiply-adds for C loads and R broadcasts.  4 x 4 vectors with
// AVX-512 run at the matrix-product rate.
#pragma once

#include "simd.hpp"

namespace torch_corr {
namespace TORCH_CORR_ISA {

// One image row's share: it meets output rows [low, high) of the tile, row a through the tap row
// `tap_row - a * tap_step`.
template <class T>
struct Step {
  const T* row;
  int64_t channel, tap_row;
  int low, high;
};

template <class T>
struct TileTaps {
  const T* data;
  int64_t channel;        // stride from one input channel's taps to the next
  int64_t columns;        // taps in a row
  int64_t tap_step;       // tap rows between neighbouring output rows of the tile
  const ptrdiff_t* offset;  // of each tap column, in an image row
};

template <class T>
struct TileTarget {
  T* data;
  int64_t pitch;
  int rows, cols;
  bool resume;  // add to what is there
};

// With 32 registers the sums stay in them from row to row.  With AVX2's 16, 12 of them sums, GCC 12
// leaves some in memory for good, in the innermost loop too; so there all go to memory between rows,
// and none in the loop: 88 instead of 46 GFLOP/s (15 x 15 taps, one thread, Zen 5).
constexpr bool kSumsInMemory = TORCH_CORR_TILE_VECTORS == 3;

template <int LOW, int HIGH, int R, int C, class T>
TORCH_CORR_INLINE void add_row(Vector<T> (&sums)[R][C], const T* row, const T* taps,
                               const TileTaps<T>& w) {
  const ptrdiff_t up = w.tap_step * w.columns;
  const ptrdiff_t* offset = w.offset;
  const int64_t columns = w.columns;
  Vector<T> sum[R][C];
  if constexpr (kSumsInMemory) asm volatile("" : "+m"(sums));
#pragma GCC unroll 8
  for (int a = LOW; a < HIGH; a++)
#pragma GCC unroll 8
    for (int q = 0; q < C; q++) sum[a][q] = sums[a][q];
  for (int64_t v = 0; v < columns; v++) {
    const T* from = row + offset[v];
    Vector<T> x[C];
#pragma GCC unroll 8
    for (int q = 0; q < C; q++) {
      x[q] = load(from + q * kLanes<T>);
      keep_in_register(x[q]);
    }
#pragma GCC unroll 8
    for (int a = LOW; a < HIGH; a++) {
      const Vector<T> tap = broadcast(taps[v - a * up]);
#pragma GCC unroll 8
      for (int q = 0; q < C; q++) sum[a][q] += x[q] * tap;
    }
  }
#pragma GCC unroll 8
  for (int a = LOW; a < HIGH; a++)
#pragma GCC unroll 8
    for (int q = 0; q < C; q++) sums[a][q] = sum[a][q];
  if constexpr (kSumsInMemory) asm volatile("" : "+m"(sums));
}

#define TORCH_CORR_ROW(LOW, HIGH)                                      \
  case (LOW) * 16 + (HIGH):                                            \
    if constexpr ((HIGH) <= R) add_row<(LOW), (HIGH) <= R ? (HIGH) : R>(sum, step.row, taps, w); \
    break;

template <int R, int C, class T>
__attribute__((noinline)) void run_tile(const Step<T>* steps, int64_t count, const TileTaps<T>& w,
                                        const TileTarget<T>& target) {
  static_assert(R <= 8);
  constexpr int L = kLanes<T>;
  Vector<T> sum[R][C];
  const int last = target.cols - (C - 1) * L;  // lanes of the last vector, 1..L
#pragma GCC unroll 8
  for (int a = 0; a < R; a++)
#pragma GCC unroll 8
    for (int q = 0; q < C; q++) sum[a][q] = Vector<T>{};
  if (target.resume) {
#pragma GCC unroll 8
    for (int a = 0; a < R; a++) {
      if (a >= target.rows) break;
      const T* row = target.data + a * target.pitch;
#pragma GCC unroll 8
      for (int q = 0; q < C - 1; q++) sum[a][q] = load(row + q * L);
      sum[a][C - 1] = last == L ? load(row + (C - 1) * L) : load_first(row + (C - 1) * L, last);
    }
  }
  for (int64_t i = 0; i < count; i++) {
    const Step<T>& step = steps[i];
    const T* taps = w.data + step.channel * w.channel + step.tap_row * w.columns;
    switch (step.low * 16 + step.high) {
      TORCH_CORR_ROW(0, 1)
      TORCH_CORR_ROW(0, 2)
      TORCH_CORR_ROW(0, 3)
      TORCH_CORR_ROW(0, 4)
      TORCH_CORR_ROW(1, 2)
      TORCH_CORR_ROW(1, 3)
      TORCH_CORR_ROW(1, 4)
      TORCH_CORR_ROW(2, 3)
      TORCH_CORR_ROW(2, 4)
      TORCH_CORR_ROW(3, 4)
      TORCH_CORR_ROW(0, 5)
      TORCH_CORR_ROW(0, 6)
      TORCH_CORR_ROW(0, 7)
      TORCH_CORR_ROW(0, 8)
      TORCH_CORR_ROW(1, 5)
      TORCH_CORR_ROW(1, 6)
      TORCH_CORR_ROW(1, 7)
      TORCH_CORR_ROW(1, 8)
      TORCH_CORR_ROW(2, 5)
      TORCH_CORR_ROW(2, 6)
      TORCH_CORR_ROW(2, 7)
      TORCH_CORR_ROW(2, 8)
      TORCH_CORR_ROW(3, 5)
      TORCH_CORR_ROW(3, 6)
      TORCH_CORR_ROW(3, 7)
      TORCH_CORR_ROW(3, 8)
      TORCH_CORR_ROW(4, 5)
      TORCH_CORR_ROW(4, 6)
      TORCH_CORR_ROW(4, 7)
      TORCH_CORR_ROW(4, 8)
      TORCH_CORR_ROW(5, 6)
      TORCH_CORR_ROW(5, 7)
      TORCH_CORR_ROW(5, 8)
      TORCH_CORR_ROW(6, 7)
      TORCH_CORR_ROW(6, 8)
      TORCH_CORR_ROW(7, 8)
    }
  }
#pragma GCC unroll 8
  for (int a = 0; a < R; a++) {
    if (a >= target.rows) break;
    T* row = target.data + a * target.pitch;
#pragma GCC unroll 8
    for (int q = 0; q < C - 1; q++) store(row + q * L, sum[a][q]);
    if (last == L)
      store(row + (C - 1) * L, sum[a][C - 1]);
    else
      store_first(row + (C - 1) * L, sum[a][C - 1], last);
  }
}
#undef TORCH_CORR_ROW

}  // namespace TORCH_CORR_ISA
}  // namespace torch_corr
