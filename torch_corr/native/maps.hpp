// The three maps, planned for the kernels of one instruction set.
#pragma once

#include "kernels.hpp"

namespace torch_corr {

// The axes of images in memory, outermost first.  Filters are contiguous in both layouts.
enum class Layout {
  contiguous,    // batch, channel, row, column
  channels_last  // m, batch, row, column, group: channel g * m + i is number i of group g
};

// Pointers to dense arrays of the geometry's sizes.
struct Operands {
  const void *first, *second;
  const void* bias;  // of each output channel, for a forward; or null
  void* result;
};

// The maps (input, weight) -> output, (output, weight) -> input and (input, output) -> weight.  Threads is
// at least 1.  They throw std::bad_alloc, and std::invalid_argument in channels_last for a layer that is
// not depthwise, has fewer channels than a vector has lanes, or a kernel wider than kLastSpan.
void forward(const KernelTable&, const Geometry&, Dtype, Layout, const Operands&, int threads);
void grad_input(const KernelTable&, const Geometry&, Dtype, Layout, const Operands&, int threads);
void grad_weight(const KernelTable&, const Geometry&, Dtype, Layout, const Operands&, int threads);

// Scratch bytes of each thread in the last map of the process.
int64_t last_scratch();

}  // namespace torch_corr
