// Arenas, random numbers, metrics.
#define _GNU_SOURCE // memmem
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/files.h"
#include "base/metrics.h"
#include "base/rng.h"
#include <cmocka.h> // last: it defines fail()

static char folder[PATH_LENGTH];

static int make_folder(void **state)
{
    (void)state;
    const char *tmp = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/skymoe-base-XXXXXX", tmp ? tmp : "/tmp");
    files_fail_write(0);
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    files_fail_write(0);
    return folder_remove(folder) == OK ? 0 : -1;
}

// ---- arena ----

static void test_arena(void **state)
{
    (void)state;
    struct arena a = arena_measure("test", DEVICE_CPU);
    for (int pass = 0; pass < 2; pass++) {
        char *first = arena_take(&a, 3, 7);
        assert_null(arena_take(&a, 0, 8));
        long mark = a.used;
        char *second = arena_take(&a, 100, 4);
        arena_rewind(&a, mark);
        char *shared = arena_take(&a, 10, 4);
        assert_int_equal(a.used, 64 + 64);
        if (pass == 0) {
            assert_null(first);
            assert_int_equal(a.peak, 64 + 448);
            assert_int_equal(arena_reserve(&a), OK);
            assert_int_equal(a.capacity, 64 + 448);
            continue;
        }
        assert_int_equal((uintptr_t)first % ARENA_ALIGN, 0);
        assert_ptr_equal(second, first + 64);
        assert_ptr_equal(shared, second);
        for (int i = 0; i < 400; i++) assert_int_equal(second[i], 0);
    }
    arena_release(&a);
    struct arena empty = arena_measure("empty", DEVICE_CPU);
    assert_int_equal(arena_reserve(&empty), OK);
    arena_release(&empty);
    struct arena huge = arena_measure("weights", DEVICE_CPU);
    arena_take(&huge, 1L << 50, 64);
    assert_int_equal(arena_reserve(&huge), ERR_MEMORY);
    assert_non_null(strstr(fail_message(), "for weights were refused"));
    arena_release(&huge);
}

// ---- random numbers ----

// Known answers of Random123 1.09, kat_vectors, philox4x32 10 rounds: counter (4 words), key (2 words).
static void test_philox(void **state)
{
    (void)state;
    static const struct {
        uint64_t counter, stream, key;
        uint32_t out[4];
    } row[] = {
        {0, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {UINT64_MAX, UINT64_MAX, UINT64_MAX, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {0x85a308d3243f6a88, 0x0370734413198a2e, 0x299f31d0a4093822, {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++) {
        uint32_t out[4];
        philox4x32(out, row[i].key, row[i].stream, row[i].counter);
        assert_memory_equal(out, row[i].out, sizeof out);
    }
}

static void test_distributions(void **state)
{
    (void)state;
    enum { N = 100000 };
    double uniform = 0, squares = 0, normal = 0, variance = 0, fourth = 0, worst = 0;
    for (long i = 0; i < N; i++) {
        uint32_t r[4];
        philox4x32(r, 3, 5, (uint64_t)i);
        double a = ldexp((double)((uint64_t)r[1] << 32 | r[0]) + 1, -64);
        double b = ldexp((double)((uint64_t)r[3] << 32 | r[2]), -64);
        worst = fmax(worst, fabs(sqrt(-2 * log(a)) * cos(2 * M_PI * b) - rng_normal(3, 5, (uint64_t)i)));
        double u = rng_uniform(3, 5, (uint64_t)i), z = rng_normal(3, 5, (uint64_t)i);
        assert_true(u >= 0 && u < 1);
        assert_true(fabs(z) < 10);
        uniform += u / N;
        squares += u * u / N;
        normal += z / N;
        variance += z * z / N;
        fourth += z * z * z * z / N;
    }
    print_message("means: u %.4f (0.5) u^2 %.4f (0.3333) z %.4f (0) z^2 %.4f (1) z^4 %.3f (3)\n", uniform, squares,
                  normal, variance, fourth);
    assert_true(fabs(uniform - 0.5) < 0.005 && fabs(squares - 1.0 / 3) < 0.005); // five standard deviations
    assert_true(fabs(normal) < 0.016 && fabs(variance - 1) < 0.023 && fabs(fourth - 3) < 0.16);
    print_message("largest difference from the C library's logarithm and cosine: %.2g\n", worst);
    assert_true(worst < 4e-15); // its angle is rounded too
    assert_true(rng_uniform(3, 5, 7) == rng_uniform(3, 5, 7));
    assert_true(rng_uniform(3, 5, 7) != rng_uniform(3, 6, 7) && rng_uniform(3, 5, 7) != rng_uniform(4, 5, 7));
    assert_true(rng_stream("a") != rng_stream("b"));
}

static void check_bijection(uint64_t n, uint64_t seed)
{
    unsigned char *seen = calloc(n, 1);
    assert_non_null(seen);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t p = rng_permute(i, n, seed, 9);
        if (p >= n || seen[p]) fail_msg("n %lu: %lu -> %lu", (unsigned long)n, (unsigned long)i, (unsigned long)p);
        seen[p] = 1;
    }
    free(seen);
}

static void test_permutation(void **state)
{
    (void)state;
    for (uint64_t n = 1; n <= 300; n++)
        for (uint64_t seed = 0; seed < 3; seed++) check_bijection(n, seed);
    static const uint64_t large[] = {1023, 1024, 1025, 65535, 65536, 65537, 99991};
    for (size_t i = 0; i < sizeof large / sizeof large[0]; i++) check_bijection(large[i], 1);
    for (uint64_t i = 0; i < 1000; i++) { // too many to visit: in range and distinct from the neighbour
        static const uint64_t n = 3000000000000;
        uint64_t p = rng_permute(i, n, 1, 2);
        assert_true(p < n && p != rng_permute(i + 1, n, 1, 2));
    }
    long fixed = 0, moved = 0;
    for (uint64_t i = 0; i < 10000; i++) {
        fixed += rng_permute(i, 10000, 1, 1) == i;
        moved += rng_permute(i, 10000, 1, 1) == rng_permute(i, 10000, 2, 1); // another seed, another order
    }
    assert_in_range(fixed, 0, 12);
    assert_in_range(moved, 0, 12);
}

// ---- metrics ----

static void assert_hex(const unsigned char *bytes, long n, const char *hex)
{
    char text[600];
    for (long i = 0; i < n; i++) snprintf(text + 2 * i, 3, "%02x", bytes[i]);
    assert_string_equal(text, hex);
}

// Written by TensorBoard's own writer.
static void test_event_records(void **state)
{
    (void)state;
    unsigned char buffer[256];
    assert_hex(buffer, event_version(buffer, 1.0),
               "1800000000000000a37f4b2209000000000000f03f1a0d627261696e2e4576656e743a3286bf577a");
    assert_hex(buffer, event_scalar(buffer, 2.0, 7, "lm loss", 2.5f),
               "1d00000000000000602fdf230900000000000000401007"
               "2a100a0e0a076c6d206c6f7373150000204039917ad3");
    char tag[131]; // long enough for lengths of two bytes
    memset(tag, 'a', 130);
    tag[130] = '\0';
    assert_int_equal(event_scalar(buffer, 2.0, 7, tag, 2.5f), 16 + 9 + 2 + 3 + (3 + (3 + 130 + 5)));
    assert_hex(buffer + 12, 21, "0900000000000000401007" "2a8d01" "0a8a01" "0a820161");
}

static uint64_t little(const uint8_t *bytes, int n)
{
    uint64_t value = 0;
    for (int i = 0; i < n; i++) value |= (uint64_t)bytes[i] << (8 * i);
    return value;
}

static uint32_t masked(const void *data, long bytes)
{
    uint32_t crc = crc32c(data, bytes);
    return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

// Walks the records of an event file, checking lengths and checksums; returns how many. *value: the last one of `tag`.
static long walk_events(const char *path, const char *tag, float *value)
{
    struct file_map map;
    long n = 0;
    assert_int_equal(file_map_open(&map, path), OK);
    for (long at = 0; at < map.bytes; n++) {
        assert_true(map.bytes - at >= 16);
        long length = (long)little(map.data + at, 8);
        assert_true(length <= map.bytes - at - 16);
        assert_int_equal(little(map.data + at + 8, 4), masked(map.data + at, 8));
        assert_int_equal(little(map.data + at + 12 + length, 4), masked(map.data + at + 12, length));
        const uint8_t *found = memmem(map.data + at + 12, (size_t)length, tag, strlen(tag));
        if (found && found[-1] == strlen(tag)) memcpy(value, found + strlen(tag) + 1, 4);
        at += 16 + length;
    }
    file_map_close(&map);
    return n;
}

static void test_metrics(void **state)
{
    (void)state;
    struct metrics m;
    assert_int_equal(metrics_open(&m, folder, 0), OK);
    assert_int_equal(metrics_write(&m, 1, "{\"step\":1,\"loss\":2.5,\"mfu\":null,\"layers\":[{\"drop_rate\":0.25,"
                                          "\"tokens_per_expert\":[7,8]},{\"drop_rate\":0.5}]}", 3.0), OK);
    assert_int_equal(metrics_write(&m, 2, "{\"step\":2,\"loss\":2.25}", 4.0), OK);
    float loss = 0, drop = 0, tokens = 0;
    assert_int_equal(walk_events(m.events_path, "loss", &loss), 1 + 6 + 2);
    walk_events(m.events_path, "layers/1/drop_rate", &drop);
    walk_events(m.events_path, "layers/0/tokens_per_expert/1", &tokens);
    assert_true(loss == 2.25f && drop == 0.5f && tokens == 8);
    metrics_close(&m);
}

static void assert_rows(const char *expected)
{
    char path[PATH_LENGTH], *text;
    long bytes;
    assert_int_equal(path_join(path, folder, "metrics.jsonl"), OK);
    assert_int_equal(file_read(&text, &bytes, path, 1 << 20), OK);
    assert_string_equal(text, expected);
    free(text);
}

static void test_metrics_resume(void **state)
{
    (void)state;
    char path[PATH_LENGTH];
    struct metrics m;
    assert_int_equal(path_join(path, folder, "metrics.jsonl"), OK);
    const char *before = "{\"step\":1}\n{\"step\":2}\n{\"step\":2,\"eval_loss\":1}\n{\"step\":3}\n{\"step\":4,\"lo";
    assert_int_equal(file_write(path, before, (long)strlen(before)), OK);
    assert_int_equal(metrics_open(&m, folder, 2), OK);
    assert_rows("{\"step\":1}\n{\"step\":2}\n{\"step\":2,\"eval_loss\":1}\n");
    assert_int_equal(metrics_write(&m, 3, "{\"step\":3,\"loss\":1}", 0), OK);
    metrics_close(&m);
    assert_rows("{\"step\":1}\n{\"step\":2}\n{\"step\":2,\"eval_loss\":1}\n{\"step\":3,\"loss\":1}\n");
    struct metrics second; // within the same second: another event file
    assert_int_equal(metrics_open(&second, folder, 3), OK);
    assert_string_not_equal(second.events_path, m.events_path);
    metrics_close(&second);
    assert_int_equal(file_write(path, "{\"step\":1}\nnonsense\n", 20), OK);
    assert_int_equal(metrics_open(&m, folder, 5), ERR_FORMAT);
    assert_non_null(strstr(fail_message(), "metrics.jsonl:2: is not JSON"));
    assert_rows("{\"step\":1}\nnonsense\n");
    assert_int_equal(file_write(path, "{\"loss\":1}\n", 11), OK);
    assert_int_equal(metrics_open(&m, folder, 5), ERR_FORMAT);
    assert_non_null(strstr(fail_message(), "metrics.jsonl:1: has no step"));
}

static void test_metrics_writes_fail(void **state)
{
    (void)state;
    char path[PATH_LENGTH];
    const char *before = "{\"step\":1}\n{\"step\":9}\n";
    assert_int_equal(path_join(path, folder, "metrics.jsonl"), OK);
    for (long n = 1; n <= 8; n++) {
        struct metrics m;
        assert_int_equal(file_write(path, before, (long)strlen(before)), OK);
        files_fail_write(n);
        enum status status = metrics_open(&m, folder, 1);
        if (status == OK) {
            status = metrics_write(&m, 2, "{\"step\":2,\"loss\":1}", 0);
            metrics_close(&m);
        }
        long writes = files_write_count();
        files_fail_write(0);
        assert_int_equal(status, n <= 7 ? ERR_IO : OK); // write, sync, rename, folder; version; row, events
        if (n <= 3) assert_rows(before);
        else if (n <= 6) assert_rows("{\"step\":1}\n");
        if (n == 8) assert_int_equal(writes, 7);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_arena),
        cmocka_unit_test(test_philox),
        cmocka_unit_test(test_distributions),
        cmocka_unit_test(test_permutation),
        cmocka_unit_test(test_event_records),
        cmocka_unit_test_setup_teardown(test_metrics, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_metrics_resume, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_metrics_writes_fail, make_folder, remove_folder),
    };
    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
