#include "comm/group.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct group group_of(const char *name, enum channel channel, long first, long stride, long size, long rank)
{
    CHECK(size >= 1 && rank >= 0 && rank < size);
    return (struct group){name, channel, size, rank, first, stride, .run = size};
}

long group_world_rank(const struct group *g, long member)
{
    return g->first + member / g->run * g->jump + member % g->run * g->stride;
}

static struct message to_member(const struct group *g, long member, void *data, long bytes)
{
    return (struct message){group_world_rank(g, member), data, bytes};
}

static void send_receive(const struct group *g, const struct message *send, long sends, const struct message *receive,
                         long receives)
{
    transfer_wait(transfer_start(g->channel, send, sends, receive, receives));
}

// What a collective needs for a moment; a few kilobytes, so a refusal is the end of the job.
static void *room(long bytes)
{
    void *p = malloc((size_t)(bytes ? bytes : 1));
    if (p) return p;
    transport_end("memory: %ld bytes for a sum over ranks were refused", bytes);
}

void group_gather(const struct group *g, void *parts, long bytes)
{
    if (g->size == 1 || bytes == 0) return;
    struct message *m = room(2 * g->size * (long)sizeof *m);
    char *own = (char *)parts + g->rank * bytes;
    long n = 0;
    for (long i = 1; i < g->size; i++) { // each starts with another member
        long to = (g->rank + i) % g->size, from = (g->rank + g->size - i) % g->size;
        m[n] = to_member(g, to, own, bytes);
        m[g->size + n++] = to_member(g, from, (char *)parts + from * bytes, bytes);
    }
    send_receive(g, m, n, m + g->size, n);
    free(m);
}

// A binomial tree: in round k, who has the data passes it 2^k members further.
void group_broadcast(const struct group *g, void *data, long bytes)
{
    long span = 1;
    while (span < g->size) span *= 2;
    for (span /= 2; span >= 1; span /= 2) {
        struct message m;
        if (g->rank % (2 * span) == 0 && g->rank + span < g->size) {
            m = to_member(g, g->rank + span, data, bytes);
            send_receive(g, &m, 1, NULL, 0);
        } else if (g->rank % (2 * span) == span) {
            m = to_member(g, g->rank - span, data, bytes);
            send_receive(g, NULL, 0, &m, 1);
        }
    }
}

// Member 0 receives every part, `fold` adds them in rank order, and the result goes to all.
static void reduce(const struct group *g, void *x, long bytes, void (*fold)(void *sum, const void *part, long bytes))
{
    if (g->size == 1 || bytes == 0) return;
    if (g->rank > 0) {
        struct message m = to_member(g, 0, x, bytes);
        send_receive(g, &m, 1, NULL, 0);
    } else {
        char *parts = room((g->size - 1) * bytes);
        struct message *m = room((g->size - 1) * (long)sizeof *m);
        for (long i = 1; i < g->size; i++) m[i - 1] = to_member(g, i, parts + (i - 1) * bytes, bytes);
        send_receive(g, NULL, 0, m, g->size - 1);
        for (long i = 1; i < g->size; i++) fold(x, parts + (i - 1) * bytes, bytes);
        free(m);
        free(parts);
    }
    group_broadcast(g, x, bytes);
}

#define FOLD(name, type, combined)                                                                                    \
    static void name(void *sum, const void *part, long bytes)                                                          \
    {                                                                                                                  \
        type *a = sum;                                                                                                 \
        const type *b = part;                                                                                          \
        for (long i = 0; i < bytes / (long)sizeof *a; i++) a[i] = combined;                                            \
    }
FOLD(add_f32, float, a[i] + b[i])
FOLD(add_f64, double, a[i] + b[i])
FOLD(add_long, long, a[i] + b[i])
FOLD(larger_long, long, a[i] > b[i] ? a[i] : b[i])

void group_sum_f32(const struct group *g, float *x, long n)
{
    reduce(g, x, n * (long)sizeof *x, add_f32);
}

void group_sum_f64(const struct group *g, double *x, long n)
{
    reduce(g, x, n * (long)sizeof *x, add_f64);
}

void group_sum_long(const struct group *g, long *x, long n)
{
    reduce(g, x, n * (long)sizeof *x, add_long);
}

void group_max_long(const struct group *g, long *x, long n)
{
    reduce(g, x, n * (long)sizeof *x, larger_long);
}

void group_barrier(const struct group *g)
{
    long none = 0;
    group_sum_long(g, &none, 1);
}

// ---- failing together ----

static bool has_agreed;

enum status agree(enum status own)
{
    struct group world = group_of("world", CHANNEL_WORLD, 0, 1, transport_ranks(), transport_rank());
    char text[1024] = "";
    if (world.size == 1) return own;
    long who = own == OK ? -world.size : -world.rank; // the largest is the lowest rank that failed
    group_max_long(&world, &who, 1);
    if (-who == world.size) return OK;
    has_agreed = true;
    struct { long status; char sentence[sizeof text]; } word = {.status = (long)own};
    if (-who == world.rank) snprintf(word.sentence, sizeof word.sentence, "%s", fail_message());
    if (-who == world.rank && world.rank > 0) {
        struct message m = to_member(&world, 0, &word, sizeof word);
        send_receive(&world, &m, 1, NULL, 0);
    } else if (-who > 0 && world.rank == 0) {
        struct message m = to_member(&world, -who, &word, sizeof word);
        send_receive(&world, NULL, 0, &m, 1);
    }
    group_broadcast(&world, &word, sizeof word);
    return fail((enum status)word.status, "%s", word.sentence);
}

bool agreed(void)
{
    return has_agreed;
}
