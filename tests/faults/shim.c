// Stands between a process and its file system: counts, records, fails or cuts the calls that touch one folder.
//
// It is preloaded, and does nothing until `faults_arm` is called. From then on every call that touches a path under
// `root` gets a number, counted from 1, and can be written to a trace: one line of text, and behind a write its bytes.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum Action { NOTHING, KILL_BEFORE, KILL_INSIDE, FAIL_ONCE, FAIL_FROM_THERE };
enum { DESCRIPTORS = 1024 };

static struct {
  char root[PATH_MAX];
  size_t length;
  int action, error, trace;
  long at, count;
} armed;
static char* paths[DESCRIPTORS];  // the path of each open descriptor under the root

void faults_arm(const char* root, int action, long at, int error, int trace) {
  armed.length = strlen(strcpy(armed.root, root));
  armed.action = action;
  armed.at = at;
  armed.error = error;
  armed.trace = trace;
  armed.count = 0;
}

static int is_inside(const char* path) {
  return armed.length && strncmp(path, armed.root, armed.length) == 0 &&
         (path[armed.length] == '/' || path[armed.length] == 0);
}

// The absolute path of `path` under the folder `at`, or NULL if it is not under the root.
static const char* resolve(int at, const char* path, char* buffer) {
  if (!armed.length || !path) return NULL;
  if (path[0] != '/') {
    const char* folder = at >= 0 && at < DESCRIPTORS ? paths[at] : NULL;
    if (at == AT_FDCWD) folder = getcwd(buffer, PATH_MAX) ? buffer : NULL;
    if (!folder) return NULL;
    char joined[PATH_MAX];
    snprintf(joined, sizeof joined, "%s/%s", folder, path);
    strcpy(buffer, joined);
    path = buffer;
  }
  return is_inside(path) ? path : NULL;
}

static void trace(const char* text, size_t size) {
  if (armed.trace >= 0 && syscall(SYS_write, armed.trace, text, size) < 0) abort();
}

// Counts a call and writes it to the trace. Returns 1 if the call shall fail, with errno set.
static int counted(const char* name, const char* path, const char* other, long number, int takes_room) {
  const long now = __atomic_add_fetch(&armed.count, 1, __ATOMIC_SEQ_CST);
  if (armed.action == KILL_BEFORE && now == armed.at) raise(SIGKILL);
  const int is_there = armed.action == FAIL_ONCE ? now == armed.at : armed.action == FAIL_FROM_THERE && now >= armed.at;
  // A full disk refuses only what takes room; a broken one refuses everything.
  const int fails = is_there && (takes_room || armed.error == EIO);
  char line[3 * PATH_MAX];
  trace(line, snprintf(line, sizeof line, "%ld\t%s\t%s\t%s\t%ld\n", now, name, path, other, number));
  if (fails) errno = armed.error;
  return fails;
}

static int is_inside_call(void) { return armed.action == KILL_INSIDE && armed.count == armed.at; }

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int opened(int descriptor, const char* path) {
  if (descriptor >= 0 && descriptor < DESCRIPTORS) paths[descriptor] = path ? strdup(path) : NULL;
  return descriptor;
}

#define OPEN(name, parameters, at, arguments)                                                          \
  int name parameters {                                                                                \
    mode_t mode = 0;                                                                                   \
    if (flags & (O_CREAT | O_TMPFILE)) {                                                               \
      va_list more;                                                                                    \
      va_start(more, flags);                                                                           \
      mode = va_arg(more, mode_t);                                                                     \
      va_end(more);                                                                                    \
    }                                                                                                  \
    char buffer[PATH_MAX];                                                                             \
    const char* inside = resolve(at, path, buffer);                                                    \
    if (inside) {                                                                                      \
      struct stat found;                                                                               \
      const int is_new = (flags & O_CREAT) && lstat(inside, &found) != 0;                              \
      const char* how = is_new ? "create" : flags & O_TRUNC ? "empty" : flags & 3 ? "update" : "open"; \
      if (counted(how, inside, "", flags, is_new)) return -1;                                          \
    }                                                                                                  \
    const int descriptor = opened(REAL(name) arguments, inside);                                       \
    if (inside && is_inside_call()) raise(SIGKILL);                                                    \
    return descriptor;                                                                                 \
  }
OPEN(open, (const char* path, int flags, ...), AT_FDCWD, (path, flags, mode))
OPEN(open64, (const char* path, int flags, ...), AT_FDCWD, (path, flags, mode))
OPEN(openat, (int at, const char* path, int flags, ...), at, (at, path, flags, mode))
OPEN(openat64, (int at, const char* path, int flags, ...), at, (at, path, flags, mode))

static const char* path_of(int descriptor) {
  return descriptor >= 0 && descriptor < DESCRIPTORS && armed.length ? paths[descriptor] : NULL;
}

int close(int descriptor) {
  if (descriptor >= 0 && descriptor < DESCRIPTORS) {
    free(paths[descriptor]);
    paths[descriptor] = NULL;
  }
  return REAL(close)(descriptor);
}

// A write that is cut or does not fit puts down its first half: a short write, as the system is allowed to make.
ssize_t write(int descriptor, const void* content, size_t size) {
  const char* path = path_of(descriptor);
  if (!path) return REAL(write)(descriptor, content, size);
  const int fails = counted("write", path, "", size, 1);
  if (fails && (armed.error == EIO || size < 2 || armed.count > armed.at)) return -1;
  const int is_cut = is_inside_call();
  const ssize_t done = REAL(write)(descriptor, content, fails || is_cut ? size / 2 : size);
  if (is_cut) raise(SIGKILL);
  if (done > 0) trace(content, done);
  return done;
}

ssize_t read(int descriptor, void* content, size_t size) {
  const char* path = path_of(descriptor);
  if (path && counted("read", path, "", size, 0)) return -1;
  return REAL(read)(descriptor, content, size);
}

#define OF_DESCRIPTOR(name, parameters, arguments, number, takes_room)   \
  int name parameters {                                                  \
    const char* path = path_of(descriptor);                              \
    if (path && counted(#name, path, "", number, takes_room)) return -1; \
    const int result = REAL(name) arguments;                             \
    if (path && is_inside_call()) raise(SIGKILL);                        \
    return result;                                                       \
  }
OF_DESCRIPTOR(fsync, (int descriptor), (descriptor), 0, 1)
OF_DESCRIPTOR(fdatasync, (int descriptor), (descriptor), 0, 1)
OF_DESCRIPTOR(ftruncate, (int descriptor, off_t size), (descriptor, size), size, 0)
OF_DESCRIPTOR(ftruncate64, (int descriptor, off64_t size), (descriptor, size), size, 0)

#define OF_PATH(name, parameters, at, arguments, number, takes_room)         \
  int name parameters {                                                      \
    char buffer[PATH_MAX];                                                   \
    const char* inside = resolve(at, path, buffer);                          \
    if (inside && counted(#name, inside, "", number, takes_room)) return -1; \
    const int result = REAL(name) arguments;                                 \
    if (inside && is_inside_call()) raise(SIGKILL);                          \
    return result;                                                           \
  }
OF_PATH(mkdir, (const char* path, mode_t mode), AT_FDCWD, (path, mode), 0, 1)
OF_PATH(mkdirat, (int at, const char* path, mode_t mode), at, (at, path, mode), 0, 1)
OF_PATH(unlink, (const char* path), AT_FDCWD, (path), 0, 0)
OF_PATH(unlinkat, (int at, const char* path, int flags), at, (at, path, flags), flags, 0)
OF_PATH(rmdir, (const char* path), AT_FDCWD, (path), 0, 0)
OF_PATH(truncate, (const char* path, off_t size), AT_FDCWD, (path, size), size, 0)
OF_PATH(truncate64, (const char* path, off64_t size), AT_FDCWD, (path, size), size, 0)

#define RENAME(name, parameters, from_at, to_at, arguments)                                      \
  int name parameters {                                                                          \
    char buffer[PATH_MAX], other[PATH_MAX];                                                      \
    const char *inside = resolve(from_at, from, buffer), *to_inside = resolve(to_at, to, other); \
    const int is_ours = inside && to_inside;                                                     \
    if (is_ours && counted("rename", inside, to_inside, 0, 1)) return -1;                        \
    const int result = REAL(name) arguments;                                                     \
    if (is_ours && is_inside_call()) raise(SIGKILL);                                             \
    return result;                                                                               \
  }
RENAME(rename, (const char* from, const char* to), AT_FDCWD, AT_FDCWD, (from, to))
RENAME(renameat, (int from_at, const char* from, int to_at, const char* to), from_at, to_at, (from_at, from, to_at, to))
