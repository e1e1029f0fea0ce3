#include "model/safetensors.h"

#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <random>

#include "check.h"

using namespace pluralign;

namespace {

// A file with this header (or this claimed header length) and `data` bytes of data.
std::string file_of(const std::string& header, size_t data, uint64_t claimed = UINT64_MAX) {
  const uint64_t length = claimed == UINT64_MAX ? header.size() : claimed;
  std::string out(8, '\0');
  std::memcpy(out.data(), &length, 8);
  out += header;
  for (size_t i = 0; i < data; ++i) out += char(i * 37 + 11);
  return out;
}

// Parses an exact-size copy on the heap, so that the address sanitizer sees any read past its end.
std::shared_ptr<SafetensorsFile> parse(const std::string& bytes) {
  static std::vector<std::unique_ptr<std::byte[]>> kept;
  kept.push_back(std::make_unique<std::byte[]>(bytes.size()));
  std::memcpy(kept.back().get(), bytes.data(), bytes.size());
  return SafetensorsFile::parse(kept.back().get(), bytes.size(), "m.safetensors");
}

std::string tensor(const char* name, const char* dtype, const char* shape, const char* offsets) {
  return std::string("\"") + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}";
}

struct Bad {
  const char* why;  // part of the message
  std::string bytes;
};

void refuse(const std::vector<Bad>& cases) {
  for (const Bad& c : cases) {
    CHECK_THROWS("BAD_FILE", c.why, parse(c.bytes));
    CHECK_THROWS("BAD_FILE", "m.safetensors: ", parse(c.bytes));
  }
}

std::filesystem::path temporary(const std::string& bytes) {
  const auto path = std::filesystem::temp_directory_path() /
                    ("pluralign-test-" + std::to_string(std::random_device()()) + ".safetensors");
  std::ofstream(path, std::ios::binary).write(bytes.data(), std::streamsize(bytes.size()));
  return path;
}

const std::string kFloats = tensor("a", "F32", "[2,3]", "[0,24]");

}  // namespace

TEST(safetensors_reads_a_good_file) {
  const auto file = parse(file_of("{\"__metadata__\":{\"format\":\"pt\",\"k\":\"\"}," + tensor("b", "I64", "[]", "[24,32]") + "," + kFloats +
                                      "," + tensor("z", "F32", "[0,5]", "[32,32]") + "}   ",
                                  32));
  CHECK(file->path() == "m.safetensors");
  CHECK(file->metadata().size() == 2 && file->metadata().at("format") == "pt" && file->metadata().at("k").empty());
  CHECK(file->tensors().size() == 3);
  CHECK(file->tensors()[0].name == "a" && file->tensors()[1].name == "b" && file->tensors()[2].name == "z");
  const TensorView* a = file->find("a");
  if (!CHECK(a)) return;
  CHECK(a->dtype == DType::f32 && a->dtype_name == "F32" && a->shape == std::vector<int64_t>({2, 3}));
  CHECK(a->bytes == 24 && a->elements() == 6);
  CHECK(file->find("b")->data == a->data + 24 && file->find("b")->elements() == 1);
  CHECK(file->find("z")->elements() == 0 && file->find("z")->bytes == 0);
  CHECK(!file->find("") && !file->find("aa") && !file->find("__metadata__"));
}

TEST(safetensors_reads_the_smallest_files) {
  CHECK(parse(file_of("{}", 0))->tensors().empty());
  CHECK(parse(file_of("{\"__metadata__\":{}}\n\t ", 0))->metadata().empty());
  CHECK(parse(file_of("{" + tensor("", "U8", "[1]", "[0,1]") + "}", 1))->find("")->bytes == 1);
}

TEST(safetensors_reads_names_with_escapes) {
  const auto file = parse(file_of("{" + tensor("\\u00e9\\ud83d\\ude00\\n\\\"\\/", "U8", "[1]", "[0,1]") + "," +
                                      tensor("\xf0\x9f\x98\x80", "U8", "[1]", "[1,2]") + "}",
                                  2));
  CHECK(file->find("\xc3\xa9\xf0\x9f\x98\x80\n\"/"));
  CHECK(file->find("\xf0\x9f\x98\x80"));
}

TEST(safetensors_knows_every_dtype) {
  const std::pair<const char*, int> types[] = {{"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8}, {"I32", 4}, {"I16", 2},
                                               {"I8", 1}, {"U64", 8}, {"U32", 4}, {"U16", 2}, {"U8", 1}, {"BOOL", 1}, {"C64", 8},
                                               {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"F8_E8M0", 1}};
  for (const auto& [name, size] : types) {
    const std::string right = "[0," + std::to_string(3 * size) + "]", wrong = "[0," + std::to_string(3 * size + 1) + "]";
    const auto file = parse(file_of("{" + tensor("t", name, "[3]", right.c_str()) + "}", size_t(3 * size)));
    const TensorView* t = file->find("t");
    CHECK(t && t->bytes == size_t(3 * size) && t->dtype_name == name);
    CHECK(t->dtype == DType::other || dtype_size(t->dtype) == size_t(size));
    CHECK_THROWS("BAD_FILE", "needs", parse(file_of("{" + tensor("t", name, "[3]", wrong.c_str()) + "}", size_t(3 * size + 1))));
  }
  CHECK(parse(file_of("{" + tensor("t", "F4", "[4]", "[0,2]") + "}", 2))->find("t")->elements() == 4);
  CHECK_THROWS("BAD_FILE", "no whole number of bytes", parse(file_of("{" + tensor("t", "F4", "[3]", "[0,2]") + "}", 2)));
}

TEST(safetensors_refuses_bad_lengths) {
  const std::string good = file_of("{" + kFloats + "}", 24);
  CHECK(parse(good)->find("a"));
  for (size_t cut = 0; cut < good.size(); ++cut) CHECK_THROWS("BAD_FILE", "m.safetensors: ", parse(good.substr(0, cut)));
  refuse({
      {"only 0 bytes", ""},
      {"only 7 bytes", std::string(7, '\0')},
      {"too small for JSON", file_of("", 0)},
      {"too small for JSON", file_of("{", 0)},
      {"truncated", file_of("{}", 0, 3)},
      {"truncated", file_of("{}", 0, 100000000)},
      {"over the limit", file_of("{}", 0, 100000001)},
      {"over the limit", file_of("{}", 0, UINT64_MAX - 1)},
      {"over the limit", file_of("{}", 0, uint64_t(1) << 63)},
      {"expected ',' or '}'", file_of("{" + kFloats + "}", 24, kFloats.size() + 1)},
      {"beyond the 23 bytes", file_of("{" + kFloats + "}", 23)},
      {"1 bytes at the end", file_of("{" + kFloats + "}", 25)},
      {"5 bytes at the end", file_of("{}", 5)},
  });
}

TEST(safetensors_refuses_bad_json) {
  auto header = [](const std::string& text) { return file_of(text, 0); };
  refuse({
      {"does not start with '{'", header(" {}")},
      {"does not start with '{'", header("[]")},
      {"does not start with '{'", header("\xef\xbb\xbf{}")},
      {"expected", header("{{")},
      {"found the end of the text", header("{ ")},
      {"white space", header("{}{}")},
      {"found byte 0x00", header(std::string("{}\0\0", 4))},
      {"expected a string", header("{,}")},
      {"expected a string", header("{a:1}")},
      {"expected a string", header("{'a':1}")},
      {"expected ':'", header("{\"a\" 1}")},
      {"expected an object", header("{\"a\":1}")},
      {"expected an object", header("{\"a\":null}")},
      {"expected an object", header("{\"a\":[[[[[[]]]]]]}")},
      {"expected a string", file_of("{" + kFloats + ",}", 24)},
      {"not closed", header("{\"a")},
      {"not closed", header("{\"a\\")},
      {"unknown escape", header("{\"\\x\":{}}")},
      {"hexadecimal", header("{\"\\u12g4\":{}}")},
      {"hexadecimal", header("{\"\\u12")},
      {"surrogate", header("{\"\\ud800\":{}}")},
      {"surrogate", header("{\"\\ud800\\u0041\":{}}")},
      {"surrogate", header("{\"\\udc00\":{}}")},
      {"control character", header("{\"a\nb\":{}}")},
      {"not UTF-8", header("{\"\x80\":{}}")},
      {"not UTF-8", header("{\"\xc0\xaf\":{}}")},          // overlong
      {"not UTF-8", header("{\"\xe0\x80\xaf\":{}}")},      // overlong
      {"not UTF-8", header("{\"\xed\xa0\x80\":{}}")},      // surrogate
      {"not UTF-8", header("{\"\xf4\x90\x80\x80\":{}}")},  // past U+10FFFF
      {"not UTF-8", header("{\"\xff\xfe\":{}}")},
      {"not UTF-8", header("{\"\xe2\x82")},
      {"expected a string", header("{\"__metadata__\":{\"a\":1}}")},
      {"expected a string", header("{\"__metadata__\":{\"a\":{}}}")},
      {"expected an object", header("{\"__metadata__\":\"a\"}")},
  });
}

TEST(safetensors_refuses_duplicate_and_unknown_keys) {
  refuse({
      {"duplicate key \"a\"", file_of("{" + kFloats + "," + tensor("a", "F32", "[2,3]", "[24,48]") + "}", 48)},
      {"duplicate key \"a\"", file_of("{" + tensor("a", "U8", "[0]", "[0,0]") + "," + tensor("\\u0061", "U8", "[0]", "[0,0]") + "}", 0)},
      {"duplicate key \"__metadata__\"", file_of("{\"__metadata__\":{},\"__metadata__\":{}}", 0)},
      {"__metadata__ has \"k\" twice", file_of("{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", 0)},
      {"\"dtype\" twice", file_of("{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1)},
      {"\"shape\" twice", file_of("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"shape\":[1],\"data_offsets\":[0,1]}}", 1)},
      {"\"data_offsets\" twice", file_of("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"data_offsets\":[0,1]}}", 1)},
      {"unknown key \"strides\"", file_of("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"strides\":[1]}}", 1)},
      {"no \"dtype\"", file_of("{\"a\":{\"shape\":[1],\"data_offsets\":[0,1]}}", 1)},
      {"no \"shape\"", file_of("{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1)},
      {"no \"data_offsets\"", file_of("{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1)},
      {"no \"dtype\"", file_of("{\"a\":{}}", 0)},
  });
}

TEST(safetensors_refuses_bad_shapes) {
  auto one = [](const char* dtype, const std::string& shape, const char* offsets, size_t data) {
    return file_of("{" + tensor("a", dtype, shape.c_str(), offsets) + "}", data);
  };
  std::string deep = "[1";
  for (int i = 0; i < 32; ++i) deep += ",1";
  std::string deepest = "[1";
  for (int i = 0; i < 31; ++i) deepest += ",1";
  CHECK(parse(one("U8", deepest + "]", "[0,1]", 1))->find("a")->shape.size() == 32);
  refuse({
      {"unknown dtype \"F33\"", one("F33", "[1]", "[0,4]", 4)},
      {"unknown dtype \"f32\"", one("f32", "[1]", "[0,4]", 4)},
      {"unknown dtype \"\"", one("", "[1]", "[0,4]", 4)},
      {"more than 32 dimensions", one("U8", deep + "]", "[0,1]", 1)},
      {"more than 2^53", one("U8", "[9007199254740993,0]", "[0,0]", 0)},
      {"beyond 64 bits", one("U8", "[18446744073709551616]", "[0,0]", 0)},
      {"beyond 64 bits", one("U8", "[99999999999999999999999]", "[0,0]", 0)},
      {"overflows", one("F32", "[4294967296,4294967296]", "[0,0]", 0)},            // 2^64 elements, 0 after wrapping
      {"overflows", one("F64", "[2305843009,4000000000]", "[0,8]", 8)},
      {"overflows", one("U8", "[0,9007199254740992,9007199254740992]", "[0,0]", 0)},
      {"expected a whole number, found '-'", one("U8", "[-1]", "[0,1]", 1)},
      {"expected a whole number, found '.'", one("U8", "[1.0]", "[0,1]", 1)},
      {"expected a whole number, found 'e'", one("U8", "[1e0]", "[0,1]", 1)},
      {"expected a whole number, found '\"'", one("U8", "[\"1\"]", "[0,1]", 1)},
      {"expected a whole number, found ']'", one("U8", "[1,]", "[0,1]", 1)},
      {"leading zero", one("U8", "[01]", "[0,1]", 1)},
      {"expected an array", one("U8", "1", "[0,1]", 1)},
      {"expected an array", one("U8", "null", "[0,1]", 1)},
  });
}

TEST(safetensors_refuses_bad_offsets) {
  auto two = [](const char* first, const char* second, size_t data) {
    return file_of("{" + tensor("a", "U8", "[4]", first) + "," + tensor("b", "U8", "[4]", second) + "}", data);
  };
  CHECK(parse(two("[4,8]", "[0,4]", 8))->tensors()[0].name == "b");
  refuse({
      {"overlaps", two("[0,4]", "[0,4]", 4)},
      {"overlaps", two("[0,4]", "[3,7]", 7)},
      {"hole", two("[0,4]", "[5,9]", 9)},
      {"hole", two("[1,5]", "[5,9]", 9)},
      {"beyond the 7 bytes", two("[0,4]", "[4,8]", 7)},
      {"end before they begin", two("[0,4]", "[8,4]", 8)},
      {"beyond", two("[0,4]", "[18446744073709551612,18446744073709551615]", 8)},
      {"beyond", two("[0,4]", "[4,18446744073709551615]", 8)},
      {"needs 4 bytes", two("[0,4]", "[4,7]", 7)},
      {"needs 4 bytes", two("[0,8]", "[8,12]", 12)},
      {"more than two", two("[0,4]", "[4,8,12]", 8)},
      {"needs two data_offsets, has 1", two("[0,4]", "[4]", 8)},
      {"needs two data_offsets, has 0", two("[0,4]", "[]", 8)},
      {"expected a whole number", two("[0,4]", "[-4,8]", 8)},
      {"overlaps", file_of("{" + kFloats + "," + tensor("b", "U8", "[0]", "[7,7]") + "}", 24)},
  });
}

TEST(safetensors_message_shows_a_hostile_name_safely) {
  std::string name(5000, 'x');
  try {
    parse(file_of("{" + tensor(("\\u001b[31m" + name).c_str(), "U8", "[4]", "[0,5]") + "}", 5));
    CHECK(false);
  } catch (const Error& e) {
    CHECK(std::string(e.what()).find('\x1b') == std::string::npos);
    CHECK(std::string(e.what()).size() < 500);
  }
}

TEST(safetensors_maps_files) {
  const auto path = temporary(file_of("{" + kFloats + "}", 24));
  {
    const auto file = SafetensorsFile::open(path.string());
    CHECK(file->find("a") && file->find("a")->data[0] == std::byte(11));
    std::filesystem::remove(path);
    CHECK(file->find("a")->data[23] == std::byte((23 * 37 + 11) & 255));  // the mapping outlives the name
  }
  CHECK_THROWS("NOT_FOUND", path.string(), SafetensorsFile::open(path.string()));
  CHECK_THROWS("NOT_FOUND", "no such file", SafetensorsFile::open((path / "below").string()));
  CHECK_THROWS("BAD_FILE", "not a regular file", SafetensorsFile::open(std::filesystem::temp_directory_path().string()));
  const auto empty = temporary("");
  CHECK_THROWS("BAD_FILE", "empty", SafetensorsFile::open(empty.string()));
  std::filesystem::remove(empty);
}

TEST(safetensors_converts_unaligned_data) {
  // A header of odd length puts every tensor at an odd address.
  std::string header = "{" + tensor("d", "F64", "[2]", "[0,16]") + "," + tensor("f", "F32", "[2]", "[16,24]") + "," +
                       tensor("b", "BF16", "[2]", "[24,28]") + "," + tensor("h", "F16", "[2]", "[28,32]") + "," +
                       tensor("i", "I32", "[1]", "[32,36]") + "}";
  if (header.size() % 2 == 0) header += ' ';
  std::string bytes = file_of(header, 0);
  const double d[2] = {1.0 / 3, -1e300};
  const float f[2] = {1.5f, -std::numeric_limits<float>::infinity()};
  const uint16_t halves[4] = {0x3fc0, 0x8001, 0x3c00, 0x0001};
  bytes.append(reinterpret_cast<const char*>(d), 16).append(reinterpret_cast<const char*>(f), 8);
  bytes.append(reinterpret_cast<const char*>(halves), 8).append(4, '\1');
  const auto file = parse(bytes);
  CHECK(!file->find("d")->aligned(8) && !file->find("b")->aligned(2) && file->find("d")->aligned(1));
  float out[2];
  copy_to_float(*file->find("d"), out);
  CHECK(out[0] == float(1.0 / 3) && out[1] == -std::numeric_limits<float>::infinity());
  copy_to_float(*file->find("f"), out);
  CHECK(std::memcmp(out, f, 8) == 0);
  copy_to_float(*file->find("b"), out);
  CHECK(out[0] == 1.5f && out[1] == -std::ldexp(1.0f, -133));
  copy_to_float(*file->find("h"), out);
  CHECK(out[0] == 1.0f && out[1] == std::ldexp(1.0f, -24));
  CHECK_THROWS("UNSUPPORTED", "I32", copy_to_float(*file->find("i"), out));
}
