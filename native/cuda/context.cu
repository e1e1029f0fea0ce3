// Memory, streams and errors of one device.
#include "cuda/context.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cuda/products.h"

namespace pluralign::device {
namespace {

constexpr size_t kStaging = size_t(4) << 20;  // bytes of a half of the pinned memory
constexpr size_t kSmallestLoan = 4096;

[[noreturn]] void fail(Status status, const char* format, ...) {
  char text[512];
  va_list args;
  va_start(args, format);
  std::vsnprintf(text, sizeof text, format, args);
  va_end(args);
  throw cuda::Failure(status, text);
}

// Of what a recording cannot hold: it is lost, and nothing else.
bool of_recording(cudaError_t error) { return error >= cudaErrorStreamCaptureUnsupported && error <= cudaErrorStreamCaptureWrongThread; }

// Errors after which every call of the process fails.
bool sticky(cudaError_t error) {
  return !of_recording(error) && error != cudaSuccess && error != cudaErrorMemoryAllocation && error != cudaErrorInvalidValue && error != cudaErrorInvalidConfiguration &&
         error != cudaErrorNoDevice && error != cudaErrorInvalidDevice && error != cudaErrorInsufficientDriver && error != cudaErrorNoKernelImageForDevice &&
         error != cudaErrorInvalidDeviceFunction && error != cudaErrorLaunchOutOfResources && error != cudaErrorInvalidResourceHandle && error != cudaErrorNotSupported;
}

}  // namespace

Context::Context(int ordinal_, int64_t limit) : ordinal(ordinal_), limit_(limit) {
  int devices = 0, driver = 0;
  if (const cudaError_t e = cudaGetDeviceCount(&devices); e != cudaSuccess || devices == 0) {
    cudaGetLastError();
    cudaDriverGetVersion(&driver);
    int runtime = 0;
    cudaRuntimeGetVersion(&runtime);
    if (driver == 0) fail(Status::unsupported, "there is no NVIDIA driver");
    if (e == cudaErrorInsufficientDriver) fail(Status::unsupported, "the NVIDIA driver is too old: it runs CUDA %d.%d, the library needs %d.%d", driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    fail(Status::unsupported, "there is no CUDA device (%s)", e == cudaSuccess ? "none was found" : cudaGetErrorString(e));
  }
  if (ordinal < 0 || ordinal >= devices) fail(Status::bad_argument, "there is no device cuda:%d: %d found, counted from 0", ordinal, devices);
  check(cudaSetDevice(ordinal), "choosing the device");
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, ordinal), "reading what the device is");
  capability = properties.major * 10 + properties.minor;
  multiprocessors = properties.multiProcessorCount;
  most_shared = properties.sharedMemPerBlockOptin;
  const char* graphs = std::getenv("PLURALIGN_CUDA_GRAPHS");
  records_ = graphs && std::strcmp(graphs, "1") == 0;
  if (capability < 80) fail(Status::unsupported, "%s has compute capability %d.%d; 8.0 or newer is needed", properties.name, properties.major, properties.minor);
  try {
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");
    check(cudaMallocHost(reinterpret_cast<void**>(&staging_), 2 * kStaging), "pinning memory");
    for (cudaEvent_t& gone : gone_) check(cudaEventCreateWithFlags(&gone, cudaEventDisableTiming), "making an event");
    products = std::make_unique<cuda::Products>();
  } catch (...) {
    close();
    throw;
  }
}

Context::~Context() {
  cudaSetDevice(ordinal);
  products.reset();
  for (const auto& [at, block] : held_) cudaFree(at);
  close();
}

void Context::close() {
  for (cudaEvent_t gone : gone_)
    if (gone) cudaEventDestroy(gone);
  if (staging_) cudaFreeHost(staging_);
  if (stream) cudaStreamDestroy(stream);
}

void Context::check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  if (sticky(error)) {
    lost = true;
    fail(Status::device_lost, "cuda:%d failed while %s: %s. The device can be used again by a new process", ordinal, what, cudaGetErrorString(error));
  }
  cudaGetLastError();
  if (error == cudaErrorMemoryAllocation) fail(Status::out_of_memory, "cuda:%d has no memory left while %s", ordinal, what);
  if (of_recording(error)) fail(Status::unsupported, "cuda:%d cannot record %s: %s", ordinal, what, cudaGetErrorName(error));
  fail(Status::failed, "cuda:%d, %s: %s (%s)", ordinal, what, cudaGetErrorString(error), cudaGetErrorName(error));
}

void Context::check(const char* what) { check(cudaGetLastError(), what); }

void* Context::allocate(size_t bytes, const char* purpose) {
  if (lost) fail(Status::device_lost, "cuda:%d failed before; the device can be used again by a new process", ordinal);
  not_recorded(purpose);
  const size_t wanted = std::max<size_t>(bytes, 256);
  void* at = nullptr;
  const std::lock_guard<std::mutex> lock(mutex_);
  const bool within = limit_ <= 0 || total_ + int64_t(wanted) <= limit_;
  const cudaError_t error = within ? cudaMalloc(&at, wanted) : cudaErrorMemoryAllocation;
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    size_t free = 0, all = 0;
    cudaMemGetInfo(&free, &all);
    fail(Status::out_of_memory, "cuda:%d has no room for %.1f MiB of %s: %.1f MiB are free, %.1f MiB are held here already", ordinal, double(wanted) / 1048576, purpose,
         double(within ? free : size_t(limit_ - total_)) / 1048576, double(total_) / 1048576);
  }
  check(error, purpose);
  held_[at] = {wanted, ++clock_};
  total_ += int64_t(wanted);
  return at;
}

bool Context::release(void* at) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = held_.find(at);
  if (found == held_.end()) return false;
  total_ -= int64_t(found->second.bytes);
  for (Recording* r : recordings_) r->stale = r->stale || r->begun > found->second.born;
  held_.erase(found);
  if (under_way_) released_meanwhile_.push_back(at);
  else cudaFree(at);  // waits for the device; a sticky error is found by the next call that may fail
  return true;
}

void* Context::borrow(size_t bytes, const char* purpose) {
  size_t size = kSmallestLoan;
  while (size < bytes) size *= 2;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (auto& spare = spare_[size]; !spare.empty()) {
      void* at = spare.back();
      spare.pop_back();
      return at;
    }
  }
  return allocate(size, purpose);
}

void Context::give_back(void* at) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (const auto found = held_.find(at); found != held_.end()) spare_[found->second.bytes].push_back(at);
}

void* Context::scratch(cuda::Slot slot, size_t bytes) {
  Scratch& s = scratch_[slot];
  if (bytes > s.bytes) {
    if (s.at) release(s.at);
    s = {};
    const size_t rounded = (bytes + bytes / 16 + 255) / 256 * 256;
    s.at = allocate(rounded, "scratch memory");
    s.bytes = rounded;
  }
  return s.at;
}

void Context::upload(void* to, const void* host, size_t bytes) {
  not_recorded("an upload");
  for (size_t done = 0; done < bytes; done += kStaging) {
    const size_t n = std::min(kStaging, bytes - done);
    half_ ^= 1;
    char* staged = staging_ + size_t(half_) * kStaging;
    check(cudaEventSynchronize(gone_[half_]), "waiting to upload");
    std::memcpy(staged, static_cast<const char*>(host) + done, n);
    check(cudaMemcpyAsync(static_cast<char*>(to) + done, staged, n, cudaMemcpyHostToDevice, stream), "uploading");
    check(cudaEventRecord(gone_[half_], stream), "uploading");
  }
}

Status memory_of(Context* context, Memory* out) {
  size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  *out = {context->total_, int64_t(free), int64_t(total)};
  return Status::ok;
}

}  // namespace pluralign::device
