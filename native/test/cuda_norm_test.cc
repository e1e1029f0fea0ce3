// The CUDA kernels of the norm, emulated, against the reference.
#include "cuda_device.h"
#include "ops/norm/norm.h"

using namespace pluralign;
using namespace pluralign::test;

TEST(cuda_norm_matches_the_reference) {
  Machine specification(Isa::reference, 1);
  on_emulated_device([&](EmulatedDevice& gpu) {
    for (int64_t rows : {0, 1, 2, 19})
      for (int64_t width : {1, 5, 32, 33, 101, 256})
        for (int storage : {kF32, kBf16}) {
          Random random(unsigned(rows * 1000 + width));
          const std::vector<float> x = random.normals(rows * width, 2), weight = random.normals(width), dy = random.normals(rows * width);
          const std::string where = gpu.name() + " " + std::to_string(rows) + " x " + std::to_string(width);
          Typed expected(storage, x.size());
          std::vector<float> rstd(static_cast<size_t>(rows), kNaN), dx(x.size(), 0.5f), dweight(size_t(width), 0.25f);
          rmsnorm(specification.context, storage, expected.data(), rstd.data(), x.data(), weight.data(), rows, width, 1e-5f);
          rmsnorm_backward(specification.context, dx.data(), dy.data(), x.data(), rstd.data(), weight.data(), rows, width, true);
          rmsnorm_backward_weight(specification.context, dweight.data(), dy.data(), x.data(), rstd.data(), rows, width);

          const auto on_x = gpu.take(x), on_weight = gpu.take(weight), on_dy = gpu.take(dy);
          const auto y = gpu.take(Typed(storage, x.size())), r = gpu.room(rows), d = gpu.take(std::vector<float>(x.size(), 0.5f)), dw = gpu.take(std::vector<float>(size_t(width), 0.25f));
          gpu.run(&device::Table::norm, device::NormCall{rows, width, on_x.floats(), on_weight.floats(), y.data(), r.floats(), storage, 1e-5f});
          gpu.run(&device::Table::norm_backward, device::NormBackwardCall{rows, width, on_dy.floats(), on_x.floats(), r.floats(), on_weight.floats(), d.floats(), dw.floats(), 1, 0});
          CHECK_CLOSE(where, y.typed(storage).now(), expected.now(), 1e-7, storage == kF32 ? 1e-6 : 0.0079);  // bfloat16: one unit
          CHECK_CLOSE(where + " rstd", r.values(), rstd, 0, 1e-6);
          CHECK_CLOSE(where + " dx", d.values(), dx, 2e-6, 1e-5);
          CHECK_CLOSE(where + " dweight", dw.values(), dweight, 2e-6, 1e-5);
        }
  });
}
