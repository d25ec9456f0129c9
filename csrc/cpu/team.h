// Threads of our own that share the parts of an op.
#pragma once
#include <cstdint>

namespace fastcifar {

// Calls share(context, index) in this thread, with index 0, and beside it in threads of the team, with indices from 1 to
// threads - 1. Each call of share has to do whatever work is left: of the threads of the team only those come that are free
// at once. Within a share, and while another thread's shares are computed, only share(context, 0) is called. What a share throws is
// thrown here, when no share is computed any more.
//
// Beside busy programs a thread waits for its core for milliseconds at times, in the middle of a part, and nothing can go
// on before that part is done. So a caller that has to wait gives that thread its own core meanwhile (on Linux).
void run_in_team(int64_t threads, void (*share)(const void* context, int64_t index), const void* context);

// The same with share(index).
template <class Share>
void run_in_team(int64_t threads, const Share& share) {
  run_in_team(
      threads, [](const void* context, int64_t index) { (*static_cast<const Share*>(context))(index); }, &share);
}

}  // namespace fastcifar
