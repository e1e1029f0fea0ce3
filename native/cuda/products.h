// Dense products through cuBLASLt, which is looked for when the first context opens; without it, own_product.
#pragma once
#include "cuda/context.h"

namespace pluralign::cuda {

class Products {
 public:
  Products();
  ~Products();
  Products(const Products&) = delete;
  // Where cuBLASLt came from, or why it did not.
  const std::string& source() const { return source_; }
  bool loaded() const { return library_ != nullptr; }
  // False where it cannot do this product.
  bool run(Context&, const Product&);

 private:
  struct Library;
  std::unique_ptr<Library> library_;
  std::string source_;
};

}  // namespace pluralign::cuda
