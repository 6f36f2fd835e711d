// The computations of the check of transforms, for operands and results in float32 or float64.
#pragma once

#include <vector>

#include "kernels.hpp"

namespace torch_corr {

// In the order of MAPS in torch_corr/request.py.
enum class MapName : int { forward = 0, grad_input = 1, grad_weight = 2 };

// A map with its operands and its result, whose numbers are not read.
struct MapCall {
  Geometry geometry;
  MapName map;
  Dtype dtype;
  Planes first, second, result;
};

MapCall map_call(const Geometry&, MapName, Dtype, const void* first, const void* second);
Planes planes_of(const void* values, int64_t count, int64_t pixels);

struct BoundLimits {
  double smallest, largest;  // the moduli that a norm may be of, apart from zero; smallest may be 0
  double most;               // a bound that is not below it becomes infinite
};

// For each plane of the result, `factor` times the sum of the products of the 2-norms of the planes
// that it is computed from.
void error_bounds(const KernelTable&, const MapCall&, double factor, const BoundLimits&, double* bounds,
                  int threads);

// Indices of the numbers whose modulus is below factor * bound of their plane, or below `tiny` where
// the bound is not 0; NaN among them.  Nothing and false where there are more than `most`.
bool below(const KernelTable&, const Planes&, Dtype, const double* bounds, double factor, double tiny,
           int64_t most, std::vector<int64_t>& found, int threads);

// Results of a map by its definition, summed in double precision.
//
// points: indices into the result, which is dense.
void results_at(const MapCall&, const int64_t* points, int64_t count, double* sums, int threads);

}  // namespace torch_corr
