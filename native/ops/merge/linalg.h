// Small dense linear algebra in float64 for merging: row-major, plain loops that vectorise over columns.
#pragma once
#include <cstdint>
#include <vector>

#include "base/cancel.h"
#include "base/pool.h"

namespace pluralign {

// C[m × n] = A[m × k] B[k × n]
void multiply(Pool& pool, double* c, const double* a, const double* b, int64_t m, int64_t k, int64_t n);
// The same with A given transposed, [k × m].
void multiply_transposed(Pool& pool, double* c, const double* a, const double* b, int64_t m, int64_t k, int64_t n);

// Eigenvalues of the symmetric s [n × n], largest first, and their vectors as rows of `vectors` [n × n]. s is destroyed.
// Householder reduction to tridiagonal form, then implicit QL.
void eigen_symmetric(double* s, int64_t n, double* values, double* vectors, const Cancel& cancel);

// Columns of x [n × k] as rows of an orthonormal q [rank × n] times r [rank × k]: x = qᵀ r. Modified Gram–Schmidt, twice;
// columns that depend on earlier ones add no row. Returns the rank.
int64_t orthonormal(const double* x, int64_t n, int64_t k, std::vector<double>& q, std::vector<double>& r);

}  // namespace pluralign
