// A config.json of any bytes: refused with a sentence, or a shape that can be counted, written and read again.
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "model/params.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_shape(const struct config *c)
{
    struct config again;
    struct param_list list;
    char *text;
    CHECK(config_params_active(c) > 0 && config_params_active(c) <= config_params_total(c));
    if (c->L * (c->E + 1) < 1 << 12) {
        CHECK(param_list_of(&list, c, NULL) == OK);
        CHECK(list.elements == config_params_total(c));
        param_list_free(&list);
    }
    enum status status = config_write(&text, c);
    CHECK(status == OK || status == ERR_CONFIG);
    if (status != OK) return;
    CHECK(config_parse(&again, text, (long)strlen(text), "written") == OK);
    CHECK(config_params_total(&again) == config_params_total(c) && again.norm_eps == c->norm_eps);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct config c;
    char *copy = malloc(size ? size : 1);
    memcpy(copy, data, size);
    if (config_parse(&c, copy, (long)size, "fuzz.json") == OK) check_shape(&c);
    else CHECK(strncmp(fail_message(), "fuzz.json: ", 11) == 0);
    free(copy);
    return 0;
}
