// Checkpoints: every bit comes back; what survives a failing disk; damage is found.
#include "checkpoint_util.h"

struct run_state {
    struct training_state s;
    double alpha[2], p[10], f[10];
};

static void state_init(struct run_state *r)
{
    memset(r, 0, sizeof *r);
    r->s.alpha = r->alpha;
    r->s.global_p = r->p;
    r->s.global_f = r->f;
}

static void state_fill(struct run_state *r, long step)
{
    state_init(r);
    r->s.step = step;
    r->s.samples = (1L << 52) + 3;
    r->s.tokens = 12345678901;
    r->s.updates = step - 1;
    r->s.skipped_in_row = 2;
    r->s.seconds = 0.1 + (double)step;
    for (int i = 0; i < 2; i++) r->alpha[i] = rng_uniform(1, 2, (uint64_t)(10 * step + i)) / 3;
    for (int i = 0; i < 10; i++) r->p[i] = r->f[i] = rng_normal(3, 4, (uint64_t)i) * 1e-300;
    r->s.has_global = true;
}

static bool same_state(const struct run_state *a, const struct run_state *b)
{
    return a->s.step == b->s.step && a->s.samples == b->s.samples && a->s.tokens == b->s.tokens &&
           a->s.updates == b->s.updates && a->s.skipped_in_row == b->s.skipped_in_row && a->s.seconds == b->s.seconds &&
           a->s.has_global == b->s.has_global && memcmp(a->alpha, b->alpha, sizeof a->alpha) == 0 &&
           memcmp(a->p, b->p, sizeof a->p) == 0 && memcmp(a->f, b->f, sizeof a->f) == 0;
}

static void test_checkpoint(void **state)
{
    (void)state;
    static struct trainee a, b;
    const enum dtype dtypes[] = {F32, BF16, F32}; // the last: f32 arithmetic, bf16 in the folder
    for (int i = 0; i < 6; i++) {
        struct config c = moe_config();
        struct model_options o = training(dtypes[i % 3], 1, 4);
        struct run_state saved, read;
        char path[PATH_LENGTH], *text;
        c.dtype = i % 3 == 2 ? BF16 : dtypes[i % 3];
        checkpoint_shard_bytes = i < 3 ? 0 : 4000;
        OK_OR_FAIL(folder_remove(in("run")));
        OK_OR_FAIL(trainee_init(&a, &c, &o));
        OK_OR_FAIL(trainee_init(&b, &c, &o));
        randomise_all(&a, 5);
        expect(checkpoint_latest(path, in("run")), ERR_IO, "no checkpoint");
        state_fill(&saved, 7);
        OK_OR_FAIL(checkpoint_save(in("run"), &a.z, &saved.s, "lr = 1\n", NULL, 2));
        OK_OR_FAIL(checkpoint_latest(path, in("run")));
        assert_non_null(strstr(path, "run/step-000007"));
        assert_true(path_exists(in("run/step-000007/training/optimizer.safetensors")) == (i < 3));
        assert_true(path_exists(in("run/step-000007/training/optimizer.safetensors.index.json")) == (i >= 3));
        state_init(&read);
        OK_OR_FAIL(checkpoint_load(&b.z, &read.s, path));
        assert_true(same_trainee(&a, &b));
        assert_true(same_state(&saved, &read));
        char self[PATH_LENGTH];
        OK_OR_FAIL(checkpoint_latest(self, path)); // a step folder stands for itself
        assert_string_equal(self, path);
        OK_OR_FAIL(checkpoint_settings(&text, path));
        assert_string_equal(text, "lr = 1\n");
        free(text);
        struct model_folder f; // a run's folder as a model
        OK_OR_FAIL(model_folder_open(&f, in("run")));
        assert_string_equal(f.path, path);
        model_folder_close(&f);
        randomise_all(&b, 6);
        assert_false(same_trainee(&a, &b));
        c.F++;
        trainee_free(&b);
        OK_OR_FAIL(trainee_init(&b, &c, &o));
        expect(checkpoint_load(&b.z, &read.s, path), ERR_FORMAT, "another model");
        trainee_free(&a);
        trainee_free(&b);
    }
}

static void test_keep(void **state)
{
    (void)state;
    static struct trainee a;
    struct config c = moe_config();
    struct model_options o = training(F32, 1, 4);
    struct run_state s;
    struct path_list list;
    checkpoint_shard_bytes = 4000;
    OK_OR_FAIL(folder_remove(in("run")));
    OK_OR_FAIL(trainee_init(&a, &c, &o));
    randomise_all(&a, 5);
    OK_OR_FAIL(folder_make(in("run/step-notes"))); // the user's
    OK_OR_FAIL(folder_make(in("run/step-000000.tmp")));
    OK_OR_FAIL(folder_make(in("run/step-000001.old")));
    const long steps[] = {1, 2, 3, 999999, 1000000, 1000001};
    for (int i = 0; i < 6; i++) {
        state_fill(&s, steps[i]);
        OK_OR_FAIL(checkpoint_save(in("run"), &a.z, &s.s, "", NULL, i == 0 ? 0 : 2));
    }
    OK_OR_FAIL(folder_list(&list, in("run")));
    assert_int_equal(list.n, 4);
    assert_string_equal(list.name[0], "latest");
    assert_string_equal(list.name[1], "step-1000000");
    assert_string_equal(list.name[2], "step-1000001");
    assert_string_equal(list.name[3], "step-notes");
    path_list_free(&list);
    trainee_free(&a);
}

// The n-th write fails, for every n: the run still has a checkpoint, bit for bit the old or the new one.
static void fail_every_write(struct trainee *before, struct trainee *after, struct trainee *read, long new_step)
{
    struct run_state old_state, new_state, s;
    char path[PATH_LENGTH], *run = strdup(in("run"));
    state_fill(&old_state, 4);
    state_fill(&new_state, new_step);
    OK_OR_FAIL(folder_remove(run));
    OK_OR_FAIL(checkpoint_save(run, &before->z, &old_state.s, "old = 1\n", NULL, 1));
    files_fail_write(0);
    OK_OR_FAIL(checkpoint_save(run, &after->z, &new_state.s, "new = 1\n", NULL, 1));
    long writes = files_write_count(), kept_old = 0; // how many a save needs
    bool holds_new = true;
    for (long n = 1; n <= writes + 1; n++) {
        if (holds_new) { // else the old one is still there from the last round
            OK_OR_FAIL(folder_remove(run));
            OK_OR_FAIL(checkpoint_save(run, &before->z, &old_state.s, "old = 1\n", NULL, 1));
        }
        files_fail_write(n);
        enum status status = checkpoint_save(run, &after->z, &new_state.s, "new = 1\n", NULL, 1);
        files_fail_write(0);
        if (status == OK && n < writes - 1) // the last ones only remove the old folder
            fail_msg("write %ld of %ld failed unnoticed", n, writes);
        if (status != OK && !strstr(fail_message(), "No space left")) fail_msg("%s", fail_message());
        OK_OR_FAIL(checkpoint_latest(path, run));
        state_init(&s);
        enum status loaded = checkpoint_load(&read->z, &s.s, path);
        if (loaded != OK) fail_msg("after write %ld of %ld failed: %s", n, writes, fail_message());
        bool is_old = same_trainee(read, before) && same_state(&s, &old_state);
        holds_new = same_trainee(read, after) && same_state(&s, &new_state);
        if (!is_old && !holds_new) fail_msg("after write %ld of %ld failed: neither checkpoint", n, writes);
        if (status == OK) assert_true(holds_new);
        kept_old += is_old;
        if (n % 8 != 0) continue;
        OK_OR_FAIL(checkpoint_save(run, &after->z, &new_state.s, "new = 1\n", NULL, 1)); // saving works again
        OK_OR_FAIL(checkpoint_latest(path, run));
        OK_OR_FAIL(checkpoint_load(&read->z, &s.s, path));
        assert_true(same_trainee(read, after));
        holds_new = true;
    }
    printf("  step 4, then step %ld: %ld writes, the old one kept %ld times\n", new_step, writes, kept_old);
    assert_true(kept_old > 10 && kept_old < writes + 1);
    free(run);
}

static void test_failing_writes(void **state)
{
    (void)state;
    static struct trainee a, b, c;
    struct config config = moe_config();
    struct model_options o = training(BF16, 1, 4);
    config.dtype = BF16;
    OK_OR_FAIL(trainee_init(&a, &config, &o));
    OK_OR_FAIL(trainee_init(&b, &config, &o));
    OK_OR_FAIL(trainee_init(&c, &config, &o));
    randomise_all(&a, 5);
    randomise_all(&b, 6);
    checkpoint_shard_bytes = 0;
    fail_every_write(&a, &b, &c, 5);
    checkpoint_shard_bytes = 10000;
    fail_every_write(&a, &b, &c, 4); // the same step again: its folder is replaced
    trainee_free(&a);
    trainee_free(&b);
    trainee_free(&c);
}

// Files of a checkpoint, below it or below its folder `inner`, whose damage is found. Returns how many.
static long damage_each(struct trainee *a, struct run_state *s, const char *path, const char *inner)
{
    struct path_list list;
    long tried = 0;
    char below[PATH_LENGTH];
    OK_OR_FAIL(path_join(below, path, inner));
    OK_OR_FAIL(folder_list(&list, below));
    for (long i = 0; i < list.n; i++) {
        char file[PATH_LENGTH], *text;
        OK_OR_FAIL(path_join(file, below, list.name[i]));
        if (path_is_folder(file) || !strcmp(list.name[i], "checksums.json")) continue;
        tried++;
        for (int damage = 0; damage < 3; damage++) {
            long bytes;
            OK_OR_FAIL(file_read(&text, &bytes, file, 1 << 20));
            if (damage == 0) text[bytes / 2] ^= 1;
            OK_OR_FAIL(file_write(file, text, damage == 1 ? bytes - 1 : bytes));
            if (damage == 2) assert_int_equal(unlink(file), 0);
            expect(checkpoint_load(&a->z, &s->s, path), ERR_FORMAT, list.name[i]);
            if (damage == 0) text[bytes / 2] ^= 1;
            OK_OR_FAIL(file_write(file, text, bytes));
            free(text);
        }
    }
    path_list_free(&list);
    return tried;
}

// An index of the optimizer's files that lies, under a checksum that agrees.
static void check_lies(struct trainee *a, const char *path)
{
    static const struct {
        enum status status;
        const char *index, *sentence;
    } lies[] = {
        {ERR_FORMAT, "{\"weight_map\":{\"a\":\"../model.safetensors\"}}", "is not the name of a .safetensors file"},
        {ERR_FORMAT, "{\"weight_map\":{\"a\":\"/etc/optimizer.safetensors\"}}", "is not the name"},
        {ERR_FORMAT, "{\"weight_map\":{}}", "weight_map is empty"},
        {ERR_IO, "{\"weight_map\":{\"a\":\"no.safetensors\"}}", "training/no.safetensors: the file is missing"},
    };
    char index[PATH_LENGTH], *text;
    long bytes;
    OK_OR_FAIL(path_join(index, path, "training/optimizer.safetensors.index.json"));
    OK_OR_FAIL(file_read(&text, &bytes, index, 1 << 20));
    for (unsigned i = 0; i < sizeof lies / sizeof *lies; i++) {
        OK_OR_FAIL(file_write(index, lies[i].index, (long)strlen(lies[i].index)));
        expect(optimizer_read(&a->z, path), lies[i].status, lies[i].sentence);
    }
    assert_int_equal(unlink(index), 0);
    expect(optimizer_read(&a->z, path), ERR_IO, "no optimizer.safetensors or optimizer.safetensors.index.json");
    OK_OR_FAIL(file_write(index, text, bytes));
    OK_OR_FAIL(optimizer_read(&a->z, path));
    free(text);
}

// Any changed or missing byte of any file is found, and the file named.
static void test_damage(void **state)
{
    (void)state;
    static struct trainee a;
    struct config c = moe_config();
    struct model_options o = training(BF16, 1, 4);
    struct run_state s;
    char path[PATH_LENGTH];
    c.dtype = BF16;
    OK_OR_FAIL(trainee_init(&a, &c, &o));
    randomise_all(&a, 5);
    state_fill(&s, 1);
    for (int shards = 0; shards < 2; shards++) {
        checkpoint_shard_bytes = shards ? 4000 : 0;
        OK_OR_FAIL(folder_remove(in("run")));
        OK_OR_FAIL(checkpoint_save(in("run"), &a.z, &s.s, "x = 1\n", NULL, 0));
        OK_OR_FAIL(checkpoint_latest(path, in("run")));
        long outer = damage_each(&a, &s, path, "."), inner = damage_each(&a, &s, path, "training");
        printf("  %ld files and %ld of training\n", outer, inner);
        assert_true(shards ? outer >= 5 && inner >= 5 : outer == 3 && inner == 3); // 2 shards and an index, at least
        OK_OR_FAIL(checkpoint_load(&a.z, &s.s, path));
    }
    check_lies(&a, path);
    char file[PATH_LENGTH], *text;
    long bytes;
    OK_OR_FAIL(path_join(file, path, "checksums.json"));
    OK_OR_FAIL(file_read(&text, &bytes, file, 1 << 20));
    for (long i = 0; i < bytes; i += 7) { // checksums.json itself: never a crash; mostly noticed
        text[i] ^= 1;
        OK_OR_FAIL(file_write(file, text, bytes));
        (void)!folder_verify(path);
        text[i] ^= 1;
    }
    const char *outside = "{\"algorithm\":\"XXH3-64\",\"files\":{\"../x\":{\"bytes\":0,\"xxh3\":\"\"}}}";
    OK_OR_FAIL(file_write(file, outside, (long)strlen(outside)));
    expect(folder_verify(path), ERR_FORMAT, "is not a file of this folder");
    free(text);
    assert_int_equal(unlink(file), 0);
    expect(folder_verify(path), ERR_IO, "has no checksums.json");
    OK_OR_FAIL(file_write(in("run/latest"), "../../etc\n", 10));
    expect(checkpoint_latest(path, in("run")), ERR_FORMAT, "is not the name of a step folder");
    OK_OR_FAIL(file_write(in("run/latest"), "step-000009\n", 12));
    expect(checkpoint_latest(path, in("run")), ERR_IO, "names it");
    trainee_free(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_checkpoint),
        cmocka_unit_test(test_keep),
        cmocka_unit_test(test_failing_writes),
        cmocka_unit_test(test_damage),
    };
    return cmocka_run_group_tests_name("checkpoint", tests, set_up, tear_down);
}
