// A conversation with a model over one sequence of the KV cache: in each turn only what is new is computed. When it no
// longer fits, the oldest turns are forgotten (the system message stays) and what follows it is computed anew.
#ifndef SKYMOE_EVAL_CONVERSATION_H
#define SKYMOE_EVAL_CONVERSATION_H

#include <signal.h>

#include "data/chat_template.h"
#include "eval/generate.h"
#include "eval/inference.h"

struct conversation {
    const struct chat_template *chat;
    const struct tokenizer *tokenizer;
    struct kv_cache kv;
    struct sampler sampler;
    struct end_ids ends;
    long context;    // most tokens
    long max_tokens; // of one answer
    struct chat_message *message; // system (if there is one), then user and assistant by turns; owns the texts
    long messages, room;
    int *ids;        // of all messages, as far as they are tokens yet: the first kv.length[0] are computed
    long n, ids_room;
    const volatile sig_atomic_t *interrupt; // not 0 ends an answer; NULL: nothing does
};
// The model must be loaded with i->model.o.positions = context. ERR_FORMAT: a control token beyond the vocabulary.
// The caller closes it; on failure nothing is held.
MUST_USE enum status conversation_open(struct conversation *c, struct inference *i, const struct chat_template *chat,
                                       const struct sampling *rule, long max_tokens);
void conversation_close(struct conversation *c);
// Begins anew; system NULL: with the system message that there is, "": without one.
MUST_USE enum status conversation_reset(struct conversation *c, const char *system);

struct answer {
    char *text;    // freed by answer_free
    long bytes;
    int *ids;
    long tokens;
    long prompt;   // tokens before the answer
    long cached;   // of them, computed in earlier turns
    long forgotten; // turns forgotten for this one
    enum finish finish;
};
// The answer to the user's next message; `show` gets its text while it comes (whole characters). ERR_FORMAT: not UTF-8
// or longer than the context has room for; then the conversation is as before.
MUST_USE enum status conversation_ask(struct answer *a, struct conversation *c, const char *text, long bytes,
                                      enum status (*show)(void *user, const char *text, long bytes), void *user);
void answer_free(struct answer *a);

#endif
