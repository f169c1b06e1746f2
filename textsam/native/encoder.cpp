// Attention of the image encoder, in windows or over the whole grid, with decomposed relative positions.
//
// A task is one head of one window, or of some image rows of queries. The bias of its scores comes from the products of
// its queries with the tables and is written where the scores are going to be added, a block of keys at a time; softmax
// and the product with the values follow while the block is in the cache. Nothing of the size N x N exists. Products
// are of float32, or of bfloat16 with sums in float32.

#include <type_traits>

#include "kernels.h"

namespace textsam {
namespace {

using at::BFloat16;

constexpr int64_t kQueries = 64;  // of a task on the whole grid, about
constexpr int64_t kKeys = 512;    // of a block of scores, about

// bfloat16 pairs along the summed axis lie side by side in the right factor, as the CPU's instructions want them.
template <typename T>
constexpr int64_t kPair = std::is_same_v<T, float> ? 1 : 2;

template <typename T>
void product(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, float* c, int64_t ldc,
             bool add) {
  at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, add, a, b, c, kPair<T> == 2);
}

// To the nearest bfloat16, for finite numbers.
inline BFloat16 rounded(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return BFloat16(static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16), BFloat16::from_bits());
}

// What a call works on. Tokens of the strip lie row by row, 3 * heads * width each: queries, keys, values.
template <typename T>
struct Job {
  const T *tokens, *padding, *tables;
  T* out;
  int64_t rows, columns;          // of the strip
  int64_t key_rows, key_columns;  // of a window, or of the whole grid
  int64_t heads, width;
  float scale;

  int64_t keys() const { return key_rows * key_columns; }
  int64_t even_keys() const { return (keys() + 1) / 2 * 2; }
  int64_t offsets() const { return 2 * key_rows + 2 * key_columns - 2; }
  const T* token(int64_t y, int64_t x, int64_t part, int64_t head) const {
    const bool real = y < rows && x < columns;
    return (real ? tokens + (y * columns + x) * 3 * heads * width : padding) + (part * heads + head) * width;
  }
};

// Rows `rows[0 .. count - 1]` of a matrix become columns i, i + 1, ... of `to`, whose rows are `stride` long; pairs of
// bfloat16 stay together.
template <typename T>
void put_columns(const T* const* rows, int64_t count, int64_t width, T* to, int64_t stride, int64_t i) {
  const int64_t words = width / kPair<T>;
  for (int64_t w = 0; w < words; ++w)
    for (int64_t r = 0; r < count; ++r)
      std::memcpy(to + (w * stride + i + r) * kPair<T>, rows[r] + w * kPair<T>, 4);
}

// Keys, transposed, and values of one head in the window at `top`, `left`.
template <typename T>
void gather_keys(const Job<T>& job, int64_t head, int64_t top, int64_t left, T* keys, T* values) {
  const int64_t width = job.width, pair = kPair<T>;
  const T* together[16];
  for (int64_t y = 0, i = 0; y < job.key_rows; ++y)
    for (int64_t x = 0; x < job.key_columns; ++x, ++i) {
      together[i % 16] = job.token(top + y, left + x, 1, head);
      if (i % 16 == 15 || i == job.keys() - 1)
        put_columns(together, i % 16 + 1, width, keys, job.even_keys(), i / 16 * 16);
      const T* value = job.token(top + y, left + x, 2, head);
      T* to = values + i / pair * pair * width + i % pair;
      for (int64_t c = 0; c < width; ++c) to[c * pair] = value[c];
    }
  if (job.keys() % 2 && pair == 2)
    for (int64_t c = 0; c < width; ++c) values[(job.keys() - 1) * width + 2 * c + 1] = T(0.0f);
}

// Room for the work of one thread.
template <typename T>
struct Room {
  int64_t block_rows, block;  // image rows and keys of a block of scores
  Buffer floats, halves;
  float *scores, *offsets, *sums, *most, *total;
  T *queries, *weights;

  Room(const Job<T>& job, int64_t queries_count)
      : block_rows(std::min((std::max(kKeys / job.key_columns, int64_t{1}) + 1) / 2 * 2, job.key_rows)),
        block((block_rows * job.key_columns + 1) / 2 * 2),
        floats(queries_count * (block + job.offsets() + job.width + 2)),
        halves(queries_count * (block + job.width)) {
    scores = floats.data();
    offsets = scores + queries_count * block;
    sums = offsets + queries_count * job.offsets();
    most = sums + queries_count * job.width;
    total = most + queries_count;
    queries = reinterpret_cast<T*>(halves.data());
    // float32 weights take the place of their scores.
    weights = std::is_same_v<T, float> ? reinterpret_cast<T*>(scores) : queries + queries_count * job.width;
  }
};

// One step of the softmax along keys: scores of `keys` columns become weights, sums of what came before shrink.
template <typename T>
void softmax_block(const Job<T>& job, const Room<T>& room, int64_t count, int64_t keys, bool first) {
  for (int64_t i = 0; i < count; ++i) {
    float* s = room.scores + i * room.block;
    float total = 0.0f;
    const float most = largest(s, keys, first ? -INFINITY : room.most[i]);
    const float factor = first ? 0.0f : fast_exp((room.most[i] - most) * job.scale), shift = -most * job.scale;
#pragma omp simd reduction(+ : total)
    for (int64_t k = 0; k < keys; ++k) total += s[k] = fast_exp(std::fma(s[k], job.scale, shift));
    room.total[i] = first ? total : room.total[i] * factor + total;
    if (!first && factor != 1.0f)
      for (int64_t c = 0; c < job.width; ++c) room.sums[i * job.width + c] *= factor;
    room.most[i] = most;
    if constexpr (!std::is_same_v<T, float>) {
      T* w = room.weights + i * room.block;
      for (int64_t k = 0; k < keys; ++k) w[k] = rounded(s[k]);
      if (keys % 2) w[keys] = T(0.0f);
    }
  }
}

// Queries in the image rows y1 .. y2 - 1 of the window at `top`, `left`.
template <typename T>
void attend(const Job<T>& job, const Room<T>& room, int64_t head, int64_t top, int64_t left, int64_t y1, int64_t y2,
            const T* keys, const T* values) {
  const int64_t width = job.width, offsets = job.offsets(), across = std::min(job.key_columns, job.columns - left);
  const int64_t count = (y2 - y1) * across;
  for (int64_t i = 0; i < count; ++i)
    std::copy_n(job.token(top + y1 + i / across, left + i % across, 0, head), width, room.queries + i * width);
  product(count, offsets, width, room.queries, width, job.tables, offsets, room.offsets, offsets, false);
  for (int64_t row = 0; row < job.key_rows; row += room.block_rows) {
    const int64_t rows = std::min(room.block_rows, job.key_rows - row), n = rows * job.key_columns;
    const float unscale = 1.0f / job.scale;
    for (int64_t i = 0; i < count; ++i) {
      const float* of_query = room.offsets + i * offsets;
      const float* along_h = of_query + job.key_rows - 1 - (y1 + i / across) + row;
      const float* along_w = of_query + 2 * job.key_rows - 1 + job.key_columns - 1 - i % across;
      float* s = room.scores + i * room.block;
      for (int64_t k = 0; k < rows; ++k, s += job.key_columns)
        for (int64_t l = 0; l < job.key_columns; ++l) s[l] = (along_h[k] + along_w[l]) * unscale;
    }
    const int64_t start = row * job.key_columns;
    product(count, n, width, room.queries, width, keys + start * kPair<T>, job.even_keys(), room.scores, room.block,
            true);
    softmax_block(job, room, count, n, row == 0);
    const int64_t summed = (n + kPair<T> - 1) / kPair<T> * kPair<T>;
    product(count, width, summed, static_cast<const T*>(room.weights), room.block, values + start * width, width,
            room.sums, width, row != 0);
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t y = top + y1 + i / across, x = left + i % across;
    T* to = job.out + ((y * job.columns + x) * job.heads + head) * width;
    const float share = 1.0f / room.total[i];
    for (int64_t c = 0; c < width; ++c) to[c] = T(room.sums[i * width + c] * share);
  }
}

template <typename T>
void attend_in_windows(const Job<T>& job, int64_t threads) {
  const int64_t across = (job.columns + job.key_columns - 1) / job.key_columns;
  const int64_t down = (job.rows + job.key_rows - 1) / job.key_rows;
#pragma omp parallel num_threads(threads)
  {
    const Room<T> room(job, job.keys());
    Buffer buffer(2 * job.even_keys() * job.width);
    T* keys = reinterpret_cast<T*>(buffer.data());
    T* values = keys + job.even_keys() * job.width;
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < down * across * job.heads; ++task) {
      const int64_t head = task % job.heads, window = task / job.heads;
      const int64_t top = window / across * job.key_rows, left = window % across * job.key_columns;
      gather_keys(job, head, top, left, keys, values);
      attend(job, room, head, top, left, 0, std::min(job.key_rows, job.rows - top), keys, values);
    }
    at::native::cpublas::brgemm_release(kPair<T> == 2);
  }
}

template <typename T>
void attend_everywhere(const Job<T>& job, int64_t threads) {
  const int64_t rows = std::max(kQueries / job.columns, int64_t{1}), blocks = (job.rows + rows - 1) / rows;
  const int64_t size = job.even_keys() * job.width;
  Buffer buffer(2 * size * job.heads);
#pragma omp parallel num_threads(threads)
  {
    const Room<T> room(job, rows * job.columns);
    T* all = reinterpret_cast<T*>(buffer.data());
#pragma omp for schedule(dynamic, 1)
    for (int64_t head = 0; head < job.heads; ++head)
      gather_keys(job, head, 0, 0, all + 2 * head * size, all + (2 * head + 1) * size);
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < job.heads * blocks; ++task) {
      const int64_t head = task / blocks, y = task % blocks * rows;
      const T* keys = all + 2 * head * size;
      attend(job, room, head, 0, 0, y, std::min(y + rows, job.rows), keys, keys + size);
    }
    at::native::cpublas::brgemm_release(kPair<T> == 2);
  }
}

template <typename T>
void run(const void* tokens, const void* padding, const void* tables, void* out, int64_t rows, int64_t columns,
         int64_t window, int64_t heads, int64_t width, int64_t threads) {
  const int64_t key_rows = window ? window : rows, key_columns = window ? window : columns;
  Job<T> job{static_cast<const T*>(tokens), static_cast<const T*>(padding), nullptr, static_cast<T*>(out), rows,
             columns, key_rows, key_columns, heads, width, 1.0f / std::sqrt(static_cast<float>(width))};
  Buffer turned(job.offsets() * width);
  for (int64_t i = 0; i < job.offsets(); ++i) {
    const T* row = static_cast<const T*>(tables) + i * width;
    put_columns(&row, 1, width, reinterpret_cast<T*>(turned.data()), job.offsets(), i);
  }
  job.tables = reinterpret_cast<const T*>(turned.data());
  window ? attend_in_windows(job, threads) : attend_everywhere(job, threads);
}

}  // namespace
}  // namespace textsam

// tokens: (rows, columns, 3 * heads * width) projections. padding: (3 * heads * width,), the projection of a padding
// token. window: its side, or 0 for attention over the whole grid, whose windows start at the top-left corner.
// tables: (2 * key_rows - 1 + 2 * key_columns - 1, width), of rows, then of columns; row t holds the offset K - 1 - t.
// out: (rows, columns, heads * width). All float32, or with `half` all bfloat16 and `width` even.
extern "C" void textsam_attend(int half, const void* tokens, const void* padding, const void* tables, void* out,
                               int64_t rows, int64_t columns, int64_t window, int64_t heads, int64_t width,
                               int64_t threads) {
  const auto run = half ? textsam::run<at::BFloat16> : textsam::run<float>;
  run(tokens, padding, tables, out, rows, columns, window, heads, width, threads);
}
