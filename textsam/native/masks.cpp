// Low-resolution logits to masks at the photo's size: upscaled, counted, boxed and run-length encoded in one pass of
// rows, of which two are kept. Values are those of torch.nn.functional.interpolate(mode="bilinear") to the bit: the
// same weights, multiplied and added in the same order, along rows first.

#include <string>

#include "kernels.h"

namespace textsam {
namespace {

// Which two samples each output of a bilinear resize lies between, and their weights.
struct Axis {
  std::vector<int32_t> first, second;
  std::vector<float> weight0, weight1;

  Axis(int64_t size, int64_t new_size) : first(new_size), second(new_size), weight0(new_size), weight1(new_size) {
    const float scale = static_cast<float>(size) / static_cast<float>(new_size);
    for (int64_t i = 0; i < new_size; ++i) {
      const float at = std::max(scale * (i + 0.5f) - 0.5f, 0.0f);
      first[i] = static_cast<int32_t>(std::min(static_cast<int64_t>(at), size - 1));
      second[i] = static_cast<int32_t>(std::min<int64_t>(first[i] + 1, size - 1));
      weight1[i] = std::min(std::max(at - first[i], 0.0f), 1.0f);
      weight0[i] = 1.0f - weight1[i];
    }
  }

  // Outputs that see samples begin .. end - 1.
  void narrow(int64_t& begin, int64_t& end) const {
    int64_t low = 0, high = static_cast<int64_t>(first.size());
    while (low < high && second[low] < begin) ++low;
    while (high > low && first[high - 1] >= end) --high;
    begin = low, end = high;
  }
};

void mix_along_row(const float* from, const Axis& axis, int64_t begin, int64_t end, float* to) {
  const int32_t *first = axis.first.data(), *second = axis.second.data();
  const float *weight0 = axis.weight0.data(), *weight1 = axis.weight1.data();
  for (int64_t x = begin; x < end; ++x) to[x] = std::fma(from[second[x]], weight1[x], from[first[x]] * weight0[x]);
}

void mix_rows(const float* a, const float* b, float weight0, float weight1, int64_t begin, int64_t end, float* to) {
  for (int64_t x = begin; x < end; ++x) to[x] = std::fma(b[x], weight1, a[x] * weight0);
}

// One bilinear resize that is asked for its rows one after another.
class Resize {
 public:
  Resize(const Axis& rows, const Axis& columns) : rows_(rows), columns_(columns) {
    for (auto& row : kept_) row.resize(columns.first.size());
  }
  void start(int64_t begin, int64_t end) { begin_ = begin, end_ = end, numbers_[0] = numbers_[1] = -1; }

  // Columns begin .. end - 1 of output row y; `source` gives a row of the input by its number.
  template <typename Source>
  void row(int64_t y, const Source& source, float* to) {
    const float* a = mixed(rows_.first[y], source);
    const float* b = mixed(rows_.second[y], source);
    mix_rows(a, b, rows_.weight0[y], rows_.weight1[y], begin_, end_, to);
  }

 private:
  template <typename Source>
  const float* mixed(int64_t number, const Source& source) {
    for (int i : {0, 1})
      if (numbers_[i] == number) return kept_[i].data();
    const int slot = numbers_[0] < numbers_[1] ? 0 : 1;  // rows come in order, so the lower one has had its use
    mix_along_row(source(number), columns_, begin_, end_, kept_[slot].data());
    numbers_[slot] = number;
    return kept_[slot].data();
  }

  const Axis &rows_, &columns_;
  std::vector<float> kept_[2];
  int64_t numbers_[2], begin_ = 0, end_ = 0;
};

struct Sizes {
  int64_t rows, columns;           // of the low-resolution logits that are used
  int64_t height, width;           // of the photo as the model sees it
  int64_t photo_height, photo_width;
  int64_t frame_height, frame_width, top, left;  // the whole photo, and where the one given, a crop of it, starts
};

// Where a mask starts and ends along its columns: column-major positions at which the value changes.
class Changes {
 public:
  void clear() { x_.clear(), y_.clear(); }
  void add(int32_t x, int32_t y) { x_.push_back(x), y_.push_back(y); }

  // Adds the columns begin .. end - 1 in which two rows of bytes differ.
  void compare(const uint8_t* above, const uint8_t* row, int64_t begin, int64_t end, int32_t y) {
    int64_t x = begin;
    for (; x + 8 <= end; x += 8) {
      uint64_t a, b;
      std::memcpy(&a, above + x, 8);
      std::memcpy(&b, row + x, 8);
      for (uint64_t d = a ^ b; d; d &= d - 1) add(static_cast<int32_t>(x + __builtin_ctzll(d) / 8), y);
    }
    for (; x < end; ++x)
      if (above[x] != row[x]) add(static_cast<int32_t>(x), y);
  }

  // x1, y1, x2, y2 of the last column and row inside; zeros when nothing changes.
  void box(int64_t* to) const {
    std::fill(to, to + 4, 0);
    if (x_.empty()) return;
    const auto [x1, x2] = std::minmax_element(x_.begin(), x_.end());
    to[0] = *x1, to[1] = y_.front(), to[2] = *x2, to[3] = y_.back() - 1;
  }

  // COCO's compressed run lengths.
  std::string encode(const Sizes& sizes) const {
    std::vector<int64_t> starts(sizes.photo_width + 1, 0), sorted(x_.size()), at;
    for (const int32_t x : x_) ++starts[x + 1];
    for (int64_t x = 0; x < sizes.photo_width; ++x) starts[x + 1] += starts[x];
    for (size_t i = 0; i < x_.size(); ++i)
      sorted[starts[x_[i]]++] = (x_[i] + sizes.left) * sizes.frame_height + y_[i] + sizes.top;
    for (const int64_t position : sorted) {  // the end of a column and the start of the next cancel
      if (!at.empty() && at.back() == position) at.pop_back();
      else at.push_back(position);
    }
    const int64_t total = sizes.frame_height * sizes.frame_width;
    if (at.empty() || at.back() != total) at.push_back(total);
    std::string text;
    int64_t before = 0;
    std::vector<int64_t> runs;
    for (const int64_t position : at) runs.push_back(position - before), before = position;
    for (size_t i = 0; i < runs.size(); ++i) {
      int64_t value = i > 2 ? runs[i] - runs[i - 2] : runs[i];
      for (bool more = true; more;) {
        int64_t digit = value & 31;
        value >>= 5;
        more = digit & 16 ? value != -1 : value != 0;
        text += static_cast<char>((more ? digit | 32 : digit) + 48);
      }
    }
    return text;
  }

 private:
  std::vector<int32_t> x_, y_;
};

// The part of a map that exceeds a value: rows and columns begin .. end - 1, and one more on each side.
struct Span {
  int64_t top, bottom, left, right;
};

Span find_span(const float* logits, int64_t stride, const Sizes& sizes, float lowest) {
  Span span{sizes.rows, -1, sizes.columns, -1};
  for (int64_t y = 0; y < sizes.rows; ++y)
    for (int64_t x = 0; x < sizes.columns; ++x)
      if (logits[y * stride + x] > lowest) {
        span.top = std::min(span.top, y), span.bottom = y;
        span.left = std::min(span.left, x), span.right = std::max(span.right, x);
      }
  return {span.top, span.bottom + 1, span.left, span.right + 1};
}

struct Axes {
  Axis up_rows, up_columns, photo_rows, photo_columns;
  bool same;  // the photo has the size that the model sees

  explicit Axes(const Sizes& s)
      : up_rows(s.rows, 4 * s.rows), up_columns(s.columns, 4 * s.columns), photo_rows(s.height, s.photo_height),
        photo_columns(s.width, s.photo_width), same(s.height == s.photo_height && s.width == s.photo_width) {}
};

}  // namespace
}  // namespace textsam

using namespace textsam;

// Scores n masks. logits: mask i at i * mask_stride, its rows row_stride apart. thresholds: low, middle, high.
// sizes: as `Sizes`. counts (n, 2): pixels above the high and the low threshold. boxes (n, 4): of the mask.
// Masks whose counts' quotient is below `least` get no run lengths.
// Returns n strings, for textsam_take; lengths (n,): theirs.
extern "C" void* textsam_score(int64_t n, const float* logits, int64_t mask_stride, int64_t row_stride,
                               const int64_t* sizes_given, const float* thresholds, float least, int64_t* counts,
                               int64_t* boxes, int64_t* lengths, int64_t threads) {
  Sizes sizes;
  std::memcpy(&sizes, sizes_given, sizeof sizes);
  const Axes axes(sizes);
  auto* texts = new std::vector<std::string>(n);
#pragma omp parallel num_threads(threads)
  {
    Resize up(axes.up_rows, axes.up_columns), photo(axes.photo_rows, axes.photo_columns);
    std::vector<float> seen(4 * sizes.columns), values(std::max(sizes.photo_width, 4 * sizes.columns));
    std::vector<uint8_t> above(sizes.photo_width), row(sizes.photo_width);
    Changes changes;
#pragma omp for schedule(dynamic, 4)
    for (int64_t i = 0; i < n; ++i) {
      const float* mask = logits + i * mask_stride;
      const float low = thresholds[0], middle = thresholds[1], high = thresholds[2];
      Span span = find_span(mask, row_stride, sizes, low);
      axes.up_rows.narrow(span.top, span.bottom), axes.up_columns.narrow(span.left, span.right);
      span.bottom = std::min(span.bottom, sizes.height), span.right = std::min(span.right, sizes.width);
      const int64_t left_seen = std::max<int64_t>(span.left - 1, 0), right_seen = std::min(span.right + 1, sizes.width);
      if (!axes.same) {
        axes.photo_rows.narrow(span.top, span.bottom), axes.photo_columns.narrow(span.left, span.right);
      }
      up.start(axes.same ? span.left : left_seen, axes.same ? span.right : right_seen);
      photo.start(span.left, span.right);
      const auto low_res = [&](int64_t y) { return mask + y * row_stride; };
      const auto upscaled = [&](int64_t y) {
        up.row(y, low_res, seen.data());
        return static_cast<const float*>(seen.data());
      };
      std::fill(above.begin(), above.end(), 0);
      changes.clear();
      int64_t inner = 0, outer = 0;
      for (int64_t y = span.top; y < span.bottom; ++y) {
        if (axes.same) up.row(y, low_res, values.data());
        else photo.row(y, upscaled, values.data());
        int32_t in = 0, out = 0;
        for (int64_t x = span.left; x < span.right; ++x) {
          in += values[x] > high;
          out += values[x] > low;
        }
        for (int64_t x = span.left; x < span.right; ++x) row[x] = values[x] > middle;
        inner += in, outer += out;
        changes.compare(above.data(), row.data(), span.left, span.right, static_cast<int32_t>(y));
        std::swap(above, row);
      }
      std::fill(row.begin(), row.end(), 0);
      changes.compare(above.data(), row.data(), span.left, span.right,
                      static_cast<int32_t>(span.bottom));
      counts[2 * i] = inner, counts[2 * i + 1] = outer;
      changes.box(boxes + 4 * i);
      const float stability = outer ? static_cast<float>(inner) / static_cast<float>(outer) : 0.0f;
      if (!(least > 0.0f && stability < least)) (*texts)[i] = changes.encode(sizes);
      lengths[i] = static_cast<int64_t>((*texts)[i].size());
    }
  }
  return texts;
}

// Copies the strings one after another, and forgets them.
extern "C" void textsam_take(void* handle, char* to) {
  auto* texts = static_cast<std::vector<std::string>*>(handle);
  for (const std::string& text : *texts) to = std::copy(text.begin(), text.end(), to);
  delete texts;
}
