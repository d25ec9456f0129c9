// Declares every op; the kernels of csrc/cpu/ and csrc/cuda/ add themselves.
#include "stable.h"

#include <torch/csrc/stable/library.h>

#include "schemas.h"

STABLE_TORCH_LIBRARY(fastcifar, m) {
  for (const char* schema : fastcifar::kSchemas) m.def(schema);
}
