#include <cstring>

#include "check.h"

// pluralign_tests [PART | ^START | I/N]...: tests whose names hold a PART and begin with no START, of N shares the I-th (from 1);
// --list prints the names. Exit
int main(int argc, char** argv) {
  using namespace pluralign::test;
  if (argc > 1 && std::strcmp(argv[1], "--list") == 0) {
    for (const Test& t : tests()) std::printf("%s\n", t.name);
    return 0;
  }
  int passed = 0, failed = 0, share = 1, shares = 1, at = 0;
  for (int i = 1; i < argc; ++i) std::sscanf(argv[i], "%d/%d", &share, &shares);
  if (share < 1 || share > shares) return 2;
  for (const Test& t : tests()) {
    bool parts = false, holds = false, left_out = false;
    for (int i = 1; i < argc; ++i) {
      if (std::strchr(argv[i], '/')) continue;
      if (argv[i][0] == '^') left_out = left_out || std::strncmp(t.name, argv[i] + 1, std::strlen(argv[i] + 1)) == 0;
      else parts = true, holds = holds || std::strstr(t.name, argv[i]);
    }
    if (left_out || (parts && !holds) || at++ % shares != share - 1) continue;
    failures() = 0;
    try {
      t.body();
    } catch (const pluralign::Error& e) {
      fail(t.name, 0, std::string("uncaught ") + e.code() + ": " + e.what());
    } catch (const std::exception& e) {
      fail(t.name, 0, std::string("uncaught: ") + e.what());
    }
    if (failures()) std::printf("FAILED %s\n", t.name);
    ++(failures() ? failed : passed);
    std::fflush(stdout);
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed || passed == 0 ? 1 : 0;
}
