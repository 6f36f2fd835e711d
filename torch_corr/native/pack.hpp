// Packs image rows for the micro-kernels: widened, zero outside the image, columns of one residue of
// the stride side by side, so that neighbouring outputs read neighbouring numbers.
#pragma once

#include "kernels.hpp"
#include "simd.hpp"

namespace torch_corr {
namespace TORCH_CORR_ISA {

// Copies one vector of numbers, STEP apart; constant steps become vector loads and shuffles.
template <int STEP, class S, class T>
TORCH_CORR_INLINE void copy_block(T* __restrict to, const S* __restrict from) {
  if constexpr (STEP == 1) return store(to, load_widened<T>(from));
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
  // The rest is one more whole vector, which overlaps the one before.
  if (count % L) copy_block<STEP>(to + count - L, from + STEP * (count - L));
}

template <class S, class T>
TORCH_CORR_INLINE void copy_strided(T* to, const S* from, int64_t count, int64_t step) {
  if (step == 1) return copy_blocks<1>(to, from, count);
  if (step == 2) return copy_blocks<2>(to, from, count);
  for (int64_t i = 0; i < count; i++) to[i] = widen(from[step * i]);
}

// Writes `count` zeros, and more up to the end of the last vector.
template <class T>
TORCH_CORR_INLINE void zero_past(T* to, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes<T>) store(to + i, Vector<T>{});
}

// A segment for a tile at one column: zeros to `low`, numbers to `high`, zeros to `length`.
struct Span {
  int64_t position, low, high, length;
  int64_t source;  // column of the number at `low`
};

TORCH_CORR_INLINE Span clip_segment(const Segment& segment, int64_t cols, int64_t step, int64_t from) {
  const int64_t first = (segment.first + from) * step + segment.residue;
  // i is inside where 0 <= first + i * step < cols.
  const int64_t low = min(segment.length, max<int64_t>(0, ceil_div(-first, step)));
  const int64_t high = max(low, min(segment.length, ceil_div(cols - first, step)));
  return {segment.position, low, high, segment.length, first + low * step};
}

// Prefetches the row `distance` numbers further.  Hardware prefetchers follow streams within a page
// only; the planes of grad_weight may be smaller than a page and far from each other.
template <class S>
TORCH_CORR_INLINE void prefetch_row(const S* row, int64_t distance, int64_t cols) {
  const char* from = reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(row) +
                                                   uintptr_t(distance) * sizeof(S));
  for (int64_t at = 0; at < cols * int64_t(sizeof(S)); at += 64) __builtin_prefetch(from + at);
}

// May write zeros up to one vector past the packed row; the pitch of packed rows leaves room.
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
