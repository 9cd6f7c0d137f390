// The report page: what it says, that text cannot become markup, that nothing is fetched, and what broken input gives.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/files.h"
#include "cli/chart.h"
#include "cli/command.h"
#include "cli/report.h"

#include <cmocka.h> // last: it defines fail as a macro

static char root[64];

static int setup(void **state)
{
    (void)state;
    const char *base = getenv("TMPDIR");
    snprintf(root, sizeof root, "%.30s/skymoe-report-XXXXXX", base ? base : "/tmp");
    return mkdtemp(root) ? 0 : 1;
}

static int teardown(void **state)
{
    (void)state;
    return folder_remove(root) == OK ? 0 : 1;
}

static const char *in_root(const char *name)
{
    static char path[4][PATH_LENGTH];
    static int next;
    char *p = path[next++ % 4];
    snprintf(p, PATH_LENGTH, "%s/%s", root, name);
    return p;
}

static void put(const char *name, const char *text)
{
    assert_int_equal(file_write(in_root(name), text, (long)strlen(text)), OK);
}

static const char config[] =
    "{\"architectures\":[\"MixtralForCausalLM\"],\"model_type\":\"mixtral\",\"hidden_size\":32,\"intermediate_size\":"
    "48,"
    "\"num_hidden_layers\":2,\"num_attention_heads\":4,\"num_key_value_heads\":2,\"vocab_size\":100,\"hidden_act\":"
    "\"silu\","
    "\"max_position_embeddings\":64,\"rms_norm_eps\":1e-6,\"rope_theta\":10000.0,\"num_local_experts\":3,"
    "\"num_experts_per_tok\":2,\"tie_word_embeddings\":false,\"torch_dtype\":\"float32\",\"sliding_window\":null}";

// A run of `steps` steps, evaluated every tenth. Layer 2's third expert has 1.5 times the mean load.
static void put_run(const char *name, long steps, bool experts)
{
    char path[PATH_LENGTH];
    snprintf(path, sizeof path, "%s/config.json", name);
    assert_int_equal(folder_make(in_root(name)), OK);
    put(path, config);
    snprintf(path, sizeof path, "%s/settings.conf", name);
    put(path, "lr = 0.001\nmodel = \"<i>x</i>\"\n");
    snprintf(path, sizeof path, "%s/%s/metrics.jsonl", root, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    for (long s = 1; s <= steps; s++) {
        fprintf(f, "{\"step\":%ld,\"tokens\":%ld,\"loss\":", s, s * 1000);
        if (s == 7)
            fprintf(f, "null"); // NaN
        else
            fprintf(f, "%.6f", 3 + 5.0 / (double)s);
        fprintf(f,
                ",\"aux_loss\":0.1,\"lr\":%g,\"grad_norm\":%g,\"skipped\":%s,\"step_time_s\":0.5,\"tokens_per_s\":2000,"
                "\"tflops\":0.01,\"mfu\":null,\"rss_bytes\":1,\"layers\":[",
                1e-3, s == 9 ? 77.5 : 1.5, s == 7 ? "true" : "false");
        for (int l = 0; experts && l < 2; l++)
            fprintf(f,
                    "%s{\"drop_rate\":0.0625,\"aux_coeff\":0.0125,\"aux_loss\":0.01,\"tokens_per_expert\":[%s],"
                    "\"overload\":1.5,\"router_entropy\":1.1,\"max1_max2\":%g,\"max2_max3\":null}",
                    l ? "," : "", l ? "50,100,150" : "100,100,100", 2.25 + l);
        fprintf(f, "]}\n");
        if (s % 10 == 0)
            fprintf(f, "{\"step\":%ld,\"eval_loss\":%.6f,\"eval_ppl\":30,\"expert_similarity\":[%s]}\n", s,
                    3.25 + 1.0 / (double)s, experts ? "0.5,0.75" : "");
    }
    assert_int_equal(fclose(f), 0);
}

static char *page(const char *const *runs, long n, const char *summary)
{
    char *text;
    long bytes;
    if (report_write(runs, n, summary, in_root("out.html")) != OK) fail_msg("%s", fail_message());
    assert_int_equal(file_read(&text, &bytes, in_root("out.html"), 64 << 20), OK);
    return text;
}

static long count(const char *text, const char *word)
{
    long n = 0;
    for (const char *p = text; (p = strstr(p, word)); p++) n++;
    return n;
}

static void has(const char *text, const char *what)
{
    if (!strstr(text, what)) fail_msg("the page lacks: %s", what);
}

static void lacks(const char *text, const char *what)
{
    const char *p = strstr(text, what);
    if (p) fail_msg("the page has %s in: %.80s", what, p - (p - text > 30 ? 30 : p - text));
}

// Every element is closed as often as it is opened, nothing leaves the page, no number is NaN.
static void sound(const char *text)
{
    static const char *const element[] = {"svg", "g",    "figure",  "section",    "div",  "table", "style", "title",
                                          "p",   "main", "details", "blockquote", "span", "path",  "text"};
    char open[32], open_more[32], close[32];
    for (size_t i = 0; i < sizeof element / sizeof *element; i++) {
        snprintf(open, sizeof open, "<%s>", element[i]);
        snprintf(open_more, sizeof open_more, "<%s ", element[i]);
        snprintf(close, sizeof close, "</%s>", element[i]);
        long opened = count(text, open) + count(text, open_more), closed = count(text, close);
        if (!strcmp(element[i], "path")) continue; // closes itself
        if (opened != closed) fail_msg("%ld <%s> but %ld </%s>", opened, element[i], closed, element[i]);
    }
    assert_memory_equal(text, "<!DOCTYPE html>", 15);
    has(text, "Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"");
    lacks(text, "<script");
    lacks(text, "<link");
    lacks(text, "<img");
    lacks(text, "://");
    lacks(text, "url(");
    for (const char *p = text; (p = strstr(p, "nan")); p++) lacks((char[]){p[-1], 'n', 'a', 'n', 0}, "\"nan");
    lacks(text, "Mnan");
    lacks(text, "Lnan");
    lacks(text, " nan ");
    lacks(text, "\"-nan");
    lacks(text, "inf\"");
}

// Several mixtures: means over their layers, a line for each; dense runs are not among them.
static void test_side_by_side(void **state)
{
    (void)state;
    put_run("plain", 40, false);
    put_run("one", 60, true);
    put_run("two", 50, true);
    const char *runs[] = {strdup(in_root("plain")), strdup(in_root("one")), strdup(in_root("two"))};
    char *text = page(runs, 3, NULL);
    sound(text);
    has(text, "Mixtures side by side");
    has(text, "one: 2.75 at 60 k tokens"); // Max1 / Max2: 2.25 and 3.25
    has(text, "two: 2.75 at 50 k tokens");
    has(text, "one: 6.25 % at 60 k tokens"); // drop rate
    has(text, "two: 0.0125 at 50 k tokens"); // coefficient
    has(text, "two: 0.625 at 50 k tokens");  // similarity: 0.5 and 0.75
    has(text, "one: 0.625 at 10 k tokens");
    lacks(text, "plain: 2.75");
    for (int i = 0; i < 3; i++) free((char *)runs[i]);
    free(text);
}

static void test_facts(void **state)
{
    (void)state;
    put_run("dense", 40, false);
    put_run("moe", 60, true);
    const char *runs[] = {strdup(in_root("dense")), strdup(in_root("moe"))};
    char *text = page(runs, 2, NULL);
    sound(text);
    has(text, "<title>dense, moe – skymoe report</title>");
    has(text, "MixtralForCausalLM, 2 layers, hidden 32, FFN 48, heads 4/2, vocabulary 100, 3 experts, top-2");
    has(text, "<td>3.2667</td>"); // last evaluation of moe: 3.25 + 1/60
    has(text, "<td>3.2750</td>"); // of dense: 3.25 + 1/40
    has(text, "<td>60<small>1 skipped</small></td>");
    has(text, "<td>60 k</td>"); // tokens
    has(text, "<td>30 s</td>"); // 60 steps of 0.5 s
    has(text, "Largest of a single step: 77.5.");
    has(text, "Experts of moe");
    lacks(text, "Experts of dense");
    has(text, "layer 2, expert 3: 1.50 × the mean load");
    has(text, "layer 2, expert 1: 0.50 × the mean load");
    has(text, "layer 1, expert 2: 1.00 × the mean load");
    has(text, "expert 3, 60 k tokens: 1.50 × the mean load"); // over time, layer 2
    has(text, "layer 1: 6.25 % at 60 k tokens");              // drop rate
    has(text, "layer 2: 0.0125 at 60 k tokens");              // coefficient
    has(text, "layer 2: 0.75 at 60 k tokens");                // similarity
    has(text, "layer 1: 2.25 at 60 k tokens");                // Max1 / Max2
    has(text, "moe, evaluation: 3.267 at 60 k tokens");
    has(text, "dense, evaluation: 3.35 at 10 k tokens");
    has(text, "dense: 2000 at 40 k tokens");           // throughput
    has(text, "<p class=\"none\">No values yet.</p>"); // Max2 / Max3 is null everywhere
    static const char *const titles[] = {"Loss",
                                         "Throughput",
                                         "Learning rate",
                                         "Gradient norm",
                                         "Drop rate",
                                         "Auxiliary loss coefficient",
                                         "Expert load, all layers",
                                         "Expert similarity",
                                         "Max1 / Max2",
                                         "Max2 / Max3",
                                         "Overload",
                                         "Router entropy", "Auxiliary loss"};
    for (size_t i = 0; i < sizeof titles / sizeof *titles; i++) {
        char heading[64];
        snprintf(heading, sizeof heading, "<h3>%s</h3>", titles[i]);
        if (count(text, heading) != 1) fail_msg("%s appears %ld times", heading, count(text, heading));
    }
    assert_int_equal(count(text, "<rect "), 2 * 3 + 2 * 3 * 60); // all layers; two layers over time in 60 columns
    has(text, "prefers-color-scheme:dark");
    lacks(text, "Mixtures side by side"); // one alone
    free(text);
    free((char *)runs[0]);
    free((char *)runs[1]);
}

static void test_escaping(void **state)
{
    (void)state;
    put_run("a<b>&\"'c", 12, true);
    put("summary.json",
        "{\"dense\":{\"eval_loss\":4.36,\"bits_per_byte\":1.93,\"tokens\":4900000,\"flops\":2.1e14,\"seconds\":233},"
        "\"moe\":{\"eval_loss\":3.951,\"bits_per_byte\":1.778,\"tokens\":12300000,\"flops\":null,\"seconds\":12910},"
        "\"moe_fp8\":{\"eval_loss\":3.956,\"bits_per_byte\":null},\"<u>\":{\"eval_loss\":5},\"kl_fp8\":0.0031,\"seed\":"
        "1,"
        "\"samples\":[{\"prompt\":\"A <b>\",\"text\":\" </blockquote><script>alert(1)</script> \\u0007&amp; 中文\","
        "\"model\":\"<x>\"},{}]}");
    const char *runs[] = {strdup(in_root("a<b>&\"'c"))};
    char *text = page(runs, 1, in_root("summary.json"));
    sound(text);
    lacks(text, "<b>&");
    lacks(text, "<script");
    lacks(text, "<i>");
    lacks(text, "<u>");
    lacks(text, "<x>");
    lacks(text, "\a");
    has(text, "a&lt;b&gt;&amp;&quot;&#39;c");
    has(text, " &lt;/blockquote&gt;&lt;script&gt;alert(1)&lt;/script&gt; &#xFFFD;&amp;amp; 中文");
    has(text, "&lt;i&gt;x&lt;/i&gt;"); // settings
    has(text, "<tr class=\"best\"><td class=\"text\">MoE, equal tokens</td><td>3.9510</td><td>–</td><td>51.99</td>"
              "<td>1.778</td><td>12.3 M</td><td>–</td><td>3.59 h</td></tr>");
    has(text, "<td>2.10 × 10<sup>14</sup></td><td>3.88 min</td>");
    has(text, "MoE in FP8</td><td>3.9560</td><td>0.0050</td><td>52.25</td><td>–</td>");
    has(text, "KL divergence of FP8 from its original: 0.0031 nats per token. Seed 1.");
    free(text);
    free((char *)runs[0]);
}

// Long runs stay small pages; the ends of a curve are where the data's ends are.
static void test_many_rows(void **state)
{
    (void)state;
    put_run("long", 20000, true);
    const char *runs[] = {strdup(in_root("long"))};
    char *text = page(runs, 1, NULL);
    sound(text);
    assert_in_range(strlen(text), 50000, 1500000);
    has(text, "layer 1: 6.25 % at 20 M tokens");
    has(text, "long: 0.001 at 20 M tokens");
    has(text, "<td>20000<small>1 skipped</small></td>");
    free(text);
    free((char *)runs[0]);
}

static void test_sparse(void **state)
{
    (void)state;
    static const char *const lines[] = {
        "{\"step\":1,\"tokens\":0,\"loss\":null}\n",
        "{\"step\":1,\"tokens\":10,\"loss\":2.5}",
        "{\"step\":5,\"eval_loss\":2.5,\"expert_similarity\":[1]}\n",
        "{\"step\":5,\"eval_loss\":null,\"expert_similarity\":null}\n{\"step\":6,\"eval_loss\":1,\"expert_similarity\":"
        "[null]}\n",
        "{\"step\":1,\"tokens\":10,\"loss\":1e300,\"layers\":[{}]}\n{\"step\":2,\"tokens\":10,\"loss\":-1e300,"
        "\"layers\":[{}]}\n",
        "{\"step\":1,\"tokens\":10,\"layers\":[{\"tokens_per_expert\":[0,0]}]}\n{\"step\":2,\"tokens\":10,\"layers\":[]"
        "}\n",
        "{\"step\":1,\"tokens\":10,\"layers\":null,\"skipped\":1}\n{\"step\":2,\"tokens\":1e18,\"skipped\":null}\n",
    };
    assert_int_equal(folder_make(in_root("sparse")), OK);
    const char *runs[] = {strdup(in_root("sparse"))};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        put("sparse/metrics.jsonl", lines[i]);
        char *text = page(runs, 1, NULL);
        sound(text);
        has(text, "<h2>Runs</h2>");
        free(text);
    }
    free((char *)runs[0]);
}

static void test_same_names(void **state)
{
    (void)state;
    assert_int_equal(folder_make(in_root("one")), OK);
    assert_int_equal(folder_make(in_root("two")), OK);
    put_run("one/run", 12, false);
    put_run("two/run", 12, false);
    const char *runs[] = {strdup(in_root("one/run")), strdup(in_root("two/run/"))};
    char *text = page(runs, 2, NULL);
    has(text, "/one/run</span>");
    has(text, "/two/run/</span>");
    free(text);
    free((char *)runs[0]);
    free((char *)runs[1]);
}

static void refuses(const char *metrics, enum status code, const char *words)
{
    put("bad/metrics.jsonl", metrics);
    put("out.html", "as it was");
    const char *runs[] = {strdup(in_root("bad"))};
    assert_int_equal(report_write(runs, 1, NULL, in_root("out.html")), code);
    if (!strstr(fail_message(), words)) fail_msg("expected \"%s\" in: %s", words, fail_message());
    char *text;
    long bytes;
    assert_int_equal(file_read(&text, &bytes, in_root("out.html"), 1000), OK);
    assert_string_equal(text, "as it was");
    free(text);
    free((char *)runs[0]);
}

#define ROW "{\"step\":1,\"tokens\":10,\"loss\":3,\"layers\":[{\"tokens_per_expert\":[1,2]}]}\n"

static void test_broken(void **state)
{
    (void)state;
    assert_int_equal(folder_make(in_root("bad")), OK);
    refuses("", ERR_FORMAT, "metrics.jsonl: there is nothing in it");
    refuses(ROW "{\"step\":2,\"tok", ERR_FORMAT, "metrics.jsonl line 2");
    refuses(ROW "\n" ROW, ERR_FORMAT, "metrics.jsonl line 2");
    refuses(ROW ROW, ERR_FORMAT, "line 2: step 1 comes after step 1");
    refuses("[1]\n", ERR_FORMAT, "line 1: the line is no JSON object");
    refuses(ROW "{\"step\":2}\n", ERR_FORMAT, "line 2: there is no tokens");
    refuses(ROW "{\"step\":2,\"tokens\":9}\n", ERR_FORMAT, "line 2: tokens is 9 after 10");
    refuses(ROW "{\"step\":2,\"tokens\":20,\"loss\":\"low\"}\n", ERR_FORMAT, "line 2: loss");
    refuses(ROW "{\"step\":2,\"tokens\":20,\"skipped\":\"no\"}\n", ERR_FORMAT, "line 2: skipped");
    refuses(ROW "{\"step\":2.5,\"tokens\":20}\n", ERR_FORMAT, "line 2: step");
    refuses(ROW "{\"step\":2,\"tokens\":20,\"layers\":{}}\n", ERR_FORMAT, "line 2: layers is no array");
    refuses(ROW "{\"step\":2,\"tokens\":20,\"layers\":[{},{}]}\n", ERR_FORMAT, "line 2: layers has 2 entries");
    refuses(ROW "{\"step\":2,\"tokens\":20,\"layers\":[3]}\n", ERR_FORMAT, "line 2: layers[0] is no object");
    refuses(ROW "{\"step\":2,\"tokens\":20,\"layers\":[{\"drop_rate\":[]}]}\n", ERR_FORMAT, "line 2: drop_rate");
    refuses(ROW "{\"step\":2,\"tokens\":20,\"layers\":[{\"tokens_per_expert\":[1]}]}\n", ERR_FORMAT,
            "layers[0].tokens_per_expert is not an array of 2");
    refuses(ROW "{\"step\":2,\"tokens\":20,\"layers\":[{\"tokens_per_expert\":[1,-2]}]}\n", ERR_FORMAT,
            "layers[0].tokens_per_expert[1] is no count");
    refuses("{\"step\":1,\"eval_loss\":1,\"expert_similarity\":[1,2]}\n{\"step\":2,\"eval_loss\":1,\"expert_"
            "similarity\":[1]}\n",
            ERR_FORMAT, "line 2: expert_similarity has 1 entries, expected 2");
    refuses("{\"step\":1,\"eval_loss\":1,\"expert_similarity\":7}\n", ERR_FORMAT,
            "line 1: expert_similarity is no array");
    refuses("{\"step\":1,\"eval_loss\":1,\"expert_similarity\":[\"x\"]}\n", ERR_FORMAT, "no number");
    refuses(ROW "{\"step\":2,\"step\":3}\n", ERR_FORMAT, "line 2");
    refuses("\xff\xfe\n", ERR_FORMAT, "line 1");
    put("bad/config.json", "{");
    refuses(ROW, ERR_FORMAT, "config.json");
    assert_int_equal(unlink(in_root("bad/config.json")), 0);
    assert_int_equal(unlink(in_root("bad/metrics.jsonl")), 0);
    const char *runs[] = {strdup(in_root("bad"))};
    assert_int_equal(report_write(runs, 1, NULL, in_root("out.html")), ERR_IO);
    assert_non_null(strstr(fail_message(), "metrics.jsonl"));
    put("bad/metrics.jsonl", ROW);
    assert_int_equal(report_write(runs, 1, in_root("none.json"), in_root("out.html")), ERR_IO);
    assert_non_null(strstr(fail_message(), "none.json"));
    static const char *const summaries[] = {"[]",
                                            "{\"moe\":{\"eval_loss\":\"x\"}}",
                                            "{\"samples\":{}}",
                                            "{\"samples\":[1]}",
                                            "{\"samples\":[{\"text\":1}]}",
                                            "{\"seed\":\"one\"}",
                                            "{"};
    for (size_t i = 0; i < sizeof summaries / sizeof *summaries; i++) {
        put("bad.json", summaries[i]);
        assert_int_equal(report_write(runs, 1, in_root("bad.json"), in_root("out.html")), ERR_FORMAT);
        assert_non_null(strstr(fail_message(), "bad.json"));
    }
    assert_int_equal(report_write(runs, 1, NULL, in_root("no/folder/out.html")), ERR_IO);
    free((char *)runs[0]);
}

static void test_command(void **state)
{
    (void)state;
    put_run("cli", 12, true);
    char *run = strdup(in_root("cli"));
    assert_int_equal(command_report.run(3, (char *[]){"report", run, "--quiet", NULL}), OK);
    assert_true(path_exists(in_root("cli/report.html")));
    assert_int_equal(command_report.run(1, (char *[]){"report", NULL}), ERR_CONFIG);
    assert_int_equal(command_report.run(3, (char *[]){"report", run, "--outptu", NULL}), ERR_CONFIG);
    free(run);
}

static void test_numbers(void **state)
{
    (void)state;
    static const struct {
        double value;
        enum chart_unit unit;
        const char *text;
    } row[] = {
        {0.0625, UNIT_PERCENT, "6.25 %"}, {0, UNIT_PERCENT, "0 %"},        {1234, UNIT_COUNT, "1234"},
        {12340, UNIT_COUNT, "12.3 k"},    {999900, UNIT_COUNT, "1 M"},     {1.5e9, UNIT_COUNT, "1.5 B"},
        {2e12, UNIT_COUNT, "2 T"},        {3.14159, UNIT_NUMBER, "3.142"}, {-0.5, UNIT_NUMBER, "-0.5"},
        {NAN, UNIT_NUMBER, "–"},          {INFINITY, UNIT_COUNT, "–"},
    };
    char text[FIGURE_TEXT];
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        number_text(text, row[i].value, row[i].unit);
        assert_string_equal(text, row[i].text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_facts),   cmocka_unit_test(test_escaping),   cmocka_unit_test(test_many_rows),
        cmocka_unit_test(test_side_by_side),
        cmocka_unit_test(test_sparse),  cmocka_unit_test(test_same_names), cmocka_unit_test(test_broken),
        cmocka_unit_test(test_command), cmocka_unit_test(test_numbers),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
