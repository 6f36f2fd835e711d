#include "scans.hpp"

#include <cmath>

namespace torch_corr {
namespace {

template <class T>
bool collect(const Planes& planes, const T* least, const std::vector<uint8_t>& flags, int64_t most,
             std::vector<int64_t>& found) {
  const int64_t blocks = planes.blocks;
  for (int64_t i = 0; i < int64_t(flags.size()); i++) {
    if (!flags[size_t(i)]) continue;
    const int64_t plane = i / blocks, first = i % blocks * kScanBlock;
    const int64_t stop = first + kScanBlock < planes.pixels ? first + kScanBlock : planes.pixels;
    for (int64_t at = plane * planes.pixels + first; at < plane * planes.pixels + stop; at++) {
      if (std::fabs(static_cast<const T*>(planes.values)[at]) >= least[plane]) continue;
      if (int64_t(found.size()) == most) return false;
      found.push_back(at);
    }
  }
  return true;
}

}  // namespace

void norms(const Engines& engines, const Planes& planes, Dtype dtype, double* result, int threads) {
  const int64_t blocks = planes.blocks;
  std::vector<double> sums(size_t(planes.count * blocks));
  engines.sum_squares(planes, dtype, sums.data(), threads);
  for (int64_t plane = 0; plane < planes.count; plane++) {
    double total = 0;
    for (int64_t i = 0; i < blocks; i++) total += sums[size_t(plane * blocks + i)];
    result[plane] = std::sqrt(total);
  }
}

bool below(const Engines& engines, const Planes& planes, Dtype dtype, const void* least, int64_t most,
           std::vector<int64_t>& found, int threads) {
  std::vector<uint8_t> flags(size_t(planes.count * planes.blocks));
  engines.flag_below(planes, dtype, least, flags.data(), threads);
  return dtype == Dtype::float64
             ? collect(planes, static_cast<const double*>(least), flags, most, found)
             : collect(planes, static_cast<const float*>(least), flags, most, found);
}

}  // namespace torch_corr
