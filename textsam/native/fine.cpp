// What the head for strokes wants to know of the colours around each pixel, without the maps in between.
//
// A local mean is a map of block means, smoothed by 3 x 3 and enlarged bilinearly, as in `fine_masks.local_mean`. The
// enlarged map is needed a row at a time only.

#include "kernels.h"

namespace textsam {
namespace {

// Blocks of `side` pixels over (h, w); those at the right and bottom edges may be cut.
struct Grid {
  int64_t h, w, side, rows, columns;
  std::vector<int64_t> left, right;  // blocks that a pixel lies between
  std::vector<float> share;          // of the right one
  Grid(int64_t h_, int64_t w_, int64_t side_)
      : h(h_), w(w_), side(side_), rows((h + side - 1) / side), columns((w + side - 1) / side), left(w), right(w),
        share(w) {
    for (int64_t x = 0; x < w; ++x) between(x, columns, w, left[x], right[x], share[x]);
  }
  static void between(int64_t place, int64_t blocks, int64_t size, int64_t& first, int64_t& second, float& share) {
    const float scale = static_cast<float>(blocks) / static_cast<float>(size);
    const float at = std::max(scale * (static_cast<float>(place) + 0.5f) - 0.5f, 0.0f);
    first = std::min(static_cast<int64_t>(at), blocks - 1);
    second = std::min(first + 1, blocks - 1);
    share = at - static_cast<float>(first);
  }
};

// A map of block means that is filled row by row of the picture, from the top, and then read row by row.
class Means {
 public:
  explicit Means(const Grid& grid) : grid_(grid), sums_(grid.w), blocks_(grid.rows * grid.columns), line_(grid.columns) {}

  // Adds the picture's row y.
  void add(int64_t y, const float* values) {
    float* sums = sums_.data();
    if (y % grid_.side == 0) std::fill(sums_.begin(), sums_.end(), 0.0f);
    for (int64_t x = 0; x < grid_.w; ++x) sums[x] += values[x];
    if ((y + 1) % grid_.side && y + 1 < grid_.h) return;
    const int64_t high = y % grid_.side + 1;
    for (int64_t c = 0; c < grid_.columns; ++c) {
      const int64_t first = c * grid_.side, last = std::min(first + grid_.side, grid_.w);
      float sum = 0;
      for (int64_t x = first; x < last; ++x) sum += sums[x];
      blocks_[y / grid_.side * grid_.columns + c] = sum / static_cast<float>(high * (last - first));
    }
  }

  // Each block becomes the mean of the up to nine around it.
  void smooth() {
    std::vector<float> smoothed(blocks_.size());
    for (int64_t r = 0; r < grid_.rows; ++r)
      for (int64_t c = 0; c < grid_.columns; ++c) {
        float sum = 0, count = 0;
        for (int64_t i = std::max<int64_t>(r - 1, 0); i < std::min(r + 2, grid_.rows); ++i)
          for (int64_t j = std::max<int64_t>(c - 1, 0); j < std::min(c + 2, grid_.columns); ++j)
            sum += blocks_[i * grid_.columns + j], ++count;
        smoothed[r * grid_.columns + c] = sum / count;
      }
    blocks_.swap(smoothed);
  }

  // The enlarged map's row y.
  void row(int64_t y, float* to) {
    int64_t first, second;
    float share;
    Grid::between(y, grid_.rows, grid_.h, first, second, share);
    const float *above = &blocks_[first * grid_.columns], *below = &blocks_[second * grid_.columns];
    float* line = line_.data();
    for (int64_t c = 0; c < grid_.columns; ++c) line[c] = (1 - share) * above[c] + share * below[c];
    const int64_t *left = grid_.left.data(), *right = grid_.right.data();
    const float* shares = grid_.share.data();
    for (int64_t x = 0; x < grid_.w; ++x) to[x] = (1 - shares[x]) * line[left[x]] + shares[x] * line[right[x]];
  }

 private:
  const Grid& grid_;
  std::vector<float> sums_, blocks_, line_;
};

inline float sigmoid(float x) { return 1 / (1 + fast_exp(-x)); }
inline float tanh_of(float x) { return 1 - 2 / (1 + fast_exp(2 * x)); }

// `fine_masks.oriented_contrast` of one channel.
void contrast(const Grid& grid, const float* values, float* to) {
  Means mean(grid), squares(grid), cubes(grid);
  std::vector<float> around(grid.w), square(grid.w), cube(grid.w);
  for (int64_t y = 0; y < grid.h; ++y) mean.add(y, values + y * grid.w);
  mean.smooth();
  for (int64_t y = 0; y < grid.h; ++y) {
    mean.row(y, around.data());
    for (int64_t x = 0; x < grid.w; ++x) {
      const float away = values[y * grid.w + x] - around[x];
      square[x] = away * away;
      cube[x] = away * away * away;
    }
    squares.add(y, square.data());
    cubes.add(y, cube.data());
  }
  squares.smooth();
  cubes.smooth();
  for (int64_t y = 0; y < grid.h; ++y) {
    mean.row(y, around.data());
    squares.row(y, square.data());
    cubes.row(y, cube.data());
    for (int64_t x = 0; x < grid.w; ++x) {
      const float deviation = std::sqrt(square[x] + 1e-3f);
      const float skewness = cube[x] / (deviation * deviation * deviation);
      const float away = values[y * grid.w + x] - around[x];
      to[y * grid.w + x] = away / std::sqrt(square[x] + 4e-3f) * tanh_of(2 * skewness);
    }
  }
}

// `fine_masks.colour_shares` in one window.
void share(const Grid& grid, const float* pixels, const float* logits, float* to) {
  const int64_t w = grid.w, plane = grid.h * w;
  std::vector<Means> means(8, Means(grid));  // ink times three colours, ground times three, ink, ground
  std::vector<float> room(8 * w);
  float* rows[8];
  for (int64_t i = 0; i < 8; ++i) rows[i] = room.data() + i * w;
  for (int64_t y = 0; y < grid.h; ++y) {
    const float* line = logits + y * w;
    for (int64_t x = 0; x < w; ++x) rows[6][x] = sigmoid(2 * (line[x] - 1)), rows[7][x] = sigmoid(-2 * (line[x] + 1));
    for (int64_t c = 0; c < 3; ++c) {
      const float* colour = pixels + c * plane + y * w;
      for (int64_t x = 0; x < w; ++x) rows[c][x] = rows[6][x] * colour[x], rows[3 + c][x] = rows[7][x] * colour[x];
    }
    for (int64_t i = 0; i < 8; ++i) means[i].add(y, rows[i]);
  }
  for (Means& mean : means) mean.smooth();
  for (int64_t y = 0; y < grid.h; ++y) {
    for (int64_t i = 0; i < 8; ++i) means[i].row(y, rows[i]);
    const float *red = pixels + y * w, *green = red + plane, *blue = green + plane;
    for (int64_t x = 0; x < w; ++x) {
      const float inked = rows[6][x], by_ink = 1 / (inked + 1e-3f), by_ground = 1 / (rows[7][x] + 1e-3f);
      const float r = rows[3][x] * by_ground, g = rows[4][x] * by_ground, b = rows[5][x] * by_ground;
      const float to_r = rows[0][x] * by_ink - r, to_g = rows[1][x] * by_ink - g, to_b = rows[2][x] * by_ink - b;
      const float along = (red[x] - r) * to_r + (green[x] - g) * to_g + (blue[x] - b) * to_b;
      const float part = along / (to_r * to_r + to_g * to_g + to_b * to_b + 0.02f);
      to[y * w + x] = std::min(std::max(part, -1.0f), 2.0f) * inked / (inked + 0.02f);
    }
  }
}

}  // namespace
}  // namespace textsam

extern "C" {

// (channels, h, w) and `count` sides of blocks to contrasts (count, channels, h, w).
void textsam_contrasts(int64_t channels, int64_t h, int64_t w, const float* values, int64_t count, const int64_t* sides,
                       float* out, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t task = 0; task < count * channels; ++task) {
    const textsam::Grid grid(h, w, sides[task / channels]);
    textsam::contrast(grid, values + task % channels * h * w, out + task * h * w);
  }
}

// Pixels (3, h, w), logits (h, w) of ink and `count` sides of blocks to shares (count, h, w).
void textsam_shares(int64_t h, int64_t w, const float* pixels, const float* logits, int64_t count, const int64_t* sides,
                    float* out, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t task = 0; task < count; ++task) {
    const textsam::Grid grid(h, w, sides[task]);
    textsam::share(grid, pixels, logits, out + task * h * w);
  }
}

}  // extern "C"
