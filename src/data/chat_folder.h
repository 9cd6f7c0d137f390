// What a model folder says about conversations beside tokenizer.model: the text of its chat template and the tokens
// that were added to the tokenizer. Internal to data/: chat_template.h is the interface.
#ifndef SKYMOE_DATA_CHAT_FOLDER_H
#define SKYMOE_DATA_CHAT_FOLDER_H

#include "base/files.h"
#include "base/json.h"

struct added_token {
    const char *text;
    int id;
    bool special; // not part of any text
};
struct chat_folder {
    const char *chat_template; // NULL: none
    const char *bos, *eos;     // their pieces; NULL: as tokenizer.model says
    bool legacy;               // false: text behind a control token does not begin with a space of its own
    struct added_token *added; // may repeat
    long added_n;
    char source[PATH_LENGTH];  // the file that holds the template
    cJSON *config, *tokens;    // tokenizer_config.json and added_tokens.json; the texts above point into them
    char *jinja;               // chat_template.jinja, which goes before tokenizer_config.json
};
// Files that are absent say nothing. ERR_FORMAT names the file. The caller closes it.
MUST_USE enum status chat_folder_open(struct chat_folder *f, const char *folder);
void chat_folder_close(struct chat_folder *f);

// The five templates are recognised by a fingerprint: a hash of everything in the Jinja text that decides what it
// writes, without comments, layout and ways of quoting.
MUST_USE enum status jinja_fingerprint(uint64_t *fingerprint, const char *jinja, const char *name);

#endif
