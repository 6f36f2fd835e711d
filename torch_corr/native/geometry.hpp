// The sizes of one correlation, checked once; all other files rely on them.
#pragma once

#include <cstdint>

namespace torch_corr {

// `_CODES` in algorithms/direct.py has the same codes.
enum class Dtype : int { float32 = 0, float64 = 1, float16 = 2, bfloat16 = 3 };

// One axis of a correlation: output m and tap t meet at input m * stride + t * dilation - padding.
struct Axis {
  int64_t input, output, kernel, stride, dilation, padding;
};

struct Geometry {
  int64_t batch, groups, group_in, group_out;
  Axis row, col;

  int64_t input_elements() const { return batch * groups * group_in * row.input * col.input; }
  int64_t output_elements() const { return batch * groups * group_out * row.output * col.output; }
  int64_t weight_elements() const { return groups * group_out * group_in * row.kernel * col.kernel; }
};

// Arguments as the caller passes them, not yet checked.
struct Sizes {
  int64_t batch, in_channels, height, width;
  int64_t out_channels, kernel_h, kernel_w;
  int64_t stride_h, stride_w;
  int64_t pad_top, pad_bottom, pad_left, pad_right;
  int64_t dilation_h, dilation_w;
  int64_t groups;
};

// Throws std::invalid_argument, which says what is wrong, unless the sizes make a correlation with
// all indices and element counts far below 2^63.
Geometry checked_geometry(const Sizes& sizes);

}  // namespace torch_corr
