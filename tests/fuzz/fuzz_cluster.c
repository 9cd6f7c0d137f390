// A cluster file of any bytes: refused with a sentence, or constants that are written and read again.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "plan/cluster.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_cluster(const struct cluster *c)
{
    struct cluster again, copy = *c;
    struct json_out o = {0};
    CHECK(cluster_devices(c) >= 1);
    for (int r = 0; r < RATES; r++) CHECK(cluster_flops(c, (enum rate)r) > 0);
    cluster_put(&o, c);
    CHECK(json_out_status(&o) == OK);
    CHECK(cluster_parse(&again, o.text, (long)strlen(o.text), "written") == OK);
    for (long i = 0; i < CLUSTER_CONSTANTS; i++) {
        struct constant *a, *b;
        cluster_constant(&a, &copy, i);
        cluster_constant(&b, &again, i);
        CHECK(a->value == b->value && a->source == b->source);
    }
    json_out_free(&o);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct cluster c;
    char *copy = malloc(size ? size : 1);
    memcpy(copy, data, size);
    if (cluster_parse(&c, copy, (long)size, "fuzz.json") == OK) check_cluster(&c);
    else CHECK(strncmp(fail_message(), "fuzz.json: ", 11) == 0);
    free(copy);
    return 0;
}
