// Rows of whole training steps, optimizer included, and of their memory.
#include <stdio.h>
#include <stdlib.h>

#include "base/log.h"
#include "cli/bench.h"
#include "parallel/zero.h"
#include "train/optimizer.h"

enum { SEQUENCES = 4, LENGTH = 512, MICRO_BATCHES = 4, STEP_TOKENS = SEQUENCES * LENGTH * MICRO_BATCHES };

struct step {
    struct model *m;
    struct zero *z;
    struct batch b;
    struct optimizer o;
    long update;
};

static void step_call(void *context)
{
    struct step *s = context;
    model_zero_gradients(s->m);
    for (long l = 0; s->m->balance && l < s->m->c.L; l++) moe_balance_reset(&s->m->balance[l], s->m->c.E);
    for (int i = 0; i < MICRO_BATCHES; i++)
        model_forward_backward(s->m, &s->b, 1.0 / STEP_TOKENS, 1.0 / MICRO_BATCHES, false);
    zero_update(s->z, optimizer_at(&s->o, 1e-4, zero_norm(s->z), ++s->update));
}

// ---- memory ----

static long arenas(const struct model *m, const struct zero *z)
{
    return m->parameters.capacity + m->gradients.capacity + z->optimizer.capacity + m->activations.capacity +
           m->scratch_arena.capacity;
}

static void memory_row(const struct model *m, const struct zero *z, long planned, long before)
{
    long peak = resident_peak() - before;
    struct kernel_buffers buffers = kernels_buffers();
    struct bench_row *r = bench_add("peak memory of a step (at most)", "GiB", 1.05);
    double gib = (double)peak / (1L << 30), roof = (double)planned / (1L << 30), fraction = gib / roof;
    r->value = (struct quartiles){gib, gib, gib};
    r->fraction = (struct quartiles){fraction, fraction, fraction};
    r->roof = roof;
    r->pairs = 1;
    snprintf(r->shape, sizeof r->shape,
             "arenas - plan: %ld bytes; MiB: kernels' buffers %.1f, oneDNN's %.1f, resident - plan %.0f, before %.0f",
             arenas(m, z) - planned, (double)buffers.own / (1 << 20), (double)buffers.library / (1 << 20),
             (double)(peak - planned) / (1 << 20), (double)before / (1 << 20));
}

// ---- steps ----

// predicted: the share of the peak at which the FLOPs of a mixture predict its speed; 0: compared with the peak itself.
static enum status time_steps(struct zero *z, const char *name, double target, double predicted, double *reached)
{
    struct model *m = z->m;
    long T = SEQUENCES * LENGTH;
    int *ints = malloc((size_t)T * 4 * sizeof *ints);
    if (!ints) return fail(ERR_MEMORY, "memory: a batch of %ld tokens was refused", T);
    struct step s = {.m = m, .z = z, .b = {.B = SEQUENCES, .S = LENGTH, .token = ints, .target = ints + T,
                                   .position = ints + 2 * T, .start = ints + 3 * T},
                     .o = {.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .clip = 1.0}};
    for (long t = 0; t < T; t++) {
        s.b.token[t] = (int)((t * 7919 + 13) % m->c.V);
        s.b.target[t] = (int)((t * 104729 + 7) % m->c.V);
        s.b.position[t] = (int)(t % LENGTH);
        s.b.start[t] = 0;
    }
    struct bench_row *r = bench_add(name, "tokens/s", target);
    double flops = config_train_flops_per_token(&m->c, LENGTH) * STEP_TOKENS;
    bench_measure(r, &(struct bench_work){step_call, &s, bench_product_peak(BF16), flops, STEP_TOKENS}, 20);
    *reached = r->fraction.median;
    snprintf(r->shape, sizeof r->shape, "L=%ld D=%ld F=%ld V=%ld E=%ld K=%ld, %d tokens a step, %.1f GFLOP/s", m->c.L,
             m->c.D, m->c.F, m->c.V, m->c.E, m->c.K, STEP_TOKENS, 1e-9 * flops / STEP_TOKENS * r->value.median);
    if (predicted > 0) {
        r->roof *= predicted;
        r->fraction.low /= predicted;
        r->fraction.median /= predicted;
        r->fraction.high /= predicted;
    }
    free(ints);
    return OK;
}

static enum status with_optimizer(struct model *m, const char *name, double target, double predicted, double *reached,
                                  long planned, long before)
{
    static struct zero z;
    struct zero_options spread = {.spread = true};
    struct init_rule rule = {1, 0.02, 0.01};
    struct zero_bytes bytes;
    TRY(zero_measure(&bytes, m, &spread));
    TRY(zero_init(&z, m, &spread));
    model_init_weights(m, &rule);
    zero_init_masters(&z, &rule);
    for (long l = 0; m->balance && l < m->c.L; l++) m->balance[l].alpha = 0.01;
    enum status status = time_steps(&z, name, target, predicted, reached);
    if (status == OK && !m->c.E) memory_row(m, &z, planned + bytes.optimizer, before);
    zero_free(&z);
    return status;
}

static enum status bench_steps(const char *name, const struct config *c, struct decimal capacity, double target,
                               double predicted, double *reached)
{
    static struct model m;
    struct model_options o = {.dtype = BF16, .training = true, .B = SEQUENCES, .S = LENGTH, .positions = LENGTH,
                              .rule = {.capacity = capacity, .virtual_capacity = {11, 10}, .aux = AUX_SKYWORK}};
    struct model_bytes plan;
    TRY(model_measure(&plan, c, &o));
    long before = resident_bytes(), planned = plan.parameters + plan.gradients + plan.saved + plan.scratch;
    resident_peak_restart();
    TRY(model_init(&m, c, &o));
    m.x.k = bench_sliced(m.x.k);
    enum status status = with_optimizer(&m, name, target, predicted, reached, planned, before);
    model_free(&m);
    return status;
}

static struct config default_config(void)
{
    return (struct config){.arch = ARCH_LLAMA, .D = 1024, .F = 2816, .L = 4, .H = 16, .G = 16, .C = 64, .V = 32000,
                           .max_positions = 2048, .norm_eps = 1e-6, .rope_theta = 1e4, .dtype = BF16, .bos = 1,
                           .eos = 2, .pad = -1};
}

enum status bench_train(const struct config *given)
{
    struct config c = given ? *given : default_config();
    struct decimal dropless = {0, 1}, capacity = {11, 10};
    double dense = 0, moe;
    if (!c.E) {
        TRY(bench_steps("training step, dense", &c, dropless, 0.55, 0, &dense));
        c.arch = ARCH_SKYWORK;
        c.E = 8;
        c.K = 2;
        c.gate_norm_std = 1.0;
    }
    double target = dense > 0 ? 0.90 : 0;
    TRY(bench_steps("training step, MoE, capacity 1.1", &c, capacity, target, dense, &moe));
    return bench_steps("training step, MoE, dropless", &c, dropless, target, dense, &moe);
}
