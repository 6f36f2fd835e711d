// Vectors, number conversions, scratch memory and threads, for one instruction set.
//
// Vectors are the compiler's own (GCC and Clang `vector_size`), so the same source serves x86-64,
// AArch64 and whatever comes.  Everything here sits in a namespace of its own per instruction set
// and uses no templates of the standard library: see engines.hpp for the reason.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#ifndef TORCH_CORR_ISA
#error "compile with -DTORCH_CORR_ISA=<namespace>"
#endif

#if defined(__AVX512F__)
#define TORCH_CORR_VECTOR_BYTES 64
#define TORCH_CORR_TILE_VECTORS 4  // 16 sums of 32 registers
#elif defined(__AVX2__)
#define TORCH_CORR_VECTOR_BYTES 32
#define TORCH_CORR_TILE_VECTORS 3  // 12 sums of 16 registers
#elif defined(__aarch64__)
#define TORCH_CORR_VECTOR_BYTES 16
#define TORCH_CORR_TILE_VECTORS 4
#else
#define TORCH_CORR_VECTOR_BYTES 16
#define TORCH_CORR_TILE_VECTORS 2
#endif

#define TORCH_CORR_INLINE inline __attribute__((always_inline))

namespace torch_corr {
namespace TORCH_CORR_ISA {

struct half_bits {
  uint16_t bits;
};
struct bfloat_bits {
  uint16_t bits;
};

template <class T>
struct Simd;
template <>
struct Simd<float> {
  typedef float vector __attribute__((vector_size(TORCH_CORR_VECTOR_BYTES)));
  typedef int32_t mask __attribute__((vector_size(TORCH_CORR_VECTOR_BYTES)));
  typedef int32_t mask_lane;
};
template <>
struct Simd<double> {
  typedef double vector __attribute__((vector_size(TORCH_CORR_VECTOR_BYTES)));
  typedef int64_t mask __attribute__((vector_size(TORCH_CORR_VECTOR_BYTES)));
  typedef int64_t mask_lane;
};

template <class T>
using Vector = typename Simd<T>::vector;
template <class T>
constexpr int kLanes = TORCH_CORR_VECTOR_BYTES / int(sizeof(T));

template <class T>
TORCH_CORR_INLINE Vector<T> load(const T* p) {
  Vector<T> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
TORCH_CORR_INLINE void store(T* p, Vector<T> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// Keeps a vector that is used several times in a register: left alone, GCC 12 reads it anew from
// memory for every use, and most such reads touch two cache lines.
template <class V>
TORCH_CORR_INLINE void keep_in_register(V& v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__x86_64__)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#else
  (void)v;
#endif
}

template <class T>
TORCH_CORR_INLINE Vector<T> broadcast(T value) {
  return value - Vector<T>{};
}

// The first n lanes of a vector, n < kLanes, by halves: no call to memcpy, and the same few
// branches for every row.
template <class T>
TORCH_CORR_INLINE void store_first(T* p, Vector<T> v, int n) {
  T lanes[kLanes<T>];
  __builtin_memcpy(lanes, &v, sizeof v);
  const T* from = lanes;
  if constexpr (kLanes<T> > 8)
    if (n & 8) __builtin_memcpy(p, from, 8 * sizeof(T)), p += 8, from += 8;
  if constexpr (kLanes<T> > 4)
    if (n & 4) __builtin_memcpy(p, from, 4 * sizeof(T)), p += 4, from += 4;
  if constexpr (kLanes<T> > 2)
    if (n & 2) __builtin_memcpy(p, from, 2 * sizeof(T)), p += 2, from += 2;
  if (n & 1) *p = *from;
}

#ifdef __AVX512F__
TORCH_CORR_INLINE void store_first(float* p, Vector<float> v, int n) {
  _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), v);
}
TORCH_CORR_INLINE void store_first(double* p, Vector<double> v, int n) {
  _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1), v);
}
#endif

template <class T>
TORCH_CORR_INLINE Vector<T> load_first(const T* p, int n) {
  T lanes[kLanes<T>] = {};
  for (int i = 0; i < n; i++) lanes[i] = p[i];
  return load(lanes);
}

template <class A>
TORCH_CORR_INLINE A least(A a, A b) {
  return b < a ? b : a;
}
template <class A>
TORCH_CORR_INLINE A most(A a, A b) {
  return a < b ? b : a;
}
TORCH_CORR_INLINE int64_t ceil_div(int64_t a, int64_t b) {  // b > 0; towards plus infinity
  if (b == 1) return a;  // the usual case, and division is slow
  return a >= 0 ? (a + b - 1) / b : -((-a) / b);
}

TORCH_CORR_INLINE uint32_t bits_of(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}
TORCH_CORR_INLINE float float_of(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

// Conversions are branch-free, so that loops over them become vector code on every target.
template <class T>
TORCH_CORR_INLINE T widen(T value) {
  return value;
}
TORCH_CORR_INLINE float widen(bfloat_bits value) { return float_of(uint32_t(value.bits) << 16); }
TORCH_CORR_INLINE float widen(half_bits value) {
  // Exponent and fraction move up by 13 bits; the bias grows from 15 to 127.  A subnormal half is
  // its integer times 2^-24, exact in float32.
  const uint32_t magnitude = value.bits & 0x7fffu;
  const uint32_t sign = uint32_t(value.bits & 0x8000u) << 16;
  const uint32_t normal = (magnitude << 13) + ((127u - 15u) << 23);
  const uint32_t special = (magnitude << 13) | 0x7f800000u;
  const uint32_t subnormal = bits_of(float(int32_t(magnitude)) * 0x1p-24f);
  uint32_t bits = magnitude >= 0x7c00u ? special : normal;
  bits = magnitude < 0x0400u ? subnormal : bits;
  return float_of(bits | sign);
}

// A vector's worth of numbers, widened to T.
template <class T, class S>
TORCH_CORR_INLINE Vector<T> load_wide(const S* p) {
  if constexpr (sizeof(S) == sizeof(T)) {
    return load(p);
  } else {
    Vector<T> v;
    for (int i = 0; i < kLanes<T>; i++) v[i] = widen(p[i]);
    return v;
  }
}

// The same with lanes outside the mask zero; their memory is not touched.  Where there are such
// instructions: kLaneMasks.
typedef uint16_t LaneMask;
template <class T, class S>
Vector<T> load_lanes(const S* p, LaneMask lanes);
#ifdef __AVX512F__
constexpr bool kLaneMasks = true;
TORCH_CORR_INLINE Vector<float> widen_lanes(__m256i numbers, half_bits) {
  return _mm512_cvtph_ps(numbers);
}
TORCH_CORR_INLINE Vector<float> widen_lanes(__m256i numbers, bfloat_bits) {
  return (Vector<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(numbers), 16);
}
template <>
TORCH_CORR_INLINE Vector<float> load_wide<float, half_bits>(const half_bits* p) {
  return widen_lanes(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), half_bits{});
}
template <>
TORCH_CORR_INLINE Vector<float> load_wide<float, bfloat_bits>(const bfloat_bits* p) {
  return widen_lanes(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), bfloat_bits{});
}
template <>
TORCH_CORR_INLINE Vector<float> load_lanes<float, float>(const float* p, LaneMask lanes) {
  return _mm512_maskz_loadu_ps(lanes, p);
}
template <>
TORCH_CORR_INLINE Vector<double> load_lanes<double, double>(const double* p, LaneMask lanes) {
  return _mm512_maskz_loadu_pd(__mmask8(lanes), p);
}
template <>
TORCH_CORR_INLINE Vector<float> load_lanes<float, half_bits>(const half_bits* p, LaneMask lanes) {
  return widen_lanes(_mm256_maskz_loadu_epi16(lanes, p), half_bits{});
}
template <>
TORCH_CORR_INLINE Vector<float> load_lanes<float, bfloat_bits>(const bfloat_bits* p, LaneMask lanes) {
  return widen_lanes(_mm256_maskz_loadu_epi16(lanes, p), bfloat_bits{});
}
TORCH_CORR_INLINE Vector<float> every_other(Vector<float> low, Vector<float> high) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  return _mm512_permutex2var_ps(low, even, high);
}
TORCH_CORR_INLINE Vector<double> every_other(Vector<double> low, Vector<double> high) {
  return _mm512_permutex2var_pd(low, _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14), high);
}
// p[0], p[2], ...: a vector's worth, and nothing read past the last of them.
template <class T, class S>
TORCH_CORR_INLINE Vector<T> load_every_other(const S* p) {
  constexpr int L = kLanes<T>;
  const LaneMask but_last = LaneMask((1u << (L - 1)) - 1);
  return every_other(load_wide<T>(p), load_lanes<T>(p + L, but_last));
}
#else
constexpr bool kLaneMasks = false;
#endif

template <class S, class T>
struct Narrow;
template <class T>
struct Narrow<T, T> {
  static TORCH_CORR_INLINE T of(T value) { return value; }
};
template <>
struct Narrow<bfloat_bits, float> {
  static TORCH_CORR_INLINE bfloat_bits of(float value) {  // to nearest, ties to even
    const uint32_t bits = bits_of(value);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const uint32_t quiet = (bits >> 16) | 0x40u;
    return {uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded)};
  }
};
template <>
struct Narrow<half_bits, float> {
  static TORCH_CORR_INLINE half_bits of(float value) {  // to nearest, ties to even
    const uint32_t bits = bits_of(value);
    const uint32_t magnitude = bits & 0x7fffffffu;
    const uint32_t sign = (bits >> 16) & 0x8000u;
    // Rounding may carry into the exponent, up to infinity: all by one integer addition.
    const uint32_t normal =
        (magnitude - ((127u - 15u) << 23) + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
    // Below 2^-14 halves are multiples of 2^-24, the last bit of a float32 in [0.5, 1).
    const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
    const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    uint32_t result = magnitude < 0x38800000u ? subnormal : normal;
    result = magnitude >= 0x47800000u ? special : result;  // 2^16 and up
    return {uint16_t(result | sign)};
  }
};

// The first n lanes of a vector, n <= kLanes, narrowed to S.
template <class S, class T>
TORCH_CORR_INLINE void store_narrow(S* p, Vector<T> v, int n) {
  if constexpr (sizeof(S) == sizeof(T)) {
    if (n == kLanes<T>) return store(p, v);
    return store_first(p, v, n);
  } else {
    for (int i = 0; i < n; i++) p[i] = Narrow<S, T>::of(v[i]);
  }
}
#ifdef __AVX512F__
template <>
TORCH_CORR_INLINE void store_narrow<half_bits, float>(half_bits* p, Vector<float> v, int n) {
  const __m256i halves = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  _mm256_mask_storeu_epi16(p, __mmask16((1u << n) - 1), halves);
}
template <>
TORCH_CORR_INLINE void store_narrow<bfloat_bits, float>(bfloat_bits* p, Vector<float> v, int n) {
  typedef Simd<float>::mask Bits;
  const Bits bits = (Bits)v;
  const Bits rounded = bits + 0x7fff + ((bits >> 16) & 1);
  const Bits result = v == v ? rounded : bits | 0x400000;  // a NaN stays one
  _mm256_mask_storeu_epi16(p, __mmask16((1u << n) - 1),
                           _mm512_cvtepi32_epi16(_mm512_srli_epi32((__m512i)result, 16)));
}
#endif

template <class S>
struct Accumulation {
  typedef float type;
};
template <>
struct Accumulation<double> {
  typedef double type;
};

template <class T>
TORCH_CORR_INLINE T* aligned(char*& memory, int64_t count) {
  T* result = reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory) + 63) & ~uintptr_t(63));
  memory = reinterpret_cast<char*>(result + count);
  return result;
}

// Calls work(begin, end, thread) over chunks of [0, total), in any order, on up to `threads`
// threads.  Chunks go to whichever thread is free: other programs may be running.
template <class Work>
inline void parallel(int64_t total, int64_t chunk, int threads, const Work& work) {
  const int64_t chunks = (total + chunk - 1) / chunk;
#ifdef _OPENMP
  if (threads > 1 && chunks > 1) {
    const int used = int(least<int64_t>(threads, chunks));
#pragma omp parallel for schedule(dynamic, 1) num_threads(used)
    for (int64_t i = 0; i < chunks; i++)
      work(i * chunk, least(total, (i + 1) * chunk), omp_get_thread_num());
    return;
  }
#endif
  for (int64_t i = 0; i < chunks; i++) work(i * chunk, least(total, (i + 1) * chunk), 0);
}

}  // namespace TORCH_CORR_ISA
}  // namespace torch_corr
