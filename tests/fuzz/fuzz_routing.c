// A --replay-routing file of any bytes: refused with a sentence, or experts that exist, different within a token.
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "train/trace.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { L = 2, E = 5, K = 2, T = 3 };

static void check_given(const struct routing_reader *r)
{
    for (long i = 0; i < L * T; i++) {
        int e[K];
        for (long k = 0; k < K; k++) {
            int given = r->given[i * K + k];
            e[k] = given < 0 ? -1 - given : given;
            CHECK(e[k] >= 0 && e[k] < E);
        }
        CHECK(r->seen[i] && e[0] != e[1]);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int given[L * T * K];
    bool seen[L * T];
    uint8_t *copy = malloc(size ? size : 1);
    memcpy(copy, data, size);
    struct routing_reader r = {.map = {.data = copy, .bytes = (long)size}, .L = L, .E = E, .K = K, .T = T,
                               .given = given, .seen = seen};
    snprintf(r.path, sizeof r.path, "fuzz.jsonl");
    for (long step = 1; step < 4; step++) {
        if (routing_read(&r, step) == OK) check_given(&r);
        else {
            CHECK(strncmp(fail_message(), "fuzz.jsonl", 10) == 0);
            break;
        }
    }
    free(copy);
    return 0;
}
