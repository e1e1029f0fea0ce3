#include "mapped_file.h"

#include <cstdint>
#include <cstring>

#include "status.h"

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>
#else
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#endif

namespace pluralign {

#ifdef _WIN32

namespace {
struct Handle {
  HANDLE value = INVALID_HANDLE_VALUE;
  ~Handle() {
    if (value && value != INVALID_HANDLE_VALUE) CloseHandle(value);
  }
};

[[noreturn]] void fail(const std::string& path, const char* doing, DWORD code) {
  if (code == ERROR_FILE_NOT_FOUND || code == ERROR_PATH_NOT_FOUND) throw Error("NOT_FOUND", path + ": no such file");
  throw Error("IO", path + ": cannot " + doing + " (Windows error " + std::to_string(code) + ")");
}
}  // namespace

MappedFile::MappedFile(const std::string& path) {
  std::wstring wide(path.size() + 1, L'\0');
  const int length = MultiByteToWideChar(CP_UTF8, 0, path.data(), int(path.size()), wide.data(), int(wide.size()));
  wide.resize(size_t(length > 0 ? length : 0));
  Handle file, mapping;
  file.value = CreateFileW(wide.c_str(), GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_DELETE, nullptr, OPEN_EXISTING,
                           FILE_ATTRIBUTE_NORMAL, nullptr);
  if (file.value == INVALID_HANDLE_VALUE) fail(path, "open", GetLastError());
  if (GetFileType(file.value) != FILE_TYPE_DISK) throw Error("BAD_FILE", path + ": not a regular file");
  LARGE_INTEGER size;
  if (!GetFileSizeEx(file.value, &size)) fail(path, "read the size", GetLastError());
  if (size.QuadPart == 0) throw Error("BAD_FILE", path + ": the file is empty");
  if (uint64_t(size.QuadPart) > SIZE_MAX) throw Error("UNSUPPORTED", path + ": too large to map on this machine");
  mapping.value = CreateFileMappingW(file.value, nullptr, PAGE_READONLY, 0, 0, nullptr);
  if (!mapping.value) fail(path, "map", GetLastError());
  // The view keeps the mapping and the file alive after their handles are closed.
  data_ = static_cast<const std::byte*>(MapViewOfFile(mapping.value, FILE_MAP_READ, 0, 0, 0));
  if (!data_) fail(path, "map", GetLastError());
  size_ = size_t(size.QuadPart);
}

MappedFile::~MappedFile() {
  if (data_) UnmapViewOfFile(data_);
}

void forget_pages(const std::byte*, size_t) {}

#else

namespace {
struct Descriptor {
  int value = -1;
  ~Descriptor() {
    if (value >= 0) ::close(value);
  }
};

[[noreturn]] void fail(const std::string& path, const char* doing, int code) {
  if (code == ENOENT || code == ENOTDIR) throw Error("NOT_FOUND", path + ": no such file");
  throw Error("IO", path + ": cannot " + doing + ": " + std::strerror(code));
}
}  // namespace

MappedFile::MappedFile(const std::string& path) {
  Descriptor file;
  // O_NONBLOCK: a named pipe must be refused, not waited for.
  file.value = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file.value < 0) fail(path, "open", errno);
  struct stat info;
  if (::fstat(file.value, &info) != 0) fail(path, "read the size", errno);
  if (!S_ISREG(info.st_mode)) throw Error("BAD_FILE", path + ": not a regular file");
  if (info.st_size == 0) throw Error("BAD_FILE", path + ": the file is empty");
  if (uint64_t(info.st_size) > SIZE_MAX) throw Error("UNSUPPORTED", path + ": too large to map on this machine");
  void* view = ::mmap(nullptr, size_t(info.st_size), PROT_READ, MAP_PRIVATE, file.value, 0);
  if (view == MAP_FAILED) fail(path, "map", errno);
  data_ = static_cast<const std::byte*>(view);
  size_ = size_t(info.st_size);
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(const_cast<std::byte*>(data_), size_);
}

void forget_pages(const std::byte* data, size_t bytes) {
  const auto page = uintptr_t(::sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page, end = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

#endif

}  // namespace pluralign
