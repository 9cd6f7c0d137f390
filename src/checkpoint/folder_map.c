// Weights used where they lie in the files (folder.h): which fields can be, and their views.
#include <stdlib.h>

#include "checkpoint/folder.h"

// A piece costs up to two maps of the 65530 that a process may have by default. What is beyond is copied.
enum { PIECES_MOST = 24000 };

struct mapping {
    struct mapped_weights w;
    const struct model_folder *f;
    enum dtype matrix, other;
    struct file_piece *piece; // [params.n] those of the present field
    long pieces;              // of all fields
};

// The pieces of the field whose first part is params.item[first], in order. False where it cannot be mapped.
static bool gather(struct mapping *g, long *n, long first)
{
    const struct model_folder *f = g->f;
    const struct param *head = &f->params.item[first];
    enum dtype dtype = head->kind->quantise ? g->matrix : g->other;
    *n = 0;
    if (head->kind->in_acc) return false;
    for (long i = first; i < f->params.n && f->params.item[i].layer == head->layer; i++) {
        const struct param_kind *kind = f->params.item[i].kind;
        if (kind->scope != head->kind->scope || kind->field != head->kind->field) continue;
        if (f->stored[i]->type != (int)dtype) return false;
        g->piece[(*n)++] = model_folder_piece(f, i);
    }
    return g->pieces + *n <= PIECES_MOST && g->piece[0].at % dtype_size(dtype) == 0 &&
           file_view_fits(g->piece, *n);
}

static enum status map_fields(struct mapping *g)
{
    const struct param_list *list = &g->f->params;
    for (long i = 0, n; i < list->n; i++) {
        const struct param *p = &list->item[i];
        struct tensor *field = params_field(&g->w.p, p->kind, p->layer);
        if (p->part != 0 || field->data || !gather(g, &n, i)) continue;
        struct file_view *view = &g->w.view[g->w.views];
        TRY(file_view_open(view, g->piece, n));
        g->w.views++;
        g->pieces += n;
        *field = (struct tensor){.data = view->data, .dtype = p->kind->quantise ? g->matrix : g->other};
    }
    return OK;
}

enum status mapped_weights_open(struct mapped_weights *w, const struct model_folder *f, enum dtype matrix,
                                enum dtype other)
{
    struct mapping g = {.f = f, .matrix = matrix, .other = other};
    g.w.p.layer = calloc((size_t)f->config.L, sizeof *g.w.p.layer);
    g.w.view = calloc((size_t)f->params.n, sizeof *g.w.view);
    g.piece = calloc((size_t)f->params.n, sizeof *g.piece);
    bool room = g.w.p.layer && g.w.view && g.piece;
    enum status status = room ? map_fields(&g) : fail(ERR_MEMORY, "%s: no memory to map its weights", f->path);
    free(g.piece);
    if (status == OK) *w = g.w;
    else mapped_weights_close(&g.w);
    return status;
}

void mapped_weights_close(struct mapped_weights *w)
{
    for (long i = 0; i < w->views; i++) file_view_close(&w->view[i]);
    free(w->view);
    free(w->p.layer);
    *w = (struct mapped_weights){0};
}
