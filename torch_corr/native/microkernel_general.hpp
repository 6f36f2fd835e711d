// The micro-kernel of a correlation with any number of tap rows: a register tile of R output rows by
// C vectors, summed image row by image row.
//
// For each tap column it loads C vectors of the image row, broadcasts one tap for each output row
// that meets this image row, and does R * C multiply-adds.  4 x 4 vectors with AVX-512 run at the
// rate of a matrix product.
#pragma once

#include "microkernel.hpp"

namespace torch_corr {
namespace TORCH_CORR_ISA {

constexpr int kGeneralRows = 8;  // most rows of a tile

// Rows of a tile `vectors` wide: a narrow tile has more, to keep as many sums in registers.
constexpr int general_rows(int64_t vectors) {
  return vectors == 1 || (vectors == 2 && TORCH_CORR_TILE_VECTORS == 4) ? kGeneralRows : 4;
}

// One image row and the output rows [low, high) of the tile that it meets; output row a meets it
// through a tap row, `tap_row` for a = 0 and `Taps::row_stride` earlier for each next a.
template <class T>
struct RowTask {
  const T* row;
  int64_t channel, tap_row;
  int low, high;
};

// With 32 registers the sums stay in registers between image rows.  AVX2 has 16, and 12 of them hold
// sums; GCC 12 then keeps some sums in memory, even in the innermost loop.  So with AVX2 all sums go to
// memory between image rows, and none in the loop: 88 instead of 46 GFLOP/s (15 x 15 taps, one thread,
// Zen 5).
constexpr bool kSumsInMemory = TORCH_CORR_TILE_VECTORS == 3;

template <int LOW, int HIGH, int R, int C, class T>
TORCH_CORR_INLINE void add_row(Vector<T> (&sums)[R][C], const T* row, const T* tap_row,
                               const Taps<T>& taps) {
  const ptrdiff_t up = taps.row_stride;
  const ptrdiff_t* offsets = taps.offsets;
  const int64_t columns = taps.columns;
  Vector<T> sum[R][C];
  if constexpr (kSumsInMemory) asm volatile("" : "+m"(sums));
#pragma GCC unroll 8
  for (int a = LOW; a < HIGH; a++)
#pragma GCC unroll 8
    for (int q = 0; q < C; q++) sum[a][q] = sums[a][q];
  for (int64_t v = 0; v < columns; v++) {
    const T* from = row + offsets[v];
    Vector<T> x[C];
#pragma GCC unroll 8
    for (int q = 0; q < C; q++) {
      x[q] = load(from + q * kLanes<T>);
      keep_in_register(x[q]);
    }
#pragma GCC unroll 8
    for (int a = LOW; a < HIGH; a++) {
      const Vector<T> tap = broadcast(tap_row[v - a * up]);
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

template <int R, int C, class T>
__attribute__((noinline)) void general_microkernel(const RowTask<T>* tasks, int64_t count,
                                                   const Taps<T>& taps, const OutputTile<T>& tile) {
  static_assert(R <= kGeneralRows);
  constexpr int L = kLanes<T>;
  Vector<T> sum[R][C];
  const int last = tile.cols - (C - 1) * L;  // lanes of the last vector, 1..L
#pragma GCC unroll 8
  for (int a = 0; a < R; a++)
#pragma GCC unroll 8
    for (int q = 0; q < C; q++) sum[a][q] = broadcast(tile.initial);
  if (tile.accumulate) {
#pragma GCC unroll 8
    for (int a = 0; a < R; a++) {
      if (a >= tile.rows) break;
      const T* row = tile.data + a * tile.pitch;
#pragma GCC unroll 8
      for (int q = 0; q < C - 1; q++) sum[a][q] = load(row + q * L);
      sum[a][C - 1] = load_up_to(row + (C - 1) * L, last);
    }
  }
  for (int64_t i = 0; i < count; i++) {
    const RowTask<T>& task = tasks[i];
    const T* tap_row = taps.data + task.channel * taps.channel_stride + task.tap_row * taps.columns;
    // One case for each pair low < high, so that the compiler knows which sums change.
#define TORCH_CORR_CASE(LOW, HIGH)                          \
  case (LOW) * 16 + (HIGH):                                 \
    if constexpr ((LOW) < (HIGH) && (HIGH) <= R)            \
      add_row<(LOW), (HIGH)>(sum, task.row, tap_row, taps); \
    break;
#define TORCH_CORR_CASES(LOW)                                                                     \
  TORCH_CORR_CASE(LOW, 1) TORCH_CORR_CASE(LOW, 2) TORCH_CORR_CASE(LOW, 3) TORCH_CORR_CASE(LOW, 4) \
  TORCH_CORR_CASE(LOW, 5) TORCH_CORR_CASE(LOW, 6) TORCH_CORR_CASE(LOW, 7) TORCH_CORR_CASE(LOW, 8)
    switch (task.low * 16 + task.high) {
      TORCH_CORR_CASES(0)
      TORCH_CORR_CASES(1)
      TORCH_CORR_CASES(2)
      TORCH_CORR_CASES(3)
      TORCH_CORR_CASES(4)
      TORCH_CORR_CASES(5)
      TORCH_CORR_CASES(6)
      TORCH_CORR_CASES(7)
    }
#undef TORCH_CORR_CASES
#undef TORCH_CORR_CASE
  }
#pragma GCC unroll 8
  for (int a = 0; a < R; a++) {
    if (a >= tile.rows) break;
    T* row = tile.data + a * tile.pitch;
#pragma GCC unroll 8
    for (int q = 0; q < C - 1; q++) store(row + q * L, sum[a][q]);
    store_up_to(row + (C - 1) * L, sum[a][C - 1], last);
  }
}

template <class T>
TORCH_CORR_INLINE void run_general(int vectors, const RowTask<T>* tasks, int64_t count,
                                   const Taps<T>& taps, const OutputTile<T>& tile) {
#define TORCH_CORR_CASE(VECTORS)                                                     \
  case VECTORS:                                                                      \
    if constexpr (VECTORS <= TORCH_CORR_TILE_VECTORS)                                \
      general_microkernel<general_rows(VECTORS), VECTORS>(tasks, count, taps, tile); \
    break;
  switch (vectors) {
    TORCH_CORR_CASE(1)
    TORCH_CORR_CASE(2)
    TORCH_CORR_CASE(3)
    TORCH_CORR_CASE(4)
  }
#undef TORCH_CORR_CASE
}

}  // namespace TORCH_CORR_ISA
}  // namespace torch_corr
