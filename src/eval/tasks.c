#include "eval/tasks.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "eval/sample.h"
#include "model/decode.h"

enum { FILE_BYTES = 1 << 30, CHOICES = 64 };

struct question {
    const char *prompt;
    const char *choice[CHOICES];
    long choices, answer;
};

void tasks_free(struct tasks *tasks)
{
    free(tasks->item);
    *tasks = (struct tasks){0};
}

static enum status task_of(struct task **task, struct tasks *tasks, const char *name)
{
    for (long i = 0; i < tasks->n; i++) {
        *task = &tasks->item[i];
        if (!strcmp((*task)->name, name)) return OK;
    }
    struct task *grown = realloc(tasks->item, (size_t)(tasks->n + 1) * sizeof *grown);
    if (!grown) return fail(ERR_MEMORY, "memory: the table of tasks was refused (free some memory)");
    tasks->item = grown;
    *task = &grown[tasks->n++];
    **task = (struct task){0};
    memcpy((*task)->name, name, strlen(name));
    return OK;
}

static enum status read_question(struct question *q, const cJSON *line, const char *where)
{
    const cJSON *choices = cJSON_GetObjectItemCaseSensitive(line, "choices"), *choice;
    q->choices = 0;
    TRY(json_text(&q->prompt, line, "prompt", NULL, where));
    if (!q->prompt || !cJSON_IsArray(choices))
        return fail(ERR_FORMAT, "%s: expected {\"prompt\": text, \"choices\": [texts], \"answer\": index}", where);
    cJSON_ArrayForEach(choice, choices)
    {
        if (!cJSON_IsString(choice) || !*choice->valuestring || q->choices == CHOICES)
            return fail(ERR_FORMAT, "%s: choices is not a list of 2 to %d texts", where, CHOICES);
        q->choice[q->choices++] = choice->valuestring;
    }
    if (q->choices < 2) return fail(ERR_FORMAT, "%s: choices is not a list of 2 to %d texts", where, CHOICES);
    TRY(json_long(&q->answer, line, "answer", -1, 0, q->choices - 1, where));
    return q->answer >= 0 ? OK : fail(ERR_FORMAT, "%s: answer is missing (give the index of the right choice)", where);
}

// ---- scoring ----

// ids = [bos] prompt choice; *from = first of them that belongs to the choice.
static enum status encode(int **ids, long *n, long *from, const struct tokenizer *t, const char *prompt,
                          const char *text)
{
    int *before;
    long before_n;
    TRY(tokenizer_encode_begin(&before, &before_n, t, prompt, (long)strlen(prompt)));
    enum status status = tokenizer_encode_begin(ids, n, t, text, (long)strlen(text));
    for (*from = 0; status == OK && *from < before_n && *from < *n && before[*from] == (*ids)[*from];) ++*from;
    if (*from == 0) *from = 1; // the first token of all has no probability
    free(before);
    return status;
}

// Sum of log-probabilities of ids[from..n).
static enum status score_ids(double *sum, struct kv_cache *kv, const int *ids, long n, long from, const char *where)
{
    long V = kv->m->c.V;
    *sum = 0;
    if (n > kv->max_tokens)
        return fail(ERR_FORMAT, "%s: prompt and choice have %ld tokens, more than the model's %ld positions", where, n,
                    kv->max_tokens);
    float *logits = malloc((size_t)(n * V) * sizeof *logits);
    if (!logits) return fail(ERR_MEMORY, "memory: logits of %ld tokens were refused (use shorter prompts)", n);
    kv_cache_drop(kv, 0);
    enum status status = kv_append(kv, 0, ids, n, NULL, logits);
    if (status == ERR_CONFIG) status = fail(ERR_FORMAT, "%s: %s", where, fail_message());
    for (long i = from; i < n && status == OK; i++) {
        const float *row = logits + (i - 1) * V;
        *sum += (double)row[ids[i]] - log_sum_exp(row, V);
    }
    free(logits);
    return status;
}

static enum status score(double *value, struct inference *i, struct kv_cache *kv, const char *prompt,
                         const char *choice, const char *where)
{
    size_t room = strlen(prompt) + strlen(choice) + 1;
    char *text = malloc(room);
    int *ids;
    long n, from;
    if (!text) return fail(ERR_MEMORY, "memory: a question's text was refused (free some memory)");
    snprintf(text, room, "%s%s", prompt, choice);
    enum status status = encode(&ids, &n, &from, &i->tokenizer, prompt, text);
    free(text);
    TRY(status);
    status = score_ids(value, kv, ids, n, from, where);
    free(ids);
    *value /= (double)strlen(choice);
    return status;
}

static enum status answer(struct tasks *tasks, struct inference *i, struct kv_cache *kv, const cJSON *line,
                          const char *fallback, const char *where)
{
    struct question q;
    struct task *task = NULL;
    const char *name = NULL;
    long best = 0;
    double highest = -INFINITY;
    TRY(read_question(&q, line, where));
    TRY(json_text(&name, line, "task", fallback, where));
    if (strlen(name) >= TASK_NAME) return fail(ERR_FORMAT, "%s: task has more than %d bytes", where, TASK_NAME - 1);
    TRY(task_of(&task, tasks, name));
    for (long c = 0; c < q.choices; c++) {
        double value = 0;
        TRY(score(&value, i, kv, q.prompt, q.choice[c], where));
        if (!(value > highest)) continue;
        highest = value;
        best = c;
    }
    task->questions++;
    task->correct += best == q.answer;
    return OK;
}

static enum status answer_lines(struct tasks *tasks, struct inference *i, struct kv_cache *kv, const char *text,
                                const char *path)
{
    char name[TASK_NAME], where[PATH_LENGTH + 32];
    const char *slash = strrchr(path, '/'), *file = slash ? slash + 1 : path;
    snprintf(name, sizeof name, "%.*s", (int)strcspn(file, "."), file);
    long number = 0;
    for (const char *line = text; *line;) {
        long bytes = (long)strcspn(line, "\n");
        snprintf(where, sizeof where, "%s:%ld", path, ++number);
        if (strspn(line, " \t\r") < (size_t)bytes) {
            cJSON *json;
            TRY(json_parse(&json, line, bytes, where));
            enum status status = answer(tasks, i, kv, json, name, where);
            cJSON_Delete(json);
            TRY(status);
        }
        line += bytes + (line[bytes] == '\n');
    }
    return tasks->n ? OK : fail(ERR_FORMAT, "%s: holds no questions", path);
}

enum status evaluate_tasks(struct tasks *tasks, struct inference *i, const char *path)
{
    struct kv_cache kv;
    char *text;
    long bytes;
    *tasks = (struct tasks){0};
    TRY(inference_need_tokenizer(i));
    TRY(file_read(&text, &bytes, path, FILE_BYTES));
    enum status status = kv_cache_init(&kv, &i->model, 1, i->model.o.positions, i->model.o.positions);
    if (status == OK) {
        status = answer_lines(tasks, i, &kv, text, path);
        kv_cache_free(&kv);
    }
    free(text);
    if (status != OK) tasks_free(tasks);
    return status;
}
