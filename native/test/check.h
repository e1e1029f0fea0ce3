// A small test harness. TEST(name) { ... } registers a test; a failed check is printed with its place and the test goes
// on; an exception ends the test. The executable runs all tests, or those whose names contain one of its arguments.
#pragma once
#include <cmath>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "base/status.h"

namespace pluralign::test {

struct Test {
  const char* name;
  void (*body)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

inline int& failures() {  // of the running test
  static int count = 0;
  return count;
}

struct Register {
  Register(const char* name, void (*body)()) { tests().push_back({name, body}); }
};

inline bool fail(const char* file, int line, const std::string& message) {
  ++failures();
  std::printf("%s:%d: %s\n", file, line, message.c_str());
  return false;
}

inline bool near(const char* file, int line, const char* what, double actual, double expected, double tolerance) {
  if (std::abs(actual - expected) <= tolerance || actual == expected) return true;  // NaN fails
  char text[256];
  std::snprintf(text, sizeof text, ": %.9g, expected %.9g within %.3g", actual, expected, tolerance);
  return fail(file, line, what + std::string(text));
}

template <class Body>
bool throws(const char* file, int line, const char* what, const std::string& code, const std::string& part, Body&& body) {
  try {
    body();
  } catch (const Error& e) {
    if (e.code() == code && std::string(e.what()).find(part) != std::string::npos) return true;
    return fail(file, line, std::string(what) + " threw " + e.code() + " \"" + e.what() + "\", expected " + code +
                                " with \"" + part + "\"");
  }
  return fail(file, line, std::string(what) + " did not throw " + code);
}

}  // namespace pluralign::test

#define PLURALIGN_JOIN_(a, b) a##b
#define PLURALIGN_JOIN(a, b) PLURALIGN_JOIN_(a, b)

#define TEST(name)                                                                        \
  static void PLURALIGN_JOIN(test_, name)();                                              \
  static const ::pluralign::test::Register PLURALIGN_JOIN(register_, name)(#name, PLURALIGN_JOIN(test_, name)); \
  static void PLURALIGN_JOIN(test_, name)()

// Each check is an expression: true where it held.
#define CHECK(condition) ((condition) ? true : ::pluralign::test::fail(__FILE__, __LINE__, "CHECK(" #condition ")"))
#define CHECK_NEAR(actual, expected, tolerance) \
  ::pluralign::test::near(__FILE__, __LINE__, #actual, double(actual), double(expected), double(tolerance))
// A pluralign::Error of that code whose message contains `part`.
#define CHECK_THROWS(code, part, expression) \
  ::pluralign::test::throws(__FILE__, __LINE__, #expression, code, part, [&] { (void)(expression); })
