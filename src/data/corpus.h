// The documents that `prepare` is given, as text in memory: a .txt or .md file is one document, a .jsonl file has one
// in the field `text` of each line. Internal to data/.
#ifndef SKYMOE_DATA_CORPUS_H
#define SKYMOE_DATA_CORPUS_H

#include "base/files.h"
#include "data/tokenizer.h"

struct document {
    struct text text;
    uint64_t hash;  // of the text: what a document draws does not depend on its name or place
    int split;      // enum split
};
struct corpus {
    struct document *document; // in the order of the inputs, folders and files sorted by bytes
    long documents, room;
    long bytes;                // of text
    long empty;                // documents of white space only, left out
    long ignored;              // files in folders with other endings
    struct file_map *map;      // .txt and .md files, which documents point into
    long maps, maps_room;
    char **line;               // texts of .jsonl documents
    long lines, lines_room;
};
// Every file below folders that does not begin with '.'; links to folders are not followed. ERR_CONFIG: a file of
// another kind named as input. ERR_IO, ERR_FORMAT: a file that cannot be read, is not UTF-8, has a NUL or, as .jsonl, a
// line that is not an object with `text`; the file (and line) is named. The caller ends with corpus_close in any case.
MUST_USE enum status corpus_read(struct corpus *c, const char *const *input, long inputs);
void corpus_close(struct corpus *c);

#endif
