// The kernel tables that this machine can run.
#pragma once

#include <string>
#include <vector>

#include "kernels.hpp"

namespace torch_corr {

// Best first; "baseline" is always the last.
std::vector<const KernelTable*> available_kernels();

// By name, or the best when the name is empty.  Throws std::invalid_argument for any other name.
const KernelTable& find_kernels(const std::string& name);

}  // namespace torch_corr
