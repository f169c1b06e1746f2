// The mask decoder's two-way transformer, prompt tokens and all. They are few: called one by one, their layers cost
// more than they compute.

#include "products.h"

extern "C" void textsam_exchange(int64_t n, int64_t tokens, int64_t heads, int64_t channels, int64_t positions,
                                 const float* keys, int64_t keys_stride, const float* pe, const float* write,
                                 const float* offset, const float* values, const float* norm_weight,
                                 const float* norm_bias, float eps, float* keys_out, const float* read, float* mixed,
                                 int64_t threads);

namespace textsam {
namespace {

// Numbers of a model. Tokens are (t, c) rows of a prompt; heads * d is the attention's inner width.
struct Sizes {
  int64_t t, c, heads, d, wide;
  float epsilon;
  int64_t inner() const { return heads * d; }
};

// A product of each head with weights of its own.
struct PerHead {
  Weights first;  // those of the others follow
  Weights of(int64_t head) const {
    const int64_t columns = padded(first.n);
    return {first.panels + head * first.k * columns, first.bias + head * columns, first.k, first.n};
  }
};

struct Norm {
  const float *scale, *shift;
  void operator()(float* rows, const Sizes& s) const { normalise(rows, s.t, s.c, scale, shift, s.epsilon); }
};

// Parameters stand in the order in which the members below do.
PerHead per_head(List& list, int64_t k, int64_t n) { return {list.product(k, n)}; }
Norm norm_of(List& list) {
  const float *scale = *list.next++, *shift = *list.next++;
  return {scale, shift};
}

// Tokens ask image positions, through the projections of queries and, turned round, of keys; what comes back goes
// through those of values and outputs.
struct Reading {
  Weights ask;
  PerHead fold, unfold;
  Weights out;
  Reading(List& list, const Sizes& s)
      : ask(list.product(s.c, s.inner())), fold(per_head(list, s.d, s.c)), unfold(per_head(list, s.c, s.d)),
        out(list.product(s.inner(), s.c)) {}
};

// Tokens offer themselves to image positions.
struct Writing {
  Weights offer;
  PerHead fold;
  const float* bias;  // (inner,) of the positions' own projection
  Weights give;
  PerHead values;  // with the output's bias, shared out among the heads
  Writing(List& list, const Sizes& s)
      : offer(list.product(s.c, s.inner())), fold(per_head(list, s.d, s.c)), bias(*list.next++),
        give(list.product(s.c, s.inner())), values(per_head(list, s.d, s.c)) {}
};

struct Block {
  Weights q, k, v, out;
  Norm norm1;
  Reading reading;
  Norm norm2;
  Weights widen, narrow;
  Norm norm3;
  Writing writing;
  Norm norm4;
  Block(List& list, const Sizes& s)
      : q(list.product(s.c, s.c)), k(list.product(s.c, s.c)), v(list.product(s.c, s.c)), out(list.product(s.c, s.c)),
        norm1(norm_of(list)), reading(list, s), norm2(norm_of(list)), widen(list.product(s.c, s.wide)),
        narrow(list.product(s.wide, s.c)), norm3(norm_of(list)), writing(list, s), norm4(norm_of(list)) {}
};

void apply(const Sizes& s, const float* x, const Weights& w, float* to) {
  product<End::kPlain>(s.t, x, w.k, w, to, w.n, w.n);
}

void add(const Sizes& s, const float* a, const float* b, float* to) {
  for (int64_t i = 0; i < s.t * s.c; ++i) to[i] = a[i] + b[i];
}

// The tokens of one prompt and room for what is made of them.
struct Prompt {
  const Sizes& s;
  const int64_t threads;  // for this prompt
  const float* tokens;    // as they came: their own position
  float *queries, *located, *a, *b, *c, *wide;
  Prompt(const Sizes& sizes, int64_t own_threads, const float* own, float* now, float* room)
      : s(sizes), threads(own_threads), tokens(own), queries(now), located(room), a(located + s.t * s.c),
        b(a + s.t * std::max(s.c, s.inner())), c(b + s.t * std::max(s.c, s.inner())),
        wide(c + s.t * std::max(s.c, s.inner())) {}
  static int64_t room(const Sizes& s) { return s.t * (s.c + 3 * std::max(s.c, s.inner()) + s.wide + s.t); }

  // queries = norm(queries + out(x)); without the queries where they are replaced.
  void take(const float* x, const Weights& out, const Norm& norm, bool replace = false) {
    if (replace)
      product<End::kPlain>(s.t, x, out.k, out, queries, s.c, s.c);
    else
      shared_product<End::kAdd>(threads, s.t, x, out.k, out, queries, s.c, s.c, queries);
    norm(queries, s);
  }

  void attend_to_self(const Block& block, bool without_positions) {
    const int64_t d = s.c / s.heads;
    const float factor = 1 / std::sqrt(static_cast<float>(d));
    const float* asked = queries;
    if (!without_positions) add(s, queries, tokens, located), asked = located;
    float *q = a, *k = b, *v = c, *weights = wide;
    apply(s, asked, block.q, q);
    apply(s, asked, block.k, k);
    apply(s, queries, block.v, v);
    float* mixed = located;  // `asked` has served
    for (int64_t t = 0; t < s.t; ++t)
      for (int64_t h = 0; h < s.heads; ++h) {
        float most = -INFINITY, sum = 0;
        for (int64_t u = 0; u < s.t; ++u) {
          float score = 0;
          for (int64_t i = h * d; i < (h + 1) * d; ++i) score += q[t * s.c + i] * k[u * s.c + i];
          weights[u] = score * factor;
          most = std::max(most, weights[u]);
        }
        for (int64_t u = 0; u < s.t; ++u) sum += weights[u] = fast_exp(weights[u] - most);
        float* to = mixed + t * s.c + h * d;
        std::fill(to, to + d, 0.0f);
        for (int64_t u = 0; u < s.t; ++u)
          for (int64_t i = 0; i < d; ++i) to[i] += weights[u] / sum * v[u * s.c + h * d + i];
      }
    take(mixed, block.out, block.norm1, without_positions);
  }

  // What is asked of the image, (heads * t, c).
  void ask(const Reading& reading, float* asked) {
    const float factor = 1 / std::sqrt(static_cast<float>(s.d));
    add(s, queries, tokens, located);
    apply(s, located, reading.ask, a);
    for (int64_t i = 0; i < s.t * s.inner(); ++i) a[i] *= factor;
    fold(a, reading.fold, asked);
  }

  void fold(const float* rows, const PerHead& weights, float* to) {
    for (int64_t h = 0; h < s.heads; ++h)
      product<End::kPlain>(s.t, rows + h * s.d, s.inner(), weights.of(h), to + h * s.t * s.c, s.c, s.c);
  }

  void hear(const float* mixed, const Reading& reading, const Norm& norm) {
    for (int64_t h = 0; h < s.heads; ++h)
      product<End::kPlain>(s.t, mixed + h * s.t * s.c, s.c, reading.unfold.of(h), a + h * s.d, s.inner(), s.d);
    take(a, reading.out, norm);
  }

  void think(const Block& block) {
    shared_product<End::kPlain>(threads, s.t, queries, s.c, block.widen, wide, s.wide, s.wide);
    for (int64_t i = 0; i < s.t * s.wide; ++i) wide[i] = std::max(wide[i], 0.0f);
    take(wide, block.narrow, block.norm3);
  }

  // What is offered to the image (heads * t, c), what is added to its products (heads * t,), and what is given
  // (c, heads * t).
  void offer(const Writing& writing, float* offered, float* offset, float* values) {
    const float factor = 1 / std::sqrt(static_cast<float>(s.d));
    const int64_t rows = s.heads * s.t;
    add(s, queries, tokens, located);
    apply(s, located, writing.offer, a);
    for (int64_t i = 0; i < s.t * s.inner(); ++i) a[i] *= factor;
    fold(a, writing.fold, offered);
    apply(s, queries, writing.give, b);
    for (int64_t h = 0; h < s.heads; ++h) {
      for (int64_t t = 0; t < s.t; ++t) {
        float sum = 0;
        for (int64_t i = h * s.d; i < (h + 1) * s.d; ++i) sum += a[t * s.inner() + i] * writing.bias[i];
        offset[h * s.t + t] = sum;
      }
      product<End::kPlain>(s.t, b + h * s.d, s.inner(), writing.values.of(h), located, s.c, s.c);
      for (int64_t t = 0; t < s.t; ++t)
        for (int64_t i = 0; i < s.c; ++i) values[i * rows + h * s.t + t] = located[t * s.c + i];
    }
  }
};

}  // namespace
}  // namespace textsam

// Tokens (n, t, c) and image positions (c, positions), of prompt 0, those of the next `keys_stride` floats on (0: all
// share one), to tokens (n, t, c) and positions keys_out (n, c, positions) after the exchange. pe: (c, positions).
// `parameters`: of the blocks and of the last reading, in the order of the structs above. first_without: the first
// block takes the place of its tokens, which have no positions yet. c is a multiple of a vector.
extern "C" void textsam_transform(int64_t n, int64_t t, int64_t c, int64_t heads, int64_t d, int64_t wide,
                                  int64_t depth, int64_t first_without, int64_t positions, float epsilon,
                                  const float* const* parameters, const float* keys, int64_t keys_stride,
                                  const float* pe, const float* tokens, float* out, float* keys_out,
                                  int64_t threads) {
  using namespace textsam;
  const Sizes s{t, c, heads, d, wide, epsilon};
  List list{parameters};
  std::vector<Block> blocks;
  for (int64_t i = 0; i < depth; ++i) blocks.emplace_back(list, s);
  const Reading last(list, s);
  const Norm last_norm = norm_of(list);
  const int64_t rows = heads * t, own = Prompt::room(s), each = rows * (4 * c + 1);
  float* room = scratch(0, n * (own + each));
  float *asked = room + n * own, *mixed = asked + n * rows * c, *offered = mixed + n * rows * c,
        *values = offered + n * rows * c, *offset = values + n * rows * c;
  std::memcpy(out, tokens, sizeof(float) * n * t * c);
  const auto of = [&](int64_t i, int64_t own_threads, auto work) {
    Prompt prompt(s, own_threads, tokens + i * t * c, out + i * t * c, room + i * own);
    work(prompt, i * rows * c, i * rows);
  };
  const auto for_each = [&](auto work) {
    if (n == 1) return of(0, threads, work);  // not in a region of its own, in which others would begin anew
#pragma omp parallel for num_threads(std::min(threads, n))
    for (int64_t i = 0; i < n; ++i) of(i, 1, work);
  };
  const Block* former = nullptr;  // whose tokens the positions take from
  const auto exchange = [&] {
    const bool changed = former && former != blocks.data();
    textsam_exchange(n, t, heads, c, positions, changed ? keys_out : keys, changed ? c * positions : keys_stride, pe,
                     former ? offered : nullptr, offset, values, former ? former->norm4.scale : nullptr,
                     former ? former->norm4.shift : nullptr, epsilon, keys_out, asked, mixed, threads);
  };
  for (const Block& block : blocks) {
    for_each([&](Prompt& prompt, int64_t at, int64_t) {
      prompt.attend_to_self(block, first_without && &block == blocks.data());
      prompt.ask(block.reading, asked + at);
    });
    exchange();
    former = &block;
    for_each([&](Prompt& prompt, int64_t at, int64_t row) {
      prompt.hear(mixed + at, block.reading, block.norm2);
      prompt.think(block);
      prompt.offer(block.writing, offered + at, offset + row, values + at);
    });
  }
  for_each([&](Prompt& prompt, int64_t at, int64_t) { prompt.ask(last, asked + at); });
  exchange();
  for_each([&](Prompt& prompt, int64_t at, int64_t) { prompt.hear(mixed + at, last, last_norm); });
}
