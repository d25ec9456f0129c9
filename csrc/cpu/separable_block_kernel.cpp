#include "cpu/separable_block_kernel.h"

#include "cpu/product.h"

namespace fastcifar::FASTCIFAR_ISA {
namespace {

constexpr int64_t kTileRows = 96;  // pixels of a tile: with 512 channels 200 KiB, within the L2 cache

// A tile as the left factor of a product: row by row. The distance of two rows is not a power of two, so that the rows
// do not share one set of the cache.
struct ByRows {
  int64_t pitch;
  explicit ByRows(int64_t channels) : pitch(round_up(channels, kPanel) + 16) {}
  FC_INLINE int64_t at(int64_t row, int64_t channel) const { return row * pitch + channel; }
};

// A tile as the right factor: panel by panel, so that a panel is in few pages.
struct ByPanels {
  FC_INLINE int64_t at(int64_t row, int64_t channel) const {
    return (channel / kPanel * kTileRows + row) * kPanel + channel % kPanel;
  }
};

// The scratch memory of a kernel.
struct Tiles {
  float *z, *g, *product;

  Tiles(const PointwiseProduct& p, float* memory)
      : z(memory), g(z + kTileRows * ByRows(p.k).pitch), product(g + kTileRows * ByRows(p.m).pitch) {}
};

// Calls f(first row, number of rows) for each tile.
template <class F>
FC_INLINE void for_tiles(int64_t first, int64_t end, F f) {
  for (int64_t row = first; row < end; row += kTileRows) f(row, end - row < kTileRows ? end - row : kTileRows);
}

// z = relu(bn1(y))
template <class T, class Layout>
void load_z(const PointwiseProduct& p, int64_t row, int64_t num_rows, float* tile, Layout layout) {
  const int64_t columns_pitch = round_up(p.k, kBlock);
  const float *scales = p.columns1 + kScale * columns_pitch, *shifts = p.columns1 + kShift * columns_pitch;
  const T* y = static_cast<const T*>(p.y) + row * p.k;
  for (int64_t r = 0; r < num_rows; ++r, y += p.k) {
    for_vectors(static_cast<int>(p.k), [&](int c, auto lanes) FC_LAMBDA {
      store(tile + layout.at(r, c), rounded<T>(relu(load(y + c, lanes) * load(scales + c) + load(shifts + c))), lanes);
    });
  }
}

// The gradient of v, channels [c0, c1).
template <class T>
void load_gradient(const PointwiseProduct& p, const GradientOfProduct& g, int64_t row, int64_t num_rows, int64_t c0,
                   int64_t c1, float* tile, ByRows layout) {
  const int64_t columns_pitch = round_up(p.m, kBlock);
  const T* grad = static_cast<const T*>(g.grad_v) + row * p.m + c0;
  const T* v = static_cast<const T*>(g.v) + row * p.m + c0;
  const float* columns = g.columns ? g.columns + c0 : nullptr;
  for (int64_t r = 0; r < num_rows; ++r, grad += p.m, v += p.m) {
    for_vectors(static_cast<int>(c1 - c0), [&](int c, auto lanes) FC_LAMBDA {
      Vec value = load(grad + c, lanes);
      if (columns) {
        const Vec mean = load(columns + kMean * columns_pitch + c),
                  factor = load(columns + kXFactor * columns_pitch + c),
                  constant = load(columns + kConstant * columns_pitch + c);
        value += (load(v + c, lanes) - mean) * factor + constant;
      }
      store(tile + layout.at(r, c), value, lanes);
    });
  }
}

template <class T>
void multiply_forward(const PointwiseProduct& p, int64_t first, int64_t end, const float* packed, T* v,
                      const float* pivots, float* sums, float* scratch) {
  const Tiles tiles(p, scratch);
  const ByRows layout(p.k);
  const int64_t pitch = round_up(p.m, kBlock);
  for_tiles(first, end, [&](int64_t row, int64_t num_rows) FC_LAMBDA {
    load_z<T>(p, row, num_rows, tiles.z, layout);
    for (int64_t column = 0; column < p.m; column += kPanel) {
      multiply_panel(num_rows, p.k, Left<false>{tiles.z, layout.pitch}, packed + column * p.k, kPanel, tiles.product,
                     kPanel, /*add=*/false);
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

template <class T>
void set_product_pivot(const PointwiseProduct& p, int64_t row, const float* packed, float* pivots, float* scratch) {
  const Tiles tiles(p, scratch);
  const ByRows layout(p.k);
  load_z<T>(p, row, 1, tiles.z, layout);
  for (int64_t column = 0; column < p.m; column += kPanel) {
    multiply_panel(1, p.k, Left<false>{tiles.z, layout.pitch}, packed + column * p.k, kPanel, tiles.product, kPanel,
                   /*add=*/false);
    for (int64_t c = column; c < p.m && c < column + kPanel; ++c) {
      pivots[c] = to_f32(from_f32<T>(tiles.product[c - column]));
    }
  }
}

// The gradient of W from a tile, or with `add` added: its rows [c0, c1), whose gradients of v are in the tile g. A block
// of g's channels stays in the L1 cache while the panels of z pass by.
void multiply_tile_transposed(const PointwiseProduct& p, const Tiles& tiles, int64_t num_rows, int64_t c0, int64_t c1,
                              float* grad_w, bool add) {
  constexpr int64_t kChannels = 48;
  const ByRows layout(c1 - c0);
  for (int64_t c = c0; c < c1; c += kChannels) {
    const int64_t channels = c1 - c < kChannels ? c1 - c : kChannels;
    for (int64_t column = 0; column < p.k; column += kPanel) {
      multiply_panel(channels, num_rows, Left<true>{tiles.g + c - c0, layout.pitch}, tiles.z + ByPanels().at(0, column),
                     kPanel, grad_w + column * p.m + c * kPanel, kPanel, add);
    }
  }
}

template <class T>
void multiply_backward(const PointwiseProduct& p, const GradientOfProduct& g, int64_t first, int64_t end,
                       const float* packed, T* grad_z, float* sums, float* grad_w, float* scratch) {
  const Tiles tiles(p, scratch);
  const ByRows layout(p.m);
  const int64_t pitch = round_up(p.k, kBlock);
  const T* y = static_cast<const T*>(p.y);
  for_tiles(first, end, [&](int64_t row, int64_t num_rows) FC_LAMBDA {
    load_z<T>(p, row, num_rows, tiles.z, ByPanels());
    load_gradient<T>(p, g, row, num_rows, 0, p.m, tiles.g, layout);
    for (int64_t column = 0; column < p.k; column += kPanel) {
      multiply_panel(num_rows, p.m, Left<false>{tiles.g, layout.pitch}, packed + column * p.m, kPanel, tiles.product,
                     kPanel, /*add=*/false);
      const int64_t columns = p.k - column < kPanel ? p.k - column : kPanel;
      for_vectors(static_cast<int>(columns), [&](int c, auto lanes) FC_LAMBDA {
        const Vec mean = load(p.columns1 + kMean * pitch + column + c);
        Vec sum{}, product{};
        for (int64_t r = 0; r < num_rows; ++r) {
          const Vec grad = load(tiles.product + r * kPanel + c);
          const int64_t at = (row + r) * p.k + column + c;
          store(grad_z + at, grad, lanes);
          const Vec z = load(tiles.z + ByPanels().at(r, column + c));
          const Vec masked = z > Vec{} ? rounded<T>(grad) : Vec{};
          sum += masked;
          product = masked * (load(y + at, lanes) - mean) + product;
        }
        accumulate(sums + column + c, sum);
        accumulate(sums + pitch + column + c, product);
      });
    }
    if (grad_w) multiply_tile_transposed(p, tiles, num_rows, 0, p.m, grad_w, /*add=*/row > first);
  });
}

template <class T>
void multiply_weight_gradient(const PointwiseProduct& p, const GradientOfProduct& g, int64_t rows,
                              int64_t first_channel, int64_t end_channel, float* grad_w, float* scratch) {
  const Tiles tiles(p, scratch);
  for_tiles(0, rows, [&](int64_t row, int64_t num_rows) FC_LAMBDA {
    load_z<T>(p, row, num_rows, tiles.z, ByPanels());
    load_gradient<T>(p, g, row, num_rows, first_channel, end_channel, tiles.g, ByRows(end_channel - first_channel));
    multiply_tile_transposed(p, tiles, num_rows, first_channel, end_channel, grad_w, /*add=*/row > 0);
  });
}

template <class T, class W>
void pack_weight(const PointwiseProduct& p, const W* weight, bool transposed, int64_t first, int64_t end,
                 float* packed) {
  const int64_t steps = transposed ? p.k : p.m, columns = transposed ? p.m : p.k;
  for (int64_t panel = first; panel < end; ++panel) {
    float* out = packed + panel * kPanel * steps;
    const int64_t column = panel * kPanel, width = columns - column < kPanel ? columns - column : kPanel;
    if (width < kPanel) memset(out, 0, kPanel * steps * sizeof(float));
    const auto copy = [&](int64_t i, int64_t j, int64_t from)
                          FC_LAMBDA { out[i * kPanel + j] = to_f32(from_f32<T>(to_f32(weight[from]))); };
    if (transposed) {  // along the columns of the panel, in steps that the L1 cache holds
      for (int64_t i0 = 0; i0 < steps; i0 += 64) {
        const int64_t i1 = i0 + 64 < steps ? i0 + 64 : steps;
        for (int64_t j = 0; j < width; ++j) {
          for (int64_t i = i0; i < i1; ++i) copy(i, j, (column + j) * p.k + i);
        }
      }
    } else {
      for (int64_t i = 0; i < steps; ++i) {
        for (int64_t j = 0; j < width; ++j) copy(i, j, i * p.k + column + j);
      }
    }
  }
}

template <class T>
void write_weight_gradient(const PointwiseProduct& p, const float* sums, int64_t num_parts, int64_t first, int64_t end,
                           T* grad) {
  const int64_t size = packed_floats(p.m, p.k);
  for (int64_t row = first; row < end; ++row) {
    for_vectors(static_cast<int>(p.k), [&](int c, auto lanes) FC_LAMBDA {
      const float* part = sums + (c / kPanel * p.m + row) * kPanel + c % kPanel;
      Vec sum = load(part);
      for (int64_t i = 1; i < num_parts; ++i) sum += load(part + i * size);
      store(grad + row * p.k + c, sum, lanes);
    });
  }
}

}  // namespace

int64_t num_panels(int64_t columns) { return (columns + kPanel - 1) / kPanel; }

int64_t packed_floats(int64_t rows, int64_t columns) { return rows * num_panels(columns) * kPanel; }

int64_t product_scratch(const PointwiseProduct& p) {
  return kTileRows * (ByRows(p.k).pitch + ByRows(p.m).pitch + kPanel);
}

void pack_weight(const PointwiseProduct& p, Element of_weight, const void* weight, bool transposed, int64_t first,
                 int64_t end, float* packed) {
  if (of_weight == Element::bf16) {
    pack_weight<bf16>(p, static_cast<const bf16*>(weight), transposed, first, end, packed);
  } else if (p.element == Element::bf16) {
    pack_weight<bf16>(p, static_cast<const float*>(weight), transposed, first, end, packed);
  } else {
    pack_weight<float>(p, static_cast<const float*>(weight), transposed, first, end, packed);
  }
}

void multiply_forward(const PointwiseProduct& p, int64_t first, int64_t end, const float* packed, void* v,
                      const float* pivots, float* sums, float* scratch) {
  if (p.element == Element::f32) {
    multiply_forward(p, first, end, packed, static_cast<float*>(v), pivots, sums, scratch);
  } else {
    multiply_forward(p, first, end, packed, static_cast<bf16*>(v), pivots, sums, scratch);
  }
}

void set_product_pivot(const PointwiseProduct& p, int64_t row, const float* packed, float* pivots, float* scratch) {
  (p.element == Element::f32 ? &set_product_pivot<float> : &set_product_pivot<bf16>)(p, row, packed, pivots, scratch);
}

void multiply_backward(const PointwiseProduct& p, const GradientOfProduct& g, int64_t first, int64_t end,
                       const float* packed, void* grad_z, float* sums, float* grad_w, float* scratch) {
  if (p.element == Element::f32) {
    multiply_backward(p, g, first, end, packed, static_cast<float*>(grad_z), sums, grad_w, scratch);
  } else {
    multiply_backward(p, g, first, end, packed, static_cast<bf16*>(grad_z), sums, grad_w, scratch);
  }
}

void multiply_weight_gradient(const PointwiseProduct& p, const GradientOfProduct& g, int64_t rows,
                              int64_t first_channel, int64_t end_channel, float* grad_w, float* scratch) {
  (p.element == Element::f32
       ? &multiply_weight_gradient<float>
       : &multiply_weight_gradient<bf16>)(p, g, rows, first_channel, end_channel, grad_w, scratch);
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
