// The team under ThreadSanitizer: shares are complete, errors arrive, and a thread without a core is brought to one, or
// goes on where it is if the system does not let it be moved.
#include "cpu/team.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {
std::atomic<bool> may_move{true};
}  // namespace

// In place of the system's, which may be forbidden: then a thread ends its share while the caller waits for the answer.
extern "C" int sched_setaffinity(pid_t thread, size_t size, const cpu_set_t* cores) noexcept {
  if (may_move.load()) return static_cast<int>(syscall(SYS_sched_setaffinity, thread, size, cores));
  usleep(30000);
  return -1;
}

namespace {

using fastcifar::run_in_team;
using Clock = std::chrono::steady_clock;

bool failed = false;

void check(bool right, const char* what) {
  if (!right) std::printf("WRONG: %s\n", what), failed = true;
}

// Waits until `flag` is set, for ten seconds at most.
bool comes(const std::atomic<bool>& flag) {
  const auto end = Clock::now() + std::chrono::seconds(10);
  while (!flag.load() && Clock::now() < end) std::this_thread::yield();
  return flag.load();
}

// Each part is computed once, by whatever thread, and all are there at the end.
void check_parts(int calls) {
  for (int call = 0; call < calls; ++call) {
    const int64_t parts = call % 37;
    std::vector<int> results(parts);
    std::atomic<int64_t> next{0};
    run_in_team(2 + call % 3, [&](int64_t) {
      for (int64_t part; (part = next.fetch_add(1)) < parts;) {
        for (int i = 0; i < 50 * call % 211; ++i) results[part] += i;
        ++results[part];
      }
    });
    for (int64_t part = 0; part < parts; ++part) {
      int expected = 1;
      for (int i = 0; i < 50 * call % 211; ++i) expected += i;
      check(results[part] == expected, "a part");
    }
    if (call % 100 == 0) usleep(3000);  // the threads fall asleep
  }
}

void check_errors() {
  for (int64_t thrower = 0; thrower < 2; ++thrower) {
    std::string caught;
    std::atomic<bool> there{false};
    try {
      run_in_team(2, [&](int64_t index) {
        if (index == 1) there.store(true);
        if (index == 0) check(comes(there), "a second thread comes");
        if (index == thrower) throw std::runtime_error("thrown by " + std::to_string(index));
      });
    } catch (const std::runtime_error& error) {
      caught = error.what();
    }
    check(caught == "thrown by " + std::to_string(thrower), "the error of a share");
  }
  check_parts(5);
}

void check_calls_within_and_beside() {
  int within = 0;
  run_in_team(2, [&](int64_t index) {
    if (index == 0) run_in_team(2, [&](int64_t inner) { within += inner == 0 ? 1 : 100; });
  });
  check(within == 1, "a call within a share is computed in one thread");
  std::thread beside([] { check_parts(300); });
  check_parts(300);
  beside.join();
}

// A thread that sleeps in its share stands as one that another program keeps from its core.
void check_brought() {
  cpu_set_t before, within, after;
  sched_getaffinity(0, sizeof before, &before);
  std::atomic<bool> there{false};
  run_in_team(2, [&](int64_t index) {
    if (index == 0) {
      check(comes(there), "a second thread comes");
    } else {
      there.store(true);
      usleep(200000);
      sched_getaffinity(0, sizeof within, &within);
    }
  });
  check(CPU_COUNT(&within) == 1, "a thread that stands is brought to the caller's core");
  there.store(false);
  run_in_team(2, [&](int64_t index) {
    if (index == 0) {
      check(comes(there), "the thread comes again");
    } else {
      sched_getaffinity(0, sizeof after, &after);
      there.store(true);
    }
  });
  check(CPU_EQUAL(&before, &after), "and then may go wherever the program may");
}

void check_not_brought() {
  may_move.store(false);
  for (int call = 0; call < 2; ++call) {
    std::atomic<bool> there{false};
    run_in_team(2, [&](int64_t index) {
      if (index == 0) {
        check(comes(there), "a thread that could not be moved comes again");
      } else {
        there.store(true);
        usleep(10000);
      }
    });
  }
  may_move.store(true);
}

}  // namespace

int main() {
  check_parts(2000);
  check_errors();
  check_calls_within_and_beside();
  check_brought();
  check_not_brought();
  if (!failed) std::puts("right");
  return failed;
}
