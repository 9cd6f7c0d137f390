#include "cli/ids.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/files.h"

enum status ids_parse(int **ids, long *n, const char *text, const char *option)
{
    static const char between[] = ", \t\r\n";
    *n = 0;
    *ids = malloc((strlen(text) / 2 + 1) * sizeof **ids);
    if (!*ids) return fail(ERR_MEMORY, "%s: no memory for the token ids", option);
    for (const char *c = text + strspn(text, between); *c; c += strspn(c, between)) {
        char *end = NULL;
        long id = *c >= '0' && *c <= '9' ? strtol(c, &end, 10) : -1;
        if (id < 0 || id > INT_MAX || (*end && !strchr(between, *end))) {
            enum status status =
                fail(ERR_CONFIG, "%s: '%.20s' is not a token id (give whole numbers: 1,5,9)", option, c);
            free(*ids);
            return status;
        }
        (*ids)[(*n)++] = (int)id;
        c = end;
    }
    if (*n) return OK;
    free(*ids);
    return fail(ERR_CONFIG, "%s: no token ids are given (give whole numbers: 1,5,9)", option);
}

bool ids_are_listed(const char *text_or_file)
{
    return text_or_file[strspn(text_or_file, "0123456789, -")] == '\0' && !path_exists(text_or_file);
}

enum status ids_check(const int *ids, long n, long end, enum status wrong, const char *source)
{
    for (long i = 0; i < n; i++)
        if (ids[i] >= end)
            return fail(wrong, "%s: there is no token %d (use ids from 0 to %ld)", source, ids[i], end - 1);
    return OK;
}

enum status ids_read(int **ids, long *n, const char *text_or_file, const char *option)
{
    if (ids_are_listed(text_or_file)) return ids_parse(ids, n, text_or_file, option);
    char *text;
    long bytes;
    TRY(file_read(&text, &bytes, text_or_file, 1L << 30));
    enum status status = (long)strlen(text) == bytes ? ids_parse(ids, n, text, text_or_file)
                                                     : fail(ERR_FORMAT, "%s: is not a text of token ids", text_or_file);
    if (status == ERR_CONFIG) status = fail(ERR_FORMAT, "%s", fail_message());
    free(text);
    return status;
}
