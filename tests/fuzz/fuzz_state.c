// A checkpoint's training/state.json, and a run's `latest`, of any bytes: refused with a sentence, or the numbers are
// in range and the name is a step folder of the run.
#include "fuzz_folder.h"

#include "checkpoint/checkpoint.h"

static void check_state(const char *text, long bytes)
{
    enum { L = 2, E = 3 };
    double alpha[L], p[L * E], f[L * E];
    struct config c = {.L = L, .E = E};
    struct training_state s = {.alpha = alpha, .global_p = p, .global_f = f};
    memset(alpha, 0xff, sizeof alpha);
    if (training_state_parse(&s, &c, text, bytes, "state.json") != OK) {
        fuzz_blames("state.json");
        return;
    }
    CHECK(s.step >= 0 && s.samples >= 0 && s.tokens >= 0 && s.updates >= 0 && s.skipped_in_row >= 0 && s.seconds >= 0);
    for (int l = 0; l < L; l++) CHECK(alpha[l] == alpha[l]); // set
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char found[PATH_LENGTH];
    char *copy = malloc(size ? size : 1); // exactly as long as the input, so that reading beyond it is seen
    if (!fuzz_folder[0]) {
        fuzz_folder_make();
        CHECK(folder_make(fuzz_path("run/step-000001")) == OK);
        CHECK(folder_make(fuzz_path("run/step-000002.old")) == OK);
    }
    memcpy(copy, data, size);
    check_state(copy, (long)size);
    free(copy);
    fuzz_put("run/latest", data, size);
    const char *run = fuzz_path("run");
    if (checkpoint_latest(found, run) != OK) fuzz_blames(run);
    else CHECK(strncmp(found, run, strlen(run)) == 0 && strncmp(found + strlen(run), "/step-00000", 11) == 0);
    return 0;
}
