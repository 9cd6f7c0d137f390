// Token ids as people give them: "1,5,9", or a file that holds them.
#ifndef SKYMOE_CLI_IDS_H
#define SKYMOE_CLI_IDS_H

#include <stdbool.h>

#include "base/status.h"

// Whole numbers from 0, separated by commas or white space. `option` begins messages. The caller frees *ids.
MUST_USE enum status ids_parse(int **ids, long *n, const char *text, const char *option);
// The same; text that is not such a list is the name of a file that holds one.
MUST_USE enum status ids_read(int **ids, long *n, const char *text_or_file, const char *option);
bool ids_are_listed(const char *text_or_file);
// An id from `end` on fails: as ERR_CONFIG, or ERR_FORMAT when the ids were read from a file. `source` begins messages.
MUST_USE enum status ids_check(const int *ids, long n, long end, enum status wrong, const char *source);

#endif
