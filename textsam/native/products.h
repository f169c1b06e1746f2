// Products with weights that do not change, and what is done to their rows.
//
// Weights lie in panels of `kPanel` columns, so that a tile of results fits the registers.

#pragma once

#include "kernels.h"

namespace textsam {
namespace {  // each file has its own, in which only what it uses is compiled

#if defined(__AVX512F__)
constexpr int64_t kLanes = 16, kTile = 12;
#else
constexpr int64_t kLanes = 8, kTile = 6;
#endif
constexpr int64_t kPanel = 2 * kLanes;
constexpr int64_t kWorthSharing = 1 << 18;  // weights of a product
typedef float Vector __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

inline Vector& vector(float* x) { return *reinterpret_cast<Vector*>(x); }
inline const Vector& vector(const float* x) { return *reinterpret_cast<const Vector*>(x); }
inline Vector clamp6(Vector x) {
  const Vector zero = {}, six = zero + 6.0f;
  x = x > zero ? x : zero;
  return x < six ? x : six;
}
inline int64_t padded(int64_t columns) { return (columns + kPanel - 1) / kPanel * kPanel; }

// Panels of (k, n) weights and padded (n,) biases.
struct Weights {
  const float *panels, *bias;
  int64_t k, n;
};

// Takes parameters off a list.
struct List {
  const float* const* next;
  Weights product(int64_t k, int64_t n) {
    const float *panels = *next++, *bias = *next++;
    return {panels, bias, k, n};
  }
};

// What happens to a tile of results on its way to memory.
enum class End { kPlain, kClamp6, kAdd };

// M rows of the first V vectors of one panel's results: the sum of `parts` products of k each. `to` has room for
// `columns` of them; `other` is what kAdd adds, laid out as `to`.
template <int64_t M, int64_t V, End end>
void tile(const float* const* a, int64_t parts, int64_t shift, int64_t lda, const float* panel, const float* bias,
          int64_t k, float* to, int64_t ldt, int64_t columns, const float* other) {
  Vector sums[M][V];
  for (int64_t m = 0; m < M; ++m)
    for (int64_t v = 0; v < V; ++v) sums[m][v] = vector(bias + v * kLanes);
  for (int64_t part = 0; part < parts; ++part) {
    const float* rows = a[part] + shift;
    for (int64_t i = 0; i < k; ++i, panel += kPanel) {
      Vector weights[V];
      for (int64_t v = 0; v < V; ++v) weights[v] = vector(panel + v * kLanes);
      for (int64_t m = 0; m < M; ++m)
        for (int64_t v = 0; v < V; ++v) sums[m][v] += rows[m * lda + i] * weights[v];
    }
  }
  for (int64_t m = 0; m < M; ++m) {
    float* row = to + m * ldt;
    if (columns >= V * kLanes) {
      for (int64_t v = 0; v < V; ++v) {
        if (end == End::kClamp6) sums[m][v] = clamp6(sums[m][v]);
        if (end == End::kAdd) sums[m][v] += vector(other + m * ldt + v * kLanes);
        vector(row + v * kLanes) = sums[m][v];
      }
    } else {
      const float* values = reinterpret_cast<const float*>(sums[m]);
      for (int64_t j = 0; j < columns; ++j) {
        const float value = end == End::kClamp6 ? std::min(std::max(values[j], 0.0f), 6.0f) : values[j];
        row[j] = value + (end == End::kAdd ? other[m * ldt + j] : 0.0f);
      }
    }
  }
}

template <End end, int64_t V, int64_t M, typename... Rest>
void tile_of(int64_t rows, Rest... rest) {
  if (rows == M) return tile<M, V, end>(rest...);
  if constexpr (M > 1) tile_of<end, V, M - 1>(rows, rest...);
}

// to (m, columns) = the sum of A (m, k) W over the parts of A, and of k rows of W each, + bias, ended. Rows are spread
// evenly over tiles: 14 are 7 and 7, not 12 and 2. Of a last panel that is half empty only half is computed.
template <End end>
void product(int64_t m, const float* const* a, int64_t parts, int64_t lda, const Weights& w, float* to, int64_t ldt,
             int64_t columns, const float* other = nullptr) {
  const int64_t tiles = (m + kTile - 1) / kTile;
  for (int64_t first = 0; first < w.n; first += kPanel)
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t top = m * t / tiles, rows = m * (t + 1) / tiles - top;
      const auto compute = [&](auto whole) {
        constexpr int64_t vectors = decltype(whole)::value ? 2 : 1;
        tile_of<end, vectors, kTile>(rows, a, parts, top * lda, lda, w.panels + first * w.k * parts, w.bias + first,
                                     w.k, to + top * ldt + first, ldt, columns - first,
                                     other ? other + top * ldt + first : nullptr);
      };
      // Where rows are as wide as whole panels, all of the last one is written, zeros or not.
      w.n - first > kLanes || columns > w.n ? compute(std::true_type{}) : compute(std::false_type{});
    }
}

template <End end>
void product(int64_t m, const float* a, int64_t lda, const Weights& w, float* to, int64_t ldt, int64_t columns,
             const float* other = nullptr) {
  product<end>(m, &a, 1, lda, w, to, ldt, columns, other);
}

// The same, its columns shared out among threads where the weights are too many for one to read at the memory's speed.
template <End end>
void shared_product(int64_t threads, int64_t m, const float* a, int64_t lda, const Weights& w, float* to, int64_t ldt,
                    int64_t columns, const float* other = nullptr) {
  const int64_t panels = (w.n + kPanel - 1) / kPanel, helpers = w.k * w.n < kWorthSharing ? 1 : threads;
#pragma omp parallel for num_threads(helpers)
  for (int64_t t = 0; t < helpers; ++t) {
    const int64_t first = panels * t / helpers * kPanel, last = std::min(panels * (t + 1) / helpers * kPanel, w.n);
    if (first < last)
      product<end>(m, a, lda, {w.panels + first * w.k, w.bias + first, w.k, last - first}, to + first, ldt,
                   columns - first, other ? other + first : nullptr);
  }
}

// Each of m rows of `width` channels to mean 0 and variance 1, scaled and shifted.
void normalise(float* rows, int64_t m, int64_t width, const float* scale, const float* shift, float epsilon) {
  for (float* row = rows; row < rows + m * width; row += width) {
    Vector sum = {}, square = {};
    for (int64_t c = 0; c < width; c += kLanes) sum += vector(row + c);
    float mean = 0, variance = 0;
    for (int64_t j = 0; j < kLanes; ++j) mean += sum[j];
    mean /= width;
    for (int64_t c = 0; c < width; c += kLanes) {
      const Vector away = vector(row + c) - mean;
      square += away * away;
    }
    for (int64_t j = 0; j < kLanes; ++j) variance += square[j];
    const float factor = 1 / std::sqrt(variance / width + epsilon);
    for (int64_t c = 0; c < width; c += kLanes)
      vector(row + c) = (vector(row + c) - mean) * factor * vector(scale + c) + vector(shift + c);
  }
}

void gelu_of(float* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] = gelu(values[i]);
}

// Memory that stays for the next call: fresh memory costs more than what is done with it. Each number is another place.
float* scratch(int64_t number, int64_t floats) {
  thread_local std::vector<Buffer> kept;
  thread_local std::vector<int64_t> sizes;
  while (static_cast<int64_t>(kept.size()) <= number) kept.emplace_back(0), sizes.push_back(0);
  if (sizes[number] < floats) kept[number] = Buffer(sizes[number] = floats);
  return kept[number].data();
}

}  // namespace
}  // namespace textsam
