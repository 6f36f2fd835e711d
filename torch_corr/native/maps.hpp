// The three maps, planned for the kernels of one instruction set.
#pragma once

#include "kernels.hpp"

namespace torch_corr {

// Pointers to dense arrays of the geometry's sizes.  Threads is at min 1.  Throws std::bad_alloc.
void forward(const KernelTable&, const Geometry&, Dtype, const void* input, const void* weight,
             void* output, int threads);
void grad_input(const KernelTable&, const Geometry&, Dtype, const void* output, const void* weight,
                void* input, int threads);
void grad_weight(const KernelTable&, const Geometry&, Dtype, const void* input, const void* output,
                 void* weight, int threads);

// Scratch bytes of each thread in the last map of the process.
int64_t last_scratch();

}  // namespace torch_corr
