#include <cstring>

#include "check.h"

// pluralign_tests [PART_OF_A_NAME]... ; --list prints the names. Exit status 1 where a test failed or none was chosen.
int main(int argc, char** argv) {
  using namespace pluralign::test;
  if (argc > 1 && std::strcmp(argv[1], "--list") == 0) {
    for (const Test& t : tests()) std::printf("%s\n", t.name);
    return 0;
  }
  int passed = 0, failed = 0;
  for (const Test& t : tests()) {
    bool chosen = argc < 2;
    for (int i = 1; i < argc; ++i) chosen = chosen || std::strstr(t.name, argv[i]);
    if (!chosen) continue;
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
