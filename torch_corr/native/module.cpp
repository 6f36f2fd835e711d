// The Python face: three maps on addresses.
//
// Nothing is read or written unless the sizes make a correlation and each operand's element count
// is the one they imply, so the caller vouches for no more than "this many numbers of this dtype,
// dense and aligned, live at this address".
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <optional>
#include <stdexcept>
#include <string>

#include "isa.hpp"
#include "maps.hpp"
#include "scans.hpp"

namespace nb = nanobind;

namespace {

using namespace torch_corr;

struct Operand {
  const char* name;
  uintptr_t address;
  int64_t elements, expected;
};

void check_operand(const Operand& operand, uintptr_t alignment) {
  if (operand.elements != operand.expected)
    throw std::invalid_argument(std::string(operand.name) + " has " + std::to_string(operand.elements) +
                                " elements, the sizes imply " + std::to_string(operand.expected));
  if (operand.elements == 0) return;
  if (operand.address == 0) throw std::invalid_argument(std::string(operand.name) + " has no address");
  if (operand.address % alignment)
    throw std::invalid_argument(std::string(operand.name) + " is not aligned to its dtype");
}

uintptr_t alignment_of(Dtype dtype) {
  return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2;
}

void check_threads(int threads) {
  if (threads < 1 || threads > 4096)
    throw std::invalid_argument("threads=" + std::to_string(threads) + " is outside 1..4096");
}

using Map = void (*)(const KernelTable&, const Geometry&, Dtype, Layout, const Operands&, int);
using SizeArray = std::array<int64_t, 16>;
enum class Role { input, weight, output };

Geometry geometry_of(const SizeArray& s) {
  return checked_geometry({s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10], s[11], s[12],
                           s[13], s[14], s[15]});
}

// (address, elements) of the two operands, the result and the bias, then the sizes.
template <Map map, Role first, Role second, Role result>
void call(uintptr_t first_address, int64_t first_elements, uintptr_t second_address,
          int64_t second_elements, uintptr_t result_address, int64_t result_elements,
          uintptr_t bias_address, int64_t bias_elements, const SizeArray& sizes, int dtype,
          bool channels_last, int threads, const std::string& isa) {
  if (dtype < 0 || dtype > int(Dtype::bfloat16))
    throw std::invalid_argument("unknown dtype code " + std::to_string(dtype));
  check_threads(threads);
  const KernelTable& kernels = find_kernels(isa);
  const Geometry geometry = geometry_of(sizes);
  const auto expected = [&](Role role) {
    return role == Role::input    ? geometry.input_elements()
           : role == Role::weight ? geometry.weight_elements()
                                  : geometry.output_elements();
  };
  static constexpr const char* kNames[] = {"input", "weight", "output"};
  const Dtype code = Dtype(dtype);
  const uintptr_t alignment = alignment_of(code);
  check_operand({kNames[int(first)], first_address, first_elements, expected(first)}, alignment);
  check_operand({kNames[int(second)], second_address, second_elements, expected(second)}, alignment);
  check_operand({kNames[int(result)], result_address, result_elements, expected(result)}, alignment);
  const int64_t channels = result == Role::output ? geometry.groups * geometry.group_out : 0;
  if (bias_elements) check_operand({"bias", bias_address, bias_elements, channels}, alignment);
  map(kernels, geometry, code, channels_last ? Layout::channels_last : Layout::contiguous,
      {reinterpret_cast<const void*>(first_address), reinterpret_cast<const void*>(second_address),
       bias_elements ? reinterpret_cast<const void*>(bias_address) : nullptr,
       reinterpret_cast<void*>(result_address)},
      threads);
}

void check_floats(int dtype) {
  if (dtype != int(Dtype::float32) && dtype != int(Dtype::float64))
    throw std::invalid_argument("dtype code " + std::to_string(dtype) + " is neither float32 nor float64");
}

// (address, elements) of the two operands of a map in float32 or float64, then its sizes.
MapCall checked_call(int map, uintptr_t first_address, int64_t first_elements, uintptr_t second_address,
                     int64_t second_elements, const SizeArray& sizes, int dtype) {
  if (map < 0 || map > int(MapName::grad_weight))
    throw std::invalid_argument("unknown map code " + std::to_string(map));
  check_floats(dtype);
  const Geometry geometry = geometry_of(sizes);
  const MapCall call = map_call(geometry, MapName(map), Dtype(dtype),
                                reinterpret_cast<const void*>(first_address),
                                reinterpret_cast<const void*>(second_address));
  const uintptr_t alignment = alignment_of(Dtype(dtype));
  check_operand({"first operand", first_address, first_elements, call.first.count * call.first.pixels},
                alignment);
  check_operand(
      {"second operand", second_address, second_elements, call.second.count * call.second.pixels},
      alignment);
  return call;
}

void call_error_bounds(int map, uintptr_t first_address, int64_t first_elements, uintptr_t second_address,
                       int64_t second_elements, uintptr_t bounds, int64_t planes, double factor,
                       double smallest, double largest, double most,
                       const SizeArray& sizes, int dtype, int threads,
                       const std::string& isa) {
  check_threads(threads);
  const MapCall call = checked_call(map, first_address, first_elements, second_address, second_elements,
                                    sizes, dtype);
  check_operand({"bounds", bounds, planes, call.result.count}, alignof(double));
  error_bounds(find_kernels(isa), call, factor, {smallest, largest, most},
               reinterpret_cast<double*>(bounds), threads);
}

void call_results_at(int map, uintptr_t first_address, int64_t first_elements, uintptr_t second_address,
                     int64_t second_elements, uintptr_t points, uintptr_t sums, int64_t count,
                     const SizeArray& sizes, int dtype, int threads) {
  check_threads(threads);
  const MapCall call = checked_call(map, first_address, first_elements, second_address, second_elements,
                                    sizes, dtype);
  check_operand({"points", points, count, count}, alignof(int64_t));
  check_operand({"sums", sums, count, count}, alignof(double));
  const int64_t* indices = reinterpret_cast<const int64_t*>(points);
  for (int64_t i = 0; i < count; i++)
    if (indices[i] < 0 || indices[i] >= call.result.count * call.result.pixels)
      throw std::invalid_argument("point " + std::to_string(indices[i]) + " is not in the result");
  results_at(call, indices, count, reinterpret_cast<double*>(sums), threads);
}

std::optional<std::vector<int64_t>> call_below(uintptr_t address, int64_t elements, uintptr_t bounds,
                                               int64_t planes, double factor, double tiny, int64_t most,
                                               int dtype, int threads, const std::string& isa) {
  check_threads(threads);
  check_floats(dtype);
  if (planes < 1 || elements < 1 || elements % planes)
    throw std::invalid_argument(std::to_string(elements) + " elements are not " +
                                std::to_string(planes) + " planes");
  check_operand({"planes", address, elements, elements}, alignment_of(Dtype(dtype)));
  check_operand({"bounds", bounds, planes, planes}, alignof(double));
  const Planes scanned = planes_of(reinterpret_cast<const void*>(address), planes, elements / planes);
  std::vector<int64_t> found;
  if (!below(find_kernels(isa), scanned, Dtype(dtype), reinterpret_cast<const double*>(bounds), factor,
             tiny, most, found, threads))
    return std::nullopt;
  return found;
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const KernelTable* kernels : available_kernels()) names.push_back(kernels->name);
  return names;
}

bool has_openmp() {
#ifdef _OPENMP
  return true;
#else
  return false;
#endif
}

}  // namespace

NB_MODULE(_compiled, m) {
  m.doc() =
      "Compiled correlation kernels on raw addresses.  Each map takes (address, elements) of its two "
      "operands, of its result and of a bias (0 elements: none), then sizes, dtype, channels_last, threads, "
      "isa ('' for the best).  Sizes are batch, in_channels, height, width, out_channels, kernel_h, "
      "kernel_w, stride_h, stride_w, pad_top, pad_bottom, pad_left, pad_right, dilation_h, dilation_w, "
      "groups.";
  const auto unlocked = nb::call_guard<nb::gil_scoped_release>();
  m.def("forward", &call<forward, Role::input, Role::weight, Role::output>, unlocked);
  m.def("grad_input", &call<grad_input, Role::output, Role::weight, Role::input>, unlocked);
  m.def("grad_weight", &call<grad_weight, Role::input, Role::output, Role::weight>, unlocked);
  m.def("error_bounds", &call_error_bounds, unlocked,
        "For each plane of a map's result a factor times the sum of products of norms: (map, address and "
        "elements of two operands, address and number of float64 bounds, factor, smallest and largest "
        "modulus that is safe to square, most that a bound may be, sizes, dtype, threads, isa).");
  m.def("results_at", &call_results_at, unlocked,
        "Some results of a map in float64: (map, address and elements of two operands, address of int64 "
        "indices, address of float64 sums, how many, sizes, dtype, threads).");
  m.def("below", &call_below, unlocked,
        "Indices of numbers whose modulus is below a factor times the bound of their plane, or below tiny "
        "where that is not 0; None if there are more than most: (address, elements, address of float64 "
        "bounds, planes, factor, tiny, most, dtype, threads, isa).");
  m.def("isas", &isas, "Instruction sets that this machine can run, best first.");
  m.def("last_scratch", &last_scratch, "Bytes that each thread of the last map took for itself.");
  m.def("has_openmp", &has_openmp, "Whether the kernels can use more than one thread.");
}
