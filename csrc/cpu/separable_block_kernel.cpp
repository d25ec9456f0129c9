#include "cpu/separable_block_kernel.h"

#include <type_traits>

#include "cpu/packed_weight.h"
#include "cpu/product_factors.h"

namespace fastcifar::FASTCIFAR_ISA {
namespace {

// Rows from the one that is used to the one that the L1 cache is asked for: the columns of a panel are read with gaps.
constexpr int64_t kRowsAhead = 8;

// Calls f(first, end) for parts of [first, end), in up to `steps` calls of step(). The parts have one length, but for the
// last: a loop whose length changes is left by a branch that the processor does not foresee.
template <class F>
class Spread {
 public:
  FC_INLINE Spread(int64_t first, int64_t end, int64_t steps, F f)
      : next_(first), end_(end), length_((end - first + steps - 1) / steps), f_(f) {}
  FC_INLINE void step() {
    const int64_t first = next_;
    if (first >= end_) return;
    next_ = first + length_ < end_ ? first + length_ : end_;
    f_(first, next_);
  }

 private:
  int64_t next_, end_, length_;
  F f_;
};

// The panel from `column` on of the product of one tile of rows, which has `num_columns` columns. `tile` and `panel` are
// counted through the pass: whether they are odd says which buffer is theirs.
struct Panel {
  int64_t row, num_rows, tile, column, num_columns, panel;

  FC_INLINE bool whole() const { return num_columns - column >= kPanel; }
  // This panel's share of the work on a tile.
  FC_INLINE int64_t share(int64_t work, int64_t of) const { return work * of / num_panels(num_columns); }
  FC_INLINE int64_t share_first(int64_t work) const { return share(work, column / kPanel); }
  FC_INLINE int64_t share_end(int64_t work) const { return share(work, column / kPanel + 1); }
};

// How often multiply_rows calls its `meanwhile`.
template <class Number>
FC_INLINE int64_t num_products(const PointwiseProduct& p, int64_t num_rows, int64_t length) {
#if defined(FASTCIFAR_HAVE_TILES)
  if (kStepsOf<Number> == 2 && p.tiles) return tile_products<Number>(num_rows, num_steps<Number>(length));
#endif
  (void)p;
  return group_products<Number>(num_rows, num_steps<Number>(length));
}

// A panel of a product whose left factor is row by row.
template <class Number, class Meanwhile>
FC_INLINE void multiply_rows(const PointwiseProduct& p, int64_t num_rows, int64_t length, const Number* left,
                             const float* packed, int64_t column, float* out, Meanwhile meanwhile) {
  const int64_t steps = num_steps<Number>(length), pitch = tile_pitch<Number>(length);
  const Number* right = reinterpret_cast<const Number*>(packed) + column * steps;
#if defined(FASTCIFAR_HAVE_TILES)
  if constexpr (kStepsOf<Number> == 2) {
    if (p.tiles) {
      return multiply_panel_in_tiles<LeftFactor::passes>(num_rows, steps, left, pitch, right, out, /*add=*/false,
                                                         meanwhile);
    }
  }
#endif
  (void)p;
  if constexpr (kPartsOf<Number> == 1) {
    multiply_panel(num_rows, steps, Left<Number, false>{left, pitch}, right, out, /*add=*/false, meanwhile);
  }
}

// Rows [c0, c1) of the gradient of W from `num_rows` pixels of the factors, or with `add` added. A block of channels of
// the left factor stays in the L1 cache while the panels of z pass by.
template <class Number>
void multiply_factors(const PointwiseProduct& p, const Factors<Number>& factors, int64_t num_rows, int64_t c0,
                      int64_t c1, float* grad_w, bool add) {
  const int64_t steps = num_steps<Number>(num_rows), panel = round_up(p.m, kTileMultiple) * kPanel,
                block = p.tiles ? 32 : 48;  // whole tiles, or groups of rows
  for (int64_t c = c0; c < c1; c += block) {
    const int64_t channels = c1 - c < block ? c1 - c : block;
    for (int64_t column = 0; column < p.k; column += kPanel) {
      const Number* right = factors.z + column * factors.steps();
      float* out = grad_w + column / kPanel * panel + c * kPanel;
#if defined(FASTCIFAR_HAVE_TILES)
      if constexpr (kStepsOf<Number> == 2) {
        if (p.tiles) {
          const Number* left = factors.gradient + c * factors.steps();
          // The same channels' next panel is asked for.
          const int64_t lines = column + kPanel < p.k ? lines_of<float>(channels * kPanel) : 0;
          Spread ahead(0, lines, tile_products<Number>(channels, steps),
                       [&](int64_t first, int64_t end) FC_LAMBDA { ask_for_lines(out + panel, first, end); });
          multiply_panel_in_tiles<LeftFactor::stays>(channels, steps, left, factors.steps(), right, out, add,
                                                     [&]() FC_LAMBDA { ahead.step(); });
          continue;
        }
      }
#endif
      if constexpr (kPartsOf<Number> == 1) {
        const Left<Number, true> left{factors.gradient + c, Factors<Number>::pitch(p)};
        multiply_panel(channels, steps, left, right, out, add, [] {});
      }
    }
  }
}

// The columns of a panel: all of them, or one vector.
template <class T>
struct WholePanel {
  using Numbers = Line<T>;
  static constexpr int kVectors = 2;
  static_assert(kPanel == kVectors * kLanes);

  FC_INLINE Numbers of(const float* p) const { return Numbers::of(p); }
  FC_INLINE Numbers read(const T* p) const { return Numbers::load(p); }
  // Writes a row of a product, and returns what memory holds then.
  FC_INLINE Numbers write(T* p, const float* product) const {
    return Numbers::store(p, load(product), load(product + kLanes));
  }
  FC_INLINE void accumulate_to(float* sums, const Numbers& numbers) const { numbers.accumulate_to(sums); }
};
template <class T, class Lanes>
struct PartOfPanel {
  struct Numbers {
    Vec vectors[1];
  };
  static constexpr int kVectors = 1;

  Lanes lanes;

  FC_INLINE Numbers of(const float* p) const { return {{load(p)}}; }
  FC_INLINE Numbers read(const T* p) const { return {{load(p, lanes)}}; }
  FC_INLINE Numbers write(T* p, const float* product) const {
    const Vec value = load(product);
    store(p, value, lanes);
    return {{rounded<T>(value)}};
  }
  FC_INLINE void accumulate_to(float* sums, const Numbers& numbers) const { accumulate(sums, numbers.vectors[0]); }
};

// Multiplies the rows [first, end) of a pass (Forward, Backward), tile by tile and panel by panel. While a panel is
// multiplied, the panel before it is used, row by row, and this panel's share of the next tile is filled; and what will
// be used of the next tile is asked for.
template <class Pass>
void run(Pass pass, int64_t first, int64_t end) {
  using Element = typename Pass::Element;
  const int64_t pixels = tile_pixels(pass.p);
  const auto tile_from = [&](int64_t row, int64_t tile, int64_t panel) FC_LAMBDA {
    return Panel{row, row < end ? (end - row < pixels ? end - row : pixels) : 0, tile, 0, pass.num_columns(), panel};
  };
  Panel now = tile_from(first, 0, 0), next = tile_from(first + pixels, 1, 0), before{-1, 0, 0, 0, 0, 0};
  // The pieces of a tile, one after the other: kPieceRows rows of each line of channels, then the rows below them.
  const auto num_pieces = [&](const Panel& tile) FC_LAMBDA {
    return (pass.num_rows_of_left(tile) + kPieceRows - 1) / kPieceRows * pieces_of_row(pass.length());
  };
  int64_t row = 0, channel = 0;
  const auto fill_pieces = [&](const Panel& tile, int64_t first, int64_t end) FC_LAMBDA {
    const int64_t all = pass.num_rows_of_left(tile);
    if (first == 0) row = channel = 0;
    for (int64_t i = first; i < end; ++i) {
      pass.fill(tile, row, all - row < kPieceRows ? all - row : kPieceRows, channel);
      channel += kPieceChannels;
      if (channel >= pass.length()) channel = 0, row += kPieceRows;
    }
  };
  fill_pieces(now, 0, num_pieces(now));
  for (bool ended = false; !ended; before = now, ++now.panel, now.column += kPanel) {
    if (now.column >= now.num_columns) {
      now = tile_from(next.row, next.tile, now.panel);
      next = tile_from(next.row + pixels, next.tile + 1, 0);
    }
    ended = now.num_rows == 0;
    const int64_t steps = ended ? 1 : num_products<typename Pass::Multiplied>(pass.p, now.num_rows, pass.length());
    const auto share = [&](int64_t work, auto f)
                           FC_LAMBDA { return Spread(now.share_first(work), now.share_end(work), steps, f); };
    auto fill = share(num_pieces(next), [&](int64_t first, int64_t end) FC_LAMBDA { fill_pieces(next, first, end); });
    auto keep = share(pass.kept(now), [&](int64_t first, int64_t end) FC_LAMBDA {
      for (int64_t i = first; i < end; ++i) pass.keep(now, i);
    });
    auto ask = share(pass.num_lines(next), [&](int64_t first, int64_t end) FC_LAMBDA { pass.ask(next, first, end); });
    typename Pass::template User<WholePanel<Element>> user(pass, before, 0, {});
    Spread use(0, before.whole() ? user.num_uses() : 0, steps,
               [&](int64_t first, int64_t end) FC_LAMBDA { user.use(first, end); });
    const auto meanwhile = [&]() FC_LAMBDA { fill.step(), keep.step(), ask.step(), use.step(); };
    if (ended) {
      meanwhile();
    } else {
      multiply_rows(pass.p, now.num_rows, pass.length(), pass.left(now), pass.packed, now.column,
                    pass.tile.product_of(now.panel), meanwhile);
    }
    if (before.whole()) {
      user.finish();
    } else {
      for_vectors(static_cast<int>(before.num_columns - before.column), [&](int c, auto lanes) FC_LAMBDA {
        typename Pass::template User<PartOfPanel<Element, decltype(lanes)>> part(pass, before, c, {lanes});
        part.use(0, part.num_uses());
        part.finish();
      });
    }
  }
}

// v = z . W^T, with its moments.
template <class Number, class T>
struct Forward {
  using Multiplied = Number;
  using Element = T;

  const PointwiseProduct& p;
  const float* packed;
  T* v;
  float* sums;
  Tile<Number> tile;
  int64_t first;  // the row that the pivots are taken from

  int64_t num_columns() const { return p.m; }
  int64_t num_rows_of_left(const Panel& at) const { return at.num_rows; }
  int64_t length() const { return p.k; }
  int64_t num_lines(const Panel& at) const { return lines_of<T>(at.num_rows * p.m); }
  FC_INLINE void ask(const Panel& at, int64_t first, int64_t end) const { ask_for_lines(v + at.row * p.m, first, end); }
  FC_INLINE Number* left(const Panel& at) const { return tile.left_of(at.tile); }
  FC_INLINE void fill(const Panel& at, int64_t row, int64_t rows, int64_t c) {
    ask_for_piece<T>(p, p.y, at.row + row, rows, p.k, c);
    fill_piece<T>(left(at) + row * tile_pitch<Number>(p.k), rows, p.k, c,
                  [&](int64_t channel, auto lanes) FC_LAMBDA { return z_rows<T>(p, at.row + row, channel, lanes); });
  }
  int64_t kept(const Panel&) const { return 0; }
  FC_INLINE void keep(const Panel&, int64_t) {}

  template <class Columns>
  struct User {
    using Numbers = typename Columns::Numbers;

    Forward& pass;
    Columns columns;
    const float* product;
    T* out;
    float* sums;
    int64_t num_rows;
    Numbers pivot;
    struct {
      Numbers sum, square;
    } moments;

    FC_INLINE User(Forward& pass, const Panel& at, int64_t c, Columns columns)
        : pass(pass), columns(columns), product(pass.tile.product_of(at.panel) + c),
          out(pass.v + at.row * pass.p.m + at.column + c), sums(pass.sums + at.column + c), num_rows(at.num_rows),
          moments{} {
      float* pivots = sums + kPivotOfV * pitch();
      if (at.row == pass.first) {
        for (int i = 0; i < Columns::kVectors; ++i) store(pivots + i * kLanes, rounded<T>(load(product + i * kLanes)));
      }
      pivot = columns.of(pivots);
    }
    FC_INLINE int64_t pitch() const { return round_up(pass.p.m, kBlock); }
    FC_INLINE int64_t num_uses() const { return num_rows; }
    FC_INLINE void use(int64_t first, int64_t end) {
      const int64_t width = pass.p.m;
      T* to = out + first * width;
      auto local = moments;  // which no store can change
      for (const float *from = product + first * kPanel, *stop = product + end * kPanel; from < stop;
           from += kPanel, to += width) {
        __builtin_prefetch(to + kRowsAhead * width, 1, 3);
        const Numbers values = columns.write(to, from);
        for (int i = 0; i < Columns::kVectors; ++i) {
          add_offset(values.vectors[i], pivot.vectors[i], local.sum.vectors[i], local.square.vectors[i]);
        }
      }
      moments = local;
    }
    FC_INLINE void finish() const {
      columns.accumulate_to(sums + kSumOfV * pitch(), moments.sum);
      columns.accumulate_to(sums + kSquareOfV * pitch(), moments.square);
    }
  };
};

// The gradient of z out of the gradient of v, and the factors of the gradient of W.
template <class Number, class T>
struct Backward {
  using Multiplied = Number;
  using Element = T;

  const PointwiseProduct& p;
  const GradientOfProduct& g;
  const float* packed;
  T* grad_z;
  float* sums;
  Factors<Number> factors;
  int64_t first_of_factors;
  Tile<Number> tile;

  int64_t num_columns() const { return p.k; }
  // With rows of zeros up to the next multiple of kTileMultiple.
  int64_t num_rows_of_left(const Panel& at) const {
    return kStepsOf<Number> == 1 ? at.num_rows : round_up(at.num_rows, kTileMultiple);
  }
  int64_t length() const { return p.m; }
  int64_t num_lines(const Panel& at) const { return lines_of<T>(at.num_rows * p.k); }
  FC_INLINE void ask(const Panel& at, int64_t first, int64_t end) const {
    ask_for_lines(static_cast<const T*>(p.y) + at.row * p.k, first, end);
    ask_for_lines(grad_z + at.row * p.k, first, end);
  }
  FC_INLINE Number* left(const Panel& at) const {
    if constexpr (kStepsOf<Number> == 1)
      return factors.gradient + (at.row - first_of_factors) * tile_pitch<Number>(p.m);
    return tile.left_of(at.tile);
  }
  FC_INLINE void fill(const Panel& at, int64_t row, int64_t rows, int64_t c) {
    Number* out = left(at) + row * tile_pitch<Number>(p.m);
    int64_t given = at.num_rows - row;
    if (given < 0) given = 0;
    if (given > rows) given = rows;
    for (int64_t i = given; c == 0 && i < rows; ++i) {
      const int64_t pitch = tile_pitch<Number>(p.m);
      memset(static_cast<void*>(out + i * pitch), 0, pitch * sizeof(Number));
    }
    ask_for_piece<T>(p, g.grad_v, at.row + row, rows, p.m, c);
    if (g.columns) ask_for_piece<T>(p, g.v, at.row + row, rows, p.m, c);
    const auto fill_given = [&](auto of_moments) FC_LAMBDA {
      fill_piece<T>(out, given, p.m, c, [&](int64_t channel, auto lanes) FC_LAMBDA {
        return gradient_rows<T, decltype(of_moments)::value>(p, g, at.row + row, channel, lanes);
      });
    };
    g.columns ? fill_given(std::true_type{}) : fill_given(std::false_type{});
  }
  // The gradient of v is kept in squares of kTileMultiple pixels and channels, part by part.
  int64_t kept(const Panel& at) const {
    if (kStepsOf<Number> == 1) return 0;
    return kPartsOf<Number> * (round_up(at.num_rows, kTileMultiple) / kTileMultiple) *
           (round_up(p.m, kTileMultiple) / kTileMultiple);
  }
  FC_INLINE void keep(const Panel& at, int64_t i) {
    const int64_t down = round_up(at.num_rows, kTileMultiple) / kTileMultiple, square = i / kPartsOf<Number>,
                  row = square % down * kTileMultiple;
    store_gradient(p, factors, static_cast<int>(i % kPartsOf<Number>), at.row - first_of_factors + row,
                   square / down * kTileMultiple, left(at) + row * tile_pitch<Number>(p.m));
  }

  template <class Columns>
  struct User {
    using Numbers = typename Columns::Numbers;

    Backward& pass;
    Columns columns;
    const float* product;
    const T* y;
    T* grad_z;
    Number* z;  // the panel
    int64_t c;  // the first column of it
    float* sums;
    int64_t num_rows;
    Numbers mean, scale, shift;
    struct OfGradient {
      Numbers sum, products;
    } of_gradient;

    FC_INLINE User(Backward& pass, const Panel& at, int64_t c, Columns columns)
        : pass(pass), columns(columns), product(pass.tile.product_of(at.panel) + c),
          y(static_cast<const T*>(pass.p.y) + at.row * pass.p.k + at.column + c),
          grad_z(pass.grad_z + at.row * pass.p.k + at.column + c),
          z(pass.factors.z + at.column * pass.factors.steps() +
            (at.row - pass.first_of_factors) / kStepsOf<Number> * kPanel),
          c(c), sums(pass.sums + at.column + c), num_rows(at.num_rows), of_gradient{} {
      const float* of_channel = pass.p.columns1 + at.column + c;
      mean = columns.of(of_channel + kMean * pitch());
      scale = columns.of(of_channel + kScale * pitch());
      shift = columns.of(of_channel + kShift * pitch());
    }
    FC_INLINE int64_t pitch() const { return round_up(pass.p.k, kBlock); }
    // Two rows at a time, up to the next multiple of kTileMultiple.
    FC_INLINE int64_t num_uses() const { return round_up(num_rows, kTileMultiple) / 2; }
    FC_INLINE void use(int64_t first, int64_t end) {
      const int64_t width = pass.p.k;
      OfGradient local = of_gradient;  // which no store can change
      for (int64_t row = 2 * first; row < 2 * end; row += 2) {
        const float* from = product + row * kPanel;
        const T* values = y + row * width;
        T* to = grad_z + row * width;
        for (int64_t ahead = kRowsAhead; ahead < kRowsAhead + 2; ++ahead) {
          __builtin_prefetch(to + ahead * width, 1, 3);
          __builtin_prefetch(values + ahead * width, 0, 3);
        }
        Numbers one{}, two{};
        if (row < num_rows) one = use_row(values, from, to, local);
        if (row + 1 < num_rows) two = use_row(values + width, from + kPanel, to + width, local);
        store_z(z, row, c, one, two);
      }
      of_gradient = local;
    }
    FC_INLINE Numbers use_row(const T* from_y, const float* from, T* to, OfGradient& totals) const {
      const Numbers values = columns.read(from_y), grads = columns.write(to, from);
      Numbers result;
      for (int v = 0; v < Columns::kVectors; ++v) {
        const Vec value = values.vectors[v], h = value * scale.vectors[v] + shift.vectors[v];
        const Vec masked = h > Vec{} ? grads.vectors[v] : Vec{};
        totals.sum.vectors[v] += masked;
        totals.products.vectors[v] = masked * (value - mean.vectors[v]) + totals.products.vectors[v];
        result.vectors[v] = relu(h);
      }
      return result;
    }
    FC_INLINE void finish() const {
      columns.accumulate_to(sums, of_gradient.sum);
      columns.accumulate_to(sums + pitch(), of_gradient.products);
    }
  };
};

template <class T>
void write_weight_gradient(const PointwiseProduct& p, const float* sums, int64_t num_parts, int64_t first, int64_t end,
                           T* grad) {
  const int64_t panel = round_up(p.m, kTileMultiple) * kPanel, size = weight_sums(p);
  for (int64_t row = first; row < end; ++row) {
    for_vectors(static_cast<int>(p.k), [&](int c, auto lanes) FC_LAMBDA {
      const float* part = sums + c / kPanel * panel + row * kPanel + c % kPanel;
      Vec sum = load(part);
      for (int64_t i = 1; i < num_parts; ++i) sum += load(part + i * size);
      store(grad + row * p.k + c, sum, lanes);
    });
  }
}

// Calls f(Number{}, T{}) for the numbers that are multiplied and the elements in memory. Maps of bfloat16 are multiplied as
// float32 where the processor does not multiply pairs.
template <class F>
FC_INLINE void for_types(const PointwiseProduct& p, F f) {
#if defined(FASTCIFAR_HAVE_TILES)
  if (p.tiles) return p.is_split() ? f(SplitPair{}, float{}) : f(Pair{}, bf16{});
#endif
  if (p.element == Element::f32) return f(float{}, float{});
  if constexpr (kHasPairs) return f(Pair{}, bf16{});
  f(float{}, bf16{});
}

// The same with the tile registers set up, for those who multiply.
template <class F>
FC_INLINE void multiply_types(const PointwiseProduct& p, F f) {
#if defined(FASTCIFAR_HAVE_TILES)
  const TileRegisters registers(p.tiles);
#endif
  for_types(p, f);
}

// A size that depends on the numbers: f(Number{}).
template <class F>
FC_INLINE int64_t size_for(const PointwiseProduct& p, F f) {
  int64_t size = 0;
  for_types(p, [&](auto number, auto) FC_LAMBDA { size = f(number); });
  return size;
}

}  // namespace

int64_t num_panels(int64_t columns) { return (columns + kPanel - 1) / kPanel; }

int64_t packed_weight(const PointwiseProduct& p, bool transposed) {
  const int64_t length = transposed ? p.k : p.m, columns = transposed ? p.m : p.k;
  return size_for(p, [&](auto number) FC_LAMBDA {
    using Number = decltype(number);
    return kPartsOf<Number> * num_steps<Number>(length) * round_up(columns, kPanel);
  });
}

int64_t weight_sums(const PointwiseProduct& p) { return round_up(p.m, kTileMultiple) * round_up(p.k, kPanel); }

int64_t product_scratch(const PointwiseProduct& p) {
  return size_for(p, [&](auto number) FC_LAMBDA { return Tile<decltype(number)>::size(p); });
}

int64_t weight_factors(const PointwiseProduct& p, int64_t rows) {
  return size_for(p, [&](auto number) FC_LAMBDA { return Factors<decltype(number)>::size(p, rows); });
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
  multiply_types(p, [&](auto number, auto element) FC_LAMBDA {
    using Number = decltype(number);
    using T = decltype(element);
    run(Forward<Number, T>{p, packed, static_cast<T*>(v), sums, Tile<Number>(p, scratch), first}, first, end);
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
  multiply_types(p, [&](auto number, auto element) FC_LAMBDA {
    using Number = decltype(number);
    using T = decltype(element);
    run(Backward<Number, T>{p, g, packed, static_cast<T*>(grad_z), sums, Factors<Number>(p, factors, rows_of_factors),
                            first_of_factors, Tile<Number>(p, scratch)},
        first, end);
  });
}

void multiply_factors(const PointwiseProduct& p, const float* factors, int64_t rows_of_factors, int64_t rows,
                      int64_t first_channel, int64_t end_channel, float* grad_w, bool add) {
  multiply_types(p, [&](auto number, auto) FC_LAMBDA {
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
