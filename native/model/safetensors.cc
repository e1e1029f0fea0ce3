#include "safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>
#include <utility>

#include "base/json.h"
#include "base/mapped_file.h"
#include "base/status.h"

namespace pluralign {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian");

struct Type {
  const char* name;
  unsigned bits;
  DType dtype;
};

constexpr Type kTypes[] = {
    {"F64", 64, DType::f64},           {"F32", 32, DType::f32},
    {"F16", 16, DType::f16},           {"BF16", 16, DType::bf16},
    {"I64", 64, DType::i64},           {"I32", 32, DType::i32},
    {"I16", 16, DType::other},         {"I8", 8, DType::other},
    {"U64", 64, DType::other},         {"U32", 32, DType::other},
    {"U16", 16, DType::other},         {"U8", 8, DType::u8},
    {"BOOL", 8, DType::other},         {"C64", 64, DType::other},
    {"F8_E4M3", 8, DType::other},      {"F8_E5M2", 8, DType::other},
    {"F8_E8M0", 8, DType::other},      {"F8_E4M3FNUZ", 8, DType::other},
    {"F8_E5M2FNUZ", 8, DType::other},  {"F6_E2M3", 6, DType::other},
    {"F6_E3M2", 6, DType::other},      {"F4", 4, DType::other},
};

const Type* find_type(std::string_view name) {
  for (const Type& t : kTypes)
    if (name == t.name) return &t;
  return nullptr;
}

struct Entry {
  std::string name;
  const Type* type = nullptr;
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;  // bytes from the start of the data section
};

[[noreturn]] void bad(const std::string& path, const std::string& message) { throw Error("BAD_FILE", path + ": " + message); }

std::string show(const std::vector<uint64_t>& values) {
  std::string out;
  for (uint64_t v : values) out.append(out.empty() ? "[" : ", ").append(std::to_string(v));
  return out.append(out.empty() ? "[]" : "]");
}

std::string show(const std::vector<int64_t>& shape) { return show(std::vector<uint64_t>(shape.begin(), shape.end())); }

// a * b, or false where it does not fit.
bool multiply(uint64_t& a, uint64_t b) {
  if (b != 0 && a > UINT64_MAX / b) return false;
  a *= b;
  return true;
}

// The body of one tensor's object, after its key. Throws JsonError.
void read_entry(JsonReader& json, Entry& entry) {
  bool has_shape = false, has_offsets = false;
  std::string key;
  const std::string who = "tensor " + quoted(entry.name);
  json.begin_object();
  while (json.next_key(key)) {
    if (key == "dtype") {
      if (entry.type) json.fail(who + " has \"dtype\" twice");
      const std::string name = json.string();
      entry.type = find_type(name);
      if (!entry.type) json.fail(who + " has the unknown dtype " + quoted(name));
    } else if (key == "shape") {
      if (std::exchange(has_shape, true)) json.fail(who + " has \"shape\" twice");
      json.begin_array();
      while (json.next_item()) {
        const uint64_t size = json.whole_number();
        if (entry.shape.size() == SafetensorsFile::kMaxRank)
          json.fail(who + " has more than " + std::to_string(SafetensorsFile::kMaxRank) + " dimensions");
        if (size > SafetensorsFile::kMaxDimension)
          json.fail(who + " has a dimension of " + std::to_string(size) + ", more than 2^53");
        entry.shape.push_back(int64_t(size));
      }
    } else if (key == "data_offsets") {
      if (std::exchange(has_offsets, true)) json.fail(who + " has \"data_offsets\" twice");
      json.begin_array();
      uint64_t value[2];
      size_t count = 0;
      while (json.next_item()) {
        if (count == 2) json.fail(who + " has more than two data_offsets");
        value[count++] = json.whole_number();
      }
      if (count != 2) json.fail(who + " needs two data_offsets, has " + std::to_string(count));
      entry.begin = value[0], entry.end = value[1];
    } else {
      json.fail(who + " has the unknown key " + quoted(key) + "; known: dtype, shape, data_offsets");
    }
  }
  const char* missing = !entry.type ? "dtype" : !has_shape ? "shape" : !has_offsets ? "data_offsets" : nullptr;
  if (missing) json.fail(who + " has no \"" + missing + "\"");
}

void check_size(const std::string& path, const Entry& e, uint64_t data_size) {
  const std::string who = "tensor " + quoted(e.name);
  const std::string offsets = show(std::vector<uint64_t>{e.begin, e.end});
  if (e.begin > e.end) bad(path, who + " has data_offsets " + offsets + ", which end before they begin");
  if (e.end > data_size)
    bad(path, who + " has data_offsets " + offsets + " beyond the " + std::to_string(data_size) +
                  " bytes of data in the file; it is truncated or damaged, fetch it again");
  // Zero dimensions are left out of the overflow check's product so that [0, 2^50, 2^50] is refused as well: strides
  // are products of the others.
  uint64_t bits = e.type->bits;
  bool fits = true, empty = false;
  for (int64_t d : e.shape) {
    if (d == 0) empty = true;
    else fits = fits && multiply(bits, uint64_t(d));
  }
  if (!fits || bits > uint64_t(INT64_MAX)) bad(path, who + " has shape " + show(e.shape) + ", whose size overflows");
  if (empty) bits = 0;
  if (bits % 8 != 0) bad(path, who + " of shape " + show(e.shape) + " and dtype " + e.type->name + " is no whole number of bytes");
  if (bits / 8 != e.end - e.begin)
    bad(path, who + " of shape " + show(e.shape) + " and dtype " + e.type->name + " needs " + std::to_string(bits / 8) +
                  " bytes, its data_offsets " + offsets + " hold " + std::to_string(e.end - e.begin));
}

}  // namespace

int64_t TensorView::elements() const {
  int64_t n = 1;
  for (int64_t d : shape)
    if (d == 0) return 0;
  for (int64_t d : shape) n *= d;
  return n;
}

SafetensorsFile::SafetensorsFile(const std::string& path) : path_(path) {}
SafetensorsFile::~SafetensorsFile() = default;

std::shared_ptr<SafetensorsFile> SafetensorsFile::open(const std::string& path) {
  std::shared_ptr<SafetensorsFile> self(new SafetensorsFile(path));
  self->file_ = std::make_unique<MappedFile>(path);
  self->read(self->file_->data(), self->file_->size());
  return self;
}

std::shared_ptr<SafetensorsFile> SafetensorsFile::parse(const std::byte* data, size_t size, const std::string& path) {
  std::shared_ptr<SafetensorsFile> self(new SafetensorsFile(path));
  self->read(data, size);
  return self;
}

void SafetensorsFile::read(const std::byte* data, size_t size) {
  if (size < 8) bad(path_, "only " + std::to_string(size) + " bytes; a safetensors file starts with a length of 8 bytes");
  uint64_t header;
  std::memcpy(&header, data, 8);
  if (header > kMaxHeader)
    bad(path_, "header length " + std::to_string(header) + " is over the limit of " + std::to_string(kMaxHeader) +
                   "; this is no safetensors file");
  if (header > size - 8)
    bad(path_, "header length " + std::to_string(header) + ", but only " + std::to_string(size - 8) +
                   " bytes follow; the file is truncated, fetch it again");
  if (header < 2) bad(path_, "header length " + std::to_string(header) + " is too small for JSON");
  const std::string_view text(reinterpret_cast<const char*>(data) + 8, size_t(header));
  if (text[0] != '{') bad(path_, "the header does not start with '{'; this is no safetensors file");

  std::vector<Entry> entries;
  JsonReader json(text);
  try {
    bool has_metadata = false;
    std::string key;
    json.begin_object();
    while (json.next_key(key)) {
      if (key != "__metadata__") {
        read_entry(json, entries.emplace_back(Entry{key, nullptr, {}, 0, 0}));
        continue;
      }
      if (std::exchange(has_metadata, true)) json.fail("duplicate key \"__metadata__\"");
      json.begin_object();
      while (json.next_key(key)) {
        if (!metadata_.emplace(key, json.string()).second) json.fail("__metadata__ has " + quoted(key) + " twice");
      }
    }
    json.end();
  } catch (const JsonError& e) {
    bad(path_, "header, byte " + std::to_string(e.offset()) + ": " + e.what());
  }

  const std::byte* base = data + 8 + header;
  const uint64_t data_size = size - 8 - header;
  for (const Entry& e : entries) check_size(path_, e, data_size);
  std::stable_sort(entries.begin(), entries.end(),
                   [](const Entry& a, const Entry& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
  uint64_t at = 0;
  for (const Entry& e : entries) {
    if (e.begin != at)
      bad(path_, "tensor " + quoted(e.name) + " starts at byte " + std::to_string(e.begin) + " of the data, which " +
                     (e.begin < at ? "overlaps the tensor before it" : "leaves a hole behind the tensor before it") +
                     " (expected " + std::to_string(at) + ")");
    at = e.end;
  }
  if (at != data_size)
    bad(path_, std::to_string(data_size - at) + " bytes at the end of the file belong to no tensor");

  tensors_.reserve(entries.size());
  for (Entry& e : entries)
    tensors_.push_back({std::move(e.name), e.type->dtype, e.type->name, std::move(e.shape), base + e.begin, size_t(e.end - e.begin)});
  by_name_.resize(tensors_.size());
  std::iota(by_name_.begin(), by_name_.end(), size_t(0));
  std::sort(by_name_.begin(), by_name_.end(), [&](size_t a, size_t b) { return tensors_[a].name < tensors_[b].name; });
  for (size_t i = 1; i < by_name_.size(); ++i)
    if (tensors_[by_name_[i]].name == tensors_[by_name_[i - 1]].name)
      bad(path_, "duplicate key " + quoted(tensors_[by_name_[i]].name));
}

const TensorView* SafetensorsFile::find(std::string_view name) const {
  const auto at = std::lower_bound(by_name_.begin(), by_name_.end(), name,
                                   [&](size_t i, std::string_view wanted) { return tensors_[i].name < wanted; });
  return at != by_name_.end() && tensors_[*at].name == name ? &tensors_[*at] : nullptr;
}

void check_float(const TensorView& t) {
  if (t.dtype != DType::f32 && t.dtype != DType::bf16 && t.dtype != DType::f16 && t.dtype != DType::f64)
    throw Error("UNSUPPORTED", "tensor " + quoted(t.name) + " has dtype " + t.dtype_name + "; expected F32, BF16, F16 or F64");
}

namespace {
template <class T, class Convert>
void copy_as(const TensorView& t, float* out, Convert convert) {
  for (size_t i = 0, n = t.bytes / sizeof(T); i < n; ++i) {
    T value;
    std::memcpy(&value, t.data + i * sizeof(T), sizeof(T));
    out[i] = convert(value);
  }
}
}  // namespace

void copy_to_float(const TensorView& t, float* out) {
  check_float(t);
  if (t.bytes == 0) return;
  if (t.dtype == DType::f32) std::memcpy(out, t.data, t.bytes);
  else if (t.dtype == DType::bf16) copy_as<bf16>(t, out, [](bf16 x) { return to_float(x); });
  else if (t.dtype == DType::f16) copy_as<f16>(t, out, [](f16 x) { return to_float(x); });
  else copy_as<double>(t, out, [](double x) { return float(x); });
}

}  // namespace pluralign
