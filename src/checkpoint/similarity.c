// Expert similarity of a folder, streamed: a layer of a large model does not fit in memory.
//
//     mean pairwise cosine = (|sum_e u_e|^2 - sum_e |u_e|^2) / (E (E - 1)),  u_e = w_e / |w_e|
//
// exact in two passes over the layer: norms, then the sum of unit vectors piece by piece. An expert of zeros counts as
// orthogonal to all, as in the kernel of that name.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint/folder.h"

enum { CHUNK = 1 << 18 }; // elements of one expert at a time

struct pass {
    const struct model_folder *f;
    long E;
    long first, parts; // params.item[first + e * parts + part] is that part of expert e
    float *values;     // [CHUNK]
    double *sum;       // [CHUNK]
    double *inverse;   // [E] 1 / |w_e|; 0 for an expert of zeros
};

static void add_norms(struct pass *p, long part, long from, long n)
{
    for (long e = 0; e < p->E; e++) {
        model_folder_read(p->values, p->f, p->first + e * p->parts + part, from, n);
        p->inverse[e] += kernels_for(F32)->sum_squares(p->values, n);
    }
}

static double sum_of_units(struct pass *p, long part, long from, long n)
{
    memset(p->sum, 0, (size_t)n * sizeof *p->sum);
    for (long e = 0; e < p->E; e++) {
        model_folder_read(p->values, p->f, p->first + e * p->parts + part, from, n);
        double *restrict sum = p->sum, inverse = p->inverse[e];
        const float *restrict x = p->values;
        for (long i = 0; i < n; i++) sum[i] += x[i] * inverse;
    }
    double squares = 0;
    for (long i = 0; i < n; i++) squares += p->sum[i] * p->sum[i];
    return squares;
}

static double layer_similarity(struct pass *p)
{
    double squares = 0;
    memset(p->inverse, 0, (size_t)p->E * sizeof *p->inverse);
    for (int units = 0; units < 2; units++) {
        for (long part = 0; part < p->parts; part++) {
            const struct param *param = &p->f->params.item[p->first + part];
            long elements = param->rows * param->columns;
            for (long from = 0; from < elements; from += CHUNK) {
                long n = elements - from < CHUNK ? elements - from : CHUNK;
                if (units) squares += sum_of_units(p, part, from, n);
                else add_norms(p, part, from, n);
            }
        }
        for (long e = 0; e < p->E && !units; e++) p->inverse[e] = p->inverse[e] != 0 ? 1 / sqrt(p->inverse[e]) : 0;
    }
    double lengths = 0;
    for (long e = 0; e < p->E; e++) lengths += p->inverse[e] != 0;
    return p->E == 1 ? 1 : (squares - lengths) / ((double)p->E * (double)(p->E - 1));
}

static void all_layers(double *similarity, struct pass *p)
{
    const struct param_list *list = &p->f->params;
    for (long i = 0; i < list->n; i++) {
        if (list->item[i].expert != 0 || (i > 0 && list->item[i - 1].expert == 0)) continue;
        p->first = i;
        p->parts = 0;
        while (list->item[i + p->parts].expert == 0) p->parts++;
        similarity[list->item[i].layer] = layer_similarity(p);
    }
}

enum status folder_similarity(double *similarity, const struct model_folder *f)
{
    long E = f->config.E;
    if (E == 0) return OK;
    struct pass p = {.f = f, .E = E};
    p.values = malloc(CHUNK * sizeof *p.values);
    p.sum = malloc(CHUNK * sizeof *p.sum);
    p.inverse = malloc((size_t)E * sizeof *p.inverse);
    enum status status = OK;
    if (p.values && p.sum && p.inverse) all_layers(similarity, &p);
    else status = fail(ERR_MEMORY, "%s: no memory to compare its experts", f->path);
    free(p.values);
    free(p.sum);
    free(p.inverse);
    return status;
}
