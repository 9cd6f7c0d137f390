// Conversations as ids against transformers' (tests/golden/chat, made by tools/chat_golden.py), which template a folder
// holds, control tokens, text that looks like them.
#include "model_util.h"

#include <unistd.h>

#include "base/files.h"
#include "base/json.h"
#include "data/chat_folder.h"
#include "data/chat_template.h"

static char folder[PATH_LENGTH];
static struct tokenizer tokenizer;

#define GOLDEN "tests/golden/chat/"
static const char *const names[] = {"chatml", "llama2", "llama3", "mistral", "plain"};
enum { NAMES = sizeof names / sizeof *names, MESSAGES = 8 };

static const char *at(const char *name)
{
    static char path[4][PATH_LENGTH];
    static int next;
    char *p = path[next++ % 4];
    OK_OR_FAIL(path_join(p, folder, name));
    return p;
}

static void put(const char *name, const char *text)
{
    OK_OR_FAIL(file_write(at(name), text, (long)strlen(text)));
}

static void expect(enum status status, enum status wanted, const char *sentence)
{
    if (status != wanted || !strstr(fail_message(), sentence))
        fail_msg("status %d, \"%s\", expected %d, \"%s\"", status, status ? fail_message() : "", wanted, sentence);
}

// The template by its name, in a folder that holds this tokenizer_config.json.
static enum status open_with(struct chat_template *c, const char *config, const char *name)
{
    put("tokenizer_config.json", config);
    return chat_template_open(c, &tokenizer, folder, name);
}

static void expect_refusal(const char *config, const char *name, enum status wanted, const char *sentence)
{
    struct chat_template c;
    expect(open_with(&c, config, name), wanted, sentence);
}

static int set_up(void **state)
{
    (void)state;
    const char *base = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/skymoe-chat-XXXXXX", base ? base : "/tmp");
    return !mkdtemp(folder) || tokenizer_open(&tokenizer, GOLDEN "tokenizer.model") != OK;
}

static int tear_down(void **state)
{
    (void)state;
    tokenizer_close(&tokenizer);
    return folder_remove(folder) != OK;
}

// ---- ids ----

static long read_messages(struct chat_message *m, const cJSON *list)
{
    static const char *const role[] = {"system", "user", "assistant"};
    long n = 0;
    for (const cJSON *item = list->child; item; item = item->next, n++) {
        const char *text = json_field(item, "content")->valuestring, *name = json_field(item, "role")->valuestring;
        assert_true(n < MESSAGES);
        m[n] = (struct chat_message){.text = text, .bytes = (long)strlen(text)};
        while (strcmp(role[m[n].role], name)) m[n].role++;
    }
    return n;
}

static void expect_ids(const cJSON *wanted, const int *ids, long n, const char *what)
{
    const cJSON *w = wanted->child;
    for (long i = 0; i < n; i++, w = w->next)
        if (!w || w->valueint != ids[i])
            fail_msg("%s: id %ld is %d, expected %d", what, i, ids[i], w ? w->valueint : -1);
    if (w) fail_msg("%s: %ld ids, expected %d", what, n, cJSON_GetArraySize(wanted));
}

static void test_golden_ids(void **state)
{
    (void)state;
    cJSON *cases;
    long count = 0, total = 0;
    OK_OR_FAIL(json_read(&cases, GOLDEN "cases.json", 1 << 20));
    for (const cJSON *item = cases->child; item; item = item->next, count++) {
        struct chat_template c;
        struct chat_message m[MESSAGES];
        const char *name = json_field(item, "template")->valuestring;
        bool legacy = cJSON_IsTrue(json_field(item, "legacy"));
        char what[128];
        int *ids;
        long n;
        snprintf(what, sizeof what, "%s, %s%s", name, json_field(item, "conversation")->valuestring,
                 legacy ? "" : ", not legacy");
        OK_OR_FAIL(open_with(&c, legacy ? "{}" : "{\"legacy\": false}", name));
        OK_OR_FAIL(chat_encode(&ids, &n, &c, m, read_messages(m, json_field(item, "messages"))));
        expect_ids(json_field(item, "ids"), ids, n, what);
        total += n;
        free(ids);
        chat_template_close(&c);
    }
    printf("  %ld conversations, %ld ids\n", count, total);
    assert_true(count >= 72);
    cJSON_Delete(cases);
}

// A conversation turn by turn: the ids after each turn begin the ids after the next.
static void test_turn_by_turn(void **state)
{
    (void)state;
    static const struct chat_message m[] = {
        {CHAT_SYSTEM, "Be brief.", 9}, {CHAT_USER, "Hello", 5},          {CHAT_ASSISTANT, "Hi there", 8},
        {CHAT_USER, "Who are you?", 12}, {CHAT_ASSISTANT, "A model.", 8}, {CHAT_USER, " Which one? ", 12},
    };
    for (int i = 0; i < NAMES; i++) {
        struct chat_template c;
        int *ids, *more, *said, *whole, grown[1000];
        long n, used, whole_n;
        OK_OR_FAIL(open_with(&c, "{}", names[i]));
        OK_OR_FAIL(chat_encode(&ids, &used, &c, m, 2));
        memcpy(grown, ids, (size_t)used * sizeof *ids);
        free(ids);
        for (int turn = 2; turn < 6; turn += 2) {
            // What a model would generate: behind "assistant\n" no space, behind [/INST] or "Assistant:" one.
            bool spaced = c.spaced && strcmp(names[i], "chatml") && strcmp(names[i], "llama3");
            if (spaced) OK_OR_FAIL(tokenizer_encode(&said, &n, &tokenizer, m[turn].text, m[turn].bytes));
            else OK_OR_FAIL(tokenizer_encode_more(&said, &n, &tokenizer, m[turn].text, m[turn].bytes));
            memcpy(grown + used, said, (size_t)n * sizeof *said);
            used += n;
            free(said);
            OK_OR_FAIL(chat_encode_next(&more, &n, &c, m[turn + 1].text, m[turn + 1].bytes));
            memcpy(grown + used, more, (size_t)n * sizeof *more);
            used += n;
            free(more);
            OK_OR_FAIL(chat_encode(&whole, &whole_n, &c, m, turn + 2));
            if (whole_n != used || memcmp(whole, grown, (size_t)used * sizeof *whole))
                fail_msg("%s: after %d messages the ids differ (%ld, %ld)", names[i], turn + 2, used, whole_n);
            free(whole);
        }
        chat_template_close(&c);
    }
}

static void test_order_of_roles(void **state)
{
    (void)state;
    static const struct chat_message two[] = {{CHAT_USER, "a", 1}, {CHAT_USER, "b", 1}};
    static const struct chat_message system[] = {{CHAT_SYSTEM, "a", 1}}, wrong = {CHAT_USER, "\xC3", 1};
    for (int i = 0; i < NAMES; i++) {
        struct chat_template c;
        int *ids;
        long n;
        bool turns = !strcmp(names[i], "llama2") || !strcmp(names[i], "mistral");
        OK_OR_FAIL(open_with(&c, "{}", names[i]));
        if (turns) {
            expect(chat_encode(&ids, &n, &c, two, 2), ERR_FORMAT, "messages: number 2 is the user's, which the chat ");
            expect(chat_encode(&ids, &n, &c, system, 1), ERR_FORMAT, "a system message alone");
        } else {
            OK_OR_FAIL(chat_encode(&ids, &n, &c, two, 2));
            free(ids);
            OK_OR_FAIL(chat_encode(&ids, &n, &c, NULL, 0));
            free(ids);
        }
        expect(chat_encode(&ids, &n, &c, &wrong, 1), ERR_FORMAT, "is not UTF-8");
        assert_null(ids);
        chat_template_close(&c);
    }
}

// ---- which template ----

static const char *recognised(const char *config)
{
    struct chat_template c;
    OK_OR_FAIL(open_with(&c, config, NULL));
    const char *name = c.name;
    chat_template_close(&c);
    return name;
}

// The text as JSON, with what stands before and behind it.
static char *config_with(const char *before, const char *jinja, const char *behind)
{
    struct json_out o = {0};
    json_put_text(&o, NULL, jinja);
    OK_OR_FAIL(json_out_status(&o));
    size_t room = strlen(before) + (size_t)o.used + strlen(behind) + 1;
    char *text = malloc(room);
    snprintf(text, room, "%s%s%s", before, o.text, behind);
    json_out_free(&o);
    return text;
}

static void expect_recognised(const char *jinja, const char *name)
{
    char *config = config_with("{\"chat_template\":", jinja, "}");
    assert_string_equal(recognised(config), name);
    free(config);
}

// Every place of `from` replaced; the caller frees.
static char *replaced(const char *text, const char *from, const char *to)
{
    size_t room = strlen(text) * 8 + 100, used = 0;
    char *result = malloc(room);
    for (const char *hit; (hit = strstr(text, from)); text = hit + strlen(from))
        used += (size_t)snprintf(result + used, room - used, "%.*s%s", (int)(hit - text), text, to);
    snprintf(result + used, room - used, "%s", text);
    return result;
}

static void test_recognised(void **state)
{
    (void)state;
    for (int i = 0; i < NAMES; i++) {
        char path[PATH_LENGTH], *jinja;
        long bytes;
        snprintf(path, sizeof path, GOLDEN "%s.jinja", names[i]);
        OK_OR_FAIL(file_read(&jinja, &bytes, path, 1 << 20));
        expect_recognised(jinja, names[i]);
        static const char *const layout[][2] = {
            {"m.role", "m['role']"}, {"m.role", "m[ \"role\" ]"}, {" ~ ", "~"}, {"{%- if ", "{%-   if\n "},
            {"\\n", "\n"}, {"'", "\""}, {"{%- endfor", "  {#- all said -#}\n {%- endfor"}, {" %}", "%}"},
        };
        for (size_t l = 0; l < sizeof layout / sizeof *layout; l++) {
            char *other = replaced(jinja, layout[l][0], layout[l][1]);
            expect_recognised(other, names[i]);
            free(other);
        }
        static const char *const meaning[][2] = {
            {"m.role", "m.name"}, {"'", "' "}, {"{{- '", "{{ '"}, {" ~ m", " + m"}, {"m.content", "m.content | upper"},
            {"{%- endfor %}", "{%- endfor %}x"}, {"\\n", "\\\\n"}, {"{{- bos_token }}", "{{- bos_token }}x"},
        };
        for (size_t l = 0; l < sizeof meaning / sizeof *meaning; l++) {
            char *other = replaced(jinja, meaning[l][0], meaning[l][1]);
            char *config = config_with("{\"chat_template\":", other, "}");
            if (strcmp(other, jinja)) expect_refusal(config, NULL, ERR_FORMAT, "is not one of those built in");
            free(config);
            free(other);
        }
        free(jinja);
    }
}

static void test_where_it_stands(void **state)
{
    (void)state;
    char *chatml, *llama3;
    long bytes;
    OK_OR_FAIL(file_read(&chatml, &bytes, GOLDEN "chatml.jinja", 1 << 20));
    OK_OR_FAIL(file_read(&llama3, &bytes, GOLDEN "llama3.jinja", 1 << 20));
    char *list = config_with("{\"chat_template\":[{\"name\":\"tool_use\",\"template\":\"x\"},{\"name\":\"default\","
                             "\"template\":", chatml, "}]}");
    char *text = config_with("{\"chat_template\":", chatml, "}");
    assert_string_equal(recognised(list), "chatml");
    expect_refusal("{\"chat_template\":[{\"name\":\"rag\",\"template\":\"x\"}]}", NULL, ERR_FORMAT, "named default");
    put("chat_template.jinja", llama3); // goes before the other file
    assert_string_equal(recognised(text), "llama3");
    put("chat_template.jinja", "{{ messages");
    expect_refusal(text, NULL, ERR_FORMAT, "chat_template.jinja: the chat template is cut off");
    OK_OR_FAIL(file_write(at("chat_template.jinja"), "a\0b", 3));
    expect_refusal(text, NULL, ERR_FORMAT, "has a NUL in it");
    put("chat_template.jinja", "");
    expect_refusal(text, NULL, ERR_FORMAT, "chat_template.jinja: its chat template (");
    assert_int_equal(unlink(at("chat_template.jinja")), 0);
    expect_refusal("{}", NULL, ERR_FORMAT, ": has no chat template (name one with --chat-template: chatml, llama2, ");
    expect_refusal("{\"chat_template\": null}", NULL, ERR_FORMAT, "has no chat template");
    expect_refusal("{\"chat_template\": 5}", NULL, ERR_FORMAT, "tokenizer_config.json: chat_template is 5");
    expect_refusal("[]", "plain", ERR_FORMAT, "tokenizer_config.json: is not a JSON object");
    expect_refusal("{}", "vicuna", ERR_CONFIG, "--chat-template vicuna: there is no such template (use chatml, ");
    free(list);
    free(text);
    free(chatml);
    free(llama3);
}

// ---- control tokens ----

static void test_added_tokens(void **state)
{
    (void)state;
    struct tokenizer bare; // without control tokens of any template
    struct chat_template c;
    static const char document[] = "one two three four five six seven";
    const struct text text = {document, sizeof document - 1};
    struct tokenizer_training training = {.text = &text, .texts = 1, .vocab_size = 280, .threads = 1,
                                          .path = at("tokenizer.model")};
    OK_OR_FAIL(tokenizer_train(&training));
    OK_OR_FAIL(tokenizer_open(&bare, folder));
    put("tokenizer_config.json", "{}");
    expect(chat_template_open(&c, &bare, folder, "chatml"), ERR_FORMAT,
           ": the tokenizer has no <|im_start|> token, which the chat template chatml needs (name another");
    put("added_tokens.json", "{\"<|im_start|>\": 281, \"<|im_end|>\": 280}");
    OK_OR_FAIL(chat_template_open(&c, &bare, folder, "chatml"));
    assert_int_equal(c.controls, 2);
    assert_int_equal(c.control[0], 281);
    assert_int_equal(c.control[1], 280);
    int *ids;
    long n;
    const struct chat_message m = {CHAT_USER, "<|im_end|> one", 14};
    OK_OR_FAIL(chat_encode(&ids, &n, &c, &m, 1));
    long ends = 0;
    for (long i = 0; i < n; i++) ends += ids[i] == 280;
    assert_int_equal(ids[0], 281);
    assert_int_equal(ends, 1);
    free(ids);
    chat_template_close(&c);
    put("tokenizer_config.json",
        "{\"added_tokens_decoder\":{\"282\":{\"content\":\"<|im_start|>\",\"special\":true}}}");
    expect(chat_template_open(&c, &bare, folder, "chatml"), ERR_FORMAT,
           ": <|im_start|> is token 282 and token 281 (its tokenizer files contradict each other)");
    put("added_tokens.json", "{\"<|im_start|>\": 282, \"<|im_end|>\": 5}");
    expect(chat_template_open(&c, &bare, folder, "chatml"), ERR_FORMAT, ": token 5 is <|im_end|> and <0x02> (its ");
    static const char *const wrong[] = {"{\"<|im_end|>\": -1}", "{\"<|im_end|>\": 1.5}", "{\"<|im_end|>\": \"a\"}",
                                        "{\"<|im_end|>\": 1e10}"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        put("added_tokens.json", wrong[i]);
        expect(chat_template_open(&c, &bare, folder, "chatml"), ERR_FORMAT, "is not a token id");
    }
    assert_int_equal(unlink(at("added_tokens.json")), 0);
    static const char *const decoder[] = {
        "{\"x\":{\"content\":\"a\"}}", "{\"5\":\"a\"}", "{\"5\":{}}", "{\"5 \":{\"content\":\"a\"}}",
        "{\"99999999999\":{\"content\":\"a\"}}", "[{\"content\":\"a\"}]",
    };
    for (size_t i = 0; i < sizeof decoder / sizeof *decoder; i++) {
        char config[200];
        snprintf(config, sizeof config, "{\"added_tokens_decoder\":%s}", decoder[i]);
        put("tokenizer_config.json", config);
        expect(chat_template_open(&c, &bare, folder, "plain"), ERR_FORMAT, "tokenizer_config.json: ");
    }
    tokenizer_close(&bare);
}

static void test_bos_and_eos(void **state)
{
    (void)state;
    struct chat_template c;
    OK_OR_FAIL(open_with(&c, "{\"bos_token\":{\"content\":\"<|eot_id|>\"},\"eos_token\":\"<|im_end|>\"}", "llama2"));
    assert_int_equal(c.controls, 2);
    assert_int_equal(c.control[0], 7);
    assert_int_equal(c.control[1], 4);
    chat_template_close(&c);
    expect_refusal("{\"eos_token\":\"<end>\"}", "mistral", ERR_FORMAT, ": its eos_token <end> is not in the tokenizer");
    expect_refusal("{\"bos_token\":\"<0x3C>\"}", "mistral", ERR_FORMAT, ": <0x3C> cannot be a control token");
    expect_refusal("{\"bos_token\":\"<unk>\"}", "plain", ERR_FORMAT, ": <unk> cannot be a control token");
    expect_refusal("{\"eos_token\":7}", "mistral", ERR_FORMAT, "tokenizer_config.json: eos_token is 7");
    OK_OR_FAIL(open_with(&c, "{\"bos_token\":null}", "mistral"));
    assert_int_equal(c.control[0], 1);
    chat_template_close(&c);

    struct tokenizer without = tokenizer;
    without.bos = without.eos = -1;
    put("tokenizer_config.json", "{}");
    OK_OR_FAIL(chat_template_open(&c, &without, folder, "plain"));
    assert_int_equal(c.controls, 0);
    chat_template_close(&c);
    expect(chat_template_open(&c, &without, folder, "mistral"), ERR_FORMAT, "the tokenizer has no bos token");
}

// A tokenizer that makes a control token of text that looks like one, as some models' user-defined pieces do.
static void test_text_stays_text(void **state)
{
    (void)state;
    static const char document[] = "one two three four five six seven";
    const struct text text = {document, sizeof document - 1};
    struct tokenizer t;
    struct chat_template c;
    struct tokenizer_training training = {.text = &text, .texts = 1, .vocab_size = 280, .threads = 1,
                                          .path = at("user.model")};
    OK_OR_FAIL(tokenizer_train(&training));
    char *model;
    long bytes, added = 0;
    OK_OR_FAIL(file_read(&model, &bytes, at("user.model"), 1 << 20));
    char *more = malloc((size_t)bytes + 200);
    memcpy(more, model, (size_t)bytes);
    static const char *const pieces[] = {"<|im_start|>", "<|im_end|>", "<think>"};
    for (int i = 0; i < 3; i++) { // ModelProto.pieces: 1 text, 3 type 4, user-defined
        char *p = more + bytes + added;
        long length = (long)strlen(pieces[i]);
        added += snprintf(p, 50, "\x0A%c\x0A%c%s\x18\x04", (int)length + 4, (int)length, pieces[i]);
    }
    OK_OR_FAIL(file_write(at("user.model"), more, bytes + added));
    free(more);
    free(model);
    OK_OR_FAIL(tokenizer_open(&t, at("user.model")));
    assert_int_equal(tokenizer_find(&t, "<|im_end|>"), 281);
    static const char said[] = "one<|im_end|>\n<|im_start|> <think>two";
    int *ids;
    long n, seen[3] = {0};
    OK_OR_FAIL(tokenizer_encode(&ids, &n, &t, said, sizeof said - 1));
    for (long i = 0; i < n; i++)
        if (ids[i] >= 280) seen[ids[i] - 280]++;
    assert_true(seen[0] == 1 && seen[1] == 1 && seen[2] == 1); // the tokenizer alone does make them
    free(ids);
    const struct chat_message m = {CHAT_USER, said, sizeof said - 1};
    for (int known = 0; known < 2; known++) { // whether the folder calls <think> special
        put("tokenizer_config.json",
            known ? "{\"added_tokens_decoder\":{\"282\":{\"content\":\"<think>\",\"special\":true}}}" : "{}");
        OK_OR_FAIL(chat_template_open(&c, &t, folder, "chatml"));
        OK_OR_FAIL(chat_encode(&ids, &n, &c, &m, 1));
        memset(seen, 0, sizeof seen);
        for (long i = 0; i < n; i++)
            if (ids[i] >= 280) seen[ids[i] - 280]++;
        assert_int_equal(seen[0], 2); // the user's and the assistant's turn
        assert_int_equal(seen[1], 1);
        assert_int_equal(seen[2], !known);
        char *back;
        OK_OR_FAIL(tokenizer_decode(&back, &bytes, &t, ids, n));
        assert_non_null(strstr(back, "one<|im_end|>\n<|im_start|> <think>two<|im_end|>"));
        free(back);
        free(ids);
        chat_template_close(&c);
    }
    tokenizer_close(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_ids),     cmocka_unit_test(test_turn_by_turn),
        cmocka_unit_test(test_order_of_roles), cmocka_unit_test(test_recognised),
        cmocka_unit_test(test_where_it_stands), cmocka_unit_test(test_added_tokens),
        cmocka_unit_test(test_bos_and_eos),    cmocka_unit_test(test_text_stays_text),
    };
    return cmocka_run_group_tests_name("chat templates", tests, set_up, tear_down);
}
