#include "cuda/batch_norm_relu.cuh"
#include "cuda/pointwise_backward.cuh"
#include "cuda/pointwise_stream.cuh"

namespace fastcifar::cuda {

namespace {

// Rounds up a number of floats, so that the next part of the workspace begins on 16 bytes.
int64_t aligned(int64_t floats) { return (floats + 3) / 4 * 4; }

// scale and shift of norm1 into the workspace.
void launch_norm1(const Norm& norm, int C, float* scale, cudaStream_t stream) {
  LAUNCH(norm_kernel, dim3(ceil_div(C, kBlockChannels)), dim3(kThreads), stream, norm, C, scale, scale + aligned(C));
}

int64_t weight_parts(const DwShape& s, int64_t out_channels) {
  return product_plan(Product::kGradWeight, out_channels, s.C, output_pixels(s)).parts;
}
int64_t input_rows(const DwShape& s, int64_t out_channels) {
  return product_plan(Product::kGradInput, output_pixels(s), s.C, out_channels).rows;
}

}  // namespace

int64_t separable_block_workspace(const DwShape& s) { return 2 * aligned(s.C) + depthwise_block_workspace(s); }

// Two kernels, the statistics of u known: convolution and moments of y; product and moments of v. Where the product is
// not streamed, a kernel for norm1 lies between them.
cudaError_t separable_block(Dtype dtype, const SeparableForward& f, const DwShape& s, bool tensor_cores,
                            cudaStream_t stream) {
  const int C = static_cast<int>(s.C), M = static_cast<int>(output_pixels(s)), O = static_cast<int>(f.out_channels);
  BlockForward b = f.block;
  b.workspace = f.workspace + 2 * aligned(C);
  const Norm norm1 = norm1_of(b, depthwise_with_moments(dtype, b, f.u_rows, s, stream));
  with_type(dtype, [&](auto t) {
    using T = decltype(t);
    const T *y = static_cast<const T*>(b.y), *pointwise = static_cast<const T*>(f.pointwise);
    T* v = static_cast<T*>(f.v);
    const int num_rows = static_cast<int>(moment_rows(M, O));
    if (launch_stream<T>({y, pointwise, M, O, C, norm1, v, f.v_rows, num_rows}, tensor_cores, stream)) return;
    launch_norm1(norm1, C, f.workspace, stream);
    PointwiseArguments<T> a{};
    a.a = y;
    a.b = pointwise;
    a.M = M;
    a.N = O;
    a.K = C;
    a.out = v;
    a.rows = f.v_rows;
    a.scale = f.workspace;
    a.shift = f.workspace + aligned(C);
    launch_product<Product::kForward>(a, tensor_cores, stream);
  });
  return cudaGetLastError();
}

namespace {
// Whether one kernel takes both products of the backward.
bool is_in_one(Dtype dtype, int64_t O, int64_t C, bool tensor_cores) {
  return tensor_cores && dtype != Dtype::kFloat32 && backward_rows(1, O, C) > 0;
}
}  // namespace

int64_t separable_block_backward_workspace(Dtype dtype, const DwShape& s, int64_t out_channels, bool tensor_cores) {
  const int64_t rows = backward_rows(output_pixels(s), out_channels, s.C) + 1;  // the last one: the sums of all
  const int64_t in_one = rows * (out_channels + 2) * s.C;
  const int64_t apart = 2 * aligned(s.C) + aligned(input_rows(s, out_channels) * 2 * s.C) +
                        aligned(weight_parts(s, out_channels) * out_channels * s.C);
  const bool one = is_in_one(dtype, out_channels, s.C, tensor_cores);
  return (one ? aligned(in_one) : apart + aligned(output_pixels(s) * out_channels)) +
         depthwise_block_backward_workspace(s);
}

namespace {
// Adds up rows of partial results: the first `size` columns are the gradient of the pointwise weight.
void launch_sum_rows(const SeparableBackward& g, const float* rows, int count, int64_t width, int64_t size, float* sums,
                     cudaStream_t stream) {
  with_type(g.pointwise_dtype, [&](auto t) {
    using T = decltype(t);
    const auto launch = [&](auto v) {
      constexpr int V = decltype(v)::value;
      LAUNCH((sum_rows_kernel<V, T>), dim3(ceil_div(width, kSumThreads * V)), dim3(kThreads), stream, rows, count,
             static_cast<int>(width), static_cast<int>(size), static_cast<T*>(g.grad_pointwise), sums);
    };
    width % 4 == 0 ? launch(std::integral_constant<int, 4>()) : launch(std::integral_constant<int, 1>());
  });
}

// Both products, with norm1's sums, into grad_z. Returns the sums.
template <class T>
PartialRows launch_in_one(const SeparableBackward& g, const Norm& norm1, int M, int C, int O, cudaStream_t stream) {
  const int blocks = backward_rows(M, O, C);
  with_backward_tile(O, C, [&](auto tile) {
    using Tile = decltype(tile);
    PointwiseBackwardArguments<T> a{};
    a.grad_v = static_cast<const T*>(g.grad_v);
    a.y = static_cast<const T*>(g.block.y);
    a.w = static_cast<const T*>(g.pointwise);
    a.of_v = g.of_v;
    a.M = M;
    a.O = O;
    a.C = C;
    a.norm = norm1;
    a.grad_z = static_cast<T*>(const_cast<void*>(g.block.grad_z));
    a.rows = g.workspace;
    if (g.of_v.rows != nullptr)
      LAUNCH((pointwise_backward_kernel<T, Tile, true>), dim3(blocks), dim3(Tile::kThreads), stream, a);
    else
      LAUNCH((pointwise_backward_kernel<T, Tile, false>), dim3(blocks), dim3(Tile::kThreads), stream, a);
    return 0;
  });
  const int64_t size = static_cast<int64_t>(O) * C, width = size + 2 * C;
  float* sums = g.workspace + blocks * width;
  launch_sum_rows(g, g.workspace, blocks, width, size, sums, stream);
  return {sums, 1};
}

// The products apart: norm1; grad_z, masked, with norm1's sums; the gradient of the weight in parts; their sum. Before
// them, where something comes through the moments of v, the whole gradient of v.
template <class T>
PartialRows launch_apart(const SeparableBackward& g, const Norm& norm1, int M, int C, int O, int num_rows,
                         int num_parts, bool tensor_cores, cudaStream_t stream) {
  float *scale = g.workspace, *shift = scale + aligned(C), *sums = shift + aligned(C);
  float* parts = sums + aligned(static_cast<int64_t>(num_rows) * 2 * C);
  const int64_t size = static_cast<int64_t>(O) * C;
  const T* grad_v = static_cast<const T*>(g.grad_v);
  if (g.of_v.rows != nullptr) {
    T* whole = reinterpret_cast<T*>(parts + aligned(num_parts * size));
    launch_whole_gradient(grad_v, g.of_v, whole, M, O, stream);
    grad_v = whole;
  }
  launch_norm1(norm1, C, scale, stream);
  PointwiseArguments<T> a{};
  a.a = grad_v;
  a.b = static_cast<const T*>(g.pointwise);
  a.M = M;
  a.N = C;
  a.K = O;
  a.y = static_cast<const T*>(g.block.y);
  a.out = static_cast<T*>(const_cast<void*>(g.block.grad_z));
  a.rows = sums;
  a.scale = scale;
  a.shift = shift;
  a.mean = g.block.mean1;
  launch_product<Product::kGradInput>(a, tensor_cores, stream);
  a.b = a.y;
  a.M = O;
  a.K = M;
  a.rows = parts;
  launch_product<Product::kGradWeight>(a, tensor_cores, stream);
  launch_sum_rows(g, parts, num_parts, size, size, nullptr, stream);
  return {sums, num_rows};
}
}  // namespace

// Five kernels, where one takes both products: it; the sums of its rows; the sweep; the sums of its rows; grad_u. The
// last is not needed where u's moments have a gradient of their own.
cudaError_t separable_block_backward(Dtype dtype, const SeparableBackward& g, const DwShape& s, bool tensor_cores,
                                     cudaStream_t stream) {
  const int C = static_cast<int>(s.C), M = static_cast<int>(output_pixels(s)), O = static_cast<int>(g.out_channels);
  BlockBackward b = g.block;
  const Norm norm1 = known_norm(b.gamma1, b.beta1, b.eps, b.mean1, b.var1);
  b.workspace = g.workspace + separable_block_backward_workspace(dtype, s, O, tensor_cores) -
                depthwise_block_backward_workspace(s);
  PartialRows sums1{};
  with_type(dtype, [&](auto t) {
    using T = decltype(t);
    if constexpr (sizeof(T) == 2) {
      if (is_in_one(dtype, O, C, tensor_cores)) {
        sums1 = launch_in_one<T>(g, norm1, M, C, O, stream);
        return;
      }
    }
    sums1 = launch_apart<T>(g, norm1, M, C, O, static_cast<int>(input_rows(s, O)), static_cast<int>(weight_parts(s, O)),
                            tensor_cores, stream);
  });
  return depthwise_sweep(dtype, b, sums1, g.of_u, s, stream);
}

}  // namespace fastcifar::cuda
