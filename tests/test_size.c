// Folders larger than memory: what opening, inspecting and planning them takes is their headers.
//
//     build/tests/test_size DIR          writes the sparse FP8 folder in the shape of Skywork-MoE and ends
#include "program_path.h"
#include "sparse_folder.h"

#include <sys/resource.h>

static struct config skywork_moe(enum quant quant)
{
    return (struct config){.arch = ARCH_SKYWORK, .D = 4608, .F = 12288, .L = 52, .H = 36, .G = 36, .C = 128, .V = 65532,
                           .E = 16, .K = 2, .gate_norm_std = 1, .max_positions = 8192, .norm_eps = 1e-6,
                           .rope_theta = 10000, .dtype = BF16, .quant = quant, .bos = 1, .eos = 2, .pad = 0};
}

static void a_huge_folder_opens_in_little_memory(void **state)
{
    static struct model_folder f;
    (void)state;
    struct config c = skywork_moe(QUANT_FP8);
    long bytes = sparse_folder(in("huge"), &c, 5000000000), before = resident_bytes(), stored = 0;
    OK_OR_FAIL(model_folder_open(&f, in("huge")));
    assert_in_range(resident_bytes() - before, 0, 100L << 20);
    for (long i = 0; i < f.shards; i++) stored += f.shard[i].n;
    assert_int_equal(stored, 5567); // as many as the released model in FP8 has
    assert_in_range(bytes, 146L * 1000000000, 148L * 1000000000);
    assert_true(model_folder_scale(&f, 2, 0) == 0.5F);
    model_folder_close(&f);
}

// ---- the program ----

static char *printed; // by the last run, to both outputs

static rlim_t most_data = RLIM_INFINITY; // anonymous memory the next runs may have

static int run(const char *const *word)
{
    const char *argv[16] = {program};
    long bytes;
    int code;
    for (int i = 0; word[i]; i++) argv[i + 1] = word[i];
    pid_t child = fork();
    if (child == 0) {
        int to = open(in("printed"), O_WRONLY | O_CREAT | O_TRUNC, 0600);
        dup2(to, 1);
        dup2(to, 2);
        if (setrlimit(RLIMIT_DATA, &(struct rlimit){most_data, most_data}) != 0) _exit(98);
        execv(program, (char *const *)(uintptr_t)argv);
        _exit(99);
    }
    assert_int_equal(waitpid(child, &code, 0), child);
    free(printed);
    printed = NULL;
    OK_OR_FAIL(file_read(&printed, &bytes, in("printed"), 1 << 20));
    return WIFEXITED(code) ? WEXITSTATUS(code) : 1000 + WTERMSIG(code);
}
#define RUN(...) run((const char *const[]){__VA_ARGS__, NULL})

static void has(const char *part)
{
    if (!strstr(printed, part)) fail_msg("'%s' does not contain '%s'", printed, part);
}

static void inspect_reads_headers_only(void **state)
{
    (void)state;
    assert_int_equal(RUN("inspect", in("huge")), 0);
    has("146.36 B (146356130304)");
    has("146.96 GB in 30 files");
}

static void a_dry_run_takes_a_config_and_counts(void **state)
{
    (void)state;
    assert_int_equal(RUN("upcycle", "--dry-run", "--model", in("13b.json"), "--num-experts", "16", "--json"), 0);
    has("\"params_total\":146");
    has("\"output_bytes\":29");
    assert_int_equal(RUN("upcycle", "--dry-run", "--model", in("13b.json"), "--num-experts", "16"), 0);
    has("parameters 146");
    has("would write 29");
    assert_int_equal(RUN("upcycle", "--model", in("13b.json"), "--output", in("new")), 1); // not a dry run
    has("is not a folder");
    assert_int_equal(RUN("upcycle", "--dry-run", "--model", in("none.json")), 1);
    has("no such folder");
}

static void a_disk_that_is_too_small_is_refused_before_writing(void **state)
{
    (void)state;
    char to[PATH_LENGTH], sentence[2 * PATH_LENGTH];
    OK_OR_FAIL(path_join(to, folder, "not/there/yet"));
    struct config c = skywork_moe(QUANT_NONE);
    c.E = c.K = 0;
    c.gate_norm_std = 0;
    sparse_folder(in("dense"), &c, 1L << 40);
    assert_int_equal(RUN("upcycle", "--dry-run", "--model", in("13b.json"), "--output", to, "--num-experts", "4096"),
                     1);
    has("would write 7");
    snprintf(sentence, sizeof sentence, "skymoe upcycle: %s: needs 7", to);
    has(sentence);
    has(" GB are free on that disk (free some room)\n");
    assert_int_equal(RUN("upcycle", "--model", in("dense"), "--output", to, "--num-experts", "4096"), 1);
    assert_memory_equal(printed, sentence, strlen(sentence));
    assert_ptr_equal(strchr(printed, '\n'), printed + strlen(printed) - 1); // one sentence
    assert_false(path_exists(in("not")));
    OK_OR_FAIL(folder_writer_room(to, 1 << 20));
    expect(folder_writer_room(to, 1L << 60), ERR_IO, " GB are free on that disk");
}

// 21 matrices of 2 TB each.
static void quantize_refuses_before_it_reads(void **state)
{
    (void)state;
    struct config c = skywork_moe(QUANT_NONE);
    c.E = c.K = 0;
    c.gate_norm_std = 0;
    c.arch = ARCH_LLAMA;
    c.D = 1 << 20;
    c.H = c.G = 4096;
    c.C = 256;
    c.F = 1 << 20;
    c.L = 3;
    sparse_folder(in("giant"), &c, 1);
    assert_int_equal(RUN("quantize", "--model", in("giant"), "--output", in("new")), 1);
    has(" GB are free on that disk");
    assert_false(path_exists(in("new")) || path_exists(in("new.tmp")));
}

// 64 MB of anonymous memory, stacks and libraries included, and a matrix of 67 MB.
static void converting_takes_no_memory_for_the_model(void **state)
{
    (void)state;
    struct config c = {.arch = ARCH_LLAMA, .D = 512, .F = 64, .L = 1, .H = 8, .G = 8, .C = 64, .V = 65536,
                       .max_positions = 64, .norm_eps = 1e-5, .rope_theta = 100, .tied = true, .dtype = BF16,
                       .bos = 1, .eos = 2, .pad = -1};
    sparse_folder(in("wide"), &c, 1L << 40);
#ifndef __SANITIZE_ADDRESS__
    most_data = 64 << 20;
#endif
    int upcycled = RUN("upcycle", "--model", in("wide"), "--output", in("moe"), "--threads", "2", "--quiet");
    if (upcycled != 0) fail_msg("%d: %s", upcycled, printed);
    int quantised = RUN("quantize", "--model", in("moe"), "--output", in("fp8"), "--threads", "2", "--quiet");
    most_data = RLIM_INFINITY;
    if (quantised != 0) fail_msg("%d: %s", quantised, printed);
    OK_OR_FAIL(folder_verify(in("fp8")));
}

static int start(void **state)
{
    return set_up(state) == 0 && find_program() ? 0 : -1;
}

static void write_config(void **state)
{
    (void)state;
    struct config c = skywork_moe(QUANT_NONE);
    char *text;
    c.E = c.K = 0;
    c.gate_norm_std = 0;
    OK_OR_FAIL(config_write(&text, &c));
    OK_OR_FAIL(file_write(in("13b.json"), text, (long)strlen(text)));
    free(text);
}

int main(int argc, char **argv)
{
    if (argc == 2) {
        struct config c = skywork_moe(QUANT_FP8);
        return kernels_init(1) != OK || sparse_folder(argv[1], &c, 5000000000) == 0;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_huge_folder_opens_in_little_memory),
        cmocka_unit_test(inspect_reads_headers_only),
        cmocka_unit_test(write_config),
        cmocka_unit_test(a_dry_run_takes_a_config_and_counts),
        cmocka_unit_test(a_disk_that_is_too_small_is_refused_before_writing),
        cmocka_unit_test(quantize_refuses_before_it_reads),
        cmocka_unit_test(converting_takes_no_memory_for_the_model),
    };
    return cmocka_run_group_tests(tests, start, tear_down);
}
