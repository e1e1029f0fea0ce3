#include "device/library.h"

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <dlfcn.h>
#endif

#include <filesystem>
#include <map>
#include <mutex>

#include "ops/lora/lora.h"

namespace pluralign {
namespace {

device::Entry entry_of(const std::string& path) {
#ifdef _WIN32
  const HMODULE library = LoadLibraryA(path.c_str());
  if (!library) throw_error("UNSUPPORTED", "%s does not load (error %lu)", path.c_str(), (unsigned long)GetLastError());
  const auto entry = reinterpret_cast<device::Entry>(reinterpret_cast<void*>(GetProcAddress(library, device::kSymbol)));
#else
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    const char* why = dlerror();
    throw_error("UNSUPPORTED", "%s does not load: %s", path.c_str(), why ? why : "no reason given");
  }
  const auto entry = reinterpret_cast<device::Entry>(dlsym(library, device::kSymbol));
#endif
  if (!entry) throw_error("UNSUPPORTED", "%s is no device library: it has no symbol %s", path.c_str(), device::kSymbol);
  return entry;
}

}  // namespace

const device::Table& load_device_library(const std::string& path) {
  static std::mutex mutex;
  static std::map<std::string, const device::Table*> loaded;
  const std::lock_guard<std::mutex> lock(mutex);
  const device::Table*& table = loaded[path];
  if (table) return *table;
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) throw_error("NOT_FOUND", "%s is not there", path.c_str());
  const device::Table* found = entry_of(path)();
  if (found->version != device::kVersion || found->bytes != sizeof(device::Table) || found->module_bytes != sizeof(LoraModule))
    throw_error("UNSUPPORTED", "%s speaks version %u.%u.%u of the operators, this addon version %u.%zu.%zu: install or build the two of one release", path.c_str(), found->version,
                found->bytes, found->module_bytes, device::kVersion, sizeof(device::Table), sizeof(LoraModule));
  return *(table = found);
}

std::string describe_devices(const std::string& path) {
  const device::Table& table = load_device_library(path);
  std::string text(table.describe(nullptr, 0) + 1, '\0');
  table.describe(text.data(), text.size());
  text.pop_back();
  return text;
}

Device open_device(const std::string& path, int ordinal) {
  const device::Table& table = load_device_library(path);
  const device::Options options{ordinal, 0, 0};
  device::Context* context = nullptr;
  char text[512] = "";
  const device::Status status = table.open(&options, &context, text, sizeof text);
  if (status == device::Status::ok) return Device(table, context);
  throw Error(status == device::Status::bad_argument ? "BAD_ARGUMENT" : status == device::Status::out_of_memory ? "OUT_OF_MEMORY" : "UNSUPPORTED", text);
}

}  // namespace pluralign
