// Shapes that several operators are tried on.
#pragma once
#include "operator.h"

namespace pluralign::test {

inline const char* type_name(int storage) { return storage == kF32 ? "float32" : "bfloat16"; }
inline DType type_of(int storage) { return storage == kF32 ? DType::f32 : DType::bf16; }
inline std::string sizes(std::initializer_list<int64_t> list) {
  std::string out;
  for (int64_t n : list) out += (out.empty() ? "" : " x ") + std::to_string(n);
  return out;
}

struct Segments {
  std::vector<int> parents;
  std::vector<int64_t> lengths;
  std::vector<int> adapters;
  PackedForest forest(int64_t vocabulary = 17) const { return {parents, lengths, adapters, vocabulary}; }
};

// Nothing; one row; a prompt, two children and a grandchild beside a row alone and a segment of more rows than a tile.
inline std::vector<Segments> odd_forests() {
  return {{{}, {}, {}}, {{-1}, {1}, {0}}, {{-1, 0, 0, 2, -1, -1, 5}, {5, 3, 21, 4, 1, 67, 2}, {0, 0, 1, 1, -1, 2, 2}}};
}

// Prompts of 512 rows with two completions of 256, whose adapters take turns.
inline Segments pairs(int64_t rows, int adapters) {
  Segments s;
  for (int64_t done = 0; done < rows; done += 1024) {
    const int root = int(s.parents.size()), adapter = adapters == 0 ? -1 : int(done / 1024 * adapters * 1024 / rows);
    s.parents.insert(s.parents.end(), {-1, root, root});
    s.lengths.insert(s.lengths.end(), {512, 256, 256});
    s.adapters.insert(s.adapters.end(), {adapter, adapter, adapter});
  }
  return s;
}

template <class Make>
void in_both_types(std::vector<Maker>& to, Make&& make) {
  for (int storage : {kF32, kBf16}) to.push_back([=] { return make(storage); });
}

}  // namespace pluralign::test
