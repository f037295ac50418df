/* A host's clock that is wrong: preloaded into every program of a lab host by its /etc/ld.so.preload.
 *
 * The file OFFSET (a path at compile time) holds seconds to add to the wall clock, and seconds to add to the time since
 * boot, as int64; it is mapped, so a change is a jump that all running programs see at once. The monotonic clock stays,
 * as it does on a real host whose wall clock is set, or that sleeps. Waits until a wall-clock time are given to the
 * kernel by its own clock.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const int64_t zero[2] = {0, 0};
static const volatile int64_t *offset = zero;

__attribute__((constructor)) static void begin(void) {
  int file = open(OFFSET, O_RDONLY | O_CLOEXEC);
  if (file < 0) return;
  void *page = mmap(0, 2 * sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
  close(file);
  if (page != MAP_FAILED) offset = page;
}

static long call(long number, long a, long b, long c, long d, long e, long f) {
  static long (*real)(long, ...);
  if (!real) real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
  return real(number, a, b, c, d, e, f);
}

static int is_wall(clockid_t clock) { return clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE; }

int clock_gettime(clockid_t clock, struct timespec *now) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  int result = real(clock, now);
  if (!result && is_wall(clock)) now->tv_sec += offset[0];
  if (!result && clock == CLOCK_BOOTTIME) now->tv_sec += offset[1];
  return result;
}

time_t time(time_t *into) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (into) *into = now.tv_sec;
  return now.tv_sec;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  (void)zone;
  struct timespec found;
  clock_gettime(CLOCK_REALTIME, &found);
  now->tv_sec = found.tv_sec;
  now->tv_usec = found.tv_nsec / 1000;
  return 0;
}

/* Whether a time is one of our wall clock: the monotonic one counts from the boot. */
static const struct timespec *real_time(const struct timespec *until, struct timespec *into) {
  if (!until || until->tv_sec < 1000000000) return until;
  *into = *until;
  into->tv_sec -= offset[0];
  return into;
}

long syscall(long number, ...) {
  va_list list;
  va_start(list, number);
  long a = va_arg(list, long), b = va_arg(list, long), c = va_arg(list, long);
  long d = va_arg(list, long), e = va_arg(list, long), f = va_arg(list, long);
  va_end(list);
  struct timespec until;
  if (number == SYS_futex && (b & FUTEX_CLOCK_REALTIME))
    d = (long)real_time((const struct timespec *)d, &until);
  return call(number, a, b, c, d, e, f);
}

int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until) {
  static int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
  struct timespec changed;
  /* The default version is the one of glibc 2.3.2 and later. */
  if (!real)
    real = (int (*)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *))dlvsym(
        RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
  return real(condition, mutex, real_time(until, &changed));
}
