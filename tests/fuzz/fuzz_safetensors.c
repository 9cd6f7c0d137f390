// A safetensors file of any bytes: refused with a sentence, or every tensor can be read.
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct safetensors s;
    uint8_t *copy = malloc(size ? size : 1); // exactly as long as the input, so that reading beyond it is seen
    memcpy(copy, data, size);
    if (safetensors_parse(&s, copy, (long)size, "fuzz.safetensors") == OK) {
        long total = 0;
        uint64_t sum = 0;
        for (long i = 0; i < s.n; i++) {
            const struct stored_tensor *t = safetensors_find(&s, s.tensor[i].name);
            CHECK(t == &s.tensor[i]);
            for (long j = 0; j < t->bytes; j++) sum = sum * 31 + t->data[j];
            total += t->bytes;
        }
        CHECK(total <= (long)size && sum + 1 != 0);
        safetensors_close(&s);
    } else {
        CHECK(strncmp(fail_message(), "fuzz.safetensors: ", 18) == 0);
    }
    free(copy);
    return 0;
}
