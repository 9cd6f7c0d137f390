// Settings: one row says name, type, place, default, range and help. From the row come the command line
// (`--name value`, `--name=value`, `--no-name` for switches), the --config file (`name = value`, # comments), `--help`,
// settings.conf in every checkpoint, and the table in docs/. An unknown name is an error that names the nearest one.
#ifndef SKYMOE_BASE_SETTING_H
#define SKYMOE_BASE_SETTING_H

#include <stdbool.h>
#include <stdio.h>

#include "base/decimal.h"
#include "base/status.h"

struct text_list {
    const char **item;
    long n;
};

enum setting_type {
    SETTING_SWITCH,  // bool
    SETTING_LONG,    // long
    SETTING_REAL,    // double
    SETTING_DECIMAL, // struct decimal
    SETTING_TEXT,    // const char * (owned by the settings code, lives until settings_forget; NULL when unset)
    SETTING_CHOICE,  // const char *, one of the words in `choices`
    SETTING_LIST,    // struct text_list: the option may repeat; words without an option are added to the table's
                     // first LIST row. A word of the command line is one item even if it has spaces
};

struct setting {
    const char *name;     // "lr" for --lr
    enum setting_type type;
    long offset;          // offsetof in the options struct
    const char *fallback; // default, as one would type it; NULL: unset (switch false, number 0, text NULL)
    double min, max;      // numbers: allowed range, inclusive (checked when min < max)
    const char *choices;  // CHOICE: "f32|bf16"
    const char *help;     // one line; shown by --help and in docs/
};

// One command's settings. Common rows (config, threads, seed, json, quiet, help) are joined by settings_parse itself; a
// command's own row of the same name takes the place of the common one, so that settings_dump writes it too.
struct settings {
    const char *command;
    const char *summary;       // one line for `skymoe help`
    const char *usage;         // "--model DIR --output DIR"
    const struct setting *row;
    long n;
    void *options;             // the struct that `offset` refers to
};

struct common_options {
    long threads;         // 0: all processors this process may use
    long seed;
    bool quiet;
    bool help;
    bool json;
    const char *config;
};

// Defaults, then the --config file, then the command line (later wins). ERR_CONFIG with one sentence otherwise.
// argv[0] is the command's name. set[i] (n entries, may be NULL) tells which rows were given explicitly.
MUST_USE enum status settings_parse(const struct settings *s, struct common_options *common, bool *set, int argc,
                                    char **argv);

// One `name = value` line for each row, in table order; parses back to the same values. A text is quoted where needed
// ("a \"b\" # c\n"), a list is its words, nothing after the = means unset. The caller frees *text.
MUST_USE enum status settings_dump(char **text, const struct settings *s);

// Reads such text over the present values (a checkpoint's settings.conf). The same errors but as ERR_FORMAT, since it
// is something read; `source` names it in messages. On failure some values may be changed already.
MUST_USE enum status settings_read(const struct settings *s, bool *set, const char *text, const char *source);

// Frees every text and list of every settings read so far, for a program that reads them without end.
void settings_forget(void);

void settings_help(FILE *out, const struct settings *s);
void settings_markdown(FILE *out, const struct settings *s); // the same table for docs/
void settings_markdown_common(FILE *out);                    // the rows every command has

// The parts that setting.c and setting_text.c share.
extern const struct setting common_row[];
extern const long common_row_n;
bool setting_replaced(const struct settings *s, const struct setting *common);
// "0 to 1", "f32, bf16" or ""; "at least 0" when the upper end is `boundless` or more.
void setting_allowed(char *text, size_t room, const struct setting *r, double boundless);

// The word of candidates[] nearest to `word` (edit distance), for messages. n >= 1.
const char *nearest_word(const char *word, const char *const *candidates, long n);

#endif
