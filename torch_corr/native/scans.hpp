// What the check of transforms asks of planes of numbers, float32 or float64.
#pragma once

#include <vector>

#include "engines.hpp"

namespace torch_corr {

// The 2-norm of each plane, summed in double precision.
void norms(const Engines&, const Planes&, Dtype, double* result, int threads);

// Indices of the numbers that are not at least their plane's `least` in modulus, NaN among them;
// nothing and false where there are more than `most`.
bool below(const Engines&, const Planes&, Dtype, const void* least, int64_t most,
           std::vector<int64_t>& found, int threads);

}  // namespace torch_corr
