// A loaded model and a bank as other binding files see them.
#pragma once
#include <napi.h>

#include <atomic>
#include <memory>
#include <optional>
#include <string>

#include "device/library.h"
#include "jobs.h"
#include "model/model.h"

namespace pluralign {

// What jobs share with the JavaScript object: it outlives dispose() until the last job is done.
struct Loaded {
  std::unique_ptr<Model> model;
  std::unique_ptr<Context> context;
  int threads = 1;
  std::string library;  // of the device it runs on; empty: the CPU
  int ordinal = 0;
  std::optional<Device> device;
  // As of the last job's end: the main thread asks while the job thread changes what is counted.
  std::atomic<int64_t> weight_bytes{0}, activation_bytes{0}, device_bytes{0};

  const Device& ready(Executor& executor) {
    if (!device) device = library.empty() ? Device(host(executor)) : executor.device(library, ordinal);
    return *device;
  }
  // The CPU's threads, wherever the model runs.
  Context& host(Executor& executor) {
    if (!context) context = std::make_unique<Context>(kernels_of(choose_isa()), executor.pool(threads));
    return *context;
  }
  void measure() {
    weight_bytes = model->weights().bytes();
    activation_bytes = model->activation_bytes();
    if (device && !device->on_cpu()) device_bytes = device->memory().held;
  }
};

// Of objects that came from loadModel or emptyModel, and from createBank (null: none). Throw BAD_ARGUMENT or DISPOSED.
std::shared_ptr<Loaded> loaded_from(const Napi::Value& model);
std::shared_ptr<Bank> bank_from(const Napi::Value& bank);

}  // namespace pluralign
