// Fuzz target of the safetensors reader: any bytes are either refused with BAD_FILE or give tensors that tile the data.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "base/status.h"
#include "model/safetensors.h"

using namespace pluralign;

namespace {

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "broken promise: %s\n", what);
  std::abort();
}

void check(const uint8_t* bytes, size_t size) {
  // A copy of exactly this size: the address sanitizer sees any read past its end.
  std::unique_ptr<std::byte[]> data(new std::byte[size]);
  if (size) std::memcpy(data.get(), bytes, size);
  std::shared_ptr<SafetensorsFile> file;
  try {
    file = SafetensorsFile::parse(data.get(), size, "fuzz.safetensors");
  } catch (const Error& e) {
    require(std::strcmp(e.code(), "BAD_FILE") == 0, "the code is BAD_FILE");
    require(std::strncmp(e.what(), "fuzz.safetensors: ", 18) == 0, "the message names the file");
    require(std::strlen(e.what()) < 2000, "the message is short");
    return;
  }
  uint64_t header;
  std::memcpy(&header, data.get(), 8);
  const std::byte* at = data.get() + 8 + header;
  for (const TensorView& t : file->tensors()) {
    require(t.data == at, "tensors follow each other");
    at += t.bytes;
    require(at <= data.get() + size, "tensors lie in the file");
    require(t.elements() >= 0, "the element count is sane");
    if (t.dtype != DType::other) require(size_t(t.elements()) * dtype_size(t.dtype) == t.bytes, "bytes fit the shape");
    require(file->find(t.name) == &t, "a tensor is found by its name");
    std::vector<float> out(t.bytes ? size_t(t.elements()) : 0);
    try {
      copy_to_float(t, out.data());
    } catch (const Error& e) {
      require(std::strcmp(e.code(), "UNSUPPORTED") == 0, "a type that is not converted is UNSUPPORTED");
    }
  }
  require(at == data.get() + size, "tensors fill the file");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  check(data, size);
  // A mutation seldom keeps the length in front right, so the same bytes again with the length that ends at the last brace.
  size_t end = size;
  while (end > 8 && data[end - 1] != '}') --end;
  if (end > 8) {
    std::vector<uint8_t> fixed(data, data + size);
    const uint64_t header = end - 8;
    std::memcpy(fixed.data(), &header, 8);
    check(fixed.data(), fixed.size());
  }
  return 0;
}
