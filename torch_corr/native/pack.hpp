// Image rows as the tiles read them: widened, zero outside the image, one residue of a stride's
// columns after the other, so that neighbouring outputs always read neighbouring numbers.
#pragma once

#include "engines.hpp"
#include "simd.hpp"

namespace torch_corr {
namespace TORCH_CORR_ISA {

// One vector's worth of numbers, `step` apart; constant steps become vector loads and shuffles.
template <int STEP, class S, class T>
TORCH_CORR_INLINE void copy_block(T* __restrict to, const S* __restrict from) {
  if constexpr (STEP == 1) return store(to, load_wide<T>(from));
#ifdef __AVX512F__
  if constexpr (STEP == 2) return store(to, load_every_other<T>(from));
#endif
  for (int i = 0; i < kLanes<T>; i++) to[i] = widen(from[STEP * i]);
}

template <int STEP, class S, class T>
TORCH_CORR_INLINE void copy_blocks(T* to, const S* from, int64_t count) {
  constexpr int64_t L = kLanes<T>;
  if (count < L) {
    for (int64_t i = 0; i < count; i++) to[i] = widen(from[STEP * i]);
    return;
  }
  for (int64_t i = 0; i + L <= count; i += L) copy_block<STEP>(to + i, from + STEP * i);
  // The rest as one more whole block, over numbers copied already.
  if (count % L) copy_block<STEP>(to + count - L, from + STEP * (count - L));
}

template <class S, class T>
TORCH_CORR_INLINE void copy_strided(T* to, const S* from, int64_t count, int64_t step) {
  if (step == 1) return copy_blocks<1>(to, from, count);
  if (step == 2) return copy_blocks<2>(to, from, count);
  for (int64_t i = 0; i < count; i++) to[i] = widen(from[step * i]);
}

// Zeros from `to` on, at least `count`, up to the end of the last vector that they touch.
template <class T>
TORCH_CORR_INLINE void zero_past(T* to, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes<T>) store(to + i, Vector<T>{});
}

// A segment at one position of the tile: zeros to `low`, numbers to `high`, zeros to `length`.
struct Span {
  int64_t position, low, high, length;
  int64_t source;  // column of the number at `low`
};

TORCH_CORR_INLINE Span span_of(const Segment& segment, int64_t cols, int64_t step, int64_t from) {
  const int64_t first = (segment.first + from) * step + segment.residue;
  // i is inside where 0 <= first + i * step < cols.
  const int64_t low = least(segment.length, most<int64_t>(0, ceil_div(-first, step)));
  const int64_t high = most(low, least(segment.length, ceil_div(cols - first, step)));
  return {segment.position, low, high, segment.length, first + low * step};
}

// Asks for a row that is needed soon.  The hardware sees streams within a page only; planes are small
// and, in grad_weight, far apart.
template <class S>
TORCH_CORR_INLINE void prefetch_row(const S* row, int64_t distance, int64_t cols) {
  const char* from = reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(row) +
                                                   uintptr_t(distance) * sizeof(S));
  for (int64_t at = 0; at < cols * int64_t(sizeof(S)); at += 64) __builtin_prefetch(from + at);
}

// May write zeros up to one vector past the packed row; its pitch leaves room.
template <class S, class T>
TORCH_CORR_INLINE void pack_row(T* packed, const S* row, int64_t step, const Span* spans,
                                int64_t count) {
  for (int64_t s = 0; s < count; s++) {
    const Span& span = spans[s];
    T* to = packed + span.position;
    zero_past(to, span.low);
    if (span.high > span.low) copy_strided(to + span.low, row + span.source, span.high - span.low, step);
    zero_past(to + span.high, span.length - span.high);
  }
}

}  // namespace TORCH_CORR_ISA
}  // namespace torch_corr
