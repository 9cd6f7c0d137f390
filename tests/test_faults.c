// Every command that reads or writes files, with the n-th thing it asks of the system refused: memory, opening,
// reading, writing, syncing, renaming ... Whatever is refused, a command says one sentence and ends with exit code 1
// (or was not hurt and did its work), nothing that was there before is lost, no file is half-written under its name,
// and under AddressSanitizer nothing leaks.
//
// A command runs in a process of its own, made by fork: this process never computes anything. Requests from the same
// place in the code behave alike, so only the first from each place is refused; FAULT_RUNS limits how many places
// are tried for each command (0: all). It is one file: the commands share the folders they start from and the rules
// that are checked after each.
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/decimal.h"
#include "base/json.h"
#include "base/log.h"
#include "base/rng.h"
#include "checkpoint/checkpoint.h"
#include "data/dataset.h"
#include "faults.h"

int skymoe_main(int argc, char **argv); // the program itself: its commands, its way to print an error and to end
#define main skymoe_main
#include "../src/cli/main.c"
#undef main

#include <cmocka.h> // last: it defines fail()

#define OK_OR_FAIL(call)                                                                                               \
    do {                                                                                                               \
        if ((call) != OK) fail_msg("%s: %s", #call, fail_message());                                                   \
    } while (0)

const char *__asan_default_options(void), *__lsan_default_options(void), *__lsan_default_suppressions(void);
const char *__asan_default_options(void)
{
    return "exitcode=99"; // not the commands' 1
}
const char *__lsan_default_options(void)
{
    return "print_suppressions=0"; // what they say counts
}
const char *__lsan_default_suppressions(void)
{
    return "leak:_dl_\n" // the dynamic linker's own, known as such only without faults.c in between
           "leak:libsentencepiece\n"; // its training, when it ends early
}

static char folder[PATH_LENGTH];
static struct faults *faults;

static const char *at(const char *name)
{
    static char path[64][PATH_LENGTH];
    static int next;
    char *p = path[next++ % 64];
    assert_true(snprintf(p, PATH_LENGTH, "%s/%s", folder, name) < PATH_LENGTH);
    return p;
}

// ---- files, without waiting for a disk ----

static void put(const char *name, const char *text)
{
    FILE *f = fopen(at(name), "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0 && fclose(f) == 0);
}

static void copy_tree(const char *to, const char *from)
{
    char a[PATH_LENGTH], b[PATH_LENGTH];
    struct path_list list;
    OK_OR_FAIL(folder_make(to));
    OK_OR_FAIL(folder_list(&list, from));
    for (long i = 0; i < list.n; i++) {
        OK_OR_FAIL(path_join(a, from, list.name[i]));
        OK_OR_FAIL(path_join(b, to, list.name[i]));
        if (path_is_folder(a)) {
            copy_tree(b, a);
        } else {
            struct file_map map;
            OK_OR_FAIL(file_map_open(&map, a));
            FILE *f = fopen(b, "w");
            assert_true(f && fwrite(map.data, 1, (size_t)map.bytes, f) == (size_t)map.bytes && fclose(f) == 0);
            file_map_close(&map);
        }
    }
    path_list_free(&list);
}

static bool same_bytes(const char *a, const char *b)
{
    struct file_map x, y;
    if (!path_exists(a) || !path_exists(b)) return false;
    OK_OR_FAIL(file_map_open(&x, a));
    OK_OR_FAIL(file_map_open(&y, b));
    bool same = x.bytes == y.bytes && (x.bytes == 0 || memcmp(x.data, y.data, (size_t)x.bytes) == 0);
    file_map_close(&x);
    file_map_close(&y);
    return same;
}

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

// ---- a command in a process of its own ----

struct attempt {
    int code;         // exit code, or 1000 + signal
    char *err;        // what it said
};

static struct attempt call(const char *const *word, enum fault_mode mode, long refuse)
{
    char *argv[48] = {(char *)(uintptr_t)"skymoe"};
    int argc = 1, status;
    struct attempt a = {0};
    long bytes;
    memset(faults, 0, offsetof(struct faults, place));
    faults->frames = 0;
    faults->mode = mode;
    faults->refuse = refuse;
    for (; *word; word++) argv[argc++] = (char *)(uintptr_t)*word;
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        int in = open(path_exists(at("stdin")) ? at("stdin") : "/dev/null", O_RDONLY);
        int out = open(at("out"), O_WRONLY | O_CREAT | O_TRUNC, 0600);
        int err = open(at("err"), O_WRONLY | O_CREAT | O_TRUNC, 0600);
        if (dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0) _exit(98);
        static const int crashes[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGSYS};
        for (int i = 0; i < 5; i++) signal(crashes[i], SIG_DFL); // cmocka's handlers would go on with the next test
        if (mode != FAULTS_OFF) faults_use(faults);
        int code = skymoe_main(argc, argv);
        faults_use(NULL);
        exit(code);
    }
    assert_true(waitpid(child, &status, 0) == child);
    OK_OR_FAIL(file_read(&a.err, &bytes, at("err"), 1 << 20));
    a.code = WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
    return a;
}

static void works(const char *const *word)
{
    struct attempt a = call(word, FAULTS_OFF, 0);
    if (a.code != 0) fail_msg("%s: exit code %d: %s", word[0], a.code, a.err);
    free(a.err);
}
#define WORKS(...) works((const char *const[]){__VA_ARGS__, NULL})

// ---- what must be true afterwards ----

struct trial { // one command and where its files are
    const char *const *word;
    const char *before; // what work/ held; NULL: nothing
    int code;
    bool litter;        // something temporary may be left: removing it was refused, or the program ended in a kernel
    char why[PATH_LENGTH + 256];
};

static bool temporary(const char *name)
{
    return ends_with(name, ".tmp") || ends_with(name, ".old") || ends_with(name, ".new") ||
           ends_with(name, ".part");
}

// Files that say how long something took, and `latest`, which may name a checkpoint between the first and the last.
static bool has_times(const struct trial *t, const char *path)
{
    bool report = strcmp(t->word[0], "report") == 0; // the others' pages are about a run that has just ended
    return strstr(path, "events.out") || ends_with(path, "latest") || (!report && ends_with(path, "report.html"));
}

// Whose results are times.
static bool measures(const struct trial *t)
{
    bool calibrate = false;
    for (const char *const *word = t->word; *word; word++) calibrate = calibrate || !strcmp(*word, "--calibrate");
    return calibrate || strcmp(t->word[0], "train") == 0 || strcmp(t->word[0], "prepare") == 0;
}

static bool json_whole(const char *path)
{
    cJSON *json = NULL;
    bool whole = json_read(&json, path, 1 << 20) == OK;
    cJSON_Delete(json);
    return whole;
}

static bool rows_whole(const char *path)
{
    char *text;
    long bytes;
    bool whole = true;
    OK_OR_FAIL(file_read(&text, &bytes, path, 1 << 24));
    for (char *line = text; *line && whole;) {
        cJSON *json = NULL;
        long n = (long)strcspn(line, "\n");
        whole = line[n] == '\n' && json_parse(&json, line, n, path) == OK;
        if (whole) cJSON_Delete(json);
        line += n + 1;
    }
    free(text);
    return whole;
}

static void wrong(struct trial *t, const char *format, const char *what)
{
    if (!*t->why) snprintf(t->why, sizeof t->why, format, what);
}

static void check_tree(struct trial *t, const char *inner)
{
    char path[2 * PATH_LENGTH], rel[PATH_LENGTH];
    struct path_list list;
    snprintf(path, sizeof path, "%s%s/checksums.json", at("work"), inner);
    bool sealed = path_exists(path); // which model a folder holds is the run's affair, as long as it is whole
    snprintf(path, sizeof path, "%s%s", at("work"), inner);
    if (sealed && folder_verify(path) != OK) wrong(t, "%s", fail_message());
    if (sealed) return;
    OK_OR_FAIL(folder_list(&list, path));
    for (long i = 0; i < list.n; i++) {
        snprintf(rel, sizeof rel, "%s/%s", inner, list.name[i]);
        snprintf(path, sizeof path, "%s%s", at("work"), rel);
        if (temporary(rel)) {
            if (!t->litter) wrong(t, "%s is left", rel);
        } else if (path_is_folder(path)) {
            check_tree(t, rel);
        } else if (ends_with(rel, "metrics.jsonl")) {
            if (!rows_whole(path)) wrong(t, "%s has half a row", rel);
        } else if (ends_with(rel, "measured.json")) {
            if (!json_whole(path)) wrong(t, "%s is half a file", rel);
        } else if (!has_times(t, rel)) {
            char old[2 * PATH_LENGTH], done[2 * PATH_LENGTH];
            snprintf(old, sizeof old, "%s%s", t->before ? at(t->before) : "/nowhere", rel);
            snprintf(done, sizeof done, "%s%s", at("done"), rel);
            if (!same_bytes(path, old) && !same_bytes(path, done)) wrong(t, "%s is neither old nor new", rel);
        }
    }
    path_list_free(&list);
}

// Everything `from` has is in work/ too (event files have the process in their names).
static void check_there(struct trial *t, const char *from, const char *inner)
{
    char path[2 * PATH_LENGTH], rel[PATH_LENGTH];
    struct path_list list;
    snprintf(path, sizeof path, "%s%s", at(from), inner);
    OK_OR_FAIL(folder_list(&list, path));
    for (long i = 0; i < list.n; i++) {
        snprintf(rel, sizeof rel, "%s/%s", inner, list.name[i]);
        if (strstr(rel, "events.out") || temporary(rel)) continue;
        snprintf(path, sizeof path, "%s%s", at("work"), rel);
        if (!path_exists(path)) wrong(t, "%s is missing", rel);
        snprintf(path, sizeof path, "%s%s", at(from), rel);
        if (path_is_folder(path)) check_there(t, from, rel);
    }
    path_list_free(&list);
}

static void check_pairs(struct trial *t)
{
    static const char *const split[] = {"work/new_train", "work/new_valid", "work/new_test"};
    for (int i = 0; i < 3; i++) {
        char name[64];
        struct dataset d;
        snprintf(name, sizeof name, "%s.idx", split[i]);
        if (!path_exists(at(name))) continue;
        if (dataset_open(&d, at(split[i])) != OK) wrong(t, "%s", fail_message());
        else dataset_close(&d);
    }
}

// A run's `latest` names a checkpoint that loads.
static void check_latest(struct trial *t, const char *run_folder)
{
    char path[PATH_LENGTH];
    if (!path_exists(at(run_folder)) || !path_exists(at("work/run/latest"))) return;
    if (checkpoint_latest(path, at(run_folder)) != OK || folder_verify(path) != OK) wrong(t, "%s", fail_message());
}

// Exactly one sentence, the last line; warnings may stand before it.
static void check_said(struct trial *t, const char *err)
{
    char start[64];
    int sentences = 0;
    snprintf(start, sizeof start, "skymoe %s: ", t->word[0]);
    for (const char *line = err; *line;) {
        size_t n = strcspn(line, "\n");
        if (line[n] != '\n') wrong(t, "half a line: %s", line);
        bool last = line[n] == '\0' || line[n + 1] == '\0';
        bool sentence = strncmp(line, start, strlen(start)) == 0 || strncmp(line, "skymoe: memory: ", 16) == 0;
        if (sentence) sentences++;
        if (sentence ? !last : strncmp(line, "warning: ", 9) != 0) wrong(t, "it says: %s", err);
        line += n + (line[n] == '\n');
    }
    if (sentences != (t->code != 0)) wrong(t, t->code ? "no sentence: %s" : "it worked and says: %s", err);
}

static void check(struct trial *t, const struct attempt *a)
{
    t->code = a->code;
    t->litter = (faults->name && (strstr(faults->name, "unlink") || strstr(faults->name, "rmdir"))) ||
                strstr(a->err, "cannot be removed") || strstr(a->err, "cannot be listed") ||
                strncmp(a->err, "skymoe: memory: ", 16) == 0;
    if (a->code != 0 && a->code != 1) wrong(t, "%s", "the exit code is neither 0 nor 1");
    if (!faults->refused && a->code != 0) wrong(t, "%s", "it failed though nothing was refused");
    check_said(t, a->err);
    if (!path_exists(at("work"))) return;
    check_tree(t, "");
    check_pairs(t);
    check_latest(t, "work/run");
    if (t->before && path_exists(at("work/run"))) check_there(t, t->before, "");
    if (a->code == 0 && !strstr(a->err, "warning: ")) check_there(t, "done", "");
    if (a->code == 0 && !measures(t) && !same_bytes(at("out"), at("out.done"))) wrong(t, "%s", "it has other results");
}

// ---- every place of a command ----

static void reset(const struct trial *t)
{
    OK_OR_FAIL(folder_remove(at("work")));
    if (t->before) copy_tree(at("work"), at(t->before));
    else OK_OR_FAIL(folder_make(at("work")));
}

static long usual_runs = 25;

static long runs_wanted(void)
{
    long n = usual_runs;
    const char *text = getenv("FAULT_RUNS");
    if (text && !long_parse(&n, text)) n = 0;
    return n;
}

// `before`: a folder that work/ is a copy of at the start.
static void refuse_each(const char *before, const char *const *word)
{
    static struct faults recorded;
    char *kept[48] = {0}; // at() forgets
    for (int i = 0; word[i]; i++) kept[i] = strdup(word[i]);
    word = (const char *const *)kept;
    struct trial t = {.word = word, .before = before};
    long failures = 0, tried = 0, unharmed = 0, wanted = runs_wanted();
    double started = seconds_now();
    reset(&t);
    struct attempt whole = call(word, FAULTS_RECORD, 0);
    if (whole.code != 0) fail_msg("%s: exit code %d: %s", word[0], whole.code, whole.err);
    free(whole.err);
    recorded = *faults;
    assert_true(recorded.places > 0);
    OK_OR_FAIL(folder_remove(at("done")));
    OK_OR_FAIL(path_rename(at("done"), at("work")));
    OK_OR_FAIL(path_rename(at("out.done"), at("out")));
    for (long i = 0; i < recorded.places; i++) {
        // A fixed draw, so that a failure comes back.
        double share = wanted && recorded.places > wanted ? (double)wanted / (double)recorded.places : 1;
        if (rng_uniform(5, (uint64_t)recorded.places, (uint64_t)i) >= share) continue;
        reset(&t);
        t.why[0] = '\0';
        struct attempt a = call(word, i % 2 ? FAULTS_FROM_ON : FAULTS_ONCE, recorded.place[i]);
        check(&t, &a);
        tried++;
        unharmed += a.code == 0;
        if (*t.why) {
            failures++;
            fprintf(stderr, "%s: exit code %d: %s\n%s", word[0], a.code, t.why, a.err);
            faults_print(faults);
        }
        free(a.err);
    }
    fprintf(stderr, "%s: %ld requests from %ld places, %ld refused, %ld did not matter, %.1f s\n", word[0],
            recorded.requests, recorded.places, tried, unharmed, seconds_now() - started);
    for (int i = 0; kept[i]; i++) free(kept[i]);
    if (failures) fail_msg("%ld of %ld refusals are not handled", failures, tried);
}
#define REFUSE_EACH(before, ...) refuse_each(before, (const char *const[]){__VA_ARGS__, NULL})

// ---- the commands ----

#define SHORT                                                                                                          \
    "--quiet", "--threads", "1", "--micro-batch-size", "2", "--global-batch-size", "4", "--seq-length", "16",          \
        "--eval-interval", "2", "--eval-tokens", "64", "--dtype", "f32", "--save-interval", "1"
#define ALONE "--quiet", "--threads", "1"

static void make_text(void)
{
    static const char *const words[] = {"the", "disk", "file", "kernel", "a", "of", "table", "reads", "writes", "42",
                                        "\xE6\x96\x87\xE4\xBB\xB6", "memory", "is", "not"};
    char name[64], text[4096];
    OK_OR_FAIL(folder_make(at("base/text/inner")));
    for (int d = 0; d < 24; d++) {
        int used = 0, lines = d % 4 == 3;
        for (int i = 0; i < 150; i++) {
            if (lines && i % 50 == 0) used += snprintf(text + used, sizeof text - (size_t)used, "{\"text\": \"");
            double u = rng_uniform(1, (uint64_t)d, (uint64_t)i);
            used += snprintf(text + used, sizeof text - (size_t)used, "%s ", words[(int)(u * 14)]);
            if (lines && i % 50 == 49) used += snprintf(text + used, sizeof text - (size_t)used, "\"}\n");
        }
        snprintf(name, sizeof name, "base/text/%s%02d.%s", d % 5 ? "" : "inner/", d, lines ? "jsonl" : "txt");
        put(name, text);
    }
}

static int start(void **state)
{
    (void)state;
    char *plain;
    long bytes;
    const char *tmp = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/skymoe-faults-XXXXXX", tmp ? tmp : "/tmp");
    if (!mkdtemp(folder)) return -1;
    setenv("GOMP_SPINCOUNT", "10000", 1); // main would start the program again to set it
    faults = mmap(NULL, sizeof *faults, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (faults == MAP_FAILED) return -1;
    make_text();
    put("base/dense.json",
        "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_size\":16,"
        "\"intermediate_size\":24,"
        "\"num_hidden_layers\":1,\"num_attention_heads\":2,\"vocab_size\":320,\"max_position_embeddings\":64,"
        "\"rms_norm_eps\":1e-6,\"rope_theta\":10000.0,\"hidden_act\":\"silu\",\"tie_word_embeddings\":false,"
        "\"torch_dtype\":\"float32\",\"bos_token_id\":1,\"eos_token_id\":2}");
    put("base/summary.json",
        "{\"dense\": {\"eval_loss\": 5.4, \"tokens\": 1024, \"flops\": 3e9, \"seconds\": 12.7}, \"kl_fp8\": 1e-4, "
        "\"samples\": [{\"model\": \"dense\", \"prompt\": \"the disk\", \"text\": \" reads\"}]}");
    put("base/ids.txt", "1 5 9, 20\n21 7\n");
    put("base/tasks.jsonl",
        "{\"prompt\": \"the disk\", \"choices\": [\" reads\", \" is a table\"], \"answer\": 0}\n"
        "{\"task\": \"two\", \"prompt\": \"a\", \"choices\": [\" file\", \" of\"], \"answer\": 1}\n");
    WORKS("prepare", "--input", at("base/text"), "--output", at("base/data"), "--train-tokenizer", "--vocab-size",
          "320", "--split", "60,20,20", "--near-copy", "0", ALONE);
    WORKS("train", "--model", at("base/dense.json"), "--data", at("base/data"), "--output", at("base/dense"),
          "--train-steps", "1", SHORT);
    WORKS("upcycle", "--model", at("base/dense"), "--output", at("base/moe"), "--num-experts", "3", ALONE);
    WORKS("train", "--init", at("base/moe"), "--data", at("base/data"), "--output", at("work/run"), "--train-steps",
          "2", SHORT);
    OK_OR_FAIL(path_rename(at("trained"), at("work"))); // --resume will find it under the name it was made with
    WORKS("train", "--init", at("base/moe"), "--data", at("base/data"), "--output", at("work/run"), "--train-steps",
          "1", "--dump-routing", at("base/routing.jsonl"), SHORT);
    copy_tree(at("base/chat"), at("base/moe"));
    OK_OR_FAIL(file_read(&plain, &bytes, "tests/golden/chat/plain.jinja", 1 << 16));
    put("base/chat/chat_template.jinja", plain);
    free(plain);
    WORKS("prepare", "--input", at("base/text/inner"), "--output", at("prepared/new"), "--tokenizer", at("base/moe"),
          "--split", "60,20,20", "--near-copy", "0", ALONE);
    return 0;
}

static int tear_down_all(void **state)
{
    (void)state;
    return folder_remove(folder) == OK ? 0 : -1;
}

static void test_prepare(void **state)
{
    (void)state;
    REFUSE_EACH("prepared", "prepare", "--input", at("base/text"), "--output", at("work/new"), "--train-tokenizer",
                "--vocab-size", "320", "--split", "60,20,20", ALONE);
}

static void test_prepare_given_tokenizer(void **state)
{
    (void)state;
    REFUSE_EACH("prepared", "prepare", "--input", at("base/text"), at("base/text/03.jsonl"), "--output", at("work/new"),
                "--tokenizer", at("base/data_tokenizer/tokenizer.model"), "--write-text", "--near-copy", "0", "--split",
                "80,20,0", "--json", "--quiet", "--threads", "2");
}

static void test_train(void **state)
{
    (void)state;
    REFUSE_EACH(NULL, "train", "--model", at("base/dense.json"), "--data", at("base/data"), "--output", at("work/run"),
                "--train-steps", "2", SHORT);
}

static void test_train_init(void **state)
{
    (void)state;
    REFUSE_EACH(NULL, "train", "--init", at("base/moe"), "--data", at("base/data"), "--output", at("work/run"),
                "--train-steps", "2", "--keep", "1", "--moe-aux-loss-scope", "global", SHORT);
}

static void test_train_resume(void **state)
{
    (void)state;
    REFUSE_EACH("trained", "train", "--resume", "--output", at("work/run"), "--train-steps", "3", "--quiet",
                "--threads", "1");
}

static void test_train_traces(void **state)
{
    (void)state;
    REFUSE_EACH(NULL, "train", "--init", at("base/moe"), "--data", at("base/data"), "--output", at("work/run"),
                "--train-steps", "1", "--dump-gradients", at("work/gradients"), "--dump-routing",
                at("work/routing.jsonl"), "--replay-routing", at("base/routing.jsonl"), SHORT);
}

static void test_upcycle(void **state)
{
    (void)state;
    REFUSE_EACH(NULL, "upcycle", "--model", at("base/dense"), "--output", at("work/moe"), "--num-experts", "2",
                "--method", "drop", ALONE);
    REFUSE_EACH(NULL, "upcycle", "--model", at("base/dense"), "--output", at("work/moe"), "--num-experts", "4",
                "--method", "granular", "--granular", "2", ALONE);
}

static void test_quantize(void **state)
{
    (void)state;
    REFUSE_EACH(NULL, "quantize", "--model", at("base/moe"), "--output", at("work/fp8"), "--format", "fp8", "--data",
                at("base/data"), "--json", ALONE);
    REFUSE_EACH(NULL, "quantize", "--model", at("base/moe"), "--output", at("work/fp8"), "--scale", "channel", ALONE);
    REFUSE_EACH(NULL, "quantize", "--model", at("base/moe"), "--output", at("work/fp8"), "--scale", "block", ALONE);
}

static void test_eval(void **state)
{
    (void)state;
    REFUSE_EACH(NULL, "eval", "--model", at("trained/run"), "--data", at("base/data"), "--seq-length", "16", ALONE);
    REFUSE_EACH(NULL, "eval", "--model", at("base/moe"), "--tokens", at("base/ids.txt"), "--logits", at("work/l.npy"),
                "--json", ALONE);
    REFUSE_EACH(NULL, "eval", "--model", at("base/moe"), "--tasks", at("base/tasks.jsonl"), "--json", ALONE);
}

static void test_generate(void **state)
{
    (void)state;
    put("stdin", "the disk reads\n");
    REFUSE_EACH(NULL, "generate", "--model", at("base/moe"), "--prompt", "-", "--max-tokens", "4", "--json", ALONE);
    REFUSE_EACH(NULL, "generate", "--model", at("base/moe"), "--prompt", "a file", "--max-tokens", "4", ALONE);
    REFUSE_EACH(NULL, "generate", "--model", at("base/moe"), "--prompt-ids", "1,5,9", "--max-tokens", "4", ALONE);
    assert_int_equal(unlink(at("stdin")), 0);
}

static void test_chat(void **state)
{
    (void)state;
    put("stdin", "the disk\n/system of memory\na file\n\n/quit\n");
    REFUSE_EACH(NULL, "chat", "--model", at("base/chat"), "--system", "a", "--max-tokens", "4", "--json", ALONE);
    assert_int_equal(unlink(at("stdin")), 0);
}

static void test_inspect(void **state)
{
    (void)state;
    REFUSE_EACH(NULL, "inspect", at("base/moe"), "--tensors", "--similarity", "--verify", "--json", ALONE);
    REFUSE_EACH(NULL, "inspect", at("base/dense.json"), "--tensors", ALONE);
}

static void test_report(void **state)
{
    (void)state;
    REFUSE_EACH(NULL, "report", at("base/dense"), at("trained/run"), "--output", at("work/report.html"), ALONE);
    REFUSE_EACH(NULL, "report", at("trained/run"), "--summary", at("base/summary.json"), "--output",
                at("work/report.html"), ALONE);
}

static void test_plan(void **state)
{
    (void)state;
#define PLAN "plan", "--cluster", "configs/clusters/cpu-2.json", "--model"
    REFUSE_EACH(NULL, PLAN, "configs/small.json", "--pipeline-parallel-size", "2", "--layer-split", "auto",
                "--recompute", "full", "--recompute-layers", "auto", "--global-batch-size", "8", "--svg",
                at("work/step.svg"), "--compare", "configs/tiny.json", "--seq-length", "64", "--json", ALONE);
    REFUSE_EACH(NULL, PLAN, "configs/tiny.json", "--search", "--global-batch-size", "4", "--seq-length", "64", ALONE);
    REFUSE_EACH(NULL, PLAN, "configs/tiny.json", "--inference", "--batch-size", "1,2", ALONE);
}

// The last of the runs is trained; the others are there, and count as they are.
static void test_bench_balance(void **state)
{
    (void)state;
#define BALANCE "bench", "--balance", "--steps", "1", "--output", at("work/runs"), ALONE
    OK_OR_FAIL(folder_remove(at("work")));
    WORKS(BALANCE);
    OK_OR_FAIL(folder_remove(at("work/runs/gate-norm-2")));
    OK_OR_FAIL(path_rename(at("balanced"), at("work")));
    REFUSE_EACH("balanced", BALANCE);
}

static void test_bench_calibrate(void **state)
{
    (void)state;
    usual_runs = 6; // it takes seconds
    REFUSE_EACH(NULL, "bench", "--model", at("base/moe/config.json"), "--micro-batch-size", "1", "--seq-length", "8",
                "--calibrate", at("work/measured.json"), ALONE);
    usual_runs = 25;
}

// Refuses launch's own requests; the rank is this program again (see main).
static void test_launch(void **state)
{
    (void)state;
    put("base/hosts", "localhost\n");
    const char *before = getenv("ASAN_OPTIONS");
    char *kept = before ? strdup(before) : NULL;
    setenv("ASAN_OPTIONS", "detect_leaks=0", 1); // of the rank: its MPI library keeps what it has until the end
    REFUSE_EACH(NULL, "launch", "-n", "1", "--hosts", at("base/hosts"), "--quiet", "--", "inspect",
                at("base/dense.json"));
    if (kept) setenv("ASAN_OPTIONS", kept, 1);
    else unsetenv("ASAN_OPTIONS");
    free(kept);
}

int main(int argc, char **argv)
{
    if (argc > 1) return skymoe_main(argc, argv); // a rank of test_launch
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prepare),   cmocka_unit_test(test_prepare_given_tokenizer),
        cmocka_unit_test(test_train),     cmocka_unit_test(test_train_init),
        cmocka_unit_test(test_train_resume), cmocka_unit_test(test_train_traces),
        cmocka_unit_test(test_upcycle),   cmocka_unit_test(test_quantize),
        cmocka_unit_test(test_eval),      cmocka_unit_test(test_generate),
        cmocka_unit_test(test_chat),      cmocka_unit_test(test_inspect),
        cmocka_unit_test(test_report),    cmocka_unit_test(test_plan),
        cmocka_unit_test(test_bench_balance), cmocka_unit_test(test_bench_calibrate),
        cmocka_unit_test(test_launch),
    };
    return cmocka_run_group_tests_name("faults", tests, start, tear_down_all);
}
