// Every kernel of every table: the reference in float and bfloat16 against the reference in double, the reference with
// one thread against all threads (same bits), and each override of this machine against the reference, called twice
// for the same bits. `test_kernels NAME` runs one entry.
#include "kernel_cases_attention.h"
#include "kernel_cases_moe.h"
#include "kernel_cases_rows.h"

static const struct {
    const char *name;
    kernel_case *run;
} cases[] = {
#define CASE(entry) {#entry, case_##entry}
    CASE(copy), CASE(to_host), CASE(from_host), CASE(zero), CASE(cast), CASE(fill), CASE(init_normal),
    CASE(matmul_nt), CASE(matmul_nt_acc), CASE(matmul_nn), CASE(matmul_tn), CASE(grouped_nt), CASE(grouped_nn),
    CASE(grouped_tn), CASE(router_nt), CASE(router_nn), CASE(router_tn),
    CASE(embed), CASE(embed_backward), CASE(add), CASE(rmsnorm), CASE(rmsnorm_backward), CASE(rmsnorm_backward_weight),
    CASE(rope_angles), CASE(rope), CASE(attention), CASE(attention_backward), CASE(kv_store), CASE(attention_paged),
    CASE(gate), CASE(gate_backward), CASE(gate_sums), CASE(gate_statistics), CASE(route), CASE(permute), CASE(combine),
    CASE(swiglu), CASE(swiglu_backward), CASE(expert_similarity), CASE(cross_entropy), CASE(kl_divergence),
    CASE(adamw), CASE(sum_squares), CASE(sum), CASE(amax),
};
enum { CASES = sizeof cases / sizeof cases[0] };

static void report(const char *entry, const char *who, enum dtype type, const struct worst *w)
{
    print_message("  %-24s %-4s %-10s largest difference %-9.3g %5.1f %% of its bound, %ld values\n", entry,
                  dtype_name(type), who, w->difference, 100 * w->of_bound, w->values);
}

static void test_entry(void **state)
{
    long row = (long)*state;
    const char *entry = kernel_rows[row].name;
    kernel_case *run = NULL;
    for (long i = 0; i < CASES; i++)
        if (!strcmp(cases[i].name, entry)) run = cases[i].run;
    if (!run) fail_msg("%s has no case: add one to tests/kernel_cases_*.h", entry);

    struct kernels reference[F64 + 1];
    long failures = 0;
    for (int type = F32; type <= F64; type++) kernels_reference(&reference[type], (enum dtype)type);
    for (int type = F32; type <= F64; type++) {
        const struct kernels *k = kernels_for((enum dtype)type), *ref = &reference[type], *exact = &reference[F64];
        struct worst w = {0};
        failures += compare_tables(&w, entry, run, ref, ref, ref, ref, SAME_BITS_ONE_THREAD);
        if (type != F64) {
            w = (struct worst){0};
            failures += compare_tables(&w, entry, run, ref, ref, exact, exact, WITHIN_BOUNDS);
            report(entry, "ref", (enum dtype)type, &w);
            if (!w.nonzero) print_error("%s: every value was zero\n", entry), failures++;
        }
        long at = kernel_rows[row].offset;
        if (!memcmp((const char *)k + at, (const char *)ref + at, sizeof(void (*)(void)))) continue;
        w = (struct worst){0};
        failures += compare_tables(&w, entry, run, k, ref, ref, ref, WITHIN_BOUNDS);
        report(entry, kernel_source((enum dtype)type, row), (enum dtype)type, &w);
        failures += compare_tables(&w, entry, run, k, ref, k, ref, SAME_BITS);
    }
    assert_int_equal(failures, 0);
}

int main(int count, char **arguments)
{
    if (kernels_init(0) != OK) {
        fprintf(stderr, "%s\n", fail_message());
        return 1;
    }
    struct CMUnitTest tests[128];
    long n = 0;
    for (long row = 0; row < kernel_rows_n && n < 128; row++) {
        if (count > 1 && strcmp(arguments[1], kernel_rows[row].name)) continue;
        tests[n++] = (struct CMUnitTest){.name = kernel_rows[row].name, .test_func = test_entry,
                                         .initial_state = (void *)row};
    }
    return _cmocka_run_group_tests("kernels", tests, (size_t)n, NULL, NULL);
}
