#include "cpu/team.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include <pthread.h>

#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#endif

namespace fastcifar {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;
using Share = void (*)(const void*, int64_t);

// A thread of the team waits for the next shares for so long before it sleeps: to be woken takes about 50 us. Where it
// had to be given another's core lately, others need its core.
constexpr microseconds kAwake{1000}, kAwakeBesideOthers{100};
constexpr int kLately = 512;  // in calls of run_in_team: some steps

// How long a caller waits for the last part before it looks whether somebody computes it, and how long it looks.
constexpr microseconds kPatience{30}, kLook{15};

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until done() is true, but no longer than `time`; returns what done() was at last.
template <class Done>
bool spin(microseconds time, const Done& done) {
  const auto end = Clock::now() + time;
  do {
    for (int i = 0; i < 16; ++i) {
      if (done()) return true;
      pause();
    }
  } while (Clock::now() < end);
  return false;
}

// A thread of the team, and where it is. `begin`, `enter` and `leave` are its own calls, the others are the caller's.
class Member {
 public:
#if defined(__linux__)
  void begin() {
    thread_ = static_cast<pid_t>(syscall(SYS_gettid));
    pthread_getcpuclockid(pthread_self(), &clock_);
  }
  void enter() {
    core_ = sched_getcpu();
    place_.store(kInside);
  }
  // Goes back to its own core, if it was brought to another one. Returns whether it was.
  bool leave() {
    int place = kInside;
    while (!place_.compare_exchange_strong(place, kOutside) && place != kBrought) {
      pause();  // the caller is about to bring the thread, or will find that it cannot
      place = kInside;
    }
    if (place != kBrought) return false;
    const cpu_set_t home = only(core_);
    sched_setaffinity(0, sizeof home, &home);      // moves there at once
    sched_setaffinity(0, sizeof cores_, &cores_);  // may be moved again
    place_.store(kOutside);
    return true;
  }

  void look() { worked_before_ = place_.load() == kInside ? worked() : -1; }

  // Brings the thread to the caller's core, if it is computing a share and had no core since `look`. Returns whether it did.
  bool bring_if_it_stands() {
    int place = kInside;
    if (worked_before_ < 0 || worked() != worked_before_ || !place_.compare_exchange_strong(place, kMoving))
      return false;
    const int here = sched_getcpu();
    const cpu_set_t callers = only(here);
    if (sched_getaffinity(thread_, sizeof cores_, &cores_) != 0 ||
        sched_setaffinity(thread_, sizeof callers, &callers) != 0) {
      place_.store(kInside);
      return false;
    }
    if (core_ == here) core_ = another_core(here);  // the two shared a core: one of them stays
    place_.store(kBrought);
    return true;
  }

 private:
  enum Place : int { kOutside, kInside, kMoving, kBrought };

  // The processor time of the thread, in nanoseconds. It stands still while the thread has no core.
  int64_t worked() const {
    timespec time{};
    clock_gettime(clock_, &time);
    return time.tv_sec * int64_t{1000000000} + time.tv_nsec;
  }

  static cpu_set_t only(int core) {
    cpu_set_t cores;
    CPU_ZERO(&cores);
    CPU_SET(core, &cores);
    return cores;
  }

  int another_core(int here) const {
    for (int core = 0; core < CPU_SETSIZE; ++core) {
      if (core != here && CPU_ISSET(core, &cores_)) return core;
    }
    return here;
  }

  std::atomic<int> place_{kOutside};
  int core_ = 0;
  pid_t thread_ = 0;
  clockid_t clock_{};
  int64_t worked_before_ = -1;
  cpu_set_t cores_{};
#else
  void begin() {}
  void enter() {}
  bool leave() { return false; }
  void look() {}
  bool bring_if_it_stands() { return false; }
#endif
};

class Team {
 public:
  void run(int64_t threads, Share share, const void* context) {
    if (threads < 2 || busy_.exchange(true)) return share(context, 0);
    add_members(threads - 1);
    share_ = share, context_ = context, threads_ = threads, error_ = nullptr;
    open();
    std::exception_ptr error;
    try {
      share(context, 0);
    } catch (...) {
      error = std::current_exception();
    }
    close();
    if (!error) error = error_;
    busy_.store(false);
    if (error) std::rethrow_exception(error);
  }

 private:
  // The state: the number of the call (32 bits), whether a thread may still come (bit 31), how many threads of the team have
  // come and compute (31 bits).
  static constexpr uint64_t kOpen = uint64_t{1} << 31, kInside = kOpen - 1;
  static uint32_t number(uint64_t state) { return static_cast<uint32_t>(state >> 32); }

  bool nobody_is_inside() const { return !(state_.load() & kInside); }

  void add_members(int64_t count) {
    while (static_cast<int64_t>(members_.size()) < count) {
      members_.push_back(std::make_unique<Member>());
      Member* member = members_.back().get();
      const auto index = static_cast<int64_t>(members_.size());
      sigset_t all, before;  // signals are for the program's own threads
      sigfillset(&all);
      pthread_sigmask(SIG_SETMASK, &all, &before);
      try {
        std::thread([this, member, index] { work(*member, index); }).detach();
      } catch (const std::system_error&) {  // no thread is to be had: fewer compute
      }
      pthread_sigmask(SIG_SETMASK, &before, nullptr);
    }
  }

  void open() {
    state_.store(static_cast<uint64_t>(number(state_.load()) + 1) << 32 | kOpen);
    if (num_asleep_.load() == 0) return;
    {  // a thread between its last look at the state and its sleep would not be woken
      const std::lock_guard<std::mutex> lock(mutex_);
    }
    wake_.notify_all();
  }

  // Waits until nobody computes a share, and lets nobody begin one.
  void close() {
    state_.fetch_and(~kOpen);
    const auto done = [this] { return nobody_is_inside(); };
    while (!spin(kPatience, done)) {
      for (const auto& member : members_) member->look();
      if (spin(kLook, done)) return;
      bool brought = false;
      for (const auto& member : members_) brought |= member->bring_if_it_stands();
      if (!brought) continue;
      std::unique_lock<std::mutex> lock(mutex_);  // asleep, so that the core is free
      caller_sleeps_ = true;
      done_.wait(lock, done);
      caller_sleeps_ = false;
      return;
    }
  }

  void work(Member& me, int64_t index) {
    const char* policy = std::getenv("OMP_WAIT_POLICY");
    const bool passive = policy && (!std::strcmp(policy, "PASSIVE") || !std::strcmp(policy, "passive"));
    int lately = 0;
    uint64_t state = 0;
    uint32_t seen = 0;
    const auto is_new = [&] {
      state = state_.load();
      return number(state) != seen && (state & kOpen);
    };
    me.begin();
    for (;;) {
      if (!spin(passive || lately > 0 ? kAwakeBesideOthers : kAwake, is_new)) {
        std::unique_lock<std::mutex> lock(mutex_);
        num_asleep_.fetch_add(1);
        wake_.wait(lock, is_new);
        num_asleep_.fetch_sub(1);
      }
      seen = number(state);
      me.enter();
      if (come(state)) {
        if (index < threads_) compute(index);
        go();
      }
      if (me.leave()) {
        lately = kLately;
      } else if (lately > 0) {
        --lately;
      }
    }
  }

  // Whether the call whose state was `state` still lets this thread come.
  bool come(uint64_t state) {
    const uint32_t call = number(state);
    while (number(state) == call && (state & kOpen)) {
      if (state_.compare_exchange_weak(state, state + 1)) return true;
    }
    return false;
  }

  void compute(int64_t index) {
    try {
      share_(context_, index);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }

  void go() {
    const uint64_t before = state_.fetch_sub(1);
    if ((before & kOpen) || (before & kInside) > 1) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (caller_sleeps_) done_.notify_one();
  }

  std::vector<std::unique_ptr<Member>> members_;
  Share share_ = nullptr;
  const void* context_ = nullptr;
  int64_t threads_ = 0;
  std::exception_ptr error_;
  std::atomic<bool> busy_{false};
  alignas(64) std::atomic<uint64_t> state_{0};
  alignas(64) std::atomic<int> num_asleep_{0};
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  bool caller_sleeps_ = false;
};

// Never destroyed: its threads may still wait when the process ends.
std::atomic<Team*> the_team{nullptr};

Team& team() {
  static const int registered =
      pthread_atfork(nullptr, nullptr, [] { the_team.store(nullptr); });  // a child has none of the threads
  static_cast<void>(registered);
  if (Team* team = the_team.load()) return *team;
  auto made = std::make_unique<Team>();
  Team* other = nullptr;
  return the_team.compare_exchange_strong(other, made.get()) ? *made.release() : *other;
}

}  // namespace

void run_in_team(int64_t threads, Share share, const void* context) { team().run(threads, share, context); }

}  // namespace fastcifar
