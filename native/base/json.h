// A strict pull reader of JSON (RFC 8259) for file headers that may be hostile. It builds no tree and does not recurse,
// so memory is bounded by what the caller keeps. Only what headers need: objects, arrays, strings, whole numbers.
#pragma once
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace pluralign {

class JsonError : public std::runtime_error {
 public:
  JsonError(size_t offset, const std::string& message) : std::runtime_error(message), offset_(offset) {}
  size_t offset() const noexcept { return offset_; }  // byte in the text

 private:
  size_t offset_;
};

// Every call throws JsonError where the text is something else than what the call asks for. Strings are valid UTF-8:
// overlong forms, surrogates, unpaired \u escapes and raw control characters are refused. The caller keeps the keys, so
// the caller refuses duplicates.
class JsonReader {
 public:
  static constexpr size_t kMaxDepth = 32;

  explicit JsonReader(std::string_view text) : text_(text) {}

  void begin_object();
  bool next_key(std::string& key);  // false, and past the brace, when the object ends
  void begin_array();
  bool next_item();  // false, and past the bracket, when the array ends
  std::string string();
  uint64_t whole_number();  // digits only, no sign, fraction, exponent or leading zero; at most 2^64 - 1
  void end();               // nothing but white space is left

  size_t offset() const { return at_; }
  [[noreturn]] void fail(const std::string& message) const { throw JsonError(at_, message); }

 private:
  void skip_space();
  void open(char bracket, const char* what);
  bool advance(char bracket);
  [[noreturn]] void expected(const char* what) const;
  void escape(std::string& out);
  uint32_t hex4();
  void utf8_sequence(std::string& out);

  std::string_view text_;
  size_t at_ = 0;
  std::vector<bool> first_;  // per open bracket: no member read yet
};

// `text` between double quotes for a message: control characters escaped, at most about `limit` bytes.
std::string quoted(std::string_view text, size_t limit = 120);

}  // namespace pluralign
