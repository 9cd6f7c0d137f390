// All arithmetic, behind one table of function pointers per element type.
//
// kernels_init fills each table in order: the plain C reference (ref/), then every better implementation this machine
// supports overwrites entries (dnnl/, x86/). tests/test_kernels compares each override with the reference.
// SKYMOE_KERNELS=ref|dnnl|avx2|avx512|avx512bf16 caps the ladder.
//
// Conventions. Arguments: outputs, inputs, sizes. `el` is an element of the table's type (float, bf16 or double), `acc`
// is float (double in the double table): sums, statistics, gradients of weights, router. Everything is row major and
// dense. `=` or `+=` is stated; outputs never overlap inputs unless said. Sizes may be 0. Kernels check nothing. Each
// sums in an order fixed by sizes and thread count, so the same call twice gives the same bits.
// Of a model split over ranks an entry gets this rank's part of heads, tokens, vocabulary or experts, and where it
// matters that part's place in the whole (skip, from). A rank alone holds the whole.
// Sizes: T tokens, D hidden, H heads, G kv heads, C head channels, E experts, K experts per token, F expert hidden,
// V vocabulary, R rows (kept assignments, sorted by expert then token), S sequence length; M N K in products.
#ifndef SKYMOE_KERNELS_KERNELS_H
#define SKYMOE_KERNELS_KERNELS_H

#include <stdbool.h>

#include "base/arena.h"
#include "base/status.h"
#include "kernels/dtype.h"

typedef void el;
typedef void acc;

// A stored matrix [N, K] or vector. `scale` is NULL except for F8_E4M3, where value = data * scale: one float per
// output row n (a per-tensor scale repeats), or, with scale_columns > 1, one per SCALE_BLOCK columns of each row:
// scale[n * scale_columns + k / SCALE_BLOCK]. The rows of a block repeat it, for a part of a field need not begin where
// a block does.
struct tensor {
    void *data;
    float *scale;
    enum dtype dtype;
    int scale_columns; // ceil(K / SCALE_BLOCK), or 0 and 1: a scale per row
};

enum { PAGE_TOKENS = 16 }; // tokens of one KV page

// Where the keys and values of the sequences in a batch of rows live. One layer's pages: [pages, PAGE_TOKENS, G, C].
struct kv_view {
    el *k, *v;
    const int *table;    // [sequences, table_stride] page of each 16 positions
    long table_stride;
    const int *sequence; // [T] row of `table`
    const int *position; // [T] absolute position of the row
};

struct attention_shape {
    long B, S;    // sequences, tokens of each (T = B*S)
    long H, G, C;
    long per_kv, skip; // head h reads kv head (skip + h) / per_kv < G; a kv head that no head reads gets no gradient
    long window;       // keys j > i - window are visible; 0: all earlier ones
    double scale;      // 1/sqrt(C)
};

enum drop_policy { DROP_PROBS, DROP_POSITION };

struct adamw_step {
    double lr, beta1, beta2, eps, weight_decay;
    double correction1, correction2; // 1 - beta^t
    double grad_scale;               // clipping factor
};

struct gate_statistics { // sums over T tokens
    double entropy;   // -sum g log g
    double max1_max2; // ratio of the largest to the second largest g
    double max2_max3; // 0 when E < 3
};

struct kernels {
    enum device device;
    enum dtype el, acc;

    // ---- memory ----
    void (*copy)(void *to, const void *from, long bytes);      // within the device
    void (*to_host)(void *host, const void *device, long bytes);
    void (*from_host)(void *device, const void *host, long bytes);
    void (*zero)(void *data, long bytes);
    void (*cast)(struct tensor to, struct tensor from, long rows, long columns);  // any types; `from.scale` is applied,
                                                               // to.scale (F8: already chosen) divides before rounding
    // y = part[0] + part[1] + ... in this order, parts > 0: sums in f32 (F64: double), one rounding. dtype F32, BF16 or
    // F64; y may be one of the parts.
    void (*add_parts)(void *y, const void *const *part, long parts, enum dtype dtype, long n);
    void (*fill)(struct tensor x, double value, long n);
    void (*init_normal)(struct tensor x, double mean, double std, long n, long seed, uint64_t stream, long offset);
                                                               // x[i] = N(mean, std) drawn at counter offset + i

    // ---- products; sums in acc, one rounding ----
    void (*matmul_nt)(el *y, const el *x, struct tensor w, long M, long N, long K);      // y[M,N] = x[M,K] w[N,K]'
    void (*matmul_nt_acc)(acc *y, const el *x, struct tensor w, long M, long N, long K); // the same, not rounded
    void (*matmul_nn)(el *dx, const el *dy, struct tensor w, long M, long N, long K);    // dx[M,K] = dy[M,N] w[N,K]
    void (*matmul_tn)(acc *dw, const el *dy, const el *x, long M, long N, long K);       // dw[N,K] += dy[M,N]' x[M,K]
    // The same for E matrices w[e] one behind the other; rows first[e] .. first[e+1]-1 belong to e. `first` is host
    // memory.
    void (*grouped_nt)(el *y, const el *x, struct tensor w, const long *first, long E, long N, long K);
    void (*grouped_nn)(el *dx, const el *dy, struct tensor w, const long *first, long E, long N, long K);
    void (*grouped_tn)(acc *dw, const el *dy, const el *x, const long *first, long E, long N, long K); // +=
    // The router's products: x in el, everything else in acc.
    void (*router_nt)(acc *z, const el *x, const acc *w, long T, long E, long D);        // z[T,E] = x w'
    void (*router_nn)(acc *dx, const acc *dz, const acc *w, long T, long E, long D);     // dx[T,D] = dz w
    void (*router_tn)(acc *dw, const acc *dz, const el *x, long T, long E, long D);      // dw[E,D] += dz' x

    // ---- embedding, norm, residual ----
    // x[t] = table[token[t]]; token[t] < 0 (not in this rank's part of the table): zeros, and backward adds nothing.
    void (*embed)(el *x, struct tensor table, const int *token, long T, long D);
    void (*embed_backward)(acc *dtable, const el *dx, const int *token, long T, long D); // +=
    void (*add)(el *y, const el *a, const el *b, long n);                                // y = a + b; y may be a or b
    // y = x rstd w, rstd[t] = 1/sqrt(mean x^2 + eps)
    void (*rmsnorm)(el *y, acc *rstd, const el *x, const acc *w, double eps, long T, long D);
    // dx = dresidual + d(norm): the sum in acc, one rounding; dx may be dresidual. dresidual NULL: 0
    void (*rmsnorm_backward)(el *dx, const el *dresidual, const el *dy, const el *x, const acc *w, const acc *rstd,
                             long T, long D);
    void (*rmsnorm_backward_weight)(acc *dw, const el *dy, const el *x, const acc *rstd, long T, long D); // +=

    // ---- attention ----
    // Rotate-half rotary embedding in place on `heads` heads of C channels at the start of each row of `stride`
    // elements.
    // angle[p, c] for positions 0..: cos in [p, 0, c], sin in [p, 1, c], c < C/2. sign -1 undoes (backward).
    void (*rope_angles)(acc *angle, double theta, long positions, long C);               // angle [positions, 2, C/2]
    void (*rope)(el *x, const int *position, const acc *angle, int sign, long T, long heads, long C, long stride);
    // Tiled, never S x S [Dao, FlashAttention-2, 2023]. qkv rows: H heads of q, G of k, G of v, C channels each.
    // Query t of its sequence sees keys start[t] <= j <= t (start: index within the sequence, the document mask).
    void (*attention)(el *o, acc *lse, const el *qkv, const int *start,
                      struct attention_shape s);                                         // o [T,H,C] lse [T,H]
    void (*attention_backward)(el *dqkv, const el *d_o, const el *qkv, const el *o, const acc *lse, const int *start,
                               struct attention_shape s);                                // dqkv = (all of it)
    // Inference. kv_store writes each row's k and v to its page; attention_paged then walks pages from position 0.
    void (*kv_store)(struct kv_view kv, const el *qkv, long T, long H, long G, long C);
    void (*attention_paged)(el *o, const el *qkv, struct kv_view kv, long T, long H, long G, long C, long window,
                            double scale);                                               // o [T,H,C]

    // ---- mixture of experts ----
    // Gating [Skywork-MoE report, eq 1-2 and 4.1]: z (in: logits, out: normalised logits z~), g = softmax(z~), top-K by
    // z~ + bias (bias NULL: 0), ties to the lower index; score = g of the chosen, weight = score / its sum over the K.
    // lambda 0: z~ = z. inv_std[t] = lambda/std (unbiased; 0 where the variance is below 1e-12, z~ = 0 there).
    void (*gate)(acc *g, acc *inv_std, int *expert, acc *weight, acc *score, acc *z, const acc *bias, double lambda,
                 long T, long E, long K);                     // g, z [T,E]; expert, weight, score [T,K]; inv_std [T]
    // dz = through weight's renormalisation, softmax and normalisation. dg[(skip + t) / group, e] is added to the
    // gradient of g (the balance loss; NULL: none).
    void (*gate_backward)(acc *dz, const acc *dweight, const acc *dg, const acc *g, const acc *inv_std, const acc *z,
                          const int *expert, const acc *weight, double lambda, long skip, long group, long T, long E,
                          long K);
    // Router z-loss [Zoph et al., ST-MoE, 2022, eq 5]: lse[t] = log sum_e exp z[t,e] of raw logits; the loss is mean
    // lse^2. Its backward adds scale lse[t] softmax(z[t]) to dz; z there is what gate made of the logits, with its
    // inv_std and lambda.
    void (*z_loss)(acc *lse, const acc *z, long T, long E);
    void (*z_loss_backward)(acc *dz, const acc *lse, const acc *z, const acc *inv_std, double lambda, double scale,
                            long T, long E);                  // +=
    // sum[s, e] = sum of g over the tokens t of group s = (skip + t) / group; rows 0 .. ceil((skip + T) / group) - 1,
    // of which the first ones may have no token here, and 0.
    void (*gate_sums)(acc *sum, const acc *g, long skip, long group, long T, long E);
    void (*gate_statistics)(struct gate_statistics *sum, const acc *g, long T, long E);
    // Which assignments (t, k) become rows: judged over all T tokens of the micro-batch (expert, score [T,K]), numbered
    // for this rank's tokens from .. from + own - 1. count[e]: assignments of all T before dropping; an expert keeps at
    // most `capacity`: DROP_PROBS drops the lowest score first (ties: later token first), DROP_POSITION the later token
    // first, then the later choice. With i = (t - from)*K + k of an own one: source[r] = i of row r; row[i] = r or -1
    // when dropped (row [own,K]); first[0..E] delimits experts. count and first are host memory. Returns R.
    long (*route)(int *source, int *row, long *first, long *count, const int *expert, const acc *score, long capacity,
                  enum drop_policy policy, long from, long own, long T, long E, long K);
    // The same for decisions made elsewhere: given [T,K] is an expert, or -1 - expert where it is dropped. Own tokens
    // (expert, weight [own,K], g [own,E]) for which gate chose other experts get these and their weights; the others
    // keep every bit of theirs.
    long (*route_given)(int *source, int *row, long *first, long *count, int *expert, acc *weight, const int *given,
                        const acc *g, long from, long own, long T, long E, long K);
    void (*pick)(acc *to, const acc *from, const int *source, long R);                   // to[r] = from[source[r]]
    void (*place)(acc *to, const acc *from, const int *source, long R);                  // to[source[r]] = from[r]; the
                                                                                         // others are left alone
    void (*permute)(el *rows, const el *x, const int *source, long R, long K, long D);   // rows[r] = x[source[r] / K]
    // y[t] = residual[t] + extra[t] + sum_k rows[row[t,k]] in acc, one rounding. residual, extra NULL: 0; y may be
    // residual. Backward of permute; its own backward for `rows` is permute.
    void (*combine)(el *y, const el *residual, const acc *extra, const el *rows, const int *row, long T, long K,
                    long D);
    // h = round(silu(a) b weight[r]), ab rows: F of a, F of b. weight [R]; NULL: 1 (dense)
    void (*swiglu)(el *h, const el *ab, const acc *weight, long R, long F);
    // dab =, dweight [R] =. dweight NULL with weight NULL
    void (*swiglu_backward)(el *dab, acc *dweight, const el *dh, const el *ab, const acc *weight, long R, long F);
    // Mean pairwise cosine of E flattened experts; expert e is the e-th of E equal pieces of every w[i] (n[i]
    // elements each).
    double (*expert_similarity)(const struct tensor *w, const long *n, long parts, long E);

    // ---- head ----
    // What cross_entropy must know of V columns of the vocabulary: part[t] = {max, sum of exp(logit - max), logit of
    // the target or 0 when it is not one of these}, part [T,3]. V = 0 or all -infinity: a max of -infinity and sum 0.
    void (*logits_parts)(acc *part, const acc *logits, const int *target, long T, long V);
    // loss[t] = -log softmax(logits[t])[target[t]], 0 where target < 0; dlogits = (softmax - onehot) * scale, 0 where
    // target < 0; dlogits NULL: loss only. The softmax is over the columns of all ranks, whose parts [ranks,T,3] are
    // merged in this order; target >= V is a column of another rank. ranks 1: these V are all there are, and parts is
    // not read (NULL will do): one pass, nothing rounded between.
    void (*cross_entropy)(acc *loss, el *dlogits, const acc *logits, const acc *parts, long ranks, const int *target,
                          double scale, long T, long V);
    void (*kl_divergence)(acc *kl, const acc *logits_p, const acc *logits_q, long T, long V);  // KL(p || q) of each row

    // ---- optimizer and statistics ----
    // One AdamW step [Loshchilov & Hutter 2019, alg 2]. master NULL: p itself is the master (p in acc).
    void (*adamw)(struct tensor p, acc *master, acc *m, acc *v, const acc *grad, long n, struct adamw_step s);
    double (*sum_squares)(const acc *x, long n); // f64, in fixed blocks of 64Ki elements added in order
    double (*sum)(const acc *x, long n);         // the same for plain sums
    double (*amax)(struct tensor x, long n);     // largest |x|, scale ignored; NaN gives NaN
};

// Chooses the implementations once, before any other call. threads 0: all processors of this process. ERR_CONFIG for an
// unknown SKYMOE_KERNELS or a level this machine lacks.
MUST_USE enum status kernels_init(long threads);
long kernels_threads(void);
const struct kernels *kernels_for(enum dtype el); // F32, BF16 or F64; lives as long as the process

// Bytes that kernels keep beside the arenas until the process ends: the threads' own, to pack operands into, and
// oneDNN's.
struct kernel_buffers {
    long own, library;
};
struct kernel_buffers kernels_buffers(void);

// Called again and again by the thread that called a kernel, between pieces of products and attention (x86/): it lets
// messages move that are under way. Must be brief. NULL: nothing.
void kernels_meanwhile(void (*call)(void));

// Tests and `bench --kernels`: the entries by name.
struct kernel_row {
    const char *name;
    long offset; // offsetof in struct kernels
};
extern const struct kernel_row kernel_rows[];
extern const long kernel_rows_n;
const char *kernel_source(enum dtype el, long row);              // "ref", "dnnl", "avx512" ...: who serves it
void kernels_reference(struct kernels *k, enum dtype el);        // the reference table, whatever the level

#endif
