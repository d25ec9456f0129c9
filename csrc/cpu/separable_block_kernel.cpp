#include "cpu/separable_block_kernel.h"

#include "cpu/product.h"

namespace fastcifar::FASTCIFAR_ISA {
namespace {

constexpr int64_t kPixels = 96;  // of a tile: with 512 channels in float32 200 KiB, within the L2 cache
// Pairs come in whole tile registers: of 16 pairs, for 32 rows at a time.
constexpr int64_t kWhole = 32;

template <class Number>
int64_t num_steps(int64_t length) {
  return kStepsOf<Number> == 1 ? length : round_up(length, kWhole) / kStepsOf<Number>;
}

// The distance of two rows of a tile: not a power of two, so that the rows do not share one set of the cache.
template <class Number>
int64_t tile_pitch(int64_t channels) {
  return (kStepsOf<Number> == 1 ? round_up(channels, kPanel) : num_steps<Number>(channels)) + 16;
}

// The scratch memory of a kernel: z or the gradient of v as a left factor, the gradient as a transposed left factor, z
// as a right factor, and a panel of the product. In float32 a left factor serves as the transposed one, too.
template <class Number>
struct Tiles {
  Number *left, *transposed, *right;
  float* product;

  static int64_t left_size(const PointwiseProduct& p) { return kPixels * tile_pitch<Number>(p.k > p.m ? p.k : p.m); }
  static int64_t transposed_size(const PointwiseProduct& p) {
    return kStepsOf<Number> == 1 ? 0 : kPixels / 2 * (round_up(p.m, kWhole) + 16);
  }
  static int64_t right_size(const PointwiseProduct& p) { return kPixels * round_up(p.k, kPanel); }

  Tiles(const PointwiseProduct& p, float* memory)
      : left(reinterpret_cast<Number*>(memory)), transposed(left), right(left + left_size(p)),
        product(reinterpret_cast<float*>(right + right_size(p))) {
    if (kStepsOf<Number> > 1) transposed = reinterpret_cast<Number*>(product + kPixels * kPanel);
  }
  static int64_t size(const PointwiseProduct& p) {
    return left_size(p) + right_size(p) + kPixels * kPanel + transposed_size(p);
  }
};

// Calls f(first row, number of rows) for each tile.
template <class F>
FC_INLINE void for_tiles(int64_t first, int64_t end, F f) {
  for (int64_t row = first; row < end; row += kPixels) f(row, end - row < kPixels ? end - row : kPixels);
}

// Rows of z = relu(bn1(y)), from row `first` on.
template <class T>
FC_INLINE auto z_rows(const PointwiseProduct& p, int64_t first) {
  const int64_t pitch = round_up(p.k, kBlock), channels = p.k;
  const float *scales = p.columns1 + kScale * pitch, *shifts = p.columns1 + kShift * pitch;
  const T* y = static_cast<const T*>(p.y) + first * channels;
  return [=](int64_t row, int c, auto lanes) FC_LAMBDA {
    return rounded<T>(relu(load(y + row * channels + c, lanes) * load(scales + c) + load(shifts + c)));
  };
}

// Rows of the gradient of v, from row `first` and channel c0 on.
template <class T>
FC_INLINE auto gradient_rows(const PointwiseProduct& p, const GradientOfProduct& g, int64_t first, int64_t c0) {
  const int64_t pitch = round_up(p.m, kBlock), channels = p.m;
  const T* grad = static_cast<const T*>(g.grad_v) + first * channels + c0;
  const T* v = static_cast<const T*>(g.v) + first * channels + c0;
  const float* columns = g.columns ? g.columns + c0 : nullptr;
  return [=](int64_t row, int c, auto lanes) FC_LAMBDA {
    const Vec value = load(grad + row * channels + c, lanes);
    if (!columns) return value;
    const Vec mean = load(columns + kMean * pitch + c), factor = load(columns + kXFactor * pitch + c),
              constant = load(columns + kConstant * pitch + c);
    return value + ((load(v + row * channels + c, lanes) - mean) * factor + constant);
  };
}

// A left factor, row by row: its steps are the channels.
template <class Source>
void fill_left(float* tile, int64_t num_rows, int64_t channels, Source source) {
  const int64_t pitch = tile_pitch<float>(channels);
  for (int64_t r = 0; r < num_rows; ++r, tile += pitch) {
    for_vectors(static_cast<int>(channels),
                [&](int c, auto lanes) FC_LAMBDA { store(tile + c, source(r, c, lanes), lanes); });
  }
}
template <class Source>
void fill_left(Pair* tile, int64_t num_rows, int64_t channels, Source source) {
  const int64_t pitch = tile_pitch<Pair>(channels), steps = num_steps<Pair>(channels);
  for (int64_t r = 0; r < num_rows; ++r, tile += pitch) {
    bf16* numbers = reinterpret_cast<bf16*>(tile);
    memset(numbers + channels, 0, (2 * steps - channels) * sizeof(bf16));
    for_vectors(static_cast<int>(channels),
                [&](int c, auto lanes) FC_LAMBDA { store(numbers + c, source(r, c, lanes), lanes); });
  }
}

// Calls f(pair of rows, channel, pairs of this pair's rows): the steps are the rows. Pairs beyond the rows are zeros.
template <class Source, class F>
FC_INLINE void for_pairs(int64_t num_rows, int64_t channels, Source source, F f) {
  for (int64_t i = 0; i < num_steps<Pair>(num_rows); ++i) {
    for_vectors(static_cast<int>(channels), [&](int c, auto lanes) FC_LAMBDA {
      const Vec first = 2 * i < num_rows ? source(2 * i, c, lanes) : Vec{},
                second = 2 * i + 1 < num_rows ? source(2 * i + 1, c, lanes) : Vec{};
      f(i, c, first, second);
    });
  }
}

// A right factor in panels, so that a panel is in few pages: its steps are the rows.
template <class Source>
void fill_right(float* tile, int64_t num_rows, int64_t channels, Source source) {
  for (int64_t r = 0; r < num_rows; ++r) {
    for_vectors(static_cast<int>(channels), [&](int c, auto lanes) FC_LAMBDA {
      store(tile + (c / kPanel * kPixels + r) * kPanel + c % kPanel, source(r, c, lanes), lanes);
    });
  }
}
template <class Source>
void fill_right(Pair* tile, int64_t num_rows, int64_t channels, Source source) {
  for_pairs(num_rows, channels, source, [&](int64_t i, int c, Vec first, Vec second) FC_LAMBDA {
    store_pairs(tile + (c / kPanel * kPixels + i) * kPanel + c % kPanel, first, second);
  });
}

// A left factor whose steps are the rows: [steps][tile_pitch] or, for the tile registers, [channels][kPixels / 2].
template <class Source>
void fill_transposed(float* tile, bool, int64_t num_rows, int64_t channels, Source source) {
  fill_left(tile, num_rows, channels, source);
}
template <class Source>
void fill_transposed(Pair* tile, bool by_channels, int64_t num_rows, int64_t channels, Source source) {
  const int64_t pitch = round_up(channels, kWhole) + 16;
  for_pairs(num_rows, channels, source, [&](int64_t i, int c, Vec first, Vec second) FC_LAMBDA {
    if (!by_channels) return store_pairs(tile + i * pitch + c, first, second);
    Pair pairs[kLanes];
    store_pairs(pairs, first, second);
    for (int lane = 0; lane < kLanes; ++lane) tile[(c + lane) * (kPixels / 2) + i] = pairs[lane];
  });
}

// A panel of a product whose left factor is row by row.
template <class Number>
FC_INLINE void multiply_rows(const PointwiseProduct& p, int64_t num_rows, int64_t length, const Number* left,
                             const float* packed, int64_t column, float* out) {
  const int64_t steps = num_steps<Number>(length), pitch = tile_pitch<Number>(length);
  const Number* right = reinterpret_cast<const Number*>(packed) + column * steps;
#if defined(FASTCIFAR_HAVE_TILES)
  if constexpr (kStepsOf<Number> == 2) {
    if (p.tiles) return multiply_panel_in_tiles(num_rows, steps, left, pitch, right, out, /*add=*/false);
  }
#endif
  (void)p;
  multiply_panel(num_rows, steps, Left<Number, false>{left, pitch}, right, out, /*add=*/false);
}

// The gradient of W from a tile, or with `add` added: its rows [c0, c1). A block of channels of the left factor stays in
// the L1 cache while the panels of z pass by.
template <class Number>
void multiply_transposed(const PointwiseProduct& p, const Tiles<Number>& tiles, int64_t num_rows, int64_t c0,
                         int64_t c1, float* grad_w, bool add) {
  constexpr int64_t kChannels = 48 * kStepsOf<Number>;
  const int64_t steps = num_steps<Number>(num_rows), panel = round_up(p.m, kWhole) * kPanel;
  for (int64_t c = c0; c < c1; c += kChannels) {
    const int64_t channels = c1 - c < kChannels ? c1 - c : kChannels;
    for (int64_t column = 0; column < p.k; column += kPanel) {
      const Number* right = tiles.right + column * kPixels;
      float* out = grad_w + column / kPanel * panel + c * kPanel;
#if defined(FASTCIFAR_HAVE_TILES)
      if constexpr (kStepsOf<Number> == 2) {
        if (p.tiles) {
          const Pair* left = tiles.transposed + (c - c0) * (kPixels / 2);
          multiply_panel_in_tiles(channels, steps, left, kPixels / 2, right, out, add);
          continue;
        }
      }
#endif
      const int64_t pitch = kStepsOf<Number> == 1 ? tile_pitch<Number>(c1 - c0) : round_up(c1 - c0, kWhole) + 16;
      multiply_panel(channels, steps, Left<Number, true>{tiles.transposed + c - c0, pitch}, right, out, add);
    }
  }
}

template <class Number, class T>
void multiply_forward(const PointwiseProduct& p, int64_t first, int64_t end, const float* packed, T* v,
                      const float* pivots, float* sums, float* scratch) {
  const Tiles<Number> tiles(p, scratch);
  const int64_t pitch = round_up(p.m, kBlock);
  for_tiles(first, end, [&](int64_t row, int64_t num_rows) FC_LAMBDA {
    fill_left(tiles.left, num_rows, p.k, z_rows<T>(p, row));
    for (int64_t column = 0; column < p.m; column += kPanel) {
      multiply_rows(p, num_rows, p.k, tiles.left, packed, column, tiles.product);
      const int64_t columns = p.m - column < kPanel ? p.m - column : kPanel;
      for_vectors(static_cast<int>(columns), [&](int c, auto lanes) FC_LAMBDA {
        const Vec pivot = load(pivots + column + c);
        Vec sum{}, square{};
        for (int64_t r = 0; r < num_rows; ++r) {
          const Vec value = load(tiles.product + r * kPanel + c);
          store(v + (row + r) * p.m + column + c, value, lanes);
          const Vec centred = rounded<T>(value) - pivot;
          sum += centred;
          square = centred * centred + square;
        }
        accumulate(sums + column + c, sum);
        accumulate(sums + pitch + column + c, square);
      });
    }
  });
}

template <class Number, class T>
void set_product_pivot(const PointwiseProduct& p, int64_t row, const float* packed, float* pivots, float* scratch) {
  const Tiles<Number> tiles(p, scratch);
  fill_left(tiles.left, 1, p.k, z_rows<T>(p, row));
  for (int64_t column = 0; column < p.m; column += kPanel) {
    multiply_rows(p, 1, p.k, tiles.left, packed, column, tiles.product);
    for (int64_t c = column; c < p.m && c < column + kPanel; ++c) {
      pivots[c] = to_f32(from_f32<T>(tiles.product[c - column]));
    }
  }
}

template <class Number, class T>
void multiply_backward(const PointwiseProduct& p, const GradientOfProduct& g, int64_t first, int64_t end,
                       const float* packed, T* grad_z, float* sums, float* grad_w, float* scratch) {
  const Tiles<Number> tiles(p, scratch);
  const int64_t pitch = round_up(p.k, kBlock);
  const T* y = static_cast<const T*>(p.y);
  for_tiles(first, end, [&](int64_t row, int64_t num_rows) FC_LAMBDA {
    const auto gradient = gradient_rows<T>(p, g, row, 0);
    fill_left(tiles.left, num_rows, p.m, gradient);
    for (int64_t column = 0; column < p.k; column += kPanel) {
      multiply_rows(p, num_rows, p.m, tiles.left, packed, column, tiles.product);
      const int64_t columns = p.k - column < kPanel ? p.k - column : kPanel;
      for_vectors(static_cast<int>(columns), [&](int c, auto lanes) FC_LAMBDA {
        const float* at_channel = p.columns1 + column + c;
        const Vec mean = load(at_channel + kMean * pitch), scale = load(at_channel + kScale * pitch),
                  shift = load(at_channel + kShift * pitch);
        Vec sum{}, product{};
        for (int64_t r = 0; r < num_rows; ++r) {
          const Vec grad = load(tiles.product + r * kPanel + c);
          const int64_t at = (row + r) * p.k + column + c;
          store(grad_z + at, grad, lanes);
          const Vec value = load(y + at, lanes);
          const Vec masked = value * scale + shift > Vec{} ? rounded<T>(grad) : Vec{};
          sum += masked;
          product = masked * (value - mean) + product;
        }
        accumulate(sums + column + c, sum);
        accumulate(sums + pitch + column + c, product);
      });
    }
    if (!grad_w) return;
    fill_right(tiles.right, num_rows, p.k, z_rows<T>(p, row));
    if (tiles.transposed != tiles.left) fill_transposed(tiles.transposed, p.tiles, num_rows, p.m, gradient);
    multiply_transposed(p, tiles, num_rows, 0, p.m, grad_w, /*add=*/row > first);
  });
}

template <class Number, class T>
void multiply_weight_gradient(const PointwiseProduct& p, const GradientOfProduct& g, int64_t rows,
                              int64_t first_channel, int64_t end_channel, float* grad_w, float* scratch) {
  const Tiles<Number> tiles(p, scratch);
  for_tiles(0, rows, [&](int64_t row, int64_t num_rows) FC_LAMBDA {
    fill_right(tiles.right, num_rows, p.k, z_rows<T>(p, row));
    fill_transposed(tiles.transposed, p.tiles, num_rows, end_channel - first_channel,
                    gradient_rows<T>(p, g, row, first_channel));
    multiply_transposed(p, tiles, num_rows, first_channel, end_channel, grad_w, /*add=*/row > 0);
  });
}

// Numbers of W in panels. `get(step, column)` is W's number, rounded.
template <class Get>
FC_INLINE void pack_step(float* out, int64_t step, int64_t length, int64_t width, Get get) {
  for (int64_t j = 0; j < width; ++j) out[step * kPanel + j] = step < length ? get(step, j) : 0.0f;
}
template <class Get>
FC_INLINE void pack_step(Pair* out, int64_t step, int64_t length, int64_t width, Get get) {
  for (int64_t j = 0; j < width; ++j) {
    const uint32_t low = 2 * step < length ? bits_of(get(2 * step, j)) : 0,
                   high = 2 * step + 1 < length ? bits_of(get(2 * step + 1, j)) : 0;
    out[step * kPanel + j] = Pair{low >> 16 | high};
  }
}

template <class Number, class T, class W>
void pack_weight(const PointwiseProduct& p, const W* weight, bool transposed, int64_t first, int64_t end,
                 Number* packed) {
  const int64_t length = transposed ? p.k : p.m, columns = transposed ? p.m : p.k, steps = num_steps<Number>(length);
  for (int64_t panel = first; panel < end; ++panel) {
    const int64_t column = panel * kPanel, width = columns - column < kPanel ? columns - column : kPanel;
    Number* out = packed + column * steps;
    if (width < kPanel) memset(static_cast<void*>(out), 0, kPanel * steps * sizeof(Number));
    for (int64_t i = 0; i < steps; ++i) {
      if (transposed) {
        pack_step(out, i, length, width, [&](int64_t step, int64_t j) FC_LAMBDA {
          return to_f32(from_f32<T>(to_f32(weight[(column + j) * p.k + step])));
        });
      } else {
        pack_step(out, i, length, width, [&](int64_t step, int64_t j) FC_LAMBDA {
          return to_f32(from_f32<T>(to_f32(weight[step * p.k + column + j])));
        });
      }
    }
  }
}

template <class T>
void write_weight_gradient(const PointwiseProduct& p, const float* sums, int64_t num_parts, int64_t first, int64_t end,
                           T* grad) {
  const int64_t panel = round_up(p.m, kWhole) * kPanel, size = weight_sums(p);
  for (int64_t row = first; row < end; ++row) {
    for_vectors(static_cast<int>(p.k), [&](int c, auto lanes) FC_LAMBDA {
      const float* part = sums + c / kPanel * panel + row * kPanel + c % kPanel;
      Vec sum = load(part);
      for (int64_t i = 1; i < num_parts; ++i) sum += load(part + i * size);
      store(grad + row * p.k + c, sum, lanes);
    });
  }
}

#if defined(__AVX512BF16__) || defined(FASTCIFAR_EMULATED)
constexpr bool kHasPairs = true;
#else
constexpr bool kHasPairs = false;
#endif

// Calls f(Number{}, T{}) for the numbers that are multiplied and the elements in memory. In float32 bfloat16 is
// multiplied where the processor has no better way.
template <class F>
FC_INLINE void for_types(const PointwiseProduct& p, F f) {
  if (p.element == Element::f32) return f(float{}, float{});
  if constexpr (kHasPairs) {
#if defined(FASTCIFAR_HAVE_TILES)
    if (p.tiles) {
      const TileRegisters registers;
      return f(Pair{}, bf16{});
    }
#endif
    return f(Pair{}, bf16{});
  }
  f(float{}, bf16{});
}

}  // namespace

int64_t num_panels(int64_t columns) { return (columns + kPanel - 1) / kPanel; }

int64_t packed_weight(const PointwiseProduct& p, bool transposed) {
  const int64_t length = transposed ? p.k : p.m, columns = transposed ? p.m : p.k;
  return round_up(length, kWhole) * round_up(columns, kPanel);
}

int64_t weight_sums(const PointwiseProduct& p) { return round_up(p.m, kWhole) * round_up(p.k, kPanel); }

int64_t product_scratch(const PointwiseProduct& p) {
  const int64_t f32s = Tiles<float>::size(p), pairs = Tiles<Pair>::size(p);
  return f32s > pairs ? f32s : pairs;
}

void pack_weight(const PointwiseProduct& p, Element of_weight, const void* weight, bool transposed, int64_t first,
                 int64_t end, float* packed) {
  for_types(p, [&](auto number, auto element) FC_LAMBDA {
    using Number = decltype(number);
    using T = decltype(element);
    auto* out = reinterpret_cast<Number*>(packed);
    if (of_weight == Element::f32) {
      pack_weight<Number, T>(p, static_cast<const float*>(weight), transposed, first, end, out);
    } else {
      pack_weight<Number, T>(p, static_cast<const bf16*>(weight), transposed, first, end, out);
    }
  });
}

void multiply_forward(const PointwiseProduct& p, int64_t first, int64_t end, const float* packed, void* v,
                      const float* pivots, float* sums, float* scratch) {
  for_types(p, [&](auto number, auto element) FC_LAMBDA {
    using T = decltype(element);
    multiply_forward<decltype(number)>(p, first, end, packed, static_cast<T*>(v), pivots, sums, scratch);
  });
}

void set_product_pivot(const PointwiseProduct& p, int64_t row, const float* packed, float* pivots, float* scratch) {
  for_types(p, [&](auto number, auto element) FC_LAMBDA {
    set_product_pivot<decltype(number), decltype(element)>(p, row, packed, pivots, scratch);
  });
}

void multiply_backward(const PointwiseProduct& p, const GradientOfProduct& g, int64_t first, int64_t end,
                       const float* packed, void* grad_z, float* sums, float* grad_w, float* scratch) {
  for_types(p, [&](auto number, auto element) FC_LAMBDA {
    using T = decltype(element);
    multiply_backward<decltype(number)>(p, g, first, end, packed, static_cast<T*>(grad_z), sums, grad_w, scratch);
  });
}

void multiply_weight_gradient(const PointwiseProduct& p, const GradientOfProduct& g, int64_t rows,
                              int64_t first_channel, int64_t end_channel, float* grad_w, float* scratch) {
  for_types(p, [&](auto number, auto element) FC_LAMBDA {
    multiply_weight_gradient<decltype(number), decltype(element)>(p, g, rows, first_channel, end_channel, grad_w,
                                                                  scratch);
  });
}

void write_weight_gradient(const PointwiseProduct& p, const float* sums, int64_t num_parts, Element of_weight,
                           int64_t first, int64_t end, void* grad) {
  if (of_weight == Element::f32) {
    write_weight_gradient(p, sums, num_parts, first, end, static_cast<float*>(grad));
  } else {
    write_weight_gradient(p, sums, num_parts, first, end, static_cast<bf16*>(grad));
  }
}

}  // namespace fastcifar::FASTCIFAR_ISA
