#include "classifier_gradient.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "cpu/classifier_gradient_kernel.h"
#include "cpu/loss.h"
#include "cpu/parallel.h"

namespace {
using namespace fastcifar;

std::tuple<Tensor, Tensor, Tensor> gradient(const Tensor& pooled, const Tensor& weight, const Tensor& bias,
                                            const Tensor& labels, const std::optional<Tensor>& partner_labels,
                                            const std::optional<Tensor>& lam, double label_smoothing,
                                            const Tensor& grad_loss, const Tensor& totals) {
  const auto a = prepare_classifier_gradient(Backend::cpu, pooled, weight, bias, labels, partner_labels, lam,
                                             label_smoothing, grad_loss, totals);
  LossGradient loss("classifier_gradient", a, label_smoothing);
  const ClassifierTask task{loss.task.element, data(a.pooled), data(a.weight), data(a.bias), a.rows,
                            a.channels,        a.classes};
  void *logits = mutable_data(a.logits), *grad_pooled = mutable_data(a.grad_pooled);
  void *grad_weight = mutable_data(a.grad_weight), *grad_bias = mutable_data(a.grad_bias);
  const void* grad = data(a.grad_logits);
  const auto in_groups = [&](int64_t count, auto part) {
    parallel((count + kClassifierGroup - 1) / kClassifierGroup, a.rows * a.channels * a.classes,
             [&](int64_t begin, int64_t end) {
               const Scratch scratch(FASTCIFAR_KERNEL(classifier_scratch)(task));
               part(begin * kClassifierGroup, std::min(end * kClassifierGroup, count), scratch.get());
             });
  };
  in_groups(a.rows, [&](int64_t b0, int64_t b1, float* scratch) {
    FASTCIFAR_KERNEL(classifier_logits)(task, b0, b1, logits);
    loss.take(b0, b1);
    FASTCIFAR_KERNEL(classifier_grad_pooled)(task, b0, b1, grad, grad_pooled, scratch);
  });
  in_groups(a.classes, [&](int64_t n0, int64_t n1, float* scratch) {
    FASTCIFAR_KERNEL(classifier_grad_weight)(task, n0, n1, grad, grad_weight, grad_bias, scratch);
  });
  loss.add_sums(a.totals);
  return {a.grad_pooled, a.grad_weight, a.grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcifar, m) {
  for (const char* schema : kClassifierGradientSchemas) m.def(schema);
}

STABLE_TORCH_LIBRARY_IMPL(fastcifar, CPU, m) { m.impl("classifier_gradient", TORCH_BOX(&gradient)); }
