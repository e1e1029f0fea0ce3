#include "device/device.h"

#include <list>
#include <mutex>

namespace pluralign {

const Device* DeviceBuffer::device_of(const Device& device) {
  if (device.on_cpu()) return nullptr;
  static std::mutex mutex;
  static std::list<Device> known;
  const std::lock_guard<std::mutex> lock(mutex);
  for (const Device& d : known)
    if (d == device) return &d;
  return &known.emplace_back(device);
}

}  // namespace pluralign
