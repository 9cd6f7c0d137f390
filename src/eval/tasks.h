// Multiple-choice tasks: a file of JSON lines
//
//     {"task": "name", "prompt": "The capital of France is", "choices": [" Paris", " Rome"], "answer": 0}
//
// (task is optional: the file's name without its ending). Each choice is scored by the sum of its tokens'
// log-probabilities after the prompt, divided by its bytes of text; the highest score is the model's answer, the first
// of equals.
#ifndef SKYMOE_EVAL_TASKS_H
#define SKYMOE_EVAL_TASKS_H

#include "eval/inference.h"

enum { TASK_NAME = 64 };
struct task {
    char name[TASK_NAME];
    long questions, correct;
};
struct tasks {
    struct task *item; // in order of appearance; freed with tasks_free
    long n;
};
// ERR_FORMAT names file and line. A question longer than the model's positions is ERR_FORMAT too.
MUST_USE enum status evaluate_tasks(struct tasks *tasks, struct inference *i, const char *path);
void tasks_free(struct tasks *tasks);

#endif
