// What libstdc++ and libgcc of a newer system call and glibc 2.28 does not have. Linked into release binaries only, hidden.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/stat.h>

// 2.32: libstdc++ skips atomic reference counts where it is set. Node always has several threads.
char __libc_single_threaded = 0;

// 2.36: std::random_device.
uint32_t arc4random(void) {
  uint32_t value;
  if (getrandom(&value, sizeof value, 0) != (ssize_t)sizeof value) abort();
  return value;
}

// 2.38: headers turn the names of C into these, which also read 0b numbers.
#define ISOC23(type, name)                                               \
  extern type name##_before(const char*, char**, int) __asm__(#name);    \
  type __isoc23_##name(const char* text, char** end, int base) {         \
    return name##_before(text, end, base);                               \
  }
ISOC23(long, strtol)
ISOC23(unsigned long, strtoul)
ISOC23(long long, strtoll)
ISOC23(unsigned long long, strtoull)

// 2.33: inline functions over these before.
#if __GLIBC_PREREQ(2, 33)
extern int __fxstat64(int version, int file, struct stat64* result);
extern int __xstat64(int version, const char* path, struct stat64* result);
extern int __lxstat64(int version, const char* path, struct stat64* result);
#if defined(__x86_64__)
#define STAT_VERSION 1
#else
#define STAT_VERSION 0
#endif
int fstat64(int file, struct stat64* result) { return __fxstat64(STAT_VERSION, file, result); }
int stat64(const char* path, struct stat64* result) { return __xstat64(STAT_VERSION, path, result); }
int lstat64(const char* path, struct stat64* result) { return __lxstat64(STAT_VERSION, path, result); }
extern int __fxstat(int version, int file, struct stat* result);
extern int __xstat(int version, const char* path, struct stat* result);
extern int __lxstat(int version, const char* path, struct stat* result);
int fstat(int file, struct stat* result) { return __fxstat(STAT_VERSION, file, result); }
int lstat(const char* path, struct stat* result) { return __lxstat(STAT_VERSION, path, result); }
int stat(const char* path, struct stat* result) { return __xstat(STAT_VERSION, path, result); }
#endif

#if __GLIBC_PREREQ(2, 35)
// 2.35: the unwinder asks for the module of an address and does not fall back to dl_iterate_phdr, which knows it too.
struct search {
  uintptr_t address;
  struct dl_find_object* result;
};

static int visit(struct dl_phdr_info* info, size_t size, void* data) {
  struct search* search = data;
  uintptr_t start = UINTPTR_MAX, end = 0;
  const void* eh_frame = NULL;
  int inside = 0;
  (void)size;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr)* header = &info->dlpi_phdr[i];
    const uintptr_t low = info->dlpi_addr + header->p_vaddr, high = low + header->p_memsz;
    if (header->p_type == PT_GNU_EH_FRAME) eh_frame = (const void*)low;
    if (header->p_type != PT_LOAD) continue;
    if (low < start) start = low;
    if (high > end) end = high;
    if (search->address >= low && search->address < high) inside = 1;
  }
  if (!inside || !eh_frame) return 0;
  search->result->dlfo_flags = 0;
  search->result->dlfo_map_start = (void*)start;
  search->result->dlfo_map_end = (void*)end;
  search->result->dlfo_link_map = NULL;
  search->result->dlfo_eh_frame = (void*)eh_frame;
  return 1;
}

int _dl_find_object(void* address, struct dl_find_object* result) {
  struct search search = {(uintptr_t)address, result};
  return dl_iterate_phdr(visit, &search) == 1 ? 0 : -1;
}
#endif
