// checksums.json of a folder: what each file held when it was written. folder_verify (folder.h, verify.c) reads it.
#ifndef SKYMOE_CHECKPOINT_CHECKSUMS_H
#define SKYMOE_CHECKPOINT_CHECKSUMS_H

#include <stdint.h>

#include "base/status.h"

// Of a folder that is being written: files whose checksums are known.
struct checksums {
    const char *folder;
    struct checksum {
        char *name; // relative to the folder
        long bytes;
        uint64_t xxh3;
    } *file;
    long n;
};
MUST_USE enum status checksums_add(struct checksums *s, const char *name, long bytes, uint64_t xxh3);
// Reads all other files of the folder, makes the folders below it durable, and writes checksums.json.
MUST_USE enum status checksums_write(struct checksums *s);
void checksums_free(struct checksums *s);

// Of one file, with signs of life.
MUST_USE enum status checksum_file(uint64_t *xxh3, long *bytes, const char *path);

#endif
