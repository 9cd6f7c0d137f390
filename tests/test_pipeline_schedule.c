// Every pipeline schedule is executed symbolically: each stage follows its list, sends never wait, receives do.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "parallel/schedule.h" // before cmocka, which has a macro fail()

#include <cmocka.h>

enum { STAGES = 9, CHUNKS = 4, MICRO = 40, QUEUE = CHUNKS * MICRO };

// What is on the way from one stage to the next (activations) or to the one before (gradients), in order.
struct queue {
    struct action sent[QUEUE];
    double when[QUEUE];
    long first, n;
};
// The state of one (chunk, micro-batch) on one stage.
struct piece {
    bool has_input, has_gradient, f, b, w;
};
struct world {
    struct pipeline p;
    double time[4];  // of each kind of work
    double latency;  // of a message
    struct pipeline_schedule s[STAGES];
    long at[STAGES]; // next action
    double now[STAGES];
    struct queue activation[STAGES], gradient[STAGES]; // by sender
    struct piece piece[STAGES][CHUNKS][MICRO];
};

static struct piece *piece_of(struct world *w, long stage, const struct action *a)
{
    assert_true(a->micro >= 0 && a->micro < w->p.micro_batches && a->chunk >= 0 && a->chunk < w->p.chunks);
    return &w->piece[stage][a->chunk][a->micro];
}

// A slot must be free when a micro-batch enters it.
static void check_slot(struct world *w, long stage, const struct action *a)
{
    long slots = w->s[stage].slots[a->chunk].saved;
    for (long m = 0; m < w->p.micro_batches; m++) {
        const struct piece *other = &w->piece[stage][a->chunk][m];
        if (m != a->micro && other->f && !other->w) assert_int_not_equal(m % slots, a->micro % slots);
    }
}

static bool is_end(const struct world *w, long stage, int chunk, bool last)
{
    return last ? stage == w->p.stages - 1 && chunk == w->p.chunks - 1 : stage == 0 && chunk == 0;
}

static void work(struct world *w, long stage, const struct action *a)
{
    struct piece *x = piece_of(w, stage, a);
    bool alone = w->p.stages == 1;
    w->now[stage] += w->time[a->kind];
    if (a->kind == ACTION_FORWARD) {
        bool before = alone && a->chunk && w->piece[stage][a->chunk - 1][a->micro].f;
        assert_true(!x->f && (x->has_input || before || is_end(w, stage, a->chunk, false)));
        check_slot(w, stage, a);
        x->f = true;
        return;
    }
    if (a->kind == ACTION_BACKWARD_WEIGHT) {
        assert_true(x->b && !x->w);
        x->w = true;
        return;
    }
    bool after = alone && a->chunk + 1 < w->p.chunks && w->piece[stage][a->chunk + 1][a->micro].b;
    assert_true(x->f && !x->b && (x->has_gradient || after || is_end(w, stage, a->chunk, true)));
    x->b = true;
    x->w = a->kind == ACTION_BACKWARD;
}

static void send(struct world *w, long stage, const struct action *a)
{
    bool gradient = a->kind == ACTION_SEND_GRADIENT;
    struct queue *q = &(gradient ? w->gradient : w->activation)[stage];
    struct piece *x = piece_of(w, stage, a);
    assert_true(gradient ? x->b : x->f);
    assert_true(q->n < QUEUE);
    q->when[q->n] = w->now[stage] + w->latency;
    q->sent[q->n++] = *a;
}

// False when nothing has come yet.
static bool receive(struct world *w, long stage, const struct action *a)
{
    bool gradient = a->kind == ACTION_RECEIVE_GRADIENT;
    long from = action_peer(&w->s[stage], a);
    struct queue *q = &(gradient ? w->gradient : w->activation)[from];
    if (q->first == q->n) return false;
    const struct action *sent = &q->sent[q->first];
    struct piece *x = piece_of(w, stage, a);
    // The order of one kind between two stages is that of its sender, whatever the chunk.
    assert_int_equal(action_peer(&w->s[from], sent), stage);
    assert_int_equal(sent->micro, a->micro);
    long v = a->chunk * w->p.stages + stage, other = sent->chunk * w->p.stages + from;
    assert_int_equal(v, gradient ? other - 1 : other + 1);
    if (gradient) x->has_gradient = true;
    else x->has_input = true;
    if (q->when[q->first] > w->now[stage]) w->now[stage] = q->when[q->first];
    q->first++;
    return true;
}

static bool advance(struct world *w, long stage)
{
    bool moved = false;
    for (; w->at[stage] < w->s[stage].n; w->at[stage]++, moved = true) {
        const struct action *a = &w->s[stage].action[w->at[stage]];
        if (action_receives(a->kind)) {
            if (!receive(w, stage, a)) return moved;
        } else if (action_sends(a->kind)) {
            send(w, stage, a);
        } else {
            work(w, stage, a);
        }
    }
    return moved;
}

// Runs all lists and checks them; returns the time of the step.
static double execute(struct pipeline p, double f, double b, double weight, double latency)
{
    static struct world w;
    memset(&w, 0, sizeof w);
    w.p = p;
    w.latency = latency;
    w.time[ACTION_FORWARD] = f;
    w.time[ACTION_BACKWARD] = b + weight;
    w.time[ACTION_BACKWARD_INPUT] = b;
    w.time[ACTION_BACKWARD_WEIGHT] = weight;
    assert_true(p.stages <= STAGES && p.chunks <= CHUNKS && p.micro_batches <= MICRO);
    for (long r = 0; r < p.stages; r++) assert_int_equal(pipeline_schedule_make(&w.s[r], &p, r), OK);
    for (bool moved = true; moved;) {
        moved = false;
        for (long r = 0; r < p.stages; r++) moved |= advance(&w, r);
    }
    double end = 0;
    for (long r = 0; r < p.stages; r++) {
        if (w.at[r] < w.s[r].n)
            fail_msg("%s, %ld stages, %ld chunks, %ld micro-batches: stage %ld stops at action %ld of %ld",
                     pipeline_kind_name(p.kind), p.stages, p.chunks, p.micro_batches, r, w.at[r], w.s[r].n);
        assert_int_equal(w.activation[r].first, w.activation[r].n);
        assert_int_equal(w.gradient[r].first, w.gradient[r].n);
        for (long c = 0; c < p.chunks; c++)
            for (long m = 0; m < p.micro_batches; m++)
                assert_true(w.piece[r][c][m].f && w.piece[r][c][m].b && w.piece[r][c][m].w);
        if (w.now[r] > end) end = w.now[r];
        pipeline_schedule_free(&w.s[r]);
    }
    return end;
}

static const struct shape {
    enum pipeline_kind kind;
    long chunks;
} shapes[] = {{PIPELINE_1F1B, 1},       {PIPELINE_ZERO_BUBBLE, 1}, {PIPELINE_INTERLEAVED, 1},
              {PIPELINE_INTERLEAVED, 2}, {PIPELINE_INTERLEAVED, 3}, {PIPELINE_INTERLEAVED, 4}};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static void test_executes(void **state)
{
    (void)state;
    for (int i = 0; i < SHAPES; i++)
        for (long stages = 1; stages <= STAGES; stages++)
            for (long m = 0; m <= 3 * STAGES; m++)
                execute((struct pipeline){shapes[i].kind, stages, shapes[i].chunks, m}, 1, 1, 1, 0);
}

static void near(double a, double b)
{
    if (!(a > b - 1e-9 && a < b + 1e-9)) fail_msg("%g, expected %g", a, b);
}

// Bubbles as published: (p-1)(F+B+W), a v-th of it with v chunks, and (p-1)(F+B-W).
static void test_times(void **state)
{
    (void)state;
    for (long p = 1; p <= 6; p++) {
        double q = (double)(p - 1), m = 24;
        near(execute((struct pipeline){PIPELINE_1F1B, p, 1, 24}, 1, 1, 1, 0), 3 * (m + q));
        near(execute((struct pipeline){PIPELINE_ZERO_BUBBLE, p, 1, 24}, 1, 1, 1, 0), 3 * m + q);
        if (24 % p == 0) near(execute((struct pipeline){PIPELINE_INTERLEAVED, p, 3, 24}, 1, 1, 1, 0), 3 * (3 * m + q));
    }
}

// Interleaved stages compute while messages travel: latency costs the same however many micro-batches there are.
static void test_latency(void **state)
{
    (void)state;
    for (long p = 2; p <= 4; p++) {
        struct pipeline few = {PIPELINE_INTERLEAVED, p, 2, 12}, many = {PIPELINE_INTERLEAVED, p, 2, 36};
        double cost = execute(few, 1, 1, 1, 0.25) - execute(few, 1, 1, 1, 0);
        assert_true(cost > 0);
        near(execute(many, 1, 1, 1, 0.25) - execute(many, 1, 1, 1, 0), cost);
    }
}

static void test_slots(void **state)
{
    (void)state;
    for (long p = 1; p <= STAGES; p++)
        for (long m = 0; m <= 2 * STAGES; m++)
            for (long r = 0; r < p; r++) {
                struct pipeline_schedule s;
                struct pipeline one = {PIPELINE_1F1B, p, 1, m}, zero = {PIPELINE_ZERO_BUBBLE, p, 1, m};
                long whole = p < m ? p : m, rest = p - r < m ? p - r : m;
                assert_int_equal(pipeline_schedule_make(&s, &one, r), OK);
                assert_int_equal(s.slots[0].saved, rest);
                assert_int_equal(s.slots[0].backward, rest);
                assert_int_equal(s.slots[0].weight, 0);
                pipeline_schedule_free(&s);
                assert_int_equal(pipeline_schedule_make(&s, &zero, r), OK);
                assert_true(s.slots[0].saved <= whole); // no stage more than the first of 1f1b
                assert_int_equal(s.slots[0].backward, rest);
                assert_true(s.slots[0].weight <= (r + 1 < m ? r + 1 : m));
                pipeline_schedule_free(&s);
            }
}

// The head turns the last forward's output into its gradient: nothing may come between.
static void test_head_at_once(void **state)
{
    (void)state;
    for (int i = 0; i < SHAPES; i++)
        for (long p = 1; p <= 5; p++)
            for (long m = 1; m <= 13; m++) {
                struct pipeline_schedule s;
                struct pipeline q = {shapes[i].kind, p, shapes[i].chunks, m};
                assert_int_equal(pipeline_schedule_make(&s, &q, p - 1), OK);
                for (long k = 0; k < s.n; k++) {
                    const struct action *a = &s.action[k];
                    if (a->kind != ACTION_FORWARD || a->chunk != q.chunks - 1) continue;
                    assert_true(k + 1 < s.n && a[1].micro == a->micro && a[1].chunk == a->chunk);
                    assert_true(a[1].kind == ACTION_BACKWARD || a[1].kind == ACTION_BACKWARD_INPUT);
                }
                pipeline_schedule_free(&s);
            }
}

static void expect_text(struct pipeline p, long stage, const char *expected)
{
    struct pipeline_schedule s;
    char line[4096] = "", word[ACTION_TEXT];
    assert_int_equal(pipeline_schedule_make(&s, &p, stage), OK);
    for (long i = 0; i < s.n; i++) {
        action_text(word, &s, &s.action[i]);
        snprintf(line + strlen(line), sizeof line - strlen(line), "%s%s", i ? " " : "", word);
    }
    assert_string_equal(line, expected);
    pipeline_schedule_free(&s);
}

static void test_text(void **state)
{
    (void)state;
    expect_text((struct pipeline){PIPELINE_1F1B, 2, 1, 2}, 0, "F0 >F0 F1 >F1 <B0 B0 <B1 B1");
    expect_text((struct pipeline){PIPELINE_1F1B, 2, 1, 2}, 1, "<F0 F0 B0 >B0 <F1 F1 B1 >B1");
    expect_text((struct pipeline){PIPELINE_ZERO_BUBBLE, 2, 1, 3}, 1,
                "<F0 F0 I0 >B0 <F1 F1 I1 >B1 W0 <F2 F2 I2 >B2 W1 W2");
    expect_text((struct pipeline){PIPELINE_INTERLEAVED, 2, 2, 1}, 1,
                "<F0.0 F0.0 >F0.0 <F0.1 F0.1 B0.1 >B0.1 <B0.0 B0.0 >B0.0");
    expect_text((struct pipeline){PIPELINE_INTERLEAVED, 1, 2, 1}, 0, "F0.0 F0.1 B0.1 B0.0");
    expect_text((struct pipeline){PIPELINE_1F1B, 3, 1, 0}, 1, "");
}

static void test_refused(void **state)
{
    (void)state;
    struct pipeline_schedule s;
    struct pipeline p = {PIPELINE_1F1B, 2, 2, 4};
    enum pipeline_kind kind;
    assert_int_equal(pipeline_schedule_make(&s, &p, 0), ERR_CONFIG);
    assert_non_null(strstr(fail_message(), "--virtual-stages 2"));
    p = (struct pipeline){PIPELINE_1F1B, 2, 1, INT64_MAX / 4};
    assert_int_equal(pipeline_schedule_make(&s, &p, 0), ERR_CONFIG);
    for (int i = 0; i < 3; i++) {
        assert_true(pipeline_kind_from_name(&kind, pipeline_kind_name((enum pipeline_kind)i)));
        assert_int_equal(kind, i);
    }
    assert_false(pipeline_kind_from_name(&kind, "gpipe"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_executes), cmocka_unit_test(test_times),        cmocka_unit_test(test_latency),
        cmocka_unit_test(test_slots),    cmocka_unit_test(test_head_at_once), cmocka_unit_test(test_text),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
