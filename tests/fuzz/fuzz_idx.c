// An .idx of any bytes: refused with a sentence, or every document lies within the .bin. The first two bytes choose how
// long the .bin is.
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "data/dataset.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_all(struct dataset *d, long bin_bytes)
{
    uint8_t *bin = calloc((size_t)bin_bytes + 1, 1);
    int token[64];
    long sum = 0;
    d->bin.data = bin;
    for (long i = 0; i < d->documents; i++) {
        long n = dataset_document_tokens(d, i);
        CHECK(n >= 0 && dataset_document_start(d, i) == sum);
        for (long from = 0; from < n; from += 64) dataset_read(token, d, i, from, n - from < 64 ? n - from : 64);
        sum += n;
    }
    CHECK(sum == d->tokens && sum * d->token_bytes == bin_bytes);
    free(bin);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct dataset d = {0};
    if (size < 2) return 0;
    long bin_bytes = data[0] | data[1] << 8, idx_bytes = (long)size - 2;
    uint8_t *idx = malloc(idx_bytes ? (size_t)idx_bytes : 1); // exactly as long as the input
    memcpy(idx, data + 2, (size_t)idx_bytes);
    if (dataset_parse_idx(&d, idx, idx_bytes, bin_bytes, "fuzz.idx") == OK) read_all(&d, bin_bytes);
    else CHECK(strncmp(fail_message(), "fuzz.idx: ", 10) == 0);
    free(idx);
    return 0;
}
