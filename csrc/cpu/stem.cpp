#include "stem.h"

#include <torch/csrc/stable/library.h>

#include "cpu/data.h"
#include "cpu/dwconv3x3_kernel.h"
#include "cpu/moments.h"
#include "cpu/parallel.h"
#include "cpu/stem_kernel.h"

namespace {
using namespace fastcifar;

constexpr int64_t kPartBytes = 1 << 18;  // the least bytes of u in a part

// What forward and backward share.
struct Task {
  StemShape s;
  Element element;
  bool channels_last;    // the weight
  bool tiles;            // the numbers are what tile registers multiply
  int64_t pitch, bytes;  // bytes of u
  Cut parts;

  explicit Task(const Stem& a)
      : s{a.N, a.C, a.H, a.W}, element(element_of(a.x)), channels_last(a.channels_last),
        tiles(isa() == Isa::amx && element == Element::bf16 && element_of(a.w) == Element::bf16 && a.C % kBlock == 0),
        pitch(round_up(a.C, kBlock)), bytes(a.N * a.H * a.W * a.C * static_cast<int64_t>(a.x.element_size())),
        parts(cut_by_images(a.N, a.C, bytes / a.N, kPartBytes)) {}

  // Where a tap of the kernels, in the order of the image's memory, lies in a channel of the weight.
  int64_t place_of(int tap) const { return channels_last ? tap : tap % 3 * 9 + tap / 3; }
};

template <class T>
void read_taps(const T* w, const Task& task, float* taps) {
  for (int t = 0; t < kStemTaps; ++t) {
    for (int64_t c = 0; c < task.s.C; ++c) taps[t * task.pitch + c] = to_f32(w[c * kStemTaps + task.place_of(t)]);
  }
}

template <class T>
void write_gradient(const float* sums, const Task& task, T* grad_w) {
  for (int t = 0; t < kStemTaps; ++t) {
    for (int64_t c = 0; c < task.s.C; ++c) {
      grad_w[c * kStemTaps + task.place_of(t)] = from_f32<T>(sums[t * task.pitch + c]);
    }
  }
}

std::tuple<Tensor, Tensor> forward(const Tensor& x, const Tensor& w) {
  const auto a = prepare_stem(Backend::cpu, x, w);
  const Task task(a);
  const StemShape& s = task.s;
  const int64_t pitch = task.pitch, size = 2 * pitch;
  const Range all{0, s.N, 0, s.C};
  const Scratch taps = Scratch::zeros(kStemTaps * pitch), columns = Scratch::zeros(kColumns * pitch);
  const Scratch memory = Scratch::zeros(task.parts.image_parts * size), border = Scratch::zeros(s.memory());
  const Sums sums{memory.get(), task.parts.image_parts, size};
  element_of(a.w) == Element::f32 ? read_taps(static_cast<const float*>(data(a.w)), task, taps.get())
                                  : read_taps(static_cast<const bf16*>(data(a.w)), task, taps.get());
  const void* xs = data(a.x);
  void* us = mutable_data(a.u);
  FASTCIFAR_KERNEL(set_stem_pivot)(task.element, s, all, xs, taps.get(), pitch, columns.get(), border.get());
  parallel(task.parts, task.bytes, [&](const Range& range, int64_t part) {
    const Scratch image = Scratch::zeros(s.memory());
    FASTCIFAR_KERNEL(stem_forward)(task.element, task.tiles, s, range, xs, taps.get(), pitch, us, columns.get(),
                                   sums.part(part), image.get());
  });
  const int64_t pixels = s.N * s.H * s.W;
  const Scratch zeros = Scratch::zeros(s.C);  // in place of gamma and beta
  write_moments(a.u_rows, pixels, [&](float* mean, float* var) {
    FASTCIFAR_KERNEL(finish_statistics)(all, sums, pixels, zeros.get(), zeros.get(), 1, columns.get(), pitch, mean,
                                        var);
  });
  return {a.u, a.u_rows};
}

Tensor backward(const Tensor& grad_u, const Tensor& x, const Tensor& w, const std::optional<Tensor>& grad_u_rows,
                const std::optional<Tensor>& u, const std::optional<Tensor>& u_rows) {
  const auto a = prepare_stem_backward(Backend::cpu, grad_u, x, w, grad_u_rows, u, u_rows);
  const Task task(a);
  const int64_t size = kStemTaps * task.pitch;
  const Scratch sums = Scratch::zeros(task.parts.image_parts * size);
  const Scratch columns = Scratch::zeros(kColumns * task.pitch);
  if (a.grad_u_rows) read_moments_gradient(*a.grad_u_rows, a.u_rows, columns.get(), task.pitch);
  const float* of_moments = a.grad_u_rows ? columns.get() : nullptr;
  const void *grads = data(a.grad_u), *us = a.grad_u_rows ? data(a.u) : grads, *xs = data(a.x);
  parallel(task.parts, task.bytes, [&](const Range& range, int64_t part) {
    const Scratch image = Scratch::zeros(task.s.memory()), row(task.s.W * task.pitch);
    FASTCIFAR_KERNEL(stem_backward)(task.element, task.tiles, task.s, range, grads, us, of_moments, xs, task.pitch,
                                    sums.get() + part * size, image.get(), row.get());
  });
  FASTCIFAR_KERNEL(sum_parts)(sums.get(), task.parts.image_parts, size, sums.get());
  element_of(a.grad_w) == Element::f32 ? write_gradient(sums.get(), task, static_cast<float*>(mutable_data(a.grad_w)))
                                       : write_gradient(sums.get(), task, static_cast<bf16*>(mutable_data(a.grad_w)));
  return a.grad_w;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcifar, m) {
  for (const char* schema : kStemSchemas) m.def(schema);
}

STABLE_TORCH_LIBRARY_IMPL(fastcifar, CPU, m) {
  m.impl("stem", TORCH_BOX(&forward));
  m.impl("_stem_backward", TORCH_BOX(&backward));
}
