/* For `python -m benchmarks.scan --guard`, by LD_PRELOAD: once enabled, each larger block of memory
   ends at a page that must not be touched, and a freed block must not be touched at all. What writes
   (1), or reads or writes (2), beyond its memory then dies at once. Linux, one thread. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { kPage = 4096, kSmallest = 2048, kNoMappings = 77 };
static const size_t kSpace = (size_t)1 << 42;
static char* space; /* addresses, never used twice */
static size_t used;
static uint32_t* pages_at; /* by page of the space: length of the block that begins in it */
static int enabled, live;

void guard_enable(int on) {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  if (!space) {
    space = mmap(0, kSpace, PROT_NONE, flags, -1, 0);
    pages_at = mmap(0, kSpace / kPage * sizeof(uint32_t), PROT_READ | PROT_WRITE, flags, -1, 0);
  }
  enabled = on;
}

static void* guarded(size_t alignment, size_t size) {
  if (alignment < 16) alignment = 16;
  const size_t pages = (size + alignment + kPage - 1) / kPage;
  char* first = space + used;
  used += (pages + 1) * kPage;
  /* Linux allows 65,530 mappings; a block takes up to three. */
  if (++live > 15000 || mprotect(first, pages * kPage, PROT_READ | PROT_WRITE)) _exit(kNoMappings);
  if (enabled == 1) mprotect(first + pages * kPage, kPage, PROT_READ);
  char* block = (char*)(((uintptr_t)first + pages * kPage - size) & ~(uintptr_t)(alignment - 1));
  pages_at[(block - space) / kPage] = (uint32_t)(first + pages * kPage - block + kPage - 1) / kPage;
  return block;
}

static int is_guarded(const void* block) {
  return space && (const char*)block >= space && (const char*)block < space + kSpace;
}

static void* next(const char* name) { return dlsym(RTLD_NEXT, name); }

void* malloc(size_t size) {
  static void* (*real)(size_t);
  if (!real) real = (void* (*)(size_t))next("malloc");
  return enabled && size >= kSmallest ? guarded(16, size) : real(size);
}

void free(void* block) {
  static void (*real)(void*);
  if (!real) real = (void (*)(void*))next("free");
  if (!is_guarded(block)) {
    real(block);
    return;
  }
  live--;
  const size_t page = ((char*)block - space) / kPage;
  const size_t length = (pages_at[page] + (size_t)1) * kPage; /* and the page behind it */
  madvise(space + page * kPage, length, MADV_DONTNEED);
  mprotect(space + page * kPage, length, PROT_NONE); /* or Linux runs out of mappings */
}

int posix_memalign(void** block, size_t alignment, size_t size) {
  static int (*real)(void**, size_t, size_t);
  if (!real) real = (int (*)(void**, size_t, size_t))next("posix_memalign");
  if (!enabled || size < 256) return real(block, alignment, size);
  *block = guarded(alignment, size);
  return 0;
}

void* realloc(void* block, size_t size) {
  static void* (*real)(void*, size_t);
  if (!real) real = (void* (*)(void*, size_t))next("realloc");
  if (!is_guarded(block)) return real(block, size);
  const size_t page = ((char*)block - space) / kPage;
  const size_t held = space + (page + pages_at[page]) * (size_t)kPage - (char*)block;
  void* larger = guarded(16, size);
  memcpy(larger, block, held < size ? held : size);
  free(block);
  return larger;
}
