#define _GNU_SOURCE // sched_getaffinity
#include "data/prepare.h"

#include <sched.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/json.h"
#include "base/log.h"
#include "cli/command.h"

static struct options {
    struct text_list input;
    const char *output, *tokenizer, *split;
    bool train_tokenizer, write_text;
    long vocab_size;
    double near_copy;
} options;

#define AT(field) offsetof(struct options, field)
static const struct setting rows[] = {
    {"input", SETTING_LIST, AT(input), NULL, 0, 0, NULL,
     "text: .txt or .md (one document each), .jsonl (`text` of each line), folders"},
    {"output", SETTING_TEXT, AT(output), NULL, 0, 0, NULL,
     "PREFIX of what is written: PREFIX_train.bin, PREFIX_tokenizer/ ..."},
    {"tokenizer", SETTING_TEXT, AT(tokenizer), NULL, 0, 0, NULL, "model folder or tokenizer.model to use"},
    {"train-tokenizer", SETTING_SWITCH, AT(train_tokenizer), NULL, 0, 0, NULL,
     "train a tokenizer on the training part"},
    {"vocab-size", SETTING_LONG, AT(vocab_size), "8192", 320, 1 << 20, NULL, "pieces of the tokenizer that is trained"},
    {"split", SETTING_TEXT, AT(split), "98,1,1", 0, 0, NULL, "shares of training, validation and test, by document"},
    {"near-copy", SETTING_REAL, AT(near_copy), "0.2", 0, 1, NULL,
     "a document that shares more of its text with another is only trained on; 0: off"},
    {"write-text", SETTING_SWITCH, AT(write_text), NULL, 0, 0, NULL, "also write PREFIX_valid.txt and PREFIX_test.txt"},
};
static const struct settings settings = {
    .command = "prepare",
    .summary = "turns text into token data, and trains a tokenizer",
    .usage = "--input PATH... --output PREFIX (--tokenizer DIR|FILE | --train-tokenizer --vocab-size N)",
    .row = rows,
    .n = sizeof rows / sizeof *rows,
    .options = &options,
};

static enum status parse_split(double share[SPLITS], const char *text)
{
    const char *at = text;
    double sum = 0;
    for (int s = 0; s < SPLITS; s++) {
        char *end;
        share[s] = strtod(at, &end);
        if (end == at || *end != (s + 1 < SPLITS ? ',' : '\0') || !(share[s] >= 0 && share[s] <= 1e9))
            return fail(ERR_CONFIG, "--split %s: is not three shares (give for example 98,1,1)", text);
        sum += share[s];
        at = end + 1;
    }
    if (!(share[SPLIT_TRAIN] > 0 && sum > 0))
        return fail(ERR_CONFIG, "--split %s: leaves nothing to train on (give for example 98,1,1)", text);
    return OK;
}

static enum status check_options(struct prepare_options *o, const struct common_options *common)
{
    cpu_set_t cpus;
    if (options.input.n == 0) return fail(ERR_CONFIG, "--input: is missing (name files or folders of text)");
    if (!options.output) return fail(ERR_CONFIG, "--output: is missing (give a PREFIX, such as data/text)");
    if (!options.tokenizer == !options.train_tokenizer)
        return fail(ERR_CONFIG, options.tokenizer ? "--tokenizer: contradicts --train-tokenizer (give one of them)"
                                                  : "--tokenizer: is missing (name one, or give --train-tokenizer)");
    *o = (struct prepare_options){.input = options.input.item, .inputs = options.input.n, .output = options.output,
                                  .tokenizer = options.tokenizer, .vocab_size = options.vocab_size,
                                  .threads = common->threads};
    o->split.near_copy = options.near_copy;
    o->split.seed = common->seed;
    o->write_text = options.write_text;
    if (o->threads == 0) o->threads = sched_getaffinity(0, sizeof cpus, &cpus) == 0 ? CPU_COUNT(&cpus) : 1;
    return parse_split(o->split.share, options.split);
}

// ---- output ----

static const char *const split_name[SPLITS] = {"train", "valid", "test"};

static enum status print_json(const struct prepare_result *r, double seconds)
{
    struct json_out o = {0};
    json_begin(&o, NULL, '{');
    for (int s = 0; s < SPLITS; s++) {
        json_begin(&o, split_name[s], '{');
        json_put_long(&o, "documents", r->part[s].documents);
        json_put_long(&o, "tokens", r->part[s].tokens);
        json_put_long(&o, "bytes", r->part[s].bytes);
        json_end(&o, '}');
    }
    json_put_long(&o, "empty", r->empty);
    json_put_long(&o, "near_copies", r->near_copies);
    json_put_long(&o, "ignored_files", r->ignored);
    json_put_long(&o, "vocab_size", r->vocab);
    json_put_real(&o, "seconds", seconds);
    json_end(&o, '}');
    return command_print_json(&o);
}

static void print_table(const struct prepare_result *r)
{
    printf("          documents      tokens       bytes  bytes/token\n");
    for (int s = 0; s < SPLITS; s++) {
        const struct prepare_part *p = &r->part[s];
        if (r->asked[s] > 0)
            printf("%-8s %10ld %11ld %11ld %12.2f\n", split_name[s], p->documents, p->tokens, p->bytes,
                   p->tokens ? (double)p->bytes / (double)p->tokens : 0.0);
    }
    printf("vocabulary %ld\n", r->vocab);
    if (r->near_copies) printf("kept in training as near copies of other documents: %ld\n", r->near_copies);
    if (r->empty) printf("left out because empty: %ld\n", r->empty);
    if (r->ignored) printf("files of other kinds in the folders: %ld\n", r->ignored);
}

static enum status run(int argc, char **argv)
{
    struct common_options common;
    struct prepare_options o;
    struct prepare_result r;
    bool done;
    TRY(command_start(&settings, &common, NULL, &done, argc, argv));
    if (done) return OK;
    TRY(check_options(&o, &common));
    double started = seconds_now();
    TRY(prepare(&r, &o));
    if (common.json) return print_json(&r, seconds_now() - started);
    print_table(&r);
    return OK;
}

const struct command command_prepare = {.name = "prepare", .run = run, .settings = &settings};
