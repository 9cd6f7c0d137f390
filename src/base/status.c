#include "base/status.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static _Thread_local char message[1024];

enum status fail(enum status code, const char *format, ...)
{
    int saved_errno = errno; // callers may still want it
    char text[sizeof message]; // arguments may point into the old message
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    // One sentence is one line: outside bytes (file names, keys) cannot break or colour the terminal.
    size_t n = 0;
    for (const char *c = text; *c; c++) message[n++] = (unsigned char)*c < 0x20 || *c == 0x7f ? '?' : *c;
    message[n] = '\0';
    errno = saved_errno;
    return code;
}

const char *fail_message(void)
{
    return message;
}

void memory_refused(const char *what, long bytes)
{
    fprintf(stderr, "skymoe: memory: %ld bytes for %s were refused (free some memory)\n", bytes, what);
    _exit(1); // other threads may be at work in what exit() would take down
}

void check_failed(const char *condition, const char *file, int line)
{
    fprintf(stderr, "skymoe: %s:%d: CHECK(%s) failed: this is a bug in skymoe\n", file, line, condition);
    abort();
}
