// Settings files: what is taken must come back the same through a dump.
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/setting.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct options {
    bool mask;
    long steps;
    double lr;
    struct decimal capacity;
    const char *model, *dtype;
    struct text_list input;
} options;

static const struct setting rows[] = {
    {"mask", SETTING_SWITCH, offsetof(struct options, mask), "on", 0, 0, NULL, ""},
    {"steps", SETTING_LONG, offsetof(struct options, steps), NULL, 1, 1e18, NULL, ""},
    {"lr", SETTING_REAL, offsetof(struct options, lr), "3e-4", 0, 1, NULL, ""},
    {"capacity", SETTING_DECIMAL, offsetof(struct options, capacity), "1.1", -100, 100, NULL, ""},
    {"model", SETTING_TEXT, offsetof(struct options, model), NULL, 0, 0, NULL, ""},
    {"dtype", SETTING_CHOICE, offsetof(struct options, dtype), "bf16", 0, 0, "f32|bf16", ""},
    {"input", SETTING_LIST, offsetof(struct options, input), NULL, 0, 0, NULL, ""},
};
static const struct settings table = {"try", "", "", rows, sizeof rows / sizeof rows[0], &options};

static void defaults(void)
{
    struct common_options common;
    char *argv[] = {(char *)(uintptr_t)"try", NULL};
    if (settings_parse(&table, &common, NULL, 1, argv) != OK) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = malloc(size + 1), *dump, *again;
    memcpy(text, data, size);
    text[size] = '\0';
    defaults();
    if (settings_read(&table, NULL, text, "input") == OK) {
        if (settings_dump(&dump, &table) != OK) abort();
        defaults();
        if (settings_read(&table, NULL, dump, "dump") != OK) abort();
        if (settings_dump(&again, &table) != OK) abort();
        if (strcmp(dump, again) != 0) abort();
        free(dump);
        free(again);
    }
    free(text);
    settings_forget();
    return 0;
}
