#include "cuda/batch_norm_relu.cuh"
#include "cuda/depthwise_plane.cuh"
#include "cuda/dwconv3x3_backward.cuh"
#include "cuda/dwconv3x3_forward.cuh"

namespace fastcifar::cuda {

namespace {
int64_t pixels(const DwShape& s) { return s.N * s.H * s.W; }
int64_t moments_of_y(const DwShape& s) { return (partial_rows<Pass::kForward>(s) + 1) * 3 * s.C; }
int64_t sums_of_sweep(const DwShape& s) {
  return (partial_rows<Pass::kFusedBackward>(s) + 1) * kQuantities<true> * s.C;
}
}  // namespace

int64_t depthwise_block_workspace(const DwShape& s) { return moments_of_y(s) + stream_workspace(pixels(s), s.C, 3); }

PartialRows depthwise_with_moments(Dtype dtype, const BlockForward& b, PartialRows u_rows, const DwShape& s,
                                   cudaStream_t stream) {
  with_type(dtype, [&](auto t) {
    using T = decltype(t);
    ForwardArguments<T> a{};
    a.x = static_cast<const T*>(b.u);
    a.w = b.w;
    a.y = static_cast<T*>(b.y);
    a.s = geometry(s);
    a.rows = b.workspace;
    a.norm.gamma = b.gamma0;
    a.norm.beta = b.beta0;
    a.norm.eps = b.eps;
    a.norm.mean = b.mean0;
    a.norm.var = b.var0;
    a.norm.known_mean = b.u_mean;
    a.norm.known_var = b.u_var;
    if (u_rows.data == nullptr && b.u_mean == nullptr)
      u_rows = launch_moments(a.x, pixels(s), s.C, b.workspace + moments_of_y(s), stream);
    a.norm.rows = u_rows.data;
    a.norm.num_rows = u_rows.count;
    launch_forward<Forward::kTrain>(a, s, stream);
  });
  return merge_moment_rows({b.workspace, partial_rows<Pass::kForward>(s)}, static_cast<int>(s.C), stream);
}

// One kernel on small maps; on others two with the statistics of u known, else three: moments of u; convolution and
// moments of y; z.
cudaError_t depthwise_block(Dtype dtype, const BlockForward& b, PartialRows u_rows, const DwShape& s,
                            cudaStream_t stream) {
  const bool done = with_plane(dtype, s, [&](auto t, auto plane) {
    using P = decltype(plane);
    LAUNCH_CLUSTERS((depthwise_plane_forward<decltype(t), P>), plane_blocks<P>(s.N), plane_grid<P>(s.N, s.C),
                    dim3(kPlaneThreads), stream, b, static_cast<int>(s.N), static_cast<int>(s.C));
  });
  if (done) return cudaGetLastError();
  const PartialRows rows = depthwise_with_moments(dtype, b, u_rows, s, stream);
  with_type(dtype, [&](auto t) {
    using T = decltype(t);
    launch_norm_relu(static_cast<const T*>(b.y), static_cast<T*>(b.z), output_pixels(s), s.C, norm1_of(b, rows),
                     stream);
  });
  return cudaGetLastError();
}

int64_t depthwise_block_backward_workspace(const DwShape& s) {
  return sums_of_sweep(s) + stream_workspace(output_pixels(s), s.C, 2);
}

namespace {
NormGrad norm1_of(const BlockBackward& b, const DwShape& s) {
  return norm_grad_of(b.gamma1, b.beta1, b.mean1, b.var1, b.eps, output_pixels(s), b.grad_gamma1, b.grad_beta1);
}
}  // namespace

// Merges the rows of a sweep, norm0's and grad_w's: the gradients of norm0's parameters, from them that of u's moments, and
// grad_w. grid: (channel blocks, norm0 and nine taps)
static __global__ void __launch_bounds__(kThreads)
    merge_sweep_kernel(const NormGrad norm0, int C, float* grad_w, const MomentsGradient u) {
  begin_kernel();
  if (blockIdx.y > 0) {
    write_grad_w<kMergeChannels>(norm0.rows, norm0.num_rows, norm0.stride, blockIdx.y - 1, C, grad_w);
    return;
  }
  const int own = threadIdx.x % kMergeChannels, c = blockIdx.x * kMergeChannels + own;
  // What is read here is on its way during the merge, behind whose barriers nothing would hide the wait.
  const float mean = c < C ? norm0.mean[c] : 0.f;
  constexpr int kStep = kThreads / kMergeChannels, kAhead = ceil_div(kMaxMomentRows, kStep);
  const int first = threadIdx.x / kMergeChannels;
  Moments moments[kAhead];
#pragma unroll
  for (int k = 0; k < kAhead; ++k) moments[k] = read_moments(u.rows, min(first + k * kStep, u.count - 1), c, C);
  SHARED_ARRAY(float, scale, kMergeChannels);
  SHARED_ARRAY(float, shift, kMergeChannels);
  SHARED_ARRAY(float, slope, kMergeChannels);
  SHARED_ARRAY(float, offset, kMergeChannels);
  resolve<kMergeChannels>(norm0, C, scale, shift, slope, offset);
  const auto write = [&](int i, const Moments& m) {
    if (i >= u.count) return;
    const float through = fmaf(m.mean - mean, slope[own], offset[own]);
    write_moments(u.grad_rows, i, c, C, {0.f, m.count * through, 0.5f * slope[own]});
  };
#pragma unroll
  for (int k = 0; k < kAhead; ++k) write(first + k * kStep, moments[k]);
  for (int i = first + kAhead * kStep; i < u.count; i += kStep) write(i, read_moments(u.rows, i, c, C));
}

cudaError_t depthwise_sweep(Dtype dtype, const BlockBackward& b, PartialRows sums1, const MomentsGradient& of_u,
                            const DwShape& s, cudaStream_t stream) {
  with_type(dtype, [&](auto t) {
    using T = decltype(t);
    const T* u = static_cast<const T*>(b.u);
    T* grad_u = static_cast<T*>(b.grad_u);
    BackwardArguments<T> a{};
    a.grad = static_cast<const T*>(b.grad_z);
    a.x = u;
    a.y = static_cast<const T*>(b.y);
    a.w = b.w;
    a.grad_x = grad_u;
    a.rows = b.workspace;
    a.s = geometry(s);
    a.norm1 = norm1_of(b, s);
    a.norm1.rows = sums1.data;
    a.norm1.num_rows = sums1.count;
    a.gamma0 = b.gamma0;
    a.beta0 = b.beta0;
    a.mean0 = b.mean0;
    a.var0 = b.var0;
    a.eps = b.eps;
    launch_backward<true>(a, s, stream);

    const int C = static_cast<int>(s.C);
    PartialRows sums0{b.workspace, partial_rows<Pass::kFusedBackward>(s)};
    const bool is_apart = of_u.grad_rows != nullptr;
    if (!is_apart) sums0 = merge_sum_rows(sums0, kQuantities<true>, C, stream);
    NormGrad norm0 = norm_grad_of(b.gamma0, b.beta0, b.mean0, b.var0, b.eps, pixels(s), b.grad_gamma0, b.grad_beta0);
    norm0.rows = sums0.data;
    norm0.num_rows = sums0.count;
    norm0.stride = kQuantities<true>;
    norm0.first = 9;
    if (is_apart)
      LAUNCH(merge_sweep_kernel, dim3(ceil_div(C, kMergeChannels), 10), dim3(kThreads), stream, norm0, C, b.grad_w,
             of_u);
    else
      launch_norm_backward<true>(grad_u, u, grad_u, pixels(s), s.C, norm0, b.grad_w, stream);
  });
  return cudaGetLastError();
}

// One kernel on small maps; on others three: norm1's sums; the sweep; norm0's gradient, in place, while its sums and
// grad_w are merged.
cudaError_t depthwise_block_backward(Dtype dtype, const BlockBackward& b, const DwShape& s, cudaStream_t stream) {
  const bool done = with_plane(dtype, s, [&](auto t, auto plane) {
    using P = decltype(plane);
    LAUNCH_CLUSTERS((depthwise_plane_backward<decltype(t), P>), plane_blocks<P>(s.N), plane_grid<P>(s.N, s.C),
                    dim3(kPlaneThreads), stream, b, static_cast<int>(s.N), static_cast<int>(s.C));
  });
  if (done) return cudaGetLastError();
  PartialRows sums1{};
  with_type(dtype, [&](auto t) {
    using T = decltype(t);
    sums1 = launch_norm_relu_sums(static_cast<const T*>(b.grad_z), static_cast<const T*>(b.y), output_pixels(s), s.C,
                                  norm1_of(b, s), b.workspace + sums_of_sweep(s), stream);
  });
  return depthwise_sweep(dtype, b, sums1, {}, s, stream);
}

}  // namespace fastcifar::cuda
