// Operands of the two micro-kernels of a correlation.
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
  const LaneMask* masks;     // [vector][tap column]: lanes inside the image; for a short kernel only
};

// Where the sums go: `rows` rows of `cols` numbers.
template <class T>
struct OutputTile {
  T* data;
  int64_t pitch;
  int rows, cols;
  bool accumulate;  // add to the numbers that are there
  T initial;        // else the sums start with this number
};

}  // namespace TORCH_CORR_ISA
}  // namespace torch_corr
