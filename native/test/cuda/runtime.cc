#include "runtime.h"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <utility>

namespace {

struct Device {
  size_t total, held = 0;
  int count;
  std::map<void*, size_t> blocks;
  cudaError_t last = cudaSuccess, sticky = cudaSuccess;
  int breaks_after = -1;
  size_t most_shared = 227 * 1024, allowed = 0;
  int64_t launched = 0;
  std::mutex mutex;
  Device() {
    const char* memory = std::getenv("PLURALIGN_EMULATED_MEMORY");
    const char* devices = std::getenv("PLURALIGN_EMULATED_DEVICES");
    total = memory ? size_t(std::atoll(memory)) : size_t(1) << 30;
    count = devices ? std::atoi(devices) : 1;
  }
};

Device& device() {
  static Device d;
  return d;
}

cudaError_t fail(cudaError_t e) { return device().last = e; }

constexpr size_t kGuard = 256;

}  // namespace

const char* cudaGetErrorName(cudaError_t e) {
  switch (e) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorIllegalAddress: return "cudaErrorIllegalAddress";
    default: return "another error";
  }
}
const char* cudaGetErrorString(cudaError_t e) { return cudaGetErrorName(e); }
cudaError_t cudaPeekAtLastError() { return device().sticky != cudaSuccess ? device().sticky : device().last; }
cudaError_t cudaGetLastError() {
  const cudaError_t e = cudaPeekAtLastError();
  device().last = cudaSuccess;
  return e;
}
cudaError_t cudaDriverGetVersion(int* v) { return *v = 13000, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* v) { return *v = 13000, cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* n) { return *n = device().count, *n > 0 ? cudaSuccess : fail(cudaErrorNoDevice); }
cudaError_t cudaSetDevice(int i) { return i >= 0 && i < device().count ? cudaSuccess : fail(cudaErrorInvalidDevice); }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int i) {
  if (i < 0 || i >= device().count) return fail(cudaErrorInvalidDevice);
  *p = {};
  std::snprintf(p->name, sizeof p->name, "emulated device %d", i);
  p->totalGlobalMem = device().total;
  p->sharedMemPerBlockOptin = device().most_shared;
  p->major = 9;
  p->multiProcessorCount = 4;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *total = device().total;
  *free = device().total - device().held;
  return device().sticky;
}
cudaError_t cudaMalloc(void** out, size_t n) {
  if (emulator::spoils_capture()) return fail(cudaErrorStreamCaptureUnsupported);
  Device& d = device();
  const std::lock_guard<std::mutex> lock(d.mutex);
  if (d.sticky != cudaSuccess) return d.sticky;
  if (n > d.total - d.held) return fail(cudaErrorMemoryAllocation);
  auto* at = static_cast<unsigned char*>(std::aligned_alloc(256, (n + kGuard + 255) / 256 * 256));
  if (!at) return fail(cudaErrorMemoryAllocation);
  std::memset(at, 0xff, n);  // NaN: what is read before it was written shows
  std::memset(at + n, 0xa5, kGuard);
  d.blocks[at] = n;
  d.held += n;
  *out = at;
  return cudaSuccess;
}
cudaError_t cudaFree(void* at) {
  if (!at) return cudaSuccess;
  if (emulator::spoils_capture()) return fail(cudaErrorStreamCaptureUnsupported);
  Device& d = device();
  const std::lock_guard<std::mutex> lock(d.mutex);
  const auto found = d.blocks.find(at);
  if (found == d.blocks.end()) return fail(cudaErrorInvalidValue);
  for (size_t i = 0; i < kGuard; ++i)
    if (static_cast<unsigned char*>(at)[found->second + i] != 0xa5) {
      std::fprintf(stderr, "emulated device: %zu bytes at %p were written beyond their end\n", found->second, at);
      std::abort();
    }
  std::memset(at, 0xff, found->second);
  d.held -= found->second;
  d.blocks.erase(found);
  std::free(at);
  return d.sticky;
}
cudaError_t cudaMallocHost(void** out, size_t n) {
  if (emulator::spoils_capture()) return fail(cudaErrorStreamCaptureUnsupported);
  return *out = std::malloc(n), *out ? cudaSuccess : fail(cudaErrorMemoryAllocation);
}
cudaError_t cudaFreeHost(void* at) { return std::free(at), cudaSuccess; }
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t n, cudaMemcpyKind, cudaStream_t stream) {
  if (device().sticky != cudaSuccess) return device().sticky;
  if (n) emulator::queue(stream, false, [=] { std::memmove(to, from, n); });
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t n, cudaStream_t stream) {
  if (device().sticky != cudaSuccess) return device().sticky;
  if (n) emulator::queue(stream, false, [=] { std::memset(to, value, n); });
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return emulator::spoils_capture() ? fail(cudaErrorStreamCaptureUnsupported) : device().sticky; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) { return *e = nullptr, cudaSuccess; }
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return device().sticky; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return emulator::spoils_capture() ? fail(cudaErrorStreamCaptureUnsupported) : device().sticky; }

namespace emulator {

bool may_launch(dim3 grid, dim3 block, size_t shared) {
  Device& d = device();
  if (d.sticky != cudaSuccess) return false;
  const uint64_t threads = uint64_t(block.x) * block.y * block.z;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 || threads == 0 || threads > 1024 || shared > std::max<size_t>(48 * 1024, std::exchange(d.allowed, 0))) {
    fail(cudaErrorInvalidConfiguration);
    return false;
  }
  return true;
}
bool starts(bool launched) {
  Device& d = device();
  if (d.sticky != cudaSuccess) return false;
  d.launched += launched;
  if (d.breaks_after >= 0 && d.breaks_after-- == 0) {
    d.sticky = cudaErrorIllegalAddress;
    return false;
  }
  return true;
}
cudaError_t allow_shared(size_t bytes) {
  if (bytes > device().most_shared) return fail(cudaErrorInvalidValue);
  device().allowed = bytes;
  return cudaSuccess;
}
void limit_shared(size_t bytes) { device().most_shared = bytes; }
void break_after(int launches) { device().breaks_after = launches; }
void mend() {
  device().sticky = device().last = cudaSuccess;
  device().breaks_after = -1;
}
int64_t bytes_held() { return int64_t(device().held); }
int64_t launches() { return device().launched; }

}  // namespace emulator
