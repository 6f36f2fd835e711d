// The Python face: three maps on addresses.
//
// Nothing is read or written unless the sizes make a correlation and each operand's element count
// is the one they imply, so the caller vouches for no more than "this many numbers of this dtype,
// dense and aligned, live at this address".
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

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

using Map = void (*)(const Engines&, const Geometry&, Dtype, const void*, const void*, void*, int);
enum class Role { input, weight, output };

// (address, elements) of the two operands and the result, then the sizes.
template <Map map, Role first, Role second, Role result>
void call(uintptr_t first_address, int64_t first_elements, uintptr_t second_address,
          int64_t second_elements, uintptr_t result_address, int64_t result_elements, int64_t batch,
          int64_t in_channels, int64_t height, int64_t width, int64_t out_channels, int64_t kernel_h,
          int64_t kernel_w, int64_t stride_h, int64_t stride_w, int64_t pad_top, int64_t pad_bottom,
          int64_t pad_left, int64_t pad_right, int64_t dilation_h, int64_t dilation_w, int64_t groups,
          int dtype, int threads, const std::string& isa) {
  if (dtype < 0 || dtype > int(Dtype::bfloat16))
    throw std::invalid_argument("unknown dtype code " + std::to_string(dtype));
  check_threads(threads);
  const Engines& engines = engines_named(isa);
  const Geometry geometry = checked_geometry(
      {batch, in_channels, height, width, out_channels, kernel_h, kernel_w, stride_h, stride_w, pad_top,
       pad_bottom, pad_left, pad_right, dilation_h, dilation_w, groups});
  const auto expected = [&](Role role) {
    return role == Role::input    ? geometry.input_elements()
           : role == Role::weight ? geometry.weight_elements()
                                  : geometry.output_elements();
  };
  static constexpr const char* kNames[] = {"input", "weight", "output"};
  const Dtype code = Dtype(dtype);
  check_operand({kNames[int(first)], first_address, first_elements, expected(first)}, alignment_of(code));
  check_operand({kNames[int(second)], second_address, second_elements, expected(second)},
                alignment_of(code));
  check_operand({kNames[int(result)], result_address, result_elements, expected(result)},
                alignment_of(code));
  map(engines, geometry, code, reinterpret_cast<const void*>(first_address),
      reinterpret_cast<const void*>(second_address), reinterpret_cast<void*>(result_address), threads);
}

Planes checked_planes(uintptr_t address, int64_t elements, int64_t count, int dtype) {
  if (dtype != int(Dtype::float32) && dtype != int(Dtype::float64))
    throw std::invalid_argument("planes of dtype code " + std::to_string(dtype) +
                                ", which is neither float32 nor float64");
  if (count < 1 || elements < 1 || elements % count)
    throw std::invalid_argument(std::to_string(elements) + " elements are not " +
                                std::to_string(count) + " planes");
  check_operand({"planes", address, elements, elements}, alignment_of(Dtype(dtype)));
  const int64_t pixels = elements / count;
  return {reinterpret_cast<const void*>(address), count, pixels, (pixels + kScanBlock - 1) / kScanBlock};
}

void call_norms(uintptr_t address, int64_t elements, uintptr_t result, int64_t planes, int dtype,
                int threads, const std::string& isa) {
  check_threads(threads);
  const Planes checked = checked_planes(address, elements, planes, dtype);
  check_operand({"result", result, planes, planes}, alignof(double));
  norms(engines_named(isa), checked, Dtype(dtype), reinterpret_cast<double*>(result), threads);
}

std::optional<std::vector<int64_t>> call_below(uintptr_t address, int64_t elements, uintptr_t least,
                                               int64_t planes, int64_t most, int dtype, int threads,
                                               const std::string& isa) {
  check_threads(threads);
  const Planes checked = checked_planes(address, elements, planes, dtype);
  check_operand({"least", least, planes, planes}, alignment_of(Dtype(dtype)));
  std::vector<int64_t> found;
  if (!below(engines_named(isa), checked, Dtype(dtype), reinterpret_cast<const void*>(least), most,
             found, threads))
    return std::nullopt;
  return found;
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Engines* engines : available_engines()) names.push_back(engines->name);
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
      "operands and of its result, then batch, in_channels, height, width, out_channels, kernel_h, "
      "kernel_w, stride_h, stride_w, pad_top, pad_bottom, pad_left, pad_right, dilation_h, dilation_w, "
      "groups, dtype, threads, isa ('' for the best).";
  const auto unlocked = nb::call_guard<nb::gil_scoped_release>();
  m.def("forward", &call<forward, Role::input, Role::weight, Role::output>, unlocked);
  m.def("grad_input", &call<grad_input, Role::output, Role::weight, Role::input>, unlocked);
  m.def("grad_weight", &call<grad_weight, Role::input, Role::output, Role::weight>, unlocked);
  m.def("norms", &call_norms, unlocked,
        "2-norms of planes: (address, elements, address of float64 results, planes, dtype, threads, isa).");
  m.def("below", &call_below, unlocked,
        "Indices of numbers whose modulus is not at least that of their plane, None if more than most: "
        "(address, elements, address of one least number each, planes, most, dtype, threads, isa).");
  m.def("isas", &isas, "Instruction sets that this machine can run, best first.");
  m.def("last_scratch", &last_scratch, "Bytes that each thread of the last map took for itself.");
  m.def("has_openmp", &has_openmp, "Whether the kernels can use more than one thread.");
}
