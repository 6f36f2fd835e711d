#include "isa.hpp"

#include <stdexcept>

namespace torch_corr {

#ifdef TORCH_CORR_X86
namespace avx512 {
extern const Engines engines;
}
namespace avx2 {
extern const Engines engines;
}
#endif
namespace baseline {
extern const Engines engines;
}

std::vector<const Engines*> available_engines() {
  std::vector<const Engines*> found;
#ifdef TORCH_CORR_X86
  // These ask the operating system too whether it saves the wide registers.
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    found.push_back(&avx512::engines);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&avx2::engines);
#endif
  found.push_back(&baseline::engines);
  return found;
}

const Engines& engines_named(const std::string& name) {
  static const std::vector<const Engines*> found = available_engines();
  if (name.empty()) return *found.front();
  std::string names;
  for (const Engines* engines : found) {
    if (name == engines->name) return *engines;
    names += names.empty() ? engines->name : std::string(", ") + engines->name;
  }
  throw std::invalid_argument("no instruction set '" + name + "' on this machine; it has " + names);
}

}  // namespace torch_corr
