#include <algorithm>
#include <vector>

#include "cuda/device.cuh"

namespace fastcifar::cuda {

namespace {

// Tensors of one launch: a kernel's arguments are at most 4 KB. The network has 83.
constexpr int kSgdTensors = 88;
constexpr int kAtOnce = 4;                         // vectors of each input that a thread has on their way
constexpr int kSgdChunk = kThreads * 4 * kAtOnce;  // elements of a block

struct SgdTable {
  float* param[kSgdTensors];
  const void* grad[kSgdTensors];
  float* momentum[kSgdTensors];
  void* rounded[kSgdTensors];
  int size[kSgdTensors];
  float decay[kSgdTensors];
  uint16_t first_block[kSgdTensors];
  bool narrow_grad[kSgdTensors];
  int count;
  SgdSettings settings;
};
static_assert(sizeof(SgdTable) <= 4096, "a kernel's arguments");

// Elements begin + threadIdx.x * V, and so on, below end. The arithmetic is that of torch.optim.SGD on the CPU.
template <int V, class G, class H>
__device__ __forceinline__ void update(const SgdTensor& t, const SgdSettings& s, int begin, int end) {
  const float step = -*s.lr, scale = s.grad_scale != nullptr ? *s.grad_scale : 1.f;
  const auto* grads = static_cast<const G*>(t.grad);
  for (int first = begin + static_cast<int>(threadIdx.x) * V; first < end; first += kAtOnce * kThreads * V) {
    Pack<float, V> ps[kAtOnce], ms[kAtOnce];
    Pack<G, V> gs[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int i = first + k * kThreads * V;
      ps[k] = load_if<V>(t.param + i, i < end);
      gs[k] = load_if<V>(grads + i, i < end);
      ms[k] = load_if<V>(t.momentum + i, i < end && t.momentum != nullptr);
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int i = first + k * kThreads * V;
      if (i >= end) break;
      float p[V], g[V], m[V];
      unpack(ps[k], p);
      unpack(gs[k], g);
      unpack(ms[k], m);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        if (s.grad_scale != nullptr) g[v] /= scale;
        if (t.decay != 0.f) g[v] = fmaf(p[v], t.decay, g[v]);
        if (t.momentum != nullptr) {
          m[v] = __fadd_rn(__fmul_rn(m[v], s.momentum), g[v]);
          g[v] = s.nesterov ? fmaf(m[v], s.momentum, g[v]) : m[v];
        }
        p[v] = fmaf(g[v], step, p[v]);
      }
      if (t.momentum != nullptr) store<V>(t.momentum + i, m);
      store<V>(t.param + i, p);
      if (t.rounded != nullptr) store<V>(static_cast<H*>(t.rounded) + i, p);
    }
  }
}

template <class G, class H>
__device__ __forceinline__ void update_chunk(const SgdTensor& t, const SgdSettings& s, int begin, int end) {
  const auto addresses = reinterpret_cast<uintptr_t>(t.param) | reinterpret_cast<uintptr_t>(t.grad) |
                         reinterpret_cast<uintptr_t>(t.momentum) | reinterpret_cast<uintptr_t>(t.rounded);
  const int whole = addresses % 16 == 0 ? begin + (end - begin) / 4 * 4 : begin;
  update<4, G, H>(t, s, begin, whole);
  update<1, G, H>(t, s, whole, end);
}

}  // namespace

// A block for each kSgdChunk elements of a tensor. H: the type of the rounded copies.
template <class H>
__global__ void __launch_bounds__(kThreads) sgd_kernel(const SgdTable table) {
  begin_kernel();
  if (table.settings.found_inf != nullptr && *table.settings.found_inf != 0.f) return;
  SHARED_ARRAY(int, mine, 1);
  const int i = threadIdx.x, block = blockIdx.x;
  if (i < table.count && table.first_block[i] <= block && (i + 1 == table.count || block < table.first_block[i + 1]))
    mine[0] = i;
  __syncthreads();
  const int k = mine[0];
  const SgdTensor t{table.param[k], table.grad[k],  table.momentum[k],   table.rounded[k],
                    table.size[k],  table.decay[k], table.narrow_grad[k]};
  const int begin = (block - table.first_block[k]) * kSgdChunk;
  const int end = min(begin + kSgdChunk, static_cast<int>(t.size));
  t.narrow_grad ? update_chunk<H, H>(t, table.settings, begin, end)
                : update_chunk<float, H>(t, table.settings, begin, end);
}

cudaError_t sgd(Dtype narrow, const std::vector<SgdTensor>& tensors, const SgdSettings& settings, cudaStream_t stream) {
  SgdTable table{};
  table.settings = settings;
  int blocks = 0;
  const auto flush = [&] {
    if (blocks == 0) return;
    if (narrow == Dtype::kFloat16)
      LAUNCH(sgd_kernel<fp16>, dim3(blocks), dim3(kThreads), stream, table);
    else
      LAUNCH(sgd_kernel<bf16>, dim3(blocks), dim3(kThreads), stream, table);
    table.count = blocks = 0;
  };
  for (const SgdTensor& t : tensors) {
    const int wanted = ceil_div(t.size, kSgdChunk);
    if (table.count == kSgdTensors || blocks + wanted > 65535) flush();
    const int k = table.count++;
    table.param[k] = t.param;
    table.grad[k] = t.grad;
    table.momentum[k] = t.momentum;
    table.rounded[k] = t.rounded;
    table.size[k] = static_cast<int>(t.size);
    table.decay[k] = t.decay;
    table.first_block[k] = static_cast<uint16_t>(blocks);
    table.narrow_grad[k] = t.narrow_grad;
    blocks += wanted;
  }
  flush();
  return cudaGetLastError();
}

}  // namespace fastcifar::cuda
