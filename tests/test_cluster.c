// Cluster files: what is read, what is refused and with which sentence, and that what is written reads back.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "plan/cluster.h"

#include <cmocka.h> // last: it defines fail as a macro

#define C(v) "{\"value\": " v ", \"source\": \"datasheet\"}"
#define HEAD "{\"name\": \"n\", \"device\": \"d\", \"hosts\": 2, \"devices_per_host\": 4, "
#define SIZES "\"memory_bytes\": " C("8e10") ", \"peak_flops\": " C("3e14") ", "
#define KERNELS "\"kernels\": {\"read_bytes_per_s\": " C("2e12") ", \"grouped_flops\": {\"value\": 1e14, " \
                "\"source\": \"measured\", \"note\": \"here\"}}, "
#define INSIDE "\"inside\": {\"bytes_per_s\": " C("2e11") "}, "
#define BETWEEN "\"between\": {\"bytes_per_s\": " C("1e10") ", \"latency_s\": " C("1e-5") "}}"

static enum status parse(struct cluster *c, const char *text)
{
    return cluster_parse(c, text, (long)strlen(text), "c.json");
}

static void test_read(void **state)
{
    (void)state;
    struct cluster c;
    assert_int_equal(parse(&c, HEAD SIZES KERNELS INSIDE BETWEEN), OK);
    assert_string_equal(c.name, "n");
    assert_int_equal(cluster_devices(&c), 8);
    assert_true(c.memory_bytes.value == 8e10 && c.memory_bytes.source == SOURCE_DATASHEET);
    assert_true(cluster_flops(&c, RATE_GROUPED) == 1e14 && c.flops[RATE_GROUPED].source == SOURCE_MEASURED);
    assert_true(cluster_flops(&c, RATE_PRODUCT) == 3e14); // absent: the peak
    assert_true(c.inside.latency_s.source == SOURCE_ABSENT && c.inside.latency_s.value == 0);
    assert_true(c.between.latency_s.value == 1e-5);
}

static void refused(const char *text, const char *sentence)
{
    struct cluster c;
    assert_int_equal(parse(&c, text), ERR_FORMAT);
    assert_int_equal(strncmp(fail_message(), "c.json: ", 8), 0);
    if (!strstr(fail_message(), sentence)) fail_msg("\"%s\" lacks \"%s\"", fail_message(), sentence);
}

static void test_refused(void **state)
{
    (void)state;
    refused("[]", "is not an object");
    refused(HEAD SIZES KERNELS INSIDE "\"betwen\": {}}", "betwen: unknown field");
    refused(HEAD SIZES "\"kernels\": {\"product\": 1}, " INSIDE BETWEEN, "kernels.product: unknown field");
    refused(HEAD SIZES "\"kernels\": 5, " INSIDE BETWEEN, "kernels is 5, expected an object");
    refused(HEAD SIZES KERNELS INSIDE "\"note\": \"\"}", "between.bytes_per_s is missing");
    refused(HEAD SIZES KERNELS BETWEEN, "inside.bytes_per_s is missing");
    refused(HEAD "\"peak_flops\": " C("3e14") "," KERNELS INSIDE BETWEEN, "memory_bytes is missing");
    refused(HEAD "\"memory_bytes\": 8e10, \"peak_flops\": " C("3e14") "," KERNELS INSIDE BETWEEN,
            "memory_bytes is 80000000000, expected an object");
    refused(HEAD "\"memory_bytes\": " C("-1") ", \"peak_flops\": " C("3e14") "," KERNELS INSIDE BETWEEN,
            "memory_bytes: value is -1");
    refused(HEAD "\"memory_bytes\": {\"value\": 8e10, \"source\": \"hearsay\"}, \"peak_flops\": " C("3e14") "," KERNELS
            INSIDE BETWEEN, "source is \"hearsay\", expected \"measured\" or \"datasheet\"");
    refused(HEAD "\"memory_bytes\": {\"value\": 8e10}, \"peak_flops\": " C("3e14") "," KERNELS INSIDE BETWEEN,
            "memory_bytes: source is \"\"");
    refused(HEAD "\"memory_bytes\": {\"source\": \"measured\"}, " KERNELS INSIDE BETWEEN,
            "memory_bytes: value is missing");
    refused(HEAD "\"memory_bytes\": {\"value\": 8e10, \"sorce\": 1}, " KERNELS INSIDE BETWEEN, "sorce: unknown field");
    refused("{\"name\": \"n\", \"device\": \"d\", \"hosts\": 0, \"devices_per_host\": 4}", "hosts is 0");
    refused("{\"name\": \"n\", \"device\": \"d\", \"hosts\": 1}", "devices_per_host is missing");
    refused("{\"device\": \"d\", \"hosts\": 1}", "name is missing");
    refused("{\"name\": 3, \"device\": \"d\"}", "name is 3");
}

static void test_written(void **state)
{
    (void)state;
    struct cluster c, again;
    struct json_out o = {0};
    assert_int_equal(parse(&c, HEAD SIZES KERNELS INSIDE BETWEEN), OK);
    cluster_put(&o, &c);
    assert_int_equal(json_out_status(&o), OK);
    assert_int_equal(parse(&again, o.text), OK);
    for (long i = 0; i < CLUSTER_CONSTANTS; i++) {
        struct constant *a, *b;
        cluster_constant(&a, &c, i);
        cluster_constant(&b, &again, i);
        assert_true(a->value == b->value && a->source == b->source);
    }
    json_out_free(&o);
}

// The files that come with the program.
static void test_shipped(void **state)
{
    (void)state;
    static const struct {
        const char *path;
        long devices;
        enum origin source;
    } files[] = {{"configs/clusters/a800-1536.json", 1536, SOURCE_DATASHEET},
                 {"configs/clusters/rtx4090-8.json", 8, SOURCE_DATASHEET},
                 {"configs/clusters/h200-8.json", 8, SOURCE_DATASHEET},
                 {"configs/clusters/cpu-2.json", 2, SOURCE_MEASURED}};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        struct cluster c;
        if (cluster_read(&c, files[i].path) != OK) fail_msg("%s", fail_message());
        assert_int_equal(cluster_devices(&c), files[i].devices);
        for (long k = 0; k < CLUSTER_CONSTANTS; k++) {
            struct constant *constant;
            cluster_constant(&constant, &c, k);
            assert_true(constant->source == SOURCE_ABSENT || constant->source == files[i].source);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read), cmocka_unit_test(test_refused), cmocka_unit_test(test_written),
        cmocka_unit_test(test_shipped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
