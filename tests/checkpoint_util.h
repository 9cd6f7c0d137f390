// Models with random contents and a folder to write them to, for the tests of src/checkpoint.
#ifndef SKYMOE_TESTS_CHECKPOINT_UTIL_H
#define SKYMOE_TESTS_CHECKPOINT_UTIL_H

#include "model_util.h"

#include "base/json.h"
#include "checkpoint/checkpoint.h"

#include <sys/stat.h>
#include <unistd.h>

static char folder[PATH_LENGTH]; // a fresh one for the whole program

static UNUSED const char *in(const char *name)
{
    static char path[4][PATH_LENGTH];
    static int next;
    char *p = path[next++ % 4];
    OK_OR_FAIL(path_join(p, folder, name));
    return p;
}

static UNUSED void expect(enum status status, enum status wanted, const char *sentence)
{
    if (status != wanted || (sentence && !strstr(fail_message(), sentence)))
        fail_msg("status %d, \"%s\", expected %d, \"%s\"", status, status ? fail_message() : "", wanted,
                 sentence ? sentence : "anything");
}

static UNUSED struct config llama_config(void)
{
    struct config c = tiny_dense();
    c.pad = 0;
    return c;
}

static UNUSED struct config moe_config(void)
{
    struct config c = tiny_moe();
    c.D = 12; // 4 heads of 3 are odd; Skywork needs H C = D
    c.C = 4;
    c.H = 3;
    c.G = 3;
    return c;
}

// All bytes of a model's parameters, masters and moments, in table order. The caller frees.
static UNUSED char *snapshot(const struct model *m, long *bytes)
{
    long el_size = dtype_size(F64), room = 4 * m->params.elements * el_size;
    char *all = calloc(1, (size_t)room);
    *bytes = 0;
    for (long i = 0; i < m->params.n; i++) {
        const struct param *p = &m->params.item[i];
        const void *data[] = {p->value.data, p->master, p->m, p->v};
        for (int j = 0; j < 4; j++) {
            long n = param_elements(p) * dtype_size(j ? m->x.k->acc : p->value.dtype);
            if (!data[j]) continue;
            m->x.k->to_host(all + *bytes, data[j], n);
            *bytes += n;
        }
    }
    return all;
}

static UNUSED bool same_model(const struct model *a, const struct model *b)
{
    long n, n2;
    char *x = snapshot(a, &n), *y = snapshot(b, &n2);
    bool same = n == n2 && memcmp(x, y, (size_t)n) == 0;
    free(x);
    free(y);
    return same;
}

// Moments and masters random too; values are the masters rounded.
static UNUSED void randomise_all(struct model *m, int salt)
{
    model_init_weights(m, salt, 0.5, 0.3);
    for (long i = 0; i < m->params.n; i++) {
        struct param *p = &m->params.item[i];
        for (int j = 0; j < 2; j++)
            m->x.k->init_normal((struct tensor){.data = j ? p->v : p->m, .dtype = m->x.k->acc}, 0, 1e-3,
                                param_elements(p), salt + j, rng_stream(p->name), 0);
    }
}

static UNUSED int set_up(void **state)
{
    (void)state;
    const char *base = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/skymoe-test-XXXXXX", base ? base : "/tmp");
    return !mkdtemp(folder) || kernels_init(1) != OK;
}

static UNUSED int tear_down(void **state)
{
    (void)state;
    return folder_remove(folder) != OK;
}

#endif
