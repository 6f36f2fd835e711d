#include "huge_pages.hpp"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace torch_corr {

void advise_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t{2} << 20;  // of x86-64, and of AArch64 with pages of 4 KiB
  constexpr int64_t kSmallest = int64_t{4} << 20;  // with less, the call costs more than it saves
  if (bytes < kSmallest) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) & ~(kPage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + uintptr_t(bytes)) & ~(kPage - 1);
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace torch_corr
