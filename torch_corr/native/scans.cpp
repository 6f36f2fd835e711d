#include "scans.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace torch_corr {
namespace {

// The planes of both operands whose products are summed in one plane of the result.
struct PlanePairs {
  int64_t first, first_step, second, second_step, count;
};

PlanePairs pairs_of(const MapCall& call, int64_t plane) {
  const Geometry& g = call.geometry;
  const int64_t in = g.groups * g.group_in, out = g.groups * g.group_out;
  if (call.map == MapName::forward) {
    const int64_t image = plane / out, channel = plane % out, group = channel / g.group_out;
    return {image * in + group * g.group_in, 1, channel * g.group_in, 1, g.group_in};
  }
  if (call.map == MapName::grad_input) {
    const int64_t image = plane / in, channel = plane % in, group = channel / g.group_in;
    return {image * out + group * g.group_out, 1,
            group * g.group_out * g.group_in + channel % g.group_in, g.group_in, g.group_out};
  }
  const int64_t channel = plane / g.group_in, group = channel / g.group_out;
  return {group * g.group_in + plane % g.group_in, in, channel, out, g.batch};
}

// Along one axis, the index into the first operand that each index into the second meets.
struct Meetings {
  int64_t start, step, divisor, size, count;

  // -1 outside the operand, and where the stride passes over it.
  int64_t first_index(int64_t second_index) const {
    int64_t index = start + step * second_index;
    if (index < 0) return -1;
    if (divisor > 1) {
      if (index % divisor) return -1;
      index /= divisor;
    }
    return index < size ? index : -1;
  }
};

Meetings meetings_of(const Axis& axis, MapName map, int64_t position) {
  switch (map) {
    case MapName::forward:
      return {position * axis.stride - axis.padding, axis.dilation, 1, axis.input, axis.kernel};
    case MapName::grad_input:
      return {position + axis.padding, -axis.dilation, axis.stride, axis.output, axis.kernel};
    default:
      return {position * axis.dilation - axis.padding, axis.stride, 1, axis.input, axis.output};
  }
}

template <class T>
const T* plane_at(const Planes& planes, int64_t index) {
  return static_cast<const T*>(planes.values) + index * planes.pixels;
}

template <class T>
double sum_at(const MapCall& call, int64_t point) {
  const Geometry& g = call.geometry;
  const int64_t columns = call.map == MapName::forward      ? g.col.output
                          : call.map == MapName::grad_input ? g.col.input
                                                            : g.col.kernel;
  const int64_t pixel = point % call.result.pixels;
  const PlanePairs pairs = pairs_of(call, point / call.result.pixels);
  const Meetings rows = meetings_of(g.row, call.map, pixel / columns);
  const Meetings cols = meetings_of(g.col, call.map, pixel % columns);
  double sum = 0;
  for (int64_t pair = 0; pair < pairs.count; pair++) {
    const T* first = plane_at<T>(call.first, pairs.first + pair * pairs.first_step);
    const T* second = plane_at<T>(call.second, pairs.second + pair * pairs.second_step);
    for (int64_t i = 0; i < rows.count; i++) {
      const int64_t row = rows.first_index(i);
      if (row < 0) continue;
      for (int64_t j = 0; j < cols.count; j++) {
        const int64_t column = cols.first_index(j);
        if (column >= 0)
          sum += double(first[row * cols.size + column]) * double(second[i * cols.count + j]);
      }
    }
  }
  return sum;
}

std::vector<double> norms(const KernelTable& kernels, const Planes& planes, Dtype dtype,
                          const BoundLimits& limits, int threads) {
  std::vector<double> sums(size_t(planes.count * planes.blocks)), result(size_t(planes.count));
  kernels.sum_squares(planes, dtype, limits.smallest, limits.largest, sums.data(), threads);
  for (int64_t plane = 0; plane < planes.count; plane++) {
    const double* own = sums.data() + plane * planes.blocks;
    result[size_t(plane)] = std::sqrt(std::accumulate(own, own + planes.blocks, 0.0));
  }
  return result;
}

template <class T>
bool below_as(const KernelTable& kernels, const Planes& planes, Dtype dtype, const double* bounds,
              double factor, double tiny, int64_t most, std::vector<int64_t>& found, int threads) {
  std::vector<T> least(size_t(planes.count));
  for (size_t i = 0; i < least.size(); i++)
    least[i] = bounds[i] == 0 ? T(0) : T(std::max(factor * bounds[i], tiny));
  std::vector<uint8_t> flags(size_t(planes.count * planes.blocks));
  kernels.flag_below(planes, dtype, least.data(), flags.data(), threads);
  const int64_t blocks = planes.blocks;
  for (int64_t i = 0; i < int64_t(flags.size()); i++) {
    if (!flags[size_t(i)]) continue;
    const int64_t plane = i / blocks, first = i % blocks * kScanBlock;
    const int64_t stop = std::min(first + kScanBlock, planes.pixels);
    for (int64_t at = plane * planes.pixels + first; at < plane * planes.pixels + stop; at++) {
      if (std::fabs(static_cast<const T*>(planes.values)[at]) >= least[size_t(plane)]) continue;
      if (int64_t(found.size()) >= most) return false;
      found.push_back(at);
    }
  }
  return true;
}

}  // namespace

Planes planes_of(const void* values, int64_t count, int64_t pixels) {
  return {values, count, pixels, (pixels + kScanBlock - 1) / kScanBlock};
}

MapCall map_call(const Geometry& g, MapName map, Dtype dtype, const void* first, const void* second) {
  const int64_t filters = g.groups * g.group_out;
  const auto input = [&](const void* values) {
    return planes_of(values, g.batch * g.groups * g.group_in, g.row.input * g.col.input);
  };
  const auto weight = [&](const void* values) {
    return planes_of(values, filters * g.group_in, g.row.kernel * g.col.kernel);
  };
  const auto output = [&](const void* values) {
    return planes_of(values, g.batch * filters, g.row.output * g.col.output);
  };
  switch (map) {
    case MapName::forward:
      return {g, map, dtype, input(first), weight(second), output(nullptr)};
    case MapName::grad_input:
      return {g, map, dtype, output(first), weight(second), input(nullptr)};
    default:
      return {g, map, dtype, input(first), output(second), weight(nullptr)};
  }
}

void error_bounds(const KernelTable& kernels, const MapCall& call, double factor,
                  const BoundLimits& limits, double* bounds, int threads) {
  const std::vector<double> first = norms(kernels, call.first, call.dtype, limits, threads);
  const std::vector<double> second = norms(kernels, call.second, call.dtype, limits, threads);
  for (int64_t plane = 0; plane < call.result.count; plane++) {
    const PlanePairs pairs = pairs_of(call, plane);
    double sum = 0;
    for (int64_t i = 0; i < pairs.count; i++)
      sum += first[size_t(pairs.first + i * pairs.first_step)] *
             second[size_t(pairs.second + i * pairs.second_step)];
    bounds[plane] = factor * sum < limits.most ? factor * sum : std::numeric_limits<double>::infinity();
  }
}

bool below(const KernelTable& kernels, const Planes& planes, Dtype dtype, const double* bounds,
           double factor, double tiny, int64_t most, std::vector<int64_t>& found, int threads) {
  const auto run = dtype == Dtype::float64 ? below_as<double> : below_as<float>;
  return run(kernels, planes, dtype, bounds, factor, tiny, most, found, threads);
}

void results_at(const MapCall& call, const int64_t* points, int64_t count, double* sums, int threads) {
  if (count == 0) return;
  const PlanePairs pairs = pairs_of(call, 0);
  const int64_t terms = pairs.count * meetings_of(call.geometry.row, call.map, 0).count *
                        meetings_of(call.geometry.col, call.map, 0).count;
  if (count * terms < kScanAlone) threads = 1;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < count; i++)
    sums[i] = call.dtype == Dtype::float64 ? sum_at<double>(call, points[i])
                                           : sum_at<float>(call, points[i]);
}

}  // namespace torch_corr
