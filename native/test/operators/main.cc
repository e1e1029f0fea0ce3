// pluralign_device_tests LIBRARY [--device N] [--odd | --real | --times]... [--only PART] [--seconds S] [--json FILE]
// Every operator of a device library beside the CPU's: odd shapes against the reference, with gradients against differences of
// the device's own forward pass; real shapes against this processor's best kernels; times of these. All three by default. Exit
// status 1 where one is off; the last line counts.
#include <cstdio>
#include <cstring>
#include <thread>

#include "device/library.h"
#include "operator.h"

using namespace pluralign;
using namespace pluralign::test;

namespace {

int passed = 0, failed = 0;

void line(const char* check, const Case& c, const Verdict& v) {
  ++(v.good ? passed : failed);
  std::printf("%s %s %s, %s, %s: %.1e (%s)\n", v.good ? "ok  " : "FAIL", c.op.c_str(), check, c.shape.c_str(), c.storage == kF32 ? "float32" : "bfloat16", v.error, v.what.c_str());
  std::fflush(stdout);
}

template <class Body>
void attempt(const char* check, const Case& c, Body&& body) {
  try {
    body();
  } catch (const std::exception& e) {
    line(check, c, {false, -1, e.what()});
  }
}

}  // namespace

int main(int argc, char** argv) {
  bool odd = false, real = false, times = false;
  int ordinal = 0;
  double seconds = 0.2;
  std::string library, only, json;
  for (int i = 1; i < argc; ++i) {
    const std::string a = argv[i];
    const auto value = [&] { return i + 1 < argc ? argv[++i] : ""; };
    if (a == "--odd") odd = true;
    else if (a == "--real") real = true;
    else if (a == "--times") times = true;
    else if (a == "--device") ordinal = std::atoi(value());
    else if (a == "--seconds") seconds = std::atof(value());
    else if (a == "--only") only = value();
    else if (a == "--json") json = value();
    else library = a;
  }
  if (library.empty()) return std::fprintf(stderr, "usage: pluralign_device_tests LIBRARY [--device N] [--odd|--real|--times]... [--only PART] [--seconds S] [--json FILE]\n"), 2;
  if (!odd && !real && !times) odd = real = times = true;
  try {
    const Device device = open_device(library, ordinal);
    Pool one(1), all(std::max(1, int(std::thread::hardware_concurrency())));
    Context reference(kernels_of(Isa::reference), one), best(kernels_of(choose_isa()), all);
    std::FILE* out = json.empty() ? nullptr : std::fopen(json.c_str(), "w");
    for (const Cases& cases : {row_cases(), product_cases(), lora_cases()}) {
      if (odd)
        for (const Maker& make : cases.odd) {
          const Case c = make();
          if (c.op.find(only) == std::string::npos) continue;
          attempt("as the CPU", c, [&] { line("as the CPU", c, equal(c, reference, device)); });
          if (c.storage == kF32 && !c.slopes.empty()) attempt("gradients", c, [&] { line("gradients", c, gradients(c, device)); });
        }
      if (real || times)
        for (const Maker& make : cases.real) {
          const Case c = make();
          if (c.op.find(only) == std::string::npos) continue;
          if (real) attempt("as the CPU", c, [&] { line("as the CPU", c, equal(c, best, device)); });
          if (times)
            attempt("time", c, [&] {
              const Times t = time_case(c, device, seconds);
              std::printf("time %s, %s, %s: forward %.3f ms", c.op.c_str(), c.shape.c_str(), c.storage == kF32 ? "float32" : "bfloat16", t.forward);
              if (c.flops > 0) std::printf(" (%.1f TFLOP/s)", c.flops / t.forward / 1e9);
              if (c.bytes > 0) std::printf(" (%.0f GB/s)", c.bytes / t.forward / 1e6);
              if (t.backward >= 0) std::printf(", backward %.3f ms", t.backward);
              std::printf("\n");
              std::fflush(stdout);
              if (!out) return;
              std::fprintf(out, "{\"op\":\"%s\",\"shape\":\"%s\",\"dtype\":\"%s\",\"forward_ms\":%.5f,\"backward_ms\":%.5f,\"tflop_per_s\":%.3f,\"gb_per_s\":%.1f}\n", c.op.c_str(), c.shape.c_str(),
                           c.storage == kF32 ? "float32" : "bfloat16", t.forward, t.backward, c.flops / t.forward / 1e9, c.bytes / t.forward / 1e6);
              std::fflush(out);
            });
        }
    }
    if (out) std::fclose(out);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    ++failed;
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed ? 1 : 0;
}
