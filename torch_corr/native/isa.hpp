// The engines that this machine can run.
#pragma once

#include <string>
#include <vector>

#include "engines.hpp"

namespace torch_corr {

// Best first; "baseline" is always the last.
std::vector<const Engines*> available_engines();

// By name, or the best when the name is empty.  Throws std::invalid_argument for any other name.
const Engines& engines_named(const std::string& name);

}  // namespace torch_corr
