// Include this before any torch/csrc/stable header.
//
// Where a call into libtorch fails (out of memory, for example), the stable headers for torch < 2.13 throw "API call
// failed at ops.h, line N", and libtorch's own message is lost. torch 2.13 exports a function that returns the
// message. It is a weak symbol here, so that the same library still loads on 2.10 to 2.12: there the message goes to
// stderr only.
#pragma once
#include <torch/csrc/stable/macros.h>

#include <stdexcept>
#include <string>

extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace fastcifar {
[[noreturn]] inline void libtorch_call_failed(const char* call, const char* file, int line) {
  std::string message;
  if (torch_exception_get_what_without_backtrace != nullptr) message = torch_exception_get_what_without_backtrace();
  if (message.empty()) message = "a libtorch call failed (its message is on stderr)";
  throw std::runtime_error(message + " [" + std::string(call).substr(0, 60) + " at " + file + ":" +
                           std::to_string(line) + "]");
}
}  // namespace fastcifar
#undef STABLE_TORCH_ERROR_CODE_CHECK
#define STABLE_TORCH_ERROR_CODE_CHECK(call)                       \
  if ((call) != 0) {                                              \
    ::fastcifar::libtorch_call_failed(#call, __FILE__, __LINE__); \
  }
