// The fingerprint of a Jinja text. Nothing is run: the text is cut into what it writes and the words and signs of its
// statements, as jinja2 would with transformers' settings (trim_blocks, lstrip_blocks), and these are hashed.
// `{{ m['role'] }}` and `{{m.role}}` are the same, '\n' and a line end in quotes too; anything else is a difference.
#include <stdlib.h>
#include <string.h>

#include "data/chat_folder.h"

struct scan {
    const char *at, *end;
    char *out; // the parts so far, each a letter, its text and a NUL
    long used;
};

enum part { PART_TEXT = 'T', PART_NAME = 'N', PART_QUOTED = 'Q', PART_SIGN = 'S' };

static void part_begin(struct scan *s, enum part kind)
{
    s->out[s->used++] = (char)kind;
}

static void part_put(struct scan *s, char c)
{
    s->out[s->used++] = c;
}

static void part_end(struct scan *s)
{
    s->out[s->used++] = '\0';
}

static bool is_white(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static bool is_word(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

static const char *skip_white(const struct scan *s, const char *at)
{
    while (at < s->end && is_white(*at)) at++;
    return at;
}

// ---- statements ----

// Behind the quote that opens at `at`; NULL when it is not closed.
static const char *quoted_end(const struct scan *s, const char *at)
{
    char quote = *at++;
    for (; at < s->end && *at != quote; at++)
        if (*at == '\\') at++;
    return at < s->end ? at + 1 : NULL;
}

static void put_quoted(struct scan *s, const char *from, const char *to)
{
    for (const char *c = from; c < to; c++) {
        bool escape = *c == '\\' && c + 1 < to;
        if (!escape) part_put(s, *c);
        else if (*++c == 'n') part_put(s, '\n');
        else if (*c == 't') part_put(s, '\t');
        else if (*c == '\\' || *c == '\'' || *c == '"') part_put(s, *c);
        else part_put(s, '\\'), part_put(s, *c);
    }
}

// ['name'] behind a value is .name: puts that and returns true.
static bool put_attribute(struct scan *s)
{
    const char *open = skip_white(s, s->at + 1), *close = NULL;
    if (open < s->end && (*open == '\'' || *open == '"')) close = quoted_end(s, open);
    const char *bracket = close ? skip_white(s, close) : s->end;
    if (bracket >= s->end || *bracket != ']') return false;
    for (const char *c = open + 1; c < close - 1; c++)
        if (!is_word(*c)) return false;
    part_begin(s, PART_SIGN);
    part_put(s, '.');
    part_end(s);
    part_begin(s, PART_NAME);
    for (const char *c = open + 1; c < close - 1; c++) part_put(s, *c);
    part_end(s);
    s->at = bracket + 1;
    return true;
}

// One word, quoted text or sign; false when a quote is not closed.
static bool put_token(struct scan *s, bool *value)
{
    char c = *s->at;
    const char *end = c == '\'' || c == '"' ? quoted_end(s, s->at) : s->at + 1;
    if (!end) return false;
    if (c == '[' && *value && put_attribute(s)) return true;
    if (c == '\'' || c == '"') {
        part_begin(s, PART_QUOTED);
        put_quoted(s, s->at + 1, end - 1);
    } else if (is_word(c)) {
        part_begin(s, PART_NAME);
        for (end = s->at; end < s->end && is_word(*end); end++) part_put(s, *end);
    } else {
        part_begin(s, PART_SIGN);
        part_put(s, c);
    }
    part_end(s);
    *value = is_word(c) || c == ')' || c == ']';
    s->at = end;
    return true;
}

// From behind "{%" or "{{" to behind its end. *minus: it takes the white space behind it along.
static bool put_statement(struct scan *s, char kind, bool *minus)
{
    char closing = kind == '%' ? '%' : '}';
    bool value = false;
    part_begin(s, PART_SIGN);
    part_put(s, kind);
    part_end(s);
    for (;;) {
        s->at = skip_white(s, s->at);
        *minus = s->end - s->at >= 3 && *s->at == '-' && s->at[1] == closing && s->at[2] == '}';
        if (*minus) s->at++;
        if (s->end - s->at < 2) return false;
        if (s->at[0] == closing && s->at[1] == '}') break;
        if (!put_token(s, &value)) return false;
    }
    s->at += 2;
    return true;
}

static bool skip_comment(struct scan *s, bool *minus)
{
    for (; s->end - s->at >= 2; s->at++) {
        if (s->at[0] != '#' || s->at[1] != '}') continue;
        *minus = s->at[-1] == '-';
        s->at += 2;
        return true;
    }
    return false;
}

// ---- text between them ----

struct before { // the statement before a text
    bool minus; // it ended in -%}
    bool block; // it was {% %} or {# #}: one line end behind it is not text
    bool none;  // the text begins here
};

static void put_text(struct scan *s, struct before before, const char *next)
{
    const char *from = s->at, *to = next;
    bool line_starts = before.none;
    if (before.minus) from = skip_white(s, from);
    else if (before.block && from < to && *from == '\n') from++, line_starts = true;
    if (from > to) from = to;
    if (next < s->end) {
        char kind = next[1], sign = s->end - next > 2 ? next[2] : 0;
        if (sign == '-') {
            while (to > from && is_white(to[-1])) to--;
        } else if (kind != '{' && sign != '+') { // spaces that alone stand before a block on its line
            const char *c = to;
            while (c > from && (c[-1] == ' ' || c[-1] == '\t')) c--;
            if (c > from ? c[-1] == '\n' : line_starts) to = c;
        }
    }
    if (from == to) return;
    part_begin(s, PART_TEXT);
    while (from < to) part_put(s, *from++);
    part_end(s);
}

static const char *next_statement(const struct scan *s)
{
    for (const char *c = s->at; s->end - c >= 2; c++)
        if (c[0] == '{' && (c[1] == '%' || c[1] == '{' || c[1] == '#')) return c;
    return s->end;
}

static bool put_all(struct scan *s)
{
    struct before before = {.none = true};
    while (s->at < s->end) {
        const char *next = next_statement(s);
        put_text(s, before, next);
        if (next == s->end) return true;
        char kind = next[1];
        s->at = next + 2;
        before = (struct before){.block = kind != '{'};
        if (kind == '#') {
            if (!skip_comment(s, &before.minus)) return false;
            continue;
        }
        if (s->at < s->end && (*s->at == '-' || *s->at == '+')) s->at++;
        if (!put_statement(s, kind, &before.minus)) return false;
    }
    return true;
}

enum status jinja_fingerprint(uint64_t *fingerprint, const char *jinja, const char *name)
{
    size_t bytes = strlen(jinja);
    if (bytes && jinja[bytes - 1] == '\n') bytes--; // as jinja2 does
    struct scan s = {.at = jinja, .end = jinja + bytes, .out = malloc(4 * bytes + 16)};
    if (!s.out) return fail(ERR_MEMORY, "%s: no memory for a chat template of %zu bytes", name, bytes);
    bool whole = put_all(&s);
    if (whole) *fingerprint = xxh3(s.out, s.used);
    free(s.out);
    return whole ? OK : fail(ERR_FORMAT, "%s: the chat template is cut off", name);
}
