#include "plan/cost.h"

#include <string.h>

static const struct {
    const char *name, *meaning;
} terms[TERMS] = {
    [TERM_PROJECTIONS] = {"projections", "products of attention and router: FLOPs / kernels.product_flops and "
                                         "product_weight_flops"},
    [TERM_ATTENTION] = {"attention", "causal scores and values, backward 2.5 x forward: FLOPs / "
                                     "kernels.attention_flops and attention_backward_flops"},
    [TERM_EXPERTS] = {"experts", "products of experts or dense ffn: FLOPs / kernels.grouped_flops and "
                                 "grouped_weight_flops (dense: product_)"},
    [TERM_HEAD] = {"head", "logits and their backward: FLOPs / kernels.product_flops and product_weight_flops"},
    [TERM_ELEMENTS] = {"elements", "norms, residuals, rotation, swiglu, permuting, embedding, softmax: bytes / "
                                   "kernels.elements_bytes_per_s"},
    [TERM_TOKENS] = {"tokens", "tensor group: gather tokens, add up parts: bytes / wire"},
    [TERM_ROWS] = {"rows", "expert group: rows to experts and back: bytes / wire"},
    [TERM_SLICES] = {"slices", "expert tensor group: rows to all slices, add up parts: bytes / wire"},
    [TERM_MESSAGES] = {"messages", "activations and gradients between stages, as far as a stage waits: simulated"},
    [TERM_BUBBLE] = {"bubble", "stages without work, messages taking no time: simulated"},
    [TERM_GRADIENTS] = {"gradients", "f32 gradients to their owners among the ranks that hold the same part: "
                                     "bytes / wire"},
    [TERM_WEIGHTS] = {"weights", "new weights from their owners to their holders: bytes / wire"},
    [TERM_OPTIMIZER] = {"optimizer", "adding up gradients, their norm, AdamW on the owned elements: bytes / "
                                     "kernels.read_bytes_per_s"},
    [TERM_HIDDEN] = {"hidden", "exchange behind experts (--exchange-chunks) and gradients behind the last backward, as "
                               "far as the wire's overlap allows"},
};

const char *term_name(enum term t)
{
    return terms[t].name;
}

const char *term_meaning(enum term t)
{
    return terms[t].meaning;
}

double times_sum(const struct times *x)
{
    double sum = 0;
    for (int i = 0; i < TERMS; i++) sum += x->t[i];
    return sum;
}

void times_add(struct times *sum, double factor, const struct times *x)
{
    for (int i = 0; i < TERMS; i++) sum->t[i] += factor * x->t[i];
}

long run_micro_batches(const struct run *r)
{
    long all = (r->global_batch + r->B - 1) / r->B;
    return (all + r->layout.dp - 1) / r->layout.dp;
}

struct share_most share_most_of(const struct config *c, const struct layout *l)
{
    struct share_most most = {0};
    long ranks[] = {l->tp, l->ep, l->etp}, per_kv = c->H / c->G;
    for (long i = 0; i < ranks[0]; i++) {
        struct range heads = layout_range(l, AXIS_HEAD, c->H, i), rows = layout_range(l, AXIS_VOCAB, c->V, i);
        long kv = heads.count ? (heads.first + heads.count - 1) / per_kv - heads.first / per_kv + 1 : 0;
        if ((double)heads.count > most.H) most.H = (double)heads.count;
        if ((double)kv > most.G) most.G = (double)kv;
        if ((double)rows.count > most.V) most.V = (double)rows.count;
    }
    for (long i = 0; c->E && i < ranks[1]; i++) {
        double n = (double)layout_range(l, AXIS_EXPERT, c->E, i).count;
        if (n > most.E) most.E = n;
    }
    for (long i = 0; i < ranks[c->E ? 2 : 0]; i++) {
        double n = (double)layout_range(l, c->E ? AXIS_EXPERT_FFN : AXIS_FFN, c->F, i).count;
        if (n > most.F) most.F = n;
    }
    return most;
}

// ---- one layer ----

// What the formulas have in common.
struct scale {
    const struct run *r;
    struct share_most most;
    struct places place;
    double T, own;        // tokens of the micro-batch, of a tensor rank
    double D, C, el;
    double rows, own_rows; // of experts: computed by a rank, sent by a rank
    double read, product, product_weight;
};

static struct scale scale_of(const struct run *r)
{
    const struct layout *l = &r->layout;
    const struct config *c = r->c;
    struct scale s = {.r = r, .most = share_most_of(c, l), .T = (double)(r->B * r->S), .D = (double)c->D,
                      .C = (double)c->C, .el = (double)dtype_size(r->dtype)};
    double capacity = decimal_value(r->capacity), kept = capacity > 0 && capacity < 1 ? capacity : 1;
    places_of(&s.place, r->cluster, l);
    s.own = s.T / (double)l->tp;
    s.own_rows = kept * (double)c->K * s.own;
    if (c->E) s.rows = s.own_rows * (double)(l->ep * l->etp) * s.most.E / (double)c->E;
    s.read = cluster_elements(r->cluster);
    s.product = cluster_flops(r->cluster, RATE_PRODUCT);
    s.product_weight = cluster_flops(r->cluster, RATE_PRODUCT_WEIGHT);
    return s;
}

// A product of `flops`, and its backward: as many for the input, as many for the weights.
static void add_product(struct work *w, enum term term, double flops, double rate, double weight_rate)
{
    w->forward.t[term] += flops / rate;
    w->input.t[term] += flops / rate;
    w->weight.t[term] += flops / weight_rate;
}

// All T tokens of n elements, gathered from the tensor group or added up over it: the same bytes.
static double tokens_seconds(const struct scale *s)
{
    return place_seconds(s->r->cluster, s->place.tensor, s->own * s->D * s->el);
}

// Keys that a token sees, on average over a sequence.
static double keys_seen(const struct run *r)
{
    double S = (double)r->S, w = (double)r->c->window;
    return w > 0 && w < S ? w - w * (w - 1) / (2 * S) : (S + 1) / 2;
}

static void add_attention(struct work *w, const struct scale *s)
{
    const struct cluster *k = s->r->cluster;
    double width = (s->most.H + 2 * s->most.G) * s->C, out = s->most.H * s->C;
    double flops = 4 * s->T * keys_seen(s->r) * out, exchange = tokens_seconds(s);
    double turned = 2 * s->T * (s->most.H + s->most.G) * s->C, norm = s->own * s->D; // elements
    add_product(w, TERM_PROJECTIONS, 2 * s->T * (width + out) * s->D, s->product, s->product_weight);
    w->forward.t[TERM_ATTENTION] += flops / cluster_flops(k, RATE_ATTENTION);
    w->input.t[TERM_ATTENTION] += 2.5 * flops / cluster_flops(k, RATE_ATTENTION_BACKWARD);
    w->forward.t[TERM_ELEMENTS] += (2 * norm + turned + 3 * norm) * s->el / s->read;
    w->input.t[TERM_ELEMENTS] += (4 * norm + turned) * s->el / s->read;
    w->weight.t[TERM_ELEMENTS] += 2 * norm * s->el / s->read;
    w->forward.t[TERM_TOKENS] += 2 * exchange; // gather n; add up o_proj
    w->input.t[TERM_TOKENS] += 2 * exchange;   // gather dy; add up dn
    w->weight.t[TERM_TOKENS] += exchange;      // gather n again
}

static void add_ffn(struct work *w, const struct scale *s)
{
    double norm = s->own * s->D, hidden = s->T * s->most.F, exchange = tokens_seconds(s);
    add_product(w, TERM_EXPERTS, 6 * hidden * s->D, s->product, s->product_weight);
    w->forward.t[TERM_ELEMENTS] += (5 * norm + 3 * hidden) * s->el / s->read;
    w->input.t[TERM_ELEMENTS] += (4 * norm + 5 * hidden) * s->el / s->read;
    w->weight.t[TERM_ELEMENTS] += 2 * norm * s->el / s->read;
    w->forward.t[TERM_TOKENS] += 2 * exchange;
    w->input.t[TERM_TOKENS] += 2 * exchange;
    w->weight.t[TERM_TOKENS] += exchange;
}

// What of an exchange runs behind `computing` when both go in pieces: all but one piece of either.
static double hidden_exchange(double exchange, double computing, long pieces)
{
    double rest = (double)(pieces - 1) / (double)pieces;
    return rest * (exchange < computing ? exchange : computing);
}

// Bytes a rank sends to each other rank of its expert group: a balanced share of its rows, `elements` each.
static double rows_seconds(const struct scale *s, double row_bytes)
{
    const struct run *r = s->r;
    double share = s->most.E / (double)r->c->E; // of the rank with most experts
    return place_seconds(r->cluster, s->place.expert, s->own_rows * share * row_bytes);
}

static void add_moe(struct work *w, const struct scale *s)
{
    const struct run *r = s->r;
    double norm = s->own * s->D, E = (double)r->c->E, hidden = s->rows * s->most.F, flops = 6 * hidden * s->D;
    double grouped = cluster_flops(r->cluster, RATE_GROUPED);
    double there = rows_seconds(s, s->D * s->el + 4), back = rows_seconds(s, s->D * s->el);
    double slices = place_seconds(r->cluster, s->place.expert_tensor, s->rows / (double)r->layout.etp * s->D * s->el);
    double records = place_seconds(r->cluster, s->place.tensor, s->own * (double)r->c->K * 8);
    double grouped_weight = cluster_flops(r->cluster, RATE_GROUPED_WEIGHT);
    double hidden_rows = hidden_exchange(there + back, flops / grouped, r->exchange_chunks), last = 0;
    // The last piece returns behind the weights' half, where that comes at once.
    if (r->schedule != PIPELINE_ZERO_BUBBLE) last = (there + back) / 2 / (double)r->exchange_chunks;
    if (last > flops / grouped_weight) last = flops / grouped_weight;
    double overlap = place_overlap(r->cluster, s->place.expert);
    add_product(w, TERM_EXPERTS, flops, grouped, grouped_weight);
    add_product(w, TERM_PROJECTIONS, 2 * s->own * E * s->D, s->product, s->product_weight);
    double gate = 4 * 4 * s->own * E; // bytes: z, g and their sums, in f32
    w->forward.t[TERM_ELEMENTS] += ((5 * norm + 3 * s->own_rows * s->D + 3 * hidden) * s->el + gate) / s->read;
    w->input.t[TERM_ELEMENTS] += ((7 * norm + 3 * s->own_rows * s->D + 5 * hidden) * s->el + gate) / s->read;
    w->weight.t[TERM_ELEMENTS] += 2 * norm * s->el / s->read;
    w->forward.t[TERM_ROWS] += there + back + records;
    w->input.t[TERM_ROWS] += back + there; // dy goes there; dx and the gradient of the weight come back
    w->forward.t[TERM_SLICES] += 2 * slices;
    w->input.t[TERM_SLICES] += 2 * slices;
    w->forward.t[TERM_HIDDEN] -= overlap * hidden_rows;
    w->input.t[TERM_HIDDEN] -= overlap * (hidden_rows + last);
}

// What backward computes again: everything up to the experts' hidden rows, but no routing, and rows that were
// exchanged stay. `full` also the attention.
static void set_again(struct costs *costs, const struct scale *s)
{
    struct work moe = {0}, attention = {0};
    const struct config *c = s->r->c;
    struct times *again = costs->again;
    if (c->E) add_moe(&moe, s);
    else add_ffn(&moe, s);
    add_attention(&attention, s);
    struct times *t = &again[RECOMPUTE_MOE];
    t->t[TERM_EXPERTS] = moe.forward.t[TERM_EXPERTS] * 2 / 3; // w1 and w3 of three products
    t->t[TERM_ELEMENTS] = moe.forward.t[TERM_ELEMENTS];
    t->t[TERM_TOKENS] = moe.forward.t[TERM_TOKENS] / 2;       // dense ffn: gather, nothing to add up
    again[RECOMPUTE_FULL] = *t;
    times_add(&again[RECOMPUTE_FULL], 1, &attention.forward);
}

// ---- the ends of the model ----

static void set_first_and_last(struct costs *costs, const struct scale *s)
{
    double all = s->T * s->D, exchange = tokens_seconds(s), logits = s->T * s->most.V;
    struct work *first = &costs->first, *last = &costs->last;
    first->forward.t[TERM_ELEMENTS] = 2 * all * s->el / s->read;
    first->forward.t[TERM_TOKENS] = exchange;
    first->weight.t[TERM_ELEMENTS] = all * (s->el + 8) / s->read; // rows of the f32 gradient are read and written
    first->weight.t[TERM_TOKENS] = exchange;
    add_product(last, TERM_HEAD, 2 * logits * s->D, s->product, s->product_weight);
    last->forward.t[TERM_ELEMENTS] = (2 * s->own * s->D * s->el + 4 * 3 * logits) / s->read;
    last->input.t[TERM_ELEMENTS] = (4 * s->own * s->D * s->el + (4 + 2 * s->el) * logits) / s->read;
    last->forward.t[TERM_TOKENS] = exchange;
    last->input.t[TERM_TOKENS] = exchange;
}

void costs_of(struct costs *costs, const struct run *r)
{
    struct scale s = scale_of(r);
    *costs = (struct costs){0};
    add_attention(&costs->layer, &s);
    if (r->c->E) add_moe(&costs->layer, &s);
    else add_ffn(&costs->layer, &s);
    set_again(costs, &s);
    set_first_and_last(costs, &s);
    double bytes = s.own * s.D * s.el;
    costs->message[0] = place_seconds(r->cluster, (struct place){1, 0}, bytes);
    costs->message[1] = place_seconds(r->cluster, (struct place){0, 1}, bytes);
}

double message_seconds(const struct costs *costs, const struct run *r, long stage)
{
    const struct layout *l = &r->layout;
    long plane = l->dp * l->tp, devices = r->cluster->devices, next = (stage + 1) % l->pp;
    long low = next ? stage : 0, high = next ? next : stage; // between these two stages' ranks lies a host's end or not
    return costs->message[low * plane / devices != ((high + 1) * plane - 1) / devices];
}

// ---- the end of a step ----

struct held held_by(const struct run *r, double layers, bool first, bool last)
{
    const struct config *c = r->c;
    struct share_most m = share_most_of(c, &r->layout);
    double D = (double)c->D, E = (double)c->E;
    double attention = (2 * m.H + 2 * m.G) * (double)c->C * D, ffn = 3 * m.F * D;
    return (struct held){ // elements
        .dense = layers * (attention + (c->E ? 0 : ffn)) + m.V * D * (first + (last && !(first && c->tied))),
        .everywhere = layers * (2 * D + E * D) + (last ? D : 0),
        .experts = layers * m.E * ffn * (c->E ? 1 : 0),
    };
}

static double size_of(struct place p)
{
    return (double)(p.near + p.far + 1);
}

// Each holder's slice of `bytes` goes to its owner, or comes from there.
static double slices_seconds(const struct run *r, const struct places *p, struct held h, double bytes)
{
    const struct cluster *c = r->cluster;
    return place_seconds(c, p->data, h.dense * bytes / size_of(p->data)) +
           place_seconds(c, p->plane, h.everywhere * bytes / size_of(p->plane)) +
           place_seconds(c, p->replicas, h.experts * bytes / size_of(p->replicas));
}

double owned_of(const struct run *r, const struct places *p, struct held h)
{
    if (!r->zero) return h.dense + h.everywhere + h.experts;
    return h.dense / size_of(p->data) + h.everywhere / size_of(p->plane) + h.experts / size_of(p->replicas);
}

// Bytes of adding up what the holders of owned elements found.
static double summing_bytes(const struct places *p, struct held h)
{
    double n[] = {size_of(p->data), size_of(p->plane), size_of(p->replicas)};
    double held[] = {h.dense, h.everywhere, h.experts}, bytes = 0;
    for (int i = 0; i < 3; i++) bytes += n[i] > 1 ? held[i] / n[i] * (n[i] + 1) * 4 : 0;
    return bytes;
}

void ends_of(struct ends *e, const struct run *r, long layers, bool first, bool last)
{
    struct places p;
    struct held h = held_by(r, (double)layers, first, last), one = held_by(r, 1, false, false);
    double size = (double)dtype_size(r->dtype), state = r->dtype == F32 ? 24 : 24 + size; // masters, moments: both ways
    double held = h.dense + h.everywhere + h.experts, gradient = 4;
    places_of(&p, r->cluster, &r->layout);
    // Experts' gradients travel among their replicas, if there are any; else the dense ones' way counts.
    *e = (struct ends){.overlap = place_overlap(r->cluster, size_of(p.replicas) > 1 ? p.replicas : p.data)};
    // Without ZeRO every holder needs the sums: the gradients come back, and the weights need not.
    double ways = r->zero ? 1 : 2;
    e->t.t[TERM_GRADIENTS] = ways * slices_seconds(r, &p, h, gradient);
    e->last_gradient = ways * slices_seconds(r, &p, one, gradient);
    if (e->last_gradient > e->t.t[TERM_GRADIENTS]) e->last_gradient = e->t.t[TERM_GRADIENTS];
    if (r->zero) e->t.t[TERM_WEIGHTS] = slices_seconds(r, &p, h, size);
    double owned = owned_of(r, &p, h);
    // Sums; norm; update; gradients to zero.
    e->t.t[TERM_OPTIMIZER] = (summing_bytes(&p, h) + owned * (2 * gradient + state) + held * gradient) /
                             r->cluster->read_bytes_per_s.value;
}
