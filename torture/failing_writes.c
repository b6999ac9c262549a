/* Loaded before the C library: the NTH write, sync or rename in a folder fails with EIO, as on a disk that is dying. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static long done;

static int fails(const char *path) {
    const char *folder = getenv("FAILING_FOLDER"), *nth = getenv("FAILING_NTH");
    if (folder == NULL || nth == NULL || strncmp(path, folder, strlen(folder)) != 0)
        return 0;
    if (__atomic_add_fetch(&done, 1, __ATOMIC_SEQ_CST) != atol(nth))
        return 0;
    errno = EIO;
    return 1;
}

static int fails_at(int file) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = '\0';
    return fails(path);
}

#define WRAP(type, name, parameters, arguments, failure)                     \
    type name parameters {                                                   \
        static type(*original) parameters;                                   \
        if (original == NULL)                                                \
            original = (type(*) parameters)dlsym(RTLD_NEXT, #name);          \
        return failure ? -1 : original arguments;                            \
    }

WRAP(ssize_t, write, (int file, const void *bytes, size_t n), (file, bytes, n), fails_at(file))
WRAP(ssize_t, pwrite, (int file, const void *bytes, size_t n, off_t at), (file, bytes, n, at), fails_at(file))
WRAP(ssize_t, pwrite64, (int file, const void *bytes, size_t n, off64_t at), (file, bytes, n, at), fails_at(file))
WRAP(ssize_t, writev, (int file, const struct iovec *parts, int n), (file, parts, n), fails_at(file))
WRAP(int, fsync, (int file), (file), fails_at(file))
WRAP(int, fdatasync, (int file), (file), fails_at(file))
WRAP(int, rename, (const char *from, const char *to), (from, to), fails(from))
