#include "eval/conversation.h"

#include <stdlib.h>
#include <string.h>

#include "eval/stream.h"

// ---- life ----

// What ends an answer: the model's end ids and the template's control tokens, which may lie beyond tokenizer.model.
static enum status ends_collect(struct conversation *c, const struct inference *i)
{
    TRY(end_ids_read(&c->ends, &i->model.c, i->folder));
    for (long k = 0; k < c->chat->controls; k++) {
        int id = c->chat->control[k];
        if (id >= i->model.c.V)
            return fail(ERR_FORMAT, "%s: the control token %s is token %d, beyond the model's vocabulary of %ld",
                        i->folder, c->chat->control_name[k], id, i->model.c.V);
        TRY(end_ids_add(&c->ends, id, i->folder));
    }
    for (long k = 0; k < c->ends.n; k++)
        if (c->ends.id[k] < i->model.c.V) sampler_allow(&c->sampler, c->ends.id[k]);
    return OK;
}

enum status conversation_open(struct conversation *c, struct inference *i, const struct chat_template *chat,
                              const struct sampling *rule, long max_tokens)
{
    long context = i->model.o.positions;
    *c = (struct conversation){.chat = chat, .tokenizer = &i->tokenizer, .context = context, .max_tokens = max_tokens};
    TRY(sampler_init(&c->sampler, rule, i->model.c.V, i->tokenizer.pieces));
    enum status status = ends_collect(c, i);
    if (status == OK) status = kv_cache_init(&c->kv, &i->model, 1, context, context);
    if (status != OK) sampler_free(&c->sampler);
    return status;
}

static void messages_cut(struct conversation *c, long from, long to)
{
    for (long i = from; i < to; i++) free((char *)(uintptr_t)c->message[i].text);
    memmove(c->message + from, c->message + to, (size_t)(c->messages - to) * sizeof *c->message);
    c->messages -= to - from;
}

void conversation_close(struct conversation *c)
{
    if (c->message) messages_cut(c, 0, c->messages);
    free(c->message);
    free(c->ids);
    kv_cache_free(&c->kv);
    sampler_free(&c->sampler);
    *c = (struct conversation){0};
}

static enum status message_add(struct conversation *c, enum chat_role role, const char *text, long bytes)
{
    if (c->messages == c->room) {
        long room = 2 * c->room + 8;
        struct chat_message *grown = realloc(c->message, (size_t)room * sizeof *grown);
        if (!grown) return fail(ERR_MEMORY, "memory: %ld messages were refused (begin a new conversation)", room);
        c->message = grown;
        c->room = room;
    }
    char *copy = malloc((size_t)bytes + 1);
    if (!copy) return fail(ERR_MEMORY, "memory: a message of %ld bytes was refused (use a shorter one)", bytes);
    if (bytes) memcpy(copy, text, (size_t)bytes);
    copy[bytes] = '\0';
    c->message[c->messages++] = (struct chat_message){role, copy, bytes};
    return OK;
}

static bool has_system(const struct conversation *c)
{
    return c->messages > 0 && c->message[0].role == CHAT_SYSTEM;
}

static void ids_forget(struct conversation *c)
{
    kv_cache_drop(&c->kv, 0);
    c->n = 0;
}

enum status conversation_reset(struct conversation *c, const char *system)
{
    ids_forget(c);
    if (c->message) messages_cut(c, !system && has_system(c), c->messages);
    return system && *system ? message_add(c, CHAT_SYSTEM, system, (long)strlen(system)) : OK;
}

// ---- what is asked ----

static enum status ids_add(struct conversation *c, const int *ids, long n)
{
    if (c->n + n > c->ids_room) {
        long room = 2 * (c->n + n);
        int *grown = realloc(c->ids, (size_t)room * sizeof *grown);
        if (!grown) return fail(ERR_MEMORY, "memory: %ld tokens were refused (begin a new conversation)", room);
        c->ids = grown;
        c->ids_room = room;
    }
    if (n) memcpy(c->ids + c->n, ids, (size_t)n * sizeof *ids);
    c->n += n;
    return OK;
}

// Room that is kept for an answer.
static long reserve(const struct conversation *c)
{
    long quarter = c->context / 4 > 0 ? c->context / 4 : 1;
    return c->max_tokens < quarter ? c->max_tokens : quarter;
}

static bool fits(const struct conversation *c, long tokens)
{
    return tokens + reserve(c) <= c->context;
}

// Ids of the whole conversation without its `skipped` oldest turns.
static enum status encode_from(int **ids, long *n, const struct conversation *c, long skipped)
{
    long first = has_system(c), rest = c->messages - first - 2 * skipped;
    struct chat_message *kept = malloc((size_t)(first + rest) * sizeof *kept);
    if (!kept) return fail(ERR_MEMORY, "memory: %ld messages were refused (begin a new conversation)", rest);
    if (first) kept[0] = c->message[0];
    memcpy(kept + first, c->message + first + 2 * skipped, (size_t)rest * sizeof *kept);
    enum status status = chat_encode(ids, n, c->chat, kept, first + rest);
    free(kept);
    return status;
}

// Takes these ids in place of what there is; what begins alike stays computed.
static enum status ids_replace(struct conversation *c, const int *ids, long n)
{
    long same = 0;
    while (same < c->kv.length[0] && same < n - 1 && c->ids[same] == ids[same]) same++;
    kv_cache_cut(&c->kv, 0, same);
    c->n = 0;
    return ids_add(c, ids, n);
}

// The new message is the last of c->message. At least `forgotten` of the oldest turns go, more where they must.
static enum status prompt_anew(struct conversation *c, long *forgotten)
{
    long first = has_system(c), turns = (c->messages - first) / 2, n;
    int *ids;
    for (;; ++*forgotten) {
        TRY(encode_from(&ids, &n, c, *forgotten));
        if (fits(c, n) || *forgotten == turns) break;
        free(ids);
    }
    enum status status = OK;
    if (fits(c, n)) status = ids_replace(c, ids, n);
    else
        status = fail(ERR_FORMAT, "message: is %ld tokens with what must go with it, and a context of %ld has room for "
                      "%ld beside an answer (make it shorter)", n, c->context, c->context - reserve(c));
    free(ids);
    if (status == OK) messages_cut(c, first, first + 2 * *forgotten);
    return status;
}

static enum status prompt(struct conversation *c, const char *text, long bytes, long *forgotten)
{
    int *ids;
    long n;
    *forgotten = 0;
    if (c->n == 0) return prompt_anew(c, forgotten);
    TRY(chat_encode_next(&ids, &n, c->chat, text, bytes));
    bool more = fits(c, c->n + n);
    enum status status = more ? ids_add(c, ids, n) : OK;
    free(ids);
    if (more || status != OK) return status;
    *forgotten = 1;
    return prompt_anew(c, forgotten);
}

// ---- the answer ----

struct speaker {
    struct conversation *c;
    struct text_stream stream;
    enum status (*show)(void *user, const char *text, long bytes);
    void *user;
};

static bool interrupted(const struct conversation *c)
{
    return c->interrupt && *c->interrupt;
}

static enum status show_more(struct speaker *s)
{
    long bytes;
    const char *more = text_stream_take(&s->stream, &bytes);
    return bytes ? s->show(s->user, more, bytes) : OK;
}

static enum status on_token(void *user, struct sampled token, bool *stop)
{
    struct speaker *s = user;
    TRY(ids_add(s->c, &token.token, 1));
    TRY(text_stream_add(&s->stream, token.token));
    *stop = s->stream.stopped || interrupted(s->c);
    return show_more(s);
}

// Computes all but the last rows of the prompt, so that a long one can be interrupted.
static enum status compute_prompt(struct conversation *c, long prompt)
{
    long rows = c->kv.m->o.S;
    while (prompt - c->kv.length[0] > rows && !interrupted(c))
        TRY(kv_append(&c->kv, 0, c->ids + c->kv.length[0], rows, NULL, NULL));
    return OK;
}

// Of tokens that end in the stop text, only those before it stay, and text that shared a token with it is encoded.
static enum status cut_stop(struct conversation *c, const struct text_stream *s, long prompt)
{
    int *ids;
    long whole, bytes, n;
    TRY(text_stream_whole(&whole, &bytes, s));
    c->n = prompt + whole;
    if (c->kv.length[0] > c->n) kv_cache_cut(&c->kv, 0, c->n);
    if (bytes == s->ready) return OK;
    TRY(tokenizer_encode_more(&ids, &n, c->tokenizer, s->text + bytes, s->ready - bytes));
    enum status status = ids_add(c, ids, n);
    free(ids);
    return status;
}

static enum status speak(struct answer *a, struct speaker *s)
{
    struct conversation *c = s->c;
    long n = c->n, room = c->context - n;
    a->finish = FINISH_LENGTH;
    TRY(compute_prompt(c, n));
    if (!interrupted(c)) {
        struct generation g = {.prompt = c->ids + c->kv.length[0], .prompt_n = n - c->kv.length[0], .ends = &c->ends,
                               .max_tokens = c->max_tokens < room ? c->max_tokens : room, .on_token = on_token,
                               .user = s};
        TRY(generate(&a->finish, &c->kv, 0, &c->sampler, &g));
    }
    if (interrupted(c)) a->finish = FINISH_INTERRUPTED;
    TRY(text_stream_end(&s->stream));
    TRY(show_more(s));
    if (s->stream.stopped) TRY(cut_stop(c, &s->stream, n));
    TRY(message_add(c, CHAT_ASSISTANT, s->stream.text + s->stream.begin, s->stream.ready - s->stream.begin));
    const struct chat_message *said = &c->message[c->messages - 1];
    a->tokens = c->n - n;
    a->bytes = said->bytes;
    a->text = malloc((size_t)a->bytes + 1);
    a->ids = malloc((size_t)(a->tokens + 1) * sizeof *a->ids);
    if (!a->text || !a->ids) return fail(ERR_MEMORY, "memory: an answer of %ld bytes was refused", a->bytes);
    memcpy(a->text, said->text, (size_t)a->bytes + 1);
    memcpy(a->ids, c->ids + n, (size_t)a->tokens * sizeof *a->ids);
    return OK;
}

enum status conversation_ask(struct answer *a, struct conversation *c, const char *text, long bytes,
                             enum status (*show)(void *user, const char *text, long bytes), void *user)
{
    struct speaker s = {.c = c, .show = show, .user = user};
    *a = (struct answer){0};
    TRY(message_add(c, CHAT_USER, text, bytes));
    enum status status = prompt(c, text, bytes, &a->forgotten);
    if (status != OK) { // nothing was changed but the list
        messages_cut(c, c->messages - 1, c->messages);
        return status;
    }
    a->prompt = c->n;
    a->cached = c->kv.length[0];
    status = text_stream_open(&s.stream, c->tokenizer, NULL, 0, c->chat->stop);
    if (status == OK) status = speak(a, &s);
    text_stream_close(&s.stream);
    if (status == OK) return OK;
    // Half a turn: forgotten, and what was computed of it too.
    bool answered = c->message[c->messages - 1].role == CHAT_ASSISTANT;
    messages_cut(c, c->messages - 1 - answered, c->messages);
    ids_forget(c);
    answer_free(a);
    return status;
}

void answer_free(struct answer *a)
{
    free(a->text);
    free(a->ids);
    *a = (struct answer){0};
}
