// The demo's summary.json of any bytes, as `report` reads it.
#include "fuzz_folder.h"

#include "cli/report_data.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct report_summary s;
    if (!fuzz_folder[0]) fuzz_folder_make();
    fuzz_put("summary.json", data, size);
    if (report_summary_read(&s, fuzz_path("summary.json")) == OK) {
        for (long i = 0; i < s.results; i++) CHECK(strlen(s.result[i].name) < sizeof s.result[i].name);
        for (long i = 0; i < s.samples; i++) CHECK(s.sample[i].prompt && s.sample[i].text && s.sample[i].model);
        report_summary_free(&s);
    } else {
        fuzz_blames(fuzz_path("summary.json"));
    }
    return 0;
}
