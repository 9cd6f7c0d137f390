// Maps and views of files: the bytes they show, what they take, how the process ends when a file shrinks under them.
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/files.h"
#include "base/log.h"
#include "base/rng.h"
#include <cmocka.h> // last: it defines fail()

enum { FILES = 2, PAGES = 64, PIECES = 12 };
static char folder[PATH_LENGTH], path[FILES][PATH_LENGTH];
static uint8_t *content[FILES];
static long page, size;

static int start(void **state)
{
    (void)state;
    const char *tmp = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/skymoe-maps-XXXXXX", tmp ? tmp : "/tmp");
    if (!mkdtemp(folder)) return -1;
    page = sysconf(_SC_PAGESIZE);
    size = PAGES * page - 77;
    for (int f = 0; f < FILES; f++) {
        content[f] = malloc((size_t)size);
        for (long i = 0; i < size; i++) content[f][i] = (uint8_t)rng_bits(9, (uint64_t)f, (uint64_t)i);
        if (path_join(path[f], folder, f ? "b" : "a") != OK || file_write(path[f], content[f], size) != OK) return -1;
    }
    return 0;
}

static int end(void **state)
{
    (void)state;
    for (int f = 0; f < FILES; f++) free(content[f]);
    return folder_remove(folder) == OK ? 0 : -1;
}

// ---- views ----

static long counter;
static long any(long below)
{
    return (long)(rng_bits(4, 2, (uint64_t)counter++) % (uint64_t)below);
}

// n random pieces that fit; returns what they hold together. `map` is indexed like the files.
static uint8_t *random_pieces(struct file_piece *piece, long n, const struct file_map *map, long *bytes)
{
    uint8_t *expected = malloc((size_t)(n * 6 * page));
    long at = any(page);
    *bytes = 0;
    for (long i = 0; i < n; i++) {
        int f = (int)any(FILES);
        long length = any(2) ? 1 + any(5 * page) : page * (1 + any(3)), from = at % page + page * any(PAGES - 8);
        if (i > 0 && any(4) == 0 && piece[i - 1].at + piece[i - 1].bytes + length <= size) { // right behind the last
            f = piece[i - 1].map == &map[1];
            from = piece[i - 1].at + piece[i - 1].bytes;
        }
        piece[i] = (struct file_piece){&map[f], from, length};
        memcpy(expected + *bytes, content[f] + from, (size_t)length);
        *bytes += length;
        at = from + length;
    }
    return expected;
}

static void views_show_the_pieces(void **state)
{
    (void)state;
    for (int round = 0; round < 300; round++) {
        struct file_map map[FILES];
        struct file_piece piece[PIECES];
        struct file_view view;
        long n = 1 + any(PIECES), bytes;
        for (int f = 0; f < FILES; f++) assert_int_equal(file_map_open(&map[f], path[f]), OK);
        uint8_t *expected = random_pieces(piece, n, map, &bytes);
        assert_true(file_view_fits(piece, n));
        assert_int_equal(file_view_open(&view, piece, n), OK);
        for (int f = 0; f < FILES; f++) file_map_close(&map[f]); // the view goes on without them
        assert_int_equal(view.bytes, bytes);
        assert_int_equal((uintptr_t)view.data % (uintptr_t)page, piece[0].at % page);
        assert_memory_equal(view.data, expected, (size_t)bytes);
        file_view_close(&view);
        assert_null(view.data);
        free(expected);
    }
}

static void pieces_that_lie_otherwise_in_their_pages_do_not_fit(void **state)
{
    (void)state;
    struct file_map map;
    assert_int_equal(file_map_open(&map, path[0]), OK);
    struct file_piece piece[] = {{&map, 100, 2 * page}, {&map, 5 * page + 100, 24}, {&map, 9 * page + 124, page}};
    assert_true(file_view_fits(piece, 3));
    piece[2].at += 8;
    assert_false(file_view_fits(piece, 3));
    assert_true(file_view_fits(piece, 2));
    file_map_close(&map);
}

// The whole pages are the file's own: private memory is what lies on seams, whatever the size.
static long private_bytes(void)
{
    char *text, *line;
    long bytes;
    assert_int_equal(file_read(&text, &bytes, "/proc/self/status", 1 << 16), OK);
    line = strstr(text, "RssAnon:");
    long kilobytes = line ? strtol(line + 8, NULL, 10) : 0;
    free(text);
    return kilobytes * 1024;
}

static void views_are_not_copies(void **state)
{
    (void)state;
    struct file_map map;
    struct file_view view;
    char big[PATH_LENGTH];
    long half = 32L << 20, sum = 0;
    assert_int_equal(path_join(big, folder, "big"), OK);
    assert_int_equal(file_write(big, content[0], size), OK);
    assert_int_equal(truncate(big, 3 * half), 0);
    assert_int_equal(file_map_open(&map, big), OK);
    struct file_piece piece[] = {{&map, 2 * half + 200, half - 200}, {&map, 0, half}};
    assert_true(file_view_fits(piece, 2));
    long before = private_bytes();
    assert_int_equal(file_view_open(&view, piece, 2), OK);
    for (long i = 0; i < view.bytes; i += page / 2) sum += view.data[i];
    assert_true(sum > 0); // the second piece begins with what was written
    assert_in_range(private_bytes() - before + (1 << 20), 0, 2 << 20);
    file_view_close(&view);
    file_map_close(&map);
}

// ---- files that shrink ----

// Runs `touch` on a file of which nothing is left, in a child whose stderr is kept. Returns its wait status.
static int shrunk(long (*touch)(struct file_map *), char said[1024])
{
    char file[PATH_LENGTH], heard[PATH_LENGTH], *text;
    long bytes;
    int code;
    assert_int_equal(path_join(file, folder, "shrinks"), OK);
    assert_int_equal(path_join(heard, folder, "heard"), OK);
    assert_int_equal(file_write(file, content[0], size), OK);
    pid_t child = fork();
    if (child == 0) {
        struct file_map map;
        dup2(open(heard, O_WRONLY | O_CREAT | O_TRUNC, 0600), 2);
        log_prefix("skymoe", "test");
        if (file_map_open(&map, file) != OK || truncate(file, 0) != 0) _exit(50);
        _exit(touch(&map) == 12345 ? 51 : 52);
    }
    assert_int_equal(waitpid(child, &code, 0), child);
    assert_int_equal(file_read(&text, &bytes, heard, 1000), OK);
    snprintf(said, 1024, "%s", text);
    free(text);
    return code;
}

static long touch_map(struct file_map *map)
{
    return map->data[3 * page];
}

static long touch_view(struct file_map *map)
{
    struct file_view view;
    struct file_piece piece = {map, 10, 8 * page};
    if (file_view_open(&view, &piece, 1) != OK) return 0;
    file_map_close(map);
    return view.data[5 * page];
}

static long touch_nothing_of_ours(struct file_map *map)
{
    return map->bytes > 0 ? raise(SIGBUS) : 0; // a failure of the program itself stays one
}

static void a_file_that_shrinks_ends_in_one_sentence(void **state)
{
    (void)state;
    char said[1024], expected[2 * PATH_LENGTH];
    snprintf(expected, sizeof expected, "skymoe test: %s/shrinks: cannot be read any more: it was cut short or its "
             "disk failed (files in use have to stay as they are)\n", folder);
    int code = shrunk(touch_map, said);
    assert_true(WIFEXITED(code) && WEXITSTATUS(code) == 1);
    assert_string_equal(said, expected);
    code = shrunk(touch_view, said);
    assert_true(WIFEXITED(code) && WEXITSTATUS(code) == 1);
    assert_string_equal(said, expected);
}

static void other_failures_stay_what_they_are(void **state)
{
    (void)state;
    char said[1024];
    int code = shrunk(touch_nothing_of_ours, said);
    assert_true(WIFSIGNALED(code) && WTERMSIG(code) == SIGBUS);
    assert_null(strstr(said, "shrinks"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(views_show_the_pieces),
        cmocka_unit_test(pieces_that_lie_otherwise_in_their_pages_do_not_fit),
        cmocka_unit_test(views_are_not_copies),
        cmocka_unit_test(a_file_that_shrinks_ends_in_one_sentence),
        cmocka_unit_test(other_failures_stay_what_they_are),
    };
    return cmocka_run_group_tests(tests, start, end);
}
