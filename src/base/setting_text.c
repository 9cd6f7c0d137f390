// Settings as text: the dump that a checkpoint carries, --help, and the tables of docs/.
#include <stdlib.h>
#include <string.h>

#include "base/setting.h"

static const void *value_place(const struct settings *s, const struct setting *r)
{
    return (const char *)s->options + r->offset;
}

// ---- dump ----

static void put_word(FILE *out, const char *word)
{
    bool plain = *word != '\0';
    for (const char *c = word; *c; c++) {
        bool safe = (*c >= '0' && *c <= '9') || (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') ||
                    (unsigned char)*c >= 0x80 || strchr("_./:,=+@%-~", *c) != NULL;
        plain = plain && safe;
    }
    if (plain) {
        fputs(word, out);
        return;
    }
    fputc('"', out);
    for (const char *c = word; *c; c++) {
        if (*c == '\n') fputs("\\n", out);
        else if (*c == '\r') fputs("\\r", out);
        else if (*c == '\t') fputs("\\t", out);
        else if (*c == '"' || *c == '\\') fprintf(out, "\\%c", *c);
        else fputc(*c, out);
    }
    fputc('"', out);
}

static void put_value(FILE *out, const struct setting *r, const void *place)
{
    char number[NUMBER_TEXT];
    const char *text = r->type == SETTING_TEXT || r->type == SETTING_CHOICE ? *(const char *const *)place : NULL;
    const struct text_list *list = place;
    switch (r->type) {
    case SETTING_SWITCH:
        fputs(*(const bool *)place ? "on" : "off", out);
        break;
    case SETTING_LONG:
        if (*(const long *)place || r->fallback) fprintf(out, "%ld", *(const long *)place); // else unset
        break;
    case SETTING_REAL:
        real_text(number, *(const double *)place);
        if (*(const double *)place != 0 || r->fallback) fputs(number, out);
        break;
    case SETTING_DECIMAL:
        decimal_text(number, *(const struct decimal *)place);
        if (((const struct decimal *)place)->numerator || r->fallback) fputs(number, out);
        break;
    case SETTING_TEXT:
    case SETTING_CHOICE:
        if (text) put_word(out, text);
        break;
    case SETTING_LIST:
        for (long i = 0; i < list->n; i++) {
            if (i) fputc(' ', out);
            put_word(out, list->item[i]);
        }
        break;
    }
}

enum status settings_dump(char **text, const struct settings *s)
{
    char *dump = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&dump, &bytes);
    if (!out) return fail(ERR_MEMORY, "settings: no memory to write them");
    for (long i = 0; i < s->n; i++) {
        fprintf(out, "%s = ", s->row[i].name);
        put_value(out, &s->row[i], value_place(s, &s->row[i]));
        fputc('\n', out);
    }
    bool failed = ferror(out) != 0;
    if (fclose(out) != 0 || failed || !dump) { // a stream of the C library may close well and leave NULL
        free(dump);
        return fail(ERR_MEMORY, "settings: no memory to write them");
    }
    *text = dump;
    return OK;
}

// ---- help ----

void setting_allowed(char *text, size_t room, const struct setting *r, double boundless)
{
    bool number = r->type == SETTING_LONG || r->type == SETTING_REAL || r->type == SETTING_DECIMAL;
    char low[NUMBER_TEXT], high[NUMBER_TEXT];
    text[0] = '\0';
    if (r->type == SETTING_SWITCH) snprintf(text, room, "on, off");
    if (r->type == SETTING_CHOICE) {
        size_t used = 0;
        for (const char *c = r->choices; *c && used + 3 < room; c++) {
            text[used++] = *c == '|' ? ',' : *c;
            if (*c == '|') text[used++] = ' ';
        }
        text[used] = '\0';
    }
    if (!number || !(r->min < r->max)) return;
    real_text(low, r->min);
    real_text(high, r->max);
    if (r->type == SETTING_LONG && r->min > -1e15 && r->min < 1e15) snprintf(low, sizeof low, "%ld", (long)r->min);
    if (r->type == SETTING_LONG && r->max < 1e15) snprintf(high, sizeof high, "%ld", (long)r->max);
    if (r->max >= boundless) snprintf(text, room, "at least %s", low);
    else snprintf(text, room, "%s to %s", low, high);
}

static const char *value_name(const struct setting *r)
{
    switch (r->type) {
    case SETTING_SWITCH: return "";
    case SETTING_LONG: return " N";
    case SETTING_REAL:
    case SETTING_DECIMAL: return " X";
    case SETTING_TEXT: return " TEXT";
    case SETTING_CHOICE: return " WORD";
    case SETTING_LIST: return " WORD...";
    }
    return "";
}

static bool switched_on(const struct setting *r)
{
    return r->type == SETTING_SWITCH && r->fallback && strcmp(r->fallback, "on") == 0;
}

// Words of `text` from column `at` on, continued below it.
static void put_wrapped(FILE *out, const char *text, int at)
{
    enum { WIDTH = 116 };
    int column = at;
    while (*text) {
        int length = (int)strcspn(text, " ");
        if (column > at && column + 1 + length > WIDTH) {
            fprintf(out, "\n%*s", at, "");
            column = at;
        }
        if (column > at) column += fprintf(out, " ");
        column += fprintf(out, "%.*s", length, text);
        text += length + (text[length] == ' ');
    }
    fputc('\n', out);
}

static void help_row(FILE *out, const struct setting *r)
{
    enum { COLUMN = 37 };
    char left[96], allowed[512], text[1024];
    snprintf(left, sizeof left, "--%s%s%s", switched_on(r) ? "no-" : "", r->name, value_name(r));
    setting_allowed(allowed, sizeof allowed, r, 1e9);
    if (r->type == SETTING_SWITCH) allowed[0] = '\0';
    const char *fallback = r->fallback && r->type != SETTING_SWITCH ? r->fallback : "";
    bool either = *allowed || *fallback, both = *allowed && *fallback;
    snprintf(text, sizeof text, "%s%s%s%s%s%s%s%s", switched_on(r) ? "switch off: " : "", r->help, either ? " (" : "",
             allowed, both ? "; " : "", *fallback ? "default " : "", fallback, either ? ")" : "");
    fprintf(out, "  %-*s ", COLUMN - 3, left);
    put_wrapped(out, text, COLUMN);
}

void settings_help(FILE *out, const struct settings *s)
{
    fprintf(out, "skymoe %s: %s\n\nusage: skymoe %s %s\n", s->command, s->summary, s->command, s->usage);
    if (s->n) fprintf(out, "\n");
    for (long i = 0; i < s->n; i++) help_row(out, &s->row[i]);
    fprintf(out, "\nevery command:\n");
    for (long i = 0; i < common_row_n; i++)
        if (!setting_replaced(s, &common_row[i])) help_row(out, &common_row[i]);
}

static void markdown_cell(FILE *out, const char *text)
{
    for (const char *c = text; *c; c++) {
        if (*c == '|') fputc('\\', out);
        fputc(*c, out);
    }
}

static void markdown_rows(FILE *out, const struct setting *row, long n)
{
    fprintf(out, "| option | allowed | default | meaning |\n|---|---|---|---|\n");
    for (long i = 0; i < n; i++) {
        const struct setting *r = &row[i];
        char allowed[512];
        setting_allowed(allowed, sizeof allowed, r, 1e9);
        const char *fallback = r->fallback ? r->fallback : r->type == SETTING_SWITCH ? "off" : "";
        fprintf(out, "| `--%s%s` | %s | %s | ", r->name, value_name(r), allowed, fallback);
        markdown_cell(out, r->help);
        fprintf(out, " |\n");
    }
}

void settings_markdown(FILE *out, const struct settings *s)
{
    fprintf(out, "### skymoe %s\n\n", s->command);
    markdown_cell(out, s->summary);
    fprintf(out, "\n\n`skymoe %s %s`\n\n", s->command, s->usage);
    if (s->n) markdown_rows(out, s->row, s->n);
}

void settings_markdown_common(FILE *out)
{
    fprintf(out, "### Every command\n\n");
    markdown_rows(out, common_row, common_row_n);
}

// ---- the nearest word ----

// Edit distance with neighbours swapped as one edit. Words are compared by their first LONGEST bytes.
static long edit_distance(const char *a, const char *b)
{
    enum { LONGEST = 64 };
    long distance[LONGEST + 1][LONGEST + 1];
    long n = (long)strnlen(a, LONGEST), m = (long)strnlen(b, LONGEST);
    for (long i = 0; i <= n; i++) distance[i][0] = i;
    for (long j = 0; j <= m; j++) distance[0][j] = j;
    for (long i = 1; i <= n; i++) {
        for (long j = 1; j <= m; j++) {
            long best = distance[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            if (distance[i - 1][j] + 1 < best) best = distance[i - 1][j] + 1;
            if (distance[i][j - 1] + 1 < best) best = distance[i][j - 1] + 1;
            bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if (swapped && distance[i - 2][j - 2] + 1 < best) best = distance[i - 2][j - 2] + 1;
            distance[i][j] = best;
        }
    }
    return distance[n][m];
}

const char *nearest_word(const char *word, const char *const *candidates, long n)
{
    long nearest = 0, least = -1;
    for (long i = 0; i < n; i++) {
        // A beginning of the name is nearer than any misspelling: --micro for --micro-batch-size.
        size_t length = strlen(word);
        long distance = 2 * edit_distance(word, candidates[i]);
        if (length >= 3 && strncmp(word, candidates[i], length) == 0) distance = 1;
        if (least >= 0 && distance >= least) continue;
        nearest = i;
        least = distance;
    }
    return candidates[nearest];
}
