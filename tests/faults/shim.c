/* Loaded before the C library (LD_PRELOAD): counts the calls that change files below a folder, and at the
   k-th of them kills the process or fails; and the allocations of memory of at least so many bytes, of
   which the k-th fails. `arm` and `arm_allocations` are called from Python. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { COUNT, KILL, FULL, BROKEN, SHORT, TORN, INTERRUPTED };

static char prefix[PATH_MAX];
static long calls, at;
static int mode = -1;

void arm(const char *folder, long k, int how) {
  snprintf(prefix, sizeof prefix, "%s", folder);
  calls = 0, at = k, mode = how;
}
long counted(void) { return calls; }

static int below(const char *path) { return strncmp(path, prefix, strlen(prefix)) == 0; }

static int concerns(int folder, const char *path) {
  char link[64], real[PATH_MAX];
  if (mode < 0) return 0;
  if (path && path[0] == '/') return below(path);
  if (folder == AT_FDCWD) {
    if (!getcwd(real, sizeof real)) return 0;
    return below(real);
  }
  snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
  ssize_t n = readlink(link, real, sizeof real - 1);
  if (n < 0) return 0;
  real[n] = 0;
  return below(real);
}

/* 1 if this call fails (errno is set), 2 if it is to be done by half. */
static int fails(int is_write) {
  if (calls++ != at) return 0;
  switch (mode) {
    case KILL: kill(getpid(), SIGKILL); pause();
    case FULL: errno = ENOSPC; return 1;
    case BROKEN: errno = EIO; return 1;
    case INTERRUPTED: if (is_write) { errno = EINTR; return 1; } return 0;
    case SHORT: return is_write ? 2 : 0;
    case TORN: if (is_write) return 2; kill(getpid(), SIGKILL); pause();
  }
  return 0;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static ssize_t half(ssize_t done) {
  if (mode == TORN) { kill(getpid(), SIGKILL); pause(); }
  return done;
}

ssize_t write(int fd, const void *data, size_t size) {
  if (mode >= 0 && concerns(fd, NULL)) {
    int how = fails(1);
    if (how == 1) return -1;
    if (how == 2) return half(REAL(write)(fd, data, (size + 1) / 2));
  }
  return REAL(write)(fd, data, size);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t place) {
  if (mode >= 0 && concerns(fd, NULL) && fails(0) == 1) return -1;
  return REAL(pwrite)(fd, data, size, place);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t place) {
  if (mode >= 0 && concerns(fd, NULL) && fails(0) == 1) return -1;
  return REAL(pwrite64)(fd, data, size, place);
}
#define ON_FD(name) \
  int name(int fd) { if (mode >= 0 && concerns(fd, NULL) && fails(0) == 1) return -1; return REAL(name)(fd); }
ON_FD(fsync)
ON_FD(fdatasync)
int ftruncate(int fd, off_t size) {
  if (mode >= 0 && concerns(fd, NULL) && fails(0) == 1) return -1;
  return REAL(ftruncate)(fd, size);
}
int ftruncate64(int fd, off64_t size) {
  if (mode >= 0 && concerns(fd, NULL) && fails(0) == 1) return -1;
  return REAL(ftruncate64)(fd, size);
}
int rename(const char *old, const char *new) {
  if (concerns(AT_FDCWD, new) && fails(0) == 1) return -1;
  return REAL(rename)(old, new);
}
int renameat(int from, const char *old, int to, const char *new) {
  if (concerns(to, new) && fails(0) == 1) return -1;
  return REAL(renameat)(from, old, to, new);
}
#define ON_PATH(name) \
  int name(const char *path) { if (concerns(AT_FDCWD, path) && fails(0) == 1) return -1; return REAL(name)(path); }
ON_PATH(unlink)
ON_PATH(rmdir)
int unlinkat(int folder, const char *path, int flags) {
  if (concerns(folder, path) && fails(0) == 1) return -1;
  return REAL(unlinkat)(folder, path, flags);
}
int mkdir(const char *path, mode_t bits) {
  if (concerns(AT_FDCWD, path) && fails(0) == 1) return -1;
  return REAL(mkdir)(path, bits);
}
#define MODE_OF(flags, last) \
  mode_t bits = 0; \
  if ((flags) & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, last); bits = va_arg(rest, mode_t); va_end(rest); }
#define CHANGES(flags) ((flags) & (O_CREAT | O_TRUNC))
#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    MODE_OF(flags, flags) \
    if (CHANGES(flags) && concerns(AT_FDCWD, path) && fails(0) == 1) return -1; \
    return REAL(name)(path, flags, bits); \
  }
#define OPENAT(name) \
  int name(int folder, const char *path, int flags, ...) { \
    MODE_OF(flags, flags) \
    if (CHANGES(flags) && concerns(folder, path) && fails(0) == 1) return -1; \
    return REAL(name)(folder, path, flags, bits); \
  }
#undef open
#undef openat
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

/* Memory: no dlsym here, which allocates itself; glibc has its functions under these names too. */
#ifdef __GLIBC__
static long allocations, failing = -1;
static size_t least = (size_t)1 << 62;

void arm_allocations(long k, long bytes) { failing = k, least = bytes, allocations = 0; }
long counted_allocations(void) { return allocations; }

static int lacks(size_t size) {
  if (size < least) return 0;
  if (__atomic_fetch_add(&allocations, 1, __ATOMIC_RELAXED) != failing) return 0;
  errno = ENOMEM;
  return 1;
}

void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);

void *malloc(size_t size) { return lacks(size) ? NULL : __libc_malloc(size); }
void *calloc(size_t n, size_t size) {
  return (!size || n <= SIZE_MAX / size) && lacks(n * size) ? NULL : __libc_calloc(n, size);
}
void *realloc(void *old, size_t size) { return lacks(size) ? NULL : __libc_realloc(old, size); }
void *memalign(size_t by, size_t size) { return lacks(size) ? NULL : __libc_memalign(by, size); }
void *aligned_alloc(size_t by, size_t size) { return memalign(by, size); }
int posix_memalign(void **target, size_t by, size_t size) {
  void *found = memalign(by, size);
  if (!found) return ENOMEM;
  *target = found;
  return 0;
}
#define MAP(name, offset) \
  void *name(void *at, size_t size, int allowed, int flags, int fd, offset place) { \
    if ((flags & MAP_ANONYMOUS) && lacks(size)) return MAP_FAILED; \
    return REAL(name)(at, size, allowed, flags, fd, place); \
  }
MAP(mmap, off_t)
MAP(mmap64, off64_t)
#else
void arm_allocations(long k, long bytes) {}
long counted_allocations(void) { return 0; }
#endif
