// All that the vector code includes.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>

#include "ops/table.h"
