// Compiled once per instruction set; see CMakeLists.txt.
#include "correlate.hpp"
#include "reduce.hpp"
#include "scan.hpp"

#define TORCH_CORR_STRING_(x) #x
#define TORCH_CORR_STRING(x) TORCH_CORR_STRING_(x)

namespace torch_corr {
namespace TORCH_CORR_ISA {

extern const Engines engines;
const Engines engines = {TORCH_CORR_STRING(TORCH_CORR_ISA), TORCH_CORR_VECTOR_BYTES,
                         TORCH_CORR_TILE_VECTORS, kStripVectors, kStripTaps, kStripRows,
                         correlate, reduce_taps, sum_squares, flag_below};

}  // namespace TORCH_CORR_ISA
}  // namespace torch_corr
