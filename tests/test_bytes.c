// What is really sent, counted where MPI is called (this program's MPI_Isend stands before the library's), is what the
// metrics say and what the formulas of docs/parallelism.md say. Alone, this program starts itself under mpirun.
#include "mpirun_util.h"

#include <mpi.h>

static long counted[CHANNELS];

int MPI_Isend(const void *data, int count, MPI_Datatype type, int to, int tag, MPI_Comm comm, MPI_Request *request)
{
    int size;
    MPI_Type_size(type, &size);
    counted[tag] += (long)count * size;
    return PMPI_Isend(data, count, type, to, tag, comm, request);
}

enum { S = 16, B = 2, T = B * S, SEQUENCES = 4, D = 32, E = 4, K = 2, L = 2 };

// Every expert gets as many tokens of every rank: token t goes to experts t and t + 1.
static void write_balanced(const char *path)
{
    struct output out;
    OK_OR_FAIL(output_open(&out, path));
    for (int l = 0; l < L; l++)
        for (int t = 0; t < SEQUENCES * S; t++)
            OK_OR_FAIL(output_print(&out, "{\"step\":1,\"layer\":%d,\"token\":%d,\"experts\":[%d,%d],"
                                    "\"weights\":[0.5,0.5],\"dropped\":[false,false]}\n", l, t, t % E, (t + 1) % E));
    OK_OR_FAIL(output_commit(&out, NULL));
}

static struct so {
    long sent, experts;
} one_step(struct trainer *t, const char *name, const char *const *option)
{
    char folder[64];
    snprintf(folder, sizeof folder, "%s-%ld", name, transport_ranks());
    const char *word[40] = {"--data", at("text"), "--model", at("moe.json"), "--output", at(folder),
                            "--micro-batch-size", "2", "--global-batch-size", "4", "--seq-length", "16",
                            "--eval-interval", "0",
                            "--train-steps", "1", "--save-interval", "0", "--replay-routing", at("balanced")};
    int n = 20;
    for (; *option; option++) word[n++] = *option;
    OK_OR_FAIL(open_trainer(t, word, n));
    long before[CHANNELS];
    memcpy(before, counted, sizeof before);
    OK_OR_FAIL(trainer_step(t));
    struct so sum = {0};
    for (int c = 0; c < CHANNELS; c++) {
        struct traffic said = transport_traffic((enum channel)c);
        assert_int_equal(said.near_bytes + said.far_bytes, counted[c]);
        if (c == CHANNEL_WORLD) continue;
        sum.sent += counted[c] - before[c];
        if (c == CHANNEL_EXPERT || c == CHANNEL_EXPERT_TENSOR) sum.experts += counted[c] - before[c];
    }
    group_sum_long(&t->grid.world, &sum.sent, 1);
    group_sum_long(&t->grid.world, &sum.experts, 1);
    assert_int_equal(sum.sent, t->result.sent.near + t->result.sent.far);
    assert_int_equal(sum.experts, t->result.experts.near + t->result.experts.far);
    return sum;
}
#define STEP(t, name, ...) one_step(t, name, (const char *const[]){__VA_ARGS__, NULL})

// Rows cross four times a layer: to the experts and back, forward and backward; twice with one number for their weight.
static void as_rank(void **state)
{
    (void)state;
    static struct trainer t;
    long n = transport_ranks(), word = sizeof(float);
    snprintf(temporary, sizeof temporary, "%s", getenv("SKYMOE_RANKS"));
    log_quiet(true);
    assert_int_equal(kernels_init(1), OK);
    char tp[8];
    snprintf(tp, sizeof tp, "%ld", n);

    // EDP: of T K assignments of each micro-batch, (n - 1) / n belong to another rank's experts.
    struct so edp = STEP(&t, "edp", "--tensor-parallel-size", tp);
    long remote = T * K * (n - 1) / n, micros = SEQUENCES / B;
    long rows = L * micros * remote * (4 * D + 2) * word;
    long counts = L * micros * n * (E - E / n) * (long)sizeof(long); // who sends how many
    trainer_close(&t);
    assert_int_equal(edp.experts, rows + counts);

    // ETP: every token's rows meet all slices of the experts, K times each.
    struct so etp = STEP(&t, "etp", "--tensor-parallel-size", tp, "--expert-parallel-size", "1",
                         "--expert-tensor-parallel-size", tp);
    trainer_close(&t);
    rows = L * micros * T * K * (n - 1) * (4 * D + 2) * word;
    counts = L * micros * n * (n - 1) * E * (long)sizeof(long);
    assert_int_equal(etp.experts, rows + counts);
    if (transport_rank() == 0)
        printf("  %ld ranks: edp %ld bytes of rows, slices %ld: %.2f of it\n", n, edp.experts, etp.experts,
               (double)edp.experts / (double)etp.experts);
}

static int set_up_data(void **state)
{
    if (training_set_up(state) != 0) return -1;
    write_balanced(at("balanced"));
    return 0;
}

static void two(void **state) { (void)state; start_ranks(2); }
static void four(void **state) { (void)state; start_ranks(4); }

int main(void)
{
    const struct CMUnitTest ranks[] = {cmocka_unit_test(as_rank)};
    const struct CMUnitTest tests[] = {cmocka_unit_test(two), cmocka_unit_test(four)};
    return ranks_or_tests("bytes", ranks, 1, tests, 2, set_up_data, remove_temporary);
}
