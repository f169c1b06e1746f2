// What the kernels share: products of blocks, and functions that the compiler turns into vector instructions.

#pragma once

#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include <omp.h>

namespace textsam {

// C (m, n) = A (m, k) B (k, n), or += with `add`; rows lie lda, ldb and ldc apart. One thread, no packing.
inline void multiply(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
                     float* c, int64_t ldc, bool add = false) {
  at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, add, a, b, c, false);
}

// first x^n + ... + last, unrolled, so that loops over it become vectors.
inline float polynomial(float, float sum) { return sum; }
template <typename... Rest>
inline float polynomial(float x, float first, float second, Rest... rest) {
  return polynomial(x, std::fma(first, x, second), rest...);
}

// exp(x) for x <= 88, within 2 units in the last place: 2^n times a polynomial on [-ln2 / 2, ln2 / 2].
inline float fast_exp(float x) {
  x = std::max(x, -87.0f);
  const float n = std::nearbyint(x * 1.44269504f);
  const float r = std::fma(n, -1.42860677e-6f, std::fma(n, -0.693145752f, x));
  const float p = polynomial(r, 1.38888889e-3f, 8.33333333e-3f, 4.16666667e-2f, 1.66666667e-1f, 0.5f, 1.0f, 1.0f);
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return p * scale;
}

// x / 2 (1 + erf(x / sqrt 2)), within 2e-6. erf is a quotient of polynomials in x^2, fitted on |x| < 3.85.
inline float gelu(float x) {
  const float t = std::min(std::max(x * 0.707106781f, -3.85f), 3.85f);
  const float z = t * t;
  const float p = polynomial(z, 2.090597356e-06f, 2.875955889e-04f, 3.762281642e-03f, 5.274694091e-02f,
                             1.899663339e-01f, 1.128379055f);
  const float q = polynomial(z, 3.865127381e-05f, 1.166921169e-03f, 1.495988492e-02f, 1.139790777e-01f,
                             5.016853136e-01f, 1.0f);
  return 0.5f * x * (1.0f + t * p / q);
}

// The largest of n values and `most`. Lanes are spelt out: compilers keep the order of a plain maximum.
inline float largest(const float* values, int64_t n, float most) {
  float lanes[16];
  std::fill(lanes, lanes + 16, most);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int j = 0; j < 16; ++j) lanes[j] = values[i + j] > lanes[j] ? values[i + j] : lanes[j];
  for (; i < n; ++i) lanes[0] = std::max(lanes[0], values[i]);
  return *std::max_element(lanes, lanes + 16);
}

// A block of memory that is aligned for vectors.
class Buffer {
 public:
  explicit Buffer(int64_t floats) : storage_(floats + 16) {}
  float* data() {
    return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(storage_.data()) + 63) & ~uintptr_t{63});
  }

 private:
  std::vector<float> storage_;
};

}  // namespace textsam
