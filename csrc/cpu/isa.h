// Which of the compiled instruction sets the kernels run on.
#pragma once

namespace fastcifar {

enum class Isa { generic, avx2, avx512 };

// The widest that the library holds and this CPU has, or the one named in the environment variable FASTCIFAR_ISA.
Isa isa();

}  // namespace fastcifar

// Declares kernel entry points; each is defined once for every instruction set, in <op>_kernel.cpp.
#define FASTCIFAR_DECLARE_KERNELS(...) \
  namespace fastcifar {                \
  namespace generic {                  \
  __VA_ARGS__                          \
  }                                    \
  namespace avx2 {                     \
  __VA_ARGS__                          \
  }                                    \
  namespace avx512 {                   \
  __VA_ARGS__                          \
  }                                    \
  }

// The entry point `kernel` for the instruction set in use.
#if defined(FASTCIFAR_HAVE_AVX512) && defined(FASTCIFAR_HAVE_AVX2)
#define FASTCIFAR_KERNEL(kernel)                                                 \
  (::fastcifar::isa() == ::fastcifar::Isa::avx512 ? &::fastcifar::avx512::kernel \
   : ::fastcifar::isa() == ::fastcifar::Isa::avx2 ? &::fastcifar::avx2::kernel   \
                                                  : &::fastcifar::generic::kernel)
#elif defined(FASTCIFAR_HAVE_AVX2)
#define FASTCIFAR_KERNEL(kernel) \
  (::fastcifar::isa() == ::fastcifar::Isa::avx2 ? &::fastcifar::avx2::kernel : &::fastcifar::generic::kernel)
#else
#define FASTCIFAR_KERNEL(kernel) (&::fastcifar::generic::kernel)
#endif
