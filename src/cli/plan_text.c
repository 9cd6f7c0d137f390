// What `skymoe plan` prints for people.
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cli/plan.h"

static double gib(double bytes)
{
    return bytes / 0x1p30;
}

static void print_layout(const struct run *r)
{
    const struct layout *l = &r->layout;
    printf("layout      pipeline %ld x data %ld x tensor %ld = %ld devices", l->pp, l->dp, l->tp, layout_ranks(l));
    if (r->c->E)
        printf("; experts: expert %ld x expert tensor %ld, %ld replica%s", l->ep, l->etp,
               l->dp * l->tp / (l->ep * l->etp),
               l->dp * l->tp == l->ep * l->etp ? "" : "s");
    printf("\nbatch       %ld sequences of %ld tokens, micro-batches of %ld: %ld rounds a step; %s", r->global_batch,
           r->S,
           r->B, run_micro_batches(r), pipeline_kind_name(r->schedule));
    if (l->virtual_stages > 1) printf(", %ld chunks a stage", l->virtual_stages);
    printf(", %s\n", dtype_name(r->dtype));
}

static void print_stages(const struct plan *p)
{
    printf("\n%5s %6s %9s %8s %7s %7s %9s %7s %7s %10s %10s %6s\n", "stage", "layers", "recompute", "GiB", "weights",
           "grads", "optimizer", "saved", "scratch", "forward ms", "backward", "busy");
    for (long i = 0; i < p->run.layout.pp; i++) {
        const struct stage_plan *s = &p->stage[i];
        const struct rank_bytes *b = &s->bytes;
        printf("%5ld %6ld %9ld %8.2f %7.2f %7.2f %9.2f %7.2f %7.2f %10.3f %10.3f %5.1f%%\n", i, s->layers, s->recompute,
               gib(memory_total(b)), gib(b->parameters), gib(b->gradients), gib(b->optimizer),
               gib(b->saved), gib(b->scratch), 1e3 * s->forward_s, 1e3 * s->backward_s,
               100 * s->busy_s / p->pipeline_s);
    }
}

static void print_terms(const struct plan *p)
{
    printf("\n%-12s %12s %7s   from\n", "term", "seconds", "share");
    for (int t = 0; t < TERMS; t++)
        if (p->terms.t[t] != 0)
            printf("%-12s %12.6f %6.1f%%   %s\n", term_name((enum term)t), p->terms.t[t],
                   100 * p->terms.t[t] / p->step_s,
                   term_meaning((enum term)t));
    printf("%-12s %12.6f\n", "step", p->step_s);
}

static void print_assumptions(const struct run *r)
{
    char text[ASSUMPTION_TEXT];
    const char *said;
    printf("\nassumptions\n");
    for (long i = 0; (said = plan_assumption(text, r, i)); i++) printf("  %s\n", said);
}

void plan_print(const struct plan *p, double published)
{
    double devices = (double)layout_ranks(&p->run.layout);
    printf("machine     %s\n", p->run.cluster->name);
    print_layout(&p->run);
    if (p->fits)
        printf("memory      fits: %.2f of %.2f GiB on the fullest device\n", gib(p->limit + p->over_bytes),
               gib(p->limit));
    else
        printf("memory      does not fit: %.2f GiB too much, %.2f of %.2f GiB on the fullest device\n",
               gib(p->over_bytes),
               gib(p->limit + p->over_bytes), gib(p->limit));
    printf("speed       step %.4f s, %.0f tokens/s, %.2f a device; MFU %.1f %%, bubble %.1f %%\n", p->step_s,
           p->tokens_per_s, p->tokens_per_s / devices, 100 * p->mfu, 100 * p->bubble);
    if (published > 0) {
        double step = (double)(p->run.global_batch * p->run.S) / published;
        printf("published   %.0f tokens/s: step %.4f s, of which unexplained %.4f s (%.1f %%)\n", published, step,
               step - p->step_s, 100 * (step - p->step_s) / step);
    }
    print_stages(p);
    print_terms(p);
    print_assumptions(&p->run);
}

// ---- the modes of expert parallelism side by side ----

enum { MODES = 4 };
struct mode {
    const char *name;
    long ep, etp;
    struct plan plan;
    bool made;
    char refused[160];
};

static void make_mode(struct mode *m, const struct plan *p)
{
    struct run r = p->run;
    r.layout.ep = m->ep;
    r.layout.etp = m->etp;
    r.layout.given[AXIS_EXPERT] = r.layout.given[AXIS_EXPERT_FFN] = NULL;
    r.layout.given[AXIS_LAYER] = p->split.layers;
    r.recompute_layers = p->split.recompute;
    m->made = plan_make(&m->plan, &r, &(struct plan_wishes){.limit = p->limit}) == OK;
    if (!m->made) snprintf(m->refused, sizeof m->refused, "%s", fail_message());
}

void plan_print_experts(const struct plan *p)
{
    const struct layout *l = &p->run.layout;
    long E = p->run.c->E, plane = l->dp * l->tp, sliced = l->dp < E ? l->dp : E;
    if (!E || plane == 1) return;
    while (plane % (sliced * l->tp)) sliced--;
    struct mode mode[MODES] = {{.name = "edp", .ep = l->tp, .etp = 1}, {.name = "ep", .ep = plane, .etp = 1},
                               {.name = "etp", .ep = l->dp, .etp = l->tp}, {.name = "etp", .ep = sliced, .etp = l->tp}};
    long modes = sliced == l->dp ? MODES - 1 : MODES;
    printf("\nexperts the other ways, everything else the same\n%-12s", "");
    for (long i = 0; i < modes; i++) {
        char text[64];
        make_mode(&mode[i], p);
        snprintf(text, sizeof text, "%s %ldx%ld", mode[i].name, mode[i].ep, mode[i].etp);
        printf(" %14s", text);
    }
    printf("\n");
    for (int t = 0; t < TERMS; t++) {
        bool some = false;
        for (long i = 0; i < modes; i++) some |= mode[i].made && mode[i].plan.terms.t[t] != 0;
        if (!some) continue;
        printf("%-12s", term_name((enum term)t));
        for (long i = 0; i < modes; i++)
            if (mode[i].made) printf(" %14.6f", mode[i].plan.terms.t[t]);
            else printf(" %14s", "-");
        printf("\n");
    }
    printf("%-12s", "step");
    for (long i = 0; i < modes; i++)
        if (mode[i].made) printf(" %14.6f", mode[i].plan.step_s);
        else printf(" %14s", "refused");
    printf("\n%-12s", "GiB");
    for (long i = 0; i < modes; i++)
        if (mode[i].made) printf(" %14.2f", gib(mode[i].plan.limit + mode[i].plan.over_bytes));
        else printf(" %14s", "");
    printf("\n");
    for (long i = 0; i < modes; i++) {
        if (!mode[i].made) printf("%s %ldx%ld refused: %s\n", mode[i].name, mode[i].ep, mode[i].etp, mode[i].refused);
        else plan_free(&mode[i].plan);
    }
}

// ---- beside another model, and a search ----

void plan_print_compare(const struct plan *p, const struct plan *other, const char *name, const char *other_name)
{
    const struct plan *both[] = {p, other};
    const char *names[] = {name, other_name};
    printf("\ntraining beside another model\n%-40s %10s %12s %14s %14s %16s\n", "", "sequence", "parameters",
           "FLOPs/token",
           "bytes/device", "device-s/Mtoken");
    for (int i = 0; i < 2; i++) {
        const struct plan *q = both[i];
        double devices = (double)layout_ranks(&q->run.layout);
        printf("%-40.40s %10ld %11.2fB %14.4g %14.4g %16.1f%s\n", names[i], q->run.S,
               1e-9 * (double)config_params_total(q->run.c), config_train_flops_per_token(q->run.c, q->run.S),
               q->limit + q->over_bytes, 1e6 * devices / q->tokens_per_s, q->fits ? "" : " (does not fit)");
    }
}

void plan_print_search(const struct search_result *s, long devices, double seconds)
{
    printf("search      %ld devices: %ld layouts tried in %.1f s, %ld fit", devices, s->tried, seconds, s->fitting);
    if (!s->n) {
        printf("\n");
        return;
    }
    printf("; the fastest:\n%4s %4s %4s %4s %4s  %-14s %-9s %10s %8s\n", "PP", "DP", "TP", "EP", "ETP", "schedule",
           "recompute", "step s", "GiB");
    for (long i = 0; i < s->n; i++) {
        const struct run *r = &s->best[i].run;
        char schedule[32];
        static const char *const level[] = {"none", "moe", "full"};
        snprintf(schedule, sizeof schedule, r->layout.virtual_stages > 1 ? "%s %ld" : "%s",
                 pipeline_kind_name(r->schedule),
                 r->layout.virtual_stages);
        printf("%4ld %4ld %4ld %4ld %4ld  %-14s %-9s %10.4f %8.2f\n", r->layout.pp, r->layout.dp, r->layout.tp,
               r->layout.ep, r->layout.etp, schedule, level[r->recompute], s->best[i].seconds, gib(s->best[i].bytes));
    }
    printf("\n");
}

// ---- the timeline ----

// One character a slice of time: what the stage does in its middle.
static char at_time(const struct plan *p, long stage, double when)
{
    const struct event *e = p->sim.events[stage];
    long low = 0, high = p->sim.events_n[stage];
    while (low < high) { // first event that ends after `when`
        long middle = (low + high) / 2;
        if (e[middle].end > when) high = middle;
        else low = middle + 1;
    }
    if (low == p->sim.events_n[stage] || e[low].start > when) return '.';
    long micro = e[low].action.micro;
    if (e[low].action.kind == ACTION_FORWARD) return (char)('0' + micro % 10);
    return e[low].action.kind == ACTION_BACKWARD_WEIGHT ? '+' : (char)('a' + micro % 26);
}

void plan_timeline(const struct plan *p)
{
    enum { WIDTH = 108 };
    double shortest = INFINITY;
    if (p->run.layout.pp == 1 || p->micro_batches == 0) return;
    for (long i = 0; i < p->run.layout.pp; i++) {
        double one = p->stage[i].forward_s / (double)p->run.layout.virtual_stages;
        if (one < shortest) shortest = one;
    }
    double slice = shortest / 2, shown = slice * WIDTH < p->pipeline_s ? slice * WIDTH : p->pipeline_s;
    if (p->pipeline_s < 2 * shown) shown = p->pipeline_s; // all of it, a little coarser
    printf("\ntimeline    0 to %.4g of %.4g s: forward 0-9, backward a-z by micro-batch, + weights' half, . idle\n",
           shown,
           p->pipeline_s);
    for (long i = 0; i < p->run.layout.pp; i++) {
        char line[WIDTH + 1];
        for (int x = 0; x < WIDTH; x++) line[x] = at_time(p, i, (x + 0.5) * shown / WIDTH);
        line[WIDTH] = '\0';
        printf("%5ld  %s\n", i, line);
    }
}
