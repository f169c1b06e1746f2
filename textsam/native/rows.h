// Maps that are read by a 3 x 3 window, row by row.

#pragma once

#include "products.h"

namespace textsam {
namespace {

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

// Where between two of `in` places each of `out` lies, as PyTorch's bilinear resize has it.
struct Between {
  std::vector<int64_t> first, second;
  std::vector<float> share;
  Between(int64_t in, int64_t out) : first(out), second(out), share(out) {
    const float scale = static_cast<float>(in) / static_cast<float>(out);
    for (int64_t i = 0; i < out; ++i) {
      const float place = std::max(scale * (static_cast<float>(i) + 0.5f) - 0.5f, 0.0f);
      first[i] = std::min(static_cast<int64_t>(place), in - 1), second[i] = std::min(first[i] + 1, in - 1);
      share[i] = place - static_cast<float>(first[i]);
    }
  }
};

// A map (h, w, c) that is enlarged, bilinearly, row by row.
struct Enlarged {
  int64_t w, c;
  Between down, across;

  Enlarged(int64_t h, int64_t width, int64_t to_h, int64_t to_w, int64_t channels)
      : w(width), c(channels), down(h, to_h), across(width, to_w) {}

  // Row y to places that are `step` floats apart, in place of what is there or added to it.
  template <bool added>
  void row(const float* map, int64_t y, float* to, int64_t step) const {
    thread_local std::vector<float> blended;
    blended.resize(w * c);
    const float *above = map + down.first[y] * w * c, *below = map + down.second[y] * w * c;
    const float part = down.share[y];
    for (int64_t i = 0; i < w * c; ++i) blended[i] = above[i] + part * (below[i] - above[i]);
    for (size_t x = 0; x < across.share.size(); ++x, to += step) {
      const float *left = blended.data() + across.first[x] * c, *right = blended.data() + across.second[x] * c;
      for (int64_t i = 0; i < c; ++i) {
        const float value = left[i] + across.share[x] * (right[i] - left[i]);
        to[i] = added ? to[i] + value : value;
      }
    }
  }
};

}  // namespace
}  // namespace textsam
