/* Stands between a server and the system, preloaded: the faults that no test can
 * have for real. What to do stands in a file that both sides map; the test writes
 * it. Only files named *backjob.db* (the database and its log) are touched. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* As `Shim` of mod.rs writes it. */
struct orders {
    volatile int32_t write_errno; /* writes, growing and shrinking fail so */
    volatile int32_t sync_errno;  /* fsync and fdatasync fail so */
    volatile int32_t read_errno;  /* reads fail so */
    volatile int32_t sync_delay;  /* milliseconds that a sync takes longer */
    volatile int32_t hang;        /* while not 0, a sync does not return */
    volatile int32_t clock_shift; /* seconds that the wall clock is ahead */
};

static struct orders *orders;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("BACKJOB_TEST_SHIM");
    int file = path ? open(path, O_RDWR) : -1;
    if (file < 0) return;
    void *at = mmap(NULL, 4096, PROT_READ, MAP_SHARED, file, 0);
    syscall(SYS_close, file);
    if (at != MAP_FAILED) orders = at;
}

static int is_ours(int file) {
    char link[64], name[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, name, sizeof name - 1);
    if (length < 0) return 0;
    name[length] = 0;
    return strstr(name, "backjob.db") != NULL && strstr(name, ".lock") == NULL;
}

static void rest(long milliseconds) {
    struct timespec span = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    nanosleep(&span, NULL);
}

#define NEXT(name) \
    static __typeof__(name) *next; \
    if (!next) next = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)
#define FAILS(field, file) \
    if (orders && orders->field && is_ours(file)) { errno = orders->field; return -1; }

ssize_t write(int file, const void *from, size_t count) {
    NEXT(write);
    FAILS(write_errno, file)
    return next(file, from, count);
}

ssize_t pwrite(int file, const void *from, size_t count, off_t at) {
    NEXT(pwrite);
    FAILS(write_errno, file)
    return next(file, from, count, at);
}

ssize_t pwrite64(int file, const void *from, size_t count, off64_t at) {
    NEXT(pwrite64);
    FAILS(write_errno, file)
    return next(file, from, count, at);
}

int ftruncate(int file, off_t length) {
    NEXT(ftruncate);
    FAILS(write_errno, file)
    return next(file, length);
}

int ftruncate64(int file, off64_t length) {
    NEXT(ftruncate64);
    FAILS(write_errno, file)
    return next(file, length);
}

ssize_t read(int file, void *to, size_t count) {
    NEXT(read);
    FAILS(read_errno, file)
    return next(file, to, count);
}

ssize_t pread(int file, void *to, size_t count, off_t at) {
    NEXT(pread);
    FAILS(read_errno, file)
    return next(file, to, count, at);
}

ssize_t pread64(int file, void *to, size_t count, off64_t at) {
    NEXT(pread64);
    FAILS(read_errno, file)
    return next(file, to, count, at);
}

static void drag(int file) {
    if (!orders || !is_ours(file)) return;
    if (orders->sync_delay) rest(orders->sync_delay);
    while (orders->hang) rest(10);
}

int fsync(int file) {
    NEXT(fsync);
    drag(file);
    FAILS(sync_errno, file)
    return next(file);
}

int fdatasync(int file) {
    NEXT(fdatasync);
    drag(file);
    FAILS(sync_errno, file)
    return next(file);
}

int clock_gettime(clockid_t clock, struct timespec *to) {
    NEXT(clock_gettime);
    int result = next(clock, to);
    if (result == 0 && orders && clock == CLOCK_REALTIME) to->tv_sec += orders->clock_shift;
    return result;
}
