// The micro-kernel of a correlation with few tap rows ("short" kernels): a register tile of 8 output
// rows by one vector, which walks along a strip of columns.
//
// For each tap column it broadcasts the t taps once and reads every image row once: 8 t multiply-adds
// for t broadcasts and t + 7 loads, and the compiler knows t.  With masks it reads half-precision
// images and the image's edges in place.  GFLOP/s of this and of the general micro-kernel: 3x3 taps in
// cache 58 and 41, 9x9 97 and 89, depthwise 5x5 on 2048 planes of 29x29 90 and 66, depthwise 3x3 of
// 56x56 in float16 42 and 30 (Zen 4, AVX-512; the first two on one thread).
#pragma once

#include "microkernel.hpp"

namespace torch_corr {
namespace TORCH_CORR_ISA {

constexpr int kShortRows = 8;     // output rows of a tile; half of them where fewer rows remain
constexpr int kShortVectors = 8;  // vectors across a strip
// Most tap rows: 8 sums, the taps of one column and one vector of the image fill 32 or 16 registers.
constexpr int kShortTapRows = TORCH_CORR_TILE_VECTORS == 4 ? 11 : 7;

// One channel: tap row t and output row a of the tile meet at image row rows[a + t].
struct ChannelTask {
  const void* const* rows;
  int64_t channel, tap_row;  // its first tap row
  int tap_rows;
};

template <int TAP_ROWS, bool MASKED, class S, int R, class T>
TORCH_CORR_INLINE void add_channel(Vector<T> (&sum)[R], const void* const* rows, int64_t from,
                                   const T* tap_row, const Taps<T>& taps, const LaneMask* masks) {
  for (int64_t v = 0; v < taps.columns; v++) {
    Vector<T> tap[TAP_ROWS];
#pragma GCC unroll 16
    for (int t = 0; t < TAP_ROWS; t++) tap[t] = broadcast(tap_row[t * taps.row_stride + v]);
    const int64_t at = from + taps.offsets[v];
#pragma GCC unroll 32
    for (int b = 0; b < R + TAP_ROWS - 1; b++) {
      const S* p = static_cast<const S*>(rows[b]) + at;
      Vector<T> x;
      if constexpr (MASKED)
        x = load_masked<T>(p, masks[v]);
      else
        x = load_widened<T>(p);
      keep_in_register(x);
#pragma GCC unroll 8
      for (int a = 0; a < R; a++)
        if (a <= b && b < a + TAP_ROWS) sum[a] += x * tap[b - a];
    }
  }
}

// Vectors [first, last) of the strip; image rows have the type S.
template <int R, bool MASKED, class S, class T>
__attribute__((noinline)) void short_microkernel(int first, int last, const ChannelTask* tasks,
                                                 int64_t count, const Taps<T>& taps,
                                                 const OutputTile<T>& tile) {
  constexpr int L = kLanes<T>;
  for (int q = first; q < last; q++) {
    const int width = tile.cols - q * L;
    T* to = tile.data + q * L;
    // Loads and stores are written out: with load_up_to and store_up_to, GCC 12 spills more registers in
    // add_channel.
    Vector<T> sum[R];
#pragma GCC unroll 8
    for (int a = 0; a < R; a++) sum[a] = broadcast(tile.initial);
    if (tile.accumulate) {
#pragma GCC unroll 8
      for (int a = 0; a < R; a++) {
        if (a >= tile.rows) break;
        sum[a] = width >= L ? load(to + a * tile.pitch) : load_first(to + a * tile.pitch, width);
      }
    }
    const LaneMask* masks = MASKED ? taps.masks + q * taps.columns : nullptr;
    for (int64_t i = 0; i < count; i++) {
      const ChannelTask& task = tasks[i];
      const T* tap_row = taps.data + task.channel * taps.channel_stride + task.tap_row * taps.columns;
#define TORCH_CORR_CASE(TAP_ROWS)                                                    \
  case TAP_ROWS:                                                                     \
    if constexpr (TAP_ROWS <= kShortTapRows)                                         \
      add_channel<TAP_ROWS, MASKED, S>(sum, task.rows, q * L, tap_row, taps, masks); \
    break;
      switch (task.tap_rows) {
        TORCH_CORR_CASE(1)
        TORCH_CORR_CASE(2)
        TORCH_CORR_CASE(3)
        TORCH_CORR_CASE(4)
        TORCH_CORR_CASE(5)
        TORCH_CORR_CASE(6)
        TORCH_CORR_CASE(7)
        TORCH_CORR_CASE(8)
        TORCH_CORR_CASE(9)
        TORCH_CORR_CASE(10)
        TORCH_CORR_CASE(11)
      }
#undef TORCH_CORR_CASE
    }
#pragma GCC unroll 8
    for (int a = 0; a < R; a++) {
      if (a >= tile.rows) break;
      if (width >= L)
        store(to + a * tile.pitch, sum[a]);
      else
        store_first(to + a * tile.pitch, sum[a], width);
    }
  }
}

template <class S, int R, class T>
TORCH_CORR_INLINE void run_short_rows(int inside_first, int inside_last, const ChannelTask* tasks,
                                      int64_t count, const Taps<T>& taps, const OutputTile<T>& tile) {
  const int vectors = (tile.cols + kLanes<T> - 1) / kLanes<T>;
  const int first = min(vectors, inside_first), last = min(vectors, inside_last);
  if constexpr (kHasLaneMasks) {
    if (first > 0) short_microkernel<R, true, S>(0, first, tasks, count, taps, tile);
    if (vectors > last) short_microkernel<R, true, S>(last, vectors, tasks, count, taps, tile);
  }
  if (last > first) short_microkernel<R, false, S>(first, last, tasks, count, taps, tile);
}

// Vectors [inside_first, inside_last) of the strip need no masks.
template <class S, class T>
TORCH_CORR_INLINE void run_short(int inside_first, int inside_last, const ChannelTask* tasks,
                                 int64_t count, const Taps<T>& taps, const OutputTile<T>& tile) {
  if (tile.rows <= kShortRows / 2)
    run_short_rows<S, kShortRows / 2>(inside_first, inside_last, tasks, count, taps, tile);
  else
    run_short_rows<S, kShortRows>(inside_first, inside_last, tasks, count, taps, tile);
}

}  // namespace TORCH_CORR_ISA
}  // namespace torch_corr
