#include "cuda/batch_norm_relu.cuh"
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
    T *z = static_cast<T*>(b.z), *v = static_cast<T*>(f.v);
    const int num_rows = static_cast<int>(moment_rows(M, O));
    if (launch_stream<Product::kForward, T>({y, pointwise, M, O, C, norm1, nullptr, z, v, f.v_rows, num_rows},
                                            tensor_cores, stream) > 0)
      return;
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
    if (z != nullptr) launch_norm_relu(y, z, M, C, known_norm(b.gamma1, b.beta1, b.eps, b.mean1, b.var1), stream);
  });
  return cudaGetLastError();
}

int64_t separable_block_backward_workspace(const DwShape& s, int64_t out_channels) {
  return 2 * aligned(s.C) + aligned(input_rows(s, out_channels) * 2 * s.C) +
         aligned(weight_parts(s, out_channels) * out_channels * s.C) + depthwise_block_backward_workspace(s);
}

namespace {
// Two kernels: the gradient in parts; their sum. norm1 is in `scale`.
template <class T>
void launch_grad_pointwise(const SeparableBackward& g, int M, int C, int O, bool tensor_cores, const float* scale,
                           float* parts, int64_t num_parts, cudaStream_t stream) {
  PointwiseArguments<T> a{};
  a.a = static_cast<const T*>(g.grad_v);
  a.b = static_cast<const T*>(g.block.y);
  a.M = O;
  a.N = C;
  a.K = M;
  a.rows = parts;
  a.scale = scale;
  a.shift = scale + aligned(C);
  launch_product<Product::kGradWeight>(a, tensor_cores, stream);
  const int64_t size = static_cast<int64_t>(O) * C;
  LAUNCH(sum_parts_kernel, dim3(ceil_div(size, kThreads)), dim3(kThreads), stream, parts, static_cast<int>(num_parts),
         size, g.grad_pointwise);
}
}  // namespace

// Three kernels: the gradient of norm1's output, masked, and its sums; the sweep; grad_u. Two more where grad_pointwise
// is wanted; one more, of norm1, there and where the product is not streamed.
cudaError_t separable_block_backward(Dtype dtype, const SeparableBackward& g, const DwShape& s, bool tensor_cores,
                                     cudaStream_t stream) {
  const int C = static_cast<int>(s.C), M = static_cast<int>(output_pixels(s)), O = static_cast<int>(g.out_channels);
  BlockBackward b = g.block;
  float* scale = g.workspace;
  PartialRows sums1{scale + 2 * aligned(C), static_cast<int>(input_rows(s, O))};
  float* parts = sums1.data + aligned(static_cast<int64_t>(sums1.count) * 2 * C);
  const int64_t num_parts = weight_parts(s, O);
  b.workspace = parts + aligned(num_parts * O * C);

  const Norm norm1 = known_norm(b.gamma1, b.beta1, b.eps, b.mean1, b.var1);
  with_type(dtype, [&](auto t) {
    using T = decltype(t);
    const T *grad_v = static_cast<const T*>(g.grad_v), *y = static_cast<const T*>(b.y);
    const T* pointwise = static_cast<const T*>(g.pointwise);
    T* grad_z = static_cast<T*>(const_cast<void*>(b.grad_z));
    const int streamed = launch_stream<Product::kGradInput, T>(
        {grad_v, pointwise, M, C, O, norm1, y, nullptr, grad_z, sums1.data, 0}, tensor_cores, stream);
    if (streamed == 0 || g.grad_pointwise != nullptr) launch_norm1(norm1, C, scale, stream);
    if (streamed > 0) {
      sums1.count = streamed;
    } else {
      PointwiseArguments<T> a{};
      a.a = grad_v;
      a.b = pointwise;
      a.M = M;
      a.N = C;
      a.K = O;
      a.y = y;
      a.out = grad_z;
      a.rows = sums1.data;
      a.scale = scale;
      a.shift = scale + aligned(C);
      a.mean = b.mean1;
      launch_product<Product::kGradInput>(a, tensor_cores, stream);
    }
    if (g.grad_pointwise != nullptr)
      launch_grad_pointwise<T>(g, M, C, O, tensor_cores, scale, parts, num_parts, stream);
  });
  return depthwise_sweep(dtype, b, sums1, s, stream);
}

}  // namespace fastcifar::cuda
