// --print-grid: who holds what, and which ranks form groups.
#include <stdio.h>

#include "cli/command.h"
#include "train/trainer.h"

static void print_groups(const struct layout *l, const char *name, long offset)
{
    long ranks = layout_ranks(l);
    bool said = false;
    for (long r = 0; r < ranks; r++) {
        struct grid g = grid_of(l, r);
        const struct group *group = (const struct group *)((const char *)&g + offset);
        if (group->size == 1 || group->rank != 0) continue; // each group is told by its first member
        printf("%s%s", said ? "  " : name, said ? "{" : ":  {");
        said = true;
        for (long m = 0; m < group->size; m++) printf("%s%ld", m ? "," : "", group_world_rank(group, m));
        printf("}");
    }
    if (said) printf("\n");
}

static void print_range(const char *name, struct range r, int width)
{
    char text[64];
    snprintf(text, sizeof text, "%s %ld+%ld", name, r.first, r.count);
    printf("  %-*s", width, text);
}

static void print_rank(const struct config *c, const struct layout *l, long rank)
{
    struct grid g = grid_of(l, rank);
    struct local n = local_of(c, &g);
    printf("rank %ld: pp %ld dp %ld tp %ld", rank, g.pp, g.dp, g.tp);
    if (c->E) printf(" replica %ld ep %ld etp %ld", g.replica, g.ep, g.etp);
    print_range("heads", (struct range){n.first_head, n.H}, 12);
    print_range("kv heads", (struct range){n.first_kv, n.G}, 14);
    print_range("vocabulary", (struct range){n.first_row, n.V}, 24);
    if (c->E) print_range("experts", (struct range){n.first_expert, n.E}, 14);
    print_range("ffn", (struct range){n.first_column, n.F}, 16);
    for (long v = 0; v < l->virtual_stages; v++) print_range("layers", chunk_layers(c, &g, v), 12);
    printf("%s%s\n", n.embeds ? " embedding" : "", n.ends ? " head" : "");
}

void print_grid(const struct trainer *t)
{
    static const struct {
        const char *name;
        long offset;
    } groups[] = {
        {"pipeline", offsetof(struct grid, pipeline)},  {"data", offsetof(struct grid, data)},
        {"tensor", offsetof(struct grid, tensor)},      {"expert", offsetof(struct grid, expert)},
        {"expert tensor", offsetof(struct grid, expert_tensor)},
        {"replicas of experts", offsetof(struct grid, replicas)},
        {"tied embedding", offsetof(struct grid, tied)},
    };
    const struct layout *l = &t->layout.layout;
    printf("%ld ranks = %ld stages x %ld data x %ld tensor", layout_ranks(l), l->pp, l->dp, l->tp);
    if (t->config.E)
        printf("; experts: %ld stages x %ld replicas x %ld expert x %ld slices", l->pp,
               l->dp * l->tp / (l->ep * l->etp), l->ep, l->etp);
    printf("\n");
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++)
        if (t->config.tied || groups[i].offset != offsetof(struct grid, tied))
            print_groups(l, groups[i].name, groups[i].offset);
    for (long r = 0; r < layout_ranks(l); r++) print_rank(&t->config, l, r);
}
