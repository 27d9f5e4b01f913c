/* Lets the disk fail under a running process, in one folder: for tests of what it does then.
 *
 *   LD_PRELOAD=failing_disk.so FAIL_ROOT=/folder FAIL_MODE=/file program
 *
 * The first byte of FAIL_MODE's file says how, and may change at any time: 'r' the file system is read-only, 'f' it is full, 'e' nothing
 * can be read or written; anything else: all is well.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static char root[PATH_MAX];
static size_t root_length;
static volatile const char *mode;

__attribute__((constructor)) static void begin(void) {
    const char *folder = getenv("FAIL_ROOT"), *file = getenv("FAIL_MODE");
    if (!folder || !file || !realpath(folder, root)) return;
    root_length = strlen(root);
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    void *at = fd < 0 ? MAP_FAILED : mmap(NULL, 1, PROT_READ, MAP_SHARED, fd, 0);
    if (at != MAP_FAILED) mode = at;
}

static int inside(const char *path) {
    return mode && strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || path[root_length] == '\0');
}

static int ours(int fd) {
    char link[64], path[PATH_MAX];
    if (!mode || fd < 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = '\0';
    return inside(path);
}

/* What an act that reads, or writes, or makes a file longer, fails by; 0 where it doesn't. */
static int fault(int writes, int grows) {
    switch (mode ? *mode : 0) {
    case 'e': return EIO;
    case 'r': return writes ? EROFS : 0;
    case 'f': return grows ? ENOSPC : 0;
    default: return 0;
    }
}

#define REAL(type, name, ...) type (*real)(__VA_ARGS__) = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)
#define FAIL(is_ours, writes, grows)                                                                                   \
    do {                                                                                                               \
        int code = (is_ours) ? fault(writes, grows) : 0;                                                               \
        if (code) {                                                                                                    \
            errno = code;                                                                                              \
            return -1;                                                                                                 \
        }                                                                                                              \
    } while (0)

#define OPEN(call)                                                                                                     \
    int call(const char *path, int flags, ...) {                                                                       \
        REAL(int, #call, const char *, int, ...);                                                                      \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t bits = flags & (O_CREAT | O_TMPFILE) ? (mode_t)va_arg(rest, int) : 0;                                   \
        va_end(rest);                                                                                                  \
        FAIL(inside(path), (flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)) != 0, 0);                                 \
        return real(path, flags, bits);                                                                                \
    }
OPEN(open)
OPEN(open64)

ssize_t write(int fd, const void *data, size_t length) {
    REAL(ssize_t, "write", int, const void *, size_t);
    FAIL(ours(fd), 1, 1);
    return real(fd, data, length);
}

ssize_t read(int fd, void *data, size_t length) {
    REAL(ssize_t, "read", int, void *, size_t);
    FAIL(ours(fd), 0, 0);
    return real(fd, data, length);
}

#define AT(call, data_type, writes)                                                                                    \
    ssize_t call(int fd, data_type data, size_t length, off_t at) {                                                    \
        REAL(ssize_t, #call, int, data_type, size_t, off_t);                                                           \
        FAIL(ours(fd), writes, writes);                                                                                \
        return real(fd, data, length, at);                                                                             \
    }
AT(pwrite, const void *, 1)
AT(pwrite64, const void *, 1)
AT(pread, void *, 0)
AT(pread64, void *, 0)

int fsync(int fd) {
    REAL(int, "fsync", int);
    FAIL(ours(fd), 1, 0);
    return real(fd);
}
int fdatasync(int fd) {
    REAL(int, "fdatasync", int);
    FAIL(ours(fd), 1, 0);
    return real(fd);
}
int ftruncate(int fd, off_t length) {
    REAL(int, "ftruncate", int, off_t);
    FAIL(ours(fd), 1, 0);
    return real(fd, length);
}
int ftruncate64(int fd, off_t length) {
    REAL(int, "ftruncate64", int, off_t);
    FAIL(ours(fd), 1, 0);
    return real(fd, length);
}
int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    FAIL(inside(path), 1, 0);
    return real(path);
}
int rename(const char *old, const char *new) {
    REAL(int, "rename", const char *, const char *);
    FAIL(inside(old) || inside(new), 1, 0);
    return real(old, new);
}
int mkdir(const char *path, mode_t bits) {
    REAL(int, "mkdir", const char *, mode_t);
    FAIL(inside(path), 1, 0);
    return real(path, bits);
}
