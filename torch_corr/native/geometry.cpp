#include "geometry.hpp"

#include <stdexcept>
#include <string>

namespace torch_corr {
namespace {

// Largest size, stride, dilation or padding: sums of a few of them stay far below 2^63.  `LARGEST_STEP` in
// native/__init__.py is the same number.
constexpr int64_t kLargest = int64_t{1} << 48;
static_assert(kLargest == int64_t{1} << 48, "change LARGEST_STEP in native/__init__.py too");

void check_range(const char* name, int64_t value, int64_t least) {
  if (value < least || value > kLargest)
    throw std::invalid_argument(std::string(name) + "=" + std::to_string(value) + " is outside " +
                                std::to_string(least) + "..2^48");
}

void check_count(const char* name, std::initializer_list<int64_t> sizes) {
  // Empty operands are legal, whatever the other sizes.
  for (int64_t size : sizes)
    if (size == 0) return;
  int64_t product = 1;
  for (int64_t size : sizes) {
    if (__builtin_mul_overflow(product, size, &product) || product > (INT64_MAX >> 4))
      throw std::invalid_argument(std::string(name) + " has more elements than memory can hold");
  }
}

Axis checked_axis(const char* name, int64_t input, int64_t kernel, int64_t stride, int64_t dilation,
                  int64_t before, int64_t after) {
  const std::string axis(name);
  check_range((axis + " size").c_str(), input, 0);
  check_range((axis + " kernel").c_str(), kernel, 1);
  check_range((axis + " stride").c_str(), stride, 1);
  check_range((axis + " dilation").c_str(), dilation, 1);
  check_range((axis + " padding").c_str(), before, 0);
  check_range((axis + " padding").c_str(), after, 0);
  int64_t reach;  // from the first tap to the last
  if (__builtin_mul_overflow(dilation, kernel - 1, &reach) || reach > kLargest)
    throw std::invalid_argument(axis + " kernel spans more than 2^48");
  const int64_t room = input + before + after - reach;
  if (room < 1)
    throw std::invalid_argument(axis + " kernel spans " + std::to_string(reach + 1) +
                                ", the padded input has " + std::to_string(input + before + after));
  Axis result{input, (room - 1) / stride + 1, kernel, stride, dilation, before};
  // With one output or one tap the step is never used; 1 gives the fewest phases.
  if (result.output == 1) result.stride = 1;
  if (result.kernel == 1) result.dilation = 1;
  return result;
}

}  // namespace

Geometry checked_geometry(const Sizes& s) {
  check_range("batch", s.batch, 0);
  check_range("in_channels", s.in_channels, 0);
  check_range("out_channels", s.out_channels, 0);
  check_range("groups", s.groups, 1);
  if (s.in_channels % s.groups || s.out_channels % s.groups)
    throw std::invalid_argument("channels " + std::to_string(s.in_channels) + " -> " +
                                std::to_string(s.out_channels) + " are not divisible by groups=" +
                                std::to_string(s.groups));
  Geometry g{};
  g.batch = s.batch;
  g.groups = s.groups;
  g.group_in = s.in_channels / s.groups;
  g.group_out = s.out_channels / s.groups;
  g.row = checked_axis("row", s.height, s.kernel_h, s.stride_h, s.dilation_h, s.pad_top, s.pad_bottom);
  g.col = checked_axis("column", s.width, s.kernel_w, s.stride_w, s.dilation_w, s.pad_left, s.pad_right);
  check_count("input", {s.batch, s.in_channels, s.height, s.width});
  check_count("weight", {s.out_channels, g.group_in, s.kernel_h, s.kernel_w});
  check_count("output", {s.batch, s.out_channels, g.row.output, g.col.output});
  return g;
}

}  // namespace torch_corr
