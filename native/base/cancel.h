// A stop request that a long computation looks at between its parts.
#pragma once
#include <atomic>
#include <cstdint>

#include "status.h"

namespace pluralign {

class Cancel {
 public:
  Cancel() = default;
  Cancel(const int32_t* flag, const std::atomic<bool>* closing) : flag_(flag), closing_(closing) {}

  bool requested() const {
    return (flag_ && *static_cast<const volatile int32_t*>(flag_) != 0) || (closing_ && closing_->load());
  }
  void check() const {
    if (requested()) throw Error("ABORTED", "stopped on request");
  }

 private:
  const int32_t* flag_ = nullptr;  // set from JavaScript through an AbortSignal
  const std::atomic<bool>* closing_ = nullptr;
};

}  // namespace pluralign
