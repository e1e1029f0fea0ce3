// A whole file, read-only, in memory by mapping. A file that another process cuts short while it is mapped faults on
// access (SIGBUS), which is why everything here writes to a temporary name and renames: a rename leaves the mapped file.
#pragma once
#include <cstddef>
#include <string>

namespace pluralign {

class MappedFile {
 public:
  // `path` is UTF-8. Throws NOT_FOUND, BAD_FILE (no regular file, or empty) or IO.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::byte* data() const { return data_; }  // aligned to a page
  size_t size() const { return size_; }

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Whole pages of a mapping inside [data, data + bytes) that no longer count as this process's memory until they are read
// again, from the file. For what was copied elsewhere.
void forget_pages(const std::byte* data, size_t bytes);

}  // namespace pluralign
