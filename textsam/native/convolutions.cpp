// Convolutions of 3 x 3 with zeros around, and the small networks made of them. Maps are channels last, weights
// (9 * in, n), place by place, in panels.

#include "rows.h"

namespace textsam {
namespace {

// Row y of a map of (.., 2w, c) that is halved, by the largest of 2 x 2: w places, `step` floats apart.
void halve(const float* map, int64_t w, int64_t c, int64_t y, float* to, int64_t step) {
  const float *above = map + 4 * y * w * c, *below = above + 2 * w * c;
  for (int64_t x = 0; x < w; ++x)
    for (int64_t i = 0; i < c; ++i) {
      const float *up = above + 2 * x * c + i, *down = below + 2 * x * c + i;
      to[x * step + i] = std::max(std::max(up[0], up[c]), std::max(down[0], down[c]));
    }
}

// A 3 x 3 product of rows of `in` channels, of which `make(y, to)` makes one, plus `other` where there is one, and GELU
// of it where asked for, to (h, w, n).
template <typename Make>
void convolve_rows(int64_t h, int64_t w, const Weights& weights, bool with_gelu, const float* other, float* out,
                   int64_t threads, Make make) {
  const int64_t in = weights.k / 3, n = weights.n;
#pragma omp parallel num_threads(threads)
  {
    const int64_t all = omp_get_num_threads(), me = omp_get_thread_num();
    Ring ring(w, in, 1);
    for (int64_t y = h * me / all; y < h * (me + 1) / all; ++y) {
      const float* rows[3];
      ring.window(y - 1, h, make, rows);
      float* to = out + y * w * n;
      if (other)
        product<End::kAdd>(w, rows, 3, in, weights, to, n, n, other + y * w * n);
      else
        product<End::kPlain>(w, rows, 3, in, weights, to, n, n);
      if (with_gelu) gelu_of(to, w * n);
    }
  }
}

// The same of a map (h, w, in).
void convolve(int64_t h, int64_t w, const Weights& weights, bool with_gelu, const float* x, const float* other,
              float* out, int64_t threads) {
  const int64_t width = w * weights.k / 3;
  convolve_rows(h, w, weights, with_gelu, other, out, threads,
                [&](int64_t row, float* to) { std::memcpy(to, x + row * width, sizeof(float) * width); });
}

struct PairWeights {
  Weights first;
  int64_t groups;
  const float *scale, *shift;
  float epsilon;
  Weights second;
};

PairWeights pair_of(List& list, int64_t in, int64_t n, int64_t groups, float epsilon) {
  const Weights first = list.product(3 * in, n);
  const float *scale = *list.next++, *shift = *list.next++;
  return {first, groups, scale, shift, epsilon, list.product(3 * n, n)};
}

// Two 3 x 3 products, group norm and GELU between them, GELU after the second, and what it was made of:
// f + gelu(W2 f) of f = gelu(norm(W1 x)). x is the map `a` of c1 channels, halved to (h, w) when `resize` is -1 and
// enlarged to it when it is 1, beside the map `b` of (h, w, c2).
void conv_pair(int64_t h, int64_t w, int64_t c1, int64_t c2, int64_t resize, const float* a, const float* b,
               const PairWeights& weights, float* out, int64_t threads) {
  const int64_t in = c1 + c2, n = weights.second.n, members = n / weights.groups;
  float* once = scratch(0, h * w * n);
  std::vector<double> sums(2 * n * threads);
  std::vector<float> factor(n), offset(n);
  const Enlarged enlarged(h / 2, w / 2, h, w, c1);
#pragma omp parallel num_threads(threads)
  {
    const int64_t all = omp_get_num_threads(), me = omp_get_thread_num();
    const int64_t top = h * me / all, bottom = h * (me + 1) / all;
    double* sum = sums.data() + 2 * n * me;
    {
      Ring ring(w, in, 1);
      Buffer row_sums(2 * n);
      for (int64_t y = top; y < bottom; ++y) {
        const float* rows[3];
        ring.window(
            y - 1, h,
            [&](int64_t row, float* to) {
              if (resize > 0) enlarged.row<false>(a, row, to, in);
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
  convolve_rows(h, w, mix, true, nullptr, out, threads, [&](int64_t row, float* to) {
    const float* const pair[2] = {x + 4 * row * w * c, x + (4 * row + 2) * w * c};
    product<End::kPlain>(w, pair, 2, 2 * c, down, to, n, n);
    gelu_of(to, w * n);
  });
}

// A product of each place of (h, w, n) enlarged twofold, bilinearly, plus `x` of (2h, 2w, c), and GELU where asked
// for.
void finer(int64_t h, int64_t w, const Weights& weights, bool with_gelu, const float* coarse, const float* x,
           float* out, int64_t threads) {
  const int64_t n = weights.k, c = weights.n;
  float* narrow = scratch(0, h * w * c);
  const Enlarged enlarged(h, w, 2 * h, 2 * w, c);
#pragma omp parallel num_threads(threads)
  {
    const int64_t all = omp_get_num_threads(), me = omp_get_thread_num();
    const int64_t first = h * me / all, last = h * (me + 1) / all;
    product<End::kPlain>((last - first) * w, coarse + first * w * n, n, weights, narrow + first * w * c, c, c);
#pragma omp barrier
    for (int64_t y = 2 * first; y < 2 * last; ++y) {
      float* to = out + y * 2 * w * c;
      std::memcpy(to, x + y * 2 * w * c, sizeof(float) * 2 * w * c);
      enlarged.row<true>(narrow, y, to, c);
      if (with_gelu) gelu_of(to, 2 * w * c);
    }
  }
}

// What lies around each place of (h, w, c), seen at half the resolution and, `levels` times in all, further down, added
// to it. Each level needs the products down, of the mixture and up.
void surroundings(int64_t h, int64_t w, int64_t c, int64_t levels, const float* x, List& list, bool with_gelu,
                  float* out, int64_t threads) {
  const int64_t n = 2 * c, size = h / 2 * (w / 2) * n;
  const Weights down = list.product(2 * c, n), mix = list.product(3 * n, n), up = list.product(n, c);
  float* coarse = scratch(2 * levels, size);
  coarser(h / 2, w / 2, down, mix, x, coarse, threads);
  if (levels > 1) {
    float* mixed = scratch(2 * levels + 1, size);
    surroundings(h / 2, w / 2, n, levels - 1, coarse, list, false, mixed, threads);
    coarse = mixed;
  }
  finer(h / 2, w / 2, up, with_gelu, coarse, x, out, threads);
}

}  // namespace
}  // namespace textsam

extern "C" {

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

// A second look at (h, w, c1) and drawn prompts (h, w, c2): a 3 x 3 product to n channels and GELU, their surroundings,
// a 3 x 3 product and GELU, a product to c1 channels, added to what was given.
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
  conv_pair(h, w, channels[0], 0, 0, entered, nullptr, pair_of(list, channels[0], channels[0], groups, epsilon), first,
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
              pair_of(list, channels[i - 1] + seen[i - 1], channels[i], groups, epsilon), to, threads);
    maps.push_back(to);
  }
  const float* coarse = maps.back();
  for (int64_t i = levels - 2; i >= 0; --i) {
    h *= 2, w *= 2;
    float* to = room(h * w * channels[i]);
    conv_pair(h, w, channels[i + 1], channels[i], 1, coarse, maps[i],
              pair_of(list, channels[i + 1] + channels[i], channels[i], groups, epsilon), to, threads);
    coarse = to;
  }
  convolve(h, w, list.product(3 * channels[0], n), false, coarse, nullptr, out, threads);
}

}  // extern "C"
