// Conversations as token ids: chatml, llama2, llama3, mistral, plain. Control tokens enter as ids; what people write is
// tokenised as text alone and can never become one.
#ifndef SKYMOE_DATA_CHAT_TEMPLATE_H
#define SKYMOE_DATA_CHAT_TEMPLATE_H

#include "data/tokenizer.h"

#define CHAT_TEMPLATES "chatml|llama2|llama3|mistral|plain"

enum chat_role { CHAT_SYSTEM, CHAT_USER, CHAT_ASSISTANT };
struct chat_message {
    enum chat_role role;
    const char *text;
    long bytes;
};

struct chat_form;
enum { CHAT_CONTROLS = 8, CHAT_CONTROL_NAME = 24 };
struct chat_template {
    const char *name;
    const char *stop;              // text that ends an answer and is not part of it; NULL: none
    int control[CHAT_CONTROLS];    // ids of its control tokens: each ends an answer
    char control_name[CHAT_CONTROLS][CHAT_CONTROL_NAME];
    long controls;
    const struct chat_form *form;
    const struct tokenizer *tokenizer;
    bool spaced;                   // text behind a control token begins with a space of its own
    int *special;                  // ids that no text may become
    long specials;
};

// Binds a template to a tokenizer. name NULL: the one that the folder's files hold. ERR_FORMAT: they hold none or one
// that is not built in, or the tokenizer lacks one of its control tokens; ERR_CONFIG: no template has that name. The
// tokenizer must outlive it. The caller closes it.
MUST_USE enum status chat_template_open(struct chat_template *c, const struct tokenizer *t, const char *folder,
                                        const char *name);
void chat_template_close(struct chat_template *c);

// Ids of a whole conversation, behind them what begins the assistant's answer (unless the last message is one). The
// caller frees *ids. ERR_FORMAT: text that is not UTF-8, roles in an order that the template cannot say.
MUST_USE enum status chat_encode(int **ids, long *n, const struct chat_template *c, const struct chat_message *message,
                                 long messages);
// What follows an answer that the model has just generated: its end, the user's next message, the beginning of the next
// answer. Ids of a conversation never change, so they are appended to the ones before.
MUST_USE enum status chat_encode_next(int **ids, long *n, const struct chat_template *c, const char *text, long bytes);

#endif
