#include "amx_emulator.h"

#include <atomic>
#include <cmath>
#include <cstring>

#include "base/dtype.h"

#if defined(__x86_64__) && defined(__linux__)
#include <signal.h>
#include <ucontext.h>

namespace pluralign::test {
namespace {

struct Tiles {
  uint8_t layout[64];  // as LDTILECFG reads it: palette, start row, …, bytes of a row from 16, rows from 48
  uint8_t data[8][16][64];
  bool ready;
  int rows(int t) const { return layout[48 + t]; }
  int bytes(int t) const { return layout[16 + 2 * t] | layout[17 + 2 * t] << 8; }
};
thread_local Tiles tiles;
std::atomic<int64_t> count{0};
struct sigaction previous;

// General registers by their number in an instruction.
int64_t reg(const ucontext_t* u, int n) {
  static constexpr int place[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                    REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  return u->uc_mcontext.gregs[place[n]];
}

struct Decoded {
  int prefix, opcode, vvvv, mod, reg, rm;  // prefix: 0 none, 1 66, 2 F3, 3 F2
  int64_t base = 0, index = 0;             // of the memory operand; index times its scale
  int length = 0;
};

// VEX.128.W0 instructions of map 0F38 with a ModRM byte; false for anything else.
bool decode(const ucontext_t* u, const uint8_t* at, Decoded& d) {
  const uint8_t* p = at;
  if (*p++ != 0xc4) return false;
  const int x = !(*p & 0x40), b = !(*p & 0x20);
  if ((*p & 0x1f) != 2 || !(*p & 0x80)) return false;  // map; tiles have numbers below 8
  ++p;
  if (*p & 0x84) return false;  // W, L
  d.vvvv = ~(*p >> 3) & 15;
  d.prefix = *p & 3;
  ++p;
  d.opcode = *p++;
  d.mod = *p >> 6;
  d.reg = *p >> 3 & 7;
  d.rm = *p++ & 7;
  if (d.mod != 3) {
    bool after = false;  // an address relative to the next instruction
    bool no_base = false;
    if (d.rm == 4) {
      const int scale = *p >> 6, index = (*p >> 3 & 7) | x << 3, base = (*p & 7) | b << 3;
      ++p;
      if (index != 4) d.index = reg(u, index) << scale;
      no_base = (base & 7) == 5 && d.mod == 0;
      if (!no_base) d.base = reg(u, base);
    } else if (d.rm == 5 && d.mod == 0) {
      after = true;
    } else {
      d.base = reg(u, d.rm | b << 3);
    }
    if (d.mod == 1) {
      d.base += int8_t(*p++);
    } else if (d.mod == 2 || no_base || after) {
      int32_t offset;
      std::memcpy(&offset, p, 4);
      d.base += offset;
      p += 4;
    }
    if (after) d.base += int64_t(p - at) + u->uc_mcontext.gregs[REG_RIP];
  }
  d.length = int(p - at);
  return true;
}

float flushed(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.f, x) : x; }
float at(const uint8_t* row, int i) {
  bf16 b;
  std::memcpy(&b, row + 2 * i, 2);
  return flushed(to_float(b));
}

// Even and odd k sum apart, then together, then onto C; subnormals count as zero (Intel's manual, volume 2, TDPBF16PS).
void dot(int c, int a, int b) {
  for (int m = 0; m < tiles.rows(c); ++m) {
    float even[16] = {}, odd[16] = {};
    for (int k = 0; k < tiles.bytes(a) / 4; ++k)
      for (int n = 0; n < tiles.bytes(c) / 4; ++n) {
        even[n] = flushed(std::fma(at(tiles.data[a][m], 2 * k), at(tiles.data[b][k], 2 * n), even[n]));
        odd[n] = flushed(std::fma(at(tiles.data[a][m], 2 * k + 1), at(tiles.data[b][k], 2 * n + 1), odd[n]));
      }
    for (int n = 0; n < tiles.bytes(c) / 4; ++n) {
      float sum;
      std::memcpy(&sum, tiles.data[c][m] + 4 * n, 4);
      sum = flushed(flushed(sum) + flushed(even[n] + odd[n]));
      std::memcpy(tiles.data[c][m] + 4 * n, &sum, 4);
    }
  }
}

// What a processor would refuse is refused: a tile without a layout, a dot of tiles that do not fit.
bool execute(const Decoded& d) {
  auto* address = reinterpret_cast<uint8_t*>(d.base);
  const bool memory = d.mod != 3;
  const auto usable = [](int t) { return tiles.ready && tiles.rows(t) > 0 && tiles.bytes(t) > 0; };
  if (d.opcode == 0x49 && memory && d.reg == 0 && d.prefix == 0) {  // LDTILECFG
    std::memcpy(tiles.layout, address + d.index, 64);
    std::memset(tiles.data, 0, sizeof tiles.data);
    tiles.ready = tiles.layout[0] == 1;
    for (int t = 0; t < 8; ++t)
      if (tiles.rows(t) > 16 || tiles.bytes(t) > 64 || tiles.bytes(t) % 4 || !tiles.rows(t) != !tiles.bytes(t)) return false;
    return tiles.layout[0] <= 1;
  }
  if (d.opcode == 0x49 && memory && d.reg == 0 && d.prefix == 1) {  // STTILECFG
    std::memcpy(address + d.index, tiles.layout, 64);
    return true;
  }
  if (d.opcode == 0x49 && !memory && d.prefix == 0 && d.reg == 0 && d.rm == 0) {  // TILERELEASE
    std::memset(&tiles, 0, sizeof tiles);
    return true;
  }
  if (d.opcode == 0x49 && !memory && d.prefix == 3 && d.rm == 0) {  // TILEZERO
    if (!usable(d.reg)) return false;
    std::memset(tiles.data[d.reg], 0, sizeof tiles.data[0]);
    return true;
  }
  if (d.opcode == 0x4b && memory && d.rm == 4 && d.prefix != 0) {  // TILELOADD, TILELOADDT1, TILESTORED
    if (!usable(d.reg)) return false;
    if (d.prefix != 2) std::memset(tiles.data[d.reg], 0, sizeof tiles.data[0]);
    for (int r = 0; r < tiles.rows(d.reg); ++r) {
      uint8_t *line = address + r * d.index, *row = tiles.data[d.reg][r];
      std::memcpy(d.prefix == 2 ? line : row, d.prefix == 2 ? row : line, size_t(tiles.bytes(d.reg)));
    }
    return true;
  }
  if (d.opcode == 0x5c && !memory && d.prefix == 2) {  // TDPBF16PS
    const int c = d.reg, a = d.rm, b = d.vvvv;
    if (b > 7 || a == b || a == c || b == c || !usable(a) || !usable(b) || !usable(c)) return false;
    if (tiles.rows(c) != tiles.rows(a) || tiles.bytes(a) / 4 != tiles.rows(b) || tiles.bytes(b) != tiles.bytes(c)) return false;
    dot(c, a, b);
    return true;
  }
  return false;
}

void on_illegal(int signal, siginfo_t* info, void* context) {
  auto* u = static_cast<ucontext_t*>(context);
  Decoded d;
  if (decode(u, reinterpret_cast<const uint8_t*>(u->uc_mcontext.gregs[REG_RIP]), d) && execute(d)) {
    u->uc_mcontext.gregs[REG_RIP] += d.length;
    count.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  sigaction(signal, &previous, nullptr);  // the instruction traps again, and then as it would have
}

}  // namespace

bool emulate_amx() {
  static const bool installed = [] {
    struct sigaction action = {};
    action.sa_sigaction = on_illegal;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    return sigaction(SIGILL, &action, &previous) == 0;
  }();
  return installed;
}

int64_t emulated_instructions() { return count.load(); }

}  // namespace pluralign::test

#else

namespace pluralign::test {
bool emulate_amx() { return false; }
int64_t emulated_instructions() { return 0; }
}  // namespace pluralign::test

#endif
