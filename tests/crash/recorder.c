/* Records what a process does to the files under one folder, so that every state of them that a crash could leave can be made again.
 *
 *   LD_PRELOAD=recorder.so RECORD_ROOT=/folder RECORD_FD=3 [RECORD_DIE_AT=17] program
 *
 * Each record is a line "act name offset length" and then `length` bytes, written to RECORD_FD before the act is done; names are
 * relative to the folder. The process itself may write lines "mark - number 0". With RECORD_DIE_AT=k the process ends, as by a
 * signal, at its k-th record: before the act, after k acts. One thread only; what is written through mmap isn't seen.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#define FDS 1024

static char *names[FDS];
static off_t ends[FDS]; /* where write() puts the next byte */
static char root[PATH_MAX];
static size_t root_length;
static int log_fd = -1;
static long die_at = -1, acts;

__attribute__((constructor)) static void begin(void) {
    const char *folder = getenv("RECORD_ROOT"), *fd = getenv("RECORD_FD"), *at = getenv("RECORD_DIE_AT");
    if (!folder || !fd || !realpath(folder, root)) return;
    root_length = strlen(root);
    log_fd = atoi(fd);
    if (at) die_at = atol(at);
    unsetenv("LD_PRELOAD"); /* children aren't recorded */
}

static const char *name_of(const char *path, char *buffer) {
    if (log_fd < 0) return NULL;
    if (path[0] != '/') {
        char here[PATH_MAX / 2];
        if (!getcwd(here, sizeof here)) return NULL;
        snprintf(buffer, PATH_MAX, "%s/%s", here, path);
        path = buffer;
    }
    if (strncmp(path, root, root_length) != 0) return NULL;
    if (path[root_length] == '\0') return ".";
    return path[root_length] == '/' ? path + root_length + 1 : NULL;
}

static void put(const void *data, size_t length) {
    for (size_t done = 0; done < length;) {
        long n = syscall(SYS_write, log_fd, (const char *)data + done, length - done);
        if (n < 0) abort();
        done += (size_t)n;
    }
}

static void record(const char *act, const char *name, long long offset, const void *data, size_t length) {
    char line[PATH_MAX + 100];
    if (acts++ == die_at) _exit(99);
    int n = snprintf(line, sizeof line, "%s %s %lld %zu\n", act, name, offset, length);
    put(line, (size_t)n);
    if (length) put(data, length);
}

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)
#define TRACKED(fd) (log_fd >= 0 && (fd) >= 0 && (fd) < FDS && names[fd])

static int opened(const char *path, int flags, mode_t mode, const char *call) {
    static int (*real)(const char *, int, ...);
    char buffer[PATH_MAX];
    const char *name = name_of(path, buffer);
    if (!real) real = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, call);
    if (name && (flags & O_CREAT) && access(path, F_OK) != 0) record("create", name, 0, NULL, 0);
    else if (name && (flags & O_TRUNC)) record("truncate", name, 0, NULL, 0);
    int fd = real(path, flags, mode);
    if (name && fd >= 0 && fd < FDS) {
        free(names[fd]);
        names[fd] = strdup(name);
        ends[fd] = 0;
    }
    return fd;
}

static mode_t mode_of(int flags, va_list rest) { return flags & (O_CREAT | O_TMPFILE) ? (mode_t)va_arg(rest, int) : 0; }

#define OPEN(call)                                                                                                     \
    int call(const char *path, int flags, ...) {                                                                       \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = mode_of(flags, rest);                                                                            \
        va_end(rest);                                                                                                  \
        return opened(path, flags, mode, #call);                                                                       \
    }
OPEN(open)
OPEN(open64)

int close(int fd) {
    REAL(int, "close", int);
    if (TRACKED(fd)) {
        free(names[fd]);
        names[fd] = NULL;
    }
    return real(fd);
}

ssize_t write(int fd, const void *data, size_t length) {
    REAL(ssize_t, "write", int, const void *, size_t);
    if (TRACKED(fd)) record("write", names[fd], ends[fd], data, length), ends[fd] += (off_t)length;
    return real(fd, data, length);
}

#define PWRITE(call)                                                                                                   \
    ssize_t call(int fd, const void *data, size_t length, off_t at) {                                                  \
        REAL(ssize_t, #call, int, const void *, size_t, off_t);                                                        \
        if (TRACKED(fd)) record("write", names[fd], (long long)at, data, length);                                      \
        return real(fd, data, length, at);                                                                             \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

#define TRUNCATE(call)                                                                                                 \
    int call(int fd, off_t length) {                                                                                   \
        REAL(int, #call, int, off_t);                                                                                  \
        if (TRACKED(fd)) record("truncate", names[fd], (long long)length, NULL, 0);                                    \
        return real(fd, length);                                                                                       \
    }
TRUNCATE(ftruncate)
TRUNCATE(ftruncate64)

#define SYNC(call)                                                                                                     \
    int call(int fd) {                                                                                                 \
        REAL(int, #call, int);                                                                                         \
        if (TRACKED(fd)) record("sync", names[fd], 0, NULL, 0);                                                        \
        return real(fd);                                                                                               \
    }
SYNC(fsync)
SYNC(fdatasync)

int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    char buffer[PATH_MAX];
    const char *name = name_of(path, buffer);
    if (name) record("unlink", name, 0, NULL, 0);
    return real(path);
}

int rename(const char *old, const char *new) {
    REAL(int, "rename", const char *, const char *);
    char from[PATH_MAX], to[PATH_MAX];
    const char *a = name_of(old, from), *b = name_of(new, to);
    if (a && b) record("rename", a, 0, b, strlen(b));
    return real(old, new);
}
