// The 3x3 depthwise sweeps of the fused kernels, which compute something of each pixel as they load it. (The plain op
// does not: its sweeps are in rows.h.)
//
// A sweep works on 32 channels at a time: in bfloat16 that is one cache line a pixel. The rows that the window needs
// are converted to float32 once, into a ring in the L1 cache. The ring has a zero pixel on either side of each row,
// and a row of zeros for the rows outside the image, so that the arithmetic needs no special case at a border. For
// each tile of several rows the nine taps are loaded once, and its sums are added once to the sums over all images.
// Of small maps a tile holds several, one above the other as they lie in memory.
#pragma once
#include "cpu/range.h"
#include "cpu/taps.h"

namespace fastcifar {

namespace FASTCIFAR_ISA {
namespace {

class Ring {
 public:
  // For maps of `height` rows.
  Ring(float* memory, int64_t height, int64_t width)
      : rows_(memory), height_(height), pitch_((width + 2) * kBlock), last_(ring_rows(width) - 1) {
    zeros_ = memory + (last_ + 1) * pitch_;
    memset(zeros_, 0, pitch_ * sizeof(float));
    for (int64_t row = 0; row <= last_; ++row) {
      memset(rows_ + row * pitch_, 0, kBlock * sizeof(float));
      memset(rows_ + (row + 1) * pitch_ - kBlock, 0, kBlock * sizeof(float));
    }
  }
  // Row `row` of map `image` of the tile, from the zero pixel left of it on. Rows outside the map are all zeros.
  FC_INLINE const float* row(int64_t image, int64_t row) const {
    return row < 0 || row >= height_ ? zeros_ : rows_ + ((image * height_ + row) & last_) * pitch_;
  }
  // Row `row` of all maps, one above the other.
  FC_INLINE float* pixels(int64_t row) { return rows_ + (row & last_) * pitch_ + kBlock; }
  int64_t height() const { return height_; }
  int64_t capacity() const { return last_ + 1; }
  // How many maps a tile holds: more than one only if all rows of each fit with those of another, and then one tile has all
  // rows, as fill() needs it.
  int64_t images() const { return clamp(capacity() / height_, capacity()); }

 private:
  float *rows_, *zeros_;
  int64_t height_, pitch_, last_;
};

// Writes rows into the ring, from `next` to `end` of the last of `images` maps. `input(row, offset, lanes)` returns a
// function of the column.
template <class Input>
FC_INLINE void fill(Ring& ring, int64_t images, int64_t& next, int64_t end, int64_t width, int channels, Input input) {
  if (end > ring.height()) end = ring.height();
  end += (images - 1) * ring.height();
  for (; next < end; ++next) {
    float* row = ring.pixels(next);
    for_vectors(channels, [&](int offset, auto lanes) FC_LAMBDA {
      const auto pixel = input(next, offset, lanes);
      for (int64_t x = 0; x < width; ++x) store(row + x * kBlock + offset, pixel(x));
    });
  }
}

// Calls f(image, row) for rows [first, end) of each map.
template <class F>
FC_INLINE void for_rows(int64_t images, int64_t first, int64_t end, F f) {
  for (int64_t n = 0; n < images; ++n) {
    for (int64_t row = first; row < end; ++row) f(n, row);
  }
}

// The convolution of a block of channels of `images` maps, at most ring.images(). Each column of pixels is loaded once
// and added to all sums that it is part of.
//
// `taps`: float32 [9][pitch], from the block's first channel on. `make_sink(offset, lanes)` makes what takes the
// results of one vector of channels in one tile of rows: sink(row, column, sum) for each, then sink.finish().
template <int stride, class Input, class MakeSink>
FC_INLINE void convolve(Ring& ring, const DwShape& s, int64_t images, int channels, const float* taps, int64_t pitch,
                        Input input, MakeSink make_sink) {
  // Rows of outputs whose inputs fit the ring: tile + 2, or with stride 2 2 * tile + 1.
  const int64_t tile = (ring.capacity() - 1) / stride - (stride == 1);
  int64_t next = 0;
  for (int64_t first = 0; first < s.Ho; first += tile) {
    const int64_t end = first + tile < s.Ho ? first + tile : s.Ho;
    fill(ring, images, next, (end - 1) * stride + 2, s.W, channels, input);
    for_vectors(channels, [&](int offset, auto lanes) FC_LAMBDA {
      const TapVectors w(taps + offset, pitch);
      auto sink = make_sink(offset, lanes);
      for_rows(images, first, end, [&](int64_t n, int64_t y) FC_LAMBDA {
        const float* a = ring.row(n, y * stride - 1) + offset + kBlock;
        const float* h = ring.row(n, y * stride) + offset + kBlock;
        const float* b = ring.row(n, y * stride + 1) + offset + kBlock;
        const int64_t row = n * s.Ho + y;
        Vec column[3];  // three pixels one above the other
        const auto load_column = [&](int64_t at) FC_LAMBDA {
          column[0] = load(a + at), column[1] = load(h + at), column[2] = load(b + at);
        };
        if constexpr (stride == 1) {
          load_column(0);
          Vec sum = w.template add<1>(column, Vec{}), next_sum = w.template first<0>(column);
          for (int64_t x = 1; x < s.W; ++x) {
            load_column(x * kBlock);
            sink(row, x - 1, w.template add<2>(column, sum));
            sum = w.template add<1>(column, next_sum);
            next_sum = w.template first<0>(column);
          }
          sink(row, s.W - 1, sum);
        } else {
          Vec sum{};
          for (int64_t x = 0; x < s.Wo; ++x, a += 2 * kBlock, h += 2 * kBlock, b += 2 * kBlock) {
            load_column(0);
            sum = w.template add<1>(column, sum);
            load_column(kBlock);
            sink(row, x, w.template add<2>(column, sum));
            sum = w.template first<0>(column);
          }
        }
      });
      sink.finish();
    });
  }
}

// A gradient under tap K (0..8, row by row) of some pixel.
template <int K>
struct Tap {
  Vec value;
};

// The transposed convolution with stride 1. A pixel depends on the 3x3 gradients around it; gradient k lies under tap
// 8 - k. The sink is called as sink(row, column, sum of tap * gradient, Tap<8>, ..., Tap<0>).
template <class Input, class MakeSink>
FC_INLINE void convolve_transposed1(Ring& ring, const DwShape& s, int64_t images, int channels, const float* taps,
                                    int64_t pitch, Input input, MakeSink make_sink) {
  const int64_t tile = ring.capacity() - 2;
  int64_t next = 0;
  for (int64_t first = 0; first < s.H; first += tile) {
    const int64_t end = first + tile < s.H ? first + tile : s.H;
    fill(ring, images, next, end + 1, s.W, channels, input);
    for_vectors(channels, [&](int offset, auto lanes) FC_LAMBDA {
      const TapVectors w(taps + offset, pitch);
      auto sink = make_sink(offset, lanes);
      for_rows(images, first, end, [&](int64_t n, int64_t y) FC_LAMBDA {
        const float* above = ring.row(n, y - 1) + offset;
        const float* here = ring.row(n, y) + offset;
        const float* below = ring.row(n, y + 1) + offset;
        for (int64_t x = 0; x < s.W; ++x) {
          const int64_t at = x * kBlock;
          const Vec a0 = load(above + at), a1 = load(above + at + kBlock), a2 = load(above + at + 2 * kBlock);
          const Vec h0 = load(here + at), h1 = load(here + at + kBlock), h2 = load(here + at + 2 * kBlock);
          const Vec b0 = load(below + at), b1 = load(below + at + kBlock), b2 = load(below + at + 2 * kBlock);
          Vec sum = w.tap[2][2] * a0;
          sum = w.tap[2][1] * a1 + sum;
          sum = w.tap[2][0] * a2 + sum;
          sum = w.tap[1][2] * h0 + sum;
          sum = w.tap[1][1] * h1 + sum;
          sum = w.tap[1][0] * h2 + sum;
          sum = w.tap[0][2] * b0 + sum;
          sum = w.tap[0][1] * b1 + sum;
          sum = w.tap[0][0] * b2 + sum;
          sink(n * s.H + y, x, sum, Tap<8>{a0}, Tap<7>{a1}, Tap<6>{a2}, Tap<5>{h0}, Tap<4>{h1}, Tap<3>{h2}, Tap<2>{b0},
               Tap<1>{b1}, Tap<0>{b2});
        }
      });
      sink.finish();
    });
  }
}

// The transposed convolution with stride 2. A quad of 2x2 pixels depends on the 2x2 gradients at its place, to the
// right, below, and below to the right: its four pixels meet them under one, two, two and four taps.
template <class Input, class MakeSink>
FC_INLINE void convolve_transposed2(Ring& ring, const DwShape& s, int64_t images, int channels, const float* taps,
                                    int64_t pitch, Input input, MakeSink make_sink) {
  const int64_t tile = ring.capacity() - 1;
  int64_t next = 0;
  for (int64_t first = 0; first < s.Ho; first += tile) {
    const int64_t end = first + tile < s.Ho ? first + tile : s.Ho;
    fill(ring, images, next, end + 1, s.Wo, channels, input);
    for_vectors(channels, [&](int offset, auto lanes) FC_LAMBDA {
      const TapVectors w(taps + offset, pitch);
      auto sink = make_sink(offset, lanes);
      for_rows(images, first, end, [&](int64_t n, int64_t y) FC_LAMBDA {
        const float* here = ring.row(n, y) + offset + kBlock;
        const float* below = ring.row(n, y + 1) + offset + kBlock;
        const int64_t row = n * s.H + 2 * y;
        const bool has_below = 2 * y + 1 < s.H;
        for (int64_t x = 0; x < s.Wo; ++x) {
          const bool has_right = 2 * x + 1 < s.W;
          const Vec g = load(here + x * kBlock), right = load(here + (x + 1) * kBlock);
          sink(row, 2 * x, w.tap[1][1] * g, Tap<4>{g});
          if (has_right) sink(row, 2 * x + 1, w.tap[1][2] * g + w.tap[1][0] * right, Tap<5>{g}, Tap<3>{right});
          if (!has_below) continue;
          const Vec under = load(below + x * kBlock), across = load(below + (x + 1) * kBlock);
          sink(row + 1, 2 * x, w.tap[2][1] * g + w.tap[0][1] * under, Tap<7>{g}, Tap<1>{under});
          if (!has_right) continue;
          sink(row + 1, 2 * x + 1,
               (w.tap[2][2] * g + w.tap[2][0] * right) + (w.tap[0][2] * under + w.tap[0][0] * across), Tap<8>{g},
               Tap<6>{right}, Tap<2>{under}, Tap<0>{across});
        }
      });
      sink.finish();
    });
  }
}

}  // namespace
}  // namespace FASTCIFAR_ISA
}  // namespace fastcifar
