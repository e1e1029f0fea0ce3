// Device libraries, loaded at run time: the addon itself needs none of what they need.
#pragma once
#include <string>

#include "device/device.h"

namespace pluralign {

// The library's table. Loaded once per path and kept. Throws NOT_FOUND where there is no such file, UNSUPPORTED where it does
// not load (naming what is missing) or speaks another version.
const device::Table& load_device_library(const std::string& path);

// What the library sees, as JSON: driver, runtime, devices, why there is none.
std::string describe_devices(const std::string& path);

// Opens a device of the library, until Device::close. Throws UNSUPPORTED or
// BAD_ARGUMENT with the library's reason, OUT_OF_MEMORY.
Device open_device(const std::string& path, int ordinal);

}  // namespace pluralign
