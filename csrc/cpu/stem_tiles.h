// The stem in tile registers: bfloat16, with whole panels of channels. A pixel's 27 numbers under the weight fill most of
// one tile row of 32, so that a product takes two cycles a pixel where 54 multiply-adds of vectors take 27.
#pragma once
#include "cpu/ahead.h"
#include "cpu/product.h"
#include "cpu/stem_kernel.h"

#if defined(FASTCIFAR_HAVE_TILES)

namespace fastcifar::FASTCIFAR_ISA {
namespace {

constexpr int kWindow = 2 * kTileSteps;         // of a tile row: the numbers under the weight, and five zeros
constexpr int64_t kTilePixels = 2 * kTileRows;  // a chunk, which is multiplied at a time
constexpr int64_t kChunks = 8;                  // whose sums go to memory together, of the weight's gradient
constexpr int kCopied = 16;                     // numbers at a time, from a row of the image
static_assert(kStemTaps <= kWindow && kStemTaps <= 2 * kTileRows);

// The border of `image` is zeros already.
FC_INLINE void copy_image(const StemShape& s, const bf16* x, bf16* image) {
  for (int64_t y = 0; y < s.H; ++y) memcpy(image + s.pixel(y + 1, 1), x + y * 3 * s.W, 3 * s.W * sizeof(bf16));
}

// A panel of the taps as a right factor.
FC_INLINE void pack_taps(const float* taps, int64_t pitch, Pair* packed) {
  const auto tap = [=](int t, int c) FC_LAMBDA { return t < kStemTaps ? load(taps + t * pitch + c) : Vec{}; };
  for (int i = 0; i < kTileSteps; ++i) {
    for (int c = 0; c < kPanel; c += kLanes) store(packed + i * kPanel + c, pair_up(tap(2 * i, c), tap(2 * i + 1, c)));
  }
}

// The numbers under the weight at `pixels` pixels, from those at `image` on, a tile row each. Rows of the weight are
// copied with what lies behind them, which the next row overwrites; behind the last window there is room for that.
FC_INLINE void fill_windows(const StemShape& s, const bf16* image, int64_t pixels, bf16* windows) {
  for (int64_t x = 0; x < pixels; ++x, image += 3, windows += kWindow) {
    for (int r = 0; r < 3; ++r) memcpy(windows + r * kStemRow, image + r * s.row(), kCopied * sizeof(bf16));
    memset(windows + kStemTaps, 0, (kWindow - kStemTaps) * sizeof(bf16));
  }
}

// How many pixels a chunk has that begins at pixel x of a row.
FC_INLINE int64_t chunk_from(const StemShape& s, int64_t x) { return s.W - x < kTilePixels ? s.W - x : kTilePixels; }

// Calls f(row, first pixel, number of pixels) for each chunk of an image.
template <class F>
FC_INLINE void for_chunks(const StemShape& s, F f) {
  for (int64_t y = 0; y < s.H; ++y) {
    for (int64_t x = 0; x < s.W; x += kTilePixels) f(y, x, chunk_from(s, x));
  }
}

// Writes a row of products and adds them to sums [2][pitch].
struct PanelOfStem {
  float* sums;
  int64_t pitch;
  Line<bf16> pivot, sum, square;

  FC_INLINE PanelOfStem(const float* columns, float* sums, int64_t pitch)
      : sums(sums), pitch(pitch), pivot(Line<bf16>::of(columns + kMean * pitch)), sum{}, square{} {}
  FC_INLINE void write(bf16* out, const float* product) {
    ask_ahead<1>(out);
    const auto values = Line<bf16>::store(out, load(product), load(product + kLanes));
    for (int i = 0; i < 2; ++i) {
      add_offset(values.vectors[i], pivot.vectors[i], sum.vectors[i], square.vectors[i]);
    }
  }
  FC_INLINE void finish() const { sum.accumulate_to(sums), square.accumulate_to(sums + pitch); }
};

void forward_in_tiles(const StemShape& s, const Range& range, const bf16* x, const float* taps, int64_t pitch, bf16* u,
                      const float* columns, float* sums, bf16* image) {
  const TileRegisters registers;
  alignas(64) bf16 windows[2][(kTilePixels + 1) * kWindow];
  alignas(64) Pair packed[kTileSteps * kPanel];
  alignas(64) float product[kTilePixels * kPanel];
  for (int64_t c = range.c0; c < range.c1; c += kPanel) {
    pack_taps(taps + c, pitch, packed);
    for (int64_t n = range.n0; n < range.n1; ++n) {
      copy_image(s, x + n * s.H * s.W * 3, image);
      PanelOfStem panel(columns + c, sums + c, pitch);
      bf16 *now = windows[0], *next = windows[1];
      fill_windows(s, image, chunk_from(s, 0), now);
      for_chunks(s, [&](int64_t y, int64_t first, int64_t pixels) FC_LAMBDA {
        multiply_panel_in_tiles<LeftFactor::stays>(kTilePixels, kTileSteps, reinterpret_cast<const Pair*>(now),
                                                   kTileSteps, packed, product, /*add=*/false, [] {});
        // The next chunk's windows are filled meanwhile.
        const bool same_row = first + pixels < s.W;
        const int64_t next_y = same_row ? y : y + 1, next_x = same_row ? first + pixels : 0;
        if (next_y < s.H) fill_windows(s, image + s.pixel(next_y, next_x), chunk_from(s, next_x), next);
        bf16* out = u + ((n * s.H + y) * s.W + first) * s.C + c;
        for (int64_t i = 0; i < pixels; ++i) panel.write(out + i * s.C, product + i * kPanel);
        std::swap(now, next);
      });
      panel.finish();
    }
  }
}

// The image channel by channel, a row of each in turn, with a border: row y of channel c begins at (3 * y + c) * (W + 2).
// The border is zeros already.
FC_INLINE void copy_channels(const StemShape& s, const bf16* x, bf16* image) {
  for (int64_t y = 0; y < s.H; ++y, x += 3 * s.W) {
    bf16* row = image + 3 * (y + 1) * (s.W + 2) + 1;
    for (int c = 0; c < 3; ++c, row += s.W + 2) {
      for (int64_t i = 0; i < s.W; ++i) row[i] = x[3 * i + c];
    }
  }
}

// The gradient of u for a panel of channels, with what comes through the moments of u.
struct GradientOfStem {
  bool of_moments;
  Line<bf16> mean, factor, constant;

  FC_INLINE GradientOfStem(const float* columns, int64_t pitch, int64_t c)
      : of_moments(columns), mean{}, factor{}, constant{} {
    if (!columns) return;
    mean = Line<bf16>::of(columns + kMean * pitch + c);
    factor = Line<bf16>::of(columns + kXFactor * pitch + c);
    constant = Line<bf16>::of(columns + kConstant * pitch + c);
  }
  FC_INLINE Line<bf16> at(const bf16* grad_u, const bf16* u) const {
    ask_ahead(grad_u), ask_ahead(u);
    auto grad = Line<bf16>::load(grad_u);
    if (!of_moments) return grad;
    const auto value = Line<bf16>::load(u);
    for (int i = 0; i < 2; ++i) {
      grad.vectors[i] += (value.vectors[i] - mean.vectors[i]) * factor.vectors[i] + constant.vectors[i];
    }
    return grad;
  }
  // That of up to kTilePixels pixels as a right factor whose steps are the pixels.
  FC_INLINE void fill(int64_t pixels, const bf16* grad_u, const bf16* u, int64_t channels, Pair* out) const {
    for (int64_t x = 0; x < kTilePixels; x += 2, out += kPanel) {
      Line<bf16> first{}, second{};
      if (x < pixels) first = at(grad_u + x * channels, u + x * channels);
      if (x + 1 < pixels) second = at(grad_u + (x + 1) * channels, u + (x + 1) * channels);
      store_pairs(out, first, second);
    }
  }
};

void backward_in_tiles(const StemShape& s, const Range& range, const bf16* grad_u, const bf16* u, const float* columns,
                       const bf16* x, int64_t pitch, float* sums, bf16* image) {
  const TileRegisters registers;
  constexpr int64_t kSteps = kChunks * kTileSteps, kPitch = kSteps + kTileSteps;  // not a power of two
  alignas(64) Pair left[2 * kTileRows * kPitch] = {};                             // a row for each tap
  alignas(64) Pair right[kSteps * kPanel];
  alignas(64) float product[2 * kTileRows * kPanel];
  for (int64_t n = range.n0; n < range.n1; ++n) {
    copy_channels(s, x + n * s.H * s.W * 3, image);
    for (int64_t c = range.c0; c < range.c1; c += kPanel) {
      const GradientOfStem gradient(columns, pitch, c);
      int64_t chunks = 0;
      bool add = false;
      const auto multiply = [&] FC_LAMBDA {
        if (chunks == 0) return;
        multiply_panel_in_tiles<LeftFactor::stays>(2 * kTileRows, chunks * kTileSteps, left, kPitch, right, product,
                                                   add, [] {});
        chunks = 0, add = true;
      };
      for_chunks(s, [&](int64_t y, int64_t first, int64_t pixels) FC_LAMBDA {
        for (int t = 0; t < kStemTaps; ++t) {
          const int row = t / kStemRow * 3 + t % 3, column = t % kStemRow / 3;
          memcpy(left + t * kPitch + chunks * kTileSteps, image + (3 * y + row) * (s.W + 2) + first + column,
                 kTilePixels * sizeof(bf16));
        }
        const int64_t at = ((n * s.H + y) * s.W + first) * s.C + c;
        gradient.fill(pixels, grad_u + at, u + at, s.C, right + chunks * kTileSteps * kPanel);
        if (++chunks == kChunks) multiply();
      });
      multiply();
      for (int t = 0; t < kStemTaps; ++t) {
        for (int i = 0; i < kPanel; i += kLanes) {
          accumulate(sums + t * pitch + c + i, load(product + t * kPanel + i));
        }
      }
    }
  }
}

}  // namespace
}  // namespace fastcifar::FASTCIFAR_ISA
#endif
