// SentencePiece (C++) as plain C functions. Internal to data/: tokenizer.h is the interface. No exception leaves,
// nothing is printed; what a model file could break is checked before (tokenizer_check.h). A failure writes its reason
// to `why`.
#ifndef SKYMOE_DATA_SENTENCEPIECE_H
#define SKYMOE_DATA_SENTENCEPIECE_H

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

struct sp_reason {
    char text[256];
};
enum sp_kind { SP_NORMAL, SP_CONTROL, SP_UNKNOWN, SP_BYTE };

void *sp_open(const void *model, long bytes, struct sp_reason *why); // NULL: why
void sp_close(void *sp);
long sp_pieces(const void *sp);
void sp_special(const void *sp, int *bos, int *eos, int *unk, int *pad); // -1: none
const char *sp_piece(const void *sp, int id, enum sp_kind *kind);        // NUL-terminated, owned by sp
int sp_find(const void *sp, const char *piece);                          // -1: none

// Appends to *ids (malloc'd, *n used of *room). May be called by several threads at once.
bool sp_encode(int **ids, long *n, long *room, const void *sp, const char *text, long bytes, struct sp_reason *why);
// *text is malloc'd and NUL-terminated. Ids must be within [0, pieces).
bool sp_decode(char **text, long *bytes, const void *sp, const int *ids, long n, struct sp_reason *why);

// Trains BPE; line(context, i) for i in [0, lines) gives the text, valid until the next call. *model is malloc'd.
struct sp_line {
    const char *text;
    long bytes;
};
struct sp_training {
    struct sp_line (*line)(void *context, long i);
    void *context;
    long lines;
    long vocab_size, threads;
};
bool sp_train(char **model, long *bytes, const struct sp_training *t, struct sp_reason *why);

#ifdef __cplusplus
}
#endif
#endif
