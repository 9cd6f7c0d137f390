// tokenizer.json: the same BPE in the form that transformers reads. Its merges are a list of pairs by priority, which
// SentencePiece does not have: it joins the neighbours whose union has the highest score, here the lowest id. So each
// piece gives every pair of pieces that make it up, in the order of the pieces.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/files.h"
#include "base/json.h"
#include "data/sentencepiece.h"
#include "data/tokenizer.h"
#include "data/tokenizer_check.h"

struct entry {
    const char *text;
    int id;
};

static int by_text(const void *a, const void *b)
{
    return strcmp(((const struct entry *)a)->text, ((const struct entry *)b)->text);
}

// Pieces that merging can give, sorted by text.
struct pieces {
    struct entry *entry;
    long n;
};

static enum status pieces_collect(struct pieces *p, const struct tokenizer *t)
{
    p->entry = malloc((size_t)t->pieces * sizeof *p->entry);
    p->n = 0;
    if (!p->entry) return fail(ERR_MEMORY, "tokenizer: no memory for its %ld pieces", t->pieces);
    for (long id = 0; id < t->pieces; id++) {
        enum sp_kind kind;
        const char *text = sp_piece(t->model, (int)id, &kind);
        if (kind == SP_NORMAL) p->entry[p->n++] = (struct entry){text, (int)id};
    }
    qsort(p->entry, (size_t)p->n, sizeof *p->entry, by_text);
    return OK;
}

static int pieces_find(const struct pieces *p, const char *text)
{
    struct entry key = {text, 0};
    const struct entry *found = p->n ? bsearch(&key, p->entry, (size_t)p->n, sizeof key, by_text) : NULL;
    return found ? found->id : -1;
}

struct pair {
    int left, right;
};

static int by_ids(const void *a, const void *b)
{
    const struct pair *x = a, *y = b;
    if (x->left != y->left) return x->left < y->left ? -1 : 1;
    return (x->right > y->right) - (x->right < y->right);
}

static void put_merges_of(struct json_out *o, const struct tokenizer *t, const struct pieces *p, const char *text)
{
    struct pair pair[TOKENIZER_PIECE_LIMIT];
    char left[TOKENIZER_PIECE_LIMIT + 1], both[2 * TOKENIZER_PIECE_LIMIT + 2];
    enum sp_kind kind;
    long n = 0, bytes = (long)strlen(text);
    for (long cut = 1; cut < bytes && cut < TOKENIZER_PIECE_LIMIT; cut++) {
        if (((unsigned char)text[cut] & 0xC0) == 0x80) continue; // within a character
        memcpy(left, text, (size_t)cut);
        left[cut] = '\0';
        struct pair found = {pieces_find(p, left), pieces_find(p, text + cut)};
        if (found.left >= 0 && found.right >= 0) pair[n++] = found;
    }
    qsort(pair, (size_t)n, sizeof *pair, by_ids);
    for (long i = 0; i < n; i++) {
        const char *a = sp_piece(t->model, pair[i].left, &kind), *b = sp_piece(t->model, pair[i].right, &kind);
        snprintf(both, sizeof both, "%s %s", a, b); // no piece holds a space: it is written U+2581
        json_put_text(o, NULL, both);
    }
}

static void put_model(struct json_out *o, const struct tokenizer *t, const struct pieces *p)
{
    enum sp_kind kind;
    json_begin(o, "model", '{');
    json_put_text(o, "type", "BPE");
    json_put_null(o, "dropout");
    json_put_text(o, "unk_token", t->unk >= 0 ? sp_piece(t->model, t->unk, &kind) : NULL);
    json_put_null(o, "continuing_subword_prefix");
    json_put_null(o, "end_of_word_suffix");
    json_put_bool(o, "fuse_unk", true);
    json_put_bool(o, "byte_fallback", true);
    json_begin(o, "vocab", '{');
    for (long id = 0; id < t->pieces; id++) json_put_long(o, sp_piece(t->model, (int)id, &kind), id);
    json_end(o, '}');
    json_begin(o, "merges", '[');
    for (long id = 0; id < t->pieces; id++) {
        const char *text = sp_piece(t->model, (int)id, &kind);
        if (kind == SP_NORMAL) put_merges_of(o, t, p, text);
    }
    json_end(o, ']');
    json_end(o, '}');
}

static void put_special(struct json_out *o, const struct tokenizer *t)
{
    json_begin(o, "added_tokens", '[');
    for (long id = 0; id < t->pieces; id++) {
        enum sp_kind kind;
        const char *text = sp_piece(t->model, (int)id, &kind);
        if (kind != SP_CONTROL && kind != SP_UNKNOWN) continue;
        json_begin(o, NULL, '{');
        json_put_long(o, "id", id);
        json_put_text(o, "content", text);
        json_put_bool(o, "single_word", false);
        json_put_bool(o, "lstrip", false);
        json_put_bool(o, "rstrip", false);
        json_put_bool(o, "normalized", false);
        json_put_bool(o, "special", true);
        json_end(o, '}');
    }
    json_end(o, ']');
}

static void put_replace(struct json_out *o, const char *pattern, const char *content)
{
    json_begin(o, NULL, '{');
    json_put_text(o, "type", "Replace");
    json_begin(o, "pattern", '{');
    json_put_text(o, "String", pattern);
    json_end(o, '}');
    json_put_text(o, "content", content);
    json_end(o, '}');
}

static void put_plain(struct json_out *o, const char *type)
{
    json_begin(o, NULL, '{');
    json_put_text(o, "type", type);
    json_end(o, '}');
}

static const char space[] = "\xE2\x96\x81"; // U+2581

// Spaces become U+2581, one of them before the text; decoding takes that back.
static void put_normalizer(struct json_out *o)
{
    json_begin(o, "normalizer", '{');
    json_put_text(o, "type", "Sequence");
    json_begin(o, "normalizers", '[');
    json_begin(o, NULL, '{');
    json_put_text(o, "type", "Prepend");
    json_put_text(o, "prepend", space);
    json_end(o, '}');
    put_replace(o, " ", space);
    json_end(o, ']');
    json_end(o, '}');
    json_put_null(o, "pre_tokenizer");
}

static void put_decoder(struct json_out *o)
{
    json_begin(o, "decoder", '{');
    json_put_text(o, "type", "Sequence");
    json_begin(o, "decoders", '[');
    put_replace(o, space, " ");
    put_plain(o, "ByteFallback");
    put_plain(o, "Fuse");
    json_begin(o, NULL, '{');
    json_put_text(o, "type", "Strip");
    json_put_text(o, "content", " ");
    json_put_long(o, "start", 1);
    json_put_long(o, "stop", 0);
    json_end(o, '}');
    json_end(o, ']');
    json_end(o, '}');
}

static void put_template_part(struct json_out *o, const char *kind, const char *id, long type)
{
    json_begin(o, NULL, '{');
    json_begin(o, kind, '{');
    json_put_text(o, "id", id);
    json_put_long(o, "type_id", type);
    json_end(o, '}');
    json_end(o, '}');
}

// bos before each text.
static void put_template(struct json_out *o, const char *bos, long id)
{
    json_begin(o, "post_processor", '{');
    json_put_text(o, "type", "TemplateProcessing");
    json_begin(o, "single", '[');
    put_template_part(o, "SpecialToken", bos, 0);
    put_template_part(o, "Sequence", "A", 0);
    json_end(o, ']');
    json_begin(o, "pair", '[');
    put_template_part(o, "SpecialToken", bos, 0);
    put_template_part(o, "Sequence", "A", 0);
    put_template_part(o, "SpecialToken", bos, 1);
    put_template_part(o, "Sequence", "B", 1);
    json_end(o, ']');
    json_begin(o, "special_tokens", '{');
    json_begin(o, bos, '{');
    json_put_text(o, "id", bos);
    json_begin(o, "ids", '[');
    json_put_long(o, NULL, id);
    json_end(o, ']');
    json_begin(o, "tokens", '[');
    json_put_text(o, NULL, bos);
    json_end(o, ']');
    json_end(o, '}');
    json_end(o, '}');
    json_end(o, '}');
}

enum status tokenizer_write_json(const char *folder, const struct tokenizer *t)
{
    char path[PATH_LENGTH];
    struct pieces pieces;
    struct json_out o = {0};
    enum sp_kind kind;
    CHECK(t->ranked);
    TRY(path_join(path, folder, "tokenizer.json"));
    TRY(pieces_collect(&pieces, t));
    json_begin(&o, NULL, '{');
    json_put_text(&o, "version", "1.0");
    json_put_null(&o, "truncation");
    json_put_null(&o, "padding");
    put_special(&o, t);
    put_normalizer(&o);
    if (t->bos >= 0) put_template(&o, sp_piece(t->model, t->bos, &kind), t->bos);
    else json_put_null(&o, "post_processor");
    put_decoder(&o);
    put_model(&o, t, &pieces);
    json_end(&o, '}');
    enum status status = json_out_status(&o);
    if (status == OK) status = file_write(path, o.text, o.used);
    json_out_free(&o);
    free(pieces.entry);
    return status;
}
