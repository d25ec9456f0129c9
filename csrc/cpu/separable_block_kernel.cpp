#include "cpu/separable_block_kernel.h"

#include "cpu/product.h"

namespace fastcifar::FASTCIFAR_ISA {
namespace {

// Pixels of a tile: in float32 with 512 channels 128 KiB, within the L2 cache with the weights.
constexpr int64_t kPixels = 64;
// Rows from the one that is used to the one that the L1 cache is asked for: the columns of a panel are read with gaps.
constexpr int64_t kRowsAhead = 8;
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

// The scratch memory of a kernel: a left factor, and a panel of the product.
template <class Number>
struct Tile {
  Number* left;
  float* product;

  static int64_t left_size(const PointwiseProduct& p) { return kPixels * tile_pitch<Number>(p.k > p.m ? p.k : p.m); }
  static int64_t size(const PointwiseProduct& p) { return left_size(p) + kPixels * kPanel; }

  Tile(const PointwiseProduct& p, float* memory)
      : left(reinterpret_cast<Number*>(memory)), product(memory + left_size(p)) {}
};

// The factors of the gradient of W, whose steps are the pixels: the gradient of v as a left factor, row by row of the
// pixels or, for the tile registers, by channels; z as a right factor in panels.
template <class Number>
struct Factors {
  Number *gradient, *z;
  int64_t pixels;  // that they have room for, a multiple of kWhole

  static int64_t pitch(const PointwiseProduct& p) {  // of the gradient by pixels
    return kStepsOf<Number> == 1 ? tile_pitch<Number>(p.m) : round_up(p.m, kWhole) + 16;
  }
  static int64_t gradient_size(const PointwiseProduct& p, int64_t pixels) {
    return pixels / kStepsOf<Number> * pitch(p);
  }
  static int64_t size(const PointwiseProduct& p, int64_t pixels) {
    return gradient_size(p, pixels) + round_up(p.k, kPanel) * pixels / kStepsOf<Number>;
  }

  Factors(const PointwiseProduct& p, float* memory, int64_t pixels)
      : gradient(reinterpret_cast<Number*>(memory)), z(gradient + gradient_size(p, pixels)), pixels(pixels) {}

  int64_t steps() const { return pixels / kStepsOf<Number>; }
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

// Rows of the gradient of v, from row `first` on.
template <class T>
FC_INLINE auto gradient_rows(const PointwiseProduct& p, const GradientOfProduct& g, int64_t first) {
  const int64_t pitch = round_up(p.m, kBlock), channels = p.m;
  const T* grad = static_cast<const T*>(g.grad_v) + first * channels;
  const T* v = static_cast<const T*>(g.v) + first * channels;
  const float* columns = g.columns;
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

// The gradient of v of `num_rows` pixels as a left factor of the gradient of W, from pixel `first` of the factors on, out
// of the left factor `rows`, which has zeros up to the next multiple of kWhole rows.
FC_INLINE void store_gradient(const PointwiseProduct&, const Factors<float>&, int64_t, int64_t, const float*) {}
FC_INLINE void store_gradient(const PointwiseProduct& p, const Factors<Pair>& factors, int64_t first, int64_t num_rows,
                              const Pair* rows) {
  const int64_t row_pitch = 2 * tile_pitch<Pair>(p.m);
  for (int64_t i = 0; i < num_steps<Pair>(num_rows); i += kLanes) {
    for (int64_t c = 0; c < p.m; c += 2 * kLanes) {
      VecBits low[kLanes], high[kLanes];
      for (int j = 0; j < kLanes; ++j) {
        const bf16* row = reinterpret_cast<const bf16*>(rows) + 2 * (i + j) * row_pitch + c;
        pair_up(row, row + row_pitch, low[j], high[j]);
      }
      if (p.tiles) {
        transpose(low), transpose(high);
        Pair* out = factors.gradient + c * factors.steps() + first / 2 + i;
        for (int j = 0; j < kLanes; ++j) store(out + j * factors.steps(), low[j]);
        for (int j = 0; j < kLanes; ++j) store(out + (kLanes + j) * factors.steps(), high[j]);
      } else {
        Pair* out = factors.gradient + (first / 2 + i) * Factors<Pair>::pitch(p) + c;
        for (int j = 0; j < kLanes; ++j, out += Factors<Pair>::pitch(p)) {
          store(out, low[j]), store(out + kLanes, high[j]);
        }
      }
    }
  }
}

// One vector of two rows of z in the panel of the right factor.
FC_INLINE void store_z(float* panel, int64_t row, int c, Vec first, Vec second) {
  store(panel + row * kPanel + c, first), store(panel + (row + 1) * kPanel + c, second);
}
FC_INLINE void store_z(Pair* panel, int64_t row, int c, Vec first, Vec second) {
  store(panel + row / 2 * kPanel + c, pair_up(first, second));
}

// A panel of a product whose left factor is row by row. Meanwhile asks for what is read and written next.
template <class Number>
FC_INLINE void multiply_rows(const PointwiseProduct& p, int64_t num_rows, int64_t length, const Number* left,
                             const float* packed, int64_t column, float* out, Ahead& ahead) {
  const int64_t steps = num_steps<Number>(length), pitch = tile_pitch<Number>(length);
  const Number* right = reinterpret_cast<const Number*>(packed) + column * steps;
#if defined(FASTCIFAR_HAVE_TILES)
  if constexpr (kStepsOf<Number> == 2) {
    if (p.tiles) return multiply_panel_in_tiles(num_rows, steps, left, pitch, right, out, /*add=*/false, ahead);
  }
#endif
  (void)p;
  ahead.step();
  multiply_panel(num_rows, steps, Left<Number, false>{left, pitch}, right, out, /*add=*/false);
}

// Rows [c0, c1) of the gradient of W from `num_rows` pixels of the factors, or with `add` added. A block of channels of
// the left factor stays in the L1 cache while the panels of z pass by.
template <class Number>
void multiply_factors(const PointwiseProduct& p, const Factors<Number>& factors, int64_t num_rows, int64_t c0,
                      int64_t c1, float* grad_w, bool add) {
  constexpr int64_t kChannels = kStepsOf<Number> == 1 ? 48 : 32;
  const int64_t steps = num_steps<Number>(num_rows), panel = round_up(p.m, kWhole) * kPanel;
  for (int64_t c = c0; c < c1; c += kChannels) {
    const int64_t channels = c1 - c < kChannels ? c1 - c : kChannels;
    for (int64_t column = 0; column < p.k; column += kPanel) {
      const Number* right = factors.z + column * factors.steps();
      float* out = grad_w + column / kPanel * panel + c * kPanel;
#if defined(FASTCIFAR_HAVE_TILES)
      if constexpr (kStepsOf<Number> == 2) {
        if (p.tiles) {
          const Pair* left = factors.gradient + c * factors.steps();
          Ahead ahead;  // of the same channels' next panel
          if (column + kPanel < p.k) ahead.add(out + panel, channels * kPanel * sizeof(float), steps / kTileSteps);
          multiply_panel_in_tiles(channels, steps, left, factors.steps(), right, out, add, ahead);
          continue;
        }
      }
#endif
      const Left<Number, true> left{factors.gradient + c, Factors<Number>::pitch(p)};
      multiply_panel(channels, steps, left, right, out, add);
    }
  }
}

// Asks for the next tile, from row `first` on, while this tile is multiplied and used: with each product of tile
// registers, or of a panel, and with every kUsed rows of a panel that are used.
template <class Number, class T>
class AheadOfTiles {
 public:
  static constexpr int64_t kUsed = 4;

  AheadOfTiles(const PointwiseProduct& p, int64_t first, int64_t end, int64_t num_rows, int64_t length, int64_t columns)
      : first_(first), rows_(end - first < kPixels ? end - first : kPixels) {
    int64_t products = 1;
#if defined(FASTCIFAR_HAVE_TILES)
    if (kStepsOf<Number> == 2 && p.tiles) {
      products = round_up(num_rows, kWhole) / kWhole * num_steps<Number>(length) / kTileSteps;
    }
#endif
    (void)p, (void)length;
    steps_ = (products + num_rows / kUsed) * ((columns + kPanel - 1) / kPanel);
  }
  // With a tensor of `channels` channels.
  FC_INLINE void add(const void* tensor, int64_t channels) {
    if (rows_ <= 0) return;
    ahead.add(static_cast<const T*>(tensor) + first_ * channels, rows_ * channels * sizeof(T), steps_);
  }
  FC_INLINE void use(int64_t row) {
    if (row % kUsed == 0) ahead.step();
  }

  Ahead ahead;

 private:
  int64_t first_, rows_, steps_;
};

// Calls f(first column, Full or Tail, Count<vectors>) for the columns of a panel: for all of its vectors at once, because
// in bfloat16 they share a cache line, or for one after the other.
template <class F>
FC_INLINE void for_columns(int64_t columns, F f) {
  if (columns >= kPanel) return f(0, Full{}, Count<kSumVectors>{});
  for_vectors(static_cast<int>(columns), [&](int c, auto lanes) FC_LAMBDA { f(c, lanes, Count<1>{}); });
}

template <class Number, class T>
void multiply_forward(const PointwiseProduct& p, int64_t first, int64_t end, const float* packed, T* v, float* sums,
                      float* scratch) {
  const Tile<Number> tile(p, scratch);
  const int64_t pitch = round_up(p.m, kBlock);
  float* pivots = sums + kPivotOfV * pitch;
  for_tiles(first, end, [&](int64_t row, int64_t num_rows) FC_LAMBDA {
    fill_left(tile.left, num_rows, p.k, z_rows<T>(p, row));
    AheadOfTiles<Number, T> next(p, row + kPixels, end, num_rows, p.k, p.m);
    next.add(p.y, p.k), next.add(v, p.m);
    for (int64_t column = 0; column < p.m; column += kPanel) {
      multiply_rows(p, num_rows, p.k, tile.left, packed, column, tile.product, next.ahead);
      if (row == first) {
        for (int c = 0; c < kPanel; c += kLanes) store(pivots + column + c, rounded<T>(load(tile.product + c)));
      }
      for_columns(p.m - column, [&](int c, auto lanes, auto vectors) FC_LAMBDA {
        constexpr int V = decltype(vectors)::value;
        Vec pivot[V], sum[V] = {}, square[V] = {};
        for (int i = 0; i < V; ++i) pivot[i] = load(pivots + column + c + i * kLanes);
        T* out = v + row * p.m + column + c;
        const float* product = tile.product + c;
        for (int64_t r = 0; r < num_rows; ++r, out += p.m, product += kPanel) {
          __builtin_prefetch(out + kRowsAhead * p.m, 1, 3);
          next.use(r);
          for (int i = 0; i < V; ++i) {
            const Vec value = load(product + i * kLanes);
            store(out + i * kLanes, value, lanes);
            const Vec centred = rounded<T>(value) - pivot[i];
            sum[i] += centred;
            square[i] = centred * centred + square[i];
          }
        }
        for (int i = 0; i < V; ++i) {
          accumulate(sums + kSumOfV * pitch + column + c + i * kLanes, sum[i]);
          accumulate(sums + kSquareOfV * pitch + column + c + i * kLanes, square[i]);
        }
      });
    }
  });
}

template <class Number, class T>
void multiply_backward(const PointwiseProduct& p, const GradientOfProduct& g, int64_t first, int64_t end,
                       const float* packed, T* grad_z, float* sums, const Factors<Number>& factors,
                       int64_t first_of_factors, float* scratch) {
  const Tile<Number> tile(p, scratch);
  const int64_t pitch = round_up(p.k, kBlock);
  const T* y = static_cast<const T*>(p.y);
  for_tiles(first, end, [&](int64_t row, int64_t num_rows) FC_LAMBDA {
    const int64_t at = row - first_of_factors, whole = round_up(num_rows, kWhole);
    Number* left = tile.left;
    if constexpr (kStepsOf<Number> == 1) left = factors.gradient + at * tile_pitch<Number>(p.m);
    fill_left(left, num_rows, p.m, gradient_rows<T>(p, g, row));
    if constexpr (kStepsOf<Number> == 2) {
      const int64_t left_pitch = tile_pitch<Number>(p.m);
      memset(static_cast<void*>(left + num_rows * left_pitch), 0, (whole - num_rows) * left_pitch * sizeof(Number));
    }
    store_gradient(p, factors, at, num_rows, left);
    AheadOfTiles<Number, T> next(p, row + kPixels, end, num_rows, p.m, p.k);
    next.add(g.grad_v, p.m), next.add(y, p.k), next.add(grad_z, p.k);
    if (g.columns) next.add(g.v, p.m);
    for (int64_t column = 0; column < p.k; column += kPanel) {
      multiply_rows(p, num_rows, p.m, left, packed, column, tile.product, next.ahead);
      Number* panel = factors.z + column * factors.steps() + at / kStepsOf<Number> * kPanel;
      for_columns(p.k - column, [&](int c, auto lanes, auto vectors) FC_LAMBDA {
        constexpr int V = decltype(vectors)::value;
        Vec mean[V], scale[V], shift[V], sum[V] = {}, product[V] = {};
        for (int i = 0; i < V; ++i) {
          const float* at_channel = p.columns1 + column + c + i * kLanes;
          mean[i] = load(at_channel + kMean * pitch);
          scale[i] = load(at_channel + kScale * pitch);
          shift[i] = load(at_channel + kShift * pitch);
        }
        const int64_t first_pixel = row * p.k + column + c;
        const auto use = [&](int64_t r, Vec* z) FC_LAMBDA {
          for (int i = 0; i < V; ++i) {
            const Vec grad = load(tile.product + r * kPanel + c + i * kLanes);
            const int64_t pixel = first_pixel + r * p.k + i * kLanes;
            const Vec value = load(y + pixel, lanes), h = value * scale[i] + shift[i];
            store(grad_z + pixel, grad, lanes);
            const Vec masked = h > Vec{} ? rounded<T>(grad) : Vec{};
            sum[i] += masked;
            product[i] = masked * (value - mean[i]) + product[i];
            z[i] = relu(h);
          }
        };
        for (int64_t r = 0; r < whole; r += 2) {
          next.use(r);
          Vec z[2][V] = {};
          for (int64_t row_ahead = r + kRowsAhead; row_ahead < r + kRowsAhead + 2; ++row_ahead) {
            __builtin_prefetch(grad_z + first_pixel + row_ahead * p.k, 1, 3);
            __builtin_prefetch(y + first_pixel + row_ahead * p.k, 0, 3);
          }
          if (r < num_rows) use(r, z[0]);
          if (r + 1 < num_rows) use(r + 1, z[1]);
          for (int i = 0; i < V; ++i) store_z(panel, r, c + i * kLanes, z[0][i], z[1][i]);
        }
        for (int i = 0; i < V; ++i) {
          accumulate(sums + column + c + i * kLanes, sum[i]);
          accumulate(sums + pitch + column + c + i * kLanes, product[i]);
        }
      });
    }
  });
}

// The number of W at p, rounded to T.
template <class T, class W>
FC_INLINE float weight_at(const W* p) {
  return to_f32(from_f32<T>(to_f32(*p)));
}

// A step of a panel of W^T: numbers of W that lie `pitch` apart from column to column.
template <class T, class W>
FC_INLINE void pack_step(float* out, int64_t step, int64_t length, int64_t width, const W* weight, int64_t pitch) {
  for (int64_t j = 0; j < width; ++j) {
    out[j] = step < length ? weight_at<T>(weight + step + j * pitch) : 0.0f;
  }
}
template <class T, class W>
FC_INLINE void pack_step(Pair* out, int64_t step, int64_t length, int64_t width, const W* weight, int64_t pitch) {
  for (int64_t j = 0; j < width; ++j) {
    const W* first = weight + 2 * step + j * pitch;
    const uint32_t low = 2 * step < length ? bits_of(weight_at<T>(first)) : 0,
                   high = 2 * step + 1 < length ? bits_of(weight_at<T>(first + 1)) : 0;
    out[j] = Pair{low >> 16 | high};
  }
}

// kLanes numbers, or pairs of numbers, that lie one after the other in W.
template <class T, class W>
FC_INLINE VecBits numbers_of(const W* p, float) {
  return reinterpret_cast<VecBits>(rounded<T>(load(p, Full{})));
}
template <class T>
FC_INLINE VecBits numbers_of(const bf16* p, Pair) {
  return load_bits(p);
}
template <class T>
FC_INLINE VecBits numbers_of(const float* p, Pair) {
  bf16 narrow[2 * kLanes];
  store(narrow, load(p), Full{}), store(narrow + kLanes, load(p + kLanes), Full{});
  return load_bits(narrow);
}

// A panel of W^T, whose steps lie one after the other in W.
template <class Number, class T, class W>
void pack_transposed_panel(const W* weight, int64_t length, int64_t width, int64_t pitch, Number* out) {
  const int64_t steps = num_steps<Number>(length);
  int64_t step = 0;
  if (width == kPanel) {
    for (; (step + kLanes) * kStepsOf<Number> <= length; step += kLanes) {
      for (int64_t j = 0; j < kPanel; j += kLanes) {
        VecBits block[kLanes];
        for (int i = 0; i < kLanes; ++i) {
          block[i] = numbers_of<T>(weight + (j + i) * pitch + step * kStepsOf<Number>, Number{});
        }
        transpose(block);
        for (int i = 0; i < kLanes; ++i) store(out + (step + i) * kPanel + j, block[i]);
      }
    }
  }
  for (; step < steps; ++step) pack_step<T>(out + step * kPanel, step, length, width, weight, pitch);
}

// A panel of W, whose columns lie one after the other.
template <class T, class W>
void pack_panel(const W* weight, int64_t length, int64_t width, int64_t pitch, float* out) {
  for (int64_t step = 0; step < length; ++step) {
    for_vectors(static_cast<int>(width), [&](int c, auto lanes) FC_LAMBDA {
      store(out + step * kPanel + c, rounded<T>(load(weight + step * pitch + c, lanes)), lanes);
    });
  }
}
template <class T, class W>
void pack_panel(const W* weight, int64_t length, int64_t width, int64_t pitch, Pair* out) {
  for (int64_t step = 0; step < num_steps<Pair>(length); ++step) {
    for_vectors(static_cast<int>(width), [&](int c, auto lanes) FC_LAMBDA {
      const W* at = weight + 2 * step * pitch + c;
      store(out + step * kPanel + c, pair_up(2 * step < length ? load(at, lanes) : Vec{},
                                             2 * step + 1 < length ? load(at + pitch, lanes) : Vec{}));
    });
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
    if (transposed) {
      pack_transposed_panel<Number, T>(weight + column * p.k, length, width, p.k, out);
    } else {
      pack_panel<T>(weight + column, length, width, p.k, out);
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
  const int64_t f32s = Tile<float>::size(p), pairs = Tile<Pair>::size(p);
  return f32s > pairs ? f32s : pairs;
}

int64_t weight_factors(const PointwiseProduct& p, int64_t rows) {
  const bool pairs = p.element == Element::bf16 && kHasPairs;
  return pairs ? Factors<Pair>::size(p, rows) : Factors<float>::size(p, rows);
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

void multiply_forward(const PointwiseProduct& p, int64_t first, int64_t end, const float* packed, void* v, float* sums,
                      float* scratch) {
  for_types(p, [&](auto number, auto element) FC_LAMBDA {
    using T = decltype(element);
    multiply_forward<decltype(number)>(p, first, end, packed, static_cast<T*>(v), sums, scratch);
  });
}

void finish_moments(const PointwiseProduct& p, const Sums& sums, const double* counts, float* mean, float* var) {
  const int64_t pitch = round_up(p.m, kBlock);
  double rows = 0;
  for (int64_t part = 0; part < sums.num_parts; ++part) rows += counts[part];
  for (int64_t first = 0; first < p.m; first += kBlock) {
    double means[kBlock] = {}, deviations[kBlock] = {};
    const auto at = [&](int64_t part, int quantity) { return sums.part(part) + quantity * pitch + first; };
    for (int64_t part = 0; part < sums.num_parts; ++part) {
      const float *sum = at(part, kSumOfV), *pivot = at(part, kPivotOfV);
      for (int c = 0; c < kBlock; ++c) means[c] += counts[part] * pivot[c] + sum[c];
    }
    for (int c = 0; c < kBlock; ++c) means[c] /= rows;
    for (int64_t part = 0; part < sums.num_parts; ++part) {
      const float *sum = at(part, kSumOfV), *square = at(part, kSquareOfV), *pivot = at(part, kPivotOfV);
      for (int c = 0; c < kBlock; ++c) {
        const double from_pivot = sum[c] / counts[part], from_mean = pivot[c] + from_pivot - means[c];
        deviations[c] += square[c] + counts[part] * (from_mean * from_mean - from_pivot * from_pivot);
      }
    }
    for (int64_t c = 0; c < kBlock && first + c < p.m; ++c) {
      mean[first + c] = static_cast<float>(means[c]);
      var[first + c] = deviations[c] < 0 ? 0.0f : static_cast<float>(deviations[c] / rows);  // NaN stays NaN
    }
  }
}

void multiply_backward(const PointwiseProduct& p, const GradientOfProduct& g, int64_t first, int64_t end,
                       const float* packed, void* grad_z, float* sums, float* factors, int64_t first_of_factors,
                       int64_t rows_of_factors, float* scratch) {
  for_types(p, [&](auto number, auto element) FC_LAMBDA {
    using Number = decltype(number);
    using T = decltype(element);
    const Factors<Number> f(p, factors, rows_of_factors);
    multiply_backward(p, g, first, end, packed, static_cast<T*>(grad_z), sums, f, first_of_factors, scratch);
  });
}

void multiply_factors(const PointwiseProduct& p, const float* factors, int64_t rows_of_factors, int64_t rows,
                      int64_t first_channel, int64_t end_channel, float* grad_w, bool add) {
  for_types(p, [&](auto number, auto) FC_LAMBDA {
    using Number = decltype(number);
    const Factors<Number> f(p, const_cast<float*>(factors), rows_of_factors);
    multiply_factors(p, f, rows, first_channel, end_channel, grad_w, add);
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
