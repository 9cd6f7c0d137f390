// Cases of memory, conversion, embedding, norms, rotary embedding, optimizer and sums.
#ifndef SKYMOE_TESTS_KERNEL_CASES_ROWS_H
#define SKYMOE_TESTS_KERNEL_CASES_ROWS_H

#include "kernel_cases_products.h"

static const long lengths[] = {0, 1, 3, 17, 63, 65, 130, 1000, 20011, 140003}; // the last is worth threads to all
enum { LENGTHS = sizeof lengths / sizeof lengths[0] };
static const struct bound exactly = {0};

// ---- memory ----

static bool copy_case(struct check *c, long shape, int which)
{
    if (shape >= LENGTHS) return false;
    long n = lengths[shape];
    void *from = in_random(c, F32, F32, n, 1), *to = out(c, "to", F32, n, exactly);
    seal(c, "%ld floats", n);
    if (which == 0) c->k->copy(to, from, 4 * n);
    if (which == 1) c->k->to_host(to, from, 4 * n);
    if (which == 2) c->k->from_host(to, from, 4 * n);
    return true;
}

static bool case_copy(struct check *c, long shape)
{
    return copy_case(c, shape, 0);
}

static bool case_to_host(struct check *c, long shape)
{
    return copy_case(c, shape, 1);
}

static bool case_from_host(struct check *c, long shape)
{
    return copy_case(c, shape, 2);
}

static bool case_zero(struct check *c, long shape)
{
    if (shape >= LENGTHS) return false;
    long n = lengths[shape];
    uint8_t *data = out(c, "data", F8_E4M3, n + 1, exactly);
    data[n] = 0x30; // not all zero
    seal(c, "%ld bytes", n);
    c->k->zero(data, n);
    return true;
}

// All pairs of types, special values and numbers between two results included: the same bits everywhere.
static bool case_cast(struct check *c, long shape)
{
    if (shape >= DTYPES * DTYPES * 6) return false;
    int to_type = (int)(shape % DTYPES), from_type = (int)(shape / DTYPES % DTYPES);
    long how = shape / (DTYPES * DTYPES), rows = how ? 7 : 1, columns = how >= 3 ? 1300 : 65;
    static const double special[] = {0.0, -0.0, NAN, INFINITY, -INFINITY, 1e300, 1e-300, 448, 464, 65519, 65520,
                                     0x1p-10, 0x1.8p-10, 0x1p-25, 0x1.000001p-25, 1 + 0x1p-9, 1 + 0x1.8p-8,
                                     1 + 0x1p-8 + 0x1p-23, 1 + 0x1p-8 + 0x1p-50, 0x1.1p-6, 0x1.ep-7, 3e-45, 480, 1e5};
    bool blocks = how > 3;
    struct tensor from = {.dtype = (enum dtype)from_type}, to = {.dtype = (enum dtype)to_type};
    from.data = in_random(c, from_type, F64, rows * columns, how == 2 ? 400 : 60);
    for (long i = 0; i < (long)(sizeof special / sizeof special[0]); i++) put(from.data, from_type, i, special[i]);
    struct tensor *with = how == 1 || how == 4 ? &from : how == 2 || how == 5 ? &to : NULL;
    if (with) in_scales(c, with, rows, columns, blocks, 0.3, 1);
    if (how == 2) with->scale[1] = 0, with->scale[2] = 0x1p-140f, with->scale[3] = 0.375f; // no number, subnormal, ties
    to.data = out(c, "to", to_type, rows * columns, exactly);
    seal(c, "%s -> %s, %s %s, %ld x %ld", dtype_name(from.dtype), dtype_name(to.dtype),
         blocks ? "scales of blocks" : "scale", with == &from ? "from" : with == &to ? "to" : "none", rows, columns);
    c->k->cast(to, from, rows, columns);
    return true;
}

static bool case_add_parts(struct check *c, long shape)
{
    static const int types[] = {F32, BF16, F64};
    static const long counts[] = {1, 2, 5};
    if (shape >= LENGTHS * 18) return false;
    long n = lengths[shape / 18], parts = counts[shape / 3 % 3];
    int type = types[shape % 3];
    bool in_place = shape / 9 % 2;
    const void *part[5];
    void *y = NULL;
    for (long i = 0; i < parts; i++) { // in place: y is the last one
        void *x = in_random(c, type, type == BF16 ? BF16 : F32, n, 1);
        for (long j = i; j < n; j += 1013) put(x, type, j, j % 3 ? (double)INFINITY : (double)NAN);
        if (in_place && i == parts - 1) {
            y = x;
            c->buffer[c->buffers - 1].name = "y";
        }
        part[i] = x;
    }
    if (!in_place) y = out(c, "y", type, n, exactly);
    seal(c, "%ld parts of %ld %s%s", parts, n, dtype_name((enum dtype)type), in_place ? " in place" : "");
    c->k->add_parts(y, part, parts, (enum dtype)type, n);
    return true;
}

static bool case_fill(struct check *c, long shape)
{
    if (shape >= LENGTHS * DTYPES) return false;
    int type = (int)(shape % DTYPES);
    long n = lengths[shape / DTYPES];
    struct tensor x = {.data = out(c, "x", type, n, exactly), .dtype = (enum dtype)type};
    seal(c, "%ld %s", n, dtype_name((enum dtype)type));
    c->k->fill(x, 1.1, n);
    return true;
}

static bool case_init_normal(struct check *c, long shape)
{
    if (shape >= LENGTHS * 3) return false;
    int type = (int)(shape % 3);
    long n = lengths[shape / 3], offset = shape % 2 ? 0xfffffff1 : 0; // the counter passes 2^32
    struct tensor x = {.data = out(c, "x", type, n, exactly), .dtype = (enum dtype)type};
    seal(c, "%ld %s from %ld", n, dtype_name((enum dtype)type), offset);
    c->k->init_normal(x, 0.5, 0.02, n, 7, 0x1234567890abcdefu, offset);
    return true;
}

// ---- embedding, residual, norm ----

static const long row_shapes[][2] = { // T D
    {0, 16}, {1, 1}, {3, 17}, {17, 63}, {2, 64}, {65, 65}, {130, 130}, {5, 1000}, {200, 96}, {1, 512}, {3, 2100},
    {67, 1030},
};
enum { ROW_SHAPES = sizeof row_shapes / sizeof row_shapes[0] };

static bool case_embed(struct check *c, long shape)
{
    if (shape >= WEIGHTS * ROW_SHAPES) return false;
    long T = row_shapes[shape / WEIGHTS][0], D = row_shapes[shape / WEIGHTS][1], V = 37;
    enum weight kind = (enum weight)(shape % WEIGHTS);
    struct tensor table = in_weight(c, kind, V, D);
    int *token = in_ints(c, T, V);
    for (long t = 2; t < T; t += 5) token[t] = -1 - token[t];
    void *x = out(c, "x", (int)c->k->el, T * D, (struct bound){.relative = kind ? c->eps_el : 0});
    seal(c, "T %ld D %ld%s", T, D, weight_names[kind]);
    c->k->embed(x, table, token, T, D);
    return true;
}

static bool case_embed_backward(struct check *c, long shape)
{
    if (shape >= ROW_SHAPES) return false;
    long T = row_shapes[shape][0], D = row_shapes[shape][1], V = 7; // every token many times
    void *dx = in_el(c, T * D);
    int *token = in_ints(c, T, V);
    for (long t = 2; t < T; t += 5) token[t] = -1 - token[t];
    void *dtable = in_out(c, "dtable", (int)c->k->acc, F32, V * D,
                          (struct bound){.absolute = (double)(T + 1) * 4 * c->eps_acc});
    seal(c, "T %ld D %ld", T, D);
    c->k->embed_backward(dtable, dx, token, T, D);
    return true;
}

static bool case_add(struct check *c, long shape)
{
    if (shape >= 3 * LENGTHS) return false;
    long n = lengths[shape % LENGTHS], place = shape / LENGTHS;
    struct bound b = {.relative = c->eps_el};
    void *x = in_el(c, n), *a = place ? in_out(c, "y", (int)c->k->el, c->exact, n, b) : in_el(c, n);
    void *y = place ? a : out(c, "y", (int)c->k->el, n, b);
    seal(c, "n %ld, y %s", n, place == 0 ? "apart" : place == 1 ? "is a" : "is b");
    c->k->add(y, place == 2 ? x : a, place == 2 ? a : x, n);
    return true;
}

static bool case_rmsnorm(struct check *c, long shape)
{
    if (shape >= ROW_SHAPES + 1) return false;
    bool zeros = shape == ROW_SHAPES;
    long T = zeros ? 2 : row_shapes[shape][0], D = zeros ? 40 : row_shapes[shape][1];
    void *x = in_random(c, (int)c->k->el, c->exact, T * D, zeros ? 0 : 3), *w = in_acc(c, D);
    void *y = out(c, "y", (int)c->k->el, T * D, (struct bound){.relative = c->eps_el + 8 * c->eps_acc});
    void *rstd = out(c, "rstd", (int)c->k->acc, T, (struct bound){.relative = 8 * c->eps_acc});
    seal(c, "T %ld D %ld%s", T, D, zeros ? " zeros" : "");
    c->k->rmsnorm(y, rstd, x, w, 1e-6, T, D);
    return true;
}

static bool case_rmsnorm_backward(struct check *c, long shape)
{
    if (shape >= 3 * ROW_SHAPES) return false;
    long T = row_shapes[shape % ROW_SHAPES][0], D = row_shapes[shape % ROW_SHAPES][1], how = shape / ROW_SHAPES;
    struct bound b = {.relative = c->eps_el, .absolute = 64 * c->eps_acc, .of_max = 16 * c->eps_acc};
    void *dy = in_el(c, T * D), *x = in_el(c, T * D), *w = in_acc(c, D);
    void *y = in_values(c, (int)c->k->el, T * D), *rstd = in_values(c, (int)c->k->acc, T);
    c->ref->rmsnorm(y, rstd, x, w, 1e-6, T, D);
    void *dresidual = how == 2 ? NULL : how ? in_out(c, "dx", (int)c->k->el, c->exact, T * D, b) : in_el(c, T * D);
    void *dx = how == 1 ? dresidual : out(c, "dx", (int)c->k->el, T * D, b);
    seal(c, "T %ld D %ld, residual %s", T, D, how == 0 ? "apart" : how == 1 ? "in place" : "NULL");
    c->k->rmsnorm_backward(dx, dresidual, dy, x, w, rstd, T, D);
    return true;
}

static bool case_rmsnorm_backward_weight(struct check *c, long shape)
{
    if (shape >= ROW_SHAPES) return false;
    long T = row_shapes[shape][0], D = row_shapes[shape][1];
    void *dy = in_el(c, T * D), *x = in_el(c, T * D), *rstd = in_acc(c, T);
    void *dw = in_out(c, "dw", (int)c->k->acc, F32, D,
                      (struct bound){.of_max = (4 + 2 * sqrt((double)T)) * c->eps_acc});
    seal(c, "T %ld D %ld", T, D);
    c->k->rmsnorm_backward_weight(dw, dy, x, rstd, T, D);
    return true;
}

// ---- rotary embedding ----

static bool case_rope_angles(struct check *c, long shape)
{
    static const long shapes[][2] = {{0, 8}, {1, 2}, {5, 16}, {130, 64}, {17, 80}, {3000, 32}, {40, 6}};
    if (shape >= 7) return false;
    long positions = shapes[shape][0], C = shapes[shape][1];
    void *angle = out(c, "angle", (int)c->k->acc, positions * C,
                      (struct bound){.absolute = (2 + (c->eps_acc < 1e-9 ? (double)positions : 0)) * c->eps_acc});
    seal(c, "positions %ld C %ld", positions, C);
    c->k->rope_angles(angle, 1e4, positions, C);
    return true;
}

static bool case_rope(struct check *c, long shape)
{
    static const long shapes[][3] = {{0, 2, 8}, {1, 1, 2}, {3, 2, 6}, {17, 3, 16}, {65, 2, 80}, {33, 4, 64}, {5, 0, 8}};
    if (shape >= 14) return false;
    long T = shapes[shape / 2][0], heads = shapes[shape / 2][1], C = shapes[shape / 2][2], stride = heads * C + 3;
    int sign = shape % 2 ? -1 : 1;
    int *position = in_ints(c, T, 50);
    void *angle = in_values(c, (int)c->k->acc, 50 * C);
    c->ref->rope_angles(angle, 1e4, 50, C);
    void *x = in_out(c, "x", (int)c->k->el, c->exact, T * stride,
                     (struct bound){.relative = c->eps_el, .absolute = 16 * c->eps_acc});
    seal(c, "T %ld heads %ld C %ld sign %d", T, heads, C, sign);
    c->k->rope(x, position, angle, sign, T, heads, C, stride);
    return true;
}

// ---- optimizer and sums ----

static bool case_adamw(struct check *c, long shape)
{
    if (shape >= 2 * LENGTHS) return false;
    long n = lengths[shape / 2];
    bool own = shape % 2; // p is its own master
    int type = (int)c->k->acc;
    struct bound b = {.relative = 8 * c->eps_acc, .absolute = 2 * c->eps_acc, .of_max = 4 * c->eps_acc};
    struct bound rounded = b;
    rounded.relative += c->eps_el;
    void *grad = in_acc(c, n);
    void *m = in_out(c, "m", type, F32, n, b), *v = in_out(c, "v", type, F32, n, b), *master = NULL;
    for (long i = 0; i < n; i++) put(v, type, i, fabs(acc_at(c, v, i)));
    if (n > 2) put(grad, type, 1, 0), put(v, type, 1, 0), put(m, type, 1, 0); // never touched before
    if (!own) master = in_out(c, "master", type, F32, n, b);
    struct tensor p = {.dtype = own ? c->k->acc : c->k->el};
    p.data = own ? in_out(c, "p", type, F32, n, b) : out(c, "p", (int)p.dtype, n, rounded);
    struct adamw_step s = {.lr = 1e-2, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1,
                           .correction1 = 1 - 0.9 * 0.9, .correction2 = 1 - 0.95 * 0.95, .grad_scale = 0.7};
    seal(c, "n %ld%s", n, own ? ", no master" : "");
    c->k->adamw(p, master, m, v, grad, n, s);
    return true;
}

static const long sum_lengths[] = {0, 1, 3, 1000, 65535, 65536, 65537, 200001};

static bool sum_case(struct check *c, long shape, bool squares)
{
    if (shape >= 8) return false;
    long n = sum_lengths[shape];
    void *x = in_acc(c, n);
    double *sum = out(c, "sum", F64, 1, (struct bound){.absolute = 4e-14 * (double)n});
    seal(c, "n %ld", n);
    *sum = squares ? c->k->sum_squares(x, n) : c->k->sum(x, n);
    return true;
}

static bool case_sum_squares(struct check *c, long shape)
{
    return sum_case(c, shape, true);
}

static bool case_sum(struct check *c, long shape)
{
    return sum_case(c, shape, false);
}

static bool case_amax(struct check *c, long shape)
{
    if (shape >= LENGTHS * DTYPES * 2) return false;
    int type = (int)(shape % DTYPES);
    long n = lengths[shape / DTYPES % LENGTHS];
    bool nan = shape >= LENGTHS * DTYPES;
    struct tensor x = {.data = in_random(c, type, F64, n, 3), .dtype = (enum dtype)type};
    if (nan && n) put(x.data, type, n / 2, NAN);
    double *largest = out(c, "amax", F64, 1, exactly);
    seal(c, "%ld %s%s", n, dtype_name(x.dtype), nan ? " with a NaN" : "");
    *largest = c->k->amax(x, n);
    return true;
}

#endif
