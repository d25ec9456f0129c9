// The 3x3 depthwise sweeps, shared by the plain and the fused kernels.
//
// A block of 32 channels at a time: in bfloat16 that is one cache line a pixel. The rows that the window needs are
// converted to float32 once, into a ring in the L1 cache with a zero pixel on either side and a row of zeros to stand
// for those outside the image, so that the arithmetic knows no borders. A tile of several rows shares one load of the
// nine taps and of the accumulators.
#pragma once
#include "cpu/range.h"
#include "cpu/vec.h"

namespace fastcifar {

namespace FASTCIFAR_ISA {
namespace {

class Ring {
 public:
  Ring(float* memory, int64_t height, int64_t width, int stride)
      : rows_(memory), height_(height), pitch_((width + 2) * kBlock), capacity_(tile_rows(width) * stride + 3) {
    zeros_ = memory + capacity_ * pitch_;
    memset(zeros_, 0, pitch_ * sizeof(float));
    for (int64_t row = 0; row < capacity_; ++row) {
      memset(rows_ + row * pitch_, 0, kBlock * sizeof(float));
      memset(rows_ + (row + 1) * pitch_ - kBlock, 0, kBlock * sizeof(float));
    }
  }
  // Row `row` of the map from its left zero pixel on; outside the map all zeros.
  const float* operator[](int64_t row) const {
    return row < 0 || row >= height_ ? zeros_ : rows_ + (row % capacity_) * pitch_;
  }
  float* pixels(int64_t row) { return rows_ + (row % capacity_) * pitch_ + kBlock; }
  int64_t height() const { return height_; }

 private:
  float *rows_, *zeros_;
  int64_t height_, pitch_, capacity_;
};

// Rows [next, end) into the ring. `input(row, offset, lanes)` returns a function of the column.
template <class Input>
FC_INLINE void fill(Ring& ring, int64_t& next, int64_t end, int64_t width, int channels, Input input) {
  for (; next < end; ++next) {
    float* row = ring.pixels(next);
    for_vectors(channels, [&](int offset, auto lanes) FC_LAMBDA {
      const auto pixel = input(next, offset, lanes);
      for (int64_t x = 0; x < width; ++x) store(row + x * kBlock + offset, pixel(x));
    });
  }
}

// The window's value under tap K (0..8, row by row), for what accumulates beside the convolution.
template <int K>
struct Tap {
  Vec value;
};

// Slides the 3x3 window over one image's block of channels.
//
// `taps`: float32 [9] rows of `pitch` channels, at the block's first. `make_sink(offset, lanes)` makes a sink for one
// vector of channels and one tile; it is called as sink(row, column, sum of tap k * window value k, Tap<0>..Tap<8>),
// and finish() at the tile's end.
template <int stride, class Input, class MakeSink>
FC_INLINE void slide(Ring& ring, int64_t width, int64_t out_height, int64_t out_width, int channels, const float* taps,
                     int64_t pitch, Input input, MakeSink make_sink) {
  const int64_t tile = tile_rows(width);
  int64_t next = 0;
  for (int64_t first = 0; first < out_height; first += tile) {
    const int64_t end = first + tile < out_height ? first + tile : out_height;
    const int64_t needed = (end - 1) * stride + 2;
    fill(ring, next, needed < ring.height() ? needed : ring.height(), width, channels, input);
    for_vectors(channels, [&](int offset, auto lanes) FC_LAMBDA {
      const float* w = taps + offset;
      const Vec w0 = load(w), w1 = load(w + pitch), w2 = load(w + 2 * pitch), w3 = load(w + 3 * pitch),
                w4 = load(w + 4 * pitch), w5 = load(w + 5 * pitch), w6 = load(w + 6 * pitch), w7 = load(w + 7 * pitch),
                w8 = load(w + 8 * pitch);
      auto sink = make_sink(offset, lanes);
      for (int64_t y = first; y < end; ++y) {
        const float* above = ring[y * stride - 1] + offset;
        const float* here = ring[y * stride] + offset;
        const float* below = ring[y * stride + 1] + offset;
        for (int64_t x = 0; x < out_width; ++x) {
          const int64_t at = x * stride * kBlock;
          const Vec a0 = load(above + at), a1 = load(above + at + kBlock), a2 = load(above + at + 2 * kBlock);
          const Vec h0 = load(here + at), h1 = load(here + at + kBlock), h2 = load(here + at + 2 * kBlock);
          const Vec b0 = load(below + at), b1 = load(below + at + kBlock), b2 = load(below + at + 2 * kBlock);
          Vec sum = w0 * a0;
          sum = w1 * a1 + sum;
          sum = w2 * a2 + sum;
          sum = w3 * h0 + sum;
          sum = w4 * h1 + sum;
          sum = w5 * h2 + sum;
          sum = w6 * b0 + sum;
          sum = w7 * b1 + sum;
          sum = w8 * b2 + sum;
          sink(y, x, sum, Tap<0>{a0}, Tap<1>{a1}, Tap<2>{a2}, Tap<3>{h0}, Tap<4>{h1}, Tap<5>{h2}, Tap<6>{b0},
               Tap<7>{b1}, Tap<8>{b2});
        }
      }
      sink.finish();
    });
  }
}

// Turns the window over gradients, whose element k lies under tap 8 - k, into a call with the taps.
template <class Sink>
struct Mirrored {
  Sink sink;
  template <int... K>
  FC_INLINE void operator()(int64_t row, int64_t column, Vec sum, Tap<K>... taps) {
    sink(row, column, sum, Tap<8 - K>{taps.value}...);
  }
  FC_INLINE void finish() { sink.finish(); }
};

// The transpose of stride 2: each 2x2 quad of the map meets the 2x2 window of gradients at its own place, right, below
// and across, with 1, 2, 2 and 4 taps. The sink is called for each pixel of the map (height x width) with its taps.
template <class Input, class MakeSink>
FC_INLINE void slide_transposed(Ring& ring, int64_t height, int64_t width, int64_t grad_width, int channels,
                                const float* taps, int64_t pitch, Input input, MakeSink make_sink) {
  const int64_t tile = tile_rows(grad_width), rows = ring.height();
  int64_t next = 0;
  for (int64_t first = 0; first < rows; first += tile) {
    const int64_t end = first + tile < rows ? first + tile : rows;
    fill(ring, next, end + 1 < rows ? end + 1 : rows, grad_width, channels, input);
    for_vectors(channels, [&](int offset, auto lanes) FC_LAMBDA {
      const float* w = taps + offset;
      const Vec w0 = load(w), w1 = load(w + pitch), w2 = load(w + 2 * pitch), w3 = load(w + 3 * pitch),
                w4 = load(w + 4 * pitch), w5 = load(w + 5 * pitch), w6 = load(w + 6 * pitch), w7 = load(w + 7 * pitch),
                w8 = load(w + 8 * pitch);
      auto sink = make_sink(offset, lanes);
      for (int64_t y = first; y < end; ++y) {
        const float* here = ring[y] + offset + kBlock;
        const float* below = ring[y + 1] + offset + kBlock;
        for (int64_t x = 0; x < grad_width; ++x) {
          const Vec g = load(here + x * kBlock), right = load(here + (x + 1) * kBlock);
          sink(2 * y, 2 * x, w4 * g, Tap<4>{g});
          if (2 * x + 1 < width) sink(2 * y, 2 * x + 1, w5 * g + w3 * right, Tap<5>{g}, Tap<3>{right});
          if (2 * y + 1 < height) {
            const Vec under = load(below + x * kBlock), across = load(below + (x + 1) * kBlock);
            sink(2 * y + 1, 2 * x, w7 * g + w1 * under, Tap<7>{g}, Tap<1>{under});
            if (2 * x + 1 < width) {
              sink(2 * y + 1, 2 * x + 1, (w8 * g + w6 * right) + (w2 * under + w0 * across), Tap<8>{g}, Tap<6>{right},
                   Tap<2>{under}, Tap<0>{across});
            }
          }
        }
      }
      sink.finish();
    });
  }
}

}  // namespace
}  // namespace FASTCIFAR_ISA
}  // namespace fastcifar
