// The three maps of the trilinear form, as work for the two engines.
#pragma once

#include "engines.hpp"

namespace torch_corr {

// Pointers to dense arrays of the geometry's sizes.  Threads is at least 1.  Throws std::bad_alloc.
void forward(const Engines&, const Geometry&, Dtype, const void* input, const void* weight,
             void* output, int threads);
void grad_input(const Engines&, const Geometry&, Dtype, const void* output, const void* weight,
                void* input, int threads);
void grad_weight(const Engines&, const Geometry&, Dtype, const void* input, const void* output,
                 void* weight, int threads);

// Bytes that each thread of the last map took for itself, of whichever thread called it.
int64_t last_scratch();

}  // namespace torch_corr
