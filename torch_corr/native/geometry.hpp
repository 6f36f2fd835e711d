// The sizes of one correlation, checked once; every other file takes them as facts.
#pragma once

#include <cstdint>

namespace torch_corr {

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

// Arguments as they come from outside, nothing assumed of them.
struct Sizes {
  int64_t batch, in_channels, height, width;
  int64_t out_channels, kernel_h, kernel_w;
  int64_t stride_h, stride_w;
  int64_t pad_top, pad_bottom, pad_left, pad_right;
  int64_t dilation_h, dilation_w;
  int64_t groups;
};

// Throws std::invalid_argument, saying what is wrong, unless the sizes make a correlation
// whose every index and element count fits in 64 bits with room to spare.
Geometry checked_geometry(const Sizes& sizes);

}  // namespace torch_corr
