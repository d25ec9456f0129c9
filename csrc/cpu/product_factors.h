// The factors of a block's products, out of its maps: the left one of z and of its gradient, tile by tile, and both of
// the gradient of W.
#pragma once

#include <iterator>
#include <type_traits>

#include "cpu/ahead.h"
#include "cpu/product.h"
#include "cpu/separable_block_kernel.h"

namespace fastcifar::FASTCIFAR_ISA {
namespace {

// Pixels of a tile: in float32 with 512 channels 128 KiB, within the L2 cache with the weights. If the weights alone fill
// that cache, each tile reads them anew from behind it, so that there are fewer tiles.
int64_t tile_pixels(const PointwiseProduct& p) {
  const bool fills_cache =
      p.is_large() || (p.is_split() && p.k * p.m * static_cast<int64_t>(sizeof(SplitPair) / 2) > 1 << 20);
  return fills_cache ? 128 : 64;
}

// Pairs come in whole tile registers: of 16 pairs, for 32 rows at a time. Who calls promises multiples of kBlock.
constexpr int64_t kTileMultiple = 32;
static_assert(kBlock % kTileMultiple == 0);

template <class Number>
int64_t num_steps(int64_t length) {
  return kStepsOf<Number> == 1 ? length : round_up(length, kTileMultiple) / kStepsOf<Number>;
}

// The distance of two rows of a tile: not a power of two, so that the rows do not share one set of the cache.
template <class Number>
int64_t tile_pitch(int64_t channels) {
  return (kStepsOf<Number> == 1 ? round_up(channels, kPanel) : num_steps<Number>(channels)) + 16;
}

// The scratch memory of a kernel: two left factors, and two panels of the product.
template <class Number>
struct Tile {
  Number* left;
  float* product;
  int64_t left_size, product_size;

  static int64_t size_of_left(const PointwiseProduct& p) {  // in numbers
    return tile_pixels(p) * tile_pitch<Number>(p.k > p.m ? p.k : p.m);
  }
  static int64_t size(const PointwiseProduct& p) {
    return 2 * (kPartsOf<Number> * size_of_left(p) + tile_pixels(p) * kPanel);
  }

  Tile(const PointwiseProduct& p, float* memory)
      : left(reinterpret_cast<Number*>(memory)), product(memory + 2 * kPartsOf<Number> * size_of_left(p)),
        left_size(size_of_left(p)), product_size(tile_pixels(p) * kPanel) {}

  FC_INLINE Number* left_of(int64_t tile) const { return left + tile % 2 * left_size; }
  FC_INLINE float* product_of(int64_t panel) const { return product + panel % 2 * product_size; }
};

// The factors of the gradient of W, whose steps are the pixels: the gradient of v as a left factor, row by row of the
// pixels or, for the tile registers, by channels; z as a right factor in panels.
template <class Number>
struct Factors {
  Number *gradient, *z;
  int64_t pixels;  // that they have room for, a multiple of kTileMultiple

  static int64_t pitch(const PointwiseProduct& p) {  // of the gradient by pixels
    return kStepsOf<Number> == 1 ? tile_pitch<Number>(p.m) : round_up(p.m, kTileMultiple) + 16;
  }
  static int64_t gradient_size(const PointwiseProduct& p, int64_t pixels) {
    return pixels / kStepsOf<Number> * pitch(p);
  }
  static int64_t size(const PointwiseProduct& p, int64_t pixels) {
    return kPartsOf<Number> * (gradient_size(p, pixels) + round_up(p.k, kPanel) * pixels / kStepsOf<Number>);
  }

  Factors(const PointwiseProduct& p, float* memory, int64_t pixels)
      : gradient(reinterpret_cast<Number*>(memory)), z(gradient + gradient_size(p, pixels)), pixels(pixels) {}

  int64_t steps() const { return pixels / kStepsOf<Number>; }
};

// How many lines of memory hold that many numbers.
template <class T>
int64_t lines_of(int64_t numbers) {
  return (numbers * static_cast<int64_t>(sizeof(T)) + 63) / 64;
}

// z = relu(bn1(y)) of a vector of channels from `row` on: a function of the rows after it.
template <class T, class Lanes>
FC_INLINE auto z_rows(const PointwiseProduct& p, int64_t row, int64_t c, Lanes lanes) {
  const int64_t pitch = round_up(p.k, kBlock), width = p.k;
  const Vec scale = load(p.columns1 + kScale * pitch + c), shift = load(p.columns1 + kShift * pitch + c);
  const T* y = static_cast<const T*>(p.y) + row * width + c;
  return [=](int64_t i) FC_LAMBDA { return relu(load(y + i * width, lanes) * scale + shift); };
}

// The gradient of v, likewise. `of_moments`: g.columns are given.
template <class T, bool of_moments, class Lanes>
FC_INLINE auto gradient_rows(const PointwiseProduct& p, const GradientOfProduct& g, int64_t row, int64_t c,
                             Lanes lanes) {
  const int64_t pitch = round_up(p.m, kBlock), width = p.m, at = row * width + c;
  const T *grad = static_cast<const T*>(g.grad_v) + at, *v = static_cast<const T*>(g.v) + at;
  Vec mean{}, factor{}, constant{};
  if constexpr (of_moments) {
    mean = load(g.columns + kMean * pitch + c), factor = load(g.columns + kXFactor * pitch + c);
    constant = load(g.columns + kConstant * pitch + c);
  }
  return [=](int64_t i) FC_LAMBDA {
    const Vec value = load(grad + i * width, lanes);
    if constexpr (!of_moments) return value;
    return value + ((load(v + i * width, lanes) - mean) * factor + constant);
  };
}

// A left factor is filled in pieces: the channels of one line, of a few rows. So all that belongs to a channel is loaded
// once a piece.
constexpr int64_t kPieceRows = 8, kPieceChannels = 2 * kLanes;

FC_INLINE int64_t pieces_of_row(int64_t channels) { return (channels + kPieceChannels - 1) / kPieceChannels; }

// Asks for the piece of the tile behind the one that is filled with it, of a tensor with `channels` channels.
template <class T>
FC_INLINE void ask_for_piece(const PointwiseProduct& p, const void* tensor, int64_t row, int64_t rows, int64_t channels,
                             int64_t c) {
  const T* first = static_cast<const T*>(tensor) + (row + tile_pixels(p)) * channels + c;
  for (int64_t i = 0; i < rows; ++i) ask_for_lines(first + i * channels, 0, lines_of<T>(kPieceChannels));
}

// Rows of a left factor, whose steps are the channels, from channel c on: source(c, lanes)(row), rounded to T.
template <class T, class Source>
FC_INLINE void fill_piece(float* out, int64_t rows, int64_t channels, int64_t c, Source source) {
  const int64_t pitch = tile_pitch<float>(channels),
                width = channels - c < kPieceChannels ? channels - c : kPieceChannels;
  for_vectors(static_cast<int>(width), [&](int offset, auto lanes) FC_LAMBDA {
    const auto numbers = source(c + offset, lanes);
    for (int64_t i = 0; i < rows; ++i) store(out + i * pitch + c + offset, rounded<T>(numbers(i)), lanes);
  });
}
template <class T, class Number, class Source>
FC_INLINE void fill_piece(Number* out, int64_t rows, int64_t channels, int64_t c, Source source) {
  constexpr int kParts = kPartsOf<Number>;
  const int64_t pitch = 2 * tile_pitch<Number>(channels), rest = channels - c;  // of the parts of a row
  bf16* first = reinterpret_cast<bf16*>(out) + c;
  if (rest >= kPieceChannels) {
    const auto low = source(c, Full{}), high = source(c + kLanes, Full{});
    for (int64_t i = 0; i < rows; ++i) {
      const Parts<Number> lows(low(i)), highs(high(i));
      for (int part = 0; part < kParts; ++part) {
        store(first + (i * kParts + part) * pitch, lows.of[part], highs.of[part]);
      }
    }
    return;
  }
  for (int64_t i = 0; i < rows * kParts; ++i) {
    memset(first + i * pitch + rest, 0, (2 * num_steps<Number>(channels) - channels) * sizeof(bf16));
  }
  for_vectors(static_cast<int>(rest), [&](int offset, auto lanes) FC_LAMBDA {
    const auto numbers = source(c + offset, lanes);
    for (int64_t i = 0; i < rows; ++i) {
      const Parts<Number> parts(numbers(i));
      for (int part = 0; part < kParts; ++part) {
        store(first + (i * kParts + part) * pitch + offset, parts.of[part], lanes);
      }
    }
  });
}

// Copies one part of the gradient of v, of kTileMultiple pixels and channels, from `rows` of a left factor to the left factor of
// the gradient of W: two pixels become a pair, and for the tile registers the square is transposed. In float32 the rows of
// the one are those of the other already.
FC_INLINE void store_gradient(const PointwiseProduct&, const Factors<float>&, int, int64_t, int64_t, const float*) {}
template <class Number>
FC_INLINE void store_gradient(const PointwiseProduct& p, const Factors<Number>& factors, int part, int64_t pixel,
                              int64_t channel, const Number* rows) {
  static_assert(2 * kLanes <= kTileMultiple);
  constexpr int kParts = kPartsOf<Number>;
  const int64_t pitch = 2 * tile_pitch<Number>(p.m),
                steps = factors.steps();  // of the parts of a row, and of a channel
  const bf16* first = reinterpret_cast<const bf16*>(rows) + part * pitch;
  for (int64_t i = 0; i < kTileMultiple / 2; i += kLanes) {
    for (int64_t c = channel; c < channel + kTileMultiple && c < p.m; c += 2 * kLanes) {
      VecBits low[kLanes], high[kLanes];
      for (int j = 0; j < kLanes; ++j) {
        const bf16* row = first + 2 * (i + j) * kParts * pitch + c;
        pair_up(load_bits(row), load_bits(row + kParts * pitch), low[j], high[j]);
      }
      if (p.tiles) {
        transpose(low), transpose(high);
        Pair* out = parts_of(factors.gradient) + (c * kParts + part) * steps + pixel / 2 + i;
        for (int j = 0; j < kLanes; ++j) store(out + j * kParts * steps, low[j]);
        for (int j = 0; j < kLanes; ++j) store(out + (kLanes + j) * kParts * steps, high[j]);
      } else {
        Pair* out = parts_of(factors.gradient) + (pixel / 2 + i) * Factors<Number>::pitch(p) + c;
        for (int j = 0; j < kLanes; ++j, out += Factors<Number>::pitch(p)) {
          store(out, low[j]), store(out + kLanes, high[j]);
        }
      }
    }
  }
}

// Writes z of two rows, from column c on, into a panel of a right factor whose steps are the rows.
FC_INLINE void store_z(float* panel, int64_t row, int64_t c, const Line<float>& first, const Line<float>& second) {
  store(panel + row * kPanel + c, first.vectors[0], first.vectors[1]);
  store(panel + (row + 1) * kPanel + c, second.vectors[0], second.vectors[1]);
}
// (Only where the processor does not multiply pairs: there a Line<bf16> keeps the order of memory.)
FC_INLINE void store_z(float* panel, int64_t row, int64_t c, const Line<bf16>& first, const Line<bf16>& second) {
  store_z(panel, row, c, Line<float>{{first.vectors[0], first.vectors[1]}},
          Line<float>{{second.vectors[0], second.vectors[1]}});
}
FC_INLINE void store_z(Pair* panel, int64_t row, int64_t c, const Line<bf16>& first, const Line<bf16>& second) {
  store_pairs(panel + row / 2 * kPanel + c, first, second);
}
template <class Numbers>
FC_INLINE void store_z(float* panel, int64_t row, int64_t c, const Numbers& first, const Numbers& second) {
  store(panel + row * kPanel + c, first.vectors[0]), store(panel + (row + 1) * kPanel + c, second.vectors[0]);
}
template <class Numbers>
FC_INLINE void store_z(Pair* panel, int64_t row, int64_t c, const Numbers& first, const Numbers& second) {
  store(panel + row / 2 * kPanel + c, pair_up(first.vectors[0], second.vectors[0]));
}
template <class Numbers>
FC_INLINE void store_z(SplitPair* panel, int64_t row, int64_t c, const Numbers& first, const Numbers& second) {
  Pair* out = parts_of(panel + row / 2 * kPanel) + c;
  for (size_t v = 0; v < std::size(first.vectors); ++v, out += kLanes) {
    const Parts<SplitPair> one(first.vectors[v]), two(second.vectors[v]);
    for (int part = 0; part < kPartsOf<SplitPair>; ++part) {
      store(out + part * kPanel, pair_up_parts(one.of[part], two.of[part]));
    }
  }
}

}  // namespace
}  // namespace fastcifar::FASTCIFAR_ISA
