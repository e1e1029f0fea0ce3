// All that the vector code includes.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>

#include "ops/bilinear/likelihood.h"
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

#include "ops/table.h"
