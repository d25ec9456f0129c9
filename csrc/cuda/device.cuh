// What every kernel needs: vector loads and stores of the three element types, and the macros that differ between nvcc
// and the host emulation (tests/emu/cuda_emu.h), which runs these same sources without a GPU.
#pragma once
#include <type_traits>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define SHARED_ARRAY(type, name, count) __shared__ __align__(16) type name[count]
// One `type` of more shared memory than a kernel may declare: the one that LAUNCH_LARGE names.
#define LARGE_SHARED(type, name)                           \
  extern __shared__ __align__(16) unsigned char name##_[]; \
  type* const name = reinterpret_cast<type*>(name##_)
#define IN_BLOCK(name, rank) ::fastcifar::cuda::in_block((name), (rank))
#define LAUNCH(kernel, grid, block, stream, ...) \
  ::fastcifar::cuda::launch((kernel), 1, 0, (grid), (block), (stream), __VA_ARGS__)
#define LAUNCH_CLUSTERS(kernel, cluster, grid, block, stream, ...) \
  ::fastcifar::cuda::launch((kernel), (cluster), 0, (grid), (block), (stream), __VA_ARGS__)
#define LAUNCH_LARGE(kernel, cluster, type, grid, block, stream, ...) \
  ::fastcifar::cuda::launch((kernel), (cluster), sizeof(type), (grid), (block), (stream), __VA_ARGS__)
#else
#include "cuda_emu.h"
#endif

#include "cuda/launch.h"

namespace fastcifar::cuda {

inline constexpr int kThreads = 256;
// Of a cluster whose blocks reduce: the most that is portable.
inline constexpr int kClusterBlocks = 8;
// As many blocks in clusters as run at a time where an SM holds two: of 264 such places an H200 gives 240 to clusters of
// eight. Of 256 blocks the last 16 took as long again.
inline constexpr int kClusteredBlocks = 240;
// Nobody launches a kernel that needs clusters of `blocks` where they are not possible: there is nothing to compile. See
// most_cluster_blocks.
FC_HD constexpr bool has_clusters([[maybe_unused]] int blocks = kClusterBlocks) {
#if defined(__CUDA_ARCH__)
  return __CUDA_ARCH__ >= 900 && (blocks <= kClusterBlocks || __CUDA_ARCH__ < 1100);
#else
  return true;
#endif
}
// Channels a block works on: a pixel's 64 bytes of bf16 are two full memory sectors.
inline constexpr int kBlockChannels = 32;

FC_HD constexpr int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

// To be called by every kernel first, before it touches device memory. From Hopper on the blocks of a kernel start
// while the kernel before it in the stream, or in the captured graph, still runs. Here they wait until it has ended and
// its results can be read; then the blocks of the kernel behind may start.
__device__ __forceinline__ void begin_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// From Hopper on blocks that follow each other along y can form a cluster: they run at the same time, and read each
// other's shared memory. The rank of a block is blockIdx.y % cluster_blocks(). A barrier of the cluster has two halves;
// what a block wrote before it arrives, the others may read when they have waited. A block must not end while others
// may still read its memory. On older GPUs a block is a cluster of its own.
#if defined(__CUDACC__)
__device__ __forceinline__ int cluster_blocks() {
  unsigned blocks = 1;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
#endif
  return static_cast<int>(blocks);
}

// Only shared memory is made visible, where nvcc knows how (12.8 and later): the barrier's own release waits until all
// of the thread's stores to device memory have reached the L2, which took a microsecond and more.
__device__ __forceinline__ void arrive_at_cluster() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (cluster_blocks() == 1) return;
#if __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1208
  asm volatile("fence.release.sync_restrict::shared::cta.cluster;" ::: "memory");
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
#else
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
#endif
}
__device__ __forceinline__ void wait_for_cluster() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (cluster_blocks() == 1)
    __syncthreads();
  else
    asm volatile("barrier.cluster.wait;" ::: "memory");
#endif
}

// A shared array of this block, as the block of that rank in the cluster has it.
template <class T>
__device__ __forceinline__ const T* in_block(T* array, int rank) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  return static_cast<const T*>(__cluster_map_shared_rank(array, rank));
#else
  return array;
#endif
}

// The most blocks that form a cluster on the current device, 1 if there are no clusters. More than 8 are not portable: the
// large chips of capability 9 and 10 take 16.
inline int most_cluster_blocks() {
  int device = 0, major = 0, minor = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess)
    return 1;
  for (const int arch : {__CUDA_ARCH_LIST__})
    if (arch >= 900 && arch <= major * 100 + minor * 10) return major <= 10 ? 16 : 8;
  return 1;
}
// Whether the code that the current device runs was compiled for Hopper or later: it has clusters, and begin_kernel's
// instructions, without which a kernel that starts early would not wait.
inline bool is_from_hopper_on() { return most_cluster_blocks() > 1; }

// Whether a block of the current device may have so many bytes of shared memory.
inline bool has_shared_memory(int bytes) {
  int device = 0, most = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess && bytes <= most;
}

// cluster: the number of blocks along y that form one. large_shared: bytes of LARGE_SHARED.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int cluster, int large_shared, dim3 grid, dim3 block, cudaStream_t stream,
            Arguments... arguments) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.y = cluster;
  attributes[1].val.clusterDim.x = attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = large_shared;
  config.stream = stream;
  config.attrs = attributes;
  if (cluster > kClusterBlocks) cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  config.numAttrs = !is_from_hopper_on() ? 0 : cluster > 1 ? 2 : 1;
  if (large_shared > 0) cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, large_shared);
  cudaLaunchKernelEx(&config, kernel, arguments...);
}
#endif

// How many of the blocks along y that reduce form a cluster, which writes one row of partial results.
inline int blocks_a_row(int blocks) { return is_from_hopper_on() && blocks >= kClusterBlocks ? kClusterBlocks : 1; }
// At most `blocks`, in whole clusters.
inline int whole_rows(int blocks) { return blocks / blocks_a_row(blocks) * blocks_a_row(blocks); }

// T as a float, and back, with the hardware's own conversions where the target has them.
__device__ __forceinline__ float load_f32(float v) { return v; }
__device__ __forceinline__ float load_f32(bf16 v) { return to_f32(v); }
__device__ __forceinline__ float load_f32(fp16 v) {
#if defined(__CUDA_ARCH__)
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));
  return f;
#else
  return to_f32(v);
#endif
}

template <class T>
__device__ __forceinline__ T round_to(float v) {
  return from_f32<T>(v);
}
#if defined(__CUDA_ARCH__)
template <>
__device__ __forceinline__ fp16 round_to<fp16>(float v) {
  fp16 h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(v));
  return h;
}
#if __CUDA_ARCH__ >= 800
template <>
__device__ __forceinline__ bf16 round_to<bf16>(float v) {
  bf16 h;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h.bits) : "f"(v));
  return h;
}
#endif
#endif

// NaN stays NaN, as in torch.relu: a plain maximum would turn a diverged run's activations into zeros.
__device__ __forceinline__ float relu(float v) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  float r;
  asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(r) : "f"(v));
  return r;
#else
  return v <= 0.f ? 0.f : v;
#endif
}

// V neighbouring elements, one memory access of up to 16 bytes, or several. They stay whole words until they are used: as
// single elements the compiler takes them apart where they are loaded, and so waits for them there.
template <class T, int V>
struct alignas(sizeof(T) * V < 16 ? sizeof(T) * V : 16) Pack {
  using Word = std::conditional_t<sizeof(T) * V % 4 == 0, uint32_t, uint16_t>;
  static constexpr int kOfWord = sizeof(Word) / sizeof(T);  // elements
  Word words[V / kOfWord];
};

// The first (0) or second (1) element of a word.
template <class T>
__device__ __forceinline__ float element_of(uint32_t word, int which) {
  if constexpr (std::is_same_v<T, bf16>)
    return float_of(which == 0 ? word << 16 : word & 0xffff0000u);
  else
    return load_f32(T{static_cast<uint16_t>(word >> (16 * which))});
}

template <int V, class T>
__device__ __forceinline__ void unpack(const Pack<T, V>& pack, float (&v)[V]) {
#pragma unroll
  for (int i = 0; i < V; ++i) {
    if constexpr (sizeof(T) == 4)
      v[i] = float_of(pack.words[i]);
    else if constexpr (pack.kOfWord == 2)
      v[i] = element_of<T>(pack.words[i / 2], i % 2);
    else
      v[i] = load_f32(T{pack.words[i]});
  }
}

template <int V, class T>
__device__ __forceinline__ void load(const T* p, float (&v)[V]) {
  unpack(*reinterpret_cast<const Pack<T, V>*>(p), v);
}

// Loads V elements, or zeros where `inside` is false. It compiles to a predicate and not to a branch, so that a thread
// can have many loads under way.
template <int V, class T>
__device__ __forceinline__ Pack<T, V> load_if(const T* p, bool inside) {
  Pack<T, V> pack;
#if defined(__CUDA_ARCH__)
  constexpr int kBytes = sizeof(T) * V;
  if constexpr (kBytes <= 4) {
    pack.words[0] = 0;
    if (inside) pack.words[0] = *reinterpret_cast<const typename Pack<T, V>::Word*>(p);
  } else if constexpr (kBytes == 8) {
    uint2 raw = make_uint2(0, 0);
    if (inside) raw = *reinterpret_cast<const uint2*>(p);
    memcpy(&pack, &raw, kBytes);
  } else {
    static_assert(kBytes == 16, "one access");
    uint4 raw = make_uint4(0, 0, 0, 0);
    if (inside) raw = *reinterpret_cast<const uint4*>(p);
    memcpy(&pack, &raw, kBytes);
  }
#else
  if (inside)
    pack = *reinterpret_cast<const Pack<T, V>*>(p);
  else
    memset(&pack, 0, sizeof pack);
#endif
  return pack;
}

// Two elements as a word: a single conversion to bfloat16 runs at a quarter of the rate.
template <class T>
__device__ __forceinline__ uint32_t round_pair(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t both;
  if constexpr (std::is_same_v<T, bf16>)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(b), "f"(a));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(b), "f"(a));
  return both;
#else
  return round_to<T>(a).bits | static_cast<uint32_t>(round_to<T>(b).bits) << 16;
#endif
}

// v, rounded to T.
template <class T, int V>
__device__ __forceinline__ Pack<T, V> rounded(const float (&v)[V]) {
  Pack<T, V> pack;
#pragma unroll
  for (int i = 0; i < V; i += pack.kOfWord) {
    if constexpr (sizeof(T) == 4)
      pack.words[i] = bits_of(v[i]);
    else if constexpr (pack.kOfWord == 2)
      pack.words[i / 2] = round_pair<T>(v[i], v[i + 1]);
    else
      pack.words[i] = round_to<T>(v[i]).bits;
  }
  return pack;
}

// Rounds v to T in place, and stores it.
template <int V, class T>
__device__ __forceinline__ void store(T* p, float (&v)[V]) {
  const Pack<T, V> pack = rounded<T>(v);
  unpack(pack, v);
  *reinterpret_cast<Pack<T, V>*>(p) = pack;
}

// v, or zero. Never a branch around what computes v: the load behind it would not be under way before the branch.
__device__ __forceinline__ float kept_if(float v, bool is_kept) { return float_of(bits_of(v) & (is_kept ? ~0u : 0u)); }

// Hides v from the optimizer, so that what depends on it is computed in each turn of a loop: kept from turn to turn, sums
// with v fill the registers.
template <class I>
__device__ __forceinline__ void hide_value(I& v) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(v));
#else
  (void)v;
#endif
}

// base + offset bytes. Making a 32-bit offset costs one instruction, and adding it to a kernel argument two (SASS, sm_90);
// 64-bit indexing took a third of the depthwise kernels' instructions. This is why tensors must be smaller than 4 GiB.
template <class T>
__device__ __forceinline__ const T* at_byte(const T* base, uint32_t offset) {
  return reinterpret_cast<const T*>(reinterpret_cast<const char*>(base) + offset);
}
template <class T>
__device__ __forceinline__ T* at_byte(T* base, uint32_t offset) {
  return reinterpret_cast<T*>(reinterpret_cast<char*>(base) + offset);
}

// How a block's threads share its channels: neighbouring threads take neighbouring groups of V channels; the threads of
// one group are its lanes.
template <int V, int THREADS = kThreads, int CHANNELS = kBlockChannels>
struct Lanes {
  static constexpr int kGroups = CHANNELS / V;
  static constexpr int kCount = THREADS / kGroups;
  int lane, channel;  // channel: the first of this thread's V within the block's
  __device__ __forceinline__ Lanes()
      : lane(static_cast<int>(threadIdx.x) / kGroups), channel(static_cast<int>(threadIdx.x) % kGroups * V) {}
};

// Calls f with a value of the element type.
template <class F>
void with_type(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::kFloat32: return f(float());
    case Dtype::kBFloat16: return f(bf16());
    case Dtype::kFloat16: return f(fp16());
  }
}

}  // namespace fastcifar::cuda
