#include "mixup_cross_entropy.h"

#include <torch/csrc/stable/library.h>

#include "cpu/loss.h"
#include "cpu/parallel.h"

namespace {
using namespace fastcifar;

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& logits, const Tensor& labels,
                                                   const std::optional<Tensor>& partner_labels,
                                                   const std::optional<Tensor>& lam, double label_smoothing) {
  const auto a = prepare_mixup_cross_entropy(Backend::cpu, logits, labels, partner_labels, lam, label_smoothing);
  const LossTask task = task_of("mixup_cross_entropy", a, label_smoothing);
  std::vector<RowLoss> rows(a.rows);
  float* normalizer = mutable_floats(a.normalizer);
  parallel(a.rows, a.rows * a.classes * 4, [&](int64_t begin, int64_t end) {
    FASTCIFAR_KERNEL(mixup_cross_entropy)(task, begin, end, rows.data(), normalizer);
  });
  const LossSums of_batch = sums_of(rows, task);
  *mutable_floats(a.loss) = static_cast<float>(of_batch.loss / static_cast<double>(a.rows));
  *mutable_floats(a.correct) = static_cast<float>(of_batch.correct);
  auto* sums = static_cast<double*>(mutable_data(a.sums));
  sums[0] = of_batch.loss;
  sums[1] = of_batch.correct;
  return {a.loss, a.correct, a.sums, a.normalizer};
}

Tensor backward(const Tensor& grad_loss, const Tensor& logits, const Tensor& normalizer, const Tensor& labels,
                const std::optional<Tensor>& partner_labels, const std::optional<Tensor>& lam, double label_smoothing) {
  const auto a = prepare_mixup_cross_entropy_backward(Backend::cpu, grad_loss, logits, normalizer, labels,
                                                      partner_labels, lam, label_smoothing);
  const LossTask task = task_of("_mixup_cross_entropy_backward", a, label_smoothing);
  const float scale = *floats(a.grad_loss) / static_cast<float>(a.rows);
  void* grad = mutable_data(a.grad_logits);
  parallel(a.rows, a.rows * a.classes * 4, [&](int64_t begin, int64_t end) {
    FASTCIFAR_KERNEL(mixup_cross_entropy_backward)(task, begin, end, floats(a.normalizer), scale, grad);
  });
  return a.grad_logits;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcifar, m) {
  for (const char* schema : kMixupCrossEntropySchemas) m.def(schema);
}

STABLE_TORCH_LIBRARY_IMPL(fastcifar, CPU, m) {
  m.impl("mixup_cross_entropy", TORCH_BOX(&forward));
  m.impl("_mixup_cross_entropy_backward", TORCH_BOX(&backward));
}
