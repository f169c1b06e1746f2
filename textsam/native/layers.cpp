// Layers of the small models, row by row: what a block widens stays in the cache and is never a map in memory.
//
// Maps are channels last; rows between the layers of a block are as wide as whole panels of weights. Borders are
// TensorFlow's SAME: all of it after an even side at stride 2.

#include "rows.h"

namespace textsam {
namespace {

constexpr int64_t kQueries = 32;  // of a head that attend together

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
      gelu_of(values, w * width);
      product<End::kAdd>(w, values, width, second, out + y * w * channels, channels, channels, x + y * w * channels);
    }
  }
}

// A pre-norm transformer block on (h, w, c), which a depthwise 3 x 3 product tells where its places are; c / heads
// and c are multiples of a vector.
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

}  // extern "C"
