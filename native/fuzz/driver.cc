// Stands in for libFuzzer where the compiler has none: runs the target on every seed, then on random mutations of them.
//   TARGET [-max_total_time=SECONDS] [-seed=N] [-artifact_prefix=FOLDER/] SEED_FILE_OR_FOLDER...
// An input that kills the process is written to <prefix>crash first where a sanitizer reports it.
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
extern "C" void __sanitizer_set_death_callback(void (*)()) __attribute__((weak));

namespace {

using Bytes = std::vector<uint8_t>;
constexpr size_t kMaxSize = 1 << 16;
Bytes current;
std::string crash_path = "crash";

void save_current() {
  std::ofstream(crash_path, std::ios::binary).write(reinterpret_cast<const char*>(current.data()), std::streamsize(current.size()));
  std::fprintf(stderr, "input of %zu bytes written to %s\n", current.size(), crash_path.c_str());
}

void on_signal(int number) {
  save_current();
  std::signal(number, SIG_DFL);
  std::raise(number);
}

Bytes mutate(const std::vector<Bytes>& seeds, std::mt19937_64& random) {
  auto below = [&](size_t n) { return n ? size_t(random() % n) : 0; };
  Bytes out = seeds[below(seeds.size())];
  const char* tokens[] = {"{", "}", "[", "]", ",", ":", "\"", "\\", "\\u0000", "\\ud800", "null", "-1", "0", "1e9", "4294967296",
                          "18446744073709551615", "9007199254740992", "\"__metadata__\"", "\"dtype\"", "\"shape\"", "\"data_offsets\"",
                          "\"F32\"", "\"BF16\"", "\"F4\"", "\"U8\"", "[]", "\xff", "\xed\xa0\x80", " "};
  for (size_t edits = 1 + below(4); edits; --edits) {
    const size_t at = below(out.size() + 1);
    switch (below(7)) {
      case 0:
        if (at < out.size()) out[at] ^= uint8_t(1u << below(8));
        break;
      case 1:
        if (at < out.size()) out[at] = uint8_t(random());
        break;
      case 2:
        out.erase(out.begin() + std::ptrdiff_t(at), out.begin() + std::ptrdiff_t(std::min(out.size(), at + 1 + below(16))));
        break;
      case 3: {
        const char* token = tokens[below(std::size(tokens))];
        out.insert(out.begin() + std::ptrdiff_t(at), token, token + std::strlen(token));
        break;
      }
      case 4: {  // a piece of any seed
        const Bytes& other = seeds[below(seeds.size())];
        const size_t from = below(other.size()), length = below(other.size() - from + 1);
        out.insert(out.begin() + std::ptrdiff_t(at), other.begin() + std::ptrdiff_t(from), other.begin() + std::ptrdiff_t(from + length));
        break;
      }
      case 5:
        if (at < out.size() && out[at] >= '0' && out[at] <= '9') out[at] = uint8_t('0' + below(10));
        break;
      default:
        if (at < out.size()) out.resize(at);
    }
  }
  if (out.size() > kMaxSize) out.resize(kMaxSize);
  return out;
}

Bytes read_file(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return Bytes(std::istreambuf_iterator<char>(in), {});
}

bool option(const char* argument, const char* name, std::string& value) {
  const size_t length = std::strlen(name);
  if (std::strncmp(argument, name, length) != 0) return false;
  value = argument + length;
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<Bytes> seeds;
  std::string seconds = "60", seed = "1", prefix;
  for (int i = 1; i < argc; ++i) {
    if (option(argv[i], "-max_total_time=", seconds) || option(argv[i], "-seed=", seed) ||
        option(argv[i], "-artifact_prefix=", prefix) || argv[i][0] == '-')
      continue;
    if (!std::filesystem::is_directory(argv[i])) {
      seeds.push_back(read_file(argv[i]));
      continue;
    }
    for (const auto& entry : std::filesystem::directory_iterator(argv[i])) seeds.push_back(read_file(entry.path()));
  }
  if (seeds.empty()) seeds.emplace_back();
  std::sort(seeds.begin(), seeds.end());  // a run depends on the seed alone, not on the folder's order
  crash_path = prefix + "crash";
  if (__sanitizer_set_death_callback) __sanitizer_set_death_callback(save_current);
  std::signal(SIGABRT, on_signal);

  for (const Bytes& s : seeds) {
    current = s;
    LLVMFuzzerTestOneInput(current.data(), current.size());
  }
  std::mt19937_64 random(std::strtoull(seed.c_str(), nullptr, 10));
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::strtol(seconds.c_str(), nullptr, 10));
  uint64_t runs = 0;
  while (std::chrono::steady_clock::now() < end) {
    for (int i = 0; i < 256; ++i, ++runs) {
      current = mutate(seeds, random);
      LLVMFuzzerTestOneInput(current.data(), current.size());
    }
  }
  std::printf("Done %llu runs, no failure\n", static_cast<unsigned long long>(runs));
}
