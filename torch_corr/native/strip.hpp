// The register tile of a correlation with few tap rows: 8 output rows x one vector, walked along a
// strip of columns.
//
// For each column of taps the taps are broadcast once and every image row is read once: 8 t
// multiply-adds for t broadcasts and t + 7 loads, with all tap rows known to the compiler.  With
// masks it reads halves and the image's edges in place.  Against tile.hpp, which serves any number of
// tap rows: 3x3 taps in cache 58 and 41 GFLOP/s, 9x9 97 and 89, depthwise 5x5 on 2048 planes of 29x29
// 90 and 66, depthwise 3x3 of 56x56 in float16 42 and 30 (Zen 4, AVX-512; the first two on one thread).
#pragma once

#include "simd.hpp"

namespace torch_corr {
namespace TORCH_CORR_ISA {

constexpr int kStripRows = 8;
constexpr int kStripVectors = 8;
// 8 sums, the taps of one column and a vector of the image stay in registers.
constexpr int kStripTaps = TORCH_CORR_TILE_VECTORS == 4 ? 11 : 7;

// One channel's share: tap row t and output row a of the tile meet at image row rows[a + t].
struct Band {
  const void* const* rows;
  int64_t channel, tap_row;  // of its first tap row
  int taps;
};

template <class T>
struct StripTaps {
  const T* data;
  int64_t channel;          // stride from one input channel's taps to the next
  int64_t columns;          // taps in a row
  int64_t row;              // stride from one tap row of a band to the next
  const ptrdiff_t* offset;  // of each tap column, in an image row
  const LaneMask* lanes;    // [vector][tap column]: lanes inside the image
};

template <class T>
struct StripTarget {
  T* data;
  int64_t pitch;
  int rows, cols;
  bool resume;  // add to what is there
};

template <int TAPS, bool MASKED, class S, int R, class T>
TORCH_CORR_INLINE void add_band(Vector<T> (&sum)[R], const void* const* rows, int64_t from,
                                const T* taps, const StripTaps<T>& w, const LaneMask* lanes) {
  for (int64_t v = 0; v < w.columns; v++) {
    Vector<T> tap[TAPS];
#pragma GCC unroll 16
    for (int t = 0; t < TAPS; t++) tap[t] = broadcast(taps[t * w.row + v]);
    const int64_t at = from + w.offset[v];
#pragma GCC unroll 32
    for (int b = 0; b < R + TAPS - 1; b++) {
      const S* p = static_cast<const S*>(rows[b]) + at;
      Vector<T> x;
      if constexpr (MASKED)
        x = load_lanes<T>(p, lanes[v]);
      else
        x = load_wide<T>(p);
      keep_in_register(x);
#pragma GCC unroll 8
      for (int a = 0; a < R; a++)
        if (a <= b && b < a + TAPS) sum[a] += x * tap[b - a];
    }
  }
}

// Vectors [first, last) of the strip, their image rows in the type S.
template <int R, bool MASKED, class S, class T>
__attribute__((noinline)) void run_vectors(int first, int last, const Band* bands, int64_t count,
                                           const StripTaps<T>& w, const StripTarget<T>& target) {
  constexpr int L = kLanes<T>;
  for (int q = first; q < last; q++) {
    const int width = target.cols - q * L;
    T* to = target.data + q * L;
    Vector<T> sum[R];
#pragma GCC unroll 8
    for (int a = 0; a < R; a++) sum[a] = Vector<T>{};
    if (target.resume) {
#pragma GCC unroll 8
      for (int a = 0; a < R; a++) {
        if (a >= target.rows) break;
        sum[a] = width >= L ? load(to + a * target.pitch) : load_first(to + a * target.pitch, width);
      }
    }
    const LaneMask* lanes = MASKED ? w.lanes + q * w.columns : nullptr;
    for (int64_t i = 0; i < count; i++) {
      const Band& band = bands[i];
      const T* taps = w.data + band.channel * w.channel + band.tap_row * w.columns;
#define TORCH_CORR_BAND(TAPS)              \
  case TAPS:                               \
    if constexpr (TAPS <= kStripTaps)      \
      add_band<TAPS, MASKED, S>(sum, band.rows, q * L, taps, w, lanes); \
    break;
      switch (band.taps) {
        TORCH_CORR_BAND(1)
        TORCH_CORR_BAND(2)
        TORCH_CORR_BAND(3)
        TORCH_CORR_BAND(4)
        TORCH_CORR_BAND(5)
        TORCH_CORR_BAND(6)
        TORCH_CORR_BAND(7)
        TORCH_CORR_BAND(8)
        TORCH_CORR_BAND(9)
        TORCH_CORR_BAND(10)
        TORCH_CORR_BAND(11)
      }
#undef TORCH_CORR_BAND
    }
#pragma GCC unroll 8
    for (int a = 0; a < R; a++) {
      if (a >= target.rows) break;
      if (width >= L)
        store(to + a * target.pitch, sum[a]);
      else
        store_first(to + a * target.pitch, sum[a], width);
    }
  }
}

template <class S, int R, class T>
TORCH_CORR_INLINE void run_strip_rows(int inside_first, int inside_last, const Band* bands, int64_t count,
                                      const StripTaps<T>& w, const StripTarget<T>& target) {
  const int vectors = (target.cols + kLanes<T> - 1) / kLanes<T>;
  const int first = least(vectors, inside_first), last = least(vectors, inside_last);
  if constexpr (kLaneMasks) {
    if (first > 0) run_vectors<R, true, S>(0, first, bands, count, w, target);
    if (vectors > last) run_vectors<R, true, S>(last, vectors, bands, count, w, target);
  }
  if (last > first) run_vectors<R, false, S>(first, last, bands, count, w, target);
}

// Vectors [inside_first, inside_last) need no mask.
template <class S, class T>
TORCH_CORR_INLINE void run_strip(int inside_first, int inside_last, const Band* bands, int64_t count,
                                 const StripTaps<T>& w, const StripTarget<T>& target) {
  if (target.rows <= kStripRows / 2)
    run_strip_rows<S, kStripRows / 2>(inside_first, inside_last, bands, count, w, target);
  else
    run_strip_rows<S, kStripRows>(inside_first, inside_last, bands, count, w, target);
}

}  // namespace TORCH_CORR_ISA
}  // namespace torch_corr
