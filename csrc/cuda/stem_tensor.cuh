// The first convolution and its weight's gradient on tensor cores: for 16-bit types whose rows are whole 16-byte
// vectors, a weight of that type and images of even width.
//
// A block owns 32 channels and goes from tile to tile. While it works on a tile, the next one is on its way to
// registers. A word of an operand is a pair of 16-bit numbers, neighbours in what is summed over: the images lie in
// shared memory in such pairs. Below, g is lane / 4 and q is lane % 4.
//
// Forward, the sum is over taps, and a pair is two numbers of a patch. Red and green of a pixel are one. Blue is paired
// with the next pixel's, which serves the first two columns of a patch; in the third, the second number is masked.
// Fifteen pairs hold the 27 numbers; the sixteenth is zero. A warp has a row of the tile, and a lane channels 4g to
// 4g + 3, which are rows g and g + 8 of two fragments.
//
// In the backward the sum is over pixels, and a pair is two pixels of one color: one of the upper and one of the lower
// half of the tile. The gradient of u passes through shared memory, and each warp has eight of the taps.
#pragma once
#include "cuda/stem_tiles.cuh"
#include "cuda/tensor_cores.cuh"

namespace fastcifar::cuda {

inline constexpr int kTensorHeight = kThreads / 32;  // of a tile

// The pixels of a tile and of its border, on their way from device memory: a thread has two neighbours. The tile lies
// in PARTS, above each other, each with its own border.
template <class T, int PARTS>
struct PixelPairs : Tiles {
  static constexpr int kHeight = kTensorHeight / PARTS, kRows = kHeight + 2;  // of a part
  static constexpr int kPairs = kTileWidth / 2 + 2;                           // of a row, from column -2 of the tile on
  static_assert(PARTS * kRows * kPairs <= kThreads, "two pixels a thread");

  const T* x;
  int part, row, column;  // of the thread, in shared memory
  Pack<T, 2> next[3];

  __device__ __forceinline__ PixelPairs(const T* images, const Geometry& s)
      : Tiles(s), x(images), part(threadIdx.x / (kRows * kPairs)), row(threadIdx.x / kPairs % kRows),
        column(threadIdx.x % kPairs * 2) {}

  __device__ __forceinline__ void fetch() {
    const int y = at.y * kTensorHeight + part * kHeight + row - 1, first = at.x * kTileWidth + column - 2;
    const bool inside = part < PARTS && static_cast<unsigned>(y) < static_cast<unsigned>(H) &&
                        static_cast<unsigned>(first) < static_cast<unsigned>(W);
    const uint32_t place = static_cast<uint32_t>((at.n * H + y) * W + first) * (3 * sizeof(T));
#pragma unroll
    for (int i = 0; i < 3; ++i) next[i] = load_if<2>(at_byte(x, place + i * sizeof(Pack<T, 2>)), inside);
  }
};

// A tile for the forward, in shared memory. Its pitches let the lanes of a warp meet no bank twice.
struct Patches {
  static constexpr int kBlue = 44, kPitch = 84, kWords = (kTensorHeight + 2) * kPitch;  // words: to blue, a row

  template <class T>
  __device__ __forceinline__ static void put(const PixelPairs<T, 1>& pixels, uint32_t* tile) {
    if (pixels.part > 0) return;
    uint32_t* const own = tile + pixels.row * kPitch + pixels.column;
    const uint32_t red_green = pixels.next[0].words[0], blue_red = pixels.next[1].words[0];
    const uint32_t green_blue = pixels.next[2].words[0];
    *reinterpret_cast<Pack<T, 4>*>(own) = {red_green, blue_red >> 16 | green_blue << 16};
    own[kBlue] = (blue_red & 0xffffu) | (green_blue & 0xffff0000u);
    uint16_t* const halves = reinterpret_cast<uint16_t*>(own + kBlue);
    halves[-1] = static_cast<uint16_t>(blue_red);         // beside the pixel before
    halves[2] = static_cast<uint16_t>(green_blue >> 16);  // the thread of the next pixel writes what is beside it
  }
};

// The block's taps from w [C][27], in shared memory: Fragment [two of channels][two of pairs][lanes].
template <class T>
__device__ __forceinline__ void put_taps(const T* w, bool channels_last, int C, Fragment* shared) {
  const int word = threadIdx.x / 4 % 4, q = threadIdx.x % 4;  // which pair
  const int first = word == 3 ? q * kRowTaps + 8 : word * kRowTaps + (q == 3 ? 2 : q * 3);
  const int second = first + (q == 3 ? 3 : 1);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int channel = threadIdx.x / 16 + i * (kBlockChannels / 2), c = blockIdx.x * kBlockChannels + channel;
    const auto tap = [&](int k, bool is_tap) -> uint32_t {
      return load_if<1>(w + c * kTaps + (channels_last ? k : place_of(k)), is_tap && c < C).words[0];
    };
    const uint32_t pair = tap(first, word < 3 || q < 3) | tap(second, word < 3) << 16;
    shared[(channel % 4 / 2 * 2 + word / 2) * 32 + channel / 4 * 4 + q].at[word % 2 * 2 + channel % 2] = pair;
  }
}

// grid: (channel blocks, blocks that share out the tiles). The rows of moments that no block writes are left empty.
template <class T>
__global__ void __launch_bounds__(kThreads, 3)
    stem_tensor_forward_kernel(const T* x, const T* w, bool channels_last, T* u, float* rows, int num_rows,
                               const Geometry s) {
  begin_kernel();
  constexpr int V = kBlockChannels / 8;  // channels of a lane
  SHARED_ARRAY(uint32_t, tile, Patches::kWords);
  SHARED_ARRAY(Fragment, taps, 4 * 32);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
  const int c0 = blockIdx.x * kBlockChannels, c = c0 + g * V;
  PixelPairs<T, 1> pixels(x, s);
  pixels.fetch();
  put_taps(w, channels_last, s.C, taps);
  clear_other_rows<kBlockChannels>(num_rows, c0, s.C, rows);
  __syncthreads();
  Fragment weight[2][2];
#pragma unroll
  for (int i = 0; i < 4; ++i) weight[i / 2][i % 2] = taps[i * 32 + lane];
  // Of the first pixel of a row: the pairs of words 0 to 2, which lie a row apart, and that of word 3.
  const int pair = warp * Patches::kPitch + g + 1 + (q < 3 ? q : Patches::kBlue);
  const int last_pair = (warp + min(q, 2)) * Patches::kPitch + g + 3 + Patches::kBlue;
  const uint32_t last_kept = q < 3 ? 0xffffu : 0;
  const uint32_t pixel = s.C * sizeof(T);
  RunningMoments<V> moments;
  while (pixels.more()) {
    __syncthreads();  // the tile before may still be read
    Patches::put(pixels, tile);
    __syncthreads();
    const int y = pixels.at.y * kTensorHeight + warp, x0 = pixels.at.x * kTileWidth + 2 * q;
    T* out = at_byte(u, static_cast<uint32_t>((pixels.at.n * s.H + y) * s.W + x0) * pixel + c * sizeof(T));
    pixels.advance();
    if (pixels.more()) pixels.fetch();
    if (y >= s.H) continue;
    const int columns = c < s.C ? s.W - x0 : 0;
#pragma unroll
    for (int p = 0; p < kTileWidth; p += 8) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 3; ++i) words[i] = tile[pair + i * Patches::kPitch + p];
      words[3] = tile[last_pair + p] & last_kept;
      float acc[2][4] = {};
#pragma unroll
      for (int k = 0; k < 2; ++k)
#pragma unroll
        for (int i = 0; i < 2; ++i) multiply_add<T>(acc[i], weight[i][k], words[2 * k], words[2 * k + 1]);
      if (p >= columns) continue;
#pragma unroll
      for (int e = 0; e < 2; ++e) {  // pixels 2q and 2q + 1 of eight
        float v[V] = {acc[0][e], acc[0][2 + e], acc[1][e], acc[1][2 + e]};
        store<V>(at_byte(out, e * pixel), v);
        if (p == 0 && e == 0) moments.start(v);
        moments.add(v);
      }
      out = at_byte(out, 8 * pixel);
    }
  }
  Lanes<V> at;
  at.lane = warp * 4 + q;
  at.channel = g * V;
  write_block_moments(moments, at, c0, s.C, rows);
}

// A tile for the backward, in shared memory. Of the images: words [rows of a half][channels][columns]. Of the gradient:
// pixels in the order in which they are summed over, the two of a word side by side. The pitches let the lanes of a warp
// meet no bank twice.
struct HalvesOfTile {
  static constexpr int kHeight = kTensorHeight / 2;
  static constexpr int kChannel = 42, kPitch = 134, kWords = (kHeight + 2) * kPitch;  // words of the images
  static constexpr int kGradPitch = kBlockChannels + 8;                               // 16-bit numbers
  static constexpr int kAllWords = kWords + kTensorHeight * kTileWidth * kGradPitch / 2;

  template <class T>
  __device__ __forceinline__ static void put(const PixelPairs<T, 2>& pixels, uint32_t* tile) {
    if (pixels.part > 1) return;
    uint16_t* own = reinterpret_cast<uint16_t*>(tile + pixels.row * kPitch + pixels.column) + pixels.part;
#pragma unroll
    for (int i = 0; i < 6; ++i)
      own[2 * (i % 3 * kChannel + i / 3)] = static_cast<uint16_t>(pixels.next[i / 2].words[0] >> (16 * (i % 2)));
  }
};

// The gradient of u for a thread: eight channels of a column of a tile, of every second row, on their way from device
// memory. THROUGH: with the part that comes through the moments of u, which is u * factor + constant: parts has both,
// float [2][kBlockChannels]. Beside a large mean float32 so loses far less than the 16 bits of u have lost.
template <class T, bool THROUGH>
struct GradOfTile {
  static constexpr int kPacks = 4;
  const T *grad, *u;
  int C, H, W, row, column, channel;  // the thread's: in a tile, in the block
  Pack<T, 8> next[kPacks], next_u[THROUGH ? kPacks : 1];

  __device__ __forceinline__ GradOfTile(const T* grad, const void* u, const Geometry& s)
      : grad(grad), u(static_cast<const T*>(u)), C(s.C), H(s.H), W(s.W), row(threadIdx.x / (kTileWidth * 4)),
        column(threadIdx.x / 4 % kTileWidth), channel(threadIdx.x % 4 * 8) {}

  __device__ __forceinline__ void fetch(const Place& tile) {
    const int y = tile.y * kTensorHeight + row, x = tile.x * kTileWidth + column;
    const int c = blockIdx.x * kBlockChannels + channel, rows = x < W && c < C ? H - y : 0;
    const uint32_t first = (static_cast<uint32_t>((tile.n * H + y) * W + x) * C + c) * sizeof(T);
    const uint32_t step = 2 * W * C * sizeof(T);
    fetch(at_byte(grad, first), step, rows, next);
    if constexpr (THROUGH) fetch(at_byte(u, first), step, rows, next_u);
  }
  __device__ __forceinline__ static void fetch(const T* from, uint32_t step, int rows, Pack<T, 8> (&to)[kPacks]) {
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      to[i] = load_if<8>(from, 2 * i < rows);
      from = at_byte(from, step);
    }
  }
  __device__ __forceinline__ void put(const Place& tile, const float* parts, uint16_t* to) {
    if constexpr (THROUGH) {
#pragma unroll
      for (int c = 0; c < 8; c += 2) {
        float factor[2], constant[2];
        load<2>(parts + channel + c, factor);
        load<2>(parts + kBlockChannels + channel + c, constant);
#pragma unroll
        for (int i = 0; i < kPacks; ++i) {
          uint32_t& word = next[i].words[c / 2];
          float v[2];
#pragma unroll
          for (int e = 0; e < 2; ++e)
            v[e] = with_part(element_of<T>(word, e), element_of<T>(next_u[i].words[c / 2], e),
                             {0.f, factor[e], constant[e]});
          word = round_pair<T>(v[0], v[1]);
        }
      }
      const int rows = H - tile.y * kTensorHeight, columns = W - tile.x * kTileWidth;
      if (rows < kTensorHeight || columns < kTileWidth) {
#pragma unroll
        for (int i = 0; i < kPacks; ++i)
          if (row + 2 * i >= rows || column >= columns) next[i] = {};
      }
    }
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int place = ((row + i % 2 * 2) * kTileWidth + column) * 2 + i / 2;
      *reinterpret_cast<Pack<T, 8>*>(to + place * HalvesOfTile::kGradPitch + channel) = next[i];
    }
  }
};

// Partial sums of the weight's gradient, float [rows][27][C], a row of each cluster. THROUGH: grad lacks what comes
// through the moments of u. A warp has two rows of each half of the tile, and eight of the taps.
// grid: (channel blocks, blocks that share out the tiles)
template <class T, bool THROUGH>
__global__ void __launch_bounds__(kThreads, 3)
    stem_tensor_backward_kernel(const T* grad, const ThroughMoments of_u, const T* x, float* rows, const Geometry s) {
  begin_kernel();
  using Tile = HalvesOfTile;
  constexpr int kRows = 2, kGroups = Tile::kHeight / kRows;  // rows of a warp, and warps with the same taps
  constexpr int kPitch = kBlockChannels + 4;                 // of sums in shared memory: so that no bank is met twice
  SHARED_ARRAY(uint32_t, tile, Tile::kAllWords);
  SHARED_ARRAY(float, parts, 2 * kBlockChannels);
  uint16_t* const of_grad = reinterpret_cast<uint16_t*>(tile + Tile::kWords);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
  const int c0 = blockIdx.x * kBlockChannels, own_row = warp / 4 * kRows, first_tap = warp % 4 * 8;
  PixelPairs<T, 2> pixels(x, s);
  GradOfTile<T, THROUGH> gradient(grad, of_u.x, s);
  pixels.fetch();
  gradient.fetch(pixels.at);
  if (THROUGH && threadIdx.x < kBlockChannels) {
    const PartThroughMoments part = part_through(of_u, c0 + threadIdx.x, s.C);
    parts[threadIdx.x] = part.factor;
    parts[kBlockChannels + threadIdx.x] = fmaf(-part.mean, part.factor, part.constant);
  }
  const uint16_t* const matrices = of_grad + (own_row * kTileWidth * 2 + lane / 16 * 8 + lane % 8) * Tile::kGradPitch +
                                   lane / 8 % 2 * 8;  // for load_matrices
  const int tap = min(first_tap + g, kTaps - 1);      // sums of other taps are not used
  const uint32_t* const of_tap =
      tile + (own_row + tap / kRowTaps) * Tile::kPitch + tap % 3 * Tile::kChannel + tap / 3 % 3 + 1 + q;
  float sums[2][4] = {};  // of 16 channels
  while (pixels.more()) {
    __syncthreads();  // the tile before may still be read
    Tile::put(pixels, tile);
    gradient.put(pixels.at, parts, of_grad);
    __syncthreads();
    pixels.advance();
    if (pixels.more()) {
      pixels.fetch();
      gradient.fetch(pixels.at);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int p = 0; p < kTileWidth; p += 8) {
        const uint16_t* pixels_of_step = matrices + (r * kTileWidth + p) * 2 * Tile::kGradPitch;
        const uint32_t* words = of_tap + r * Tile::kPitch + p;
        const uint32_t first = words[0], second = words[4];
#pragma unroll
        for (int i = 0; i < 2; ++i)
          multiply_add<T>(sums[i], load_matrices<true>(pixels_of_step + i * 16), first, second);
      }
  }
  float* const of_warps = reinterpret_cast<float*>(tile);
  static_assert(kGroups * kTaps * kPitch <= Tile::kAllWords, "room for the sums");
  __syncthreads();  // the last tile may still be read
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int of_sum = first_tap + q * 2 + e % 2;
      if (of_sum < kTaps) of_warps[(warp / 4 * kTaps + of_sum) * kPitch + i * 16 + e / 2 * 8 + g] = sums[i][e];
    }
  __syncthreads();
  const auto sum_of_warps = [&](int j) {
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < kGroups; ++i) sum += of_warps[(i * kTaps + j / kBlockChannels) * kPitch + j % kBlockChannels];
    return sum;
  };
  write_cluster_sums<kTaps, kBlockChannels>(sum_of_warps, c0, s.C, rows);
}

}  // namespace fastcifar::cuda
