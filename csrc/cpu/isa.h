// Which of the compiled instruction sets the kernels run on.
#pragma once

namespace fastcifar {

// amx: AMX's products of bfloat16, and the kernels of avx512_bf16 for all else.
enum class Isa { generic, avx2, avx512, avx512_bf16, amx };

// The widest that the library holds and this CPU has, or the one named in the environment variable FASTCIFAR_ISA.
Isa isa();

}  // namespace fastcifar

// Declares kernel entry points; each is defined once for every instruction set, in <op>_kernel.cpp, and for the emulator
// in tests/emu/products.cpp.
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
  namespace avx512_bf16 {              \
  __VA_ARGS__                          \
  }                                    \
  namespace emulated {                 \
  __VA_ARGS__                          \
  }                                    \
  }

// The entry point `kernel` for the instruction set in use. The library holds the sets up to the widest one that its
// compiler knows.
#if defined(FASTCIFAR_HAVE_AVX512_BF16)
#define FASTCIFAR_KERNEL(kernel)                                                           \
  (::fastcifar::isa() >= ::fastcifar::Isa::avx512_bf16 ? &::fastcifar::avx512_bf16::kernel \
   : ::fastcifar::isa() == ::fastcifar::Isa::avx512    ? &::fastcifar::avx512::kernel      \
   : ::fastcifar::isa() == ::fastcifar::Isa::avx2      ? &::fastcifar::avx2::kernel        \
                                                       : &::fastcifar::generic::kernel)
#elif defined(FASTCIFAR_HAVE_AVX512)
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
