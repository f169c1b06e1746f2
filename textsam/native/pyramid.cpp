// The pyramid of the small encoder behind its trunk, in one call: between its layers only rows are kept, but for the
// maps that others are enlarged from.
//
// Maps are channels last. Channels behind a layer norm or a depthwise product are multiples of a vector.

#include "rows.h"

namespace textsam {
namespace {

constexpr int64_t kQueries = 32;  // of a head that attend together

struct Norm {
  const float *scale, *shift;
  float epsilon;
  void of(float* rows, int64_t m, int64_t width) const { normalise(rows, m, width, scale, shift, epsilon); }
};

Norm norm_of(List& list, float epsilon) {
  const float *scale = *list.next++, *shift = *list.next++;
  return {scale, shift, epsilon};
}

// A product of each place of (h, w, k), to (h, w, n).
void places(int64_t h, int64_t w, const Weights& weights, const float* x, float* out, int64_t threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t y = 0; y < h; ++y)
    product<End::kPlain>(w, x + y * w * weights.k, weights.k, weights, out + y * w * weights.n, weights.n, weights.n);
}

// A pre-norm transformer block on (h, w, c), which a depthwise 3 x 3 product tells where its places are; c / heads is
// a multiple of a vector.
struct Context {
  int64_t c, heads, wide;
  const float *depth, *depth_bias;
  Norm norm1;
  Weights qkv, project;
  Norm norm2;
  Weights widen, narrow;

  Context(List& list, int64_t channels, int64_t number, int64_t hidden, float epsilon)
      : c(channels), heads(number), wide(hidden), depth(*list.next++), depth_bias(*list.next++),
        norm1(norm_of(list, epsilon)), qkv(list.product(c, 3 * c)), project(list.product(c, c)),
        norm2(norm_of(list, epsilon)), widen(list.product(c, wide)), narrow(list.product(wide, c)) {}

  void operator()(int64_t h, int64_t w, const float* x, float* out, int64_t threads) const {
    const int64_t places = h * w, d = c / heads, blocks = (places + kQueries - 1) / kQueries;
    const float factor = 1 / std::sqrt(static_cast<float>(d));
    const Side across(w, 1);
    float* tokens = scratch(0, places * (6 * c + std::max(c, wide)));
    float *all_qkv = tokens + places * c, *turned = all_qkv + 3 * places * c, *mixed = turned + places * c,
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
      norm1.of(hidden + top * w * c, count, c);
      product<End::kPlain>(count, hidden + top * w * c, c, qkv, all_qkv + 3 * top * w * c, 3 * c, 3 * c);
      for (int64_t p = top * w; p < bottom * w; ++p)
        for (int64_t i = 0; i < c; ++i) turned[i * places + p] = factor * all_qkv[(3 * p + 1) * c + i];
#pragma omp barrier
      Buffer scores(kQueries * places);
#pragma omp for
      for (int64_t task = 0; task < heads * blocks; ++task) {
        const int64_t head = task / blocks * d, first = task % blocks * kQueries;
        const int64_t asked = std::min(kQueries, places - first);
        multiply(asked, places, d, all_qkv + 3 * first * c + head, 3 * c, turned + head * places, places,
                 scores.data(), places);
        for (int64_t q = 0; q < asked; ++q) {
          float* s = scores.data() + q * places;
          const float most = largest(s, places, s[0]);
          float sum = 0;
#pragma omp simd reduction(+ : sum)
          for (int64_t p = 0; p < places; ++p) sum += s[p] = fast_exp(s[p] - most);
          for (int64_t p = 0; p < places; ++p) s[p] /= sum;
        }
        multiply(asked, d, places, scores.data(), places, all_qkv + 2 * c + head, 3 * c, mixed + first * c + head, c);
      }
      float *sum = out + top * w * c, *values = hidden + top * w * wide;
      product<End::kAdd>(count, mixed + top * w * c, c, project, sum, c, c, own);
      std::memcpy(own, sum, sizeof(float) * count * c);
      norm2.of(own, count, c);
      product<End::kPlain>(count, own, c, widen, values, wide, wide);
      gelu_of(values, count * wide);
      product<End::kAdd>(count, values, wide, narrow, sum, c, c, sum);
    }
  }
};

// A depthwise 3 x 3 product, layer norm, two products with GELU between them, and the map itself. `make(y, to)` makes a
// row of the map (h, w, c); `finish(y, row)` takes one of the result.
struct Separable {
  int64_t c;
  const float *depth, *depth_bias;
  Norm norm;
  Weights widen, narrow;

  Separable(List& list, int64_t channels, int64_t wide, float epsilon)
      : c(channels), depth(*list.next++), depth_bias(*list.next++), norm(norm_of(list, epsilon)),
        widen(list.product(c, wide)), narrow(list.product(wide, c)) {}

  template <typename Make, typename Finish>
  void operator()(int64_t h, int64_t w, int64_t threads, Make make, Finish finish) const {
    const Side across(w, 1);
    const int64_t width = padded(widen.n);
#pragma omp parallel num_threads(threads)
    {
      const int64_t all = omp_get_num_threads(), me = omp_get_thread_num();
      Ring ring(w, c, across.before);
      Buffer mixed(w * c), hidden(w * width), result(w * c);
      for (int64_t y = h * me / all; y < h * (me + 1) / all; ++y) {
        const float* rows[3];
        ring.window(y - 1, h, make, rows);
        depthwise<false>(rows, across, c, depth, depth_bias, mixed.data());
        norm.of(mixed.data(), w, c);
        product<End::kPlain>(w, mixed.data(), c, widen, hidden.data(), width, width);
        gelu_of(hidden.data(), w * width);
        product<End::kAdd>(w, hidden.data(), width, narrow, result.data(), c, c, rows[1] + across.before * c);
        finish(y, result.data());
      }
    }
  }
};

// Rows of a map's own product and a coarser map, enlarged, together.
struct Joined {
  int64_t w;
  Weights lateral;
  const float *tap, *coarse;
  Enlarged enlarged;

  Joined(int64_t height, int64_t width, int64_t coarse_height, int64_t coarse_width, const Weights& weights,
         const float* map, const float* from)
      : w(width), lateral(weights), tap(map), coarse(from),
        enlarged(coarse_height, coarse_width, height, width, weights.n) {}

  void operator()(int64_t y, float* to) const {
    product<End::kPlain>(w, tap + y * w * lateral.k, lateral.k, lateral, to, lateral.n, lateral.n);
    enlarged.row<true>(coarse, y, to, lateral.n);
  }
};

// What a whole map (places, c) says: layer norm of its means and maxima, a product, GELU, a product, layer norm.
void whole(int64_t places, int64_t c, List& list, const float* epsilons, const float* x, int64_t n, float* out) {
  Buffer seen(2 * c), hidden(padded(2 * c));
  float *mean = seen.data(), *most = mean + c;
  std::copy(x, x + c, most);
  for (int64_t p = 0; p < places; ++p)
    for (int64_t i = 0; i < c; ++i) {
      mean[i] += x[p * c + i] / static_cast<float>(places);
      most[i] = std::max(most[i], x[p * c + i]);
    }
  norm_of(list, epsilons[0]).of(mean, 1, 2 * c);
  product<End::kPlain>(1, mean, 2 * c, list.product(2 * c, 2 * c), hidden.data(), 2 * c, 2 * c);
  gelu_of(hidden.data(), 2 * c);
  product<End::kPlain>(1, hidden.data(), 2 * c, list.product(2 * c, n), out, n, n);
  norm_of(list, epsilons[0]).of(out, 1, n);
}

}  // namespace
}  // namespace textsam

extern "C" {

// The trunk's maps at strides 4, 8, 16 and 32 (`sizes` has height and width of each, `widths` the channels) to the
// maps `outs`: the embedding at stride 16, finer maps at strides 4 and 8, what is compared with text at stride 8 and,
// where there is a place for it, in the whole picture. `inner` has the channels of the pyramid at strides 4, 8 and 16,
// the heads of a transformer block and the channels of these five.
void textsam_pyramid(const int64_t* sizes, const int64_t* widths, const int64_t* inner, int64_t blocks,
                     const float* epsilons, const float* const* taps, const float* const* weights,
                     float* const* outs, int64_t threads) {
  using namespace textsam;
  const int64_t h4 = sizes[0], w4 = sizes[1], h8 = sizes[2], w8 = sizes[3], h16 = sizes[4], w16 = sizes[5],
                h32 = sizes[6], w32 = sizes[7], c4 = inner[0], c8 = inner[1], c16 = inner[2];
  const int64_t* channels = inner + 4;
  List list{weights};
  float *coarse = scratch(1, h32 * w32 * c16), *other = scratch(2, h32 * w32 * c16);
  places(h32, w32, list.product(widths[3], c16), taps[3], coarse, threads);
  for (int64_t i = 0; i < blocks; ++i, std::swap(coarse, other))
    Context(list, c16, inner[3], 2 * c16, epsilons[0])(h32, w32, coarse, other, threads);

  const auto row = [](const Weights& product_of, int64_t y, int64_t w, const float* from, float* to) {
    product<End::kPlain>(w, from, product_of.k, product_of, to + y * w * product_of.n, product_of.n, product_of.n);
  };
  const Joined at16(h16, w16, h32, w32, list.product(widths[2], c16), taps[2], coarse);
  const Separable smooth16(list, c16, 2 * c16, epsilons[1]);
  const Weights neck = list.product(c16, channels[0]);
  const Norm neck_norm = norm_of(list, epsilons[1]);
  const Weights down16 = list.product(c16, c8);
  float* narrow16 = scratch(3, h16 * w16 * c8);
  smooth16(h16, w16, threads, at16, [&](int64_t y, const float* from) {
    row(neck, y, w16, from, outs[0]);
    neck_norm.of(outs[0] + y * w16 * neck.n, w16, neck.n);
    row(down16, y, w16, from, narrow16);
  });

  const Joined at8(h8, w8, h16, w16, list.product(widths[1], c8), taps[1], narrow16);
  const Separable smooth8(list, c8, 2 * c8, epsilons[1]);
  const Weights skip8 = list.product(c8, channels[2]), down8 = list.product(c8, c4);
  float *whole8 = scratch(4, h8 * w8 * c8), *narrow8 = scratch(5, h8 * w8 * c4);
  smooth8(h8, w8, threads, at8, [&](int64_t y, const float* from) {
    std::memcpy(whole8 + y * w8 * c8, from, sizeof(float) * w8 * c8);
    row(skip8, y, w8, from, outs[2]);
    row(down8, y, w8, from, narrow8);
  });

  const Joined at4(h4, w4, h8, w8, list.product(widths[0], c4), taps[0], narrow8);
  const Separable smooth4(list, c4, 2 * c4, epsilons[1]);
  const Weights skip4 = list.product(c4, channels[1]);
  smooth4(h4, w4, threads, at4, [&](int64_t y, const float* from) { row(skip4, y, w4, from, outs[1]); });

  const Separable head(list, c8, 2 * c8, epsilons[1]);
  const Weights compared = list.product(c8, channels[3]);
  const Norm compared_norm = norm_of(list, epsilons[1]);
  head(
      h8, w8, threads,
      [&](int64_t y, float* to) { std::memcpy(to, whole8 + y * w8 * c8, sizeof(float) * w8 * c8); },
      [&](int64_t y, const float* from) {
        row(compared, y, w8, from, outs[3]);
        compared_norm.of(outs[3] + y * w8 * compared.n, w8, compared.n);
      });
  if (outs[4]) whole(h32 * w32, c16, list, epsilons, coarse, channels[4], outs[4]);
}

}  // extern "C"
