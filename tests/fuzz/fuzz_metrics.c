// A run's metrics.jsonl of any bytes, read by `report` and by a run that goes on: refused with a sentence, or what was
// read is in order, and after a resume from step 3 every row is whole and of a step up to 3.
#include "fuzz_folder.h"

#include "base/metrics.h"
#include "cli/report_data.h"

static void check_report(const char *path)
{
    struct report_run r;
    if (report_run_read(&r, path) != OK) {
        fuzz_blames(path);
        return;
    }
    CHECK(r.rows + r.evals > 0 && r.bins_used <= r.bins && r.bins <= REPORT_BINS);
    for (long i = 1; i < r.rows; i++) CHECK(r.row[ROW_TOKENS][i] >= r.row[ROW_TOKENS][i - 1]);
    for (long i = 0; i < r.L * r.bins_used * r.E; i++) CHECK(r.load[i] >= 0);
    report_run_free(&r);
}

static void check_rows(const char *path)
{
    char *text;
    long bytes;
    if (!path_exists(path)) return;
    CHECK(file_read(&text, &bytes, path, 1 << 20) == OK);
    for (long at = 0; at < bytes;) {
        const char *end = memchr(text + at, '\n', (size_t)(bytes - at));
        cJSON *row;
        long step;
        CHECK(end && json_parse(&row, text + at, end - text - at, "row") == OK);
        CHECK(json_long(&step, row, "step", -1, 0, 3, "row") == OK && step >= 0);
        cJSON_Delete(row);
        at = end - text + 1;
    }
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct metrics m;
    if (!fuzz_folder[0]) {
        fuzz_folder_make();
        CHECK(folder_make(fuzz_path("run")) == OK);
    }
    fuzz_put("run/metrics.jsonl", data, size);
    check_report(fuzz_path("run"));
    if (metrics_open(&m, fuzz_path("run"), 3) != OK) {
        fuzz_blames(fuzz_path("run"));
        return 0;
    }
    metrics_close(&m);
    CHECK(unlink(m.events_path) == 0);
    check_rows(fuzz_path("run/metrics.jsonl"));
    return 0;
}
