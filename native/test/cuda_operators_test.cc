// Every operator of the emulated CUDA library beside the reference, and its gradients beside differences, over odd shapes.
#include "cuda_device.h"
#include "operators/operator.h"

using namespace pluralign;
using namespace pluralign::test;

namespace {

void check(const Cases& cases, const EmulatedDevice& gpu) {
  const Device device(gpu.table(), gpu.context());
  Machine specification(Isa::reference, 1);
  for (const Maker& make : cases.odd) {
    const Case c = make();
    const std::string where = gpu.name() + " " + c.op + " " + c.shape + (c.storage == kF32 ? " float32: " : " bfloat16: ");
    const Verdict same = equal(c, specification.context, device);
    if (!same.good) fail(__FILE__, __LINE__, where + same.what + " is off by " + std::to_string(same.error));
    if (c.storage != kF32 || c.slopes.empty()) continue;
    const Verdict slopes = gradients(c, device);
    if (!slopes.good) fail(__FILE__, __LINE__, where + "the gradient of " + slopes.what + " is off by " + std::to_string(slopes.error));
  }
}

}  // namespace

TEST(cuda_operators_on_rows_are_the_cpus) {
  EmulatedDevice gpu(emulator::Order::backward);
  check(row_cases(), gpu);
}
TEST(cuda_operators_of_products_are_the_cpus) {
  EmulatedDevice gpu(emulator::Order::shuffled);
  check(product_cases(), gpu);
}
TEST(operators_are_found_out_where_they_are_wrong) {
  Machine specification(Isa::reference, 1);
  Case right;
  for (const Maker& make : row_cases().odd)
    if (right = make(); right.op == "norm" && right.shape == "19 x 37") break;
  CHECK(equal(right, specification.context, specification.context).error == 0);
  CHECK(gradients(right, specification.context).good);

  Case wrong = right;
  int calls = 0;
  wrong.forward = [&](const Side& on) {
    right.forward(on);
    std::vector<float> y = on.read(right.out);
    if (calls++ == 1) y[3] += 0.01f;  // on the second device only
    const_cast<Side&>(on).put(right.out, y);
  };
  CHECK(!equal(wrong, specification.context, specification.context).good);
  wrong = right;
  wrong.backward = [&](const Side& on) {
    right.backward(on);
    std::vector<float> dx = on.read(right.slopes[0].gradient);
    for (float& d : dx) d *= 1.03f;
    const_cast<Side&>(on).put(right.slopes[0].gradient, dx);
  };
  const Verdict off = gradients(wrong, specification.context);
  CHECK(!off.good && off.what == "x");
}
