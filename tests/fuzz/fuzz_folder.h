// For fuzz programs whose parser reads a file: a folder in memory where there is one (a disk would take most of the
// time), removed at the end.
#ifndef SKYMOE_TESTS_FUZZ_FOLDER_H
#define SKYMOE_TESTS_FUZZ_FOLDER_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/files.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char fuzz_folder[PATH_LENGTH];

static void fuzz_folder_remove(void)
{
    CHECK(folder_remove(fuzz_folder) == OK);
}

static void fuzz_folder_make(void)
{
    const char *tmp = getenv("TMPDIR");
    if (!tmp) tmp = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    snprintf(fuzz_folder, sizeof fuzz_folder, "%s/skymoe-fuzz-XXXXXX", tmp);
    CHECK(mkdtemp(fuzz_folder));
    atexit(fuzz_folder_remove);
}

// fuzz_folder/name; valid until the fourth call after it.
static const char *fuzz_path(const char *name)
{
    static char path[4][PATH_LENGTH + 64];
    static int next;
    char *p = path[next++ % 4];
    snprintf(p, sizeof path[0], "%s/%s", fuzz_folder, name);
    return p;
}

// Not file_write, which waits for the disk.
static void fuzz_put(const char *name, const void *data, size_t size)
{
    FILE *f = fopen(fuzz_path(name), "wb");
    CHECK(f);
    CHECK(fwrite(data, 1, size, f) == size);
    CHECK(fclose(f) == 0);
}

// The last failure's sentence begins with that path.
static inline void fuzz_blames(const char *path)
{
    CHECK(strncmp(fail_message(), path, strlen(path)) == 0);
}

#endif
