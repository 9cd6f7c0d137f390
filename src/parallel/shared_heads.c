#include "parallel/shared_heads.h"

#include <stdlib.h>

static long borrowed_elements(const struct model *m)
{
    return m->x.local.borrowed * m->c.C * m->c.D;
}

// k and v of a layer, whose rows ranks may share.
static const struct param *shared_param(const struct model *m, long layer, int which)
{
    for (const struct param *p = m->params.item; p < m->params.item + m->params.n; p++)
        if (p->local == layer && p->kind->rows == DIM_GC && which-- == 0) return p;
    CHECK(!"k and v of a layer");
}

// Ranks of the tensor group that borrow this rank's last kv head.
static long borrowers(const struct model *m, long *first)
{
    long n = 0;
    for (long r = m->grid.tp + 1; r < m->grid.layout.tp; r++) {
        struct grid other = grid_of(&m->grid.layout, group_world_rank(&m->grid.tensor, r));
        struct local theirs = local_of(&m->c, &other);
        if (!theirs.borrowed || theirs.lender != m->grid.tp) continue;
        if (n++ == 0) *first = r;
    }
    return n;
}

void shared_heads_sum(const struct model *m, long layer)
{
    const struct kernels *k = m->x.k;
    const struct group *g = &m->grid.tensor;
    long first = 0, n = g->size > 1 && m->x.local.G ? borrowers(m, &first) : 0;
    long elements = m->c.C * m->c.D, bytes = elements * dtype_size(k->acc);
    if (!n && !borrowed_elements(m)) return;
    struct message out[2], *in = malloc((size_t)(2 * n + 1) * sizeof *in);
    char *room = malloc((size_t)(2 * n * bytes + 1));
    if (!in || !room) transport_end("memory: %ld bytes of shared heads were refused", 2 * n * bytes);
    long outs = 0, ins = 0;
    for (int which = 0; which < 2; which++) {
        const struct param *p = shared_param(m, layer, which);
        if (p->borrowed) out[outs++] = (struct message){group_world_rank(g, m->x.local.lender), p->grad, bytes};
        for (long i = 0; i < n; i++, ins++)
            in[ins] = (struct message){group_world_rank(g, first + i), room + ins * bytes, bytes};
    }
    transfer_wait(transfer_start(g->channel, out, outs, in, ins));
    for (int which = 0; which < 2 && n; which++) {
        const struct param *p = shared_param(m, layer, which);
        acc *last = acc_at(&m->x, p->grad, p->rows * p->columns - elements);
        for (long i = 0; i < n; i++) {
            const void *part[] = {last, room + (which * n + i) * bytes};
            k->add_parts(last, part, 2, k->acc, elements);
        }
    }
    free(room);
    free(in);
}

void shared_heads_return(const struct model *m, long layer)
{
    const struct group *g = &m->grid.tensor;
    long first = 0, n = g->size > 1 && m->x.local.G ? borrowers(m, &first) : 0;
    long elements = m->c.C * m->c.D, outs = 0, ins = 0;
    if (!n && !borrowed_elements(m)) return;
    struct message in[2], *out = malloc((size_t)(2 * n + 1) * sizeof *out);
    if (!out) transport_end("memory: a list of %ld messages was refused", 2 * n);
    for (int which = 0; which < 2; which++) {
        const struct param *p = shared_param(m, layer, which);
        long size = dtype_size(p->value.dtype), bytes = elements * size;
        if (p->borrowed) in[ins++] = (struct message){group_world_rank(g, m->x.local.lender), p->value.data, bytes};
        for (long i = 0; i < n; i++)
            out[outs++] = (struct message){group_world_rank(g, first + i),
                                           (char *)p->value.data + p->rows * p->columns * size - bytes, bytes};
    }
    transfer_wait(transfer_start(g->channel, out, outs, in, ins));
    free(out);
}
