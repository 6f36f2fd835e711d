// The kernel tables that this machine can run.
#pragma once

#include <string>
#include <vector>

#include "engines.hpp"

namespace torch_corr {

// Best first; "baseline" is always the last.
std::vector<const KernelTable*> available_kernels();

// By name, or the best when the name is empty.  Throws std::invalid_argument for any other name.
const KernelTable& find_kernels(const std::string& name);

inline constexpr auto& available_engines = available_kernels;  // the names in module.cpp
inline constexpr auto& engines_named = find_kernels;

}  // namespace torch_corr
