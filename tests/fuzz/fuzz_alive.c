// A rank's heartbeat (RUN/alive/RANK) of any bytes, as another rank and launch read it.
#include "fuzz_folder.h"

#include "comm/alive.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct heart h;
    if (!fuzz_folder[0]) {
        fuzz_folder_make();
        CHECK(folder_make(fuzz_path("alive")) == OK);
    }
    fuzz_put("alive/3", data, size);
    if (alive_read(&h, fuzz_folder, 3)) {
        CHECK(strlen(h.host) > 0 && strlen(h.host) < sizeof h.host);
        CHECK(strlen(h.phase) > 0 && strlen(h.phase) < sizeof h.phase);
    }
    CHECK(!alive_read(&h, fuzz_folder, 4));
    return 0;
}
