// Layers of the small models, row by row: what a block widens stays in the cache and is never a map in memory.
//
// Maps are channels last; rows between the layers of a block are as wide as whole panels of weights. Borders are
// TensorFlow's SAME: all of it after an even side at stride 2.

#include "rows.h"

namespace textsam {
namespace {

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

// Drawn prompts (4h, 4w, c), embedded at three strides: by a product of each place; by a 2 x 2 product of stride 2,
// layer norm, GELU and a product of each place; and by the same once more. `halved` and `quartered` are the widths
// between, multiples of a vector.
void textsam_drawing(int64_t h, int64_t w, int64_t c, int64_t halved, int64_t quartered, const int64_t* widths,
                     float epsilon, const float* maps, const float* const* weights, float* const* outs,
                     int64_t threads) {
  using namespace textsam;
  List list{weights};
  const auto norm = [&](float* rows, int64_t m, int64_t n, const float* const* parameters) {
    normalise(rows, m, n, parameters[0], parameters[1], epsilon);
    gelu_of(rows, m * n);
  };
  const Weights fine = list.product(c, widths[0]), down = list.product(2 * c, halved);
  const float* const* first = list.next;
  list.next += 2;
  const Weights middle = list.product(halved, widths[1]), further = list.product(2 * halved, quartered);
  const float* const* second = list.next;
  list.next += 2;
  const Weights coarse = list.product(quartered, widths[2]);
#pragma omp parallel num_threads(threads)
  {
    Buffer halves(2 * 2 * w * halved), quarters(w * quartered);
#pragma omp for
    for (int64_t y = 0; y < h; ++y) {
      const float* rows = maps + 16 * y * w * c;
      product<End::kPlain>(16 * w, rows, c, fine, outs[0] + 16 * y * w * fine.n, fine.n, fine.n);
      for (int64_t i = 0; i < 2; ++i) {
        const float* const pair[2] = {rows + 8 * i * w * c, rows + (8 * i + 4) * w * c};
        product<End::kPlain>(2 * w, pair, 2, 2 * c, down, halves.data() + 2 * i * w * halved, halved, halved);
      }
      norm(halves.data(), 4 * w, halved, first);
      product<End::kPlain>(4 * w, halves.data(), halved, middle, outs[1] + 4 * y * w * middle.n, middle.n, middle.n);
      const float* const pair[2] = {halves.data(), halves.data() + 2 * w * halved};
      product<End::kPlain>(w, pair, 2, 2 * halved, further, quarters.data(), quartered, quartered);
      norm(quarters.data(), w, quartered, second);
      product<End::kPlain>(w, quarters.data(), quartered, coarse, outs[2] + y * w * coarse.n, coarse.n, coarse.n);
    }
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
