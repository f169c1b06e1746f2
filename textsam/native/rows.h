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

}  // namespace
}  // namespace textsam
