#include "base/setting.h"

#include <ctype.h>
#include <getopt.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/files.h"

enum { ROWS_MAX = 256, CONFIG_BYTES_MAX = 1 << 20 };

const struct setting common_row[] = {
    {"config", SETTING_TEXT, offsetof(struct common_options, config), NULL, 0, 0, NULL,
     "file of `name = value` lines, read before the command line"},
    {"threads", SETTING_LONG, offsetof(struct common_options, threads), "0", 0, 4096, NULL,
     "threads to compute with; 0: all processors, but one while a folder is converted"},
    {"seed", SETTING_LONG, offsetof(struct common_options, seed), "1", 0, 0x1p53, NULL,
     "everything drawn at random follows from it"},
    {"json", SETTING_SWITCH, offsetof(struct common_options, json), NULL, 0, 0, NULL,
     "print the result as one JSON object"},
    {"quiet", SETTING_SWITCH, offsetof(struct common_options, quiet), NULL, 0, 0, NULL, "no progress on stderr"},
    {"help", SETTING_SWITCH, offsetof(struct common_options, help), NULL, 0, 0, NULL, "show this list"},
};
enum { COMMON_N = sizeof common_row / sizeof common_row[0] };
const long common_row_n = COMMON_N;

// Texts live until settings_forget: options point into argv, config files and checkpoints alike.
static struct kept {
    struct kept *next;
    char bytes[] __attribute__((aligned(16)));
} *kept_first;

static enum status keep(void *kept, long bytes) // *(void **)kept
{
    struct kept *k = malloc(sizeof *k + (size_t)bytes);
    if (!k) return fail(ERR_MEMORY, "memory: refused while reading the settings (free some memory)");
    k->next = kept_first;
    kept_first = k;
    *(void **)kept = k->bytes;
    return OK;
}

void settings_forget(void)
{
    while (kept_first) {
        struct kept *next = kept_first->next;
        free(kept_first);
        kept_first = next;
    }
}

static enum status keep_text(const char **kept, const char *text)
{
    char *copy = NULL;
    long bytes = (long)strlen(text) + 1;
    TRY(keep(&copy, bytes));
    *kept = memcpy(copy, text, (size_t)bytes);
    return OK;
}

// ---- rows ----

// What one parse needs. Row i is s->row[i] for i < s->n, then the common rows that no row of the command replaces.
struct parser {
    const struct settings *s;
    struct common_options *common; // NULL: common names are unknown
    bool *set;                     // may be NULL
    enum status code;              // of errors in values and names
    bool touched[ROWS_MAX];        // given by the present source: a list starts anew with each source
};

bool setting_replaced(const struct settings *s, const struct setting *common)
{
    for (long i = 0; i < s->n; i++)
        if (strcmp(s->row[i].name, common->name) == 0) return true;
    return false;
}

static long rows_n(const struct parser *p)
{
    return p->s->n + (p->common ? COMMON_N : 0);
}

static const struct setting *row_at(const struct parser *p, long i)
{
    if (i < p->s->n) return &p->s->row[i];
    const struct setting *common = &common_row[i - p->s->n];
    return setting_replaced(p->s, common) ? NULL : common;
}

static long row_find(const struct parser *p, const char *name, long length)
{
    for (long i = 0; i < rows_n(p); i++) {
        const struct setting *r = row_at(p, i);
        if (r && (long)strlen(r->name) == length && memcmp(r->name, name, (size_t)length) == 0) return i;
    }
    return -1;
}

static const char *row_nearest(const struct parser *p, const char *name, bool switches_only)
{
    const char *names[ROWS_MAX];
    long n = 0;
    for (long i = 0; i < rows_n(p); i++) {
        const struct setting *r = row_at(p, i);
        if (r && (r->type == SETTING_SWITCH || !switches_only)) names[n++] = r->name;
    }
    return n ? nearest_word(name, names, n) : "help";
}

// ---- values ----

static enum status wrong(enum status code, const char *object, const struct setting *r, const char *value,
                         const char *expected)
{
    char allowed[512];
    setting_allowed(allowed, sizeof allowed, r, 1e15); // nobody types more than that
    return fail(code, "%s: '%.200s' is not %s%s%s%s", object, value, expected, *allowed ? " (allowed: " : "", allowed,
                *allowed ? ")" : "");
}

static enum status check_range(enum status code, const char *object, const struct setting *r, const char *text,
                               double value)
{
    if (!(r->min < r->max) || (value >= r->min && value <= r->max)) return OK;
    return wrong(code, object, r, text, "in range");
}

static bool choice_allowed(const char *choices, const char *word)
{
    size_t length = strlen(word);
    if (length == 0 || strchr(word, '|')) return false;
    for (const char *c = choices; c; c = strchr(c, '|') ? strchr(c, '|') + 1 : NULL)
        if (strcspn(c, "|") == length && memcmp(c, word, length) == 0) return true;
    return false;
}

static enum status list_append(struct text_list *list, const char *word)
{
    const char *kept = NULL, **grown = NULL;
    TRY(keep_text(&kept, word));
    if ((list->n & (list->n - 1)) == 0) { // full at 0, 1, 2, 4, 8 ...
        TRY(keep(&grown, (list->n ? 2 * list->n : 1) * (long)sizeof *grown));
        if (list->n) memcpy(grown, list->item, (size_t)list->n * sizeof *grown);
        list->item = grown;
    }
    list->item[list->n++] = kept;
    return OK;
}

// Stores `text` (NULL: the row's unset value) at place. Lists are appended to. `object` begins the message.
static enum status assign(enum status code, const struct setting *r, void *place, const char *text,
                          const char *object)
{
    long whole = 0;
    double real = 0;
    struct decimal decimal = {0, 1};
    switch (r->type) {
    case SETTING_SWITCH:
        if (text && strcmp(text, "on") != 0 && strcmp(text, "off") != 0)
            return wrong(code, object, r, text, "a switch position");
        *(bool *)place = text && strcmp(text, "on") == 0;
        return OK;
    case SETTING_LONG:
        if (text && !long_parse(&whole, text)) return wrong(code, object, r, text, "a whole number");
        if (text) TRY(check_range(code, object, r, text, (double)whole));
        *(long *)place = whole;
        return OK;
    case SETTING_REAL:
        if (text && !real_parse(&real, text)) return wrong(code, object, r, text, "a number");
        if (text) TRY(check_range(code, object, r, text, real));
        *(double *)place = real;
        return OK;
    case SETTING_DECIMAL:
        if (text && !decimal_parse(&decimal, text))
            return wrong(code, object, r, text, "a number with at most 9 decimals");
        if (text) TRY(check_range(code, object, r, text, decimal_value(decimal)));
        *(struct decimal *)place = decimal;
        return OK;
    case SETTING_TEXT:
        *(const char **)place = NULL;
        return text ? keep_text(place, text) : OK;
    case SETTING_CHOICE:
        if (text && !choice_allowed(r->choices, text)) return wrong(code, object, r, text, "a choice");
        *(const char **)place = NULL;
        return text ? keep_text(place, text) : OK;
    case SETTING_LIST:
        if (text) return list_append(place, text);
        *(struct text_list *)place = (struct text_list){0};
        return OK;
    }
    CHECK(!"a setting type");
    return OK;
}

static void *place_of(const struct parser *p, long i)
{
    char *base = i < p->s->n ? p->s->options : (void *)p->common;
    return base + row_at(p, i)->offset;
}

// A value from the command line or a file: assign, and the first of a source empties a list.
static enum status give(struct parser *p, long i, const char *text, const char *object)
{
    const struct setting *r = row_at(p, i);
    if (r->type == SETTING_LIST && !p->touched[i]) *(struct text_list *)place_of(p, i) = (struct text_list){0};
    TRY(assign(p->code, r, place_of(p, i), text, object));
    p->touched[i] = true;
    if (p->set && i < p->s->n) p->set[i] = true;
    return OK;
}

// ---- name = value files ----

// The next word of a value, at *cursor, into `word` (as long as the line): up to the end of the line for a whole-line
// value, up to white space in a list, or a quoted text. *found is false at the end or at a # comment.
static enum status next_word(char *word, bool *found, const char **cursor, bool whole_line, const char *object,
                             enum status code)
{
    const char *c = *cursor + strspn(*cursor, " \t\r");
    char *w = word;
    *found = *c != '\0' && *c != '#';
    if (*c == '"') {
        for (c++; *c && *c != '"'; c++) {
            static const char from[] = "nrt", to[] = "\n\r\t";
            const char *escape = c[0] == '\\' && c[1] ? strchr(from, c[1]) : NULL;
            if (*c == '\\' && c[1]) c++;
            *w++ = escape ? to[escape - from] : *c;
        }
        if (*c != '"') return fail(code, "%s: the quote is not closed", object);
        c++;
        if (*c && !strchr(" \t\r", *c)) return fail(code, "%s: text follows the closing quote", object);
    } else if (*found) {
        const char *start = c;
        while (*c && !(whole_line ? *c == '#' && strchr(" \t", c[-1]) : strchr(" \t\r", *c) != NULL)) c++;
        const char *end = c;
        while (end > start && strchr(" \t\r", end[-1])) end--;
        memcpy(word, start, (size_t)(end - start));
        w += end - start;
    }
    *w = '\0';
    *cursor = c;
    return OK;
}

static enum status give_words(struct parser *p, long i, const char *value, char *word, const char *object)
{
    const struct setting *r = row_at(p, i);
    bool list = r->type == SETTING_LIST, found, more;
    if (p->touched[i] && !list) return fail(p->code, "%s: is set twice in this file (keep one)", object);
    TRY(next_word(word, &found, &value, !list, object, p->code));
    if (!found) {
        bool unset = list || r->type == SETTING_TEXT || !r->fallback;
        if (!unset) return fail(p->code, "%s: has no value", object);
        p->touched[i] = true;
        return assign(p->code, r, place_of(p, i), NULL, object);
    }
    do {
        TRY(give(p, i, word, object));
        TRY(next_word(word, &more, &value, !list, object, p->code));
        if (more && !list) return fail(p->code, "%s: text follows the closing quote", object);
    } while (more);
    return OK;
}

// `line` is NUL-terminated; `word` has room for as many bytes.
static enum status read_line(struct parser *p, char *line, char *word, const char *source, long number)
{
    char *name = line + strspn(line, " \t\r");
    if (*name == '\0' || *name == '#') return OK;
    long length = (long)strcspn(name, " \t\r=");
    char *equals = name + length + strspn(name + length, " \t\r");
    if (*equals != '=' || length == 0) return fail(p->code, "%s:%ld: expected `name = value`", source, number);
    name[length] = '\0';
    long i = row_find(p, name, length);
    if (i < 0)
        return fail(p->code, "%s:%ld: unknown setting %.100s (did you mean %s?)", source, number, name,
                    row_nearest(p, name, false));
    if (i >= p->s->n && (strcmp(name, "config") == 0 || strcmp(name, "help") == 0))
        return fail(p->code, "%s:%ld: %s belongs on the command line", source, number, name);
    char object[PATH_LENGTH + 128];
    snprintf(object, sizeof object, "%s:%ld: %s", source, number, name);
    return give_words(p, i, equals + 1, word, object);
}

static enum status read_lines(struct parser *p, char *text, char *word, const char *source)
{
    long number = 0;
    for (char *line = text; line;) {
        char *end = strchr(line, '\n');
        if (end) *end = '\0';
        TRY(read_line(p, line, word, source, ++number));
        line = end ? end + 1 : NULL;
    }
    return OK;
}

static enum status read_text(struct parser *p, const char *text, const char *source)
{
    size_t bytes = strlen(text) + 1;
    char *copy = malloc(2 * bytes);
    if (!copy) return fail(ERR_MEMORY, "%s: no memory to read it", source);
    memcpy(copy, text, bytes);
    memset(p->touched, 0, sizeof p->touched);
    enum status status = read_lines(p, copy, copy + bytes, source);
    free(copy);
    return status;
}

enum status settings_read(const struct settings *s, bool *set, const char *text, const char *source)
{
    struct parser p = {.s = s, .set = set, .code = ERR_FORMAT};
    CHECK(s->n <= ROWS_MAX - COMMON_N);
    return read_text(&p, text, source);
}

static enum status read_config(struct parser *p, const char *path)
{
    char *text;
    long bytes;
    enum status status = file_read(&text, &bytes, path, CONFIG_BYTES_MAX);
    if (status != OK) return fail(status == ERR_MEMORY ? status : ERR_CONFIG, "%s", fail_message());
    status = (long)strlen(text) == bytes ? read_text(p, text, path) : fail(ERR_CONFIG, "%s: is not a text file", path);
    free(text);
    return status;
}

// ---- command line ----

enum { NEGATED = 1 << 20 }; // added to the row number of --no-name

static enum status negated_name(const char **kept, const struct setting *r)
{
    char *name = NULL;
    TRY(keep(&name, (long)strlen(r->name) + 4));
    snprintf(name, strlen(r->name) + 4, "no-%s", r->name);
    *kept = name;
    return OK;
}

static enum status long_options(struct option options[2 * ROWS_MAX + 1], const struct parser *p)
{
    long n = 0;
    for (long i = 0; i < rows_n(p); i++) {
        const struct setting *r = row_at(p, i);
        if (!r) continue;
        bool is_switch = r->type == SETTING_SWITCH;
        int argument = is_switch ? optional_argument : required_argument;
        options[n++] = (struct option){r->name, argument, NULL, (int)i + 256};
        if (!is_switch) continue;
        const char *negated = NULL;
        TRY(negated_name(&negated, r));
        options[n++] = (struct option){negated, no_argument, NULL, (int)i + 256 + NEGATED};
    }
    options[n] = (struct option){0};
    return OK;
}

static bool option_known(const struct option *options, const char *word)
{
    if (strncmp(word, "--", 2) != 0) return false;
    size_t length = strcspn(word + 2, "=");
    for (; options->name; options++)
        if (strlen(options->name) == length && memcmp(options->name, word + 2, length) == 0) return true;
    return false;
}

static enum status option_unknown(const struct parser *p, const char *word)
{
    char name[128];
    const char *body = word + strspn(word, "-");
    snprintf(name, sizeof name, "%.*s", (int)strcspn(body, "="), body);
    bool negated = strncmp(name, "no-", 3) == 0 && row_find(p, name + 3, (long)strlen(name + 3)) < 0;
    return fail(ERR_CONFIG, "%.*s: unknown option (did you mean --%s%s?)", (int)strcspn(word, "="), word,
                negated ? "no-" : "", row_nearest(p, negated ? name + 3 : name, negated));
}

static enum status give_stray(struct parser *p, const char *word, bool early)
{
    for (long i = 0; i < p->s->n; i++)
        if (p->s->row[i].type == SETTING_LIST) return early ? OK : give(p, i, word, word);
    return fail(ERR_CONFIG, "%.200s: a word without an option (did you mean --%s?)", word, row_nearest(p, word, false));
}

static enum status give_option(struct parser *p, const struct option *options, int code, bool own_word, bool early)
{
    bool negated = code >= NEGATED;
    long i = (negated ? code - NEGATED : code) - 256;
    const struct setting *r = row_at(p, i);
    char object[256];
    snprintf(object, sizeof object, "--%s", r->name);
    if (own_word && option_known(options, optarg))
        return fail(ERR_CONFIG, "%s: needs a value, but %.100s follows (write %s=%.100s if that is meant)", object,
                    optarg, object, optarg);
    if (i >= p->s->n && r->type == SETTING_TEXT && early && p->touched[i])
        return fail(ERR_CONFIG, "%s: is given twice (join the files)", object);
    bool first_pass = i >= p->s->n && (strcmp(r->name, "config") == 0 || strcmp(r->name, "help") == 0);
    if (first_pass != early) return OK;
    return give(p, i, r->type == SETTING_SWITCH && !optarg ? (negated ? "off" : "on") : optarg, object);
}

// `early` looks at names, --config and --help only, because the file comes before the command line.
static enum status read_arguments(struct parser *p, int argc, char **argv, bool early)
{
    struct option options[2 * ROWS_MAX + 1];
    TRY(long_options(options, p));
    memset(p->touched, 0, sizeof p->touched);
    optind = 0; // glibc: start anew
    opterr = 0;
    for (;;) {
        int at = optind ? optind : 1;
        const char *word = at < argc ? argv[at] : "";
        // getopt would take any beginning of a name, which a later option could change the meaning of.
        if (strncmp(word, "--", 2) == 0 && word[2] && !option_known(options, word)) return option_unknown(p, word);
        int code = getopt_long(argc, argv, "-:h", options, NULL); // -: words in order
        if (code == -1) break;
        if (code == 'h') p->common->help = true;
        else if (code == 1) TRY(give_stray(p, optarg, early));
        else if (code == ':') return fail(ERR_CONFIG, "%s: needs a value", word);
        else if (code == '?' && word[1] != '-') return option_unknown(p, word);
        else if (code == '?') return fail(ERR_CONFIG, "%.*s: takes no value", (int)strcspn(word, "="), word);
        else TRY(give_option(p, options, code, optarg && optarg == argv[optind - 1], early));
    }
    for (int i = optind; i < argc; i++) TRY(give_stray(p, argv[i], early));
    return OK;
}

// A wrong default is a bug.
static enum status assign_default(const struct setting *r, void *place, const char *text)
{
    enum status status = assign(ERR_CONFIG, r, place, text, r->name);
    CHECK(status == OK || status == ERR_MEMORY);
    return status;
}

enum status settings_parse(const struct settings *s, struct common_options *common, bool *set, int argc, char **argv)
{
    struct parser p = {.s = s, .common = common, .set = set, .code = ERR_CONFIG};
    CHECK(s->n <= ROWS_MAX - COMMON_N);
    *common = (struct common_options){0};
    for (long i = 0; i < rows_n(&p); i++) {
        const struct setting *r = row_at(&p, i);
        if (!r) continue;
        if (set && i < s->n) set[i] = false;
        TRY(assign_default(r, place_of(&p, i), NULL));
        char word[1024];
        const char *rest = r->fallback ? r->fallback : "";
        bool found = r->fallback != NULL;
        CHECK(strlen(rest) < sizeof word);
        while (found) {
            CHECK(next_word(word, &found, &rest, r->type != SETTING_LIST, r->name, ERR_CONFIG) == OK);
            if (found || (r->type == SETTING_TEXT && *r->fallback == '\0'))
                TRY(assign_default(r, place_of(&p, i), word));
        }
    }
    TRY(read_arguments(&p, argc, argv, true));
    if (common->help) return OK;
    if (common->config) TRY(read_config(&p, common->config));
    return read_arguments(&p, argc, argv, false);
}
