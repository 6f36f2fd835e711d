#include "isa.hpp"

#include <stdexcept>

namespace torch_corr {

#ifdef TORCH_CORR_X86
namespace avx512 {
extern const KernelTable kernels;
}
namespace avx2 {
extern const KernelTable kernels;
}
#endif
namespace baseline {
extern const KernelTable kernels;
}

std::vector<const KernelTable*> available_kernels() {
  std::vector<const KernelTable*> found;
#ifdef TORCH_CORR_X86
  // This also asks whether the operating system saves the wide registers.
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    found.push_back(&avx512::kernels);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&avx2::kernels);
#endif
  found.push_back(&baseline::kernels);
  return found;
}

const KernelTable& find_kernels(const std::string& name) {
  static const std::vector<const KernelTable*> found = available_kernels();
  if (name.empty()) return *found.front();
  std::string names;
  for (const KernelTable* kernels : found) {
    if (name == kernels->name) return *kernels;
    names += names.empty() ? kernels->name : std::string(", ") + kernels->name;
  }
  throw std::invalid_argument("no instruction set '" + name + "' on this machine; it has " + names);
}

}  // namespace torch_corr
