// Runs the kernels of separable_block's product and of the stem with 16 lanes, with pairs of bfloat16 and with AMX's tile
// registers, all emulated, and compares them with sums in double. Prints a line for each case; ends with 1 if one is wrong.
#define FASTCIFAR_EMULATED
#define FASTCIFAR_ISA emulated
#include "cpu/separable_block_kernel.cpp"
#include "cpu/stem_kernel.cpp"

#include <cmath>
#include <cstdio>
#include <utility>
#include <vector>

namespace {
using namespace fastcifar;
namespace kernels = fastcifar::emulated;

uint32_t state = 1;
float draw() {  // -1 to 1
  state = state * 1664525u + 1013904223u;
  return static_cast<float>(state >> 8) / 8388608.0f - 1.0f;
}

struct Numbers {
  Element element;
  std::vector<float> values;
  std::vector<bf16> narrow;

  Numbers(Element element, int64_t size, bool drawn, float scale = 1) : element(element), values(size), narrow(size) {
    for (int64_t i = 0; i < size; ++i) {
      narrow[i] = from_f32<bf16>(drawn ? scale * draw() : 0);
      values[i] = element == Element::bf16 ? to_f32(narrow[i]) : drawn ? scale * draw() : 0;
    }
  }
  void* data() { return element == Element::f32 ? static_cast<void*>(values.data()) : narrow.data(); }
  double operator[](int64_t i) const { return element == Element::f32 ? values[i] : to_f32(narrow[i]); }
};

double round_to(Element element, double v) {
  const float f = static_cast<float>(v);
  return element == Element::f32 ? f : to_f32(from_f32<bf16>(f));
}

// The largest difference of two lists, measured by the largest number.
struct Difference {
  double largest = 0, size = 1e-30;
  void add(double got, double expected) {
    largest = std::fmax(largest, std::isfinite(got) ? std::fabs(got - expected) : 1e30);
    size = std::fmax(size, std::fabs(expected));
  }
  double value() const { return largest / size; }
};

// With `scale` a map's numbers are so many times as large, and those of W and of the gradient so many times as small.
bool check(Element element, bool tiles, bool moments, int64_t rows, int64_t k, int64_t m, float scale = 1) {
  const int64_t k_pitch = round_up(k, kBlock), m_pitch = round_up(m, kBlock);
  Numbers y(element, rows * k, true, scale), v(element, rows * m, true), grad_v(element, rows * m, true, 1 / scale),
      w(element, m * k, true, 1 / scale);
  Numbers out(element, rows * m, false), grad_z(element, rows * k, false);
  std::vector<float> columns1(kColumns * k_pitch), columns(kColumns * m_pitch);
  for (int64_t c = 0; c < k; ++c) {
    for (const int row : {kMean, kScale, kShift}) columns1[row * k_pitch + c] = draw();
  }
  for (int64_t c = 0; c < m; ++c) {
    for (const int row : {kMean, kXFactor, kConstant}) columns[row * m_pitch + c] = draw() / (4 * scale);
  }
  const PointwiseProduct p{element, tiles, k, m, y.data(), columns1.data()};
  const GradientOfProduct g{grad_v.data(), v.data(), moments ? columns.data() : nullptr};
  std::vector<float> scratch(kernels::product_scratch(p), NAN), packed(kernels::packed_weight(p, true), NAN),
      packed_back(kernels::packed_weight(p, false), NAN);
  kernels::pack_weight(p, element, w.data(), true, 0, kernels::num_panels(m), packed.data());
  kernels::pack_weight(p, element, w.data(), false, 0, kernels::num_panels(k), packed_back.data());

  std::vector<float> sums_back(2 * k_pitch), grad_w(kernels::weight_sums(p), NAN),
      grad_w_slabs(kernels::weight_sums(p), NAN);
  const int64_t room = round_up(rows, kBlock), few = 64, half = rows < few ? rows : few;
  // The moments of v, in one part or two.
  const int64_t size = kProductSums * m_pitch;
  std::vector<float> memory(2 * size), mean(m, NAN), var(m, NAN);
  const double counts[] = {static_cast<double>(half), static_cast<double>(rows - half)};
  const Sums sums{memory.data(), rows > half ? 2 : 1, size};
  for (int64_t part = 0; part < sums.num_parts; ++part) {
    kernels::multiply_forward(p, part ? half : 0, part ? rows : half, packed.data(), out.data(), sums.part(part),
                              scratch.data());
  }
  kernels::finish_moments(p, sums, counts, mean.data(), var.data());
  // The factors of all pixels, in two parts, multiplied in slabs of channels; then 64 pixels at a time, added up.
  std::vector<float> factors(kernels::weight_factors(p, room), NAN), few_factors(kernels::weight_factors(p, few), NAN);
  for (const auto& [first, end] : {std::pair{int64_t{0}, half}, std::pair{half, rows}}) {
    kernels::multiply_backward(p, g, first, end, packed_back.data(), grad_z.data(), sums_back.data(), factors.data(), 0,
                               room, scratch.data());
  }
  for (int64_t c = 0; c < m; c += kBlock) {
    const int64_t end = c + kBlock < m ? c + kBlock : m;
    kernels::multiply_factors(p, factors.data(), room, rows, c, end, grad_w_slabs.data(), /*add=*/false);
  }
  std::vector<float> sums_again(2 * k_pitch);
  for (int64_t row = 0; row < rows; row += few) {
    const int64_t next = row + few < rows ? row + few : rows;
    kernels::multiply_backward(p, g, row, next, packed_back.data(), grad_z.data(), sums_again.data(),
                               few_factors.data(), row, few, scratch.data());
    kernels::multiply_factors(p, few_factors.data(), few, next - row, 0, m, grad_w.data(), /*add=*/row > 0);
  }
  std::vector<float> weight(m * k), weight_slabs(m * k);
  kernels::write_weight_gradient(p, grad_w.data(), 1, Element::f32, 0, m, weight.data());
  kernels::write_weight_gradient(p, grad_w_slabs.data(), 1, Element::f32, 0, m, weight_slabs.data());

  std::vector<double> z(rows * k), grad(rows * m), expected_w(m * k);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < k; ++c) {
      const double h =
          static_cast<float>(y[r * k + c]) * columns1[kScale * k_pitch + c] + columns1[kShift * k_pitch + c];
      z[r * k + c] = h > 0 ? round_to(element, h) : 0;
    }
    for (int64_t c = 0; c < m; ++c) {
      const double through = (v[r * m + c] - columns[kMean * m_pitch + c]) * columns[kXFactor * m_pitch + c] +
                             columns[kConstant * m_pitch + c];
      grad[r * m + c] = round_to(element, grad_v[r * m + c] + (moments ? through : 0));
    }
  }
  Difference in_v, in_moments, in_grad_z, in_sums_back, in_w, in_slabs;
  for (int64_t c = 0; c < m; ++c) {
    double sum = 0, deviations = 0;
    for (int64_t r = 0; r < rows; ++r) {
      double total = 0;
      for (int64_t i = 0; i < k; ++i) total += z[r * k + i] * w[c * k + i];
      in_v.add(out[r * m + c], total);
      sum += out[r * m + c];
    }
    for (int64_t r = 0; r < rows; ++r) deviations += std::pow(out[r * m + c] - sum / rows, 2);
    in_moments.add(mean[c], sum / rows), in_moments.add(var[c], deviations / rows);
  }
  for (int64_t c = 0; c < k; ++c) {
    double sum = 0, product = 0;
    for (int64_t r = 0; r < rows; ++r) {
      double total = 0;
      for (int64_t i = 0; i < m; ++i) total += grad[r * m + i] * w[i * k + c];
      in_grad_z.add(grad_z[r * k + c], total);
      const double masked = z[r * k + c] > 0 ? grad_z[r * k + c] : 0;
      sum += masked, product += masked * (y[r * k + c] - columns1[kMean * k_pitch + c]);
    }
    in_sums_back.add(sums_back[c], sum), in_sums_back.add(sums_back[k_pitch + c], product);
    in_sums_back.add(sums_again[c], sum), in_sums_back.add(sums_again[k_pitch + c], product);
    for (int64_t i = 0; i < m; ++i) {
      double total = 0;
      for (int64_t r = 0; r < rows; ++r) total += grad[r * m + i] * z[r * k + c];
      in_w.add(weight[i * k + c], total), in_slabs.add(weight_slabs[i * k + c], total);
    }
  }
  const double coarse = element == Element::f32 ? 2e-6 : 8e-3;
  const bool right = in_v.value() < coarse && in_grad_z.value() < coarse && in_moments.value() < 1e-5 &&
                     in_sums_back.value() < 1e-5 && in_w.value() < 1e-5 && in_slabs.value() < 1e-5;
  printf(
      "%s%s%s %ld x %ld -> %ld: v %.1e, its moments %.1e, grad_z %.1e, its sums %.1e, grad_w %.1e, in parts %.1e%s\n",
      element == Element::f32 ? "float32" : "bfloat16", tiles ? " tiles" : "", moments ? " moments" : "",
      static_cast<long>(rows), static_cast<long>(k), static_cast<long>(m), in_v.value(), in_moments.value(),
      in_grad_z.value(), in_sums_back.value(), in_w.value(), in_slabs.value(), right ? "" : "  WRONG");
  return right;
}

bool check_stem(Element element, bool tiles, bool moments, const StemShape& s) {
  const int64_t pitch = round_up(s.C, kBlock), pixels = s.N * s.H * s.W;
  Numbers x(element, pixels * 3, true), w(element, kStemTaps * s.C, true), u(element, pixels * s.C, false),
      grad_u(element, pixels * s.C, true), of_moments(element, pixels * s.C, true);
  std::vector<float> taps(kStemTaps * pitch), columns(kColumns * pitch), sums(2 * pitch), grad_w(kStemTaps * pitch);
  for (int t = 0; t < kStemTaps; ++t) {
    for (int64_t c = 0; c < s.C; ++c) taps[t * pitch + c] = static_cast<float>(w[t * s.C + c]);
  }
  for (int64_t c = 0; c < s.C; ++c) {
    for (const int row : {kMean, kXFactor, kConstant}) columns[row * pitch + c] = draw() / 4;
  }
  const Range range{0, s.N, 0, s.C};
  const auto scratch = [&] { return std::vector<float>(s.memory()); };
  kernels::stem_forward(element, tiles, s, range, x.data(), taps.data(), pitch, u.data(), columns.data(), sums.data(),
                        scratch().data());
  std::vector<float> row(s.W * pitch);
  kernels::stem_backward(element, tiles, s, range, grad_u.data(), of_moments.data(), moments ? columns.data() : nullptr,
                         x.data(), pitch, grad_w.data(), scratch().data(), row.data());

  Difference in_u, in_sums, in_w;
  for (int64_t c = 0; c < s.C; ++c) {
    double sum = 0, square = 0, expected_w[kStemTaps] = {};
    for (int64_t i = 0; i < pixels; ++i) {
      const int64_t n = i / (s.H * s.W), y = i / s.W % s.H, column = i % s.W, at = i * s.C + c;
      double value = 0, grad = grad_u[at];
      if (moments) {
        grad += (of_moments[at] - columns[kMean * pitch + c]) * columns[kXFactor * pitch + c] +
                columns[kConstant * pitch + c];
      }
      if (tiles) grad = round_to(element, grad);
      for (int t = 0; t < kStemTaps; ++t) {
        const int64_t iy = y + t / kStemRow - 1, ix = column + t % kStemRow / 3 - 1;
        if (iy < 0 || iy >= s.H || ix < 0 || ix >= s.W) continue;
        const double pixel = x[((n * s.H + iy) * s.W + ix) * 3 + t % 3];
        value += pixel * taps[t * pitch + c];
        expected_w[t] += pixel * grad;
      }
      in_u.add(u[at], value);
      const double offset = u[at] - columns[kMean * pitch + c];
      sum += offset, square += offset * offset;
    }
    in_sums.add(sums[c], sum), in_sums.add(sums[pitch + c], square);
    for (int t = 0; t < kStemTaps; ++t) in_w.add(grad_w[t * pitch + c], expected_w[t]);
  }
  const bool right = in_u.value() < (element == Element::f32 ? 2e-6 : 8e-3) && in_sums.value() < 1e-5 &&
                     in_w.value() < (tiles ? 1e-4 : 1e-5);  // a number at a tie may be rounded to the other side
  printf("%s%s%s stem %ld x %ld x %ld -> %ld: u %.1e, its sums %.1e, grad_w %.1e%s\n",
         element == Element::f32 ? "float32" : "bfloat16", tiles ? " tiles" : "", moments ? " moments" : "",
         static_cast<long>(s.N), static_cast<long>(s.H), static_cast<long>(s.W), static_cast<long>(s.C), in_u.value(),
         in_sums.value(), in_w.value(), right ? "" : "  WRONG");
  return right;
}

}  // namespace

// With an argument it also checks shapes that take long, and numbers far from 1.
int main(int num_arguments, char**) {
  bool right = true;
  for (const StemShape& s : {StemShape{1, 32, 1, 1}, {2, 64, 5, 7}, {3, 32, 9, 40}, {1, 32, 20, 32}, {2, 40, 3, 5}}) {
    for (const bool moments : {false, true}) {
      right &= check_stem(Element::f32, false, moments, s);
      right &= check_stem(Element::bf16, false, moments, s);
      if (s.C % kBlock == 0) right &= check_stem(Element::bf16, true, moments, s);
    }
  }
  const int64_t shapes[][3] = {{1, 1, 1}, {5, 3, 7}, {33, 40, 65}, {96, 64, 96}, {131, 129, 33}, {200, 300, 31}};
  for (const auto& s : shapes) {
    for (const bool moments : {false, true}) {
      for (const Element element : {Element::f32, Element::bf16}) {
        for (const bool tiles : {false, true}) right &= check(element, tiles, moments, s[0], s[1], s[2]);
      }
    }
  }
  if (num_arguments > 1) {
    for (const Element element : {Element::f32, Element::bf16}) {
      right &= check(element, true, true, 131, 65, 65, 0x1p40f);
      right &= check(element, true, true, 131, 65, 65, 0x1p-40f);
      right &= check(element, true, true, 161, 513, 513);  // W fills the L2 cache: larger tiles
      right &= check(element, false, true, 161, 513, 513);
    }
  }
  return right ? 0 : 1;
}
