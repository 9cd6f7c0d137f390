#include "eval/evaluate.h"

#include <math.h>
#include <stdlib.h>

#include "comm/alive.h"

// Host buffers of one batch of B samples: token, target, position, start, [B S] each, and the losses.
struct buffers {
    int *ints;
    float *losses;
};

static enum status buffers_init(struct buffers *b, long T)
{
    b->ints = malloc(4 * (size_t)T * sizeof *b->ints);
    b->losses = malloc((size_t)T * sizeof *b->losses);
    if (b->ints && b->losses) return OK;
    free(b->ints);
    free(b->losses);
    return fail(ERR_MEMORY, "memory: an evaluation batch of %ld tokens was refused (use a smaller --seq-length)", T);
}

static void buffers_free(struct buffers *b)
{
    free(b->ints);
    free(b->losses);
}

static struct batch batch_at(const struct buffers *buffers, long T, long S, long first, long B)
{
    int *at = buffers->ints + first * S;
    return (struct batch){.B = B, .S = S, .token = at, .target = at + T, .position = at + 2 * T, .start = at + 3 * T};
}

static enum status check_tokens(const struct batch *b, long V, const char *name)
{
    for (long i = 0; i < b->S; i++) {
        long id = b->token[i] > b->target[i] ? b->token[i] : b->target[i];
        if (b->token[i] < 0 || id >= V)
            return fail(ERR_FORMAT, "%s: holds token %ld, but the model's vocabulary has %ld (prepare it with the "
                        "model's tokenizer)", name, b->token[i] < 0 ? (long)b->token[i] : id, V);
    }
    return OK;
}

// Where an evaluation stands: the next sample, and how many targets may still be scored.
struct walk {
    struct loader *l;
    long samples, next;
    long left;
};

static enum status walk_start(struct walk *w, struct loader *l, long max_tokens)
{
    *w = (struct walk){.l = l, .left = max_tokens > 0 ? max_tokens : __LONG_MAX__};
    return loader_eval_count(l, &w->samples);
}

// The next batch of at most B samples; B 0 at the end. Targets beyond the limit are masked.
static enum status walk_next(struct batch *b, struct walk *w, struct buffers *buffers, long B, long V)
{
    long S = w->l->S, n = 0, T = B * S;
    for (; n < B && w->next < w->samples && w->left > 0; n++, w->next++) {
        *b = batch_at(buffers, T, S, n, 1);
        TRY(loader_eval_sample(w->l, w->next, b->token, b->target, b->position, b->start));
        TRY(check_tokens(b, V, w->l->source[0].data.prefix));
        for (long i = 0; i < S; i++) {
            if (w->left == 0) b->target[i] = -1;
            w->left -= b->target[i] >= 0;
        }
    }
    *b = batch_at(buffers, T, S, 0, n);
    return OK;
}

// ---- loss ----

// Bytes of text that the scored targets stand for.
static long text_bytes(const struct batch *b, const struct tokenizer *t)
{
    long sum = 0;
    for (long i = 0; i < b->B * b->S; i++) {
        if (b->target[i] < 0 || b->target[i] >= t->pieces) continue;
        long bytes = t->piece_bytes[b->target[i]];
        sum += bytes - (t->dummy_prefix && b->token[i] == t->bos && bytes > 0); // the space that encoding puts first
    }
    return sum;
}

double model_sum(struct model *m, const struct batch *b)
{
    return model_loss(m, b, NULL);
}

// Every rank walks through all batches, and computes those that are its turn. Ranks may share experts, so in the last
// round those without a batch take part with an empty one.
static enum status add_losses(struct evaluation *e, double *nats, struct model *m, struct loader *l,
                              const struct tokenizer *t, long max_tokens, struct buffers *buffers, loss_sum *sum)
{
    struct walk w;
    struct batch b;
    long turns = m->grid.layout.dp, B = model_loss_sequences(m, l->S);
    TRY(walk_start(&w, l, max_tokens));
    for (long turn = 0;; turn = (turn + 1) % turns) {
        TRY(walk_next(&b, &w, buffers, B, m->c.V));
        if (b.B == 0 && turn == 0) return OK;
        if (turn == m->grid.dp) *nats += sum(m, &b);
        alive_beat();
        if (b.B == 0 && turn == turns - 1) return OK;
        for (long i = 0; i < b.B * b.S; i++) e->tokens += b.target[i] >= 0;
        if (t) e->bytes += text_bytes(&b, t);
    }
}

enum status evaluate_loss(struct evaluation *e, struct model *m, struct loader *l, const struct tokenizer *t,
                          long max_tokens, loss_sum *sum)
{
    struct buffers buffers;
    double nats = 0;
    CHECK(l->S <= m->o.S);
    *e = (struct evaluation){.accuracy = NAN};
    TRY(agree(buffers_init(&buffers, m->o.B * l->S)));
    enum status status = agree(add_losses(e, &nats, m, l, t, max_tokens, &buffers, sum));
    buffers_free(&buffers);
    if (!m->x.local.ends || m->grid.tp > 0) nats = 0; // the ranks of a tensor group know the same
    group_sum_f64(&m->grid.world, &nats, 1);
    e->loss = e->tokens ? nats / (double)e->tokens : NAN;
    e->perplexity = exp(e->loss);
    e->bits_per_byte = e->bytes ? nats / M_LN2 / (double)e->bytes : NAN;
    return status;
}

// ---- divergence ----

static void add_divergence(struct divergence *d, double *sum, struct model *p, struct model *q, const struct batch *b,
                           float *kl)
{
    const struct kernels *k = p->x.k;
    long T = b->B * b->S;
    model_loss(p, b, NULL);
    model_loss(q, b, NULL);
    for (long t = 0; t < T; t += HEAD_CHUNK) {
        long n = T - t < HEAD_CHUNK ? T - t : HEAD_CHUNK;
        head_logits(&p->x, &p->p, &p->head, p->out, t, n);
        head_logits(&q->x, &q->p, &q->head, q->out, t, n);
        k->kl_divergence(p->head.loss, p->head.logits, q->head.logits, n, p->c.V);
        head_values(&p->x, kl, p->head.loss, n);
        for (long i = 0; i < n; i++) {
            if (b->target[t + i] < 0) continue;
            *sum += (double)kl[i];
            if (!((double)kl[i] <= d->max)) d->max = (double)kl[i]; // NaN stays
            d->tokens++;
        }
    }
}

static enum status add_divergences(struct divergence *d, double *sum, struct model *p, struct model *q,
                                   struct loader *l, long max_tokens, struct buffers *buffers)
{
    struct walk w;
    struct batch b;
    TRY(walk_start(&w, l, max_tokens));
    for (;;) {
        TRY(walk_next(&b, &w, buffers, p->o.B, p->c.V));
        if (b.B == 0) return OK;
        add_divergence(d, sum, p, q, &b, buffers->losses);
    }
}

enum status evaluate_kl(struct divergence *d, struct model *p, struct model *q, struct loader *l, long max_tokens)
{
    struct buffers buffers;
    double sum = 0;
    CHECK(l->S <= p->o.S && p->o.S == q->o.S && p->o.B == q->o.B && p->x.k->acc == F32 && q->x.k->acc == F32);
    *d = (struct divergence){.max = 0};
    if (p->c.V != q->c.V)
        return fail(ERR_FORMAT, "%s: vocab_size %ld, but %s has %ld (compare models of one vocabulary)", p->c.folder,
                    p->c.V, q->c.folder, q->c.V);
    TRY(buffers_init(&buffers, p->o.B * l->S));
    enum status status = add_divergences(d, &sum, p, q, l, max_tokens, &buffers);
    buffers_free(&buffers);
    d->mean = d->tokens ? sum / (double)d->tokens : NAN;
    return status;
}
