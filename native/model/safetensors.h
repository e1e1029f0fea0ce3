// Reader of safetensors files: u64 little-endian header length, JSON header, tensor data. Nothing is copied; the views
// point into the mapped file. A file that is accepted has been validated whole: see SafetensorsFile::parse.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"

namespace pluralign {

class MappedFile;

// One tensor, row-major. `data` is valid as long as the SafetensorsFile lives and need not be aligned for its type: the
// data section starts at 8 + header length, and only a writer that pads its header makes that a multiple of 8. Read
// through memcpy, or ask aligned() first.
struct TensorView {
  std::string name;
  DType dtype = DType::other;  // `other` where pluralign computes nothing with the type; dtype_name tells which
  std::string dtype_name;      // as in the file: F32, BF16 …
  std::vector<int64_t> shape;  // empty for a scalar
  const std::byte* data = nullptr;
  size_t bytes = 0;

  int64_t elements() const;
  bool aligned(size_t alignment) const { return reinterpret_cast<uintptr_t>(data) % alignment == 0; }
};

class SafetensorsFile {
 public:
  static constexpr uint64_t kMaxHeader = 100'000'000;      // bytes; the format's own limit
  static constexpr size_t kMaxRank = 32;
  static constexpr uint64_t kMaxDimension = uint64_t(1) << 53;  // exact as a JavaScript number

  // Maps the file read-only and validates it. `path` is UTF-8. Throws NOT_FOUND, IO, or BAD_FILE naming the file, the
  // tensor and what is wrong.
  static std::shared_ptr<SafetensorsFile> open(const std::string& path);

  // The same over a buffer that the caller keeps alive; `path` is for messages. Refused with BAD_FILE: a file shorter
  // than its header says; a header that is over kMaxHeader, does not start with a brace, is not UTF-8 or not JSON, has
  // duplicate or unknown keys; an unknown dtype; a shape over kMaxRank or whose size overflows; a byte count that is
  // not the shape's; offsets that overlap, leave a hole, run out of the file or leave bytes behind.
  static std::shared_ptr<SafetensorsFile> parse(const std::byte* data, size_t size, const std::string& path);

  ~SafetensorsFile();

  const TensorView* find(std::string_view name) const;  // nullptr where there is none
  const std::vector<TensorView>& tensors() const { return tensors_; }  // in the order of their data
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::string& path() const { return path_; }

 private:
  explicit SafetensorsFile(const std::string& path);
  void read(const std::byte* data, size_t size);

  std::string path_;
  std::unique_ptr<MappedFile> file_;
  std::vector<TensorView> tensors_;
  std::vector<size_t> by_name_;  // indices of tensors_, sorted by name
  std::map<std::string, std::string> metadata_;
};

// `elements()` float32 values into `out`, from F32, BF16, F16 and F64; other types throw UNSUPPORTED.
void copy_to_float(const TensorView& tensor, float* out);

// Throws UNSUPPORTED where copy_to_float would, so that a caller can ask before it allocates.
void check_float(const TensorView& tensor);

}  // namespace pluralign
