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

// A model that trains: with its optimizer.
struct trainee {
    struct model m;
    struct zero z;
};

static UNUSED enum status trainee_init(struct trainee *t, const struct config *c, const struct model_options *o)
{
    TRY(model_init(&t->m, c, o));
    return zero_init(&t->z, &t->m, &zero_spread);
}

static UNUSED void trainee_free(struct trainee *t)
{
    zero_free(&t->z);
    model_free(&t->m);
}

// All bytes of a model's parameters, and of its masters and moments (z not NULL), in table order. The caller frees.
static UNUSED char *snapshot(const struct model *m, const struct zero *z, long *bytes)
{
    long el_size = dtype_size(F64), room = 4 * m->params.elements * el_size;
    char *all = calloc(1, (size_t)room);
    *bytes = 0;
    for (long i = 0; i < m->params.n; i++) {
        const struct param *p = &m->params.item[i];
        const struct zero_piece *of = z ? piece_of(z, p) : NULL;
        const void *data[] = {p->value.data, of ? of->master : NULL, of ? of->m : NULL, of ? of->v : NULL};
        for (int j = 0; j < 4; j++) {
            long n = param_elements(p) * dtype_size(j ? m->x.k->acc : p->value.dtype);
            if (!data[j]) continue;
            m->x.k->to_host(all + *bytes, data[j], n);
            *bytes += n;
        }
    }
    return all;
}

static UNUSED bool same_bytes(const struct model *a, const struct zero *az, const struct model *b,
                              const struct zero *bz)
{
    long n, n2;
    char *x = snapshot(a, az, &n), *y = snapshot(b, bz, &n2);
    bool same = n == n2 && memcmp(x, y, (size_t)n) == 0;
    free(x);
    free(y);
    return same;
}

static UNUSED bool same_model(const struct model *a, const struct model *b)
{
    return same_bytes(a, NULL, b, NULL);
}

static UNUSED bool same_trainee(const struct trainee *a, const struct trainee *b)
{
    return same_bytes(&a->m, &a->z, &b->m, &b->z);
}

static UNUSED void randomise_values(struct model *m, int salt)
{
    model_init_weights(m, &(struct init_rule){salt, 0.5, 0.3});
}

// Moments and masters random too; values are the masters rounded.
static UNUSED void randomise_all(struct trainee *t, int salt)
{
    randomise_values(&t->m, salt);
    zero_init_masters(&t->z, &(struct init_rule){salt, 0.5, 0.3});
    for (const struct zero_piece *p = t->z.piece; p < t->z.piece + t->z.pieces; p++)
        for (int j = 0; j < 2; j++)
            t->m.x.k->init_normal((struct tensor){.data = j ? p->v : p->m, .dtype = t->m.x.k->acc}, 0, 1e-3, p->n,
                                  salt + j, rng_stream(p->param->name), 0);
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
