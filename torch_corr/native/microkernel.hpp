// Operands of the two micro-kernels of a correlation, and how they load and store a tile's sums.
#pragma once

#include "simd.hpp"

namespace torch_corr {
namespace TORCH_CORR_ISA {

// The taps of one filter.
template <class T>
struct Taps {
  const T* data;
  int64_t channel_stride;    // from an input channel's taps to those of the next
  int64_t columns;           // taps in a row
  int64_t row_stride;        // between the tap rows that one image row meets in neighbouring tile rows
  const ptrdiff_t* offsets;  // of each tap column, in an image row

  const T* at(int64_t channel, int64_t row) const {
    return data + channel * channel_stride + row * columns;
  }
};

// Where the sums go: `rows` rows of `cols` numbers.
template <class T>
struct OutputTile {
  T* data;
  int64_t pitch;
  int rows, cols;
  bool accumulate;  // add to the numbers that are there
};

// Loads R x C vectors of sums at `from`; the last vector of a row has `last` lanes.
template <int R, int C, class T>
TORCH_CORR_INLINE void load_sums(Vector<T> (&sum)[R][C], const OutputTile<T>& tile, const T* from,
                                 int last) {
  constexpr int L = kLanes<T>;
#pragma GCC unroll 8
  for (int a = 0; a < R; a++)
#pragma GCC unroll 8
    for (int q = 0; q < C; q++) sum[a][q] = Vector<T>{};
  if (!tile.accumulate) return;
#pragma GCC unroll 8
  for (int a = 0; a < R; a++) {
    if (a >= tile.rows) break;
    const T* row = from + a * tile.pitch;
#pragma GCC unroll 8
    for (int q = 0; q < C - 1; q++) sum[a][q] = load(row + q * L);
    row += (C - 1) * L;
    sum[a][C - 1] = last == L ? load(row) : load_first(row, last);
  }
}

template <int R, int C, class T>
TORCH_CORR_INLINE void store_sums(const Vector<T> (&sum)[R][C], const OutputTile<T>& tile, T* to,
                                  int last) {
  constexpr int L = kLanes<T>;
#pragma GCC unroll 8
  for (int a = 0; a < R; a++) {
    if (a >= tile.rows) break;
    T* row = to + a * tile.pitch;
#pragma GCC unroll 8
    for (int q = 0; q < C - 1; q++) store(row + q * L, sum[a][q]);
    row += (C - 1) * L;
    if (last == L)
      store(row, sum[a][C - 1]);
    else
      store_first(row, sum[a][C - 1], last);
  }
}

}  // namespace TORCH_CORR_ISA
}  // namespace torch_corr
