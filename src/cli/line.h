// Lines that a person types: edited, with a history, where both standard input and output are a terminal; read as they
// are elsewhere. line.c alone includes libedit's header.
#ifndef SKYMOE_CLI_LINE_H
#define SKYMOE_CLI_LINE_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

struct line_reader {
    bool terminal;
    void *edit, *history; // of libedit; NULL elsewhere
    char *buffer;
    size_t room;
};
enum line_event { LINE_READ, LINE_INTERRUPTED, LINE_END };

MUST_USE enum status line_open(struct line_reader *r, const char *prompt);
void line_close(struct line_reader *r);
// *line without its end, valid until the next call. `interrupt` is what the handler of SIGINT sets: that the line is
// abandoned is LINE_INTERRUPTED. LINE_END: Ctrl-D, end of the file.
MUST_USE enum status line_read(struct line_reader *r, const char **line, long *bytes, enum line_event *event,
                               volatile sig_atomic_t *interrupt);

#endif
