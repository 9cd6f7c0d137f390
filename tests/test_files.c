// Files: what is read, what a failing disk leaves, checksums.
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/files.h"
#include <cmocka.h> // last: it defines fail()

static char folder[PATH_LENGTH];

static const char *at(const char *name) // a path in the temporary folder; valid until four calls later
{
    static char path[4][PATH_LENGTH];
    static int next;
    char *p = path[next++ % 4];
    assert_int_equal(path_join(p, folder, name), OK);
    return p;
}

static int make_folder(void **state)
{
    (void)state;
    const char *tmp = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/skymoe-files-XXXXXX", tmp ? tmp : "/tmp");
    files_fail_write(0);
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    files_fail_write(0);
    return folder_remove(folder) == OK ? 0 : -1;
}

static void assert_content(const char *path, const char *expected)
{
    char *text;
    long bytes;
    assert_int_equal(file_read(&text, &bytes, path, 1 << 20), OK);
    assert_string_equal(text, expected);
    assert_int_equal(bytes, strlen(expected));
    free(text);
}

static void assert_message(const char *part)
{
    if (!strstr(fail_message(), part)) fail_msg("'%s' does not contain '%s'", fail_message(), part);
}

static void test_write_and_read(void **state)
{
    (void)state;
    assert_int_equal(file_write(at("a"), "hello", 5), OK);
    assert_content(at("a"), "hello");
    struct file_map map;
    assert_int_equal(file_map_open(&map, at("a")), OK);
    assert_int_equal(map.bytes, 5);
    assert_memory_equal(map.data, "hello", 5);
    file_map_close(&map);
    assert_int_equal(file_write(at("empty"), NULL, 0), OK);
    assert_int_equal(file_map_open(&map, at("empty")), OK);
    assert_int_equal(map.bytes, 0);
    assert_null(map.data);
    file_map_close(&map);
    assert_content(at("empty"), "");
    assert_int_equal(file_copy(at("b"), at("a")), OK);
    assert_content(at("b"), "hello");
    assert_false(path_exists(at("a.tmp")));
}

static void test_large_output(void **state)
{
    (void)state;
    enum { BYTES = 13 << 20 };
    char *data = malloc(BYTES);
    for (long i = 0; i < BYTES; i++) data[i] = (char)(i * 7 + (i >> 11));
    struct output o;
    assert_int_equal(output_open(&o, at("large")), OK);
    for (long i = 0, n = 1; i < BYTES; i += n, n = n * 5 / 3 + 1) { // pieces below, near and above the buffer
        if (n > BYTES - i) n = BYTES - i;
        assert_int_equal(output_write(&o, data + i, n), OK);
    }
    assert_int_equal(o.written, BYTES);
    struct output edge; // one byte more than fits in the buffer
    assert_int_equal(output_open(&edge, at("edge")), OK);
    assert_int_equal(output_write(&edge, data, 2), OK);
    assert_int_equal(output_write(&edge, data, (4 << 20) - 1), OK);
    assert_int_equal(output_write(&edge, data, (4 << 20) - 1), OK);
    assert_int_equal(output_write(&edge, data, 1), OK); // fills it
    output_abort(&edge);
    assert_false(path_exists(at("large"))); // not before the commit
    uint64_t hash;
    assert_int_equal(output_commit(&o, &hash), OK);
    struct file_map map;
    assert_int_equal(file_map_open(&map, at("large")), OK);
    assert_int_equal(map.bytes, BYTES);
    assert_memory_equal(map.data, data, BYTES);
    assert_true(hash == xxh3(data, BYTES));
    file_map_close(&map);
    free(data);
}

static void test_print_and_abort(void **state)
{
    (void)state;
    char line[2000];
    memset(line, 'x', sizeof line - 1);
    line[sizeof line - 1] = '\0';
    assert_int_equal(file_write(at("f"), "old", 3), OK);
    struct output o;
    assert_int_equal(output_open(&o, at("f")), OK);
    assert_int_equal(output_print(&o, "%d %s", 42, line), OK);
    assert_true(path_exists(at("f.tmp")));
    output_abort(&o);
    assert_false(path_exists(at("f.tmp")));
    assert_content(at("f"), "old");
    assert_int_equal(output_open(&o, at("f")), OK);
    assert_int_equal(output_print(&o, "%d %s", 42, line), OK);
    assert_int_equal(output_commit(&o, NULL), OK);
    struct file_map map;
    assert_int_equal(file_map_open(&map, at("f")), OK);
    assert_int_equal(map.bytes, 3 + 1999);
    assert_memory_equal(map.data, "42 xxxx", 7);
    file_map_close(&map);
}

static enum status write_in_pieces(void)
{
    static char piece[3500 << 10]; // two of them do not fit in a buffer
    memset(piece, 'n', sizeof piece);
    struct output o;
    TRY(output_open(&o, at("f")));
    for (int i = 0; i < 4; i++) {
        enum status status = output_write(&o, piece, sizeof piece);
        if (status != OK) {
            output_abort(&o);
            return status;
        }
    }
    return output_commit(&o, NULL);
}

// Whatever write fails, the file is the old one or, after the rename, the whole new one; and nothing is left over.
static void test_nth_write_fails(void **state)
{
    (void)state;
    files_fail_write(0);
    assert_int_equal(write_in_pieces(), OK);
    long writes = files_write_count();
    print_message("%ld writes, syncs and renames\n", writes);
    assert_int_equal(writes, 4 + 1 + 1 + 1); // the pieces, the file's sync, the rename, the folder's sync
    for (long n = 1; n <= writes + 1; n++) {
        files_fail_write(0);
        assert_int_equal(file_write(at("f"), "old", 3), OK);
        files_fail_write(n);
        enum status status = write_in_pieces();
        files_fail_write(0);
        assert_int_equal(status, n <= writes ? ERR_IO : OK);
        if (n <= writes) assert_message("No space left on device");
        struct stat info;
        assert_int_equal(stat(at("f"), &info), 0);
        if (n < writes) assert_content(at("f"), "old"); // the last operation syncs the folder, after the rename
        else assert_int_equal(info.st_size, 4 * (3500 << 10));
        assert_false(path_exists(at("f.tmp")));
    }
}

// One write fails and the rest would not: the thread that met it tells the caller.
static void test_write_fails_behind_the_caller(void **state)
{
    (void)state;
    struct rlimit before, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = before;
    small.rlim_cur = 6 << 20;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    enum status status = write_in_pieces();
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    signal(SIGXFSZ, SIG_DFL);
    assert_int_equal(status, ERR_IO);
    assert_message("f: cannot be written: File too large");
    assert_false(path_exists(at("f")) || path_exists(at("f.tmp")));
}

static void test_full_disk(void **state)
{
    (void)state;
    if (!path_exists("/dev/full")) skip();
    int fd;
    assert_int_equal(file_append_open(&fd, "/dev/full"), OK);
    assert_int_equal(file_append(fd, "/dev/full", "x", 1), ERR_IO);
    assert_message("/dev/full: cannot be written: No space left on device (free some room)");
    close(fd);
}

static void test_append(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        int fd;
        assert_int_equal(file_append_open(&fd, at("log")), OK);
        assert_int_equal(file_append(fd, at("log"), "row\n", 4), OK);
        close(fd);
    }
    assert_content(at("log"), "row\nrow\n");
}

static void test_not_a_file(void **state)
{
    (void)state;
    struct file_map map = {.bytes = 77};
    struct output o;
    char *text = NULL;
    long bytes;
    assert_int_equal(folder_make(at("d")), OK);
    assert_int_equal(file_map_open(&map, at("d")), ERR_IO);
    assert_message("is a folder");
    assert_int_equal(file_map_open(&map, "/dev/null"), ERR_IO);
    assert_message("/dev/null: is not a regular file");
    assert_int_equal(file_map_open(&map, at("missing")), ERR_IO);
    assert_message("missing: cannot be opened: No such file");
    assert_int_equal(map.bytes, 77); // unchanged
    assert_int_equal(mkfifo(at("pipe"), 0600), 0);
    assert_int_equal(file_map_open(&map, at("pipe")), ERR_IO); // and does not wait for a writer
    assert_int_equal(file_read(&text, &bytes, at("d"), 100), ERR_IO);
    assert_message("is a folder");
    assert_int_equal(file_write(at("eleven"), "hello world", 11), OK);
    assert_int_equal(file_read(&text, &bytes, at("eleven"), 10), ERR_FORMAT);
    assert_message("eleven: has 11 bytes, more than the 10 allowed");
    assert_null(text);
    assert_int_equal(output_open(&o, "/dev/null"), ERR_IO); // a rename would replace the device
    assert_int_equal(output_open(&o, at("d")), ERR_IO);
    assert_message("exists and is not a regular file");
    assert_int_equal(output_open(&o, at("no/such/folder")), ERR_IO);
    assert_int_equal(output_open(&o, ""), ERR_IO);
}

// A link planted at the temporary name must not be written through.
static void test_planted_link(void **state)
{
    (void)state;
    assert_int_equal(file_write(at("victim"), "safe", 4), OK);
    assert_int_equal(symlink(at("victim"), at("f.tmp")), 0);
    assert_int_equal(file_write(at("f"), "new", 3), OK);
    assert_content(at("victim"), "safe");
    assert_content(at("f"), "new");
}

static void test_folders(void **state)
{
    (void)state;
    assert_int_equal(folder_make(at("x//y/z/")), OK);
    assert_int_equal(folder_make(at("x/y/z")), OK);
    assert_true(path_is_folder(at("x/y/z")));
    assert_int_equal(file_write(at("x/y/two"), "2", 1), OK);
    assert_int_equal(file_write(at("x/y/One"), "1", 1), OK);
    assert_int_equal(file_write(at("x/y/.hidden"), "1", 1), OK);
    struct path_list list;
    assert_int_equal(folder_list(&list, at("x/y")), OK);
    assert_int_equal(list.n, 3);
    assert_string_equal(list.name[0], "One");
    assert_string_equal(list.name[1], "two");
    assert_string_equal(list.name[2], "z");
    path_list_free(&list);
    assert_int_equal(folder_make(at("x/y/two/three")), ERR_IO);
    assert_message("x/y/two: exists and is not a folder");
    assert_int_equal(file_write(at("kept"), "k", 1), OK);
    assert_int_equal(symlink(at("kept"), at("x/file-link")), 0);
    assert_int_equal(symlink(folder, at("x/folder-link")), 0);
    assert_int_equal(folder_remove(at("x/folder-link")), ERR_IO); // links are never followed
    assert_int_equal(folder_remove(at("x")), OK);
    assert_false(path_exists(at("x")));
    assert_content(at("kept"), "k");
    assert_int_equal(folder_remove(at("x")), OK); // missing is fine
    assert_int_equal(folder_remove(at("kept")), ERR_IO);
    assert_content(at("kept"), "k");
    assert_true(disk_free_bytes(folder) > 0);
    assert_int_equal(disk_free_bytes(at("nowhere")), -1);
}

static void test_long_paths(void **state)
{
    (void)state;
    char name[PATH_LENGTH + 10], path[PATH_LENGTH];
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    struct output o;
    assert_int_equal(path_join(path, name, "x"), ERR_IO);
    assert_int_equal(path_join(path, "x", name), ERR_IO);
    assert_int_equal(folder_make(name), ERR_IO);
    assert_int_equal(output_open(&o, name), ERR_IO);
    assert_int_equal(path_join(path, "a/", "b"), OK);
    assert_string_equal(path, "a/b");
    assert_int_equal(path_join(path, "/", "b"), OK);
    assert_string_equal(path, "/b");
    assert_int_equal(path_join(path, "", "b"), OK);
    assert_string_equal(path, "b");
}

static void test_rename(void **state)
{
    (void)state;
    assert_int_equal(file_write(at("from"), "f", 1), OK);
    assert_int_equal(path_rename(at("to"), at("from")), OK);
    assert_content(at("to"), "f");
    assert_int_equal(path_rename(at("to"), at("from")), ERR_IO);
    assert_message("from: cannot be renamed to ");
}

static void test_checksums(void **state)
{
    (void)state;
    assert_int_equal(crc32c("123456789", 9), 0xE3069283);
    assert_int_equal(crc32c("", 0), 0);
    uint8_t bytes[32]; // RFC 3720, B.4
    memset(bytes, 0, sizeof bytes);
    assert_int_equal(crc32c(bytes, 32), 0x8A9136AA);
    memset(bytes, 255, sizeof bytes);
    assert_int_equal(crc32c(bytes, 32), 0x62A8AB43);
    for (int i = 0; i < 32; i++) bytes[i] = (uint8_t)i;
    assert_int_equal(crc32c(bytes, 32), 0x46DD794E);
    for (int i = 0; i < 32; i++) bytes[i] = (uint8_t)(31 - i);
    assert_int_equal(crc32c(bytes, 32), 0x113FDB5C);
    assert_true(xxh3("", 0) == 0x2D06800538D394C2u); // the published value for no bytes and seed 0
    assert_true(xxh3("a", 1) != xxh3("b", 1));
}

static long moved_times;

static void moved(void)
{
    moved_times++;
}

static void test_checksum_of_a_file(void **state)
{
    (void)state;
    const long sizes[] = {0, 1, 16 << 20, (50L << 20) + 3}, signs[] = {0, 1, 1, 4};
    for (int i = 0; i < 4; i++) {
        struct file_map map;
        assert_int_equal(file_write(at("long"), "a", sizes[i] > 0), OK);
        assert_int_equal(file_extend(at("long"), sizes[i]), OK);
        assert_int_equal(file_map_open(&map, at("long")), OK);
        moved_times = 0;
        assert_true(file_map_xxh3(&map, moved) == xxh3(map.data, map.bytes));
        assert_int_equal(moved_times, signs[i]);
        file_map_close(&map);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_write_and_read, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_large_output, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_print_and_abort, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_nth_write_fails, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_write_fails_behind_the_caller, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_full_disk, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_append, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_not_a_file, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_planted_link, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_folders, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_long_paths, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_rename, make_folder, remove_folder),
        cmocka_unit_test(test_checksums),
        cmocka_unit_test_setup_teardown(test_checksum_of_a_file, make_folder, remove_folder),
    };
    return cmocka_run_group_tests_name("files", tests, NULL, NULL);
}
