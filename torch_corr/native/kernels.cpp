// The kernel table of one instruction set; CMakeLists.txt compiles this file once for each.
#include "channels_last_weight.hpp"
#include "correlate.hpp"
#include "reduce.hpp"
#include "scan.hpp"

#define TORCH_CORR_STRING_(x) #x
#define TORCH_CORR_STRING(x) TORCH_CORR_STRING_(x)

namespace torch_corr {
namespace TORCH_CORR_ISA {

extern const KernelTable kernels;
const KernelTable kernels = {TORCH_CORR_STRING(TORCH_CORR_ISA), TORCH_CORR_VECTOR_BYTES,
                             TORCH_CORR_TILE_VECTORS, kShortVectors, kShortTapRows, kShortRows,
                             correlate, reduce_taps, correlate_depthwise,
                             reduce_depthwise, sum_squares, flag_below};

}  // namespace TORCH_CORR_ISA
}  // namespace torch_corr
