// Vectors, scratch memory and threads, for one instruction set.
//
// Vectors are the compiler's own (GCC and Clang `vector_size`), so the same source serves x86-64,
// AArch64 and others.  Each instruction set has its own namespace, and nothing here uses templates of
// the standard library: kernels.hpp says why.
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

#include "half_precision.hpp"
#include "kernels.hpp"

#ifndef TORCH_CORR_ISA
#error "compile with -DTORCH_CORR_ISA=<namespace>"
#endif

// TORCH_CORR_TILE_VECTORS: vectors across the widest register tile, which has 4 rows.
#if defined(__AVX512F__)
#define TORCH_CORR_VECTOR_BYTES 64
#define TORCH_CORR_TILE_VECTORS 4  // 16 of 32 registers hold sums
#elif defined(__AVX2__)
#define TORCH_CORR_VECTOR_BYTES 32
#define TORCH_CORR_TILE_VECTORS 3  // 12 of 16 registers hold sums
#elif defined(__aarch64__)
#define TORCH_CORR_VECTOR_BYTES 16
#define TORCH_CORR_TILE_VECTORS 4
#else
#define TORCH_CORR_VECTOR_BYTES 16
#define TORCH_CORR_TILE_VECTORS 2
#endif

namespace torch_corr {
namespace TORCH_CORR_ISA {

template <class T>
struct Simd;
template <>
struct Simd<float> {
  typedef float vector __attribute__((vector_size(TORCH_CORR_VECTOR_BYTES)));
  typedef int32_t mask __attribute__((vector_size(TORCH_CORR_VECTOR_BYTES)));
};
template <>
struct Simd<double> {
  typedef double vector __attribute__((vector_size(TORCH_CORR_VECTOR_BYTES)));
  typedef int64_t mask __attribute__((vector_size(TORCH_CORR_VECTOR_BYTES)));
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

// Keeps a vector that is used several times in a register.  Without this, GCC 12 reads it from memory
// for every use, and most such reads touch two cache lines.
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

// Stores the first n lanes, n < kLanes, in pieces of 8, 4, 2 and 1: there is no call of memcpy, and
// every row takes the same branches.
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

// The first n lanes, n > 0; all of them where n is larger.
template <class T>
TORCH_CORR_INLINE Vector<T> load_up_to(const T* p, int n) {
  return n >= kLanes<T> ? load(p) : load_first(p, n);
}
template <class T>
TORCH_CORR_INLINE void store_up_to(T* p, Vector<T> v, int n) {
  if (n >= kLanes<T>)
    store(p, v);
  else
    store_first(p, v, n);
}

template <class A>
TORCH_CORR_INLINE A min(A a, A b) {
  return b < a ? b : a;
}
template <class A>
TORCH_CORR_INLINE A max(A a, A b) {
  return a < b ? b : a;
}
TORCH_CORR_INLINE int64_t ceil_div(int64_t a, int64_t b) {  // b > 0; rounds towards plus infinity
  if (b == 1) return a;  // the usual case, and division is slow
  return a >= 0 ? (a + b - 1) / b : -((-a) / b);
}

// Rows of a stride and a dilation: output rows `out_step` apart and tap rows `tap_step` apart meet the
// same image rows, `image_step` apart, so they form a dense correlation.
struct RowSteps {
  int64_t tap_step, out_step, image_step;
};
TORCH_CORR_INLINE RowSteps row_steps(int64_t stride, int64_t dilation) {
  int64_t gcd = stride, rest = dilation;
  while (rest) {
    const int64_t next = gcd % rest;
    gcd = rest;
    rest = next;
  }
  constexpr int64_t kBeyondImages = int64_t{1} << 50;  // from any row: sizes and padding are at most 2^48
  int64_t image_step;
  if (__builtin_mul_overflow(dilation / gcd, stride, &image_step) || image_step > kBeyondImages)
    image_step = kBeyondImages;
  return {stride / gcd, dilation / gcd, image_step};
}

// Tiles along the rows of one phase: in each block of `rows` * `spacing` outputs there are `spacing`
// interleaved tiles (or as many as there are outputs).
TORCH_CORR_INLINE int64_t row_tiles(const AxisPlan& axis, int rows, int64_t spacing) {
  const int64_t interleaved = min(spacing, axis.count);
  return ceil_div(axis.count, interleaved * rows) * interleaved;
}

// The first row of a tile.
TORCH_CORR_INLINE int64_t tile_row(const AxisPlan& axis, int rows, int64_t spacing, int64_t tile) {
  const int64_t interleaved = min(spacing, axis.count);
  if (interleaved == 1) return tile * rows;  // the usual case, and division is slow
  return tile / interleaved * interleaved * rows + tile % interleaved;
}

// Loads a vector of numbers and widens them to T.
template <class T, class S>
TORCH_CORR_INLINE Vector<T> load_widened(const S* p) {
  if constexpr (sizeof(S) == sizeof(T)) {
    return load(p);
  } else {
    Vector<T> v;
    for (int i = 0; i < kLanes<T>; i++) v[i] = widen(p[i]);
    return v;
  }
}

// The same, but lanes outside the mask are zero and their memory is not read.  Needs instructions
// with masks: kHasLaneMasks.
typedef uint16_t LaneMask;
template <class T, class S>
Vector<T> load_masked(const S* p, LaneMask lanes);
#ifdef __AVX512F__
constexpr bool kHasLaneMasks = true;
TORCH_CORR_INLINE Vector<float> widen_vector(__m256i numbers, half_bits) {
  return _mm512_cvtph_ps(numbers);
}
TORCH_CORR_INLINE Vector<float> widen_vector(__m256i numbers, bfloat_bits) {
  return (Vector<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(numbers), 16);
}
template <>
TORCH_CORR_INLINE Vector<float> load_widened<float, half_bits>(const half_bits* p) {
  return widen_vector(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), half_bits{});
}
template <>
TORCH_CORR_INLINE Vector<float> load_widened<float, bfloat_bits>(const bfloat_bits* p) {
  return widen_vector(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), bfloat_bits{});
}
template <>
TORCH_CORR_INLINE Vector<float> load_masked<float, float>(const float* p, LaneMask lanes) {
  return _mm512_maskz_loadu_ps(lanes, p);
}
template <>
TORCH_CORR_INLINE Vector<double> load_masked<double, double>(const double* p, LaneMask lanes) {
  return _mm512_maskz_loadu_pd(__mmask8(lanes), p);
}
template <>
TORCH_CORR_INLINE Vector<float> load_masked<float, half_bits>(const half_bits* p, LaneMask lanes) {
  return widen_vector(_mm256_maskz_loadu_epi16(lanes, p), half_bits{});
}
template <>
TORCH_CORR_INLINE Vector<float> load_masked<float, bfloat_bits>(const bfloat_bits* p, LaneMask lanes) {
  return widen_vector(_mm256_maskz_loadu_epi16(lanes, p), bfloat_bits{});
}
TORCH_CORR_INLINE Vector<float> every_other(Vector<float> low, Vector<float> high) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  return _mm512_permutex2var_ps(low, even, high);
}
TORCH_CORR_INLINE Vector<double> every_other(Vector<double> low, Vector<double> high) {
  return _mm512_permutex2var_pd(low, _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14), high);
}
// Loads a vector of p[0], p[2], ... and reads nothing past the last of them.
template <class T, class S>
TORCH_CORR_INLINE Vector<T> load_every_other(const S* p) {
  constexpr int L = kLanes<T>;
  const LaneMask all_but_last = LaneMask((1u << (L - 1)) - 1);
  return every_other(load_widened<T>(p), load_masked<T>(p + L, all_but_last));
}
#else
constexpr bool kHasLaneMasks = false;
#endif

// Narrows the first n lanes, n <= kLanes, to S and stores them.
template <class S, class T>
TORCH_CORR_INLINE void store_narrow(S* p, Vector<T> v, int n) {
  if constexpr (sizeof(S) == sizeof(T)) {
    store_up_to(p, v, n);
  } else {
    for (int i = 0; i < n; i++) p[i] = Narrow<S>::of(v[i]);
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

// Returns run(number) for a number of the storage type.
template <class Run>
inline auto with_storage_type(Dtype dtype, const Run& run) {
  switch (dtype) {
    case Dtype::float32:
      return run(float{});
    case Dtype::float64:
      return run(double{});
    case Dtype::float16:
      return run(half_bits{});
    default:
      return run(bfloat_bits{});
  }
}

// Arrays in one piece of scratch memory, each at the start of a cache line.  Without memory it only
// adds up their sizes.
class Arena {
 public:
  explicit Arena(char* memory) : memory_(memory) {}

  template <class T>
  TORCH_CORR_INLINE T* array(int64_t count) {
    T* const result = memory_ ? reinterpret_cast<T*>(memory_ + bytes_) : nullptr;
    bytes_ = (bytes_ + count * int64_t(sizeof(T)) + kCacheLine - 1) / kCacheLine * kCacheLine;
    return result;
  }

  int64_t bytes() const { return bytes_; }
  static char* allocate(int64_t bytes) {  // to be freed; null where there is not enough memory
    const int64_t whole = (bytes + kCacheLine - 1) / kCacheLine * kCacheLine;
    return static_cast<char*>(std::aligned_alloc(kCacheLine, size_t(whole)));
  }

 private:
  static constexpr int64_t kCacheLine = 64;
  char* memory_;
  int64_t bytes_ = 0;
};

// Bytes of a Worker's arrays, in whole pages, so that threads never share one.
template <class Worker, class... Arguments>
inline int64_t scratch_bytes(const Arguments&... arguments) {
  constexpr int64_t kPage = 4096;
  Arena arena(nullptr);
  Worker(arguments..., arena);
  return (arena.bytes() + kPage - 1) / kPage * kPage;
}

// How units of work are shared out: in chunks of units, on so many threads.
struct Schedule {
  int threads;
  int64_t chunk;
};

// `unit_work`: multiply-adds of one unit, more than 0.
TORCH_CORR_INLINE Schedule make_schedule(int64_t total, double unit_work, int threads) {
  constexpr double kThreadedWork = 2e5;  // with less, waking threads costs more than they save
  constexpr double kChunkWork = 1e5;     // with less, handing out a chunk costs more than its work
  constexpr int kChunksPerThread = 16;   // enough for an even load when other programs run
  if (double(total) * unit_work < kThreadedWork) threads = 1;
  int64_t chunk = (total + threads * kChunksPerThread - 1) / (threads * kChunksPerThread);
  const double smallest = kChunkWork / unit_work;
  if (double(chunk) < smallest) chunk = min(total, int64_t(smallest) + 1);
  return {threads, chunk};
}

// Calls work(begin, end, thread) for chunks of [0, total), in any order, on up to `threads` threads.
// Free threads take the next chunk, because other programs may delay some of them.
template <class Work>
inline void parallel(int64_t total, int64_t chunk, int threads, const Work& work) {
  const int64_t chunks = (total + chunk - 1) / chunk;
#ifdef _OPENMP
  if (threads > 1 && chunks > 1) {
    const int used = int(min<int64_t>(threads, chunks));
#pragma omp parallel for schedule(dynamic, 1) num_threads(used)
    for (int64_t i = 0; i < chunks; i++)
      work(i * chunk, min(total, (i + 1) * chunk), omp_get_thread_num());
    return;
  }
#endif
  for (int64_t i = 0; i < chunks; i++) work(i * chunk, min(total, (i + 1) * chunk), 0);
}

}  // namespace TORCH_CORR_ISA
}  // namespace torch_corr
