// A safetensors file in the folder for temporary files, removed at the end of its scope.
#pragma once
#include <filesystem>
#include <fstream>

#include "tiny_model.h"

namespace pluralign::test {

class TensorsFile {
 public:
  struct Tensor {
    std::string name;
    DType type;
    std::vector<int64_t> shape;
    std::vector<double> values;
  };

  // `padding`: bytes by which the header's length misses a multiple of 8.
  explicit TensorsFile(const std::vector<Tensor>& tensors, size_t padding = 0) {
    std::string header = "{", data;
    for (const Tensor& t : tensors) {
      const size_t begin = data.size();
      for (double x : t.values) {
        if (t.type == DType::f64) append(data, x);
        else if (t.type == DType::i32) append(data, int32_t(x));
        else {
          const Typed one(t.type, std::vector<float>{float(x)});
          uint16_t half;
          std::memcpy(&half, one.data(), 2);
          if (t.type == DType::f32) append(data, float(x));
          else append(data, t.type == DType::f16 && std::isinf(x) ? uint16_t(x < 0 ? 0xfc00 : 0x7c00) : half);
        }
      }
      const char* type = t.type == DType::f32 ? "F32" : t.type == DType::bf16 ? "BF16" : t.type == DType::f16 ? "F16" : t.type == DType::f64 ? "F64" : "I32";
      std::string shape;
      for (int64_t n : t.shape) shape += (shape.empty() ? "" : ",") + std::to_string(n);
      header += (header.size() > 1 ? ",\"" : "\"") + t.name + "\":{\"dtype\":\"" + type + "\",\"shape\":[" + shape + "],\"data_offsets\":[" +
                std::to_string(begin) + "," + std::to_string(data.size()) + "]}";
    }
    header += "}";
    while (header.size() % 8 != padding) header += ' ';
    path_ = (std::filesystem::temp_directory_path() / ("pluralign-test-" + std::to_string(std::random_device()()) + ".safetensors")).string();
    std::string length;
    append(length, uint64_t(header.size()));
    std::ofstream(path_, std::ios::binary) << length << header << data;
  }
  TensorsFile(const TensorsFile&) = delete;
  ~TensorsFile() {
    std::error_code ignored;
    std::filesystem::remove(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  template <class T>
  static void append(std::string& s, T x) {
    s.append(reinterpret_cast<const char*>(&x), sizeof x);
  }
  std::string path_;
};

// The base weights of a tiny model as tensors of one type, with the values that the type can hold.
inline std::vector<TensorsFile::Tensor> tensors_of(const Tiny& tiny, DType type) {
  std::vector<TensorsFile::Tensor> tensors;
  for (const auto& [name, index] : tiny.weights) {
    const Factor& f = tiny.factors[size_t(index)];
    const std::vector<float> values(tiny.values.begin() + f.offset, tiny.values.begin() + f.offset + f.rows * f.cols);
    tensors.push_back({name, type, f.rows == 1 ? std::vector<int64_t>{f.cols} : std::vector<int64_t>{f.rows, f.cols},
                       Typed(type == DType::f64 ? DType::f32 : type, values).values});
  }
  return tensors;
}

}  // namespace pluralign::test
