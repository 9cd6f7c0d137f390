#include "data/chat_template.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/chat_folder.h"
#include "data/sentencepiece.h"

// ---- the templates ----

// {text} is what the message says, {bos} and {eos} are the tokenizer's (a {bos?} that it lacks is left out), anything
// else in braces is a control token. The rest is text.
struct chat_form {
    const char *name;
    const char *begin;  // of the conversation
    const char *system;
    const char *user;
    const char *answer; // begins an answer: what the model continues
    const char *gap;    // before an answer that is given as text
    const char *end;    // of an answer
    const char *stop;
    bool system_inside; // the system message stands in front of the first user message's text
    bool trimmed;       // white space around what a message says is left out
};
static const struct chat_form forms[] = {
    {
        .name = "chatml",
        .begin = "",
        .system = "{<|im_start|>}system\n{text}{<|im_end|>}\n",
        .user = "{<|im_start|>}user\n{text}{<|im_end|>}\n",
        .answer = "{<|im_start|>}assistant\n",
        .gap = "",
        .end = "{<|im_end|>}\n",
    },
    {
        .name = "llama2",
        .begin = "",
        .system = "<<SYS>>\n{text}\n<</SYS>>\n\n",
        .user = "{bos}[INST] {text} [/INST]",
        .answer = "",
        .gap = " ",
        .end = " {eos}",
        .system_inside = true,
        .trimmed = true,
    },
    {
        .name = "llama3",
        .begin = "{bos}",
        .system = "{<|start_header_id|>}system{<|end_header_id|>}\n\n{text}{<|eot_id|>}",
        .user = "{<|start_header_id|>}user{<|end_header_id|>}\n\n{text}{<|eot_id|>}",
        .answer = "{<|start_header_id|>}assistant{<|end_header_id|>}\n\n",
        .gap = "",
        .end = "{<|eot_id|>}",
        .trimmed = true,
    },
    {
        .name = "mistral",
        .begin = "{bos}",
        .system = "{text}\n\n",
        .user = "[INST] {text} [/INST]",
        .answer = "",
        .gap = " ",
        .end = "{eos}",
        .system_inside = true,
    },
    {
        .name = "plain",
        .begin = "{bos?}",
        .system = "{text}\n\n",
        .user = "User: {text}\n",
        .answer = "Assistant:",
        .gap = " ",
        .end = "\n",
        .stop = "\nUser:",
    },
};
enum { FORMS = sizeof forms / sizeof *forms };

// Jinja texts that say the same as one of them, by fingerprint. The first of each name is in tests/golden/chat; the
// others came with models (tools/chat_golden.py --released compares what they write).
static const struct known {
    uint64_t fingerprint;
    const char *name;
} known[] = {
    {0x02f10ff78e43d8c9, "chatml"},
    {0x398e4f549dfeeebe, "chatml"}, // OpenHermes 2.5, trl
    {0x74763cc57ce0db6e, "chatml"}, // the same, with a default for add_generation_prompt
    {0x44d0dd674ffc2761, "llama2"},
    {0x7c3f06dc07d0cca7, "llama2"}, // Llama 2 chat
    {0xd223b1ae14cb9e93, "llama3"},
    {0xa583e6293645e8de, "llama3"}, // Llama 3 Instruct as first released: always followed by an answer's beginning
    {0x041908de64315e61, "llama3"}, // Llama 3 Instruct
    {0xb565a84d61dbb010, "mistral"},
    {0xa3602a166d090ce6, "mistral"}, // Mistral 7B Instruct v0.2, Mixtral 8x7B Instruct
    {0x658bc70717026cde, "plain"},
};

static const struct chat_form *form_find(const char *name)
{
    for (long i = 0; i < FORMS; i++)
        if (!strcmp(forms[i].name, name)) return &forms[i];
    return NULL;
}

static const char choices[] = "chatml, llama2, llama3, mistral, or plain for a model of plain text";

static enum status form_of_folder(const struct chat_form **form, const struct chat_folder *f, const char *folder)
{
    uint64_t fingerprint;
    if (!f->chat_template)
        return fail(ERR_FORMAT, "%s: has no chat template (name one with --chat-template: %s)", folder, choices);
    TRY(jinja_fingerprint(&fingerprint, f->chat_template, f->source));
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (known[i].fingerprint != fingerprint) continue;
        *form = form_find(known[i].name);
        return OK;
    }
    return fail(ERR_FORMAT,
                "%s: its chat template (%016lx) is not one of those built in (name the one that suits the model with "
                "--chat-template: %s)",
                f->source, (unsigned long)fingerprint, choices);
}

// ---- control tokens ----

// The id of a control token in tokenizer.model and in the folder's files, which must agree; -1: none.
static enum status token_id(int *id, const struct tokenizer *t, const struct chat_folder *f, const char *text,
                            const char *folder)
{
    *id = tokenizer_find(t, text);
    for (long i = 0; i < f->added_n; i++) {
        if (strcmp(f->added[i].text, text)) continue;
        if (*id >= 0 && *id != f->added[i].id)
            return fail(ERR_FORMAT, "%s: %s is token %d and token %d (its tokenizer files contradict each other)",
                        folder, text, *id, f->added[i].id);
        *id = f->added[i].id;
    }
    if (*id < 0 || *id >= t->pieces) return OK;
    enum sp_kind kind;
    const char *piece = sp_piece(t->model, *id, &kind);
    if (strcmp(piece, text))
        return fail(ERR_FORMAT, "%s: token %d is %s and %.60s (its tokenizer files contradict each other)", folder, *id,
                    text, piece);
    if (kind != SP_BYTE && kind != SP_UNKNOWN) return OK;
    return fail(ERR_FORMAT, "%s: %s cannot be a control token (it stands for text)", folder, text);
}

// bos and eos by the name that the folder gives, else the tokenizer's own.
static enum status end_id(int *id, const struct tokenizer *t, const struct chat_folder *f, bool bos, const char *folder)
{
    const char *text = bos ? f->bos : f->eos;
    *id = bos ? t->bos : t->eos;
    if (!text) return OK;
    TRY(token_id(id, t, f, text, folder));
    return *id >= 0 ? OK : fail(ERR_FORMAT, "%s: its %s_token %s is not in the tokenizer", folder, bos ? "bos" : "eos",
                                text);
}

static bool named(const char *name, long bytes, const char *word)
{
    return (long)strlen(word) == bytes && !memcmp(name, word, (size_t)bytes);
}

// The id of {name}.
static int control_find(const struct chat_template *c, const char *name, long bytes)
{
    for (long i = 0; i < c->controls; i++)
        if (named(name, bytes, c->control_name[i])) return c->control[i];
    return -1;
}

static enum status control_add(struct chat_template *c, const struct chat_folder *f, const char *name, long bytes,
                               const char *folder)
{
    char *word = c->control_name[c->controls < CHAT_CONTROLS ? c->controls : 0];
    int id = -1;
    if (named(name, bytes, "text") || control_find(c, name, bytes) >= 0) return OK;
    CHECK(c->controls < CHAT_CONTROLS && bytes < CHAT_CONTROL_NAME);
    snprintf(word, CHAT_CONTROL_NAME, "%.*s", (int)bytes, name);
    if (*word == '<') TRY(token_id(&id, c->tokenizer, f, word, folder));
    else TRY(end_id(&id, c->tokenizer, f, *word == 'b', folder));
    if (id < 0 && word[bytes - 1] == '?') return OK;
    if (id < 0)
        return fail(ERR_FORMAT,
                    "%s: the tokenizer has no %s token, which the chat template %s needs (name another with "
                    "--chat-template)",
                    folder, word, c->name);
    c->control[c->controls++] = id;
    return OK;
}

static enum status controls_collect(struct chat_template *c, const struct chat_folder *f, const char *folder)
{
    const char *const text[] = {c->form->begin, c->form->system, c->form->user, c->form->answer, c->form->end};
    for (size_t i = 0; i < sizeof text / sizeof *text; i++) {
        for (const char *open = text[i]; (open = strchr(open, '{')); open++)
            TRY(control_add(c, f, open + 1, strchr(open, '}') - open - 1, folder));
    }
    // What no text may become: these, and whatever else the folder calls special.
    c->special = malloc((size_t)(c->controls + f->added_n + 2) * sizeof *c->special);
    if (!c->special) return fail(ERR_MEMORY, "%s: no memory for its special tokens", folder);
    for (long i = 0; i < c->controls; i++) c->special[c->specials++] = c->control[i];
    for (long i = 0; i < f->added_n; i++)
        if (f->added[i].special && f->added[i].id != c->tokenizer->unk) c->special[c->specials++] = f->added[i].id;
    if (c->tokenizer->bos >= 0) c->special[c->specials++] = c->tokenizer->bos;
    if (c->tokenizer->eos >= 0) c->special[c->specials++] = c->tokenizer->eos;
    return OK;
}

static enum status bind(struct chat_template *c, const struct chat_folder *f, const char *folder, const char *name)
{
    if (!name) TRY(form_of_folder(&c->form, f, folder));
    else c->form = form_find(name);
    if (!c->form) return fail(ERR_CONFIG, "--chat-template %.60s: there is no such template (use %s)", name, choices);
    c->name = c->form->name;
    c->stop = c->form->stop;
    c->spaced = f->legacy || c->form->system_inside;
    return controls_collect(c, f, folder);
}

enum status chat_template_open(struct chat_template *c, const struct tokenizer *t, const char *folder, const char *name)
{
    struct chat_folder f;
    *c = (struct chat_template){.tokenizer = t};
    TRY(chat_folder_open(&f, folder));
    enum status status = bind(c, &f, folder, name);
    chat_folder_close(&f);
    if (status != OK) chat_template_close(c);
    return status;
}

void chat_template_close(struct chat_template *c)
{
    free(c->special);
    *c = (struct chat_template){0};
}

// ---- ids ----

struct writer {
    const struct chat_template *c;
    int *ids;
    long n, room;
    char *text; // not yet encoded: all since the last control token
    long bytes, text_room;
    enum { AT_START, BEHIND_TEXT, BEHIND_CONTROL } place; // of the text
};

static enum status grow(void **data, long *room, long wanted, long size)
{
    if (wanted <= *room) return OK;
    long more = 2 * wanted;
    void *grown = realloc(*data, (size_t)(more * size));
    if (!grown) return fail(ERR_MEMORY, "memory: a conversation was refused (use a shorter one)");
    *data = grown;
    *room = more;
    return OK;
}

static enum status put_id(struct writer *w, int id)
{
    TRY(grow((void **)&w->ids, &w->room, w->n + 1, sizeof *w->ids));
    w->ids[w->n++] = id;
    return OK;
}

static bool is_special(const struct chat_template *c, int id)
{
    for (long i = 0; i < c->specials; i++)
        if (c->special[i] == id) return true;
    return false;
}

// Where the tokenizer itself makes a control token of the text that looks like it (a user-defined piece), it is spelled
// in bytes.
static enum status put_spelled(struct writer *w, int id)
{
    enum sp_kind kind;
    for (const char *c = sp_piece(w->c->tokenizer->model, id, &kind); *c; c++) {
        char byte[8];
        snprintf(byte, sizeof byte, "<0x%02X>", (unsigned char)*c);
        int spelled = tokenizer_find(w->c->tokenizer, byte);
        if (spelled < 0)
            return fail(ERR_FORMAT, "message: \"%.60s\" in it is a control token (leave it out)",
                        sp_piece(w->c->tokenizer->model, id, &kind));
        TRY(put_id(w, spelled));
    }
    return OK;
}

static enum status flush_text(struct writer *w)
{
    int *ids;
    long n;
    if (w->bytes == 0) return OK;
    bool spaced = w->place == AT_START || (w->place == BEHIND_CONTROL && w->c->spaced);
    if (spaced) TRY(tokenizer_encode(&ids, &n, w->c->tokenizer, w->text, w->bytes));
    else TRY(tokenizer_encode_more(&ids, &n, w->c->tokenizer, w->text, w->bytes));
    enum status status = OK;
    for (long i = 0; i < n && status == OK; i++)
        status = is_special(w->c, ids[i]) ? put_spelled(w, ids[i]) : put_id(w, ids[i]);
    free(ids);
    w->bytes = 0;
    w->place = BEHIND_TEXT;
    return status;
}

static enum status put_text(struct writer *w, const char *text, long bytes)
{
    TRY(grow((void **)&w->text, &w->text_room, w->bytes + bytes + 1, 1));
    if (bytes) memcpy(w->text + w->bytes, text, (size_t)bytes);
    w->bytes += bytes;
    return OK;
}

// White space as str.strip() of Python, which templates trim with, has it; the bytes of the character at the start (or
// the end) of the text, 0 if it is another.
static long white_space(const char *text, long bytes, bool at_end)
{
    static const char *const wide[] = {"\xC2\x85", "\u00a0", "\u1680", "\u2000", "\u2001", "\u2002", "\u2003", "\u2004",
                                       "\u2005", "\u2006", "\u2007", "\u2008", "\u2009", "\u200a", "\u2028", "\u2029",
                                       "\u202f", "\u205f", "\u3000"};
    if (bytes == 0) return 0;
    char c = at_end ? text[bytes - 1] : text[0];
    if (c == ' ' || (c >= '\t' && c <= '\r') || (c >= 0x1c && c <= 0x1f)) return 1;
    for (size_t i = 0; i < sizeof wide / sizeof *wide; i++) {
        long length = (long)strlen(wide[i]);
        if (length <= bytes && !memcmp(at_end ? text + bytes - length : text, wide[i], (size_t)length)) return length;
    }
    return 0;
}

static struct text trimmed(struct text t)
{
    for (long n; (n = white_space(t.data, t.bytes, false)); t.bytes -= n) t.data += n;
    for (long n; (n = white_space(t.data, t.bytes, true));) t.bytes -= n;
    return t;
}

static enum status put_form(struct writer *w, const char *form, struct text said)
{
    for (const char *open; (open = strchr(form, '{')); form = strchr(open, '}') + 1) {
        long bytes = strchr(open, '}') - open - 1;
        TRY(put_text(w, form, open - form));
        if (named(open + 1, bytes, "text")) {
            TRY(put_text(w, said.data, said.bytes));
            continue;
        }
        int id = control_find(w->c, open + 1, bytes);
        if (id < 0) continue; // {bos?}
        TRY(flush_text(w));
        TRY(put_id(w, id));
        w->place = BEHIND_CONTROL;
    }
    return put_text(w, form, (long)strlen(form));
}

// A user message with the system's in front of it.
static enum status put_with_system(struct writer *w, struct text system, struct text said)
{
    const char *form = w->c->form->system, *at = strstr(form, "{text}");
    size_t room = strlen(form) + (size_t)(system.bytes + said.bytes);
    char *joined = malloc(room + 1), *to = joined;
    if (!joined) return fail(ERR_MEMORY, "memory: a message of %zu bytes was refused (use a shorter one)", room);
    struct text part[] = {{form, at - form}, system, {at + 6, (long)strlen(at + 6)}, said};
    for (int i = 0; i < 4; to += part[i++].bytes)
        if (part[i].bytes) memcpy(to, part[i].data, (size_t)part[i].bytes);
    struct text whole = {joined, to - joined};
    enum status status = put_form(w, w->c->form->user, w->c->form->trimmed ? trimmed(whole) : whole);
    free(joined);
    return status;
}

static enum status put_message(struct writer *w, const struct chat_message *m, const struct chat_message *system)
{
    const struct chat_form *form = w->c->form;
    struct text said = {m->text, m->bytes};
    if (m->role == CHAT_USER && system) return put_with_system(w, (struct text){system->text, system->bytes}, said);
    if (form->trimmed) said = trimmed(said);
    if (m->role != CHAT_ASSISTANT) return put_form(w, m->role == CHAT_USER ? form->user : form->system, said);
    TRY(put_form(w, form->answer, said));
    TRY(put_form(w, form->gap, said));
    TRY(put_text(w, said.data, said.bytes));
    return put_form(w, form->end, said);
}

static enum status put_conversation(struct writer *w, const struct chat_message *m, long messages)
{
    static const char *const role[] = {"system", "user", "assistant"};
    const struct chat_message *system = NULL;
    TRY(put_form(w, w->c->form->begin, (struct text){0}));
    for (long i = 0; i < messages; i++) {
        bool inside = w->c->form->system_inside, first = i == 0 || (system && i == 1);
        if (inside && m[i].role == CHAT_SYSTEM && i == 0) {
            system = m;
            continue;
        }
        enum chat_role wanted = first || m[i - 1].role == CHAT_ASSISTANT ? CHAT_USER : CHAT_ASSISTANT;
        if (inside && m[i].role != wanted)
            return fail(ERR_FORMAT, "messages: number %ld is the %s's, which the chat template %s has no form for (let "
                        "user and assistant take turns)", i + 1, role[m[i].role], w->c->name);
        TRY(put_message(w, &m[i], first ? system : NULL));
    }
    if (system && messages == 1)
        return fail(ERR_FORMAT, "messages: a system message alone has no form in the chat template %s (add the user's)",
                    w->c->name);
    if (messages == 0 || m[messages - 1].role != CHAT_ASSISTANT)
        TRY(put_form(w, w->c->form->answer, (struct text){0}));
    return flush_text(w);
}

static enum status put_next(struct writer *w, const struct chat_message *m)
{
    w->place = BEHIND_TEXT;
    TRY(put_form(w, w->c->form->end, (struct text){0}));
    TRY(put_message(w, m, NULL));
    TRY(put_form(w, w->c->form->answer, (struct text){0}));
    return flush_text(w);
}

static enum status finish(int **ids, long *n, struct writer *w, enum status status)
{
    if (status == OK) status = grow((void **)&w->ids, &w->room, 1, sizeof *w->ids); // something to free, always
    free(w->text);
    if (status != OK) free(w->ids);
    *ids = status == OK ? w->ids : NULL;
    *n = w->n;
    return status;
}

enum status chat_encode(int **ids, long *n, const struct chat_template *c, const struct chat_message *message,
                        long messages)
{
    struct writer w = {.c = c};
    return finish(ids, n, &w, put_conversation(&w, message, messages));
}

enum status chat_encode_next(int **ids, long *n, const struct chat_template *c, const char *text, long bytes)
{
    const struct chat_message user = {CHAT_USER, text, bytes};
    struct writer w = {.c = c};
    return finish(ids, n, &w, put_next(&w, &user));
}
