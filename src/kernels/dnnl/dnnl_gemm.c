#include "kernels/dnnl/dnnl_gemm.h"

#include <dnnl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"

// A failure here is ours (a wrong descriptor) or lack of memory for oneDNN's scratch: neither can come from a file.
#define DNNL(call) CHECK((call) == dnnl_success)

void dnnl_gemm_f32(enum product p, bool add, float *y, const float *x, const float *w, long M, long N, long K)
{
    if (M == 0 || N == 0) return;
    if (K == 0) {
        if (!add) memset(y, 0, sizeof(float) * (size_t)(M * N));
        return;
    }
    DNNL(dnnl_sgemm(p == PRODUCT_TN ? 'T' : 'N', p == PRODUCT_NT ? 'T' : 'N', M, N, K, 1.0f, x,
                    p == PRODUCT_TN ? M : K, w, p == PRODUCT_NT ? K : N, add ? 1.0f : 0.0f, y, N));
}

// Creating a primitive costs 0.1-0.5 ms, so each shape is kept. The number of rows (tokens, rows of an expert) changes
// from call to call: it is a run-time dimension, measured as fast as a fixed one from 64 rows on.
struct shape {
    enum product product;
    bool add, wide;
    long M, N, K; // 0: the run-time dimension (M; K for TN)
};

struct entry {
    struct shape shape;
    dnnl_primitive_t primitive;
    long scratch; // bytes
};

enum { CACHE = 256 };
static struct {
    pthread_mutex_t lock;
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    struct entry entry[CACHE];
    long n, next;
} cache = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void start(void)
{
    if (cache.engine) return;
    DNNL(dnnl_engine_create(&cache.engine, dnnl_cpu, 0));
    DNNL(dnnl_stream_create(&cache.stream, cache.engine, dnnl_stream_default_flags));
}

static dnnl_memory_desc_t plane(long rows, long columns, bool transposed, dnnl_data_type_t type)
{
    dnnl_memory_desc_t d;
    dnnl_dims_t dims = {rows ? rows : DNNL_RUNTIME_DIM_VAL, columns ? columns : DNNL_RUNTIME_DIM_VAL};
    dnnl_dims_t strides = {transposed ? 1 : dims[1], transposed ? dims[0] : 1};
    DNNL(dnnl_memory_desc_init_by_strides(&d, 2, dims, type, strides));
    return d;
}

struct operands {
    dnnl_memory_desc_t x, w, y;
};

static struct operands describe(const struct shape *s)
{
    return (struct operands){
        .x = plane(s->M, s->K, s->product == PRODUCT_TN, dnnl_bf16),
        .w = plane(s->K, s->N, s->product == PRODUCT_NT, dnnl_bf16),
        .y = plane(s->M, s->N, false, s->wide ? dnnl_f32 : dnnl_bf16),
    };
}

static bool create(dnnl_primitive_t *primitive, long *scratch, const struct shape *s)
{
    struct operands o = describe(s);
    dnnl_matmul_desc_t desc;
    DNNL(dnnl_matmul_desc_init(&desc, &o.x, &o.w, NULL, &o.y));
    dnnl_primitive_attr_t attr;
    DNNL(dnnl_primitive_attr_create(&attr));
    if (s->add) {
        dnnl_post_ops_t ops;
        DNNL(dnnl_post_ops_create(&ops));
        DNNL(dnnl_post_ops_append_sum(ops, 1.0f));
        DNNL(dnnl_primitive_attr_set_post_ops(attr, ops));
        DNNL(dnnl_post_ops_destroy(ops));
    }
    dnnl_primitive_desc_t pd;
    bool ok = dnnl_primitive_desc_create(&pd, &desc, attr, cache.engine, NULL) == dnnl_success;
    if (ok) {
        int64_t bytes = 0;
        DNNL(dnnl_primitive_desc_query(pd, dnnl_query_memory_consumption_s64, 0, &bytes));
        *scratch = bytes;
        DNNL(dnnl_primitive_create(primitive, pd));
        DNNL(dnnl_primitive_desc_destroy(pd));
    }
    DNNL(dnnl_primitive_attr_destroy(attr));
    return ok;
}

static bool find(dnnl_primitive_t *primitive, const struct shape *s)
{
    for (long i = 0; i < cache.n; i++) {
        const struct shape *t = &cache.entry[i].shape;
        if (t->product == s->product && t->add == s->add && t->wide == s->wide && t->M == s->M && t->N == s->N &&
            t->K == s->K) {
            *primitive = cache.entry[i].primitive;
            return true;
        }
    }
    long scratch;
    if (!create(primitive, &scratch, s)) return false;
    long slot = cache.n < CACHE ? cache.n++ : cache.next++ % CACHE;
    if (cache.entry[slot].primitive) DNNL(dnnl_primitive_destroy(cache.entry[slot].primitive));
    cache.entry[slot] = (struct entry){*s, *primitive, scratch};
    return true;
}

long dnnl_scratch_bytes(void)
{
    long bytes = 0;
    pthread_mutex_lock(&cache.lock);
    for (long i = 0; i < cache.n; i++) bytes += cache.entry[i].scratch;
    pthread_mutex_unlock(&cache.lock);
    return bytes;
}

// One product at a time: a primitive owns its scratch, and the threads inside it already fill the machine.
bool dnnl_gemm_bf16(enum product p, bool add, bool wide, void *y, const uint16_t *x, const uint16_t *w, long M, long N,
                    long K)
{
    if (M == 0 || N == 0) return true;
    if (K == 0) {
        if (!add) memset(y, 0, (size_t)(M * N) * (wide ? 4 : 2));
        return true;
    }
    struct shape exact = {p, add, wide, M, N, K}, key = exact;
    *(p == PRODUCT_TN ? &key.K : &key.M) = 0;
    pthread_mutex_lock(&cache.lock);
    start();
    dnnl_primitive_t primitive;
    bool ok = find(&primitive, &key);
    if (ok) {
        struct operands o = describe(&exact);
        dnnl_memory_t mx, mw, my;
        DNNL(dnnl_memory_create(&mx, &o.x, cache.engine, (void *)(uintptr_t)x));
        DNNL(dnnl_memory_create(&mw, &o.w, cache.engine, (void *)(uintptr_t)w));
        DNNL(dnnl_memory_create(&my, &o.y, cache.engine, y));
        dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, mx}, {DNNL_ARG_WEIGHTS, mw}, {DNNL_ARG_DST, my}};
        DNNL(dnnl_primitive_execute(primitive, cache.stream, 3, args));
        DNNL(dnnl_stream_wait(cache.stream));
        dnnl_memory_destroy(mx);
        dnnl_memory_destroy(mw);
        dnnl_memory_destroy(my);
    }
    pthread_mutex_unlock(&cache.lock);
    return ok;
}

bool dnnl_has_bf16(void)
{
    return dnnl_get_effective_cpu_isa() >= dnnl_cpu_isa_avx512_core && __builtin_cpu_supports("avx512bw");
}

void dnnl_cap(enum dnnl_cap cap)
{
    static const dnnl_cpu_isa_t isa[] = {dnnl_cpu_isa_all, dnnl_cpu_isa_avx2, dnnl_cpu_isa_avx512_core_vnni,
                                         dnnl_cpu_isa_avx512_core_bf16};
    dnnl_set_max_cpu_isa(isa[cap]); // refused once oneDNN has looked at the processor: then the first cap stays
}
