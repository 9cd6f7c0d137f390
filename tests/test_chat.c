// Conversations: answers as a computation from the start gives them, what is forgotten, stop texts, interruption; and
// the command that talks.
#include "program_util.h"

#include <poll.h>
#include <pty.h>

#include "eval/conversation.h"
#include "eval/stream.h"

#define GOLDEN "tests/golden/chat/"
enum { POSITIONS = 192, ROWS = 24, ANSWER = 12 };

static struct tokenizer tokenizer;

// ---- streams ----

// Feeds ids one by one; the text that was given out, NUL-terminated.
static long stream_all(char *out, size_t room, const char *text, const char *stop, long *ready)
{
    int *ids;
    long n, bytes, used = 0, fed = 0;
    struct text_stream s;
    OK_OR_FAIL(tokenizer_encode(&ids, &n, &tokenizer, text, (long)strlen(text)));
    OK_OR_FAIL(text_stream_open(&s, &tokenizer, NULL, 0, stop));
    for (; fed < n && !s.stopped; fed++) {
        OK_OR_FAIL(text_stream_add(&s, ids[fed]));
        const char *more = text_stream_take(&s, &bytes);
        assert_true(utf8_valid(more, bytes) && used + bytes < (long)room);
        memcpy(out + used, more, (size_t)bytes);
        used += bytes;
        out[used] = '\0';
        if (stop) assert_null(strstr(out, stop));
    }
    OK_OR_FAIL(text_stream_end(&s));
    const char *more = text_stream_take(&s, &bytes);
    memcpy(out + used, more, (size_t)bytes);
    out[used + bytes] = '\0';
    *ready = s.ready;
    long whole, whole_bytes;
    OK_OR_FAIL(text_stream_whole(&whole, &whole_bytes, &s));
    char *before;
    long before_bytes;
    OK_OR_FAIL(tokenizer_decode(&before, &before_bytes, &tokenizer, ids, whole));
    assert_true(before_bytes == whole_bytes && before_bytes <= s.ready && !memcmp(before, out, (size_t)before_bytes));
    free(before);
    text_stream_close(&s);
    free(ids);
    return fed;
}

static void test_stream(void **state)
{
    (void)state;
    static const struct {
        const char *text, *stop, *shown;
    } cases[] = {
        {"where 进程 and 😀 meet", NULL, "where 进程 and 😀 meet"},
        {"hello\nUser: next", "\nUser:", "hello"},
        {"hello\nUse it\n\nUser: next", "\nUser:", "hello\nUse it\n"},
        {"hello\nUser", "\nUser:", "hello\nUser"},
        {"\nUser:", "\nUser:", ""},
        {"a 进程程 b", "程程", "a 进"},
        {"aaaab", "aab", "aa"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char out[256] = "";
        long ready;
        stream_all(out, sizeof out, cases[i].text, cases[i].stop, &ready);
        if (strcmp(out, cases[i].shown)) fail_msg("'%s' is shown as '%s'", cases[i].text, out);
        assert_int_equal(ready, strlen(cases[i].shown));
    }
    // Behind a context the text begins as it goes on there, with its space.
    int *context, *ids;
    long n, m, bytes;
    struct text_stream s;
    OK_OR_FAIL(tokenizer_encode(&context, &n, &tokenizer, "one", 3));
    OK_OR_FAIL(tokenizer_encode(&ids, &m, &tokenizer, "two", 3));
    OK_OR_FAIL(text_stream_open(&s, &tokenizer, context, n, NULL));
    text_stream_take(&s, &bytes);
    assert_int_equal(bytes, 0);
    for (long i = 0; i < m; i++) OK_OR_FAIL(text_stream_add(&s, ids[i]));
    const char *more = text_stream_take(&s, &bytes);
    assert_int_equal(bytes, 4);
    assert_memory_equal(more, " two", 4);
    text_stream_close(&s);
    free(context);
    free(ids);
}

// ---- conversations ----

struct talk {
    struct inference i;
    struct chat_template chat;
    struct conversation c;
    char shown[4096];
};

static enum status show(void *user, const char *text, long bytes)
{
    char *shown = user;
    assert_true(utf8_valid(text, bytes));
    size_t used = strlen(shown);
    assert_true(used + (size_t)bytes < 4096);
    memcpy(shown + used, text, (size_t)bytes);
    shown[used + (size_t)bytes] = '\0';
    return OK;
}

static struct talk *begin(const char *name, const char *system, long max_tokens)
{
    static struct talk t;
    const struct sampling greedy = {0, 0, 1, 0, 1};
    OK_OR_FAIL(inference_open(&t.i, at("model"), ROWS, POSITIONS));
    OK_OR_FAIL(chat_template_open(&t.chat, &t.i.tokenizer, t.i.folder, name));
    OK_OR_FAIL(conversation_open(&t.c, &t.i, &t.chat, &greedy, max_tokens));
    OK_OR_FAIL(conversation_reset(&t.c, system));
    return &t;
}

static void end(struct talk *t)
{
    conversation_close(&t->c);
    chat_template_close(&t->chat);
    inference_close(&t->i);
}

static struct answer say(struct talk *t, const char *text)
{
    struct answer a;
    t->shown[0] = '\0';
    OK_OR_FAIL(conversation_ask(&a, &t->c, text, (long)strlen(text), show, t->shown));
    assert_string_equal(t->shown, a.text);
    assert_int_equal(strlen(a.text), a.bytes);
    assert_true(t->c.kv.length[0] <= t->c.n && t->c.n <= POSITIONS);
    return a;
}

// The first `n` tokens of the answer are those that the ids before it give when all is computed from the start.
static void expect_answer(const struct talk *t, const struct answer *a, long n)
{
    struct kv_cache kv;
    long V = t->i.model.c.V, pieces = t->i.tokenizer.pieces;
    float *logits = malloc((size_t)V * sizeof *logits);
    OK_OR_FAIL(kv_cache_init(&kv, (struct model *)(uintptr_t)&t->i.model, 1, POSITIONS, POSITIONS));
    OK_OR_FAIL(kv_append(&kv, 0, t->c.ids, a->prompt, logits, NULL));
    for (long k = 0; k < n; k++) {
        long best = 0;
        for (long v = 1; v < pieces; v++)
            if (logits[v] > logits[best]) best = v;
        if (a->ids[k] != best) fail_msg("token %ld of the answer is %d, expected %ld", k, a->ids[k], best);
        OK_OR_FAIL(kv_append(&kv, 0, &a->ids[k], 1, logits, NULL));
    }
    free(logits);
    kv_cache_free(&kv);
}

static void test_turns(void **state)
{
    (void)state;
    static const char *const names[] = {"chatml", "llama2", "llama3", "mistral", "plain"};
    for (int k = 0; k < 5; k++) {
        struct talk *t = begin(names[k], "Be brief.", ANSWER);
        long known = 0;
        for (int turn = 0; turn < 3; turn++) {
            struct answer a = say(t, turn ? "And then?" : "Hello, 你好");
            assert_int_equal(a.cached, known); // all that was there but the token drawn last
            assert_true(a.forgotten == 0 && a.prompt > a.cached);
            assert_true(a.finish == FINISH_STOP || a.tokens == ANSWER);
            expect_answer(t, &a, a.tokens);
            known = a.prompt + a.tokens - (a.finish == FINISH_LENGTH);
            assert_int_equal(t->c.n, a.prompt + a.tokens);
            answer_free(&a);
        }
        assert_int_equal(t->c.messages, 7);
        OK_OR_FAIL(conversation_reset(&t->c, NULL));
        assert_int_equal(t->c.messages, 1); // the system message
        OK_OR_FAIL(conversation_reset(&t->c, ""));
        assert_int_equal(t->c.messages, 0);
        struct answer a = say(t, "Hello");
        assert_int_equal(a.cached, 0);
        answer_free(&a);
        end(t);
    }
}

// An end id ends the answer; the conversation goes on behind it as if all were computed from the start.
static void test_end_ids(void **state)
{
    (void)state;
    struct talk *t = begin("chatml", NULL, ANSWER);
    struct answer a = say(t, "Hello"), b;
    long at = a.tokens - 1; // the last token that did not come before
    while (at > 0 && memchr(a.ids, a.ids[at], (size_t)at * sizeof *a.ids)) at--;
    for (long i = 0; i < at; i++)
        if (a.ids[i] == a.ids[at]) at = i;
    OK_OR_FAIL(end_ids_add(&t->c.ends, a.ids[at], "test"));
    OK_OR_FAIL(conversation_reset(&t->c, NULL));
    b = say(t, "Hello");
    assert_int_equal(b.finish, FINISH_STOP);
    assert_int_equal(b.tokens, at);
    assert_memory_equal(b.ids, a.ids, (size_t)at * sizeof *a.ids);
    answer_free(&a);
    answer_free(&b);
    a = say(t, "Again");
    expect_answer(t, &a, a.tokens);
    answer_free(&a);
    end(t);
}

// A control token that was added beyond tokenizer.model may be drawn and ends the answer; its neighbours may not.
static void test_added_control(void **state)
{
    (void)state;
    struct talk *t = begin("chatml", NULL, ANSWER);
    const struct sampling warm = {30, 0, 1, 0, 1}; // almost any token alike
    int pieces = (int)t->i.tokenizer.pieces, added = pieces + 2;
    conversation_close(&t->c);
    t->chat.control[1] = added; // in place of <|im_end|>
    OK_OR_FAIL(conversation_open(&t->c, &t->i, &t->chat, &warm, POSITIONS));
    long stopped = 0;
    for (int turn = 0; turn < 40; turn++) {
        struct answer a = say(t, "Hello");
        for (long i = 0; i < a.tokens; i++) assert_in_range(a.ids[i], 0, pieces - 1);
        assert_int_equal(t->c.ids[a.prompt - 7], added); // closes the user's message
        stopped += a.finish == FINISH_STOP;
        answer_free(&a);
    }
    assert_true(t->c.sampler.also_n == 1 && t->c.sampler.also[0] == added && stopped > 0);
    t->chat.control[1] = added + 1; // the model's vocabulary ends there
    conversation_close(&t->c);
    assert_int_equal(conversation_open(&t->c, &t->i, &t->chat, &warm, ANSWER), ERR_FORMAT);
    assert_non_null(strstr(fail_message(), "beyond the model's vocabulary of"));
    end(t);
}

// Text that ends an answer is neither shown nor kept, wherever token borders lie.
static void test_stop_text(void **state)
{
    (void)state;
    struct talk *t = begin("chatml", NULL, ANSWER);
    struct answer whole = say(t, "Hello");
    long tried = 0;
    for (long from = 0; from < whole.bytes; from++) {
        char stop[4] = "";
        if (from + 3 > whole.bytes || !utf8_valid(whole.text + from, 3)) continue;
        memcpy(stop, whole.text + from, 3);
        if (strstr(whole.text, stop) != whole.text + from) continue;
        t->chat.stop = stop;
        OK_OR_FAIL(conversation_reset(&t->c, NULL));
        struct answer a = say(t, "Hello");
        assert_int_equal(a.finish, FINISH_STOP);
        assert_int_equal(a.bytes, from);
        assert_memory_equal(a.text, whole.text, (size_t)from);
        char *kept;
        long bytes;
        OK_OR_FAIL(tokenizer_decode(&kept, &bytes, &tokenizer, t->c.ids + a.prompt, t->c.n - a.prompt));
        assert_string_equal(kept, a.text);
        free(kept);
        answer_free(&a);
        t->chat.stop = NULL;
        a = say(t, "And?");
        expect_answer(t, &a, a.tokens);
        answer_free(&a);
        tried++;
    }
    assert_true(tried > 3);
    answer_free(&whole);
    end(t);
}

static void test_forgetting(void **state)
{
    (void)state;
    struct talk *t = begin("chatml", "Be brief.", ANSWER);
    long forgotten = 0;
    for (int turn = 0; turn < 20; turn++) {
        struct answer a = say(t, "What is a router?");
        forgotten += a.forgotten;
        expect_answer(t, &a, a.tokens);
        assert_int_equal(t->c.messages, 1 + 2 * (turn + 1 - forgotten));
        assert_string_equal(t->c.message[0].text, "Be brief.");
        if (a.forgotten) { // the template's beginning and the system message stay computed
            assert_true(a.cached > 5 && a.cached < 40);
            int *ids;
            long n;
            OK_OR_FAIL(chat_encode(&ids, &n, &t->chat, t->c.message, t->c.messages - 1));
            assert_int_equal(n, a.prompt);
            assert_memory_equal(ids, t->c.ids, (size_t)n * sizeof *ids);
            free(ids);
        }
        answer_free(&a);
    }
    assert_true(forgotten > 10);
    struct answer a;
    char text[3 * POSITIONS];
    memset(text, '7', sizeof text); // a token a digit
    long before = t->c.n, messages = t->c.messages;
    assert_int_equal(conversation_ask(&a, &t->c, text, sizeof text, show, t->shown), ERR_FORMAT);
    if (!strstr(fail_message(), "a context of 192 has room for 180 beside an answer (make it shorter)"))
        fail_msg("%s", fail_message());
    assert_int_equal(conversation_ask(&a, &t->c, "\xC3", 1, show, t->shown), ERR_FORMAT);
    assert_true(t->c.n == before && t->c.messages == messages);
    a = say(t, "Go on");
    expect_answer(t, &a, a.tokens);
    answer_free(&a);
    end(t);
}

static volatile sig_atomic_t interrupt;

static enum status show_once(void *user, const char *text, long bytes)
{
    interrupt = 1;
    return show(user, text, bytes);
}

static enum status show_fails(void *user, const char *text, long bytes)
{
    (void)user;
    (void)text;
    return (fail)(ERR_IO, "test: %ld bytes cannot be shown", bytes);
}

static void test_interrupted(void **state)
{
    (void)state;
    struct talk *t = begin("chatml", NULL, ANSWER);
    struct answer a, b;
    t->c.interrupt = &interrupt;
    a = say(t, "Hello");
    OK_OR_FAIL(conversation_reset(&t->c, NULL));
    t->shown[0] = '\0';
    OK_OR_FAIL(conversation_ask(&b, &t->c, "Hello", 5, show_once, t->shown));
    assert_int_equal(b.finish, FINISH_INTERRUPTED);
    assert_true(b.tokens < a.tokens && !memcmp(a.ids, b.ids, (size_t)b.tokens * sizeof *a.ids));
    answer_free(&b);
    OK_OR_FAIL(conversation_ask(&b, &t->c, "Hello", 5, show, t->shown)); // before its first token
    assert_true(b.finish == FINISH_INTERRUPTED && b.tokens == 0);
    answer_free(&b);
    interrupt = 0;
    b = say(t, "Go on");
    expect_answer(t, &b, b.tokens);
    assert_int_equal(t->c.messages, 6);
    answer_free(&b);
    // A turn that fails is forgotten; the next is answered as if it had not been.
    assert_int_equal(conversation_ask(&b, &t->c, "Fail", 4, show_fails, NULL), ERR_IO);
    assert_int_equal(t->c.messages, 6);
    b = say(t, "Go on");
    expect_answer(t, &b, b.tokens);
    answer_free(&b);
    answer_free(&a);
    end(t);
}

// ---- the command ----

#define CHAT "chat", "--model", at("model"), "--temperature", "0", "--max-tokens", "12"

static void input(const char *text)
{
    OK_OR_FAIL(file_write(at("stdin"), text, (long)strlen(text)));
}

// The next line of what was printed, as JSON.
static cJSON *next_json(char **from)
{
    cJSON *json;
    char *end = strchr(*from, '\n');
    assert_non_null(end);
    OK_OR_FAIL(json_parse(&json, *from, end - *from, "stdout"));
    *from = end + 1;
    return json;
}

static void test_command(void **state)
{
    (void)state;
    cJSON *turn[4];
    input("Hello\n\nAnd then?\n/reset\nHello\n/system Be brief.\nHello"); // the last line without an end
    WORKS(CHAT, "--json");
    assert_non_null(strstr(err_text, "chat template chatml, context 192 tokens"));
    char *from = out_text;
    for (int i = 0; i < 4; i++) turn[i] = next_json(&from);
    assert_int_equal(*from, '\0');
    long tokens = cJSON_GetArraySize(json_field(turn[0], "token_ids"));
    assert_int_equal((long)number(turn[0], "cached_tokens"), 0);
    assert_int_equal((long)number(turn[1], "cached_tokens"), (long)number(turn[0], "prompt_tokens") + tokens - 1);
    assert_string_equal(json_field(turn[0], "finish_reason")->valuestring, "length");
    assert_true(cJSON_Compare(turn[0], turn[2], true));
    assert_int_equal((long)number(turn[3], "cached_tokens"), 0);
    assert_true(number(turn[3], "prompt_tokens") > number(turn[0], "prompt_tokens"));
    char *first = strdup(json_field(turn[0], "text")->valuestring);
    for (int i = 0; i < 4; i++) cJSON_Delete(turn[i]);

    input("Hello\n/quit\nHello\n");
    WORKS(CHAT, "--quiet");
    assert_string_equal(err_text, "");
    assert_memory_equal(out_text, first, strlen(first));
    assert_string_equal(out_text + strlen(first), "\n");
    WORKS(CHAT, "--quiet", "--seed", "5", "--chat-template", "llama3"); // another form, another answer
    assert_true(strncmp(out_text, first, strlen(first)));
    free(first);
    input("");
    WORKS(CHAT);
    assert_string_equal(out_text, "");
}

// ---- on a terminal ----

static pid_t start_on_terminal(int *master)
{
    pid_t child = forkpty(master, NULL, NULL, NULL);
    assert_true(child >= 0);
    if (child) return child;
    setenv("TERM", "xterm", 1);
    setenv("OMP_NUM_THREADS", "1", 1);
    execl(program, program, CHAT, (char *)NULL);
    _exit(99);
}

// Adds what the program writes to `seen`, until `wanted` has come after `from` or (NULL) the program has ended.
static void read_until(int master, char *seen, size_t room, size_t from, const char *wanted)
{
    size_t used = strlen(seen);
    do {
        char c;
        if (read(master, &c, 1) != 1) {
            if (wanted) fail_msg("'%s' did not come in: %s", wanted, seen);
            return;
        }
        if (c == '\r') continue;
        assert_true(used + 1 < room);
        seen[used++] = c;
        seen[used] = '\0';
    } while (!wanted || !strstr(seen + from, wanted));
}

static void type(int master, const char *keys)
{
    assert_int_equal(write(master, keys, strlen(keys)), strlen(keys));
}

static void test_terminal(void **state)
{
    (void)state;
    static char seen[1 << 16];
    input("Hello\n");
    WORKS(CHAT, "--quiet");
    char *answer = strdup(out_text);
    for (char *c = answer; *c; c++) // as a terminal is given it
        if ((unsigned char)*c < ' ' && *c != '\n' && *c != '\t') *c = '?';
    int master, code;
    pid_t child = start_on_terminal(&master);
    read_until(master, seen, sizeof seen, 0, "> ");
    type(master, "Never s");
    struct pollfd ready = {.fd = master, .events = POLLIN};
    size_t from = strlen(seen);
    do { // Ctrl-C: this line is abandoned, the program is not. Before it waits for a key it does not notice
        type(master, "\x03");
        usleep(1000);
        while (poll(&ready, 1, 200) > 0) read_until(master, seen, sizeof seen, strlen(seen), "");
    } while (!strstr(seen + from, "\n> "));
    from = strlen(seen);
    type(master, "Helo\x02l\n"); // Ctrl-B: one back
    read_until(master, seen, sizeof seen, from, "(cut off after 12 tokens)\n> ");
    if (!strstr(seen + from, answer)) fail_msg("'%s' is not in '%s'", answer, seen + from);
    from = strlen(seen);
    type(master, "/rset\n");
    read_until(master, seen, sizeof seen, from, "warning: /rset: is not a command (/help lists them");
    type(master, "/reset\n");
    read_until(master, seen, sizeof seen, strlen(seen), "> ");
    from = strlen(seen);
    type(master, "\x10\x10\x10\n"); // Ctrl-P: three lines back in the history
    read_until(master, seen, sizeof seen, from, "(cut off after 12 tokens)\n> ");
    if (!strstr(seen + from, answer)) fail_msg("'%s' is not in '%s'", answer, seen + from);
    type(master, "\x04"); // Ctrl-D
    read_until(master, seen, sizeof seen, 0, NULL);
    assert_true(waitpid(child, &code, 0) == child);
    assert_true(WIFEXITED(code) && WEXITSTATUS(code) == 0);
    close(master);
    free(answer);
}

static void test_refusals(void **state)
{
    (void)state;
    input("Hello\n/rest\nHello\n");
    FAILS(1, "line 2: /rest: is not a command (/help lists them; a space in front makes it a message)", CHAT);
    input("Hel\xC3\n");
    FAILS(1, "line 1: text: is not UTF-8", CHAT);
    FAILS(2, "--model: is missing", "chat");
    FAILS(2, "--chat-template: 'vicuna' is not a choice (allowed: chatml, llama2, llama3, mistral, plain)", CHAT,
          "--chat-template", "vicuna");
    FAILS(2, "--top-p 0", CHAT, "--top-p", "0");
    FAILS(1, "small: the control token <|im_end|> is token 4, beyond the model's vocabulary of 4", "chat", "--model",
          at("small"), "--chat-template", "chatml");
    FAILS(2, "--prompt-ids: there is no token 99999", "generate", "--model", at("small"), "--prompt-ids",
          "1,99999");
    FAILS(1, "small: has no chat template (name one with --chat-template: chatml,", "chat", "--model", at("small"));
    assert_int_equal(rename(at("small/tokenizer.model"), at("small/away")), 0);
    FAILS(1, "small: has no tokenizer.model, which text needs", "chat", "--model", at("small"));
}

static void make_model(const char *name, long vocabulary)
{
    struct config c = {.arch = ARCH_LLAMA, .D = 16, .F = 20, .L = 2, .H = 2, .G = 1, .C = 8, .V = vocabulary,
                       .max_positions = POSITIONS, .norm_eps = 1e-5, .rope_theta = 100, .dtype = F32,
                       .bos = 1, .eos = 2, .pad = -1};
    struct model_options o = {.dtype = F32, .B = 1, .S = 8, .positions = POSITIONS};
    struct model m;
    OK_OR_FAIL(model_init(&m, &c, &o));
    model_init_weights(&m, &(struct init_rule){7, 0.6, 0.3});
    OK_OR_FAIL(model_folder_write(at(name), &m, at("tokenizer")));
    model_free(&m);
}

static int set_up(void **state)
{
    if (!find_program() || make_temporary(state) != 0 || kernels_init(1) != OK) return -1;
    OK_OR_FAIL(folder_make(at("tokenizer")));
    OK_OR_FAIL(file_copy(at("tokenizer/tokenizer.model"), GOLDEN "tokenizer.model"));
    OK_OR_FAIL(tokenizer_open(&tokenizer, at("tokenizer")));
    make_model("small", 4);
    OK_OR_FAIL(file_copy(at("tokenizer/chat_template.jinja"), GOLDEN "chatml.jinja"));
    make_model("model", tokenizer.pieces + 3);
    return 0;
}

static int tear_down(void **state)
{
    tokenizer_close(&tokenizer);
    return remove_temporary(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stream),     cmocka_unit_test(test_turns),       cmocka_unit_test(test_end_ids),
        cmocka_unit_test(test_stop_text),  cmocka_unit_test(test_forgetting),  cmocka_unit_test(test_interrupted),
        cmocka_unit_test(test_command),    cmocka_unit_test(test_refusals),    cmocka_unit_test(test_added_control),
        cmocka_unit_test(test_terminal),
    };
    return cmocka_run_group_tests_name("chat", tests, set_up, tear_down);
}
