#include "json.h"

#include <cstdio>

namespace pluralign {
namespace {

void append_utf8(std::string& out, uint32_t c) {
  if (c < 0x80) {
    out += char(c);
  } else if (c < 0x800) {
    out += char(0xc0 | (c >> 6));
    out += char(0x80 | (c & 63));
  } else if (c < 0x10000) {
    out += char(0xe0 | (c >> 12));
    out += char(0x80 | ((c >> 6) & 63));
    out += char(0x80 | (c & 63));
  } else {
    out += char(0xf0 | (c >> 18));
    out += char(0x80 | ((c >> 12) & 63));
    out += char(0x80 | ((c >> 6) & 63));
    out += char(0x80 | (c & 63));
  }
}

}  // namespace

void JsonReader::skip_space() {
  while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t')) ++at_;
}

void JsonReader::expected(const char* what) const {
  std::string found = "the end of the text";
  if (at_ < text_.size()) {
    const unsigned char c = text_[at_];
    char shown[16];
    std::snprintf(shown, sizeof shown, c >= 0x20 && c < 0x7f ? "'%c'" : "byte 0x%02x", c);
    found = shown;
  }
  fail(std::string("expected ") + what + ", found " + found);
}

void JsonReader::open(char bracket, const char* what) {
  skip_space();
  if (at_ >= text_.size() || text_[at_] != bracket) expected(what);
  if (first_.size() == kMaxDepth) fail("nested deeper than " + std::to_string(kMaxDepth) + " levels");
  ++at_;
  first_.push_back(true);
}

// Moves to the next member of the innermost bracket, or past its end.
bool JsonReader::advance(char bracket) {
  skip_space();
  const bool first = first_.back();
  if (at_ < text_.size() && text_[at_] == bracket) {
    ++at_;
    first_.pop_back();
    return false;
  }
  if (!first) {
    if (at_ >= text_.size() || text_[at_] != ',') expected(bracket == '}' ? "',' or '}'" : "',' or ']'");
    ++at_;
  }
  first_.back() = false;
  return true;
}

void JsonReader::begin_object() { open('{', "an object"); }

bool JsonReader::next_key(std::string& key) {
  if (!advance('}')) return false;
  key = string();
  skip_space();
  if (at_ >= text_.size() || text_[at_] != ':') expected("':'");
  ++at_;
  return true;
}

void JsonReader::begin_array() { open('[', "an array"); }

bool JsonReader::next_item() { return advance(']'); }

std::string JsonReader::string() {
  skip_space();
  if (at_ >= text_.size() || text_[at_] != '"') expected("a string");
  ++at_;
  std::string out;
  for (;;) {
    if (at_ >= text_.size()) fail("a string is not closed");
    const unsigned char c = text_[at_];
    if (c == '"') {
      ++at_;
      return out;
    }
    if (c == '\\') escape(out);
    else if (c < 0x20) fail("raw control character in a string");
    else if (c < 0x80) out += text_[at_++];
    else utf8_sequence(out);
  }
}

void JsonReader::escape(std::string& out) {
  ++at_;
  if (at_ >= text_.size()) fail("a string is not closed");
  switch (text_[at_]) {
    case '"': out += '"'; break;
    case '\\': out += '\\'; break;
    case '/': out += '/'; break;
    case 'b': out += '\b'; break;
    case 'f': out += '\f'; break;
    case 'n': out += '\n'; break;
    case 'r': out += '\r'; break;
    case 't': out += '\t'; break;
    case 'u': {
      ++at_;
      uint32_t c = hex4();
      if (c >= 0xdc00 && c < 0xe000) fail("a low surrogate escape without its high one");
      if (c >= 0xd800 && c < 0xdc00) {
        if (at_ + 1 >= text_.size() || text_[at_] != '\\' || text_[at_ + 1] != 'u')
          fail("a high surrogate escape without its low one");
        at_ += 2;
        const uint32_t low = hex4();
        if (low < 0xdc00 || low >= 0xe000) fail("a high surrogate escape without its low one");
        c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
      }
      append_utf8(out, c);
      return;
    }
    default: fail("unknown escape in a string");
  }
  ++at_;
}

uint32_t JsonReader::hex4() {
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i, ++at_) {
    const char c = at_ < text_.size() ? text_[at_] : '\0';
    if (c >= '0' && c <= '9') value = value * 16 + uint32_t(c - '0');
    else if (c >= 'a' && c <= 'f') value = value * 16 + uint32_t(c - 'a' + 10);
    else if (c >= 'A' && c <= 'F') value = value * 16 + uint32_t(c - 'A' + 10);
    else fail("a \\u escape needs four hexadecimal digits");
  }
  return value;
}

void JsonReader::utf8_sequence(std::string& out) {
  const unsigned char lead = text_[at_];
  size_t length;
  uint32_t value, least;
  if (lead >= 0xc2 && lead < 0xe0) length = 2, value = lead & 31, least = 0x80;
  else if (lead >= 0xe0 && lead < 0xf0) length = 3, value = lead & 15, least = 0x800;
  else if (lead >= 0xf0 && lead < 0xf5) length = 4, value = lead & 7, least = 0x10000;
  else fail("not UTF-8");
  if (at_ + length > text_.size()) fail("not UTF-8");
  for (size_t i = 1; i < length; ++i) {
    const unsigned char c = text_[at_ + i];
    if ((c & 0xc0) != 0x80) fail("not UTF-8");
    value = (value << 6) | (c & 63);
  }
  if (value < least || value > 0x10ffff || (value >= 0xd800 && value < 0xe000)) fail("not UTF-8");
  out.append(text_.substr(at_, length));
  at_ += length;
}

uint64_t JsonReader::whole_number() {
  skip_space();
  if (at_ >= text_.size() || text_[at_] < '0' || text_[at_] > '9') expected("a whole number");
  const size_t start = at_;
  uint64_t value = 0;
  for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
    const uint64_t digit = uint64_t(text_[at_] - '0');
    if (value > (UINT64_MAX - digit) / 10) fail("a number beyond 64 bits");
    value = value * 10 + digit;
  }
  if (text_[start] == '0' && at_ - start > 1) fail("a number with a leading zero");
  if (at_ < text_.size() && (text_[at_] == '.' || text_[at_] == 'e' || text_[at_] == 'E')) expected("a whole number");
  return value;
}

void JsonReader::end() {
  skip_space();
  if (at_ < text_.size()) expected("nothing after the closing brace but white space");
}

std::string quoted(std::string_view text, size_t limit) {
  std::string out = "\"";
  for (size_t i = 0; i < text.size(); ++i) {
    const unsigned char c = text[i];
    if (i >= limit && (c & 0xc0) != 0x80) return out + "…\"";
    if (c < 0x20 || c == 0x7f) {
      char shown[8];
      std::snprintf(shown, sizeof shown, "\\u%04x", c);
      out += shown;
    } else {
      out += char(c);
    }
  }
  return out + "\"";
}

}  // namespace pluralign
