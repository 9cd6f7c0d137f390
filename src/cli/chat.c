// A conversation on a terminal, or one user message a line from standard input.
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "base/log.h"
#include "cli/command.h"
#include "cli/line.h"
#include "cli/sampling.h"
#include "eval/conversation.h"

static struct options {
    const char *model, *chat_template, *system;
    struct sampling_options sampling;
} options;

#define AT(field) offsetof(struct options, field)
static const struct setting rows[] = {
    {"model", SETTING_TEXT, AT(model), NULL, 0, 0, NULL, "model folder (or a run: its newest checkpoint)"},
    {"chat-template", SETTING_CHOICE, AT(chat_template), NULL, 0, 0, CHAT_TEMPLATES,
     "how a conversation becomes tokens; default: as the folder's files say"},
    {"system", SETTING_TEXT, AT(system), NULL, 0, 0, NULL, "what the model is told before the conversation"},
    SAMPLING_ROWS(AT(sampling), "512"),
};
static const struct settings settings = {
    .command = "chat",
    .summary = "talks with a model",
    .usage = "--model DIR [--chat-template NAME]",
    .row = rows,
    .n = sizeof rows / sizeof *rows,
    .options = &options,
};

static volatile sig_atomic_t interrupt;

static void on_signal(int number)
{
    (void)number;
    interrupt = 1;
}

// Ctrl-C ends an answer, or the line that is being typed.
static void catch_interrupt(void)
{
    struct sigaction action = {.sa_handler = on_signal}; // without SA_RESTART: reading a line ends
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
}

// ---- answers ----

struct output_rule {
    bool terminal; // what would move its cursor or change its colours is not written
    bool json;
};

static enum status flushed(void)
{
    if (fflush(stdout) == 0) return OK;
    return fail(ERR_IO, "standard output: cannot be written: %s", strerror(errno));
}

// Control characters: below U+0020 but for tabs and line ends, U+007F to U+009F.
static long control_bytes(const char *text, long bytes)
{
    unsigned char c = (unsigned char)text[0], next = bytes > 1 ? (unsigned char)text[1] : 0;
    if (c == 0xC2 && next >= 0x80 && next < 0xA0) return 2;
    return (c < ' ' && c != '\n' && c != '\t') || c == 0x7F;
}

static enum status show(void *user, const char *text, long bytes)
{
    const struct output_rule *rule = user;
    if (rule->json) return OK;
    for (long i = 0; i < bytes;) {
        long control = rule->terminal ? control_bytes(text + i, bytes - i) : 0;
        putchar(control ? '?' : text[i]);
        i += control ? control : 1;
    }
    return flushed();
}

static enum status print_json(const struct answer *a)
{
    struct json_out o = {0};
    json_begin(&o, NULL, '{');
    json_put_text(&o, "text", a->text);
    json_begin(&o, "token_ids", '[');
    for (long i = 0; i < a->tokens; i++) json_put_long(&o, NULL, a->ids[i]);
    json_end(&o, ']');
    json_put_long(&o, "prompt_tokens", a->prompt);
    json_put_long(&o, "cached_tokens", a->cached);
    json_put_long(&o, "forgotten_turns", a->forgotten);
    json_put_text(&o, "finish_reason", finish_name(a->finish));
    json_end(&o, '}');
    TRY(command_print_json(&o));
    return flushed();
}

static enum status print_end(const struct answer *a, const struct output_rule *rule)
{
    if (rule->json) TRY(print_json(a));
    else printf("\n");
    TRY(flushed());
    if (a->forgotten)
        log_line("(the context is full: the %ld oldest turns are forgotten)", a->forgotten);
    if (a->finish == FINISH_LENGTH) log_line("(cut off after %ld tokens)", a->tokens);
    if (a->finish == FINISH_INTERRUPTED) log_line("(interrupted)");
    return OK;
}

static enum status ask(struct conversation *c, const char *text, long bytes, const struct output_rule *rule)
{
    struct answer answer;
    interrupt = 0;
    TRY(conversation_ask(&answer, c, text, bytes, show, (void *)(uintptr_t)rule));
    enum status status = print_end(&answer, rule);
    answer_free(&answer);
    return status;
}

// ---- what is typed ----

static const char commands_help[] = "/reset begins a new conversation, /system TEXT one with another system message, "
                                    "/quit (or Ctrl-D) ends; Ctrl-C stops an answer";

// Text behind the word when the line begins with it, else NULL.
static const char *behind(const char *line, const char *word)
{
    size_t n = strlen(word);
    if (strncmp(line, word, n) || (line[n] && line[n] != ' ')) return NULL;
    return line + n + strspn(line + n, " ");
}

static enum status command(struct conversation *c, const char *line, bool *quit)
{
    const char *system = behind(line, "/system");
    if (behind(line, "/quit")) *quit = true;
    else if (behind(line, "/reset")) return conversation_reset(c, NULL);
    else if (system) return conversation_reset(c, system);
    else if (behind(line, "/help")) log_line("%s", commands_help);
    else
        return fail(ERR_FORMAT, "%.40s: is not a command (/help lists them; a space in front makes it a message)",
                    line);
    return OK;
}

static enum status handle(struct conversation *c, const char *line, long bytes, const struct output_rule *rule,
                          bool *quit)
{
    if (line[strspn(line, " \t")] == '\0' && (long)strlen(line) == bytes) return OK;
    return *line == '/' ? command(c, line, quit) : ask(c, line, bytes, rule);
}

// On a terminal a wrong message is said and the conversation goes on; elsewhere it ends the program.
static enum status talk(struct conversation *c, struct line_reader *r, const struct output_rule *rule)
{
    bool quit = false;
    for (long number = 1; !quit; number++) {
        const char *given;
        long bytes;
        enum line_event event;
        TRY(line_read(r, &given, &bytes, &event, &interrupt));
        if (event != LINE_READ && r->terminal) printf("\n");
        if (event == LINE_INTERRUPTED && r->terminal) continue;
        if (event != LINE_READ) break;
        char *line = malloc((size_t)bytes + 1);
        if (!line) return fail(ERR_MEMORY, "memory: a line of %ld bytes was refused", bytes);
        memcpy(line, given, (size_t)bytes);
        line[bytes] = '\0';
        enum status status = handle(c, line, bytes, rule, &quit);
        free(line);
        if (status == ERR_FORMAT && r->terminal) log_warning("%s", fail_message());
        else if (status == ERR_FORMAT) return fail(status, "line %ld: %s", number, fail_message());
        else TRY(status);
    }
    return OK;
}

// ---- command ----

static enum status with_lines(struct conversation *c, const struct common_options *common)
{
    struct line_reader lines;
    struct output_rule rule = {.json = common->json, .terminal = isatty(STDOUT_FILENO)};
    TRY(line_open(&lines, "> "));
    if (lines.terminal) log_line("%s", commands_help);
    catch_interrupt();
    enum status status = talk(c, &lines, &rule);
    line_close(&lines);
    return status;
}

static enum status with_template(struct inference *i, const struct chat_template *chat,
                                 const struct common_options *common)
{
    enum { ROWS = 256 };
    static struct conversation conversation;
    struct sampling rule = sampling_rule(&options.sampling, common->seed);
    long context = i->config.max_positions;
    TRY(inference_load(i, context < ROWS ? context : ROWS, context));
    TRY(conversation_open(&conversation, i, chat, &rule, options.sampling.max_tokens));
    conversation.interrupt = &interrupt;
    log_line("%s: chat template %s, context %ld tokens", i->folder, chat->name, context);
    enum status status = conversation_reset(&conversation, options.system);
    if (status == OK) status = with_lines(&conversation, common);
    conversation_close(&conversation);
    return status;
}

static enum status with_tokenizer(struct inference *i, const struct common_options *common)
{
    struct chat_template chat;
    TRY(inference_need_tokenizer(i));
    TRY(chat_template_open(&chat, &i->tokenizer, i->folder, options.chat_template));
    enum status status = with_template(i, &chat, common);
    chat_template_close(&chat);
    return status;
}

static enum status run(int argc, char **argv)
{
    static struct inference inference;
    struct common_options common;
    bool done;
    TRY(command_start(&settings, &common, NULL, &done, argc, argv));
    if (done) return OK;
    if (!options.model) return fail(ERR_CONFIG, "--model: is missing (name a model folder)");
    enum status status = inference_start(&inference, options.model);
    if (status == OK) status = with_tokenizer(&inference, &common);
    inference_close(&inference);
    return status;
}

const struct command command_chat = {.name = "chat", .run = run, .settings = &settings};
