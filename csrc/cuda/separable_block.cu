#include "cuda/pointwise.cuh"

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

// Three kernels, the statistics of u known: convolution and moments of y; norm1; product and moments of v.
cudaError_t separable_block(Dtype dtype, const SeparableForward& f, const DwShape& s, bool tensor_cores,
                            cudaStream_t stream) {
  const int C = static_cast<int>(s.C);
  BlockForward b = f.block;
  b.workspace = f.workspace + 2 * aligned(C);
  const PartialRows rows = depthwise_with_moments(dtype, b, f.u_rows, s, stream);
  launch_norm1(norm1_of(b, rows), C, f.workspace, stream);
  with_type(dtype, [&](auto t) {
    using T = decltype(t);
    PointwiseArguments<T> a{};
    a.a = static_cast<const T*>(b.y);
    a.b = static_cast<const T*>(f.pointwise);
    a.M = static_cast<int>(output_pixels(s));
    a.N = static_cast<int>(f.out_channels);
    a.K = C;
    a.out = static_cast<T*>(f.v);
    a.rows = f.v_rows;
    a.scale = f.workspace;
    a.shift = f.workspace + aligned(C);
    launch_product<Product::kForward>(a, tensor_cores, stream);
  });
  return cudaGetLastError();
}

int64_t separable_block_backward_workspace(const DwShape& s, int64_t out_channels) {
  return 2 * aligned(s.C) + aligned(input_rows(s, out_channels) * 2 * s.C) +
         aligned(weight_parts(s, out_channels) * out_channels * s.C) + depthwise_block_backward_workspace(s);
}

// Six kernels: norm1; gradient of norm1's output, masked, and its sums; grad_pointwise, in parts and summed; the sweep;
// grad_u.
cudaError_t separable_block_backward(Dtype dtype, const SeparableBackward& g, const DwShape& s, bool tensor_cores,
                                     cudaStream_t stream) {
  const int C = static_cast<int>(s.C), M = static_cast<int>(output_pixels(s)), O = static_cast<int>(g.out_channels);
  BlockBackward b = g.block;
  float* scale = g.workspace;
  const PartialRows sums1{scale + 2 * aligned(C), static_cast<int>(input_rows(s, O))};
  float* parts = sums1.data + aligned(static_cast<int64_t>(sums1.count) * 2 * C);
  const int64_t num_parts = weight_parts(s, O), size = static_cast<int64_t>(O) * C;
  b.workspace = parts + aligned(num_parts * size);

  Norm norm1{};
  norm1.gamma = b.gamma1;
  norm1.beta = b.beta1;
  norm1.eps = b.eps;
  norm1.known_mean = b.mean1;
  norm1.known_var = b.var1;
  launch_norm1(norm1, C, scale, stream);
  with_type(dtype, [&](auto t) {
    using T = decltype(t);
    PointwiseArguments<T> a{};
    a.a = static_cast<const T*>(g.grad_v);
    a.b = static_cast<const T*>(g.pointwise);
    a.M = M;
    a.N = C;
    a.K = O;
    a.y = static_cast<const T*>(b.y);
    a.out = static_cast<T*>(const_cast<void*>(b.grad_z));
    a.rows = sums1.data;
    a.scale = scale;
    a.shift = scale + aligned(C);
    a.mean = b.mean1;
    launch_product<Product::kGradInput>(a, tensor_cores, stream);
    a.b = a.y;
    a.M = O;
    a.N = C;
    a.K = M;
    a.rows = parts;
    launch_product<Product::kGradWeight>(a, tensor_cores, stream);
  });
  LAUNCH(sum_parts_kernel, dim3(ceil_div(size, kThreads)), dim3(kThreads), stream, parts, static_cast<int>(num_parts),
         size, g.grad_pointwise);
  return depthwise_sweep(dtype, b, sums1, s, stream);
}

}  // namespace fastcifar::cuda
