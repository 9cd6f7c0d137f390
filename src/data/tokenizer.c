#include "data/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "base/files.h"
#include "base/json.h"
#include "data/sentencepiece.h"
#include "data/tokenizer_check.h"

// ---- opening ----

static enum status model_path(char path[PATH_LENGTH], const char *given)
{
    char json[PATH_LENGTH];
    if (!path_is_folder(given)) return path_join(path, "", given);
    TRY(path_join(path, given, "tokenizer.model"));
    if (path_exists(path)) return OK;
    TRY(path_join(json, given, "tokenizer.json"));
    if (path_exists(json))
        return fail(ERR_FORMAT, "%s: holds tokenizer.json without tokenizer.model, which is not supported (add the "
                    "SentencePiece tokenizer.model)", given);
    return fail(ERR_IO, "%s: has no tokenizer.model (give a folder that holds one, or the file itself)", given);
}

// "▁the" stands for " the": U+2581 is a space, one byte.
static short bytes_of(const char *piece, enum sp_kind kind)
{
    if (kind == SP_CONTROL || kind == SP_UNKNOWN) return 0;
    if (kind == SP_BYTE) return 1;
    long bytes = (long)strlen(piece);
    for (const char *at = piece; (at = strstr(at, "\xE2\x96\x81")); at += 3) bytes -= 2;
    return (short)bytes;
}

static enum status open_model(struct tokenizer *t, char *model, long bytes, const char *path)
{
    struct tokenizer_facts facts;
    struct sp_reason why;
    TRY(tokenizer_check(&facts, (uint8_t *)model, &bytes, path));
    struct tokenizer result = {.dummy_prefix = facts.dummy_prefix, .parts = facts.plain && facts.words};
    result.parts = result.parts && result.dummy_prefix;
    result.ranked = facts.plain && facts.ranked && facts.dummy_prefix;
    result.model = sp_open(model, bytes, &why);
    if (!result.model) return fail(ERR_FORMAT, "%s: SentencePiece refuses it: %s", path, why.text);
    result.pieces = sp_pieces(result.model);
    result.piece_bytes = malloc((size_t)result.pieces * sizeof *result.piece_bytes);
    if (!result.piece_bytes) {
        tokenizer_close(&result);
        return fail(ERR_MEMORY, "%s: no memory for its %ld pieces", path, result.pieces);
    }
    sp_special(result.model, &result.bos, &result.eos, &result.unk, &result.pad);
    for (long i = 0; i < result.pieces; i++) {
        enum sp_kind kind;
        const char *piece = sp_piece(result.model, (int)i, &kind);
        result.piece_bytes[i] = bytes_of(piece, kind);
    }
    *t = result;
    return OK;
}

enum status tokenizer_open(struct tokenizer *t, const char *given)
{
    char path[PATH_LENGTH], *model;
    long bytes;
    TRY(model_path(path, given));
    TRY(file_read(&model, &bytes, path, TOKENIZER_MODEL_LIMIT));
    enum status status = open_model(t, model, bytes, path);
    free(model);
    return status;
}

void tokenizer_close(struct tokenizer *t)
{
    sp_close(t->model);
    free(t->piece_bytes);
    *t = (struct tokenizer){.bos = -1, .eos = -1, .unk = -1, .pad = -1};
}

// ---- text to ids ----

enum { PART_BYTES = 2048 };

static bool is_space(const char *text, long bytes)
{
    return bytes > 0 && (*text == ' ' || (bytes >= 3 && memcmp(text, "\xE2\x96\x81", 3) == 0));
}

// The end of the part that begins at `from`: the end of the text, or a single space between two words. The next part
// begins behind that space, which the dummy prefix stands for. So long texts cost time in proportion to their length.
static long part_end(const char *text, long bytes, long from)
{
    for (long i = from + PART_BYTES; i < bytes - 1; i++) {
        if (text[i] != ' ' || is_space(text + i + 1, bytes - i - 1)) continue;
        if (text[i - 1] == ' ' || is_space(text + i - 3, 3)) continue;
        return i;
    }
    return bytes;
}

enum status tokenizer_encode(int **ids, long *n, const struct tokenizer *t, const char *text, long bytes)
{
    struct sp_reason why;
    int *out = NULL;
    long used = 0, room = 0;
    if (!utf8_valid(text, bytes)) return fail(ERR_FORMAT, "text: is not UTF-8 (convert it first)");
    for (long from = 0; from < bytes;) {
        long end = t->parts ? part_end(text, bytes, from) : bytes;
        if (!sp_encode(&out, &used, &room, t->model, text + from, end - from, &why)) {
            free(out);
            return fail(ERR_FORMAT, "text: SentencePiece cannot encode it: %s", why.text);
        }
        from = end + 1;
    }
    if (!out) out = malloc(sizeof *out); // so that the caller may free and index as always
    if (!out) return fail(ERR_MEMORY, "text: no memory for its ids");
    *ids = out;
    *n = used;
    return OK;
}

enum status tokenizer_encode_begin(int **ids, long *n, const struct tokenizer *t, const char *text, long bytes)
{
    TRY(tokenizer_encode(ids, n, t, text, bytes));
    if (t->bos < 0) return OK;
    int *grown = realloc(*ids, (size_t)(*n + 1) * sizeof *grown);
    if (!grown) {
        free(*ids);
        return fail(ERR_MEMORY, "text: no memory for its %ld ids", *n);
    }
    memmove(grown + 1, grown, (size_t)*n * sizeof *grown);
    grown[0] = t->bos;
    *ids = grown;
    ++*n;
    return OK;
}

// Encodes `before` and the text as one and cuts the ids of `before` off; *cut is false when they are not there.
static enum status encode_behind(int **ids, long *n, bool *cut, const struct tokenizer *t, char before,
                                 const char *text, long bytes)
{
    int *head;
    long head_n;
    char *whole = malloc((size_t)bytes + 1);
    if (!whole) return fail(ERR_MEMORY, "text: no memory for its %ld bytes", bytes);
    whole[0] = before;
    if (bytes) memcpy(whole + 1, text, (size_t)bytes);
    enum status status = tokenizer_encode(ids, n, t, whole, bytes + 1);
    free(whole);
    TRY(status);
    status = tokenizer_encode(&head, &head_n, t, &before, 1);
    if (status != OK) {
        free(*ids);
        return status;
    }
    *cut = head_n <= *n && memcmp(*ids, head, (size_t)head_n * sizeof *head) == 0;
    free(head);
    if (*cut) memmove(*ids, *ids + head_n, (size_t)(*n - head_n) * sizeof **ids);
    if (*cut) *n -= head_n;
    else free(*ids);
    return OK;
}

enum status tokenizer_encode_more(int **ids, long *n, const struct tokenizer *t, const char *text, long bytes)
{
    bool cut = false;
    if (!t->dummy_prefix) return tokenizer_encode(ids, n, t, text, bytes);
    TRY(encode_behind(ids, n, &cut, t, '\n', text, bytes));
    if (!cut) TRY(encode_behind(ids, n, &cut, t, '\x01', text, bytes)); // pieces of several line ends
    return cut ? OK : fail(ERR_FORMAT, "text: the tokenizer joins it with whatever stands before (use another one)");
}

int tokenizer_find(const struct tokenizer *t, const char *piece)
{
    return sp_find(t->model, piece);
}

// ---- ids to text ----

enum status tokenizer_decode(char **text, long *bytes, const struct tokenizer *t, const int *ids, long n)
{
    struct sp_reason why;
    for (long i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= t->pieces)
            return fail(ERR_FORMAT, "token %d: is not one of the tokenizer's %ld pieces", ids[i], t->pieces);
    }
    if (!sp_decode(text, bytes, t->model, ids, n, &why))
        return fail(ERR_FORMAT, "tokens: SentencePiece cannot decode them: %s", why.text);
    return OK;
}

// How many ids at the end are bytes that begin a character without finishing it.
static long unfinished(const struct tokenizer *t, const int *ids, long n)
{
    for (long back = 1; back <= 3 && back <= n; back++) {
        enum sp_kind kind;
        if (ids[n - back] < 0 || ids[n - back] >= t->pieces) return 0; // decoding will say so
        const char *piece = sp_piece(t->model, ids[n - back], &kind);
        if (kind != SP_BYTE) return 0;
        long byte = strtol(piece + 1, NULL, 16); // <0xE4>
        if (byte < 0x80) return 0;
        long length = byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : byte >= 0xC0 ? 2 : 0;
        if (length > 0) return back < length ? back : 0;
    }
    return 0;
}

enum status tokenizer_decode_next(char **more, long *shown, const struct tokenizer *t, const int *ids, long n)
{
    char *text;
    long bytes;
    TRY(tokenizer_decode(&text, &bytes, t, ids, n - unfinished(t, ids, n)));
    long from = *shown < bytes ? *shown : bytes;
    memmove(text, text + from, (size_t)(bytes - from) + 1);
    *shown = bytes;
    *more = text;
    return OK;
}

// ---- folders ----

static const char *piece_text(const struct tokenizer *t, int id)
{
    enum sp_kind kind;
    return id < 0 ? NULL : sp_piece(t->model, id, &kind);
}

static void put_tokens(struct json_out *o, const struct tokenizer *t)
{
    if (t->bos >= 0) json_put_text(o, "bos_token", piece_text(t, t->bos));
    if (t->eos >= 0) json_put_text(o, "eos_token", piece_text(t, t->eos));
    if (t->pad >= 0) json_put_text(o, "pad_token", piece_text(t, t->pad));
    if (t->unk >= 0) json_put_text(o, "unk_token", piece_text(t, t->unk));
}

static enum status write_json(const char *folder, const char *name, struct json_out *o)
{
    char path[PATH_LENGTH];
    enum status status = json_out_status(o);
    if (status == OK) status = path_join(path, folder, name);
    if (status == OK) status = file_write(path, o->text, o->used);
    json_out_free(o);
    return status;
}

enum status tokenizer_write_folder(const char *folder, const char *model_file, const struct tokenizer *t)
{
    char path[PATH_LENGTH];
    TRY(folder_make(folder));
    if (model_file) {
        TRY(path_join(path, folder, "tokenizer.model"));
        TRY(file_copy(path, model_file));
    }
    struct json_out config = {0};
    json_begin(&config, NULL, '{');
    json_put_bool(&config, "add_bos_token", t->bos >= 0);
    json_put_bool(&config, "add_eos_token", false);
    json_put_bool(&config, "clean_up_tokenization_spaces", false);
    json_put_bool(&config, "legacy", true); // text behind special tokens gets a dummy prefix, as in tokenizer_encode
    put_tokens(&config, t);
    // LlamaTokenizer is built anew by some versions of transformers and then treats leading spaces differently; this
    // class takes tokenizer.json as it is.
    json_put_text(&config, "tokenizer_class", t->ranked ? "PreTrainedTokenizerFast" : "LlamaTokenizer");
    json_end(&config, '}');
    TRY(write_json(folder, "tokenizer_config.json", &config));
    if (t->ranked) TRY(tokenizer_write_json(folder, t));

    struct json_out special = {0};
    json_begin(&special, NULL, '{');
    put_tokens(&special, t);
    json_end(&special, '}');
    TRY(write_json(folder, "special_tokens_map.json", &special));

    struct json_out generation = {0};
    json_begin(&generation, NULL, '{');
    if (t->bos >= 0) json_put_long(&generation, "bos_token_id", t->bos);
    if (t->eos >= 0) json_put_long(&generation, "eos_token_id", t->eos);
    if (t->pad >= 0) json_put_long(&generation, "pad_token_id", t->pad);
    json_end(&generation, '}');
    return write_json(folder, "generation_config.json", &generation);
}

enum status tokenizer_copy_folder(const char *to, const char *from)
{
    static const char *const name[] = {"tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
                                       "tokenizer.json",
                                       "added_tokens.json", "chat_template.jinja", "generation_config.json"};
    char source[PATH_LENGTH], target[PATH_LENGTH];
    TRY(folder_make(to));
    for (unsigned i = 0; i < sizeof name / sizeof *name; i++) {
        TRY(path_join(source, from, name[i]));
        TRY(path_join(target, to, name[i]));
        if (path_exists(source)) TRY(file_copy(target, source));
    }
    return OK;
}
