// Layers of the small models, row by row: what a block widens stays in the cache and is never a map in memory.
//
// Maps are channels last. Weights of products lie in panels of `kPanel` columns, so that a tile of results fits the
// registers; rows between the layers of a block are as wide as whole panels. Borders are TensorFlow's SAME: all of it
// after an even side at stride 2.

#include "kernels.h"

namespace textsam {
namespace {

#if defined(__AVX512F__)
constexpr int64_t kLanes = 16, kTile = 12;
#else
constexpr int64_t kLanes = 8, kTile = 6;
#endif
constexpr int64_t kPanel = 2 * kLanes;
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

// What happens to a tile of results on its way to memory.
enum class End { kPlain, kClamp6, kAdd };

// M rows of one panel's results: the sum of `parts` products of k each. `to` has room for `columns` of them; `other` is
// what kAdd adds, laid out as `to`.
template <int64_t M, End end>
void tile(const float* const* a, int64_t parts, int64_t shift, int64_t lda, const float* panel, const float* bias,
          int64_t k, float* to, int64_t ldt, int64_t columns, const float* other) {
  Vector sums[M][2];
  for (int64_t m = 0; m < M; ++m) sums[m][0] = vector(bias), sums[m][1] = vector(bias + kLanes);
  for (int64_t part = 0; part < parts; ++part) {
    const float* rows = a[part] + shift;
    for (int64_t i = 0; i < k; ++i, panel += kPanel) {
      const Vector left = vector(panel), right = vector(panel + kLanes);
      for (int64_t m = 0; m < M; ++m) {
        sums[m][0] += rows[m * lda + i] * left;
        sums[m][1] += rows[m * lda + i] * right;
      }
    }
  }
  for (int64_t m = 0; m < M; ++m) {
    if (end == End::kClamp6) sums[m][0] = clamp6(sums[m][0]), sums[m][1] = clamp6(sums[m][1]);
    float* row = to + m * ldt;
    if (columns >= kPanel) {
      if (end == End::kAdd) sums[m][0] += vector(other + m * ldt), sums[m][1] += vector(other + m * ldt + kLanes);
      vector(row) = sums[m][0];
      vector(row + kLanes) = sums[m][1];
    } else {
      const float* values = reinterpret_cast<const float*>(sums[m]);
      for (int64_t j = 0; j < columns; ++j) row[j] = values[j] + (end == End::kAdd ? other[m * ldt + j] : 0.0f);
    }
  }
}

template <End end, int64_t M, typename... Rest>
void tile_of(int64_t rows, Rest... rest) {
  if (rows == M) return tile<M, end>(rest...);
  if constexpr (M > 1) tile_of<end, M - 1>(rows, rest...);
}

// to (m, columns) = the sum of A (m, k) W over the parts of A, and of k rows of W each, + bias, ended. Rows are spread
// evenly over tiles: 14 are 7 and 7, not 12 and 2.
template <End end>
void product(int64_t m, const float* const* a, int64_t parts, int64_t lda, const Weights& w, float* to, int64_t ldt,
             int64_t columns, const float* other = nullptr) {
  const int64_t tiles = (m + kTile - 1) / kTile;
  for (int64_t first = 0; first < w.n; first += kPanel)
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t top = m * t / tiles, rows = m * (t + 1) / tiles - top;
      tile_of<end, kTile>(rows, a, parts, top * lda, lda, w.panels + first * w.k * parts, w.bias + first, w.k,
                          to + top * ldt + first, ldt, columns - first, other ? other + top * ldt + first : nullptr);
    }
}

template <End end>
void product(int64_t m, const float* a, int64_t lda, const Weights& w, float* to, int64_t ldt, int64_t columns,
             const float* other = nullptr) {
  product<end>(m, &a, 1, lda, w, to, ldt, columns, other);
}

// One side under a 3 x 3 window with SAME borders.
struct Side {
  int64_t in, out, stride, before;
  Side(int64_t size, int64_t step)
      : in(size), out((size + step - 1) / step), stride(step),
        before(std::max<int64_t>((out - 1) * step + 3 - size, 0) / 2) {}
};

// A row of a depthwise 3 x 3 product: three rows of `width` channels, each behind `before` columns of zeros, to
// `across.out` columns. Weights (9, width), bias (width,); `width` is a multiple of `kLanes`.
template <bool clamped>
void depthwise(const float* const* rows, const Side& across, int64_t width, const float* weights, const float* bias,
               float* to) {
  for (int64_t c = 0; c < width; c += kLanes) {
    Vector w[9];
    for (int64_t i = 0; i < 9; ++i) w[i] = vector(weights + i * width + c);
    const Vector start = vector(bias + c);
    for (int64_t x = 0; x < across.out; ++x) {
      const int64_t left = x * across.stride * width + c;
      Vector sum = start;
      for (int64_t y = 0; y < 3; ++y)
        for (int64_t i = 0; i < 3; ++i) sum += w[3 * y + i] * vector(rows[y] + left + i * width);
      vector(to + x * width + c) = clamped ? clamp6(sum) : sum;
    }
  }
}

// Three rows of a map that is read from top to bottom, of which each is made once, and a row of zeros for the borders.
class Ring {  // all zeros at first, as a buffer is
 public:
  Ring(int64_t columns, int64_t width, int64_t before)
      : size_((columns + 3) * width), offset_(before * width), room_(4 * size_) {}
  template <typename Make>
  void window(int64_t top, int64_t height, Make make, const float** rows) {
    if (next_ < std::max<int64_t>(top, 0)) next_ = std::max<int64_t>(top, 0);
    for (; next_ < std::min(top + 3, height); ++next_) make(next_, row(next_ % 3) + offset_);
    for (int64_t i = 0; i < 3; ++i) rows[i] = top + i < 0 || top + i >= height ? row(3) : row((top + i) % 3);
  }

 private:
  float* row(int64_t i) { return room_.data() + i * size_; }
  int64_t size_, offset_, next_ = 0;
  Buffer room_;
};

// Widened rows through a depthwise product into narrow ones; `widen(y, to)` makes a row of `wide` channels.
template <typename Widen>
void squeeze(const Side& down, const Side& across, int64_t wide, const float* weights, const float* bias,
             const Weights& project, const float* shortcut, float* out, int64_t threads, Widen widen) {
#pragma omp parallel num_threads(threads)
  {
    const int64_t all = omp_get_num_threads(), me = omp_get_thread_num();
    const int64_t first = down.out * me / all, last = down.out * (me + 1) / all;
    Ring ring(across.in, wide, across.before);
    Buffer squeezed(across.out * wide);
    for (int64_t y = first; y < last; ++y) {
      const float* rows[3];
      ring.window(y * down.stride - down.before, down.in, widen, rows);
      depthwise<true>(rows, across, wide, weights, bias, squeezed.data());
      const int64_t place = y * across.out * project.n;
      if (shortcut)
        product<End::kAdd>(across.out, squeezed.data(), wide, project, out + place, project.n, project.n,
                           shortcut + place);
      else
        product<End::kPlain>(across.out, squeezed.data(), wide, project, out + place, project.n, project.n);
    }
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

}  // namespace
}  // namespace textsam

extern "C" {

// Columns of a panel of weights.
int64_t textsam_panel() { return textsam::kPanel; }

// Pixels (3, h, w) by a 3 x 3 product of stride 2, then as `textsam_squeeze`, to (h / 2, w / 2, narrow).
void textsam_stem(int64_t h, int64_t w, int64_t wide, int64_t narrow, const float* pixels, const float* widen_panels,
                  const float* widen_bias, const float* depth, const float* depth_bias, const float* project_panels,
                  const float* project_bias, float* out, int64_t threads) {
  using namespace textsam;
  const Side down(h, 2), across(w, 2), inner_down(down.out, 1), inner_across(across.out, 1);
  const Weights first{widen_panels, widen_bias, 27, wide}, project{project_panels, project_bias, wide, narrow};
  const int64_t width = padded(wide);
  squeeze(inner_down, inner_across, width, depth, depth_bias, project, nullptr, out, threads, [&](int64_t y, float* to) {
    thread_local std::vector<float> patches;
    patches.assign(across.out * 27, 0.0f);
    for (int64_t c = 0; c < 3; ++c)
      for (int64_t i = 0; i < 3; ++i) {
        const int64_t row = y * 2 - down.before + i;
        if (row < 0 || row >= h) continue;
        const float* line = pixels + (c * h + row) * w;
        for (int64_t j = 0; j < 3; ++j) {
          const int64_t shift = j - across.before;
          float* patch = patches.data() + (c * 3 + i) * 3 + j;
          for (int64_t x = 0; x < across.out; ++x, patch += 27)
            if (const int64_t column = 2 * x + shift; column >= 0 && column < w) *patch = line[column];
        }
      }
    product<End::kClamp6>(across.out, patches.data(), 27, first, to, width, width);
  });
}

// An inverted residual: (h, w, in) widened, a depthwise 3 x 3 product, narrowed to (h / stride, w / stride, narrow).
void textsam_squeeze(int64_t h, int64_t w, int64_t in, int64_t wide, int64_t narrow, int64_t stride, int64_t shortcut,
                     const float* x, const float* widen_panels, const float* widen_bias, const float* depth,
                     const float* depth_bias, const float* project_panels, const float* project_bias, float* out,
                     int64_t threads) {
  using namespace textsam;
  const Weights first{widen_panels, widen_bias, in, wide}, project{project_panels, project_bias, wide, narrow};
  const int64_t width = padded(wide);
  squeeze(Side(h, stride), Side(w, stride), width, depth, depth_bias, project, shortcut ? x : nullptr, out, threads,
          [&](int64_t y, float* to) { product<End::kClamp6>(w, x + y * w * in, in, first, to, width, width); });
}

// A depthwise 3 x 3 product, layer norm, two products with GELU between them, and the map itself: (h, w, channels),
// channels a multiple of a panel.
void textsam_separable(int64_t h, int64_t w, int64_t channels, int64_t wide, const float* x, const float* depth,
                       const float* depth_bias, const float* scale, const float* shift, float epsilon,
                       const float* widen_panels, const float* widen_bias, const float* narrow_panels,
                       const float* narrow_bias, float* out, int64_t threads) {
  using namespace textsam;
  const Side down(h, 1), across(w, 1);
  const Weights first{widen_panels, widen_bias, channels, wide}, second{narrow_panels, narrow_bias, wide, channels};
  const int64_t width = padded(wide);
#pragma omp parallel num_threads(threads)
  {
    const int64_t all = omp_get_num_threads(), me = omp_get_thread_num();
    Ring ring(w, channels, across.before);
    Buffer mixed(w * channels), hidden(w * width);
    for (int64_t y = h * me / all; y < h * (me + 1) / all; ++y) {
      const float* rows[3];
      ring.window(
          y - 1, h,
          [&](int64_t row, float* to) { std::memcpy(to, x + row * w * channels, sizeof(float) * w * channels); }, rows);
      depthwise<false>(rows, across, channels, depth, depth_bias, mixed.data());
      normalise(mixed.data(), w, channels, scale, shift, epsilon);
      product<End::kPlain>(w, mixed.data(), channels, first, hidden.data(), width, width);
      float* values = hidden.data();
      for (int64_t i = 0; i < w * width; ++i) values[i] = gelu(values[i]);
      product<End::kAdd>(w, values, width, second, out + y * w * channels, channels, channels, x + y * w * channels);
    }
  }
}

// A 3 x 3 product with zeros around (h, w, in), plus `other` where there is one, and GELU of it where asked for, to
// (h, w, n). Weights are (9 * in, n), place by place.
void textsam_convolve(int64_t h, int64_t w, int64_t in, int64_t n, int64_t with_gelu, const float* x,
                      const float* panels, const float* bias, const float* other, float* out, int64_t threads) {
  using namespace textsam;
  const Weights weights{panels, bias, 3 * in, n};
#pragma omp parallel num_threads(threads)
  {
    const int64_t all = omp_get_num_threads(), me = omp_get_thread_num();
    Ring ring(w, in, 1);
    for (int64_t y = h * me / all; y < h * (me + 1) / all; ++y) {
      const float* rows[3];
      ring.window(
          y - 1, h, [&](int64_t row, float* to) { std::memcpy(to, x + row * w * in, sizeof(float) * w * in); }, rows);
      float* to = out + y * w * n;
      if (other)
        product<End::kAdd>(w, rows, 3, in, weights, to, n, n, other + y * w * n);
      else
        product<End::kPlain>(w, rows, 3, in, weights, to, n, n);
      if (with_gelu)
        for (int64_t i = 0; i < w * n; ++i) to[i] = gelu(to[i]);
    }
  }
}

}  // extern "C"
