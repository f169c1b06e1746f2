// Layers of the small models, row by row: what a block widens stays in the cache and is never a map in memory.
//
// Maps are channels last; rows between the layers of a block are as wide as whole panels of weights. Borders are
// TensorFlow's SAME: all of it after an even side at stride 2.

#include "products.h"

namespace textsam {
namespace {

constexpr int64_t kQueries = 32;  // of a head that attend together

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

// Row y of a map of (h, w, c) enlarged twofold, bilinearly: 2w places, `step` floats apart.
void enlarge(const float* map, int64_t h, int64_t w, int64_t c, int64_t y, float* to, int64_t step, float* blended) {
  const int64_t near = y / 2, far = std::min(std::max<int64_t>(near + (y % 2 ? 1 : -1), 0), h - 1);
  const float *first = map + near * w * c, *second = map + far * w * c;
  for (int64_t i = 0; i < w * c; ++i) blended[i] = 0.75f * first[i] + 0.25f * second[i];
  for (int64_t x = 0; x < 2 * w; ++x) {
    const int64_t beside = std::min(std::max<int64_t>(x / 2 + (x % 2 ? 1 : -1), 0), w - 1);
    const float *left = blended + x / 2 * c, *right = blended + beside * c;
    for (int64_t i = 0; i < c; ++i) to[x * step + i] = 0.75f * left[i] + 0.25f * right[i];
  }
}

// Row y of a map of (.., 2w, c) that is halved, by the largest of 2 x 2: w places, `step` floats apart.
void halve(const float* map, int64_t w, int64_t c, int64_t y, float* to, int64_t step) {
  const float *above = map + 4 * y * w * c, *below = above + 2 * w * c;
  for (int64_t x = 0; x < w; ++x)
    for (int64_t i = 0; i < c; ++i) {
      const float *up = above + 2 * x * c + i, *down = below + 2 * x * c + i;
      to[x * step + i] = std::max(std::max(up[0], up[c]), std::max(down[0], down[c]));
    }
}

// A layer of MobileNetV2: rows are widened, go through a depthwise 3 x 3 product and are narrowed.
struct Residual {
  int64_t in, wide, narrow, stride, shortcut;
  const float *widen_panels, *widen_bias, *depth, *depth_bias, *project_panels, *project_bias;
};

// The first one, with the 3 x 3 product of stride 2 before it: pixels (3, h, w) to (h / 2, w / 2, narrow).
void stem(int64_t h, int64_t w, const Residual& layer, const float* pixels, float* out, int64_t threads) {
  const Side down(h, 2), across(w, 2), inner_down(down.out, 1), inner_across(across.out, 1);
  const Weights first{layer.widen_panels, layer.widen_bias, 27, layer.wide};
  const Weights project{layer.project_panels, layer.project_bias, layer.wide, layer.narrow};
  const int64_t width = padded(layer.wide);
  squeeze(inner_down, inner_across, width, layer.depth, layer.depth_bias, project, nullptr, out, threads,
          [&](int64_t y, float* to) {
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

// Another one: (h, w, in) to (h / stride, w / stride, narrow).
void residual(int64_t h, int64_t w, const Residual& layer, const float* x, float* out, int64_t threads) {
  const Weights first{layer.widen_panels, layer.widen_bias, layer.in, layer.wide};
  const Weights project{layer.project_panels, layer.project_bias, layer.wide, layer.narrow};
  const int64_t width = padded(layer.wide);
  squeeze(Side(h, layer.stride), Side(w, layer.stride), width, layer.depth, layer.depth_bias, project,
          layer.shortcut ? x : nullptr, out, threads, [&](int64_t y, float* to) {
            product<End::kClamp6>(w, x + y * w * layer.in, layer.in, first, to, width, width);
          });
}

// Convolutions of 3 x 3 have zeros around, and weights (9 * in, n), place by place.

// A 3 x 3 product of (h, w, in), plus `other` where there is one, and GELU of it where asked for, to (h, w, n).
void convolve(int64_t h, int64_t w, const Weights& weights, bool with_gelu, const float* x, const float* other,
              float* out, int64_t threads) {
  const int64_t in = weights.k / 3, n = weights.n;
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
      if (with_gelu) gelu_of(to, w * n);
    }
  }
}

struct PairWeights {
  Weights first;
  int64_t groups;
  const float *scale, *shift;
  float epsilon;
  Weights second;
};

// Two 3 x 3 products, group norm and GELU between them, GELU after the second, and what it was made of:
// f + gelu(W2 f) of f = gelu(norm(W1 x)). x is the map `a` of c1 channels, halved to (h, w) when `resize` is -1 and
// enlarged to it when it is 1, beside the map `b` of (h, w, c2).
void conv_pair(int64_t h, int64_t w, int64_t c1, int64_t c2, int64_t resize, const float* a, const float* b,
               const PairWeights& weights, float* out, int64_t threads) {
  const int64_t in = c1 + c2, n = weights.second.n, members = n / weights.groups;
  float* once = scratch(0, h * w * n);
  std::vector<double> sums(2 * n * threads);
  std::vector<float> factor(n), offset(n);
#pragma omp parallel num_threads(threads)
  {
    const int64_t all = omp_get_num_threads(), me = omp_get_thread_num();
    const int64_t top = h * me / all, bottom = h * (me + 1) / all;
    double* sum = sums.data() + 2 * n * me;
    {
      Ring ring(w, in, 1);
      Buffer blended(w * c1), row_sums(2 * n);
      for (int64_t y = top; y < bottom; ++y) {
        const float* rows[3];
        ring.window(
            y - 1, h,
            [&](int64_t row, float* to) {
              if (resize > 0) enlarge(a, h / 2, w / 2, c1, row, to, in, blended.data());
              if (resize < 0) halve(a, w, c1, row, to, in);
              if (resize && !c2) return;
              for (int64_t x = 0; x < w; ++x) {
                if (!resize) std::memcpy(to + x * in, a + (row * w + x) * c1, sizeof(float) * c1);
                if (c2) std::memcpy(to + x * in + c1, b + (row * w + x) * c2, sizeof(float) * c2);
              }
            },
            rows);
        float* to = once + y * w * n;
        product<End::kPlain>(w, rows, 3, in, weights.first, to, n, n);
        float *plain = row_sums.data(), *square = plain + n;
        std::fill(plain, plain + 2 * n, 0.0f);
        for (int64_t x = 0; x < w; ++x)
          for (int64_t c = 0; c < n; ++c) {
            const float value = to[x * n + c];
            plain[c] += value;
            square[c] += value * value;
          }
        for (int64_t c = 0; c < 2 * n; ++c) sum[c] += plain[c];
      }
    }
#pragma omp barrier
#pragma omp single
    for (int64_t g = 0; g < weights.groups; ++g) {
      double plain = 0, square = 0;
      for (int64_t t = 0; t < all; ++t)
        for (int64_t c = g * members; c < (g + 1) * members; ++c)
          plain += sums[2 * n * t + c], square += sums[2 * n * t + n + c];
      const double mean = plain / (h * w * members), variance = square / (h * w * members) - mean * mean;
      const double inverse = 1 / std::sqrt(std::max(variance, 0.0) + weights.epsilon);
      for (int64_t c = g * members; c < (g + 1) * members; ++c) {
        factor[c] = static_cast<float>(weights.scale[c] * inverse);
        offset[c] = static_cast<float>(weights.shift[c] - mean * weights.scale[c] * inverse);
      }
    }
    Ring ring(w, n, 1);
    for (int64_t y = top; y < bottom; ++y) {
      const float* rows[3];
      ring.window(
          y - 1, h,
          [&](int64_t row, float* to) {
            const float* from = once + row * w * n;
            for (int64_t x = 0; x < w; ++x)
              for (int64_t c = 0; c < n; ++c) to[x * n + c] = gelu(from[x * n + c] * factor[c] + offset[c]);
          },
          rows);
      float* to = out + y * w * n;
      product<End::kPlain>(w, rows, 3, n, weights.second, to, n, n);
      for (int64_t i = 0; i < w * n; ++i) to[i] = rows[1][n + i] + gelu(to[i]);
    }
  }
}

// A 2 x 2 product of stride 2 of (2h, 2w, c), GELU, a 3 x 3 product and GELU, to (h, w, n).
void coarser(int64_t h, int64_t w, const Weights& down, const Weights& mix, const float* x, float* out,
             int64_t threads) {
  const int64_t c = down.k / 2, n = mix.n;
#pragma omp parallel num_threads(threads)
  {
    const int64_t all = omp_get_num_threads(), me = omp_get_thread_num();
    Ring ring(w, n, 1);
    for (int64_t y = h * me / all; y < h * (me + 1) / all; ++y) {
      const float* rows[3];
      ring.window(
          y - 1, h,
          [&](int64_t row, float* to) {
            const float* const pair[2] = {x + 4 * row * w * c, x + (4 * row + 2) * w * c};
            product<End::kPlain>(w, pair, 2, 2 * c, down, to, n, n);
            gelu_of(to, w * n);
          },
          rows);
      float* to = out + y * w * n;
      product<End::kPlain>(w, rows, 3, n, mix, to, n, n);
      gelu_of(to, w * n);
    }
  }
}

// A product of each place of (h, w, n) enlarged twofold, bilinearly, plus `x` of (2h, 2w, c), and GELU where asked for.
void finer(int64_t h, int64_t w, const Weights& weights, bool with_gelu, const float* coarse, const float* x, float* out,
           int64_t threads) {
  const int64_t n = weights.k, c = weights.n;
  float* narrow = scratch(0, h * w * c);
#pragma omp parallel num_threads(threads)
  {
    const int64_t all = omp_get_num_threads(), me = omp_get_thread_num();
    const int64_t first = h * me / all, last = h * (me + 1) / all;
    product<End::kPlain>((last - first) * w, coarse + first * w * n, n, weights, narrow + first * w * c, c, c);
#pragma omp barrier
    Buffer blended(w * c);
    for (int64_t y = 2 * first; y < 2 * last; ++y) {
      float* to = out + y * 2 * w * c;
      enlarge(narrow, h, w, c, y, to, c, blended.data());
      for (int64_t i = 0; i < 2 * w * c; ++i) to[i] += x[y * 2 * w * c + i];
      if (with_gelu) gelu_of(to, 2 * w * c);
    }
  }
}

// Takes parameters off a list.
struct List {
  const float* const* next;
  Weights product(int64_t k, int64_t n) {
    const float *panels = *next++, *bias = *next++;
    return {panels, bias, k, n};
  }
  PairWeights pair(int64_t in, int64_t n, int64_t groups, float epsilon) {
    const Weights first = product(3 * in, n);
    const float *scale = *next++, *shift = *next++;
    return {first, groups, scale, shift, epsilon, product(3 * n, n)};
  }
};

// What lies around each place of (h, w, c), seen at half the resolution and, `levels` times in all, further down, added
// to it. Each level needs the products down, of the mixture and up.
void surroundings(int64_t h, int64_t w, int64_t c, int64_t levels, const float* x, List& list, bool with_gelu,
                  float* out, int64_t threads) {
  const int64_t n = 2 * c, size = h / 2 * (w / 2) * n;
  const Weights down = list.product(2 * c, n), mix = list.product(3 * n, n), up = list.product(n, c);
  float *coarse = scratch(2 * levels, size), *mixed = coarse;
  coarser(h / 2, w / 2, down, mix, x, coarse, threads);
  if (levels > 1) surroundings(h / 2, w / 2, n, levels - 1, coarse, list, false, mixed = scratch(2 * levels + 1, size), threads);
  finer(h / 2, w / 2, up, with_gelu, mixed, x, out, threads);
}

}  // namespace
}  // namespace textsam

extern "C" {

// Columns of a panel of weights.
int64_t textsam_panel() { return textsam::kPanel; }

// MobileNetV2: pixels (3, h, w) through `count` layers, of which `sizes` has in, wide, narrow, stride and shortcut, and
// `weights` panels and bias that widen, weights and bias of the depthwise product, panels and bias that narrow. What a
// layer gives goes to its place in `outs` where there is one.
void textsam_trunk(int64_t h, int64_t w, int64_t count, const int64_t* sizes, const float* const* weights,
                   const float* pixels, float* const* outs, int64_t threads) {
  using namespace textsam;
  const auto smaller = [&](int64_t side, int64_t i) { return Side(side, i ? sizes[5 * i + 3] : 2).out; };
  int64_t room = 0;
  for (int64_t i = 0, y = h, x = w; i < count; ++i) {
    y = smaller(y, i), x = smaller(x, i);
    if (!outs[i]) room = std::max(room, y * x * sizes[5 * i + 2]);
  }
  float* kept = scratch(0, 2 * room);
  const float* x = pixels;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t* s = sizes + 5 * i;
    const float* const* p = weights + 6 * i;
    const Residual layer{s[0], s[1], s[2], s[3], s[4], p[0], p[1], p[2], p[3], p[4], p[5]};
    float* out = outs[i] ? outs[i] : kept + i % 2 * room;
    if (i)
      residual(h, w, layer, x, out, threads);
    else
      stem(h, w, layer, x, out, threads);
    h = smaller(h, i), w = smaller(w, i), x = out;
  }
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

// A pre-norm transformer block on (h, w, c), which a depthwise 3 x 3 product tells where its places are; c / heads and c
// are multiples of a vector.
void textsam_context(int64_t h, int64_t w, int64_t c, int64_t heads, int64_t wide, const float* x, const float* depth,
                     const float* depth_bias, const float* scale1, const float* shift1, float epsilon1,
                     const float* qkv_panels, const float* qkv_bias, const float* proj_panels, const float* proj_bias,
                     const float* scale2, const float* shift2, float epsilon2, const float* widen_panels,
                     const float* widen_bias, const float* narrow_panels, const float* narrow_bias, float* out,
                     int64_t threads) {
  using namespace textsam;
  const int64_t places = h * w, d = c / heads, blocks = (places + kQueries - 1) / kQueries;
  const float factor = 1 / std::sqrt(static_cast<float>(d));
  const Side across(w, 1);
  const Weights to_qkv{qkv_panels, qkv_bias, c, 3 * c}, proj{proj_panels, proj_bias, c, c};
  const Weights widen{widen_panels, widen_bias, c, wide}, narrow{narrow_panels, narrow_bias, wide, c};
  float* tokens = scratch(0, places * (6 * c + std::max(c, wide)));
  float *qkv = tokens + places * c, *turned = qkv + 3 * places * c, *mixed = turned + places * c,
        *hidden = mixed + places * c;
#pragma omp parallel num_threads(threads)
  {
    const int64_t all = omp_get_num_threads(), me = omp_get_thread_num();
    const int64_t top = h * me / all, bottom = h * (me + 1) / all, count = (bottom - top) * w;
    float* own = tokens + top * w * c;
    Ring ring(w, c, 1);
    for (int64_t y = top; y < bottom; ++y) {
      const float* rows[3];
      ring.window(
          y - 1, h, [&](int64_t row, float* to) { std::memcpy(to, x + row * w * c, sizeof(float) * w * c); }, rows);
      float* to = tokens + y * w * c;
      depthwise<false>(rows, across, c, depth, depth_bias, to);
      for (int64_t i = 0; i < w * c; ++i) to[i] += rows[1][c + i];
    }
    std::memcpy(hidden + top * w * c, own, sizeof(float) * count * c);
    normalise(hidden + top * w * c, count, c, scale1, shift1, epsilon1);
    product<End::kPlain>(count, hidden + top * w * c, c, to_qkv, qkv + 3 * top * w * c, 3 * c, 3 * c);
    for (int64_t p = top * w; p < bottom * w; ++p)
      for (int64_t i = 0; i < c; ++i) turned[i * places + p] = factor * qkv[(3 * p + 1) * c + i];
#pragma omp barrier
    Buffer scores(kQueries * places);
#pragma omp for
    for (int64_t task = 0; task < heads * blocks; ++task) {
      const int64_t head = task / blocks * d, first = task % blocks * kQueries;
      const int64_t asked = std::min(kQueries, places - first);
      multiply(asked, places, d, qkv + 3 * first * c + head, 3 * c, turned + head * places, places, scores.data(),
               places);
      for (int64_t q = 0; q < asked; ++q) {
        float* s = scores.data() + q * places;
        const float most = largest(s, places, s[0]);
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t p = 0; p < places; ++p) sum += s[p] = fast_exp(s[p] - most);
        for (int64_t p = 0; p < places; ++p) s[p] /= sum;
      }
      multiply(asked, d, places, scores.data(), places, qkv + 2 * c + head, 3 * c, mixed + first * c + head, c);
    }
    float *sum = out + top * w * c, *values = hidden + top * w * wide;
    product<End::kAdd>(count, mixed + top * w * c, c, proj, sum, c, c, own);
    std::memcpy(own, sum, sizeof(float) * count * c);
    normalise(own, count, c, scale2, shift2, epsilon2);
    product<End::kPlain>(count, own, c, widen, values, wide, wide);
    gelu_of(values, count * wide);
    product<End::kAdd>(count, values, wide, narrow, sum, c, c, sum);
  }
}

// A 2 x 2 product of stride 2 of (2h, 2w, c), layer norm and GELU, to (h, w, n), n a multiple of a vector.
void textsam_down(int64_t h, int64_t w, int64_t c, int64_t n, const float* x, const float* panels, const float* bias,
                  const float* scale, const float* shift, float epsilon, float* out, int64_t threads) {
  using namespace textsam;
  const Weights weights{panels, bias, 2 * c, n};
#pragma omp parallel for num_threads(threads)
  for (int64_t y = 0; y < h; ++y) {
    const float* const pair[2] = {x + 4 * y * w * c, x + (4 * y + 2) * w * c};
    float* to = out + y * w * n;
    product<End::kPlain>(w, pair, 2, 2 * c, weights, to, n, n);
    normalise(to, w, n, scale, shift, epsilon);
    gelu_of(to, w * n);
  }
}

// A transposed 2 x 2 product of stride 2 of (h, w, c), plus `other` and `more` where there are any, layer norm where
// there is `scale`, and GELU, to (2h, 2w, n), n a multiple of a vector. Weights are (c, 4 * n), place by place.
void textsam_up(int64_t h, int64_t w, int64_t c, int64_t n, const float* x, const float* panels, const float* bias,
                const float* other, const float* more, const float* scale, const float* shift, float epsilon,
                float* out, int64_t threads) {
  using namespace textsam;
  const Weights weights{panels, bias, c, 4 * n};
#pragma omp parallel num_threads(threads)
  {
    Buffer buffer(w * 4 * n);
    float* places = buffer.data();
#pragma omp for
    for (int64_t y = 0; y < h; ++y) {
      product<End::kPlain>(w, x + y * w * c, c, weights, places, 4 * n, 4 * n);
      for (int64_t down = 0; down < 2; ++down) {
        const int64_t start = (2 * y + down) * 2 * w * n;
        float* to = out + start;
        for (int64_t i = 0; i < w; ++i) std::memcpy(to + 2 * i * n, places + (4 * i + 2 * down) * n, 8 * n);
        for (const float* added : {other, more})
          if (added)
            for (int64_t i = 0; i < 2 * w * n; ++i) to[i] += added[start + i];
        if (scale) normalise(to, 2 * w, n, scale, shift, epsilon);
        gelu_of(to, 2 * w * n);
      }
    }
  }
}

// See `convolve`.
void textsam_convolve(int64_t h, int64_t w, int64_t in, int64_t n, int64_t with_gelu, const float* x,
                      const float* panels, const float* bias, const float* other, float* out, int64_t threads) {
  textsam::convolve(h, w, {panels, bias, 3 * in, n}, with_gelu, x, other, out, threads);
}

// See `surroundings`.
void textsam_surroundings(int64_t h, int64_t w, int64_t c, int64_t levels, int64_t with_gelu, const float* x,
                          const float* const* weights, float* out, int64_t threads) {
  textsam::List list{weights};
  textsam::surroundings(h, w, c, levels, x, list, with_gelu, out, threads);
}

// A second look at (h, w, c1) and drawn prompts (h, w, c2): a 3 x 3 product to n channels and GELU, their surroundings, a
// 3 x 3 product and GELU, a product to c1 channels, added to what was given.
void textsam_refine(int64_t h, int64_t w, int64_t c1, int64_t c2, int64_t n, int64_t levels, const float* x,
                    const float* maps, const float* const* weights, float* out, int64_t threads) {
  using namespace textsam;
  List list{weights};
  const int64_t in = c1 + c2, first = 2 * levels + 2;  // places of memory that the surroundings leave free
  float *joined = scratch(first, h * w * in), *seen = scratch(first + 1, h * w * n);
  float* around = scratch(first + 2, h * w * n);
#pragma omp parallel for num_threads(threads)
  for (int64_t i = 0; i < h * w; ++i) {
    std::memcpy(joined + i * in, x + i * c1, sizeof(float) * c1);
    std::memcpy(joined + i * in + c1, maps + i * c2, sizeof(float) * c2);
  }
  convolve(h, w, list.product(3 * in, n), true, joined, nullptr, seen, threads);
  surroundings(h, w, n, levels, seen, list, false, around, threads);
  convolve(h, w, list.product(3 * n, n), true, around, nullptr, seen, threads);
  const Weights last = list.product(n, c1);
#pragma omp parallel for num_threads(threads)
  for (int64_t y = 0; y < h; ++y)
    product<End::kAdd>(w, seen + y * w * n, n, last, out + y * w * c1, c1, c1, x + y * w * c1);
}

// A U-Net on (h, w, in): a 3 x 3 product and GELU to channels[0]; pairs of convolutions down to (h / 8, w / 8), each
// beside a product of `features` (`seen` of `known` channels) at its own size; and up again, each beside what was seen
// there; a 3 x 3 product to (h, w, n). Weights stand in this order.
void textsam_unet(int64_t h, int64_t w, int64_t in, int64_t n, int64_t levels, const int64_t* channels,
                  const int64_t* known, const int64_t* seen, int64_t groups, float epsilon, const float* x,
                  const float* const* features, const float* const* weights, float* out, int64_t threads) {
  using namespace textsam;
  List list{weights};
  std::vector<const float*> maps;
  int64_t taken = 1;  // places of memory; the convolutions use the first one themselves
  const auto room = [&](int64_t floats) { return scratch(taken++, floats); };
  float* entered = room(h * w * channels[0]);
  convolve(h, w, list.product(3 * in, channels[0]), true, x, nullptr, entered, threads);
  float* first = room(h * w * channels[0]);
  conv_pair(h, w, channels[0], 0, 0, entered, nullptr, list.pair(channels[0], channels[0], groups, epsilon), first,
            threads);
  maps.push_back(first);
  for (int64_t i = 1; i < levels; ++i) {
    h /= 2, w /= 2;
    float *beside = room(h * w * seen[i - 1]), *to = room(h * w * channels[i]);
    const Weights see = list.product(known[i - 1], seen[i - 1]);
#pragma omp parallel for num_threads(threads)
    for (int64_t y = 0; y < h; ++y)
      product<End::kPlain>(w, features[i - 1] + y * w * see.k, see.k, see, beside + y * w * see.n, see.n, see.n);
    conv_pair(h, w, channels[i - 1], seen[i - 1], -1, maps.back(), beside,
              list.pair(channels[i - 1] + seen[i - 1], channels[i], groups, epsilon), to, threads);
    maps.push_back(to);
  }
  const float* coarse = maps.back();
  for (int64_t i = levels - 2; i >= 0; --i) {
    h *= 2, w *= 2;
    float* to = room(h * w * channels[i]);
    conv_pair(h, w, channels[i + 1], channels[i], 1, coarse, maps[i],
              list.pair(channels[i + 1] + channels[i], channels[i], groups, epsilon), to, threads);
    coarse = to;
  }
  convolve(h, w, list.product(3 * channels[0], n), false, coarse, nullptr, out, threads);
}

}  // extern "C"
