// Which documents are trained on and which are held out. Internal to data/.
//
// Documents are taken in the order of a counter-based number of (seed, hash of the text): test and validation take what
// fits into their share of the bytes, training gets the rest. So the choice does not depend on file names or order.
//
// A near copy never leaves training. A document's fingerprints are the hashes, divisible by P, of every 48
// consecutive bytes of its text, white space left out (P is 8, or the power of two that keeps the corpus below 2^24
// fingerprints); a document of which more than the share `near_copy` of the distinct fingerprints occur in another
// document stays in training, as does one whose text occurs twice.
#ifndef SKYMOE_DATA_SPLIT_H
#define SKYMOE_DATA_SPLIT_H

#include "data/corpus.h"

enum split { SPLIT_TRAIN, SPLIT_VALID, SPLIT_TEST, SPLITS };

struct split_options {
    double share[SPLITS]; // relative
    double near_copy;     // 0: copies are not looked for
    long seed;
};
// *kept: near copies that their number would have held out. ERR_MEMORY.
MUST_USE enum status split_documents(struct corpus *c, const struct split_options *o, long *kept);

#endif
