// One micro-batch: B sequences of S tokens, token t = sequence * S + position in it.
#ifndef SKYMOE_MODEL_BATCH_H
#define SKYMOE_MODEL_BATCH_H

struct batch {
    long B, S;
    int *token;    // [T]
    int *target;   // [T] next token; -1: no loss here
    int *position; // [T] for rope: index within the document (within the sequence when documents are not masked)
    int *start;    // [T] index within the sequence of the first key this token sees
};

#endif
