// Half-precision numbers as stored, and their conversions from and to float32.
//
// Conversions are branch-free, so that loops over them become vector code on every target.  All are
// static and inlined: kernels for different instruction sets share this file (see kernels.hpp).
#pragma once

#include <cstdint>

#define TORCH_CORR_INLINE inline __attribute__((always_inline))

namespace torch_corr {

struct half_bits {
  uint16_t bits;
};
struct bfloat_bits {
  uint16_t bits;
};

static TORCH_CORR_INLINE uint32_t bits_of(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}
static TORCH_CORR_INLINE float float_of(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

// From the storage type to the accumulation type.
static TORCH_CORR_INLINE float widen(float value) { return value; }
static TORCH_CORR_INLINE double widen(double value) { return value; }
static TORCH_CORR_INLINE float widen(bfloat_bits value) { return float_of(uint32_t(value.bits) << 16); }
static TORCH_CORR_INLINE float widen(half_bits value) {
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

// To the storage type S, to nearest, ties to even.
template <class S>
struct Narrow {
  static TORCH_CORR_INLINE S of(S value) { return value; }
};
template <>
struct Narrow<bfloat_bits> {
  static TORCH_CORR_INLINE bfloat_bits of(float value) {
    const uint32_t bits = bits_of(value);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const uint32_t quiet = (bits >> 16) | 0x40u;
    return {uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded)};
  }
};
template <>
struct Narrow<half_bits> {
  static TORCH_CORR_INLINE half_bits of(float value) {
    const uint32_t bits = bits_of(value);
    const uint32_t magnitude = bits & 0x7fffffffu;
    const uint32_t sign = (bits >> 16) & 0x8000u;
    // Rounding may carry into the exponent, up to infinity: one integer addition does it all.
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

}  // namespace torch_corr
