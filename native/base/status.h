// One error type for the whole native side. `code` is stable and reaches JavaScript as `error.code`.
#pragma once
#include <cstdarg>
#include <cstdio>
#include <stdexcept>
#include <string>

namespace pluralign {

// Codes in use: BAD_ARGUMENT, BAD_SHAPE, BAD_FILE (malformed or hostile), NOT_FOUND, IO, UNSUPPORTED,
// NON_FINITE, OUT_OF_MEMORY, DEVICE_LOST (its process must end), INTERNAL, ABORTED, DISPOSED.
class Error : public std::runtime_error {
 public:
  Error(const char* code, const std::string& message) : std::runtime_error(message), code_(code) {}
  const char* code() const noexcept { return code_; }

 private:
  const char* code_;
};

// printf-style: throw_error("BAD_SHAPE", "%s has %lld rows", name, rows).
[[noreturn]] inline void throw_error(const char* code, const char* format, ...) {
  char text[1024];
  va_list args;
  va_start(args, format);
  std::vsnprintf(text, sizeof text, format, args);
  va_end(args);
  throw Error(code, text);
}

}  // namespace pluralign
