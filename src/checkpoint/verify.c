#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "checkpoint/checksums.h"
#include "checkpoint/folder.h"

enum { CHECKSUMS_LIMIT = 64 << 20 };

static enum status verify_file(const char *folder, const cJSON *file, const char *checksums)
{
    char path[PATH_LENGTH];
    long bytes, found_bytes;
    uint64_t found;
    const char *hex;
    if (file->string[0] == '/' || file->string[0] == '\0' || strstr(file->string, ".."))
        return fail(ERR_FORMAT, "%s: \"%.80s\" is not a file of this folder", checksums, file->string);
    if (!cJSON_IsObject(file)) return fail(ERR_FORMAT, "%s: %.80s is not an object", checksums, file->string);
    TRY(json_long(&bytes, file, "bytes", -1, 0, 1L << 53, checksums));
    TRY(json_text(&hex, file, "xxh3", "", checksums));
    TRY(path_join(path, folder, file->string));
    if (!path_exists(path)) return fail(ERR_FORMAT, "%s: the file is missing (checksums.json lists it)", path);
    TRY(checksum_file(&found, &found_bytes, path));
    if (found_bytes != bytes)
        return fail(ERR_FORMAT, "%s: has %ld bytes, but checksums.json says %ld (it is damaged)", path, found_bytes,
                    bytes);
    char found_hex[17];
    snprintf(found_hex, sizeof found_hex, "%016lx", (unsigned long)found);
    if (strcmp(found_hex, hex) != 0)
        return fail(ERR_FORMAT, "%s: its checksum differs from checksums.json (it is damaged)", path);
    return OK;
}

static enum status verify_files(const char *folder, const cJSON *json, const char *checksums, long part, long parts)
{
    const char *algorithm;
    if (!cJSON_IsObject(json)) return fail(ERR_FORMAT, "%s: not a JSON object", checksums);
    TRY(json_text(&algorithm, json, "algorithm", "", checksums));
    if (strcmp(algorithm, "XXH3-64") != 0)
        return fail(ERR_FORMAT, "%s: algorithm is \"%.40s\", expected XXH3-64", checksums, algorithm);
    const cJSON *files = cJSON_GetObjectItemCaseSensitive(json, "files");
    if (!cJSON_IsObject(files)) return fail(ERR_FORMAT, "%s: files is missing", checksums);
    long i = 0;
    for (const cJSON *file = files->child; file; file = file->next)
        if (i++ % parts == part) TRY(verify_file(folder, file, checksums));
    return OK;
}

enum status folder_verify(const char *path)
{
    return folder_verify_share(path, 0, 1);
}

enum status folder_verify_share(const char *path, long part, long parts)
{
    char checksums[PATH_LENGTH];
    cJSON *json;
    TRY(path_join(checksums, path, "checksums.json"));
    if (!path_exists(checksums))
        return fail(ERR_IO, "%s: has no checksums.json (only folders that skymoe wrote can be verified)", path);
    TRY(json_read(&json, checksums, CHECKSUMS_LIMIT));
    enum status status = verify_files(path, json, checksums, part, parts);
    cJSON_Delete(json);
    return status;
}
