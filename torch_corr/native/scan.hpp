// Passes over planes for the check of transforms: sums of squares, and a search for small numbers.
//
// Planes are read in blocks of kScanBlock, whose order and sums do not depend on the threads.
#pragma once

#include "kernels.hpp"
#include "simd.hpp"

namespace torch_corr {
namespace TORCH_CORR_ISA {

TORCH_CORR_INLINE float modulus(float value) { return __builtin_fabsf(value); }
TORCH_CORR_INLINE double modulus(double value) { return __builtin_fabs(value); }

template <class T>
TORCH_CORR_INLINE double sum_of_squares(const T* values, int64_t count) {
  constexpr int kLanes = 32;  // four vectors of doubles where they are widest
  double sums[kLanes] = {};
  const int64_t whole = count - count % kLanes;
  for (int64_t i = 0; i < whole; i += kLanes)
    for (int lane = 0; lane < kLanes; lane++) {
      const double value = double(values[i + lane]);
      sums[lane] += value * value;
    }
  double total = 0;
  for (int lane = 0; lane < kLanes; lane++) total += sums[lane];
  for (int64_t i = whole; i < count; i++) total += double(values[i]) * double(values[i]);
  return total;
}

TORCH_CORR_INLINE int32_t modulus_bits(float value) {
  int32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits & INT32_MAX;
}
TORCH_CORR_INLINE int64_t modulus_bits(double value) {
  int64_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits & INT64_MAX;
}

// Whether the modulus of a number is below `smallest`, but not zero, or is not below `largest`; NaN
// counts.  Moduli are compared as integers, since a thread may take subnormal numbers for zeros.
template <class T>
TORCH_CORR_INLINE bool any_outside(const T* values, int64_t count, T smallest, T largest) {
  const auto low = modulus_bits(smallest), high = modulus_bits(largest);
  auto outside = modulus_bits(T(0));
  for (int64_t i = 0; i < count; i++) {
    const auto size = modulus_bits(values[i]);
    outside |= (size != 0) & ((size < low) | (size >= high));
  }
  return outside;
}

// NaN is below everything.
template <class T>
TORCH_CORR_INLINE bool any_below(const T* values, int64_t count, T least) {
  int below = 0;
  for (int64_t i = 0; i < count; i++) below |= !(modulus(values[i]) >= least);
  return below;
}

template <class T, class Visit>
inline void visit_blocks(const Planes& planes, int threads, const Visit& visit) {
  const int64_t blocks = planes.blocks, total = planes.count * blocks;
  if (total == 0) return;
  if (planes.count * planes.pixels < kScanAlone) threads = 1;
  parallel(total, (total + threads * 4 - 1) / (threads * 4), threads,
           [&](int64_t begin, int64_t end, int) {
             for (int64_t i = begin; i < end; i++) {
               const int64_t plane = i / blocks, first = i % blocks * kScanBlock;
               const T* values = static_cast<const T*>(planes.values) + plane * planes.pixels + first;
               visit(i, plane, values, min<int64_t>(kScanBlock, planes.pixels - first));
             }
           });
}

template <class T>
void sum_squares_as(const Planes& planes, double smallest, double largest, double* sums, int threads) {
  visit_blocks<T>(planes, threads, [&](int64_t i, int64_t, const T* values, int64_t count) {
    // The squares of infinity and NaN need no such test.
    const bool outside = smallest > 0 && any_outside<T>(values, count, T(smallest), T(largest));
    sums[i] = outside ? __builtin_nan("") : sum_of_squares(values, count);
  });
}

template <class T>
void flag_below_as(const Planes& planes, const void* least, uint8_t* flags, int threads) {
  visit_blocks<T>(planes, threads, [&](int64_t i, int64_t plane, const T* values, int64_t count) {
    flags[i] = any_below(values, count, static_cast<const T*>(least)[plane]);
  });
}

inline void sum_squares(const Planes& planes, Dtype dtype, double smallest, double largest,
                        double* sums, int threads) {
  dtype == Dtype::float64 ? sum_squares_as<double>(planes, smallest, largest, sums, threads)
                          : sum_squares_as<float>(planes, smallest, largest, sums, threads);
}

inline void flag_below(const Planes& planes, Dtype dtype, const void* least, uint8_t* flags,
                       int threads) {
  dtype == Dtype::float64 ? flag_below_as<double>(planes, least, flags, threads)
                          : flag_below_as<float>(planes, least, flags, threads);
}

}  // namespace TORCH_CORR_ISA
}  // namespace torch_corr
