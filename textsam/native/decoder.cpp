// The mask decoder's work on image positions, a block of them at a time and from start to end, so that nothing but the
// image tokens themselves travels through memory. Channels are rows and positions columns: what is done to each
// position is done to a vector of them.

#include "kernels.h"

namespace textsam {
namespace {

constexpr int64_t kBlock = 128;   // positions that are worked on together
constexpr int64_t kRange = 1024;  // positions of a task, at most

// Layer normalisation of `count` columns over their `rows` rows, in place; rows lie kBlock apart.
void normalise(float* x, int64_t rows, int64_t count, const float* weight, const float* bias, float eps) {
  float mean[kBlock] = {}, scale[kBlock] = {};
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < count; ++j) mean[j] += x[r * kBlock + j];
  for (int64_t j = 0; j < count; ++j) mean[j] /= rows;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < count; ++j) {
      const float d = x[r * kBlock + j] - mean[j];
      scale[j] += d * d;
    }
  for (int64_t j = 0; j < count; ++j) scale[j] = 1.0f / std::sqrt(scale[j] / rows + eps);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < count; ++j)
      x[r * kBlock + j] = (x[r * kBlock + j] - mean[j]) * scale[j] * weight[r] + bias[r];
}

// Softmax of every column over the `tokens` rows of a head, in place.
void softmax_over_tokens(float* s, int64_t tokens, int64_t count, const float* offset) {
  float most[kBlock], sum[kBlock] = {};
  std::fill(most, most + count, -INFINITY);
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t j = 0; j < count; ++j) most[j] = std::max(most[j], s[t * kBlock + j] += offset[t]);
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t j = 0; j < count; ++j) sum[j] += s[t * kBlock + j] = fast_exp(s[t * kBlock + j] - most[j]);
  for (int64_t j = 0; j < count; ++j) sum[j] = 1.0f / sum[j];
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t j = 0; j < count; ++j) s[t * kBlock + j] *= sum[j];
}

// Sums of exponentials over the positions seen so far, for every row (a token in a head).
struct Reading {
  float* mixed;  // (C, rows): sum of exp(score - most) times the position's channels
  float* most;   // (rows,)
  float* sum;    // (rows,)
};

// Adds `count` positions: their scores (rows, kBlock), which are overwritten, and their channels (C, kBlock).
void read_block(const Reading& to, int64_t rows, int64_t channels, int64_t count, float* scores, float* turned,
                float* factors, const float* keys) {
  bool rescale = false;
  for (int64_t r = 0; r < rows; ++r) {
    float* s = scores + r * kBlock;
    const float most = largest(s, count, to.most[r]);
    factors[r] = to.most[r] == -INFINITY ? 0.0f : fast_exp(to.most[r] - most);
    rescale |= most != to.most[r];
    to.most[r] = most;
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < count; ++j) sum += s[j] = fast_exp(s[j] - most);
    to.sum[r] = to.sum[r] * factors[r] + sum;
  }
  if (rescale)
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t r = 0; r < rows; ++r) to.mixed[c * rows + r] *= factors[r];
  for (int64_t j = 0; j < count; ++j)
    for (int64_t r = 0; r < rows; ++r) turned[j * rows + r] = scores[r * kBlock + j];
  multiply(channels, rows, count, keys, kBlock, turned, rows, to.mixed, rows, true);
}

}  // namespace
}  // namespace textsam

using namespace textsam;

// Image tokens take from the prompts' tokens, are normalised, and are then read by the tokens.
//
//   keys_out = norm(keys + values softmax(write keys' + offset)),  mixed = softmax(read keys_out') keys_out^T
//
// where keys' = keys + pe, and rows of `write` and `read` are tokens in heads, through the folded projections.
//
// keys: (C, P) of prompt 0, that of the next `keys_stride` floats on (0: all share one). pe: (C, P).
// write: (n, heads * tokens, C), offset: (n, heads * tokens), values: (n, C, heads * tokens), keys_out: (n, C, P); with
// write null nothing is taken and keys_out is not touched. read, mixed: (n, heads * tokens, C).
extern "C" void textsam_exchange(int64_t n, int64_t tokens, int64_t heads, int64_t channels, int64_t positions,
                                 const float* keys, int64_t keys_stride, const float* pe, const float* write,
                                 const float* offset, const float* values, const float* norm_weight,
                                 const float* norm_bias, float eps, float* keys_out, const float* read, float* mixed,
                                 int64_t threads) {
  // Few prompts are shared out, so that every thread has something to do.
  const int64_t shares = (threads + n - 1) / std::max<int64_t>(n, 1);
  const int64_t range = std::max<int64_t>(std::min((positions / shares + 16) / 16 * 16, kRange), kBlock);
  const int64_t rows = heads * tokens, ranges = (positions + range - 1) / range;
  const int64_t part = (channels + 2) * rows;  // mixed, most, sum
  Buffer parts(n * ranges * part);
#pragma omp parallel num_threads(threads)
  {
    Buffer buffer(kBlock * (2 * channels + 2 * rows) + rows);
    float* own = buffer.data();
    float* located = own + kBlock * channels;
    float* scores = located + kBlock * channels;
    float* turned = scores + kBlock * rows;
    float* factors = turned + kBlock * rows;
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < n * ranges; ++task) {
      const int64_t i = task / ranges, begin = task % ranges * range, end = std::min(begin + range, positions);
      float* at = parts.data() + task * part;
      const Reading reading{at, at + channels * rows, at + (channels + 1) * rows};
      std::fill(at, at + part, 0.0f);
      std::fill(reading.most, reading.most + rows, -INFINITY);
      for (int64_t p = begin; p < end; p += kBlock) {
        const int64_t count = std::min(kBlock, end - p);
        for (int64_t c = 0; c < channels; ++c) {
          const float* from = keys + i * keys_stride + c * positions + p;
          for (int64_t j = 0; j < count; ++j) {
            own[c * kBlock + j] = from[j];
            located[c * kBlock + j] = from[j] + pe[c * positions + p + j];
          }
        }
        if (write) {
          multiply(rows, count, channels, write + i * rows * channels, channels, located, kBlock, scores, kBlock);
          for (int64_t h = 0; h < heads; ++h)
            softmax_over_tokens(scores + h * tokens * kBlock, tokens, count, offset + i * rows + h * tokens);
          multiply(channels, count, rows, values + i * channels * rows, rows, scores, kBlock, own, kBlock, true);
          normalise(own, channels, count, norm_weight, norm_bias, eps);
          for (int64_t c = 0; c < channels; ++c) {
            float* to = keys_out + (i * channels + c) * positions + p;
            for (int64_t j = 0; j < count; ++j) {
              to[j] = own[c * kBlock + j];
              located[c * kBlock + j] = to[j] + pe[c * positions + p + j];
            }
          }
        }
        multiply(rows, count, channels, read + i * rows * channels, channels, located, kBlock, scores, kBlock);
        read_block(reading, rows, channels, count, scores, turned, factors, own);
      }
    }
    // Ranges of a prompt are put together.
#pragma omp for schedule(static)
    for (int64_t i = 0; i < n; ++i) {
      const float* first = parts.data() + i * ranges * part;
      for (int64_t r = 0; r < rows; ++r) {
        float most = -INFINITY, sum = 0.0f;
        for (int64_t k = 0; k < ranges; ++k) most = std::max(most, first[k * part + channels * rows + r]);
        float* to = mixed + (i * rows + r) * channels;
        std::fill(to, to + channels, 0.0f);
        for (int64_t k = 0; k < ranges; ++k) {
          const float* from = first + k * part;
          const float factor = fast_exp(from[channels * rows + r] - most);
          sum += factor * from[(channels + 1) * rows + r];
          for (int64_t c = 0; c < channels; ++c) to[c] += factor * from[c * rows + r];
        }
        for (int64_t c = 0; c < channels; ++c) to[c] /= sum;
      }
    }
  }
}

// Image tokens to masks: two transposed 2 x 2 convolutions of stride 2, as products with the four places behind each
// position, layer normalisation and GELU after the first, GELU after the second, and the masks' weights.
//
// keys: (n, C, h * w). up1: (4 * c1, C), rows place by place; bias1, norm_weight, norm_bias: (c1,).
// up2: (4 * c2, c1); bias2: (c2,). weights: (n, masks, c2). logits: (n, masks, 4h, 4w).
extern "C" void textsam_upscale(int64_t n, int64_t masks, int64_t channels, int64_t c1, int64_t c2, int64_t h,
                                int64_t w, const float* keys, const float* up1, const float* bias1,
                                const float* norm_weight, const float* norm_bias, float eps, const float* up2,
                                const float* bias2, const float* weights, float* logits, int64_t threads) {
  const int64_t positions = h * w, blocks = (positions + kBlock - 1) / kBlock;
#pragma omp parallel num_threads(threads)
  {
    Buffer buffer(kBlock * 4 * (c1 + c2));
    float* once = buffer.data();
    float* twice = once + kBlock * 4 * c1;
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < n * blocks; ++task) {
      const int64_t i = task / blocks, begin = task % blocks * kBlock, count = std::min(kBlock, positions - begin);
      int64_t corner[kBlock];  // of each position's 4 x 4 logits
      for (int64_t j = 0; j < count; ++j) corner[j] = (begin + j) / w * 16 * w + (begin + j) % w * 4;
      multiply(4 * c1, count, channels, up1, channels, keys + i * channels * positions + begin, positions, once,
               kBlock);
      for (int64_t place = 0; place < 4; ++place) {
        float* x = once + place * c1 * kBlock;
        for (int64_t c = 0; c < c1; ++c)
          for (int64_t j = 0; j < count; ++j) x[c * kBlock + j] += bias1[c];
        normalise(x, c1, count, norm_weight, norm_bias, eps);
        for (int64_t c = 0; c < c1; ++c)
          for (int64_t j = 0; j < count; ++j) x[c * kBlock + j] = gelu(x[c * kBlock + j]);
        multiply(4 * c2, count, c1, up2, c1, x, kBlock, twice, kBlock);
        for (int64_t row = 0; row < 4 * c2; ++row)
          for (int64_t j = 0; j < count; ++j)
            twice[row * kBlock + j] = gelu(twice[row * kBlock + j] + bias2[row % c2]);
        for (int64_t inner = 0; inner < 4; ++inner)
          for (int64_t m = 0; m < masks; ++m) {
            const float* weight = weights + (i * masks + m) * c2;
            float sum[kBlock] = {};
            for (int64_t c = 0; c < c2; ++c)
              for (int64_t j = 0; j < count; ++j) sum[j] += weight[c] * twice[(inner * c2 + c) * kBlock + j];
            const int64_t down = place / 2 * 2 + inner / 2, right = place % 2 * 2 + inner % 2;
            float* to = logits + (i * masks + m) * 16 * positions + down * 4 * w + right;
            for (int64_t j = 0; j < count; ++j) to[corner[j]] = sum[j];
          }
      }
    }
  }
}

// Whether block products work here: PyTorch raises an error where it was built without them, or the CPU is too old.
extern "C" int textsam_works() {
  try {
    const float a[4] = {1, 2, 3, 4}, b[4] = {5, 6, 7, 8};
    float c[4] = {};
    multiply(2, 2, 2, a, 2, b, 2, c, 2);
    return c[0] == 19 && c[3] == 50;
  } catch (...) {
    return 0;
  }
}
