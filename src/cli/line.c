#include "cli/line.h"

#include <errno.h>
#include <histedit.h>
#include <locale.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *prompt_text;

static char *prompt(EditLine *edit)
{
    (void)edit;
    return (char *)(uintptr_t)prompt_text;
}

// Letters beyond ASCII are edited as letters only in a locale that has them.
static void use_utf8(void)
{
    if (!setlocale(LC_CTYPE, "") || MB_CUR_MAX == 1) setlocale(LC_CTYPE, "C.UTF-8");
}

enum status line_open(struct line_reader *r, const char *text)
{
    enum { REMEMBERED = 500 };
    HistEvent event;
    *r = (struct line_reader){.terminal = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO)};
    if (!r->terminal) return OK;
    use_utf8();
    prompt_text = text;
    EditLine *edit = el_init("skymoe", stdin, stdout, stderr);
    History *past = history_init();
    r->edit = edit;
    r->history = past;
    if (!edit || !past) {
        line_close(r);
        return fail(ERR_IO, "terminal: cannot be used for editing (use TERM=dumb, or a pipe)");
    }
    history(past, &event, H_SETSIZE, REMEMBERED);
    history(past, &event, H_SETUNIQUE, 1);
    el_set(edit, EL_PROMPT, prompt);
    el_set(edit, EL_EDITOR, "emacs");
    el_set(edit, EL_HIST, history, past);
    el_set(edit, EL_SIGNAL, 1); // its handlers put the terminal right, then call ours
    return OK;
}

void line_close(struct line_reader *r)
{
    if (r->edit) el_end(r->edit);
    if (r->history) history_end(r->history);
    free(r->buffer);
    *r = (struct line_reader){0};
}

enum status line_read(struct line_reader *r, const char **line, long *bytes, enum line_event *event,
                      volatile sig_atomic_t *interrupt)
{
    int edited = 0;
    HistEvent remembered;
    *interrupt = 0;
    errno = 0;
    if (r->terminal) {
        el_set(r->edit, EL_PREP_TERM, 1); // before the prompt is seen: a Ctrl-D typed in between would be lost
        *line = el_gets(r->edit, &edited);
        *bytes = *line ? edited : -1;
    } else {
        *bytes = getline(&r->buffer, &r->room, stdin);
        *line = r->buffer;
    }
    *event = *bytes > 0 ? LINE_READ : *interrupt ? LINE_INTERRUPTED : LINE_END;
    if (*event == LINE_READ && r->terminal) history(r->history, &remembered, H_ENTER, *line);
    if (*event == LINE_READ) *bytes -= (*line)[*bytes - 1] == '\n';
    if (*event == LINE_END && (ferror(stdin) || errno == ENOMEM))
        return fail(ERR_IO, "standard input: cannot be read: %s", strerror(errno));
    return OK;
}
