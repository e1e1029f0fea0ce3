// All that the vector code includes.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>

#include "ops/bilinear/likelihood.h"
#include "ops/table.h"
