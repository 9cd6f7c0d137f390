#include "data/prepare.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "data/dataset.h"

static const char *const split_name[SPLITS] = {"train", "valid", "test"};

static enum status path_with(char path[PATH_LENGTH], const char *prefix, const char *name, const char *ending)
{
    if (snprintf(path, PATH_LENGTH, "%s_%s%s", prefix, name, ending) >= PATH_LENGTH)
        return fail(ERR_IO, "--output %.200s...: the path is longer than %d bytes (use a shorter one)", prefix,
                    PATH_LENGTH - 1);
    return OK;
}

// ---- tokenizer ----

static enum status train_on(const struct prepare_options *o, const struct corpus *c, const char *path)
{
    struct text *text = malloc((size_t)c->documents * sizeof *text);
    struct tokenizer_training t = {.text = text, .vocab_size = o->vocab_size, .threads = o->threads, .path = path};
    if (!text) return fail(ERR_MEMORY, "tokenizer: no memory for a list of %ld documents", c->documents);
    for (long i = 0; i < c->documents; i++)
        if (c->document[i].split == SPLIT_TRAIN) text[t.texts++] = c->document[i].text;
    double started = seconds_now();
    log_line("training a tokenizer of %ld pieces", o->vocab_size);
    enum status status = tokenizer_train(&t);
    if (status == OK) log_line("trained in %.1f s", seconds_now() - started);
    free(text);
    return status;
}

static enum status open_given(struct tokenizer *t, const char *given, const char *folder)
{
    TRY(tokenizer_open(t, given));
    if (path_is_folder(given)) return tokenizer_copy_folder(folder, given);
    return tokenizer_write_folder(folder, given, t);
}

static enum status open_trained(struct tokenizer *t, const struct prepare_options *o, const struct corpus *c,
                                const char *folder)
{
    char path[PATH_LENGTH];
    TRY(path_join(path, folder, "tokenizer.model"));
    TRY(folder_make(folder));
    TRY(train_on(o, c, path));
    TRY(tokenizer_open(t, path));
    return tokenizer_write_folder(folder, NULL, t);
}

// ---- encoding ----

struct encoded {
    int *ids;
    long n;
};
struct job { // a batch of documents that all threads take from
    const struct tokenizer *tokenizer;
    const struct document *document;
    struct encoded *encoded;
    long documents;
    atomic_long next;
    atomic_int status;
    char message[512]; // of the thread that set `status` first
};

static enum status encode_document(struct encoded *e, const struct tokenizer *t, const struct text *text)
{
    int *ids;
    long n, used = 0;
    TRY(tokenizer_encode(&ids, &n, t, text->data, text->bytes));
    e->ids = malloc((size_t)(n + 2) * sizeof *e->ids);
    if (e->ids) {
        if (t->bos >= 0) e->ids[used++] = t->bos;
        memcpy(e->ids + used, ids, (size_t)n * sizeof *ids);
        used += n;
        if (t->eos >= 0) e->ids[used++] = t->eos;
    }
    e->n = used;
    free(ids);
    return e->ids ? OK : fail(ERR_MEMORY, "input: no memory for the tokens of a document");
}

static void *work(void *context)
{
    struct job *j = context;
    long i;
    while (j->status == OK && (i = atomic_fetch_add(&j->next, 1)) < j->documents) {
        enum status status = encode_document(&j->encoded[i], j->tokenizer, &j->document[i].text);
        int none = OK;
        if (status != OK && atomic_compare_exchange_strong(&j->status, &none, (int)status))
            snprintf(j->message, sizeof j->message, "%s", fail_message());
    }
    return NULL;
}

enum { THREADS_MAX = 64 };

static enum status run_job(struct job *j, long threads)
{
    pthread_t thread[THREADS_MAX];
    long started = 0;
    if (threads > THREADS_MAX) threads = THREADS_MAX;
    while (started < threads - 1 && pthread_create(&thread[started], NULL, work, j) == 0) started++;
    work(j); // this thread works too, so a refused thread only costs time
    for (long i = 0; i < started; i++) pthread_join(thread[i], NULL);
    return j->status == OK ? OK : fail((enum status)j->status, "%s", j->message);
}

// ---- writing ----

struct writing {
    struct dataset_writer writer[SPLITS];
    bool open[SPLITS];
    struct prepare_result *r;
    struct progress progress;
    long bytes; // encoded so far
};

static enum status write_batch(struct writing *w, const struct job *j)
{
    for (long i = 0; i < j->documents; i++) {
        int s = j->document[i].split;
        TRY(dataset_writer_add(&w->writer[s], j->encoded[i].ids, j->encoded[i].n));
        w->r->part[s].tokens += j->encoded[i].n;
        w->bytes += j->document[i].text.bytes;
    }
    progress_at(&w->progress, (double)w->bytes / 1e6, NULL);
    return OK;
}

static enum status encode_batch(struct writing *w, const struct tokenizer *t, const struct document *d, long n,
                                long threads)
{
    struct job job = {.tokenizer = t, .document = d, .documents = n};
    job.encoded = calloc((size_t)n, sizeof *job.encoded);
    if (!job.encoded) return fail(ERR_MEMORY, "input: no memory to encode %ld documents", n);
    enum status status = run_job(&job, threads);
    if (status == OK) status = write_batch(w, &job);
    for (long i = 0; i < n; i++) free(job.encoded[i].ids);
    free(job.encoded);
    return status;
}

enum { BATCH_BYTES = 4 << 20 };

static enum status encode_all(struct writing *w, const struct prepare_options *o, const struct corpus *c,
                              const struct tokenizer *t)
{
    char path[PATH_LENGTH];
    for (int s = 0; s < SPLITS; s++) {
        if (w->r->part[s].documents == 0) continue;
        TRY(path_with(path, o->output, split_name[s], ""));
        TRY(dataset_writer_open(&w->writer[s], path, t->pieces));
        w->open[s] = true;
    }
    for (long first = 0, end; first < c->documents; first = end) {
        long bytes = 0;
        for (end = first; end < c->documents && bytes < BATCH_BYTES; end++) bytes += c->document[end].text.bytes;
        TRY(encode_batch(w, t, c->document + first, end - first, o->threads));
    }
    for (int s = 0; s < SPLITS; s++) {
        if (!w->open[s]) continue;
        w->open[s] = false;
        TRY(dataset_writer_commit(&w->writer[s]));
    }
    return OK;
}

// The text that evaluations are about, to be read or given to other compressors.
static enum status write_text(const struct prepare_options *o, const struct corpus *c, int s)
{
    char path[PATH_LENGTH];
    struct output out;
    TRY(path_with(path, o->output, split_name[s], ".txt"));
    TRY(output_open(&out, path));
    enum status status = OK;
    for (long i = 0; i < c->documents && status == OK; i++)
        if (c->document[i].split == s) status = output_write(&out, c->document[i].text.data, c->document[i].text.bytes);
    if (status == OK) return output_commit(&out, NULL);
    output_abort(&out);
    return status;
}

// What an earlier run left under a name that this one does not write would be taken for its part.
static enum status remove_absent(const struct prepare_options *o, const struct prepare_result *r)
{
    static const char *const ending[] = {".idx", ".bin", ".txt"};
    char path[PATH_LENGTH];
    for (int s = 0; s < SPLITS; s++) {
        for (int e = 0; e < 3 && r->part[s].documents == 0; e++) {
            TRY(path_with(path, o->output, split_name[s], ending[e]));
            if (unlink(path) != 0 && errno != ENOENT)
                return fail(ERR_IO, "%s: from an earlier run, cannot be removed: %s", path, strerror(errno));
        }
    }
    return OK;
}

static enum status write_parts(struct prepare_result *r, const struct prepare_options *o, const struct corpus *c,
                               const struct tokenizer *t)
{
    struct writing w = {.r = r, .progress = progress_start("encoding", "MB", (double)c->bytes / 1e6)};
    r->vocab = t->pieces;
    TRY(remove_absent(o, r));
    enum status status = encode_all(&w, o, c, t);
    for (int s = 0; s < SPLITS; s++)
        if (w.open[s]) dataset_writer_abort(&w.writer[s]);
    progress_end(&w.progress, NULL);
    for (int s = SPLIT_TRAIN + 1; o->write_text && s < SPLITS && status == OK; s++)
        if (r->part[s].documents > 0) status = write_text(o, c, s);
    return status;
}

// ---- all together ----

static enum status make_parent(const char *prefix)
{
    char parent[PATH_LENGTH];
    TRY(path_with(parent, prefix, "", ""));
    char *slash = strrchr(parent, '/');
    if (!slash || slash == parent) return OK;
    *slash = '\0';
    return folder_make(parent);
}

static enum status split_corpus(struct prepare_result *r, const struct prepare_options *o, struct corpus *c)
{
    const double *share = o->split.share;
    TRY(split_documents(c, &o->split, &r->near_copies));
    for (long i = 0; i < c->documents; i++) {
        struct prepare_part *p = &r->part[c->document[i].split];
        p->documents++;
        p->bytes += c->document[i].text.bytes;
    }
    for (int s = 0; s < SPLITS; s++) {
        r->asked[s] = share[s] / (share[0] + share[1] + share[2]);
        double got = (double)r->part[s].bytes / (double)c->bytes;
        if (s != SPLIT_TRAIN && got < 0.9 * r->asked[s])
            log_warning("%s: has %.2f %% of the text, less than the %.2f %% asked for (%s)", split_name[s], 100 * got,
                        100 * r->asked[s],
                        r->near_copies ? "documents are large, or near copies of others" : "documents are large");
    }
    if (r->part[SPLIT_TRAIN].documents == 0)
        return fail(ERR_FORMAT, "input: no document is left to train on (give more text, or another --split)");
    return OK;
}

static enum status prepare_corpus(struct prepare_result *r, const struct prepare_options *o, struct corpus *c)
{
    char folder[PATH_LENGTH];
    struct tokenizer t = {0};
    TRY(corpus_read(c, o->input, o->inputs));
    r->empty = c->empty;
    r->ignored = c->ignored;
    if (c->documents == 0)
        return fail(ERR_FORMAT, "%s: holds no text (expected .txt, .md or .jsonl files that are not empty)",
                    o->input[0]);
    log_line("read %.1f MB of text in %ld documents", (double)c->bytes / 1e6, c->documents);
    TRY(split_corpus(r, o, c));
    TRY(make_parent(o->output));
    TRY(path_with(folder, o->output, "tokenizer", ""));
    enum status status = o->tokenizer ? open_given(&t, o->tokenizer, folder) : open_trained(&t, o, c, folder);
    if (status == OK) status = write_parts(r, o, c, &t);
    if (t.model) tokenizer_close(&t);
    return status;
}

enum status prepare(struct prepare_result *r, const struct prepare_options *o)
{
    struct corpus c;
    *r = (struct prepare_result){0};
    enum status status = prepare_corpus(r, o, &c);
    corpus_close(&c);
    return status;
}
